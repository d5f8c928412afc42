"""The benchmark of training and acting on tiny sizes."""

import json

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from benchmarks import vizdoom_training

TINY = "--batch_size 1 --episodes 4 --steps 2 --rounds 1 --matrix_size 64".split()


def test_it_runs(tmp_path, capsys, monkeypatch):
    small = "--n_layer 1 --n_head 1 --d_model 8 --n_head_ca 1 --context_length 2 --segments 2 --steps 4".split()
    monkeypatch.setattr(vizdoom_training, "PUBLISHED", small)
    vizdoom_training.main([*TINY, "--output", str(tmp_path / "figures.json")])
    result = json.loads((tmp_path / "figures.json").read_text())
    parts = ("batch", "its transformer", "its convolutions")
    cases = result["cases"]
    assert set(cases) == {*parts, "episodes at once", "one episode, plain"}
    assert cases["batch"]["flops"] == cases[parts[1]]["flops"] + cases[parts[2]]["flops"] > 0
    assert np.isfinite([case["median_s"] for case in cases.values()]).all()
    plain, together = (cases[name]["median_s"] for name in ("one episode, plain", "episodes at once"))
    assert result["times_faster"] == pytest.approx(4 * plain / together)
    assert result["logit_difference"] < vizdoom_training.ALLOWED_LOGITS
    shown = capsys.readouterr().out
    assert "| 1 trajectories" in shown and "4 parallel episodes are" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--rounds 0", "must be at least 1"), ("--episodes 5", "in steps of 2"), ("--steps 191", "190")],
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        vizdoom_training.main(flags.split())
    error = capsys.readouterr().err
    assert f"{flags}: " in error and message in error
