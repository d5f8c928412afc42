"""Small files in the layouts of D4RL, for the tests of MuJoCo."""

from pathlib import Path

import h5py
import numpy as np

from MuJoCo.tasks import Robot

LENGTHS = (7, 1, 12, 30, 5, 9)
TERMINAL = (True, True, False, False, True, False)


def episodes(robot: Robot, lengths=LENGTHS, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Episodes of random numbers, as the published pickles hold them; those of TERMINAL end in terminal states."""
    rng = np.random.default_rng(seed)

    def episode(steps: int, terminal: bool) -> dict[str, np.ndarray]:
        return {
            "observations": rng.normal(3, 2, (steps, robot.observation_size)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (steps, robot.action_size)).astype(np.float32),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "terminals": (np.arange(steps) == steps - 1) & terminal,
        }

    return [episode(steps, TERMINAL[number % len(TERMINAL)]) for number, steps in enumerate(lengths)]


def write_d4rl(path: Path, robot: Robot, lengths=LENGTHS, *, tail: int = 0, limits: bool = True, **changes) -> Path:
    """A file with D4RL's keys, timeouts only with ``limits``; ``tail`` steps without an end come last.

    ``changes`` replace arrays; None leaves one out.
    """
    made = episodes(robot, lengths)
    arrays = {name: np.concatenate([episode[name] for episode in made]) for name in made[0]}
    if limits:
        last = np.zeros(sum(lengths), dtype=bool)
        last[np.cumsum(lengths) - 1] = True
        arrays["timeouts"] = last & ~arrays["terminals"]
    if tail:
        unfinished = episodes(robot, [tail], seed=1)[0] | {"terminals": np.zeros(tail, bool)}
        unfinished |= {"timeouts": np.zeros(tail, bool)} if limits else {}
        arrays = {name: np.concatenate([values, unfinished[name]]) for name, values in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in (arrays | changes).items():
            if values is not None:
                file[name] = values
    return path
