"""Record the published engine's frames for tests/data/vizdoom_frames.npz.

It runs on vizdoom 1.2.4, which draws the same as the published 1.2.2, in a separate environment:

    python3.11 -m venv old && old/bin/pip install vizdoom==1.2.4 tyro pyyaml
    old/bin/python tools/record_vizdoom_frames.py tests/data/vizdoom_frames.npz

That engine animates the floor in wall-clock time, later ones in game time: a frame that shows the floor has up to three
pictures, which differ only in the floor's phase. Every episode is played until no new picture appears.
The file holds, for S seeds:

    seeds     (S,) int64
    actions   (S, T - 1) uint8
    pictures  (S, T, 3) uint64: the first eight bytes, little-endian, of the SHA-256 of each picture, (3, 180, 320)
              uint8; some are the same if little of the floor is visible
"""

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import vizdoom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from VizDoom.VizDoom_src.scenario import Scenario, ensure_scenario

SEEDS = (0, 1, 2, 3, 4, 6, 7, 8, 163, 164)  # as many red as green
STEPS = 100
PHASES = 3  # of the floor
CYCLE = 24 / 35  # seconds
ENOUGH = 15  # repetitions of an episode without a new picture
BUTTONS = ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1])


def started() -> vizdoom.DoomGame:
    """The published game: all settings except window and log are the published code's."""
    game = vizdoom.DoomGame()
    game.set_doom_config_path(os.devnull)
    game.set_doom_scenario_path(str(ensure_scenario(Scenario())))
    game.set_doom_map("MAP01")
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X180)
    game.set_screen_format(vizdoom.ScreenFormat.CRCGCB)
    for part in ("hud", "crosshair", "weapon", "decals", "particles"):
        getattr(game, f"set_render_{part}")(False)
    buttons = ("TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD")
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in buttons])
    game.set_episode_timeout(0)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.init()
    return game


def play(game: vizdoom.DoomGame, seed: int, actions: np.ndarray) -> list[int]:
    """Play an episode; returns the digests of its pictures."""
    game.set_seed(seed)
    game.new_episode()
    found = []
    for action in (*actions.tolist(), None):
        digest = hashlib.sha256(game.get_state().screen_buffer.tobytes()).digest()
        found.append(int.from_bytes(digest[:8], "little"))
        if action is not None:
            game.make_action(BUTTONS[action], 2)
    return found


def main(path: str) -> None:
    """Write the file."""
    target = Path(path).absolute()
    os.chdir(tempfile.mkdtemp())  # the engine creates a folder in the working directory
    game, chosen, pictures = started(), [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        actions = np.repeat(rng.integers(0, 5, STEPS // 5 + 1), 5)[: STEPS - 1].astype(np.uint8)
        seen: list[set[int]] = [set() for _ in range(STEPS)]
        in_vain = 0
        while in_vain < ENOUGH and min(map(len, seen)) < PHASES:
            before = sum(map(len, seen))
            for pictures_of_step, digest in zip(seen, play(game, seed, actions), strict=True):
                pictures_of_step.add(digest)
            in_vain = in_vain + 1 if sum(map(len, seen)) == before else 0
            time.sleep(rng.uniform(0, CYCLE))
        counts = [len(digests) for digests in seen]
        print(f"seed {seed}: {counts.count(PHASES)} of {STEPS} frames differ in all phases", flush=True)
        assert max(counts) <= PHASES, counts
        chosen.append(actions)
        pictures.append([(sorted(digests) * PHASES)[:PHASES] for digests in seen])
    game.close()
    np.savez_compressed(
        target, seeds=np.array(SEEDS), actions=np.stack(chosen), pictures=np.array(pictures, dtype=np.uint64)
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(f"error: give the file to write, as python {sys.argv[0]} FILE.npz", file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1])
