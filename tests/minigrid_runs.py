"""Tiny Minigrid-Memory runs that several test files use."""

from pathlib import Path
from typing import Any

from MinigridMemory.MinigridMemory_src import train_minigridmemory
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT, Mazes
from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.environments.contract import Evaluation
from RATE_model.memories.contract import MemoryTransform

MODEL = "--n_layer 1 --d_model 16 --n_head 2 --d_head 8 --nmt 2 --n_head_ca 2 --mem_len 19".split()
# Episodes of 7 to 14 steps: two or three segments of five.
DATA = "--size 9 --trajectories 40 --context_length 5 --segments 3".split()
TRAINING = "--epochs 2 --batch_size 12 --warmup_tokens 100 --learning_rate 0.003 --ckpt_epoch 1".split()
EVALUATION = "--eval_episodes 3 --eval_sizes 7 9 --final_sizes 7 11".split()
HERE = "--end_seed 1 --device cpu --wandb_mode disabled --log_every 2".split()
TINY = (*MODEL, *DATA, *TRAINING, *EVALUATION, *HERE)
NO_EVALUATION = "--online_inference false --last_inference false".split()
BATCHES_PER_EPOCH = 3


def evaluation(
    model: Agent, sizes: list[int], *, episodes: int = 100, seed: int = 0, greedy: bool = True, **options: Any
) -> Evaluation:
    """What plays in own mazes of these sizes."""
    mazes = Mazes(use_argmax=greedy, **{"layouts": "own"} | options)
    return Evaluation(ENVIRONMENT, model, mazes, (0.96,), cases=sizes, episodes=episodes, seed=seed)


def play(
    model: Agent,
    sizes: list[int],
    *,
    transform_memory: MemoryTransform | None = None,
    twins: bool = False,
    **asked: Any,
) -> dict[int, Episodes]:
    """Episodes by size."""
    (played,) = evaluation(model, sizes, **asked).play_with(transform_memory, twins=twins).values()
    return played


def places(folder: Path) -> list[str]:
    """Flags that keep data and runs in a folder."""
    return ["--data_dir", str(folder / "data"), "--output_dir", str(folder / "runs")]


def train(folder: Path, *flags: str) -> int:
    """Train with the tiny setting and these flags, in this process; the exit code."""
    return train_minigridmemory.main([*TINY, *places(folder), *flags])


def only_run(folder: Path) -> Path:
    """The directory of the one run in a folder."""
    (run,) = (path.parent for path in folder.glob("runs/*/*/config.yaml"))
    return run
