"""Tiny Memory Maze data and runs that several test files use. The pictures are noise: nothing is drawn."""

from pathlib import Path

import numpy as np

from MemoryMaze.MemoryMaze_src import train_mem_maze
from MemoryMaze.MemoryMaze_src.env import NUM_ACTIONS, OBSERVATION_SHAPE
from MemoryMaze.MemoryMaze_src.generate import EXPERTS_VERSION
from RATE_model.data.writer import TrajectoryWriter

EPISODES, STEPS = 10, 12
MODEL = "--n_layer 1 --d_model 8 --n_head 2 --d_head 4 --nmt 2 --n_head_ca 2 --mem_len 13 --dropout 0.1".split()
DATA = "--context_length 3 --segments 2".split()
TRAINING = "--epochs 2 --epoch_batches 2 --batch_size 4 --warmup_tokens 0 --warmup_steps 1 --ckpt_epoch 1".split()
EVALUATION = "--eval_episodes 2 --episode_timeout 7".split()
HERE = "--end_seed 1 --device cpu --wandb_mode disabled --log_every 1".split()
TINY = (*MODEL, *DATA, *TRAINING, *EVALUATION, *HERE)
NO_EVALUATION = "--online_inference false --last_inference false".split()
BATCHES_PER_EPOCH = 2


def episode(seed: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations (T, 3, 64, 64) uint8, actions (T,), rewards (T,) of 0 and 1."""
    rng = np.random.default_rng(seed)
    rewards = (rng.random(steps) < 0.3).astype(np.float32)
    return (
        rng.integers(256, size=(steps, *OBSERVATION_SHAPE), dtype=np.uint8),
        rng.integers(NUM_ACTIONS, size=steps),
        rewards,
    )


def write_data(path: Path, episodes: int = EPISODES, steps: int = STEPS) -> Path:
    """A trajectory file of `episode(0)`, `episode(1)`, ..."""
    with TrajectoryWriter(
        path,
        observation_shape=OBSERVATION_SHAPE,
        observation_dtype="uint8",
        attributes={"experts": EXPERTS_VERSION},
    ) as writer:
        for seed in range(episodes):
            observations, actions, rewards = episode(seed, steps)
            infos = {"expert_action": actions[::-1]}
            writer.add_episode(observations, actions, rewards, terminal=False, infos=infos)
    return path


def train(folder: Path, data: Path, *flags: str) -> int:
    """Train with the tiny setting and these flags, in this process; the exit code."""
    places = ["--data_path", str(data), "--output_dir", str(folder / "runs")]
    return train_mem_maze.main([*TINY, *places, *flags])


def only_run(folder: Path) -> Path:
    """The directory of the one run in a folder."""
    (run,) = (path.parent for path in folder.glob("runs/*/*/config.yaml"))
    return run
