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
from RATE_model.cli.options import parse_options
from RATE_model.errors import UserError
from tests import commands
from tests.small_models import VECTOR, save_small_model, small_model
from tests.vizdoom_runs import only_run, train
from VizDoom.VizDoom_src import inference_vizdoom, pictures, train_vizdoom
from VizDoom.VizDoom_src.baselines import PLAYERS
from VizDoom.VizDoom_src.evaluate import Played
from VizDoom.VizDoom_src.scenario import GRAPHICS, Scenario

PLAYED = Played(Episodes(np.array([1.0, 3.0, 5.0, 5.5]), np.full(4, 9), np.zeros(4)), np.repeat([True, False], 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("inference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_vizdoom, "draw_run", lambda *arguments, **options: None)
        assert train(folder, "--epochs", "1", "--online_inference", "false") == 0
    return only_run(folder)


def infer(*flags: object) -> None:
    inference_vizdoom.main([*map(str, flags), "--device", "cpu"])


def test_a_run_is_evaluated_as_it_evaluated_itself_with_baselines_beside(run, tmp_path, capsys):
    output = tmp_path / "out.json"
    drawn = ("--use_argmax", "false", "--seed", 1, "--episode_timeout", 8)
    infer("--checkpoint", run, "--episodes", 4, *drawn, "--output", output)
    printed = capsys.readouterr().out
    document = json.loads(output.read_text())
    assert document["checkpoint"] == str(run) and document["episodes"] == 4
    assert list(document["results"]) == ["model", *PLAYERS]
    final = json.loads((run / "eval" / "final.json").read_text())
    found = document["results"]["model"]
    assert found == {name: final[name] for name in found} and len(found) == 11
    for label, result in document["results"].items():
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{label}  "))
        words = line.removeprefix(label).replace("±", "").split()
        names = ["ReturnsMean_red", "ReturnsSEM_red", "ReturnsMean_green", "ReturnsSEM_green", "ReturnsMean"]
        names += ["ReturnsSEM", "ReturnsMin", "ReturnsDifference", "LifeTimeMean_red", "LifeTimeMean_green"]
        assert [float(word) for word in words] == pytest.approx([result[f"{name}_56.5"] for name in names], abs=0.51)
    said = f"4 episodes of the published variant (installed graphics, vizdoom {vizdoom.__version__}), half of them red"
    assert f"{said}, asked for a return of 56.5" in printed and "knocked out" not in printed


def test_the_command_of_the_readme_is_understood():
    flags = shlex.split("--checkpoint RUN_DIR --episodes 100 --video 4")
    options = parse_options(inference_vizdoom.Options, argv=flags)
    assert options.video == 4 and options.episodes == 100 and options.baselines


def test_flags_reach_the_evaluation(run, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(inference_vizdoom.protocol, "play", lambda model, **options: asked.append(options) or PLAYED)
    monkeypatch.setattr(
        inference_vizdoom, "play_baselines", lambda *arguments, **options: asked.append((arguments, options)) or {}
    )
    infer("--checkpoint", run)
    infer(
        *("--checkpoint", run, "--episodes", 20, "--knock_out", "--slide", 3, "--seed", 4, "--target_return", 9.5),
        *("--use_argmax", "false", "--precision", "bf16", "--variant", "clear", "--pillar_steps", 7),
        *("--episode_timeout", 50, "--baselines", "false", "--reset_target"),
    )
    defaults, beside, given = asked
    assert defaults == dict(
        episodes=50, target_return=56.5, reset_target=False, greedy=False, seed=0, slide=1,
        scenario=Scenario().settled(), max_steps=8, transform_memory=None, precision="32",
    )  # fmt: skip
    assert beside == ((50,), {"scenario": Scenario().settled(), "max_steps": 8})
    assert given == dict(
        episodes=20, target_return=9.5, reset_target=True, greedy=False, seed=4, slide=3,
        scenario=Scenario("clear", pillar_steps=7).settled(), max_steps=50, transform_memory=knock_out_memory,
        precision="bf16",
    )  # fmt: skip
    assert "memory knocked out" in capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What is asked of every evaluation, none of which is played."""
    asked = []
    monkeypatch.setattr(inference_vizdoom.protocol, "play", lambda model, **options: asked.append(options) or PLAYED)
    return asked


def trained_otherwise(run: Path, copy: Path, **changes: tuple[str, str]) -> Path:
    """A copy of a run in whose record flags have other values: before, now."""
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    for name, (before, now) in changes.items():
        assert f"{name}: {before}\n" in config
        config = config.replace(f"{name}: {before}\n", f"{name}: {now}\n")
    (copy / "config.yaml").write_text(config)
    return copy


def test_the_scenario_is_the_one_of_the_training_unless_flags_say_otherwise(run, tmp_path, asked):
    """Also of a checkpoint inside the run, and with half of it given."""
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
    assert [options["scenario"] for options in asked] == [scenario.settled() for scenario in expected]


def test_the_graphics_are_those_of_the_training_and_others_are_told(run, tmp_path, asked, monkeypatch, capsys):
    """A run that was made before it could say it had installed ones; another variant has its own."""
    monkeypatch.setitem(GRAPHICS, "published", "published")
    monkeypatch.setattr(inference_vizdoom, "ensure_graphics", lambda scenario: None)
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
        version = document["vizdoom"]
        assert asked[-1]["scenario"].graphics == document["graphics"] == graphics and version == vizdoom.__version__
        assert f"({graphics} graphics, vizdoom {version})" in printed
        assert (f"graphics, and plays {graphics} ones" in printed) == other, flags


def test_what_is_asked_for_is_what_the_training_asked_for_unless_flags_say_otherwise(run, tmp_path, asked, capsys):
    changes = {"target_return": ("56.5", "3.2"), "reset_target": ("false", "true")}
    other = trained_otherwise(run, tmp_path / "run", **changes)
    output = tmp_path / "out.json"
    for flags in ((), ("--target_return", 9), ("--target_return", 56.5, "--reset_target", "false")):
        infer("--checkpoint", other, *flags, "--baselines", "false", "--output", output)
    found = [(options["target_return"], options["reset_target"]) for options in asked]
    assert found == [(3.2, True), (9, True), (56.5, False)]
    printed = capsys.readouterr().out
    assert "asked for a return of 3.2 at every segment" in printed and "asked for a return of 56.5\n" in printed
    assert "ReturnsMean_56.5" in json.loads(output.read_text())["results"]["model"]


def test_pictures_and_videos_are_made(run, tmp_path, capsys, engines):
    folder = tmp_path / "deeper" / "pictures"
    flags = ("--checkpoint", run, "--episodes", 4, "--episode_timeout", 5, "--baselines", "false", "--variant", "clear")
    infer(*flags, "--pictures", folder, "--video", 3)
    names = {"returns_by_colour.png", "red_seed_2.mp4", "red_seed_88.mp4", "green_seed_0.mp4"}
    assert {path.name for path in folder.iterdir()} == names and not engines()
    printed = capsys.readouterr().out
    assert all(printed.count(str(folder / name)) == 1 for name in names)
    shown = [line.partition("  ")[0] for line in printed.splitlines() if line.startswith("model")]
    assert shown == ["model", "model, memory knocked out", "model, memories of twins exchanged"]


def test_results_are_written_before_videos_that_may_fail(run, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_vizdoom.protocol, "play", lambda model, **options: PLAYED)

    def fail(*arguments, **options):
        raise UserError("no video")

    monkeypatch.setattr(inference_vizdoom, "record_videos", fail)
    with pytest.raises(SystemExit, match="2"):
        infer("--checkpoint", run, "--baselines", "false", "--video", 2, "--output", tmp_path / "out.json")
    assert list(json.loads((tmp_path / "out.json").read_text())["results"]) == ["model"]


def test_nothing_is_played_twice_for_pictures(run, tmp_path, monkeypatch):
    asked = []

    def play(model, *, transform_memory, **options):
        asked.append(transform_memory)
        return Played(PLAYED.episodes, PLAYED.is_red)

    monkeypatch.setattr(inference_vizdoom.protocol, "play", play)
    monkeypatch.setattr(pictures, "play", play)
    flags = ("--checkpoint", run, "--baselines", "false", "--pictures", tmp_path)
    infer(*flags)
    infer(*flags, "--knock_out")
    assert asked == [None, knock_out_memory, knock_out_memory, None]


MISTAKES = {
    "odd": ("--episodes 9", "--episodes 9: must be even"),
    "too many": ("--episodes 202", "--episodes 202: must be even, as both colours have as many, at least 4 and at"),
    "no episode": ("--episodes 0", "--episodes 0: must be even"),
    "a switch": ("--video", "--video needs a value: an integer"),
    "videos that are fewer than none": ("--video -1", "--video -1: must be at least 0"),
    "more videos than seeds": ("--video_episodes 202", "--video 202: must be at most 200"),
    "no slide": ("--slide 0", "--slide 0: must be at least 1"),
    "no end": ("--episode_timeout 0", "--episode_timeout 0: must be at least 1"),
    "no items": ("--items 0", "--items 0: must be at least 1"),
    "seed": ("--seed -1", "--seed -1: must be at least 0"),
    "seed beyond counting": ("--seed 99999999999999999999", "--seed 99999999999999999999: must be at most"),
    "return": ("--target_return nan", "--target_return nan"),
    "output": ("--output nowhere/out.json", "--output nowhere/out.json: give a file in a folder that exists"),
    "unknown flag": ("--lengths 9", "--lengths"),
    "checkpoint": ("--checkpoint nowhere", "nowhere does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_and_create_nothing(mistake, run, tmp_path, monkeypatch, capsys):
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
