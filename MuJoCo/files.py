"""Where to find a task's data, and under which names.

    {robot}_{dataset}-v2.hdf5    D4RL's own file (download_d4rl_datasets.py); also with hyphens
    {robot}_{dataset}-own.hdf5   made by generate_dataset.py
    {robot}-{dataset}-v2.pkl     D4RL in the published code's format: pickled trajectories
    mujoco/{robot}/{dataset}-v0  a Minari dataset

The first existing one is used, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from MuJoCo.tasks import Task
from RATE_model.cli.local_settings import configured_folder
from RATE_model.errors import UserError

DATA_DIRECTORY = Path(__file__).resolve().parent / "MuJoCo_data"


@dataclass(frozen=True)
class D4RLFile:
    """The recorded size and digest of one of D4RL's files."""

    size: int  # bytes
    sha256: str


# From TensorFlow Datasets: checksums.tsv of its d4rl_mujoco_halfcheetah, _hopper and _walker2d.
_RECORDED = {
    "halfcheetah_medium": (237727262, "41324e8487a9556d8cfa4538827f8937f4d63dae3030825ebc9f3a726ed08ca0"),
    "halfcheetah_medium_replay": (59448533, "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683"),
    "halfcheetah_expert": (237464597, "d9fe53bb994eb1e20a99b4fa3412cd76a1bb7966a7ff55e0fcbdd6081bd2965f"),
    "halfcheetah_medium_expert": (474567252, "015db75dae5bbe8e94029b71fa0bafc2073365df0c94744e71031189f3f79c06"),
    "hopper_medium": (152756557, "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0"),
    "hopper_medium_replay": (75854457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"),
    "hopper_expert": (152427435, "01aa219a5f8eea5e639eccdc636ec2bf40e317159a95cf4bf6e985f16909941b"),
    "hopper_medium_expert": (304537315, "9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26"),
    "walker2d_medium": (232254996, "cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda"),
    "walker2d_medium_replay": (86323963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"),
    "walker2d_expert": (230567195, "2985dc3d436a8baa10e8f43f946fe1d7c6337a4e4fbc65def70618093b18c59a"),
    "walker2d_medium_expert": (462197079, "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"),
}
D4RL_FILES = {f"{name}-v2.hdf5": D4RLFile(*recorded) for name, recorded in _RECORDED.items()}


def data_directory(data_path: Path | None = None) -> Path:
    """The folder given, else `mujoco: data_dir_prefix:` of wandb_config.yaml, else MuJoCo/MuJoCo_data."""
    if data_path is not None:
        return data_path
    return configured_folder("mujoco", "data_dir_prefix") or DATA_DIRECTORY


def d4rl_name(task: Task) -> str:
    """The name of D4RL's file, e.g. hopper_medium_replay-v2.hdf5."""
    return f"{task.robot.name}_{task.dataset.replace('-', '_')}-v2.hdf5"


def generated_name(task: Task) -> str:
    """The name of our own file, which differs from D4RL's."""
    return f"{task.robot.name}_{task.dataset.replace('-', '_')}-own.hdf5"


def candidates(task: Task) -> list[str]:
    """All names that `find_data` looks for in a folder, in order of preference."""
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
        data_path: a folder to search, or the data itself: a file of any name or the folder of a Minari dataset.

    Raises:
        UserError: nothing was found; it lists the names tried and the commands that provide the data.
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
        missing = f"--data_path {data_path}: does not exist"
    raise UserError(f"{missing}. {how_to_get(task)}")


def how_to_get(task: Task) -> str:
    """The two commands that provide the data."""
    return (
        f"Get D4RL's with `python download_d4rl_datasets.py --datasets {task.name}`, or make your own with "
        f"`python3 MuJoCo/generate_dataset.py --env {task.robot.name} --dataset {task.dataset}`."
    )
