"""Pages of success by case, from existing runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from RATE_model.pages import run_results, success_page
from RATE_model.pages.study import Study
from TMaze_new.TMaze_new_src import reproduce
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT

SEEDS = (1, 2)


@pytest.fixture
def played(tmp_path, monkeypatch) -> list[str]:
    """Existing runs of every model; the devices on which controls are played."""

    def run_of(study: Study, label: str, seed: int) -> Path:
        run = tmp_path / study.folder(label) / str(seed)
        (run / "eval").mkdir(parents=True, exist_ok=True)
        result = {f"Success_rate_T_{case}": 1 / seed for case in reproduce.LENGTHS} | {"all_stages_solved": seed == 1}
        result |= {"train_seconds": 9.0, "optimizer_steps": 100}
        (run / "eval" / "final.json").write_text(json.dumps(result))
        start = {"seed": seed, "started": "2026-01-02T00:00:00+00:00", "git": {"commit": "c" * 40}}
        (run / "environment.json").write_text(json.dumps({"starts": [start]}))
        return run

    def run_all(study: Study, options, models) -> dict[str, list[Path]]:
        return {label: [run_of(study, label, seed) for seed in options.seeds] for label in study.chosen(models)}

    devices: list[str] = []

    def play_again(environment, run, *, device, cases, **changes):
        devices.append(device)
        return None, {case: 0.5 for case in cases}

    monkeypatch.setattr(Study, "run_all", run_all)
    monkeypatch.setattr(run_results, "load_agent", lambda run: SimpleNamespace(parameters=lambda: [torch.zeros(7)]))
    monkeypatch.setattr(success_page, "play_again", play_again)
    monkeypatch.setattr(type(ENVIRONMENT), "files", lambda self, config: [])
    monkeypatch.setattr(type(ENVIRONMENT), "figures", lambda self, case, rate, evaluation: {"success_rate": rate})
    return devices


def test_every_entry_has_its_command_and_others_are_kept(played, tmp_path, capsys):
    flags = ["--seeds", *map(str, SEEDS), "--results_dir", str(tmp_path / "results")]
    reproduce.main(flags)
    file = tmp_path / "results" / "tmaze.json"
    document = json.loads(file.read_text())
    assert list(document) == reproduce.PAGE.labels and played == ["cpu"] * 2 * len(reproduce.CONTROLLED)
    for label, entry in document.items():
        model = label.removesuffix(f", {reproduce.KNOCKED_OUT}")
        assert entry["command"] == reproduce.STUDY.key(model) and entry["seeds"] == [1, 2]
    assert document["RATE"]["success_rate"]["90"] == [1.0, 0.5] and document["RATE"]["solved"] == [True, False]
    assert document[f"RATE, {reproduce.KNOCKED_OUT}"]["success_rate"]["900"] == [0.5, 0.5]
    page = (tmp_path / "results" / "tmaze.md").read_text()
    assert "| RATE | 1 | 100 | 9 | yes | 1.00 | 1.00 | 1.00 |" in page and "| MLP | 7 | 100 ± 0 |" in page
    document["DT"]["success_rate"]["90"] = [0.25, 0.25]
    file.write_text(json.dumps(document))
    reproduce.main([*flags, "--models", "LSTM"])
    assert json.loads(file.read_text()) == document and len(played) == 2 * len(reproduce.CONTROLLED) + 2
    document["DT"]["command"] += " --slide 5"
    file.write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="^2$"):
        reproduce.main([*flags, "--models", "LSTM"])
    assert "'DT' was made by another command than today's; name DT in --models, too" in capsys.readouterr().err
