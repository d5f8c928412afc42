"""Progress in a log file: occasional lines with the time left."""

import re

from RATE_model.system import progress
from RATE_model.system.progress import progress_bar


def test_only_slow_jobs_print_lines_to_a_log_file(monkeypatch, capsys):
    with progress_bar(total=3, desc="acting", unit="step") as bar:
        for _ in range(3):
            bar.update()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with progress_bar(total=4, desc="acting", unit="step") as bar:
        bar.mininterval = 0
        bar.set_postfix_str("loss 0.5", refresh=False)
        bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines and "\r" not in "".join(lines)
    assert re.search(r"^acting: step 2 of 4, 00:0\d elapsed, 00:0\d left, loss 0.5$", lines[-1]), lines
    with progress_bar(desc="3 segments", unit="batch") as bar:
        bar.mininterval = 0
        bar.update(7)
    assert re.search(r"^3 segments: batch 7, 00:0\d elapsed$", capsys.readouterr().err.splitlines()[-1])


def test_progress_can_be_silenced(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress_bar(total=4, desc="acting", unit="step") as bar:
        bar.mininterval = 0
        bar.update(2)
    assert capsys.readouterr().err == ""
