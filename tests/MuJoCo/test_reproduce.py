"""The table of results, from existing runs."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from MuJoCo import reproduce
from MuJoCo.tasks import task_of
from RATE_model.data.ppo import Policy

SEEDS = (1, 2)


def fake_run(folder: Path, result: dict[str, float]) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "final.json").write_text(json.dumps(result))
    start = {"seed": int(folder.name), "started": "2026-01-02T00:00:00+00:00", "git": {"commit": "c" * 40}}
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    return folder


def test_table_has_runs_and_their_data(tmp_path, monkeypatch, capsys):
    def run_all(study, options) -> dict[str, list[Path]]:
        commands = study.command("RATE", SEEDS)
        robot = task_of(int(commands[commands.index("--env_id") + 1])).robot
        data = commands[commands.index("--data_path") + 1]
        assert data == f"MuJoCo/MuJoCo_data/{robot.name}_medium-own.hdf5", "no path of this machine"
        runs = {}
        for number, label in enumerate(study.models):
            value = {"target_return": 3600.0, "train_seconds": 9.0, "optimizer_steps": 600, "validation_loss": 0.1}
            for prefix in ("",) if label in ("DT", "LSTM", "MLP") else ("", "20_"):
                for name in ("return", "length", "episode"):
                    value |= {f"{prefix}{name}_MEAN": 100.0 * (number + 1) + len(prefix), f"{prefix}{name}_STD": 1.0}
            runs[label] = [
                fake_run(tmp_path / study.folder(label) / str(s), value | {"return_MEAN": value["return_MEAN"] + s})
                for s in SEEDS
            ]
        return runs

    monkeypatch.setattr(reproduce.Study, "run_all", run_all)
    entry = {"return": [50.0], "normalised_score": [5.0], "episodes": 7, "return_std": 3.0}
    monkeypatch.setattr(reproduce, "of_data", lambda task: {reproduce.DATA_POLICY: entry, reproduce.NOISELESS: entry})
    reproduce.main(["--seeds", "1", "2", "--results_dir", str(tmp_path / "results")])
    page = (tmp_path / "results" / "mujoco.md").read_text()
    assert "| policy of the data, in the data | 50 | 1.00 | 5.0 |  |  |" in page
    assert "| RATE | 102 ± 0 | 2.03 | 100.0 ± 0.0 | 103 ± 0 | 103.0 ± 0.0 |" in page  # two seeds: 101 and 102
    assert "| DT | 502 ± 0 | 10.03 | 500.0 ± 0.0 |  |  |" in page
    assert "at commit cccccccccccc on 2026-01-02" in page and "asked for a return of 3600" in page
    assert "| halfcheetah-medium, BC (RATE without returns) | 2 | 600 | 9 | 602 | 600 | 600.0 |" in page
    assert page.count("    python3 MuJoCo/train_rate_mujoco_ca.py") == 18
    document = json.loads((tmp_path / "results" / "mujoco.json").read_text())
    assert document["hopper-medium, RATE"]["return"] == [101.0, 102.0]
    assert document["hopper-medium, RATE"]["seeds"] == [1, 2]
    assert "| BC (RATE without returns) |" in capsys.readouterr().out


def test_runs_of_different_tasks_are_separate():
    folders = [
        reproduce.study(env_id).folder(label)
        for env_id in reproduce.ENV_IDS
        for label in reproduce.study(env_id).models
    ]
    assert len(set(folders)) == len(folders) == 18


def test_a_policy_without_its_noise():
    layers = ((np.eye(2), np.zeros(2)), (np.eye(2), np.zeros(2)))
    noisy = Policy(1, 0.0, np.zeros(2), np.ones(2), layers, np.ones(2))
    observations = np.array([[0.3, -0.2]])
    quiet = reproduce.noiseless(noisy)
    expected = np.tanh(observations)
    for _ in range(2):
        np.testing.assert_allclose(quiet.act(observations, np.zeros(1)), expected, rtol=1e-6)
    assert not np.allclose(noisy.act(observations, np.random.default_rng(0)), expected)
