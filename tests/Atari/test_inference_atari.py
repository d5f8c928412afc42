"""Evaluating a checkpoint from the command line, with pictures and videos."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ale_py")

from Atari import evaluate as protocol
from Atari import inference_atari
from Atari.environment import ENVIRONMENT, Play
from RATE_model import plots
from RATE_model.acting import video
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.evaluation import Acting
from RATE_model.acting.rollout import Episodes, PlayerWrapper
from tests import commands
from tests.atari_runs import only_run, random_play, train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of Breakout with returns scaled by the target return; its data is gone."""
    folder = tmp_path_factory.mktemp("inference")
    data = random_play(folder / "data.h5")
    assert train(folder, "--epochs", "1", "--return_scale", "none", "--use_argmax", "true") == 0
    data.unlink()
    return only_run(folder)


def infer(*flags: object) -> None:
    inference_atari.main([*map(str, flags), "--device", "cpu"])


def test_inference_reproduces_final_evaluation_without_data(run, tmp_path, capsys):
    output = tmp_path / "out.json"
    infer("--checkpoint", run, "--episodes", 2, "--max_steps", 12, "--use_argmax", "--output", output)
    printed = capsys.readouterr().out
    document = json.loads(output.read_text())
    final = json.loads((run / "eval" / "final.json").read_text())
    assert document["episodes"] == 2 and document["use_argmax"] is True
    assert document["results"] == {"180": {name: final[name] for name in document["results"]["180"]}}
    (line,) = (line.split() for line in printed.splitlines() if line.split()[0] == "180")
    assert float(line[1]) == pytest.approx(final["eval_return"], abs=0.006) and float(line[4]) == 12
    assert "2 episodes, Breakout, most probable actions" in printed


def test_evaluation_flags_default_to_those_of_the_run(run, tmp_path, monkeypatch):
    asked = []

    def play(environment, evaluation, acting, twins=False):
        asked.append((evaluation.episodes, evaluation.options, acting))
        return {None: Episodes(np.ones(2), np.ones(2), np.ones(2))}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    infer("--checkpoint", run)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(
        text.replace("target_return: null", "target_return: 90").replace("slide: 1", "slide: 3")
    )
    infer("--checkpoint", copy)
    (copy / "config.yaml").unlink()
    infer("--checkpoint", copy, "--game", "Breakout")
    infer(
        *("--checkpoint", run, "--target_return", 100, 20.5, "--episodes", 7, "--sticky", 0.25),
        *("--max_steps", 50, "--seed", 4, "--use_argmax", "false", "--knock_out", "--precision", "bf16"),
    )
    rules, acting = Play(use_argmax=True, max_steps=12, opening="black", game="Breakout"), Acting(target_return=180.0)
    changed = replace(rules, slide=3), replace(acting, target_return=90.0, slide=3)
    assert asked[:3] == [(2, rules, acting), (2, *changed), (2, rules, acting)]
    rules = replace(rules, use_argmax=False, sticky=0.25, max_steps=50)
    acting = replace(acting, greedy=False, seed=4, precision="bf16", transform_memory=knock_out_memory)
    assert asked[3:] == [(7, rules, replace(acting, target_return=target)) for target in (100.0, 20.5)]


def test_clipped_training_rewards_are_clipped_when_acting(run, tmp_path, monkeypatch, capsys):
    copy, seen = tmp_path / "copy", []  # every player
    shutil.copytree(run, copy)
    assert json.loads((copy / "rewards.json").read_text()) == {"clipped": False}
    (copy / "rewards.json").write_text('{"clipped": true}')
    monkeypatch.setattr(video, "write_video", lambda frames, path, *, fps: list(frames) and path)

    def wrap(self, player):
        seen.append(player)
        self._player = player

    monkeypatch.setattr(PlayerWrapper, "__init__", wrap)
    monkeypatch.setattr(protocol.ClippedRewards, "act", lambda self, observations, _: np.zeros(len(observations), int))
    infer("--checkpoint", copy, "--episodes", 1, "--max_steps", 2, "--video", 1, "--pictures", tmp_path / "new")
    assert len(seen) == 3, "with and without memory, and in the video"
    (copy / "rewards.json").write_text("{}")
    flags = ["--checkpoint", str(copy)]
    assert "rewards.json: damaged" in commands.error_of(capsys, tmp_path, inference_atari.main, flags)


def test_pictures_compare_memory_with_none(run, tmp_path, monkeypatch):
    drawn = []
    plot_returns = plots.plot_returns

    def plot(played, path, *, title, references):
        drawn.append((played, title))
        return plot_returns(played, path, title=title, references=references)

    monkeypatch.setattr(plots, "plot_returns", plot)
    infer(
        "--checkpoint",
        run,
        "--episodes",
        2,
        "--max_steps",
        8,
        "--target_return",
        180,
        1,
        "--pictures",
        tmp_path / "new",
    )
    assert (tmp_path / "new" / "returns.png").read_bytes()[:4] == b"\x89PNG"
    ((lines, title),) = drawn
    assert [*lines] == ["memory intact", "memory knocked out"] and "Breakout" in title
    assert all([*line] == [180.0, 1.0] and line[1.0].returns.shape == (2,) for line in lines.values())


def test_videos_show_whole_episodes(run, tmp_path, monkeypatch):
    shown = []

    def write(frames, path, *, fps):
        frames = list(frames)
        shown.append((len(frames), frames[0].shape, path.name, fps))
        return path

    monkeypatch.setattr(video, "write_video", write)
    infer("--checkpoint", run, "--episodes", 2, "--max_steps", 9, "--video", 2, "--pictures", tmp_path)
    assert [entry[2] for entry in shown] == [f"return_180_seed_{2**31 + number}.mp4" for number in range(2)]
    # The first picture, one after each step, and the last one for a second.
    assert all(entry[0] == 10 + 15 and entry[1][1:] == (320, 3) and entry[1][0] > 420 for entry in shown)
    assert {entry[3] for entry in shown} == {15}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--episodes 0", "--episodes 0: must be at least 1"),
        ("--video -1", "--video -1: must be at least 0"),
        ("--sticky 2", "--sticky 2.0: must be at least 0 and below 1"),
        ("--max_steps 0", "--max_steps 0: must be at least 1"),
        (f"--seed {2**63}", f"--seed {2**63}: must be at most {2**63 - 1}"),
        ("--target_return much", "--target_return much"),
    ],
)
def test_a_mistake_is_named(flags, expected, run, tmp_path, capsys):
    flags = ["--checkpoint", str(run), *flags.split()]
    assert expected in commands.error_of(capsys, tmp_path, inference_atari.main, flags)


def test_incomplete_runs_are_reported(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for content, flags, expected in (
        ("epochs: 3\n", [], "config.yaml does not name a game"),
        ("epochs: 3\n", ["--game", "Chess"], "--game Chess: there is no such game"),
        ("game: Pong\n", [], "was trained in another environment"),
        ("game: Breakout\n", ["--game", "Pong"], "was trained on Breakout"),
    ):
        (copy / "config.yaml").write_text(content)
        flags = ["--checkpoint", str(copy), *flags]
        assert expected in commands.error_of(capsys, tmp_path, inference_atari.main, flags)


def test_checkpoint_without_run_needs_game_flag(run, tmp_path, capsys):
    """Like a converted checkpoint."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "config.yaml").unlink()
    infer("--checkpoint", copy, "--game", "Breakout", "--episodes", 1, "--max_steps", 2)
    assert "1 episodes, Breakout" in capsys.readouterr().out
