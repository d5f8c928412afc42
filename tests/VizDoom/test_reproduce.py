"""The table of results, from runs that are there already."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from RATE_model.actor import knock_out_memory
from RATE_model.evaluation import Episodes
from VizDoom.VizDoom_src import reproduce
from VizDoom.VizDoom_src.evaluate import Played

RESULT = {"train_seconds": 60.0, "optimizer_steps": 500}


def returns(red: float, green: float) -> dict[str, float]:
    """A result under the names of `metrics`."""
    values = (red, green, (red + green) / 2, min(red, green), abs(red - green))
    return {f"{name}_56.5": value for name, value in zip(reproduce.COLUMNS.values(), values, strict=True)}


def fake_run(folder: Path, result: dict[str, float]) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "final.json").write_text(json.dumps(result))
    (folder / "environment.json").write_text(json.dumps({"starts": [{"git": {"commit": "c" * 40}}]}))
    return folder


def test_the_table_holds_the_runs_the_controls_and_who_has_no_model(tmp_path, monkeypatch, capsys):
    def run_all(study, options) -> dict[str, list[Path]]:
        return {
            label: [
                fake_run(tmp_path / study.folder(label) / str(seed), RESULT | returns(10.0 * number + seed, 8.0))
                for seed in options.seeds
            ]
            for number, label in enumerate(study.models, start=1)
        }

    def played(red: float, green: float) -> Played:
        return Played(Episodes(np.repeat([red, green], 2), np.full(4, 9), np.zeros(4)), np.repeat([True, False], 2))

    asked = []
    monkeypatch.setattr(reproduce.Study, "run_all", run_all)
    monkeypatch.setattr(reproduce, "ensure_dataset", lambda data: [])
    monkeypatch.setattr(reproduce, "mean_return_of_data", lambda paths: 4.25)
    monkeypatch.setattr(reproduce, "load_model", lambda path: None)
    monkeypatch.setattr(reproduce, "resolve_checkpoint", lambda path: path)
    monkeypatch.setattr(reproduce, "play", lambda model, **options: asked.append(options) or played(3.0, 2.0))
    monkeypatch.setattr(reproduce, "play_baselines", lambda *arguments, **options: {"random": played(4.0, 6.0)})
    reproduce.main(["--seeds", "1", "2", "--results_dir", str(tmp_path / "results")])
    page = (tmp_path / "results" / "vizdoom.md").read_text()
    assert "| RATE | 11.5 ± 0.5 | 8.0 ± 0.0 | 9.8 ± 0.2 | 8.0 ± 0.0 | 3.5 ± 0.5 |" in page  # 11 and 12 red
    assert "| the same, memory knocked out | 3.0 ± 0.0 | 2.0 ± 0.0 | 2.5 ± 0.0 | 2.0 ± 0.0 | 1.0 ± 0.0 |" in page
    assert "| random | 4.0 | 6.0 | 5.0 | 4.0 | 2.0 |" in page
    assert "| RATE | 38.2 | 44.7 | 41.5 | 38.2 | 6.5 |" in page and "| 59.2 |" in page
    assert "| RATE | 2 | 500 | 60 | 12.0 | 8.0 | 10.0 | 8.0 | 4.0 |" in page
    assert "at commit cccccccccccc" in page and "mean return of 4.25" in page
    assert page.count("    python3 VizDoom/VizDoom_src/train_vizdoom.py") == 1
    config = reproduce.read_config(["--config", str(reproduce.ROOT / reproduce.FAST)])
    twins = ["twins" in options for options in asked]
    clear = config.data.scenario.variant == "clear"
    assert twins == [False, False, False, False, *([True, True] if clear else [])]
    assert asked[0]["target_return"] == 4.4 and asked[0]["renew_target"] and "transform_memory" not in asked[0]
    assert asked[2]["transform_memory"] is knock_out_memory and asked[2]["scenario"] == config.data.scenario
    assert asked[0]["episodes"] == config.task.eval_episodes and asked[0]["precision"] == config.train.precision
    document = json.loads((tmp_path / "results" / "vizdoom.json").read_text())
    assert document["RATE"]["weaker"] == [8.0, 8.0] and (tmp_path / "results" / "vizdoom.png").exists()
    assert "| random | 4.0 |" in page and "| RATE | 11.5" in capsys.readouterr().out


def test_every_command_of_the_study_makes_a_model():
    for label in reproduce.STUDY.models:
        words = [
            str(reproduce.ROOT / word) if word.endswith(".yaml") else word
            for word in reproduce.STUDY.command(label, (1,))
        ]
        config = reproduce.read_config(words[1:]).model_config()
        assert (config.num_mem_tokens > 0, config.mem_len > 0, config.sliding) == (True, False, False)
