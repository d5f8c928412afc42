"""Where the data of a task lies, and under which names it is looked for.

    {robot}_{dataset}-v2.hdf5    D4RL's own file (download_d4rl_datasets.py); with hyphens it is found too
    {robot}_{dataset}-own.hdf5   made by generate_dataset.py
    {robot}-{dataset}-v2.pkl     D4RL as the published code kept it: pickled trajectories
    mujoco/{robot}/{dataset}-v0  a Minari dataset

The first that is there counts, in this order.
"""

from __future__ import annotations

from pathlib import Path

from MuJoCo.tasks import Task
from RATE_model.errors import UserError
from RATE_model.training.tracking import read_wandb_config

DATA_DIRECTORY = Path(__file__).resolve().parent / "MuJoCo_data"


def data_directory(data_path: Path | None = None) -> Path:
    """The folder given, else `mujoco: data_dir_prefix:` of wandb_config.yaml, else MuJoCo/MuJoCo_data."""
    if data_path is not None:
        return data_path
    prefix = read_wandb_config().get("mujoco", {}).get("data_dir_prefix")
    return Path(prefix).expanduser() if prefix else DATA_DIRECTORY


def d4rl_name(task: Task) -> str:
    """The name of D4RL's file, such as hopper_medium_replay-v2.hdf5."""
    return f"{task.robot.name}_{task.dataset.replace('-', '_')}-v2.hdf5"


def generated_name(task: Task) -> str:
    """The name of our own file, never mistaken for D4RL's."""
    return f"{task.robot.name}_{task.dataset.replace('-', '_')}-own.hdf5"


def candidates(task: Task) -> list[str]:
    """All names that `find_data` looks for in a folder, the first to be preferred."""
    return [
        d4rl_name(task),
        f"{task.name}-v2.hdf5",
        generated_name(task),
        f"{task.name}-v2.pkl",
        f"mujoco/{task.robot.name}/{task.dataset}-v0",
    ]


def find_data(task: Task, data_path: Path | None = None) -> Path:
    """The task's data: a file, or the folder of a Minari dataset.

    Args:
        data_path: a folder to look in; or the data itself, a file of any name or the folder of a Minari dataset.

    Raises:
        UserError: nothing is there; it names what was looked for and the commands that provide it.
    """
    place = data_directory(data_path)
    if place.is_file() or (place / "data" / "main_data.hdf5").is_file():
        return place
    names = candidates(task)
    for name in names:
        if (place / name).is_file() or (place / name).is_dir():
            return place / name
    missing = f"there is no data of {task.name} in '{place}' (looked for {', '.join(names)})"
    if data_path is not None and not place.exists():
        missing = f"--data_path {data_path}: there is no such file or folder"
    raise UserError(f"{missing}. {how_to_get(task)}")


def how_to_get(task: Task) -> str:
    """The two commands that provide the data."""
    return (
        f"Get D4RL's with `python download_d4rl_datasets.py --datasets {task.name}`, or make your own with "
        f"`python3 MuJoCo/generate_dataset.py --env {task.robot.name} --dataset {task.dataset}`."
    )
