"""The job scripts of docs/clusters.md, with stand-ins for SLURM's commands."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "clusters.md").read_text(), re.DOTALL)
# A stand-in for training: it saves on a signal, which takes half a second, and records that it began.
TRAINING = f"""#!{sys.executable} -S
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    pathlib.Path("saved").write_text(" ".join(sys.argv[1:]))
    sys.exit(128 + number)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, stop)
pathlib.Path("begun").touch()
time.sleep(120)
"""
COMMANDS = {
    "srun": '#!/bin/bash\n[[ $1 == --* ]] && shift\nexec "$@"\n',
    "scontrol": '#!/bin/bash\n[[ $1 == show ]] && echo localhost || echo "$@" > requeued\n',
    "torchrun": TRAINING,
    "python3": TRAINING,
}


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_interrupted_job_saves_and_is_requeued(tmp_path, script):
    for name, content in COMMANDS.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "1", "SLURM_ARRAY_TASK_ID": "3"}
    slurm |= {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    job = subprocess.Popen(
        ["bash", "job.sh"],
        cwd=tmp_path,
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if "trap" in script or "exec python3 TMaze" in script.partition("srun")[0]:
        job.send_signal(signal.SIGUSR1)
    else:
        os.killpg(job.pid, signal.SIGUSR1)  # SLURM signals all tasks
    job.wait(120)
    while not (tmp_path / "saved").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    said = (tmp_path / "saved").read_text()
    assert "train_tmaze.py" in said and "--resume auto" in said
    assert job.returncode == 128 + signal.SIGUSR1 or "trap" not in script
    if "trap" in script:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_there_are_scripts_for_every_kind_of_job():
    assert len(SCRIPTS) == 4 and all(script.startswith("#!/bin/bash\n#SBATCH") for script in SCRIPTS)
