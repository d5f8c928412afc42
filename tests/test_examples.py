"""The example programs run unchanged, with fewer epochs."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.RATE_model.own.toys import episodes

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example like a script, in this process; returns its output."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_own_data(tmp_path, run):
    said = run("own_data.py", tmp_path / "run", 1)
    assert "300 episodes of 20 to 20 steps" in said and "with memory:    return" in said and "without memory:" in said


def test_own_environment_and_own_loop(tmp_path, run):
    said = run("own_environment.py", tmp_path, 1)
    assert "RATE: return" in said and (tmp_path / "returns.png").stat().st_size > 1000
    assert run("own_loop.py", tmp_path / "RATE").count("return") == 3


def test_compare_memories(tmp_path, run):
    said = run("compare_memories.py", tmp_path, 2, 2)
    assert said.count("validation accuracy") == 6 and (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_resume_on_a_cluster(tmp_path):
    from RATE_model import Dataset

    Dataset.from_episodes(episodes()).to_hdf5(tmp_path / "data.h5")
    command = ["sh", str(EXAMPLES / "resume_on_a_cluster.sh"), "data.h5", "tests.RATE_model.own.toys:Recall"]
    command += "--output_dir runs --epochs 1 --n_layer 1 --d_model 16 --context_length 4 --segments 1".split()
    command += "--eval_episodes 2".split()
    where = {**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"}
    for _ in range(2):  # the second time, the run is finished and stays unchanged
        done = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs" / "ckpt").iterdir()][0].endswith("_RUN_1")


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize(("training", "queued"), [("exit 137", False), ("kill -TERM $PPID; sleep 1; exit 143", True)])
def test_only_a_stopped_job_is_queued_again(tmp_path, training, queued):
    for name, text in {"python3": training, "scontrol": f"touch {tmp_path}/queued"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    where = {**ENVIRONMENT, "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}", "SLURM_JOB_ID": "1"}
    done = subprocess.run(["sh", str(EXAMPLES / "resume_on_a_cluster.sh"), "data.h5", "Any-v1"], env=where)
    assert done.returncode > 128 and (tmp_path / "queued").exists() == queued
