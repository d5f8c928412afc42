"""How long memories last: on hand-made memories, and on a small T-Maze run."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from RATE_model.acting.controls import exchange_twins
from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.evaluation import evaluation_of_run
from RATE_model.diagnose.retention import (
    MEASURES,
    Snapshots,
    borders,
    by_step,
    gradient,
    main,
    reason,
    resized,
    spread,
    twin_distance,
)
from RATE_model.errors import UserError
from RATE_model.memories import MEMORIES
from RATE_model.memories.recurrent import RecurrentConfig
from tests.small_models import VECTOR, small_model
from tests.tmaze_runs import MODES, only_run, train
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT, TMaze

ENV = ("--env", TMaze.__module__)


def test_distances_of_twins_are_relative():
    pairs = np.array([[3.0, 4.0], [3.0, -4.0], [30.0, 40.0], [30.0, -40.0]])
    assert twin_distance(pairs) == pytest.approx(8 / 5)
    assert twin_distance(np.zeros((2, 3))) == 0 and twin_distance(np.ones((2, 3))) == 0


def test_borders_are_spaced_by_ratio():
    memory = agent_of("LSTM", context_length=10).memory
    found = spread(borders(memory, 1, 9600))
    assert found[:3] == [10, 20, 30] and found[-1] == 9590 and len(found) < 29
    assert spread(borders(memory, 1, 10)) == [] and spread(borders(memory, 1, 11)) == [10]


@pytest.mark.parametrize("slide", [1, 5, 8, 12, 20])
def test_borders_are_those_of_acting(slide):
    """A window that slides passes memory on when it is full again, which may be later than K steps after the last."""
    agent, found = small_model("DTXL").eval(), []
    assert agent.memory.segment == 12

    def keep(memory, initial):
        found.append(step)
        return memory

    actor = agent.actor(1, target_return=1.0, slide=slide, transform_memory=keep)
    for step in range(60):  # noqa: B007  `keep` reads it
        actor.act(np.zeros((1, 4), dtype=np.float32))
    assert found == list(borders(agent.memory, slide, 60)) and len(found) > 2


def memories(step: int, pairs: int = 10) -> np.ndarray:
    """The hint is the sign of the first number until step 20, then of a number that moves away, then of none."""
    noise = 0.01 * np.random.default_rng(step).normal(size=(2 * pairs, 4))
    sign = np.tile([1.0, -1.0], pairs)
    noise[:, 0] += sign if step <= 20 else 5 + sign if step <= 40 else 0
    return noise.astype(np.float32)


def test_probes_tell_lost_from_moved():
    found = {step: memories(step) for step in (10, 20, 30, 40, 50)}
    table = by_step(found, np.full(20, 60), trained=20)
    assert [each["step"] for each in table] == list(found) and all(each["pairs"] == 10 for each in table)
    assert [each["fitted_in_training"] for each in table] == pytest.approx([1, 1, 0.5, 0.5, 0.5], abs=0.2)
    assert [each["fitted_here"] for each in table[:4]] == [1] * 4 and table[4]["fitted_here"] < 0.8
    assert table[0]["distance"] == pytest.approx(2, abs=0.05) and table[3]["distance"] == pytest.approx(0.4, abs=0.05)


def test_only_pairs_that_both_run_are_compared():
    lengths = np.full(20, 60)
    lengths[[3, 18]] = 25
    table = by_step({step: memories(step) for step in (10, 20, 30)}, lengths, trained=20)
    assert [each["pairs"] for each in table] == [10, 10, 8]
    over = by_step({10: memories(10)}, np.full(20, 10), trained=20)
    assert over == [] == by_step({}, lengths, trained=20)


def test_a_memory_that_went_on_after_its_episode_teaches_no_probe():
    """Rows whose episode is over keep changing: here they say the opposite."""
    found, lengths = {step: memories(step) for step in (10, 20)}, np.full(20, 60)
    lengths[:8] = 15
    found[20][:8] *= -10
    table = by_step(found, lengths, trained=20)
    assert [each["fitted_in_training"] for each in table] == [1, 1]
    found[20][:8] = np.nan
    assert by_step(found, lengths, trained=20) == table


def test_numbers_that_are_not_finite_are_not_compared():
    found = {step: memories(step) for step in (10, 20, 30)}
    found[30][3, 1] = np.inf
    table = by_step(found, np.full(20, 60), trained=20)
    assert [each["distance"] is None for each in table] == [False, False, True]


@pytest.mark.parametrize(
    ("outcomes", "fitted", "expected"),
    [
        ([1, 1], [1, 1], "right"),
        ([0.5, 0.5], [1, 1], "not learned"),
        ([1, 0.5], [1, 1], "misread"),
        ([1, 0.5], [0.5, 1], "moved"),
        ([1, 0.5], [0.5, 0.5], "gone"),
        ([1, 0.5], None, "no memory"),
        ([1, 0.5], [None, None], "overflow"),
    ],
)
def test_reasons(outcomes, fitted, expected):
    found = {
        "measure": "success",
        "trained_case": 9,
        "by_case": [
            {"case": case, "steps": case, "outcome": rate} for case, rate in zip((9, 90), outcomes, strict=True)
        ],
        "by_step": []
        if fitted is None
        else [{"step": 80, "pairs": 16} | dict(zip(MEASURES, (fitted[0], *fitted), strict=True))],
    }
    assert reason(found) == expected
    if expected in ("misread", "moved", "gone"):
        found["by_step"][0]["pairs"] = 8
        assert reason(found) == "unclear", "8 rows are guessed right too often"


def agent_of(memory: str, **changes: Any) -> Agent:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 8, "context_length": 5} | changes
    config = RecurrentConfig(**sizes, hidden=6) if memory == "LSTM" else MEMORIES[memory].config(**sizes)
    return Agent(AgentConfig(memory, config), VECTOR).eval()


def test_gradient_equals_differences(monkeypatch):
    agent, steps = agent_of("LSTM"), 7
    observations, actions, rtg = torch.randn(steps, 4), torch.randint(4, (steps,)), torch.ones(steps)
    found = gradient(agent, observations, actions, rtg)
    shown = agent.latents(observations[None]).detach()

    def decision(direction: int, size: float) -> torch.Tensor:
        changed = shown.clone()
        changed[0, 0, direction] += size
        monkeypatch.setattr(type(agent.encoder), "encode_observations", lambda *_: changed)
        with torch.no_grad():
            logits = agent(observations[None], actions[None], rtg[None], torch.ones(1, steps, dtype=torch.bool))[0]
        return logits[0, -1] - logits[0, -1].mean()

    slopes = [(decision(place, 0.01) - decision(place, -0.01)) / 0.02 for place in range(8)]
    assert found == pytest.approx(float(torch.stack(slopes).norm()), rel=0.01) and found > 1e-4


def test_gradient_without_memory_is_zero():
    agent = agent_of("MLP")
    found = [gradient(agent, torch.randn(n, 4), torch.zeros(n, dtype=torch.int64), torch.ones(n)) for n in (1, 3)]
    assert found[0] > 0 and found[1] == 0


def test_a_memory_acts_with_more_room():
    agent = agent_of("HCAM", heads=2, chunks=4)
    larger = resized(agent, {"chunks": 20})
    assert larger.memory.largest_state().numbers_per_row() > 2 * agent.memory.largest_state().numbers_per_row()
    assert all(map(torch.equal, agent.state_dict().values(), larger.state_dict().values())) and not larger.training
    with pytest.raises(UserError, match="--sizes slots=4: ELMUR has weights that depend on this"):
        resized(agent_of("ELMUR", heads=2), {"slots": 4})
    with pytest.raises(UserError, match="--sizes nothing: HCAM has the sizes d_model, .*chunks"):
        resized(agent, {"nothing": 4})


def test_snapshots_keep_the_memory_at_borders():
    memory = agent_of("LSTM").memory
    snapshots, state = Snapshots(memory, [5, 10, 15], [10]), memory.initial(2)
    assert all(snapshots(state, state) is state for _ in range(3))
    assert list(snapshots.found) == [10] and snapshots.found[10].shape == (2, 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retention")
    assert train(folder, *MODES["RATE"]) == 0
    return only_run(folder)


def test_a_run_is_examined(run, capsys):
    main([str(run), *ENV, "--pairs", "8", "--gradient_steps", "9", "--cases", "9", "13"])
    found = json.loads((run / "eval" / "retention.json").read_text())
    assert [each["case"] for each in found["by_case"]] == [9, 13] and found["trained_steps"] == 12
    assert ["gradient" in each for each in found["by_case"]] == [True, False]
    assert [each["step"] for each in found["by_step"]] == [6, 12]
    assert all(each["distance"] > 0 and each["pairs"] == 8 for each in found["by_step"])
    assert (run / "plots" / "retention.png").stat().st_size > 1000
    assert "memories of twins" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pairs", "3"], "--pairs 3: must be at least 4"),
        (["--sizes", "chunks"], "--sizes chunks: write NAME=VALUE"),
        ([], "T-Maze has no twins in this task"),
    ],
)
def test_what_cannot_be_examined_is_reported(run, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(TMaze, "twins", None)
    with pytest.raises(SystemExit, match="^2$"):
        main([str(run), *ENV, *flags])
    assert message in capsys.readouterr().err


def test_an_impossible_case_is_refused_by_its_flag(run, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        main([str(run), *ENV, "--cases", "9", "1"])
    assert "--cases 1: T-Maze: corridor_length is -1; it must be at least 1" in capsys.readouterr().err


def test_pairs_are_played_side_by_side(run, capsys, monkeypatch):
    """Otherwise snapshots would hold the memories of the first rows only."""
    monkeypatch.setattr(TMaze, "max_environments", 14)
    with pytest.raises(SystemExit, match="^2$"):
        main([str(run), *ENV, "--pairs", "8", "--cases", "9"])
    assert "--pairs 8: T-Maze plays 7 pairs at a time" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [1, 5])
def test_twins_stay_together_in_odd_groups(run, monkeypatch, limit):
    """Memories are exchanged between neighbouring rows that act at once."""
    monkeypatch.setattr(TMaze, "max_environments", limit)
    evaluation = evaluation_of_run(ENVIRONMENT, run, cases=(9,), episodes=4)
    (played,) = evaluation.play_with(exchange_twins(), twins=True).values()
    assert len(played[9].returns) == 8
