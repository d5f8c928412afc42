"""How fast memory tokens learn to bind names to bits, with every memory retention valve.

    python benchmarks/valve.py
    python benchmarks/valve.py --mrv none FSQ --names 16 --limit 180 --seeds 1 2 3
    python benchmarks/valve.py --runs TMaze_new/TMaze_new_checkpoints/ckpt/RUN

n names are shown, each with a bit, then 20 steps of noise, then the names again in another order, and the agent answers
with the bits. RATE with 2 layers and width 64 reads an episode in 4 segments, with as many memory tokens as names, at
least 8. It is trained until 99 % of the answers are right, averaged over about ten batches, or until the limit of
processor time. For the untrained agent, the table shows along how many dimensions memories of different episodes
differ, and which share of this is specific to single tokens, after the first segment and after the last but one.

With `--runs` nothing is trained: the memory of trained agents is recorded in a T-Maze of a thousand segments. There is
no information after the first step, so the memory should not change.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from RATE_model.acting.actor import Actor
from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import check_choice, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.errors import UserError
from RATE_model.loading import load_agent
from RATE_model.memories.rate.config import VALVES, RATEConfig
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.atomic import atomic_write_json
from TMaze_new.TMaze_new_src.env import SPEC, TMazeVectorEnv

NOISE, SEGMENTS, BATCH = 20, 4, 64
SOLVED = 0.99  # share of right answers, averaged over about the last ten batches
# Segments after which a run's memory is measured; the segment after which noise of this relative size is added to it.
WATCHED, PUSHED, PUSH = (1, 2, 9, 10, 12, 30, 90, 300, 900), 9, 0.1


@dataclass(frozen=True)
class Options:
    """What to compare."""

    # Valves, as --mrv names them
    mrv: tuple[str, ...] = VALVES
    # n: names, each with a bit
    names: int = 8
    # Seeds of weights and of data
    seeds: tuple[int, ...] = (1,)
    # Limit on processor seconds of a run
    limit: float = 60.0
    # Instead: record the memory of these T-Maze runs
    runs: tuple[Path, ...] = ()
    # Segments and episodes to record
    segments: int = 900
    episodes: int = 32
    # Write the figures to this JSON file
    output: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        for valve in self.mrv:
            check_choice(VALVES, mrv=valve)
        at_least(2, names=self.names)
        at_least(0, limit=self.limit)
        at_least(PUSHED + 1, segments=self.segments)
        at_least(2, episodes=self.episodes)
        common.check_output(self.output)

    @property
    def steps(self) -> int:
        """Steps of an episode."""
        return 2 * self.names + NOISE

    def agent(self, valve: str, seed: int) -> Agent:
        """A fresh one."""
        torch.manual_seed(seed)
        sizes = RATEConfig(
            d_model=64,
            context_length=-(-self.steps // SEGMENTS),
            conditioned=False,
            n_layer=2,
            n_head=2,
            d_head=32,
            d_inner=64,
            num_mem_tokens=max(8, self.names),
            n_head_ca=4,
            mrv=valve,  # type: ignore[arg-type]
            skip_dec_ffn=True,
        )
        return Agent(AgentConfig("RATE", sizes), EnvironmentSpec(observation_shape=(self.names + 3,), num_actions=2))


def episodes(names: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Observations `(B, T, n + 3)`: name, bit, query flag, noise; and the answers `(B, n)` at the end."""
    bits = torch.randint(0, 2, (BATCH, names), generator=generator)
    shown, asked = (torch.rand(BATCH, names, generator=generator).argsort(dim=1) for _ in range(2))
    observations = torch.zeros(BATCH, 2 * names + NOISE, names + 3)
    observations[:, :names, :names] = F.one_hot(shown, names).float()
    observations[:, :names, names] = 2.0 * bits.gather(1, shown) - 1
    observations[:, -names:, :names] = F.one_hot(asked, names).float()
    observations[:, -names:, names + 1] = 1
    observations[..., names + 2] = torch.randint(-1, 2, observations.shape[:2], generator=generator).float()
    return observations, bits.gather(1, asked)


def dimensions(x: Tensor) -> float:
    """Effective number of dimensions of rows `(B, n)`: the participation ratio of their variances, at most B and n."""
    variances = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    return (variances.sum().square() / variances.square().sum()).item() if variances.any() else 0.0


@torch.no_grad()
def fresh(options: Options, valve: str, seed: int) -> dict[str, list[float]]:
    """An untrained agent's memory of 256 episodes, after the first segment and after the last but one.

    "dimensions": along which episodes differ; "own": the share of their variance that is not common to all tokens.
    """
    agent, generator = options.agent(valve, seed).eval(), torch.Generator().manual_seed(seed)
    observations = torch.cat([episodes(options.names, generator)[0] for _ in range(256 // BATCH)])
    nothing = torch.zeros(observations.shape[:2])
    states = agent.inspect(observations, nothing.long(), nothing)["states"]
    found: dict[str, list[float]] = {"dimensions": [], "own": []}
    for tokens in (states[1].slots, states[-2].slots):
        differing = tokens - tokens.mean(dim=0)
        own = differing - differing.mean(dim=1, keepdim=True)
        found["dimensions"].append(dimensions(tokens.flatten(1)))
        found["own"].append((own.square().sum() / differing.square().sum()).item())
    return found


class Watched:
    """Records memory tokens, `(B, n, d)`, after every segment, and perturbs those of the second half of rows once."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []

    def __call__(self, memory: Any, initial: Any) -> Any:
        """See `MemoryTransform`."""
        tokens = memory.tokens.clone()
        if len(self.tokens) + 1 == PUSHED:
            half = len(tokens) // 2
            noise = torch.randn(half, *tokens.shape[1:], generator=torch.Generator().manual_seed(0))
            tokens[half:] += PUSH * tokens.square().mean().sqrt() * noise
        self.tokens.append(tokens)
        return replace(memory, tokens=tokens)


def watch(path: Path, options: Options) -> list[list[str]]:
    """Table rows about the memory of a run after some segments.

    Every episode is played twice, with the same hint and the same noise; one memory is perturbed after segment
    `PUSHED`. Raises a UserError for other kinds of runs.
    """
    agent, watched = load_agent(path), Watched()
    if (
        agent.spec.observation_shape != SPEC.observation_shape
        or getattr(agent.memory.initial(1), "tokens", None) is None
    ):
        raise UserError(f"--runs {path}: give runs of T-Maze with memory tokens")
    steps = agent.memory.segment * (options.segments + 1)
    env = TMazeVectorEnv(2 * options.episodes, steps + 1)
    goals = np.tile(np.resize([1, -1], options.episodes), 2)
    observations, _ = env.reset(seed=np.tile(np.arange(options.episodes), 2), options={"goal": goals})
    actor = Actor(agent, 2 * options.episodes, 1.0, transform_memory=watched)
    for _ in range(steps):
        observations, rewards, *_ = env.step(actor.act(observations))
    up = torch.from_numpy(goals[: options.episodes] == 1)
    known = options.episodes
    code = None
    rows = []
    for segment in [s for s in WATCHED if s <= options.segments]:
        now, before, pushed = (
            watched.tokens[segment - 1][:known].flatten(1),
            watched.tokens[max(segment - 2, 0)][:known].flatten(1),
            watched.tokens[segment - 1][known:].flatten(1),
        )
        apart = now[up].mean(dim=0) - now[~up].mean(dim=0)
        within = torch.cat([part - part.mean(dim=0) for part in (now[up], now[~up])]).norm(dim=1).mean()
        code = apart if code is None else code
        pushed_by = (watched.tokens[PUSHED - 1][known:] - watched.tokens[PUSHED - 1][:known]).norm()
        rows.append(
            [
                str(segment),
                f"{now.square().mean().sqrt():.3f}",
                f"{sum(map(dimensions, watched.tokens[segment - 1][:known])) / known:.2f}",
                f"{(now - before).norm() / now.norm():.1e}" if segment > 1 else "",
                f"{apart.norm() / now.norm(dim=1).mean():.3f}",
                f"{within / now.norm(dim=1).mean():.1e}",
                f"{F.cosine_similarity(apart, code, dim=0):.3f}",
                f"{(pushed - now).norm() / pushed_by:.1e}" if segment >= PUSHED else "",
            ]
        )
    return rows


def train(options: Options, valve: str, seed: int) -> dict[str, Any]:
    """Batches and seconds until the task is solved, or None, and the final share of right answers."""
    agent, generator = options.agent(valve, seed).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(agent.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    valid, rtg = torch.ones(BATCH, options.steps, dtype=torch.bool), torch.zeros(BATCH, options.steps)
    start, batches, right, seconds = time.process_time(), 0, 0.5, 0.0
    while right < SOLVED and seconds < options.limit:
        observations, answers = episodes(options.names, generator)
        actions = torch.randint(0, 2, valid.shape, generator=generator)  # uninformative
        logits = agent(observations, actions, rtg, valid)[0][:, -options.names :]
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (batches + 1) / 50)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
        optimizer.step()
        right += 0.1 * ((logits.argmax(-1) == answers).float().mean().item() - right)
        batches, seconds = batches + 1, time.process_time() - start
    solved = right >= SOLVED
    return {"mrv": valve, "seed": seed, "solved": solved, "batches": batches, "seconds": seconds, "right": right}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/valve.py", description="Binding names to bits, by valve."
        )
        common.set_threads(1)
        if options.runs:
            header = ["segment", "size", "rank", "moved by the last segment", "hints apart", "spread of a hint"]
            for path in options.runs:
                rows = watch(path, options)
                print(f"{path}\n\n{common.table([*header, 'along the first code', 'left of a push'], rows)}\n")
            return
        runs = []
        for valve in options.mrv:
            for seed in options.seeds:
                runs.append({**train(options, valve, seed), "fresh": fresh(options, valve, seed)})
                print(f"  {runs[-1]}", flush=True)
        rows = [
            [
                run["mrv"],
                str(run["seed"]),
                *(", ".join(f"{number:.2g}" for number in run["fresh"][name]) for name in ("dimensions", "own")),
                f"{run['right']:.3f}",
                str(run["batches"]),
                f"{run['seconds']:.0f}" + ("" if run["solved"] else ", given up"),
            ]
            for run in runs
        ]
        print(
            common.table(
                ["--mrv", "seed", "dimensions before", "own share before", "right", "batches", "processor seconds"],
                rows,
            )
        )
        result = {
            "benchmark": "valve",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            "runs": runs,
        }
        if options.output is not None:
            atomic_write_json(options.output, result)


if __name__ == "__main__":
    main()
