"""The benchmark of MuJoCo's batches on tiny sizes."""

import json

import h5py
import pytest

from benchmarks import mujoco_batches
from MuJoCo.dataset import DataOptions, load_data

TINY = "--batch_size 50 --window 30 --steps 20000 --rounds 2 --threads 0".split()


def test_it_runs(tmp_path, capsys):
    mujoco_batches.main([*TINY, "--output", str(tmp_path / "figures.json")])
    result = json.loads((tmp_path / "figures.json").read_text())
    assert set(result["cases"]) == {"padded right", "padded left", "copy of as many bytes", "loop over windows"}
    assert all(len(case["seconds"]) == 2 for case in result["cases"].values())
    assert result["batch_bytes"] == 50 * 30 * (17 * 4 + 6 * 4 + 4 + 1)
    assert "| padded right " in capsys.readouterr().out


def test_differing_results_are_not_timed(tmp_path):
    mujoco_batches.make_data(mujoco_batches.Options(steps=20_000), tmp_path)
    data = load_data(mujoco_batches.TASK, DataOptions(data_path=tmp_path), size=30)
    with h5py.File(data.file.path) as file:
        arrays = [file[name][:] for name in ("observations", "actions", "rewards")]
    chosen = range(0, 19_000, 400)
    assert mujoco_batches.check(data, arrays, chosen) < 1e-3
    arrays[2] += 0.01
    with pytest.raises(RuntimeError, match="returns-to-go differ"):
        mujoco_batches.check(data, arrays, chosen)


def test_bad_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        mujoco_batches.main(["--steps", "100"])
    assert stop.value.code == 2 and "--steps 100: must be at least 20000" in capsys.readouterr().err
