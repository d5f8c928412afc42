"""The command that collects Minigrid-Memory trajectories."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("minigrid")

from MinigridMemory.get_data.collect_traj import main
from MinigridMemory.MinigridMemory_src.dataset import DATA

SCRIPT = Path(__file__).resolve().parents[2] / "MinigridMemory" / "get_data" / "collect_traj.py"
SMALL = ["--size", "9", "--trajectories", "12", "--workers", "1"]


def test_script_runs_from_any_folder_with_processes(tmp_path):
    flags = ["--size", "9", "--trajectories", "60", "--workers", "2", "--output", "here.h5"]
    done = subprocess.run([sys.executable, SCRIPT, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "here.h5: 60 episodes of 6 to 13 steps" in done.stdout and "episodes played were kept" in done.stdout
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["here.h5"]
    assert DATA.open(tmp_path / "here.h5").num_episodes == 60


def test_workers_end_when_the_collector_is_killed():
    """Workers inherit the command's output pipe, which stays open as long as one of them lives."""
    code = (
        "import time\n"
        "from MinigridMemory.MinigridMemory_src.dataset import DataOptions\n"
        "from MinigridMemory.MinigridMemory_src.generate import _played\n"
        "episodes = _played(DataOptions(size=9).selection(), 2)\n"
        "print(next(episodes).seed, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=SCRIPT.parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout.readline() == b"1000000\n"
        process.kill()
        process.communicate(timeout=120)


def test_existing_file_is_not_replaced(tmp_path, capsys):
    flags = [*SMALL, "--data_dir", str(tmp_path / "data")]
    main(flags)
    line = capsys.readouterr().out
    path = tmp_path / "data" / "minigrid_memory_size9_random_n12.h5"
    assert line.startswith(f"{path}: 12 episodes of ") and "mean return 0.9" in line and " MB; " in line
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert "exists; add --overwrite true" in capsys.readouterr().err
    before = path.stat().st_mtime_ns
    main([*flags, "--overwrite"])
    assert path.stat().st_mtime_ns > before


def test_script_converts_a_folder(tmp_path, capsys):
    folder = tmp_path / "published"
    folder.mkdir()
    arrays = {"obs": np.zeros((4, 3, 84, 84), dtype=np.uint8), "action": np.array([0, 1, 2, 2])}
    for number in range(3):
        reward, done = np.array([0, 0, 0, 0.9]), np.array([0, 0, 0, 1])
        np.savez(folder / f"train_data_{number}.npz", **arrays, reward=reward, done=done)
    flags = ["--data_path", str(folder), "--output", str(tmp_path / "converted.h5")]
    main(flags)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "3 episodes of 4 steps, mean return 0.90" in line and "played" not in line
    before = (tmp_path / "converted.h5").stat().st_mtime_ns
    main([*flags, "--overwrite"])
    assert (tmp_path / "converted.h5").stat().st_mtime_ns > before


def test_help_explains_presets(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "published_31",
        "38 to 45 steps",
        "overrides one part of this",
        "--workers",
        "--overwrite",
        "train_data_*",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "40"], "--size 40: the size of a maze must be odd and 7 to 2001"),
        (["--preset", "clean_51"], "--preset clean_51: the value must be one of clean_31, clean_41, published_31"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--output", "x.npz"], "--output 'x.npz': the name must end in .h5"),
        (["--data_path", "nowhere"], "--data_path 'nowhere': must be a folder"),
        (["--corridor", "long"], "--corridor long: the value must be one of random, fixed"),
        (["--min_steps", "99"], "--min_steps 99"),
    ],
)
def test_bad_flags_are_named(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--data_dir", "data"])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") <= 2
    assert not list(tmp_path.iterdir())
