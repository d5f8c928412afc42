"""The leaderboard: its figures and its page."""

import json

import numpy as np
import pytest

from RATE_model.errors import UserError
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT as TMAZE
from tools import reproduce_leaderboard as leaderboard
from tools import reproduce_memories as memories


def document(rates):
    """Figures with success `{label: rate}` in every section; three seeds, the last a little worse."""
    found = {}
    for section in memories.SECTIONS.values():
        for label, rate in rates.items():
            seeds = [rate, rate, max(0.5, rate - 0.02)]
            found[f"{section.title}: {label}"] = {
                "success_rate": {str(case): seeds for case in section.cases},
                "seeds": [1, 2, 3],
                "d_model": 64,
                "parameters": 100_000,
                "memory_parameters": 99_000,
                "state_numbers": 64,
                "acting_ms": 0.5,
                "train_seconds": [10.0, 11.0, 12.0],
                "optimizer_steps": [300, 310, 320],
                "solved": [True, True, False],
                "commit": ["0" * 40],
                "date": "2026-01-01",
            }
    return found


def test_the_better_memory_comes_first(tmp_path):
    results = document({"RATE": 0.7, "LSTM": 0.95, "MLP": 0.5})
    (tmp_path / "memories.json").write_text(json.dumps(results))
    assert leaderboard.main(["--train", "false", "--results_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "leaderboard.json").read_text())
    assert list(found) == ["LSTM", "RATE", "MLP"]
    assert found["LSTM"]["iqm"][0] == pytest.approx(0.8933, abs=1e-4) and found["MLP"]["iqm"] == [0, 0, 0]
    assert [entry["rank"] for entry in found.values()] == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    low, high = found["RATE"]["iqm"][1:]
    assert low <= found["RATE"]["iqm"][0] <= high
    page = (tmp_path / "leaderboard.md").read_text()
    assert "| LSTM | 0.89 (" in page and "T-Maze, endless, episode length 8001" in page
    for picture in ("leaderboard_profile.png", "capacity.png", "forgetting.png"):
        assert (tmp_path / picture).stat().st_size > 0 and picture in page


def test_tasks_of_few_memories_and_memories_without_a_task_are_left_out_and_named():
    results = document({"RATE": 0.7, "LSTM": 0.9, "GRU": 0.6})
    del results["T-Maze, recall: RATE"]  # it lacks a task
    del results["T-Maze, endless: LSTM"], results["T-Maze, endless: GRU"]  # a task of one memory only
    scores = leaderboard.scores_of(results, list(leaderboard.JUDGED))
    assert scores.labels == ["LSTM", "GRU"] and scores.values.shape == (2, 5, 3)
    assert scores.partial == ["RATE"] and scores.without == ["tmaze_endless"]
    assert leaderboard.left_out(scores) == (
        " Left out: tasks that few memories have figures of (T-Maze, endless); "
        "memories without figures in one of the tasks (RATE)."
    )
    assert leaderboard.left_out(leaderboard.scores_of(document({"RATE": 1.0}), ["minigrid"])) == ""
    with pytest.raises(UserError, match="no memory has figures"):
        leaderboard.scores_of({}, list(leaderboard.JUDGED))


def test_bits_are_those_of_a_noisy_channel():
    """A binary symmetric channel that is right in 89 % has a capacity of one half (Cover and Thomas, ch. 7)."""
    assert leaderboard.bits_recalled(0.889972, 8) == pytest.approx(4, abs=1e-3)
    assert leaderboard.bits_recalled(1.0, 8) == pytest.approx(8) and leaderboard.bits_recalled(0.4, 8) == 0


@pytest.mark.parametrize("name", [name for name in leaderboard.JUDGED if name.startswith("tmaze_")])
def test_every_task_has_a_valid_setting(name):
    section = memories.SECTIONS[name]
    config = section.study.setting()
    assert section.study.command("RATE", [1])[0] == TMAZE.train_script
    assert leaderboard.JUDGED[name] in section.cases and section.trained == config.trained
    wanted = TMAZE.training_cases(config, final=True)
    assert set(section.cases) <= set(wanted)
    junctions = (np.array(section.cases) - 1) // (config.data.corridor + 1)
    assert config.data.task != "endless" or junctions.tolist() == [5, 50, 500]


def test_leaderboard_needs_figures(tmp_path, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        leaderboard.main(["--train", "false", "--results_dir", str(tmp_path)])
    assert "memories.json is missing" in capsys.readouterr().err
    (tmp_path / "memories.json").write_text('{"T-Maze: RATE": {')
    with pytest.raises(SystemExit, match="^2$"):
        leaderboard.main(["--train", "false", "--results_dir", str(tmp_path)])
    assert "memories.json: is damaged, or not JSON" in capsys.readouterr().err


def test_environments_to_train_can_be_chosen(tmp_path, monkeypatch):
    (tmp_path / "memories.json").write_text(json.dumps(document({"RATE": 0.7, "LSTM": 0.95})))
    trained = []
    monkeypatch.setattr(memories, "run", lambda options: len(trained.extend(options.environments) or ""))
    leaderboard.main(["--environments", "tmaze", "tmaze_recall", "--results_dir", str(tmp_path)])
    assert trained == ["tmaze", "tmaze_recall"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            {"success_rate": None},
            "'success_rate' is None; must be a number",
        ),
        ({"success_rate": {}}, "'success_rate 9' is None; must be a list of numbers"),
        ({"acting_ms": "fast"}, "'acting_ms' is 'fast'; must be a number"),
        ({"train_seconds": 4}, "'train_seconds' is 4; must be a list of numbers"),
        ({"seeds": [1, 2]}, "has 2 seeds, but 3 values"),
        ({"commit": None}, "'commit' must be a list"),
    ],
    ids=str,
)
def test_damaged_figures_are_refused_and_named(damage, words):
    results = document({"RATE": 0.7, "LSTM": 0.9})
    results["T-Maze: RATE"] |= damage
    with pytest.raises(UserError, match=f"memories.json: 'T-Maze: RATE'.*({words})"):
        leaderboard.scores_of(results, ["tmaze"])


@pytest.mark.parametrize("rate", [float("nan"), 7.0, -3.0, "0.5"])
def test_impossible_rates_are_refused(rate):
    results = document({"RATE": 0.7})
    results["T-Maze: RATE"]["success_rate"]["9600"][1] = rate
    with pytest.raises(UserError, match="'success_rate 9' is "):
        leaderboard.scores_of(results, ["tmaze"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--environments="], "--environments is empty"),
        (["--environments", "tmaze_second_tries"], "tmaze_second_tries: is not judged; must be one of tmaze, "),
        (["--models", "RATE"], "need --train true"),
        (["--join", "other.json"], "need --train true"),
    ],
    ids=str,
)
def test_flags_that_mean_nothing_are_refused(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        leaderboard.main(["--train", "false", "--results_dir", str(tmp_path), *flags])
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_seeds_that_not_all_memories_have_are_said_to_be_left_out():
    results = document({"RATE": 0.7, "LSTM": 0.9})
    entry = results["T-Maze: RATE"]
    for name in ("seeds", "train_seconds", "optimizer_steps", "solved"):
        entry[name] = entry[name][:2]
    entry["success_rate"] = {case: rates[:2] for case, rates in entry["success_rate"].items()}
    scores = leaderboard.scores_of(results, ["tmaze"])
    assert scores.values.shape == (2, 1, 2)
    assert leaderboard.left_out(scores) == " Left out: seeds that not all memories have (RATE has fewest)."
