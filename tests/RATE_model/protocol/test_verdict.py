"""The verdict on scripted agents with known properties, in T-Maze."""

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import BatchActor, rollout
from RATE_model.agent import Agent, AgentConfig
from RATE_model.memories.contract import State
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.protocol.examination import TaskCase, document, examine
from RATE_model.protocol.verdict import INTACT, KNOCKED_OUT, TWINS, AgentFacts, Case, judge
from TMaze_new.TMaze_new_src.env import DOWN, RIGHT, SPEC, UP, TMazeVectorEnv

K, EPISODES = 10, 100
LENGTHS = (6, 31, 96)
FACTS = AgentFacts(context=K, reach=None, segment=K)


class LeakyMazes(TMazeVectorEnv):
    """T-Maze with a mistake: the noise of every observation is the goal."""

    def _observe(self):
        observations = super()._observe()
        observations[:, 3] = self._goal
        return observations


@dataclass(frozen=True)
class Hint(State):
    """The memory of a scripted agent: the hint, (B, 1), or 0 before it is seen."""

    hint: torch.Tensor


class Scripted(BatchActor):
    """Walks right, and turns at the junction as remembered, or up without memory.

    Its memory is passed on every K steps. Properties: `remembers` (the share of rows in which it looks at its memory),
    `peeks` (at the noise), `window` (it sees the last K observations and remembers nothing else).
    """

    def __init__(self, rows, transform, *, remembers=1.0, peeks=False, window=False, seed=0):
        self.memory, self.transform, self.steps = Hint(torch.zeros(rows, 1)), transform, 0
        rng = np.random.default_rng(seed)
        self.looks, self.guesses = rng.random(rows) < remembers, rng.choice([-1, 1], rows)
        self.peeks, self.window, self.seen = peeks, window, []

    def act(self, observations, rewards):
        if self.steps and self.steps % K == 0 and self.transform is not None:
            self.memory = self.transform(self.memory, Hint(torch.zeros_like(self.memory.hint)))
        self.steps += 1
        hint, flag, noise = torch.as_tensor(observations[:, 1:]).T
        self.memory = Hint(torch.where(hint != 0, hint, self.memory.hint[:, 0])[:, None])
        self.seen = [*self.seen, hint.numpy()][-K:]
        known = sum(self.seen) if self.window else self.memory.hint[:, 0].numpy()
        known = noise.numpy() if self.peeks else np.where(self.looks, known, self.guesses)
        return np.where(flag.numpy() == 1, np.where(known >= 0, UP, DOWN), RIGHT)

    def keep(self, rows):
        raise AssertionError("no row is dropped")


@dataclass
class ScriptedPlayer:
    """A scripted agent in T-Maze."""

    seed: int
    properties: dict
    mazes: type[TMazeVectorEnv] = TMazeVectorEnv

    lengths: tuple[int, ...] = LENGTHS

    def play(self, transform):
        return [self.played(length, transform) for length in self.lengths]

    def played(self, length, transform):
        mazes = self.mazes(EPISODES, length - 2, max_steps=length)
        actor = Scripted(EPISODES, transform, seed=self.seed, **self.properties)
        goals, seeds = np.tile([1, -1], EPISODES // 2), np.repeat(np.arange(EPISODES // 2), 2)
        played = rollout(actor, mazes, seeds=seeds, max_steps=length, options={"goal": goals}, compact=False)
        return played.last_rewards


TASK_CASES = [TaskCase(str(length), (length - 1, length - 1), 0.5) for length in LENGTHS]


def verdict(*, facts=FACTS, seeds=3, has_memory=True, mazes=TMazeVectorEnv, memory_free=(), **properties):
    players = [ScriptedPlayer(seed, properties, mazes) for seed in range(seeds)]
    cases = examine(players, facts, TASK_CASES, has_memory=has_memory, twins=True, memory_free=memory_free)
    return judge(facts, cases), cases


def test_agent_that_remembers():
    result, cases = verdict()
    assert (result.label, result.horizon) == ("long-term", 95)
    assert result.sentence == (
        "remembers over xi = 95 (lower bound .99 > .50), long-term, depends on its memory (knocked out .50)"
    )
    exchanged = cases[-1].outcomes[TWINS]
    assert exchanged.mean() == pytest.approx(0.5, abs=0.1)
    assert len({row.tobytes() for row in exchanged}) == 3  # every seed draws its own exchanges
    assert result.missing == ("the memory-free control (--control with a run of --model_mode MLP or BC-MLP)",)


def test_agent_that_uses_only_its_window():
    result, _ = verdict(facts=replace(FACTS, reach=K), has_memory=False, window=True)
    assert (result.label, result.horizon) == ("short-term", 5)
    assert "short-term: within its context K = 10" in result.sentence


def test_agent_that_guesses():
    result, _ = verdict(remembers=0.0)
    assert (result.label, result.horizon) == ("nothing", None)


def test_agent_that_uses_a_leak():
    result, _ = verdict(peeks=True, mazes=LeakyMazes)
    assert result.label == "leak" and "its memory: knocked out 1.00, so the environment leaks" in result.sentence


def test_agent_without_memory_that_uses_a_leak():
    result, _ = verdict(facts=replace(FACTS, reach=K), has_memory=False, peeks=True, mazes=LeakyMazes)
    assert result.label == "leak" and "only the last 10 steps can influence it" in result.sentence


def test_a_leak_that_only_the_memory_free_control_shows():
    """The agent depends on its memory, but the task can be solved without any."""
    free = [ScriptedPlayer(seed, {"peeks": True}, LeakyMazes) for seed in range(3)]
    result, _ = verdict(mazes=LeakyMazes, memory_free=free)
    assert result.label == "leak" and "memory-free control 1.00" in result.sentence and not result.missing


def test_agent_that_remembers_half_of_the_time():
    result, _ = verdict(remembers=0.5)
    share = re.search(r", in (\d+)% of episodes, long-term, depends on its memory", result.sentence)
    assert result.label == "long-term" and 35 <= int(share[1]) <= 65


def test_untrained_agent():
    """A randomly initialised model."""
    torch.manual_seed(0)
    sizes = RATEConfig(d_model=16, n_layer=1, n_head=1, d_head=8, d_inner=16, context_length=K)
    agent = Agent(AgentConfig("RATE", sizes), SPEC).eval()

    @dataclass
    class Untrained(ScriptedPlayer):
        def played(self, length, transform):
            mazes = TMazeVectorEnv(EPISODES, length - 2, max_steps=length)
            actor = Actor(agent, EPISODES, 1.0, transform_memory=transform)
            return rollout(actor, mazes, seeds=np.arange(EPISODES), max_steps=length, compact=False).last_rewards

    cases = examine([Untrained(0, {}, lengths=LENGTHS[:2])], FACTS, TASK_CASES[:2])
    assert judge(FACTS, cases).label == "nothing"


def test_agent_with_knocked_out_memory():
    """The intact agent is one with its memory knocked out."""
    _, cases = verdict()
    knocked = [replace(case, outcomes={c: case.outcomes[KNOCKED_OUT] for c in case.outcomes}) for case in cases]
    assert judge(FACTS, knocked).label == "short-term"
    assert judge(FACTS, knocked[1:]).label == "nothing"


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_are_never_long_term(seeds):
    result, _ = verdict(seeds=seeds)
    assert result.label == "unproved" and result.missing[0] == f"3 seeds of 100 episodes each (got {seeds} of 100)"


def test_the_mixed_regime_is_never_long_term():
    _, cases = verdict()
    mixed = [replace(case, horizons=(2, 95)) for case in cases[1:]]
    result = judge(FACTS, mixed)
    assert result.label == "unproved" and result.missing[-1] == "a context K of at most 1 (now 10)"
    assert "mixed regime (K = 10, xi = 2 to 95)" in result.sentence and "knocked out .50" in result.sentence


def test_a_segment_longer_than_the_horizon_proves_nothing():
    """An agent of context 1 whose memory can only be knocked out every hundred steps."""
    outcomes = {INTACT: np.ones((3, 100)), KNOCKED_OUT: np.ones((3, 100))}
    case = Case("9", (8, 8), 0.5, outcomes)
    result = judge(AgentFacts(context=1, reach=None, segment=100), [case])
    assert result.label == "unproved" and result.missing[-1] == "a case with xi > 100"


def test_knock_out_to_chance_is_not_a_leak():
    """.60 with memory, .52 without: too few episodes to separate them, but no evidence of a leak."""
    outcomes = {INTACT: np.tile([1] * 6 + [0] * 4, (3, 10)), KNOCKED_OUT: np.tile([1] * 13 + [0] * 12, (3, 4))}
    result = judge(FACTS, [Case("97", (96, 96), 0.5, outcomes)])
    assert result.label == "unproved" and result.missing[-1] == "more episodes"
    assert "knocked out .52 (.46 to .58), neither clearly above chance" in result.sentence


def test_guesser_fails_with_many_cases():
    """11 cases of 300 fair coins, 300 times: fewer than 5 % of the guessers may look better than chance."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        cases = [Case(str(n), (n, n), 0.5, {INTACT: rng.integers(2, size=(3, 100))}) for n in range(20, 31)]
        wrong += judge(FACTS, cases).label != "nothing"
    assert wrong <= 15


def test_a_part_that_matters_is_named():
    right, guess = np.ones((3, 100)), np.tile([0, 1], (3, 50))
    outcomes = {INTACT: right, KNOCKED_OUT: guess, "without tokens": guess, "without cache": right}
    facts = replace(FACTS, parts=("tokens", "cache"))
    sentence = judge(facts, [Case("9600", (9599, 9599), 0.5, outcomes)]).sentence
    assert sentence.endswith("long-term, depends on its tokens (knocked out .50)")


def returns(condition: str, mean: float) -> np.ndarray:
    """3 seeds of 100 episodes."""
    return mean + np.random.default_rng(len(condition)).normal(size=(3, 100))


def judged(*, horizons=(), chance=2.0, context=1, seeds=3, **means):
    """The verdict on returns, by condition; _ in names of conditions stands for a space."""
    outcomes = {name.replace("_", " "): returns(name, mean)[:seeds] for name, mean in means.items()}
    case = Case("ViZDoom", horizons, chance, outcomes, "return")
    return judge(AgentFacts(context, None, 30, ("tokens", "cache")), [case])


def test_returns_without_horizons_say_what_they_can():
    result = judged(intact=20.0, knocked_out=11.0, without_tokens=12.0, without_cache=20.1)
    assert result.label == "unproved" and result.horizon is None
    assert re.match(
        r"return 20.\d \(.*, a random player 2.00, depends on its tokens \(knocked out 1\d", result.sentence
    )
    assert result.sentence.endswith("declares no correlation horizon, so this says nothing about how long it remembers")
    assert result.missing[-1] == "correlation horizons (the task declares none)"
    unknown = judged(chance=None, intact=20.0, knocked_out=20.0).sentence
    assert "random" not in unknown and "not shown to depend on its memory" in unknown


def test_returns_that_a_random_player_has():
    result = judged(chance=20.0, horizons=(2, 2056), intact=20.0, knocked_out=11.0)
    assert result.label == "nothing" and "not shown to be better than random" in result.sentence


def test_returns_in_each_regime():
    """Beating a random player proves nothing; the knock-out and a control without memory do."""
    means = {"horizons": (2, 2056), "intact": 20.0, "knocked_out": 11.0}
    proved = judged(**means)
    assert (proved.label, proved.horizon) == ("long-term", 2)
    assert (
        proved.sentence.startswith("remembers over xi = 2 or more, long-term: return 20") and len(proved.missing) == 1
    )
    free = {"memory-free_control": 20.5}
    assert (
        judged(**means, **free).label == "unproved"
        and judged(**means, **{"memory-free_control": 11.0}).label == "long-term"
    )
    assert judged(**means | {"knocked_out": 20.0}).label == "unproved"
    assert judged(**means, seeds=2).label == "unproved"
    mixed = judged(**means, context=30)
    assert mixed.label == "unproved" and mixed.missing[-1] == "a context K of at most 1 (now 30)"
    assert "in the mixed regime (K = 30, xi = 2 to 2056)" in mixed.sentence
    short = judged(**means, context=3000)
    assert short.label == "unproved" and "lie within its context K = 3000" in short.sentence


def test_the_document_holds_rates_intervals_and_seeds():
    _, cases = verdict()
    entry = document(FACTS, cases)[-1]
    assert entry["regime"] == "long-term only" and entry["horizons"] == [95, 95]
    assert entry["outcome"] == "success" and entry["conditions"]["intact"]["success"] == 1
    assert entry["conditions"]["intact"]["seeds"] == [1, 1, 1] and entry["conditions"]["intact"]["interval"][0] > 0.98
