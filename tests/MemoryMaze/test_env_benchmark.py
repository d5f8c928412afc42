"""The benchmark of the environment on tiny sizes."""

import json

import pytest

from benchmarks import memory_maze_env


@pytest.mark.slow  # mazes take seconds to start
@pytest.mark.usefixtures("tasks")
def test_it_runs(tmp_path, capsys):
    flags = "--steps 3 --mazes 1 --rounds 1".split()
    memory_maze_env.main([*flags, "--output", str(tmp_path / "figures.json")])
    result = json.loads((tmp_path / "figures.json").read_text())
    assert set(result["cases"]) == {"ours", "package", "start", "package_start", "explorer", "planner", "mazes"}
    assert result["difference"] == 0
    assert "| our environment, on one core " in capsys.readouterr().out


def test_bad_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        memory_maze_env.main(["--size", "10"])
    assert stop.value.code == 2 and "--size 10: Memory Maze has the sizes" in capsys.readouterr().err
