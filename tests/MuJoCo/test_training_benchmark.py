"""The benchmark of training and acting, on tiny sizes."""

import json

import numpy as np
import pytest

pytest.importorskip("mujoco")

from benchmarks import mujoco_training
from RATE_model.acting.rollout import Episodes


def test_it_runs(tmp_path, capsys, monkeypatch):
    acted = []

    def play(model, cases, make, *, seeds, acting) -> dict[None, Episodes]:
        assert not model.training and cases == [None]
        acted.append((len(seeds), acting.window))
        return {None: Episodes(*(np.full(len(seeds), value) for value in (0.0, 1000, 0.0)))}

    monkeypatch.setattr(mujoco_training, "play_cases", play)  # HalfCheetah never falls: 1000 steps would take a while
    flags = "--batch_size 4 --part 2 --episodes 2 --matrix_size 64".split()
    mujoco_training.main([*flags, "--output", str(tmp_path / "figures.json")])
    assert set(acted) == {(2, False), (2, True)}
    result = json.loads((tmp_path / "figures.json").read_text())
    published, ours = (
        result["cases"][f"batch, gradients through {window}"] for window in ("one segment", "all segments")
    )
    assert published["flops"] > ours["flops"] > 1e9 and 0 < ours["share"]
    assert "| batch, gradients through all segments " in capsys.readouterr().out


def test_bad_flags(capsys):
    with pytest.raises(SystemExit, match="2"):
        mujoco_training.main(["--part", "0"])
    assert "--part 0: must be at least 1" in capsys.readouterr().err
