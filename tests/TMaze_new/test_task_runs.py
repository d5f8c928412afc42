"""T-Maze's tasks from the command line: data, training, inference, and incompatible flags."""

import json

import numpy as np
import pytest

from RATE_model.acting.evaluation import Acting
from RATE_model.acting.rollout import BatchActor
from RATE_model.cli.evaluation import evaluation_of_run
from RATE_model.errors import UserError
from tests.tmaze_runs import only_run, train
from TMaze_new.TMaze_new_src import inference_tmaze
from TMaze_new.TMaze_new_src.dataset import DATA, DataOptions, load_windows
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT, Maze
from TMaze_new.TMaze_new_src.task_choice import TaskChoice

OPTIONS = {"multi-cue": {"bits": 2}, "endless": {"corridor": 3}, "distracted": {}, "recall": {}}
FLAGS = {
    task: [word for name, value in own.items() for word in (f"--{name}", str(value))] for task, own in OPTIONS.items()
}
LENGTH = 13


class Oracle(BatchActor):
    """Plays with what only the environments know; in the rows of `wrong`, every turn is wrong."""

    def __init__(self, chains, wrong=False):
        self.chains, self.wrong = chains, wrong

    def act(self, observations, rewards):
        return self.chains.expert_actions(self.wrong)

    def keep(self, rows):
        raise AssertionError("no row is dropped")


@pytest.mark.parametrize("task", FLAGS)
def test_a_run_from_data_to_inference(task, tmp_path, monkeypatch):
    monkeypatch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)
    assert train(tmp_path, "--task", task, *FLAGS[task], "--epochs", "1", "--eval_lengths", "13", "17") == 0
    run = only_run(tmp_path)
    final = json.loads((run / "eval" / "final.json").read_text())
    assert {"Recalled", "Recalled_T_13", "Success_rate_T_17"} <= set(final) and task in run.name
    inference_tmaze.main(["--checkpoint", str(run), "--lengths", "13", "17", "--output", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["task"] == task and again["results"]["17"]["recalled"] == final["Recalled_T_17"]


@pytest.mark.parametrize("task", FLAGS)
def test_outcomes_are_the_shares_of_right_turns(task, tmp_path, monkeypatch):
    """For an oracle that is wrong in a quarter of the episodes."""
    monkeypatch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)
    options = Maze(task=task, **OPTIONS[task])
    seen = []

    def vector(self, cases, options):
        seen.append(options.chains(cases))
        return seen[-1]

    monkeypatch.setattr(type(ENVIRONMENT), "vector", vector)
    wrong = np.arange(20) % 8 > 5
    monkeypatch.setattr(type(ENVIRONMENT), "player", lambda self, evaluation, actor: Oracle(seen[-1], wrong))
    assert train(tmp_path, "--task", task, *FLAGS[task], "--epochs", "1", "--eval_lengths", "13", "--last_inference",
                 "false", "--online_inference", "false") == 0  # fmt: skip
    evaluation = evaluation_of_run(ENVIRONMENT, only_run(tmp_path), cases=(LENGTH,), episodes=10)
    played = ENVIRONMENT.play(evaluation, Acting(target_return=1.0), twins=True)[LENGTH]
    assert ENVIRONMENT.outcomes(LENGTH, played, evaluation).tolist() == (~wrong).astype(float).tolist()
    assert ENVIRONMENT.horizons(LENGTH, options) == options.chains([LENGTH]).horizons


def test_endless_episode_without_turns_recalls_nothing():
    task = TaskChoice(task="endless", corridor=3)
    assert task.outcomes(13, np.array([-0.13, 2.87, 0.87]), np.array([13, 13, 12])).tolist() == [0, 1, 0.665]


def test_data_has_the_requested_lengths(tmp_path):
    options = DataOptions(
        task="multi-cue", bits=2, corridors="any", context_length=10, trajectories=50, data_dir=tmp_path
    )
    path = DATA.path(options.only(2))
    DATA.make(options.only(2), path)
    assert path.name.startswith("tmaze_multi-cue_bits2_S2_K10_any")
    training, validation = load_windows([path], size=20, spec=options.spec)
    lengths = np.concatenate([training.windows[:, 2], validation.windows[:, 2]])
    assert lengths.min() >= 10 and lengths.max() <= 19 and len(set(lengths)) > 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 5}, "--bits 5: only applies to --task multi-cue, not passive"),
        ({"task": "recall", "corridor": 5}, "--corridor 5: only applies to --task endless, not recall"),
        ({"task": "multi-cue", "bits": 0}, "--bits 0: must be at least 1"),
        ({"task": "multi-cue", "bits": 9, "context_length": 10}, "--min_n_final 1: --task multi-cue takes at least 19"),
        ({"task": "recall", "hint_steps": 2}, "--hint_steps: only applies to --task passive"),
    ],
)
def test_incompatible_flags_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        DataOptions(**changes).validate()


def test_lengths_impossible_in_a_task_are_refused():
    with pytest.raises(UserError, match="--lengths 8: --task multi-cue takes at least 9 steps"):
        Maze(task="multi-cue", lengths=(8, 30)).validate()
    assert ENVIRONMENT.cases(Maze(task="multi-cue", bits=20))[0] == 90
