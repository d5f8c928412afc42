"""Tiny Atari runs that several test files use."""

from pathlib import Path

import numpy as np

from Atari import train_rate_atari
from Atari.env import AtariEnv
from RATE_model.data.writer import TrajectoryWriter

MODEL = "--n_layer 1 --d_model 16 --n_head 2 --d_head 8 --d_inner 16 --num_mem_tokens 2 --mem_len 19".split()
SEGMENTS = "--context_length 5 --segments 2".split()
TRAINING = "--epochs 2 --epoch_batches 3 --batch_size 2 --warmup_tokens 40 --learning_rate 0.003".split()
HERE = "--eval_episodes 2 --max_steps 12 --device cpu --wandb_mode disabled --log_every 2".split()
TINY = (*MODEL, *SEGMENTS, *TRAINING, *HERE)
NO_EVALUATION = "--online_inference false --last_inference false".split()


def random_play(path: Path, game: str = "Breakout", *, episodes: int = 6, most: int = 40) -> Path:
    """A file of the first steps of games in which buttons are pressed at random."""
    rng = np.random.default_rng(0)
    environment = AtariEnv(game, frame_stack=1)
    with TrajectoryWriter(
        path, observation_shape=(1, 84, 84), observation_dtype="uint8", attributes={"game": game}
    ) as writer:
        for seed in range(episodes):
            observation, _ = environment.reset(seed=seed)
            steps = []
            while len(steps) < most - seed:
                action = int(rng.integers(environment.action_space.n))
                following, reward, *_ = environment.step(action)
                steps.append((observation, action, reward))
                observation = following
            writer.add_episode(*map(np.stack, zip(*steps, strict=True)), terminal=False)
    return path


def places(folder: Path) -> list[str]:
    """Flags that keep data and runs in a folder."""
    return ["--data_path", str(folder / "data.h5"), "--output_dir", str(folder / "runs")]


def train(folder: Path, *flags: str) -> int:
    """Train with the tiny setting and these flags, in this process; the exit code."""
    return train_rate_atari.main([*TINY, *places(folder), *flags])


def only_run(folder: Path) -> Path:
    """The directory of the one run in a folder."""
    (run,) = (path.parent for path in folder.glob("runs/*/*/config.yaml"))
    return run
