"""Evaluating a checkpoint from the command line."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom")

import vizdoom

from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import Episodes
from RATE_model.cli import evaluation
from RATE_model.errors import UserError
from tests import commands
from tests.small_models import VECTOR, save_small_model, small_model
from tests.vizdoom_runs import only_run, train
from VizDoom.VizDoom_src import environment, inference_vizdoom
from VizDoom.VizDoom_src.baselines import PLAYERS
from VizDoom.VizDoom_src.environment import ENVIRONMENT
from VizDoom.VizDoom_src.scenario import GRAPHICS, Scenario


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("inference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)
        assert train(folder, "--epochs", "1", "--online_inference", "false") == 0
    return only_run(folder)


def infer(*flags: object) -> None:
    inference_vizdoom.main([*map(str, flags), "--device", "cpu"])


def test_inference_reproduces_final_evaluation_and_adds_baselines(run, tmp_path, capsys):
    output = tmp_path / "out.json"
    drawn = ("--use_argmax", "false", "--seed", 1, "--episode_timeout", 8)
    infer("--checkpoint", run, "--episodes", 4, *drawn, "--output", output)
    printed = capsys.readouterr().out
    document = json.loads(output.read_text())
    assert document["checkpoint"] == str(run) and document["episodes"] == 4
    assert list(document["results"]) == ["56.5", *PLAYERS]
    final = json.loads((run / "eval" / "final.json").read_text())
    found = document["results"]["56.5"]
    for column, name in {"red": "ReturnsMean_red", "green_error": "ReturnsSEM_green", "weaker": "ReturnsMin"}.items():
        assert found[column] == final[f"{name}_56.5"]
    for label, result in document["results"].items():
        (line,) = (line.strip() for line in printed.splitlines() if line.strip().startswith(f"{label}  "))
        assert line.removeprefix(label).split() == [f"{value:.2f}" for value in result.values()]
    said = f"4 episodes, half of them red, of the published variant (installed graphics, vizdoom {vizdoom.__version__})"
    assert f"{said}, target return 56.5" in printed and "knocked out" not in printed


def test_readme_command_is_accepted(run):
    flags = shlex.split(f"--checkpoint '{run}' --episodes 100 --video 4")
    options, _ = evaluation.read_options(ENVIRONMENT, flags)
    assert options.common.video == 4 and options.common.episodes == 100 and options.play.baselines


@pytest.fixture
def asked(monkeypatch) -> list:
    """Recorded arguments of evaluations, none of which is played, and how they act."""
    asked = []

    def play(self, evaluation, acting, *, twins=False):
        asked.append((evaluation, acting))
        count = evaluation.episodes
        return {None: Episodes(np.arange(float(count)), np.full(count, 9), np.zeros(count))}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    return asked


def test_memory_is_knocked_out_without_baselines(run, asked, monkeypatch, capsys):
    beside = []
    monkeypatch.setattr(environment, "play_baselines", lambda *arguments, **options: beside.append(options) or {})
    infer("--checkpoint", run)
    infer("--checkpoint", run, "--knock_out", "--baselines", "false")
    assert [acting.transform_memory for _, acting in asked] == [None, knock_out_memory]
    assert beside == [{"scenario": Scenario().settled(), "max_steps": 8}]
    assert "memory knocked out" in capsys.readouterr().out


def trained_otherwise(run: Path, copy: Path, **changes: tuple[str, str]) -> Path:
    """Copy a run and change a recorded flag from `before` to `now`."""
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    for name, (before, now) in changes.items():
        assert f"{name}: {before}\n" in config
        config = config.replace(f"{name}: {before}\n", f"{name}: {now}\n")
    (copy / "config.yaml").write_text(config)
    return copy


def test_scenario_defaults_to_that_of_training(run, tmp_path, asked):
    """Also for a checkpoint inside the run, and if only one of two flags is given."""
    other = trained_otherwise(run, tmp_path / "run", variant=("published", "clear"), items=("10", "7"))
    (checkpoint,) = (other / "checkpoints").glob("step_*")
    for flags in (
        (other,),
        (checkpoint,),
        (other, "--pillar_steps", 3, "--pillar", "false"),
        (other, "--variant", "published"),
    ):
        infer("--checkpoint", *flags, "--baselines", "false")
    (other / "config.yaml").unlink()
    infer("--checkpoint", other, "--baselines", "false")
    expected = [
        Scenario("clear", items=7),
        Scenario("clear", items=7),
        Scenario("clear", pillar_steps=3, items=7, pillar=False),
        Scenario(items=7),
        Scenario(),
    ]
    assert [evaluation.options.scenario for evaluation, _ in asked] == [scenario.settled() for scenario in expected]


def test_graphics_default_to_training_and_changes_are_noted(run, tmp_path, asked, monkeypatch, capsys):
    """Runs older than the flag had installed graphics; another variant has its own."""
    monkeypatch.setitem(GRAPHICS, "published", "published")
    published = trained_otherwise(run, tmp_path / "published", graphics=("installed", "published"))
    before, output = shutil.copytree(run, tmp_path / "before"), tmp_path / "out.json"
    config = before / "config.yaml"
    config.write_text(config.read_text().replace("graphics: installed\n", ""))
    converted = shutil.copytree(run, tmp_path / "converted")
    (converted / "config.yaml").write_text("published_variant: doom\n")
    cases = {
        (converted,): ("published", False),
        (published,): ("published", False),
        (run,): ("installed", False),
        (before,): ("installed", False),
        (before, "--graphics", "published"): ("published", True),
        (published, "--graphics", "installed"): ("installed", True),
        (published, "--variant", "clear"): ("installed", True),
    }
    for flags, (graphics, other) in cases.items():
        infer("--checkpoint", *flags, "--baselines", "false", "--output", output)
        printed, document = capsys.readouterr().out, json.loads(output.read_text())
        assert asked[-1][0].options.graphics == document["graphics"] == graphics
        assert f"({graphics} graphics, vizdoom {vizdoom.__version__}" in printed
        assert ("; trained in " in printed) == other, flags


def test_inference_settings_default_to_training(run, tmp_path, asked, capsys):
    changes = {"target_return": ("56.5", "3.2"), "reset_target": ("false", "true")}
    other = trained_otherwise(run, tmp_path / "run", **changes)
    output = tmp_path / "out.json"
    for flags in ((), ("--target_return", 9), ("--target_return", 56.5, "--reset_target", "false")):
        infer("--checkpoint", other, *flags, "--baselines", "false", "--output", output)
    found = [(acting.target_return, acting.reset_target) for _, acting in asked]
    assert found == [(3.2, True), (9, True), (56.5, False)]
    printed = capsys.readouterr().out
    assert "target reset at every segment, target return 3.2" in printed and "), target return 56.5\n" in printed
    assert "56.5" in json.loads(output.read_text())["results"]


def test_pictures_and_videos_are_made(run, tmp_path, capsys, engines):
    folder = tmp_path / "deeper" / "pictures"
    flags = ("--checkpoint", run, "--episodes", 4, "--episode_timeout", 5, "--baselines", "false", "--variant", "clear")
    infer(*flags, "--pictures", folder, "--video", 3)
    names = {"returns_by_colour.png", *(f"return_56.5_seed_{seed}.mp4" for seed in (2, 88, 0))}
    assert {path.name for path in folder.iterdir()} == names and not engines()
    printed = capsys.readouterr().out
    assert all(printed.count(str(folder / name)) == 1 for name in names)


def test_results_are_written_before_videos_that_may_fail(run, asked, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise UserError("no video")

    monkeypatch.setattr(evaluation, "record_videos", fail)
    with pytest.raises(SystemExit, match="2"):
        infer("--checkpoint", run, "--baselines", "false", "--video", 2, "--output", tmp_path / "out.json")
    assert list(json.loads((tmp_path / "out.json").read_text())["results"]) == ["56.5"]


MISTAKES = {
    "odd": ("--episodes 9", "--episodes 9: must be at least 4 and at most 200, in steps of 2"),
    "too many": ("--episodes 202", "--episodes 202: must be at least 4 and at most 200"),
    "no episode": ("--episodes 0", "--episodes 0: must be at least 4"),
    "a switch": ("--video", "--video needs a value: an integer"),
    "videos that are fewer than none": ("--video -1", "--video -1: must be at least 0"),
    "more videos than seeds": ("--video_episodes 202", "--video 202: must be at most 200"),
    "no slide": ("--slide 0", "--slide 0: must be at least 1"),
    "no end": ("--episode_timeout 0", "--episode_timeout 0: must be at least 1"),
    "no items": ("--items 0", "--items 0: must be at least 1"),
    "seed": ("--seed -1", "--seed -1: must be at least 0"),
    "seed beyond counting": ("--seed 99999999999999999999", "--seed 99999999999999999999: must be at most"),
    "return": ("--target_return nan", "--target_return nan"),
    "output": ("--output nowhere/out.json", "--output nowhere/out.json: give a file in an existing folder"),
    "unknown flag": ("--lengths 9", "--lengths"),
    "checkpoint": ("--checkpoint nowhere", "nowhere does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags, named = MISTAKES[mistake]
    flags = ["--checkpoint", str(run), "--device", "cpu", *flags.split()]
    assert named in commands.error_of(capsys, tmp_path, inference_vizdoom.main, flags)


def test_a_checkpoint_of_another_environment_is_named(tmp_path, capsys):
    save_small_model(small_model(spec=VECTOR), tmp_path)
    flags = ["--checkpoint", str(tmp_path), "--episodes", "4", "--device", "cpu"]
    message = commands.error_of(capsys, tmp_path, inference_vizdoom.main, flags)
    assert "another environment" in message and str(tmp_path) in message


def test_without_vizdoom_the_extra_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    flags = ["--checkpoint", str(run), "--device", "cpu"]
    assert "'.[vizdoom]'" in commands.error_of(capsys, tmp_path, inference_vizdoom.main, flags)
