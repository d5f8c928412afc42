"""Tiny T-Maze runs that several test files use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from RATE_model.agent import Agent
from RATE_model.environments.contract import Evaluation
from RATE_model.memories.contract import MemoryTransform
from TMaze_new.TMaze_new_src import train_tmaze
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT, Maze

SIZES = "--n_layer 1 --d_model 16 --n_head 2 --d_head 8".split()
DATA = "--trajectories 40 --context_length 6 --max_n_final 2".split()
TRAINING = "--epochs 3 --batch_size 16 --dropout 0.1 --warmup_steps 2 --learning_rate 0.003 --ckpt_epoch 2".split()
EVALUATION = "--eval_episodes 4 --eval_lengths 9 13".split()
HERE = "--end_seed 1 --device cpu --wandb_mode disabled --log_every 3".split()
TINY = (*SIZES, *DATA, *TRAINING, *EVALUATION, *HERE)
# Batches: 4 per epoch on episodes of one and two segments; in a first stage of one segment, 2.
BATCHES_PER_EPOCH = 4

MODES = {
    "RATE": ("--skip_dec_ffn",),
    "TrXL": "--model_mode TrXL --mem_len 30".split(),
    "DT": "--model_mode DT --nmt 0 --n_head_ca 0".split(),
}


def places(folder: Path) -> list[str]:
    """Flags that keep data and runs in a folder."""
    return ["--data_dir", str(folder / "data"), "--output_dir", str(folder / "runs")]


def train(folder: Path, *flags: str) -> int:
    """Train with the tiny setting and these flags, in this process; the exit code."""
    return train_tmaze.main([*TINY, *places(folder), *flags])


def only_run(folder: Path) -> Path:
    """The directory of the one run in a folder."""
    (run,) = (path.parent for path in folder.glob("runs/*/*/config.yaml"))
    return run


def success_by_length(
    agent: Agent,
    lengths: Sequence[int],
    *,
    episodes: int = 100,
    target_return: float = 1.0,
    precision: str = "32",
    transform_memory: MemoryTransform | None = None,
    **options: Any,
) -> dict[int, dict[str, float]]:
    """What the table of an inference says of each length; `options` are of `Maze`."""
    asked = {"precision": precision, "transform_memory": transform_memory, "episodes": episodes}
    maze = Maze(lengths=tuple(lengths), **options)
    evaluation = Evaluation(ENVIRONMENT, agent, maze, (target_return,), cases=lengths, **asked)
    (played,) = evaluation.play().values()
    return {length: ENVIRONMENT.figures(length, found, evaluation) for length, found in played.items()}
