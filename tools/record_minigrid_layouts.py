"""Record the layouts of the published Minigrid-Memory evaluation, for tests/data/minigrid_layouts.npz.

It runs with the published system's gym 0.18.3 and gym-minigrid 1.0.2, which do not build with current tools:

    python3.11 -m venv old && old/bin/pip install 'numpy<1.24' scipy cloudpickle matplotlib pillow wheel==0.37.1
    old/bin/pip install --no-build-isolation --no-deps gym==0.18.3 gym-minigrid==1.0.2
    old/bin/python tools/record_minigrid_layouts.py tests/data/minigrid_layouts.npz

The file holds, for each of C cases of 100 seeds:

    sizes          (C,) uint8 of the mazes
    random_length  (C,) bool  whether the corridor's end is drawn
    layouts        (C, 100, 4) uint8: column where the corridor ends, column of the agent, whether the cue is a ball,
                   whether the object to the north is one
    grids, views   (C,) text: SHA-256 of all grids, encoded, and of all first observations, (3, 84, 84) uint8
"""

import hashlib
import sys

try:
    import gym
    import numpy as np
    from gym_minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper, ViewSizeWrapper
except ImportError as missing:
    print(f"error: {missing}: run this with the packages that the top of the file names", file=sys.stderr)
    sys.exit(2)

CASES = ((11, True), (31, True), (41, True), (91, True), (41, False), (91, False))
SEEDS = range(100)


def maze(size: int, random_length: bool) -> gym.Env:
    """The published environment: a registered maze, enlarged after its creation."""
    made = gym.make("MiniGrid-MemoryS13Random-v0" if random_length else "MiniGrid-MemoryS13-v0")
    made.height = made.width = size
    return ImgObsWrapper(RGBImgPartialObsWrapper(ViewSizeWrapper(made, 3), tile_size=28))


def main(path: str) -> None:
    """Write the file."""
    layouts, grids, views = [], [], []
    for size, random_length in CASES:
        env, rows, grid_hash, view_hash = maze(size, random_length), [], hashlib.sha256(), hashlib.sha256()
        for seed in SEEDS:
            env.seed(seed)
            view = env.reset()
            inner = env.unwrapped
            end = inner.success_pos[0] - 1
            cue, north = inner.grid.get(1, size // 2 - 1), inner.grid.get(end + 1, size // 2 - 2)
            rows.append((end, inner.agent_pos[0], cue.type == "ball", north.type == "ball"))
            grid_hash.update(inner.grid.encode().astype(np.uint8).tobytes())
            view_hash.update(np.ascontiguousarray(view.transpose(2, 0, 1)).tobytes())
        layouts.append(rows)
        grids.append(grid_hash.hexdigest())
        views.append(view_hash.hexdigest())
    sizes, drawn = zip(*CASES, strict=True)
    np.savez_compressed(
        path,
        sizes=np.array(sizes, np.uint8),
        random_length=np.array(drawn),
        layouts=np.array(layouts, np.uint8),
        grids=np.array(grids),
        views=np.array(views),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(f"error: give the file to write, as python {sys.argv[0]} FILE.npz", file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1])
