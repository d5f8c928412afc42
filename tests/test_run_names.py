"""Run directories of every train script: different flags give different names."""

import importlib
from pathlib import Path

import pytest

from RATE_model.cli.options import to_flat_dict, to_yaml
from RATE_model.errors import UserError
from tests.scripts import train_script

SCRIPTS = {
    "TMaze_new.TMaze_new_src.train_tmaze": "arch_mode_TrXL_RATE_min_1_max_3",
    "VizDoom.VizDoom_src.train_vizdoom": "arch_mode_TrXL_RATE",
    "MinigridMemory.MinigridMemory_src.train_minigridmemory": "arch_mode_TrXL_RATE",
    "MemoryMaze.MemoryMaze_src.train_mem_maze": "arch_mode_TrXL_RATE",
    "Atari.train_rate_atari": "Breakout_arch_mode_TrXL_RATE",
    "MuJoCo.train_rate_mujoco_ca": "halfcheetah-medium_arch_mode_TrXL_RATE",
}
# A run may be resumed with other values of these.
SAME_RUN = (
    "--epochs 1000",
    "--device cpu",
    "--eval_episodes 4",
    "--wandb_mode offline",
    "--num_workers 1",
    "--end_seed 99",
)
OTHER_RUN = (
    *("--learning_rate 0.5", "--learning_rate 0.25", "--d_model 32", "--d_head 16", "--dropout 0.01", "--batch_size 7"),
    *("--precision bf16", "--calibrate", "--log_every 3", "--bptt_segments 0", "--learning_rate 0.5 --batch_size 7"),
)


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest):
    """The module of a train script."""
    return train_script(importlib.import_module(request.param))


def place(script, folder: Path, flags: str = "", seed: int = 1) -> Path:
    """The directory of a run."""
    return script.run_directory(script.read_config(["--output_dir", str(folder), *flags.split()]), seed)


def test_run_name_depends_on_the_flags(script, tmp_path: Path) -> None:
    plain = place(script, tmp_path)
    assert plain == tmp_path / "ckpt" / f"{SCRIPTS[script.__name__]}_RUN_1"
    assert {place(script, tmp_path, flags) for flags in SAME_RUN} == {plain}
    names = {flags: place(script, tmp_path, flags).name for flags in OTHER_RUN}
    assert names == {flags: place(script, tmp_path, flags).name for flags in OTHER_RUN}
    assert len({plain.name, *names.values()}) == 1 + len(OTHER_RUN)
    assert all(name.startswith(SCRIPTS[script.__name__]) and name.endswith("_RUN_1") for name in names.values())
    texts = ("a-b", "a+b", "a_b")
    assert len({place(script, tmp_path, f"--text {text}").name for text in texts}) == len(texts)
    assert place(script, tmp_path, "--text a/b") != place(script, tmp_path, "--text a-b")
    assert place(script, tmp_path, "--text " + 300 * "x") != place(script, tmp_path, "--text " + 301 * "x")


@pytest.mark.parametrize("mark", ["", "_0123abcd"])
def test_runs_of_earlier_versions_are_found_by_their_flags(script, tmp_path: Path, mark: str) -> None:
    config = script.read_config(["--output_dir", str(tmp_path), "--dropout", "0.01"])
    old = tmp_path / "ckpt" / f"{SCRIPTS[script.__name__]}{mark}_RUN_1"
    old.mkdir(parents=True)
    recorded = config.run.recorded(to_flat_dict(config))
    recorded.pop("log_every")  # a flag that did not exist yet
    recorded["desired_reward"] = recorded.pop("target_return")  # its old name
    (old / "config.yaml").write_text(to_yaml(recorded))
    assert script.run_directory(config, 1) == old
    other = place(script, tmp_path, "--dropout 0.02")
    assert other != old
    (old / "config.yaml").write_text("damaged: [")
    assert script.run_directory(config, 1) != old


def test_a_name_too_long_for_a_file_system_is_refused(tmp_path: Path) -> None:
    script = train_script(importlib.import_module(next(iter(SCRIPTS))))
    config = script.read_config(["--output_dir", str(tmp_path), "--ckpt_folder", 300 * "x", "--dropout", "0.01"])
    with pytest.raises(UserError, match="longer than 255 bytes"):
        script.check(config, 1)
