"""Tiny Minigrid-Memory runs that several test files use."""

from pathlib import Path

from MinigridMemory.MinigridMemory_src import train_minigridmemory

MODEL = "--n_layer 1 --d_model 16 --n_head 2 --d_head 8 --nmt 2 --n_head_ca 2 --mem_len 19".split()
# Episodes of 7 to 14 steps: two or three segments of five.
DATA = "--size 9 --trajectories 40 --context_length 5 --segments 3".split()
TRAINING = "--epochs 2 --batch_size 12 --warmup_tokens 100 --learning_rate 0.003 --ckpt_epoch 1".split()
EVALUATION = "--eval_episodes 3 --eval_sizes 7 9 --final_sizes 7 11".split()
HERE = "--end_seed 1 --device cpu --wandb_mode disabled --log_every 2".split()
TINY = (*MODEL, *DATA, *TRAINING, *EVALUATION, *HERE)
NO_EVALUATION = "--online_inference false --last_inference false".split()
BATCHES_PER_EPOCH = 3


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
