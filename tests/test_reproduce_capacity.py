"""The page about bits recalled by memories."""

import json

import pytest

from tools import reproduce_capacity as capacity
from tools.reproduce_capacity import MODELS, Options, label_of, study, write


def entry(recalled: list[float], bits: list[float]) -> dict:
    return {
        "recalled": recalled, "bits": bits, "parameters": 110, "state_numbers": 5, "train_seconds": [10.0] * 3,
        "optimizer_steps": [400] * 3, "seeds": [1, 2, 3], "commit": ["0123456789abcdef"], "date": "2026-01-01",
    }  # fmt: skip


def test_bits_by_model_and_number_of_hints(tmp_path):
    first, second = list(MODELS)[:2]
    document = {
        label_of(first, 2): entry([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]),
        label_of(first, 8): entry([0.5, 0.5, 0.5], [0.0, 0.0, 0.0]),
        label_of(second, 8): entry([0.75, 0.75, 0.75], [1.0, 2.0, 3.0]),
    }
    write(document, Options(results_dir=tmp_path))
    page = (tmp_path / "multi_cue.md").read_text()
    assert "| model | parameters | state, numbers | n = 2 | n = 8 |" in page
    assert "| RATE, 1 token | 110 | 5 | 2.00 ± 0.00 | 0.00 ± 0.00 |" in page
    assert "| RATE, 2 tokens | 110 | 5 |  | 2.00 ± 0.58 |" in page and "--bits 8" in page
    assert json.loads((tmp_path / "multi_cue.json").read_text()) == document
    assert (tmp_path / "multi_cue.png").stat().st_size > 0


def test_failed_run_is_reported_and_others_continue(tmp_path, capsys, monkeypatch):
    """Training is replaced in this test; each number of hints has its own folder."""
    tried = []

    def run_all(self, options, models):
        tried.append(self.folder(models[0]))
        if "LSTM, width 16" in models:
            raise capacity.UserError("LSTM, width 16, seed 1: exit code 1")
        return {models[0]: [tmp_path]}

    monkeypatch.setattr(capacity.Study, "run_all", run_all)
    monkeypatch.setattr(capacity, "collect", lambda runs, model, bits: entry([0.75, 0.75, 0.75], [1.0, 2.0, 3.0]))
    flags = ["--results_dir", str(tmp_path), "--bits", "2", "8", "--models", "LSTM, width 16", "RATE, 5 tokens"]
    assert capacity.main(flags) == 1
    assert capsys.readouterr().err.count("left out: LSTM, width 16, seed 1: exit code 1") == 2
    assert len(set(tried)) == 4 and len(json.loads((tmp_path / "multi_cue.json").read_text())) == 2


def test_seeds_on_the_page_are_not_trained_again(tmp_path, monkeypatch):
    """Training is replaced in this test."""
    asked = []

    def run_all(self, options, models):
        asked.append(list(options.seeds))
        return {models[0]: list(options.seeds)}

    def collect(runs, model, bits):
        ones = [1.0] * len(runs)
        costs = {"seeds": runs, "train_seconds": ones, "optimizer_steps": ones, "command": study(bits).key(model)}
        return entry(ones, ones) | costs

    monkeypatch.setattr(capacity.Study, "run_all", run_all)
    monkeypatch.setattr(capacity, "collect", collect)
    flags = ["--results_dir", str(tmp_path), "--bits", "2", "--models", "LSTM, width 16", "--seeds"]
    for seeds in (["2"], ["1", "2", "3"], ["1", "2"], ["1", "2", "--again", "true"]):
        (tmp_path / "multi_cue.md").unlink(missing_ok=True)
        assert capacity.main([*flags, *seeds]) == 0
        assert (tmp_path / "multi_cue.md").exists()  # also if nothing was left to train
    assert asked == [[2], [1, 3], [1, 2]]
    assert json.loads((tmp_path / "multi_cue.json").read_text())["LSTM, width 16: 2 bits"]["seeds"] == [1, 2, 3]


def test_pages_of_several_machines_are_joined(tmp_path, capsys):
    """For a seed in both, the page's own figures count. Every model's commands train the seeds that it has."""
    here, there, label = tmp_path / "here", tmp_path / "there", label_of("RATE, 5 tokens", 8)
    command = {"command": study(8).key("RATE, 5 tokens")}
    own = entry([1.0, 1.0], [8.0, 8.0]) | {"seeds": [2, 5], "train_seconds": [1.0] * 2, "optimizer_steps": [1] * 2}
    write({label: own | command}, Options(results_dir=here))
    write({label: entry([0.5] * 3, [0.0] * 3) | command}, Options(results_dir=there))
    other = there / "multi_cue.json"
    assert capacity.main(["--results_dir", str(here), "--join", str(other)]) == 0
    assert json.loads((here / "multi_cue.json").read_text())[label]["bits"] == [0.0, 8.0, 0.0, 8.0]
    page = (here / "multi_cue.md").read_text()
    assert "--start_seed 1 --end_seed 3" in page and "--start_seed 5 --end_seed 5" in page
    assert page.count("train_tmaze.py") == 2
    other.write_text(other.read_text().replace("0.5", "1.5"))
    with pytest.raises(SystemExit, match="^2$"):
        capacity.main(["--results_dir", str(here), "--join", str(other)])
    assert "'recalled' is [1.5, 1.5, 1.5]; rates are from 0 to 1" in capsys.readouterr().err


def test_unknown_models_are_refused(capsys):
    for flags, words in ((["--models", "LSTM"], "--models LSTM: must be one of"), (["--bits", "17"], "--bits 17")):
        with pytest.raises(SystemExit, match="^2$"):
            capacity.main(flags)
        assert words in capsys.readouterr().err
    assert len(study(8).models) == 9
