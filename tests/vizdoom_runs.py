"""Tiny ViZDoom runs that several test files use."""

from pathlib import Path

from VizDoom.VizDoom_src import train_vizdoom

MODEL = "--n_layer 1 --d_model 16 --n_head 2 --d_head 8 --nmt 2 --n_head_ca 2 --mem_len 19".split()
# Two segments of three steps: 18 episodes train, in batches of seven.
DATA = "--episodes 20 --steps 6 --context_length 3 --segments 2".split()
TRAINING = "--epochs 2 --batch_size 7 --warmup_tokens 100 --learning_rate 0.003 --ckpt_epoch 1".split()
EVALUATION = "--eval_episodes 4 --episode_timeout 8".split()
HERE = "--end_seed 1 --num_workers 0 --device cpu --wandb_mode disabled --log_every 2".split()
TINY = (*MODEL, *DATA, *TRAINING, *EVALUATION, *HERE)
NO_EVALUATION = "--online_inference false --last_inference false".split()
BATCHES_PER_EPOCH = 3


def places(folder: Path) -> list[str]:
    """Flags that keep data and runs in a folder."""
    return ["--data_dir", str(folder / "data"), "--output_dir", str(folder / "runs")]


def train(folder: Path, *flags: str) -> int:
    """Train with the tiny setting and these flags, in this process; the exit code."""
    return train_vizdoom.main([*TINY, *places(folder), *flags])


def only_run(folder: Path) -> Path:
    """The directory of the one run in a folder."""
    (run,) = (path.parent for path in folder.glob("runs/*/*/config.yaml"))
    return run
