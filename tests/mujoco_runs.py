"""Tiny MuJoCo runs that several test files use."""

from pathlib import Path

import numpy as np

from MuJoCo import train_rate_mujoco_ca
from MuJoCo.tasks import Robot, make_environment
from RATE_model.data.writer import TrajectoryWriter

MODEL = "--n_layer 1 --d_model 16 --n_head 2 --d_head 8 --num_mem_tokens 2 --n_head_ca 2 --mem_len 19".split()
SEGMENTS = "--context_length 5 --segments 2".split()
TRAINING = "--epochs 2 --epoch_batches 3 --batch_size 16 --warmup_steps 2 --learning_rate 0.003".split()
HERE = "--eval_episodes 3 --end_seed 1 --device cpu --wandb_mode disabled --log_every 2".split()
TINY = (*MODEL, *SEGMENTS, *TRAINING, *HERE)
NO_EVALUATION = "--online_inference false --last_inference false".split()


def random_play(path: Path, robot: Robot, *, episodes: int = 12, most: int = 40) -> Path:
    """A file of episodes of a robot that acts at random, of at most this many steps."""
    rng = np.random.default_rng(0)
    environment = make_environment(robot)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TrajectoryWriter(
        path,
        observation_shape=(robot.observation_size,),
        observation_dtype="float32",
        action_shape=(robot.action_size,),
        action_dtype="float32",
        attributes={},
    ) as writer:
        for seed in range(episodes):
            observation, _ = environment.reset(seed=seed)
            steps, terminal = [], False
            while len(steps) < most and not terminal:
                action = rng.uniform(-1, 1, robot.action_size).astype(np.float32)
                following, reward, terminal, _, _ = environment.step(action)
                steps.append((observation, action, reward))
                observation = following
            writer.add_episode(*map(np.stack, zip(*steps, strict=True)), terminal=terminal)
    environment.close()
    return path


def places(folder: Path) -> list[str]:
    """Flags that keep data and runs in a folder."""
    return ["--data_path", str(folder / "data"), "--output_dir", str(folder / "runs")]


def train(folder: Path, *flags: str) -> int:
    """Train with the tiny setting and these flags, in this process; the exit code."""
    return train_rate_mujoco_ca.main([*TINY, *places(folder), *flags])


def only_run(folder: Path) -> Path:
    """The directory of the one run in a folder."""
    (run,) = (path.parent for path in folder.glob("runs/*/*/config.yaml"))
    return run
