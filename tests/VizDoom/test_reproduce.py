"""The table of results, from existing runs."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("vizdoom")

import torch

from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import Episodes
from RATE_model.cli.evaluation import evaluation_of
from RATE_model.cli.options import to_flat_dict
from RATE_model.pages import run_results
from RATE_model.pages import study as studies
from VizDoom.VizDoom_src import reproduce
from VizDoom.VizDoom_src.environment import ENVIRONMENT
from VizDoom.VizDoom_src.evaluate import ERRORS, Played, figures

RESULT = {"train_seconds": 60.0, "optimizer_steps": 500}


def returns(red: float, green: float) -> dict[str, float]:
    """A result under the names of `metrics`."""
    values = (red, green, (red + green) / 2, min(red, green), abs(red - green))
    errors = {name: 0.1 * number for number, name in enumerate(ERRORS.values(), start=1)}
    found = errors | dict(zip(reproduce.COLUMNS.values(), values, strict=True))
    return {f"{name}_{asked}": value for asked in ("56.5", "3.2") for name, value in found.items()}


class FakeAgent(NamedTuple):
    """The checkpoint and device of a loaded agent."""

    path: Path
    device: str = ""

    def parameters(self) -> list[torch.Tensor]:
        return [torch.zeros(3, 4)]


def fake_run(folder: Path, result: dict[str, float]) -> Path:
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "eval" / "final.json").write_text(json.dumps(result))
    start = {"seed": int(folder.name), "started": "2026-01-02T00:00:00+00:00", "git": {"commit": "c" * 40}}
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    return folder


def played(red: float, green: float) -> Played:
    """Two episodes of each colour, half a point above and below the mean."""
    found = np.array([red - 0.5, red + 0.5, green - 0.5, green + 0.5])
    return Played(Episodes(found, np.full(4, 9), np.zeros(4)), np.repeat([True, False], 2))


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list:
    """Existing runs, and the recorded arguments of those that play again: evaluation, acting, twins."""
    studies = []

    def run_all(study, options, models) -> dict[str, list[Path]]:
        studies.append(study)
        return {
            label: [
                fake_run(tmp_path / study.folder(label) / str(seed), RESULT | returns(10.0 * number + seed, 8.0))
                for seed in options.seeds
            ]
            for number, label in enumerate(study.models, start=1)
            if label in models or not models
        }

    asked = []
    monkeypatch.setattr(reproduce.Study, "run_all", run_all)

    def of_run(environment, run, *, device, **changes):
        flags = to_flat_dict(studies[-1].setting())
        return evaluation_of(environment, FakeAgent(run, device), flags, cases=(None,), run=run, **changes)

    def play(self, evaluation, acting, *, twins=False):
        asked.append((evaluation, acting, twins))
        return {None: played(3.0, 2.0).episodes}

    monkeypatch.setattr(type(ENVIRONMENT), "files", lambda self, config: [])
    monkeypatch.setattr(reproduce.Page, "data_return", 4.25)
    monkeypatch.setattr(run_results, "load_agent", FakeAgent)
    monkeypatch.setattr(run_results, "evaluation_of_run", of_run)
    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    monkeypatch.setattr(
        type(ENVIRONMENT), "figures", lambda self, case, episodes, evaluation: figures(played(3.0, 2.0))
    )
    monkeypatch.setattr(reproduce, "play_baselines", lambda *arguments, **options: {"random": played(4.0, 6.0)})
    return asked


def test_table_has_runs_controls_and_baselines(asked, tmp_path, capsys):
    reproduce.main(["--seeds", "1", "2", "--results_dir", str(tmp_path / "results")])
    page = (tmp_path / "results" / "vizdoom.md").read_text()
    assert "| RATE | 11.5 ± 0.5 | 8.0 ± 0.0 | 9.8 ± 0.2 | 8.0 ± 0.0 | 3.5 ± 0.5 |" in page  # 11 and 12 red
    assert "| RATE, memory knocked out | 3.0 ± 0.0 | 2.0 ± 0.0 | 2.5 ± 0.0 | 2.0 ± 0.0 | 1.0 ± 0.0 |" in page
    assert "| RATE, memories of twins exchanged | 3.0" in page and "asked for 3.2 at every segment, measured" in page
    assert "| RATE, asked for 56.5 | 3.0" in page and "| RATE, asked for 56.5, memory knocked out | 3.0" in page
    assert "| LSTM, memories of twins exchanged | 3.0" in page and "MLP, memory" not in page
    assert "| MLP | 12 | 500 ± 0 | 60 ± 0 | cccccccccccc | 2026-01-02 |" in page
    assert "| random | 4.0 ± 0.5 | 6.0 ± 0.5 | 5.0 ± 0.6 | 4.0 | 2.0 |" in page
    assert "| RATE | 38.2 | 44.7 | 41.5 | 38.2 | 6.5 |" in page and "| 59.2 |" in page
    assert "| RATE | 2 | 500 | 60 | 12.0 ± 0.1 | 8.0 ± 0.2 | 10.0 ± 0.3 | 8.0 | 4.0 |" in page
    assert "standard error over seeds," in page
    assert "measured at commit cccccccccccc on 2026-01-02" in page and "mean return of 4.25" in page
    assert page.count("    python3 VizDoom/VizDoom_src/train_vizdoom.py") == 3
    document = json.loads((tmp_path / "results" / "vizdoom.json").read_text())
    assert document["RATE"]["weaker"] == [8.0, 8.0] and document["RATE"]["green_error"] == [0.2, 0.2]
    assert document["random"]["red_error"] == [0.5] and (tmp_path / "results" / "vizdoom.png").exists()
    assert "| random | 4.0 ±" in page and "| RATE | 11.5" in capsys.readouterr().out


def test_controls_use_the_same_target_return(asked, tmp_path):
    reproduce.main(["--seeds", "1", "2", "--results_dir", str(tmp_path / "results")])
    config = reproduce.STUDIES["fast"].setting()
    assert config.data.scenario.variant == "clear" and len(asked) == 12  # both seeds of each row, two rows of LSTM
    assert [twins for _, _, twins in asked] == [False, False, True, True, *[False] * 6, True, True]
    transforms = [acting.transform_memory for _, acting, _ in asked]
    assert transforms[0] is transforms[6] is knock_out_memory and transforms[4] is None
    assert transforms[2] is not transforms[3], "what a run has does not depend on the runs before it"
    for number, (evaluation, acting, _) in enumerate(asked):
        as_published = 4 <= number < 8
        assert acting.target_return == (56.5 if as_published else 3.2) and acting.reset_target != as_published
        assert evaluation.options.scenario == config.data.scenario
        assert evaluation.episodes == config.task.eval_episodes and acting.precision == config.train.precision
        assert evaluation.agent.device == "cpu"


def test_one_seed_has_its_errors_over_episodes(asked, tmp_path):
    reproduce.main(["--seeds", "1", "--results_dir", str(tmp_path / "results")])
    page = (tmp_path / "results" / "vizdoom.md").read_text()
    assert "| RATE | 11.0 ± 0.1 | 8.0 ± 0.2 | 9.5 ± 0.3 | 8.0 | 3.0 |" in page
    assert "| RATE, memory knocked out | 3.0 ± 0.5 | 2.0 ± 0.5 | 2.5 ± 0.4 | 2.0 | 1.0 |" in page
    assert "over episodes for a single seed" in page


def test_unselected_models_keep_their_figures(asked, tmp_path):
    """The commands on the page contain the seeds of each model."""
    where = ["--results_dir", str(tmp_path / "results")]
    reproduce.main(["--seeds", "1", "2", "3", "--models", "RATE", *where])
    count = len(asked)
    reproduce.main(["--seeds", "1", "2", "--models", "MLP", "LSTM", *where])
    page = (tmp_path / "results" / "vizdoom.md").read_text()
    assert len(asked) == count + 4 and all("_lstm" in str(evaluation.run) for evaluation, _, _ in asked[count:])
    assert "| RATE | 3 | 500 |" in page and "| LSTM | 2 | 500 |" in page and "| LSTM | 3 |" not in page
    assert "--ckpt_folder reproduce_rate --start_seed 1 --end_seed 3" in page
    assert "--ckpt_folder reproduce_mlp --start_seed 1 --end_seed 2" in page
    places = [page.index(f"\n| {label} | ") for label in ("RATE", "RATE, asked for 56.5", "LSTM", "MLP", "random")]
    assert places == sorted(places) and page.count("\n| random |") == 1


def test_further_seeds_join_those_on_the_page(asked, tmp_path, capsys):
    where = ["--models", "LSTM", "--results_dir", str(tmp_path / "results")]
    reproduce.main(["--seeds", "1", *where])
    reproduce.main(["--seeds", "3", *where])
    document = json.loads((tmp_path / "results" / "vizdoom.json").read_text())
    for label in ("LSTM", "LSTM, memory knocked out"):
        assert document[label]["seeds"] == [1, 3] and len(document[label]["red"]) == 2
        assert "--model_mode LSTM" in document[label]["command"]
    assert document["LSTM"]["red"] == [21.0, 23.0]
    page = (tmp_path / "results" / "vizdoom.md").read_text()
    assert "--start_seed 1 --end_seed 1" in page and "--start_seed 3 --end_seed 3" in page
    # Figures of other flags do not mix with today's.
    document["LSTM"]["command"] += " --dropout 0.5"
    (tmp_path / "results" / "vizdoom.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="^2$"):
        reproduce.main(["--seeds", "2", *where])
    assert "seeds 1 3 of LSTM, made by another command, and they would be lost" in capsys.readouterr().err
    reproduce.main(["--seeds", "1", "2", "3", *where])
    document = json.loads((tmp_path / "results" / "vizdoom.json").read_text())
    assert document["LSTM"]["red"] == [21.0, 22.0, 23.0]
    assert document["LSTM, memory knocked out"]["seeds"] == [1, 2, 3]


def test_published_setting_has_its_own_page(asked, tmp_path):
    """The first model's memory is knocked out; the colour of its episodes cannot be set."""
    flags = ["--setting", "published", "--seeds", "1", "2", "--device", "cpu"]
    reproduce.main([*flags, "--results_dir", str(tmp_path / "results")])
    page = (tmp_path / "results" / "vizdoom_published.md").read_text()
    assert "| RATE | 11.5 ± 0.5 |" in page and "| DT | 21.5 ± 0.5 |" in page and "twins" not in page
    assert (
        "of at most 4200 steps, asked for 56.5, measured" in page
        and "| RATE, asked for 4.2 at every segment | 3.0" in page
    )
    assert page.count("    python3 VizDoom/VizDoom_src/train_vizdoom.py") == 2 and "--ckpt_folder published_dt" in page
    assert len(asked) == 6 and all("published_rate" in str(evaluation.run) for evaluation, _, _ in asked)


@pytest.mark.parametrize("setting", ["auxiliary", "recorded"])
def test_small_settings_in_published_graphics_have_pages(asked, tmp_path, setting):
    """Their agents are asked for one return only; the colour of an episode cannot be set."""
    reproduce.main(["--setting", setting, "--seeds", "1", "2", "--results_dir", str(tmp_path / "results")])
    page = (tmp_path / "results" / f"vizdoom_{setting}.md").read_text()
    assert "| DT | 51.5 ± 0.5 |" in page and "Variant `published`" in page
    assert "| RATE, memory knocked out | 3.0" in page and "56.5 |" not in page.partition("| published |")[0]
    assert len(asked) == 6 and f"--ckpt_folder {setting}_mlp" in page
    recorded = {setting: study.setting().data.learn for setting, study in reproduce.STUDIES.items()}
    assert recorded["auxiliary"] == "expert" and recorded["recorded"] == "recorded"


def test_other_graphics_have_their_own_runs_and_page(asked, tmp_path):
    flags = ["--setting", "published", "--graphics", "installed", "--seeds", "1"]
    reproduce.main([*flags, "--results_dir", str(tmp_path / "results")])
    page = (tmp_path / "results" / "vizdoom_published_installed_graphics.md").read_text()
    assert "Variant `published` (installed graphics, vizdoom " in page
    command = "config.yaml --graphics installed --model_mode DT"
    assert command in page and "--ckpt_folder published_installed_graphics_dt" in page
    assert {evaluation.options.graphics for evaluation, _, _ in asked} == {"installed"}


def test_every_study_command_builds_a_model():
    made = {}
    for setting, study in reproduce.STUDIES.items():
        for label in study.models:
            words = [str(studies.ROOT / w) if w.endswith(".yaml") else w for w in study.command(label, (1,))]
            config = ENVIRONMENT.read_config(words[1:])
            made[setting, label] = config.agent_config()
            assert config.run.ckpt_folder == study.folder(label)
    assert made["fast", "LSTM"].memory == "LSTM" and made["fast", "MLP"].memory == "MLP"
    made = {
        key: (sizes.n_layer, sizes.num_mem_tokens > 0, sizes.mem_len, sizes.sliding)
        for key, (memory, sizes) in ((key, (config.memory, config.sizes)) for key, config in made.items())
        if memory == "RATE"
    }
    assert made["fast", "RATE"][1:] == (True, 0, False)
    assert made["published", "RATE"] == (6, True, 300, False) and made["published", "DT"] == (6, False, 0, True)
