"""Recorded episodes are the ones that were played, and pictures match the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from RATE_model import plots
from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.cli.settings import ModelOptions
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from RATE_model.plots.success import rates_by_case
from RATE_model.report import maps
from tests.small_models import K, logits_of, small_model
from TMaze_new.TMaze_new_src import pictures
from TMaze_new.TMaze_new_src.dataset import DataOptions
from TMaze_new.TMaze_new_src.env import SPEC, TMazeVectorEnv
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT, Config, Maze
from TMaze_new.TMaze_new_src.pictures import draw_maps, record_episode


class Expert(Actor):
    """Acts like the optimal policy, and ignores the model's choice."""

    def act(self, observations, rewards=None):
        observations = torch.as_tensor(observations)
        if not hasattr(self, "hints"):
            self.hints = observations[:, 1]
        turn = torch.where(self.hints == 1, 1, 3)
        return torch.where(observations[:, 2] == 1, turn, 0).numpy()


def test_a_recorded_episode_replays_in_the_maze(monkeypatch):
    monkeypatch.setattr(maps, "Actor", Expert)
    observations, actions, rtg = record_episode(small_model(), 12, seed=5, target_return=2.0)
    assert observations.dtype == rtg.dtype == torch.float32 and actions.dtype == torch.int64
    assert observations.shape == (2, 11, 4) and actions.shape == rtg.shape == (2, 11)
    mazes = TMazeVectorEnv(2, 10)
    seen, _ = mazes.reset(seed=[5, 5], options={"goal": [1, -1]})
    for step in range(11):
        assert (seen == observations[:, step].numpy()).all()
        seen, rewards, terminated, _, _ = mazes.step(actions[:, step].numpy())
    assert terminated.all() and (rewards == 1).all()
    assert (rtg == 2.0).all(), "no reward comes before the last step"
    different = (observations[0] != observations[1]).nonzero().tolist()
    assert different == [[0, 1]], "the episodes differ in the hint alone"


def test_untrained_model_is_recorded_until_the_step_limit():
    model = small_model().train()
    observations, _, _ = record_episode(model, 2 * K + 1, goals=(-1,), hint_steps=2)
    assert observations.shape[0] == 1 and observations.shape[1] <= 2 * K + 1
    assert observations[0, :2, 1].tolist() == [-1, -1]
    assert model.training, "the model is left as it was"


def test_recorded_logits_choose_the_recorded_actions():
    model = small_model()
    episode = record_episode(model, 3 * K)
    logits = logits_of(model, episode)
    assert (logits.argmax(-1) == episode[1]).all()


def test_an_episode_too_short_is_named():
    with pytest.raises(UserError, match="at least 3"):
        record_episode(small_model(), 2)


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("RATE", ["attention_map.png", "attention_layers.png", "memory_map.png"]),
        ("TrXL", ["attention_map.png", "attention_layers.png"]),
        ("DT", ["attention_map.png", "attention_layers.png"]),
    ],
)
def test_maps_match_the_model(mode, names, tmp_path):
    paths = draw_maps(small_model(mode), tmp_path, 2 * K)
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_gates_are_drawn_if_present(tmp_path):
    config = ModelOptions(model_mode="Mamba", d_model=8).agent_config(context_length=K, segments=2)
    paths = draw_maps(Agent(config, SPEC), tmp_path, 2 * K)
    assert [path.name for path in paths] == ["gates_map.png", "memory_map.png"]


def test_sliding_window_is_drawn_at_its_length(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(maps, "plot_attention", lambda segments, path, **rest: drawn.append(segments) or path)
    model = small_model("DT")
    draw_maps(model, tmp_path, 1000)
    for segments in drawn:
        assert [segment.layout.steps for segment in segments] == [model.memory.config.context_length]


def test_an_evaluation_is_drawn_with_and_without_memory(monkeypatch, tmp_path):
    def play(environment, evaluation, acting, twins=False):
        right = evaluation.agent.memory.has_memory and acting.transform_memory is None
        reward = np.array([1.0, float(right)])
        return {length: Episodes(reward, np.full(2, length - 1), reward) for length in evaluation.cases}

    drawn = {}
    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    monkeypatch.setattr(pictures, "draw_maps", lambda *arguments, **rest: [])
    monkeypatch.setattr(plots, "plot_success_by_length", lambda lines, path, **rest: drawn.update(lines) or path)
    evaluation = Evaluation(ENVIRONMENT, small_model("TrXL"), Maze(), (1.0,), cases=(9, 90), episodes=2)
    assert ENVIRONMENT.draw(tmp_path, evaluation) == [tmp_path / "knock_out.png"]
    assert drawn == {"memory intact": {9: 1.0, 90: 1.0}, "memory knocked out": {9: 0.5, 90: 0.5}}
    of_another_agent = replace(evaluation, agent=small_model("DT")).success_rates()
    assert of_another_agent == {"no memory": {9: 0.5, 90: 0.5}}


def test_a_run_gets_its_pictures(tmp_path):
    result = {"Success_rate": 1.0, "Success_rate_T_9": 1.0, "Success_rate_T_90": 0.5, "Success_rate_S_3": 0.5}
    assert rates_by_case(result, "Success_rate_T_{}") == {9: 1.0, 90: 0.5}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 0.5, "train_accuracy": 0.1}\n')
    config = Config(data=DataOptions(context_length=K, min_n_final=1, max_n_final=1))
    ENVIRONMENT.draw_run(tmp_path, small_model("TrXL"), config, result)
    paths = [*(tmp_path / "plots").iterdir()]
    assert {path.name for path in paths} == {
        "curves.png", "success_by_length.png", "attention_map.png", "attention_layers.png",
    }  # fmt: skip
    assert all(path.stat().st_size > 1000 for path in paths)
