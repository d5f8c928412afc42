"""Evaluating a checkpoint from the command line."""

import json

import pytest

pytest.importorskip("minigrid")

from MinigridMemory.MinigridMemory_src import inference_minigridmemory
from MinigridMemory.MinigridMemory_src.env import SPEC
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT, Mazes
from MinigridMemory.MinigridMemory_src.evaluate import expert_play
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.evaluation import Acting
from tests import commands
from tests.minigrid_runs import only_run, train
from tests.small_models import VECTOR, save_small_model, small_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("inference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)
        assert train(folder, "--epochs", "1", "--final_sizes", "7", "9") == 0
    return only_run(folder)


def infer(*flags: object) -> None:
    inference_minigridmemory.main([*map(str, flags), "--device", "cpu"])


def test_inference_reproduces_final_evaluation_and_adds_expert(run, tmp_path, capsys):
    output = tmp_path / "out.json"
    drawn = ("--use_argmax", "false", "--seed", 1)
    infer("--checkpoint", run, "--sizes", 7, 9, "--episodes", 3, *drawn, "--output", output)
    printed = capsys.readouterr().out
    document = json.loads(output.read_text())
    assert (document["layouts"], document["episode_timeout"]) == ("published", 96)
    assert document["checkpoint"] == str(run) and document["episodes"] == 3 and [*document["results"]] == ["7", "9"]
    final = json.loads((run / "eval" / "final.json").read_text())
    rows = [line.split() for line in printed.splitlines()]
    rows = {words[0]: words[1:] for words in rows if len(words) == 7 and words[0].isdigit()}
    for size, found in document["results"].items():
        assert found == {
            "success_rate": final[f"Success_rate_l_{size}"],
            "mean_steps": final[f"LifeTimeMean_r_0.96_l_{size}"],
            "mean_return": final[f"ReturnsMean_r_0.96_l_{size}"],
            "success_rate_expert_cap": final[f"Success_rate_l_{size}_expert_cap"],
            "mean_steps_expert_cap": final[f"LifeTimeMean_r_0.96_l_{size}"],  # both caps are 96 here
            "expert_success_rate": final[f"Expert_success_rate_l_{size}"],
        }
        assert [float(word) for word in rows[size]] == pytest.approx([*found.values()], abs=0.05)
    assert "3 episodes per size, published layouts, at most 96 steps" in printed and "knocked out" not in printed


def test_expert_is_capped_too(run, monkeypatch, tmp_path):
    """The results are the expert's own here, in corridors of fixed length: none of 61 fits 96 steps."""

    def play(environment, evaluation, acting, twins=False):
        options = evaluation.options.random_length, evaluation.options.layouts
        return {size: expert_play(size, evaluation.episodes, *options) for size in evaluation.cases}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    output = tmp_path / "out.json"
    infer("--checkpoint", run, *"--sizes 61 --episodes 4 --random_length false".split(), "--output", output)
    found = json.loads(output.read_text())["results"]["61"]
    assert found["success_rate_expert_cap"] == 1 > found["success_rate"] == found["expert_success_rate"]


@pytest.fixture
def asked(monkeypatch):
    """Recorded arguments of evaluations: sizes, episodes, mazes, how the agent acts."""
    found = []

    def play(environment, evaluation, acting, twins=False):
        found.append((list(evaluation.cases), evaluation.episodes, evaluation.options, acting))
        return {size: expert_play(7, 1) for size in evaluation.cases}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    monkeypatch.setattr("MinigridMemory.MinigridMemory_src.evaluate.expert_play", lambda *arguments: expert_play(7, 1))
    return found


def test_flags_reach_the_evaluation(run, asked, capsys):
    infer("--checkpoint", run)
    infer(
        *("--checkpoint", run, "--sizes", 7, 501, "--episodes", 20, "--knock_out", "--slide", 3, "--seed", 4),
        *("--random_length", "false", "--target_return", 0.5, "--use_argmax", "true", "--precision", "bf16"),
        *("--layouts", "own", "--episode_timeout", 500),
    )
    sizes = [11, 21, 31, 41, 51, 61, 71, 81, 91, 151, 301, 501]
    assert asked[0] == (sizes, 3, Mazes(), Acting(target_return=0.96, greedy=False))
    acting = dict(target_return=0.5, transform_memory=knock_out_memory, slide=3, seed=4, precision="bf16")
    own = dict(random_length=False, use_argmax=True, slide=3, layouts="own", episode_timeout=500)
    assert asked[1] == ([7, 501], 20, Mazes(sizes=(7, 501), **own), Acting(**acting))
    printed = capsys.readouterr().out
    assert "own layouts, at most 500 steps, target return 0.5, memory knocked out" in printed


def test_flags_default_to_those_of_the_run(tmp_path, asked):
    """A run older than these flags uses own mazes; a checkpoint without a run is evaluated as published."""
    save_small_model(small_model(spec=SPEC), tmp_path)
    config = tmp_path / "config.yaml"
    recorded = {
        "layouts: published\nepisode_timeout: 500\ntarget_return: 0.5\n": (0.5, "published", 500),
        "target_return: 0.5\n": (0.5, "own", 96),
        "published_variant: minigrid_memory\n": (0.96, "published", 96),
        None: (0.96, "published", 96),
    }
    for text, expected in recorded.items():
        config.unlink(missing_ok=True) if text is None else config.write_text(text)
        infer("--checkpoint", tmp_path, "--sizes", 7)
        _, _, mazes, acting = asked.pop()
        assert (acting.target_return, mazes.layouts, mazes.episode_timeout) == expected, text
        infer("--checkpoint", tmp_path, *"--layouts own --episode_timeout 7 --target_return 0.1 --use_argmax".split())
        _, _, mazes, acting = asked.pop()
        assert mazes == Mazes(layouts="own", episode_timeout=7, use_argmax=True) and acting.target_return == 0.1


def test_curves_and_videos_are_made(run, tmp_path, capsys):
    folder = tmp_path / "deeper" / "pictures"
    infer("--checkpoint", run, "--sizes", 7, 7, "--episodes", 2, "--pictures", folder, "--video", 1)
    names = {"success_by_size.png", "size_7_seed_0.mp4"}
    assert {path.name for path in folder.iterdir()} == names
    printed = capsys.readouterr().out
    assert all(printed.count(str(folder / name)) == 1 for name in names)


MISTAKES = {
    "even size": ("--sizes 9 30", "--sizes 30: the size of a maze must be odd"),
    "small size": ("--sizes 5", "--sizes 5: "),
    "large size": ("--sizes 2003", "7 to 2001"),
    "no size": ("--sizes", "--sizes needs a value"),
    "no episode": ("--episodes 0", "--episodes 0: must be at least 1"),
    "episodes that are data": ("--episodes 10001", "--episodes 10001: must be at least 1 and at most 10000"),
    "no time": ("--episode_timeout 0", "--episode_timeout 0: must be at least 1"),
    "layouts": ("--layouts old", "--layouts old"),
    "no slide": ("--slide 0", "--slide 0: must be at least 1"),
    "videos": ("--video -1", "--video -1: must be at least 0"),
    "videos of data": ("--video 10001", "--video 10001: must be at most 10000"),
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
    assert named in commands.error_of(capsys, tmp_path, inference_minigridmemory.main, flags)


def test_a_checkpoint_of_another_environment_is_named(tmp_path, capsys):
    save_small_model(small_model(spec=VECTOR), tmp_path)
    flags = ["--checkpoint", str(tmp_path), "--sizes", "9", "--device", "cpu"]
    message = commands.error_of(capsys, tmp_path, inference_minigridmemory.main, flags)
    assert "another environment" in message and str(tmp_path) in message
