"""How fast memory tokens learn to bind names to bits, with every memory retention valve.

    python benchmarks/valve.py
    python benchmarks/valve.py --mrv none FSQ --names 16 --limit 180 --seeds 1 2 3

n names are shown, each with a bit, then 20 steps of noise, then the names again in another order; the bits are asked
for. A RATE of 2 layers and width 64 reads it in 4 segments, with as many memory tokens as names, at least 8. It is
trained until 99 % of the answers are right, averaged over some ten batches, or the limit is reached. Times are of the
processor.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    import RATE_model.system.script  # noqa: F401  a signal ends it at once while the imports below take their seconds

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import exit_on_user_error, parse_options, to_flat_dict
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import VALVES, RATEConfig
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.atomic import atomic_write_json

NOISE, SEGMENTS, BATCH = 20, 4, 64
SOLVED = 0.99  # of the answers, averaged over the last ten batches or so


@dataclass(frozen=True)
class Options:
    """What is compared."""

    # Valves, as --mrv names them
    mrv: tuple[str, ...] = VALVES
    # n: names, each with a bit
    names: int = 8
    # Seeds of weights and of data
    seeds: tuple[int, ...] = (1,)
    # Seconds of processor time after which a run is given up
    limit: float = 60.0
    # Write the figures to this JSON file
    output: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        for valve in self.mrv:
            if valve not in VALVES:
                raise UserError(f"--mrv {valve}: choose among {', '.join(VALVES)}")
        at_least(2, names=self.names)
        at_least(0, limit=self.limit)
        common.check_output(self.output)

    @property
    def steps(self) -> int:
        """Of an episode."""
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
    """Observations `(B, T, n + 3)`: name, bit, whether it is asked for, noise; and the answers `(B, n)` at the end."""
    bits = torch.randint(0, 2, (BATCH, names), generator=generator)
    shown, asked = (torch.rand(BATCH, names, generator=generator).argsort(dim=1) for _ in range(2))
    observations = torch.zeros(BATCH, 2 * names + NOISE, names + 3)
    observations[:, :names, :names] = F.one_hot(shown, names).float()
    observations[:, :names, names] = 2.0 * bits.gather(1, shown) - 1
    observations[:, -names:, :names] = F.one_hot(asked, names).float()
    observations[:, -names:, names + 1] = 1
    observations[..., names + 2] = torch.randint(-1, 2, observations.shape[:2], generator=generator).float()
    return observations, bits.gather(1, asked)


def train(options: Options, valve: str, seed: int) -> dict[str, Any]:
    """Batches and seconds until it is solved, or None; and the share of right answers at the end."""
    agent, generator = options.agent(valve, seed).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(agent.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    valid, rtg = torch.ones(BATCH, options.steps, dtype=torch.bool), torch.zeros(BATCH, options.steps)
    start, batches, right, seconds = time.process_time(), 0, 0.5, 0.0
    while right < SOLVED and seconds < options.limit:
        observations, answers = episodes(options.names, generator)
        actions = torch.randint(0, 2, valid.shape, generator=generator)  # they tell nothing
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
        runs = []
        for valve in options.mrv:
            for seed in options.seeds:
                runs.append(train(options, valve, seed))
                print(f"  {runs[-1]}", flush=True)
        rows = [
            [
                run["mrv"],
                str(run["seed"]),
                f"{run['right']:.3f}",
                str(run["batches"]),
                f"{run['seconds']:.0f}" + ("" if run["solved"] else ", given up"),
            ]
            for run in runs
        ]
        print(common.table(["--mrv", "seed", "right", "batches", "processor seconds"], rows))
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
