"""The benchmark of ViZDoom-Two-Colors on tiny sizes."""

import json

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from benchmarks import vizdoom_data
from RATE_model.data.npz import find_npz
from VizDoom.VizDoom_src.dataset import DATA
from VizDoom.VizDoom_src.generate import Recipe, generate
from VizDoom.VizDoom_src.scenario import Scenario

TINY = "--steps 6 --game_steps 10 --games 2 --rounds 1".split()


def test_it_runs(tmp_path, capsys):
    vizdoom_data.main([*TINY, "--output", str(tmp_path / "figures.json")])
    result = json.loads((tmp_path / "figures.json").read_text())
    assert set(result["cases"]) == {"game", "games", "making", "windows", "windows, npz"}
    assert all(len(case["seconds"]) == 1 for case in result["cases"].values())
    assert result["bytes_per_episode"]["hdf5"] > 1000
    shown = capsys.readouterr().out
    assert "| one game, on one core" in shown and "| 2 games on" in shown and "core minutes" in shown


def test_differing_results_are_not_timed(tmp_path):
    file = DATA.open(generate(Recipe(Scenario(), 6, "limited", 0.0), 2, tmp_path / "data.h5", workers=1))
    vizdoom_data.write_npz(file, tmp_path)
    paths = find_npz(tmp_path)
    assert len(paths) == 2
    vizdoom_data.check(file, paths)
    arrays = dict(np.load(paths[1]))
    arrays["obs"][3, 0, 0, 0] += 1
    np.savez_compressed(paths[1], **arrays)
    with pytest.raises(RuntimeError, match="windows differ"):
        vizdoom_data.check(file, paths)


def test_bad_flags(capsys):
    with pytest.raises(SystemExit, match="2"):
        vizdoom_data.main(["--games", "0"])
    assert "--games 0: must be at least 1" in capsys.readouterr().err
