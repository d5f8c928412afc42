"""Time of training and acting with every memory, and the overhead compared with a bare PyTorch loop.

    python benchmarks/memories.py
    python benchmarks/memories.py --modes LSTM DLSTM --rounds 3 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import common
from benchmarks.rollout import FAST, Episodes
from RATE_model.acting.actor import Actor
from RATE_model.agent import Agent
from RATE_model.cli.options import (
    Boolean,
    check_choice,
    exit_on_user_error,
    load_yaml,
    parse_options,
    to_flat_dict,
    updated,
)
from RATE_model.cli.settings import ModelOptions, TrainOptions, at_least
from RATE_model.data.batch import Batch
from RATE_model.memories import MODES
from RATE_model.memories.contract import Memory, Steps
from RATE_model.memories.stack import Stack
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from TMaze_new.TMaze_new_src.env import SPEC

# The first mode of every memory in the table.
FIRST_MODES = tuple({mode.memory: name for name, mode in reversed(MODES.items())}.values())[::-1]

# Largest difference of losses that counts as equal, in nats.
ALLOWED_LOSS = 1e-5
# Largest difference of hidden states (of size about 1) between one call and one call per step.
ALLOWED_HIDDEN = 2e-5  # on an AMD EPYC the mLSTM rounds to 1e-5


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Modes to measure, as --model_mode names them
    modes: tuple[str, ...] = FIRST_MODES
    # Width; all other sizes are those of T-Maze's config_fast.yaml
    d_model: int = 64
    # Steps of a segment (K), segments of a trajectory (N), trajectories of a batch
    context_length: int = 10
    segments: int = 9
    batch_size: int = 64
    # Parallel episodes when acting
    episodes: int = 100
    # Steps after which acting is timed, early and late in an episode
    early: int = 10
    late: int = 10_000
    # Timed rounds; each trains on one batch and acts for one segment
    rounds: int = 20
    # Recurrent memories: steps and trajectories of one call, compared with one call per step, and rounds of that; 0 =
    # skip
    loop_steps: int = 512
    loop_batch: int = 32
    loop_rounds: int = 3
    # Threads of torch for that comparison, in wall-clock time; 0 = as for everything else
    loop_threads: int = 2
    # Threads of torch for everything else; 0 = torch's default
    threads: int = 1
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        for mode in self.modes:
            check_choice(list(MODES), modes=mode)
        at_least(1, d_model=self.d_model, context_length=self.context_length, segments=self.segments)
        at_least(1, batch_size=self.batch_size, episodes=self.episodes, rounds=self.rounds)
        at_least(1, loop_steps=self.loop_steps, loop_batch=self.loop_batch)
        at_least(0, early=self.early, late=self.late, threads=self.threads)
        at_least(0, loop_rounds=self.loop_rounds, loop_threads=self.loop_threads)
        common.check_output(self.output)

    def agent(self, mode: str) -> Agent:
        """A new agent of a mode, with the same weights every time."""
        sizes = {**load_yaml(FAST), "model_mode": mode, "d_model": self.d_model, "dropout": 0.0}
        model = updated(ModelOptions(), sizes)
        torch.manual_seed(0)
        return Agent(model.agent_config(context_length=self.context_length, segments=self.segments), SPEC)


class BareNetwork(nn.Module):
    """The same network in plain PyTorch for this task only, with an agent's weights.

    Sub-modules are in the order of the agent's parameters.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        d = agent.config.sizes.d_model
        self.observation = nn.Linear(*SPEC.observation_shape, d)
        self.action = nn.Embedding(SPEC.action_embeddings, d) if agent.memory.sees_actions else None
        self.rtg = nn.Linear(1, d)
        self.build(agent.config.sizes)
        self.head = nn.Linear(d, SPEC.num_actions, bias=False)
        with torch.no_grad():
            for own, other in zip(self.parameters(), agent.parameters(), strict=True):
                own.copy_(other)

    def build(self, sizes: Any) -> None:
        """Create the layers between embeddings and head."""
        raise NotImplementedError

    def hidden(self, steps: Tensor) -> Tensor:
        """`(B, T, parts d)` embedded steps to `(B, T, d)` hidden states."""
        raise NotImplementedError

    def forward(self, observations: Tensor, actions: Tensor, rtg: Tensor) -> Tensor:
        """Whole trajectories to logits `(B, T, num_actions)`."""
        parts = [self.rtg(rtg.unsqueeze(-1)), self.observation(observations)]
        if self.action is not None:
            parts.insert(0, F.pad(torch.tanh(self.action(actions[:, :-1])), (0, 0, 1, 0)))
        return self.head(self.hidden(torch.cat(parts, dim=-1)))


class BareRecurrent(BareNetwork):
    """An LSTM or a GRU."""

    network: type[nn.LSTM] | type[nn.GRU]

    def build(self, sizes: Any) -> None:
        """A linear map of the joined parts, the cells, a linear map."""
        self.join = nn.Linear(3 * sizes.d_model, sizes.d_model)
        self.cells = self.network(sizes.d_model, sizes.hidden, sizes.layers, batch_first=True)
        self.output = nn.Linear(sizes.hidden, sizes.d_model)

    def hidden(self, steps: Tensor) -> Tensor:
        """See `BareNetwork`."""
        return self.output(self.cells(torch.relu(self.join(steps)))[0])


class BareLSTM(BareRecurrent):
    """`torch.nn.LSTM`."""

    network = nn.LSTM


class BareGRU(BareRecurrent):
    """`torch.nn.GRU`."""

    network = nn.GRU


class BareMLP(BareNetwork):
    """Linear maps and ReLUs."""

    def build(self, sizes: Any) -> None:
        """As many layers as the agent's."""
        widths = [2 * sizes.d_model] + [sizes.d_model] * sizes.layers
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))

    def hidden(self, steps: Tensor) -> Tensor:
        """See `BareNetwork`."""
        for layer in self.layers:
            steps = torch.relu(layer(steps))
        return steps


# By mode. Other memories are timed alone.
BARE: dict[str, type[BareNetwork]] = {"LSTM": BareLSTM, "GRU": BareGRU, "MLP": BareMLP}


class BareTraining:
    """A bare training loop: loss, gradient, clipping, AdamW."""

    def __init__(self, network: BareNetwork, options: TrainOptions) -> None:
        self.network, self.clip = network, options.grad_norm_clip
        betas = options.beta_1, options.beta_2
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=options.learning_rate, betas=betas, weight_decay=0.0, fused=True
        )

    def train_batch(self, batch: Batch) -> float:
        """One optimizer step; the loss."""
        logits = self.network(batch.observations, batch.actions, batch.rtg)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.actions.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class OurTraining:
    """Training as in the train scripts: gradients through the whole trajectory, one optimizer step per batch."""

    def __init__(self, agent: Agent, options: TrainOptions) -> None:
        self.trainer = Trainer(agent, options, Schedule(0, None, 0, 1.0))

    def train_batch(self, batch: Batch) -> float:
        """One optimizer step; the loss."""
        return self.trainer.train_batch(batch)["train_loss"].item()


def trainings(options: Options, mode: str) -> dict[str, OurTraining | BareTraining]:
    """Our training, and a bare loop with the same network if there is one."""
    train = TrainOptions(weight_decay=0.0)
    ours: dict[str, OurTraining | BareTraining] = {"ours": OurTraining(options.agent(mode), train)}
    return ours | ({"bare": BareTraining(BARE[mode](options.agent(mode)), train)} if mode in BARE else {})


def make_batch(options: Options) -> Batch:
    """Random trajectories without padding."""
    generator = torch.Generator().manual_seed(0)
    size = (options.batch_size, options.segments * options.context_length)
    observations = torch.randn(*size, *SPEC.observation_shape, generator=generator)
    actions = torch.randint(SPEC.num_actions, size, generator=generator)
    valid = torch.ones(size, dtype=torch.bool)
    rtg = torch.rand(size, generator=generator)
    return Batch(observations, actions, rtg, valid, valid.sum(1), torch.arange(options.batch_size))


def check_losses(options: Options, mode: str, batches: int = 3) -> float:
    """Train both on the same batches; the largest difference of the losses.

    Raises:
        RuntimeError: the losses differ.
    """
    batch = make_batch(options)
    ours, bare = trainings(options, mode).values()
    losses = [(ours.train_batch(batch), bare.train_batch(batch)) for _ in range(batches)]
    return common.check_agreement(f"losses ({mode})", max(abs(a - b) for a, b in losses), ALLOWED_LOSS)


def acting(options: Options, mode: str) -> dict[str, Callable[[], float]]:
    """Candidates for `interleave`: processor seconds per step, averaged over a segment, early and late in episodes."""
    agent, steps = options.agent(mode), options.context_length
    if agent.memory.keeps_data:  # it needs training data to act
        batch = make_batch(options)
        with torch.no_grad():
            agent.train()(batch.observations, batch.actions, batch.rtg, batch.valid)
        agent.memory.store_shown()
    agent.eval()

    def episodes() -> Episodes:
        return Episodes(Actor(agent, options.episodes, 1.0), steps, clock=time.process_time)

    early, late = episodes(), episodes()
    late.advance(options.late)
    plain = {}
    if isinstance(agent.memory, Stack):  # the default stepper instead of its own
        agent.memory.stepper = partial(Memory.stepper, agent.memory)  # type: ignore[method-assign]
        through_forward = episodes()
        plain = {"through_forward": lambda: through_forward.advance(steps)}

    def act_early() -> float:
        early.restart(options.early)
        return early.advance(steps)

    return {"early": act_early, "late": lambda: late.advance(steps), **plain}


def whole_and_loop(options: Options, mode: str) -> dict[str, Callable[[], float]]:
    """Candidates for `interleave`: seconds of a recurrent memory, forward and backward, in one call and in one call per
    step. Empty for memories that see several steps at once, see only the current step, or learn nothing.

    Raises:
        RuntimeError: the hidden states differ.
    """
    memory = options.agent(mode).memory
    learns = any(parameter.requires_grad for parameter in memory.parameters())
    if memory.context != 1 or not memory.has_memory or not learns or not options.loop_rounds:
        return {}
    torch.manual_seed(0)
    batch, length = options.loop_batch, options.loop_steps
    names = ("observations", "previous_actions", "rtg")
    steps = Steps(**{name: torch.randn(batch, length, options.d_model) for name in names})
    valid = torch.ones(batch, length, dtype=torch.bool)

    def whole() -> Tensor:
        return memory(steps, valid, memory.initial(batch))[0]

    def loop() -> Tensor:
        state, hidden = memory.initial(batch), []
        for step in range(length):
            one, state = memory(steps.cut(slice(step, step + 1)), valid[:, :1], state)
            hidden.append(one)
        return torch.cat(hidden, dim=1)

    def timed(run: Callable[[], Tensor]) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            run().square().mean().backward()
            return time.perf_counter() - start

        return seconds

    with torch.no_grad():
        common.check_agreement(f"hidden states ({mode})", (whole() - loop()).abs().max().item(), ALLOWED_HIDDEN)
    return {"whole": timed(whole), "loop": timed(loop)}


def processor_time(train_batch: Callable[[Batch], float], batch: Batch) -> Callable[[], float]:
    """A candidate for `interleave`: processor seconds of training on the batch."""

    def run() -> float:
        start = time.process_time()
        train_batch(batch)
        return time.process_time() - start

    return run


def measure(options: Options) -> list[dict[str, Any]]:
    """The figures of every mode."""
    batch, rows = make_batch(options), []
    for mode in options.modes:
        checked = "checking that losses agree, " if mode in BARE else ""
        print(f"{mode}: {checked}acting {options.late} steps, timing ...")
        difference = check_losses(options, mode) if mode in BARE else None
        training = {name: processor_time(loop.train_batch, batch) for name, loop in trainings(options, mode).items()}
        seconds = common.interleave(training | acting(options, mode), rounds=options.rounds, report=lambda line: None)
        row: dict[str, Any] = {"mode": mode, "loss_difference": difference}
        row |= {name: common.summary(values) for name, values in seconds.items()}
        if "bare" in seconds:
            row["ours_by_bare"] = common.ratio(seconds["ours"], seconds["bare"])
        row["late_by_early"] = common.ratio(seconds["late"], seconds["early"])
        if "through_forward" in seconds:
            row["forward_by_late"] = common.ratio(seconds["through_forward"], seconds["late"])
        if candidates := whole_and_loop(options, mode):
            with common.threads(options.loop_threads):
                seconds = common.interleave(candidates, rounds=options.loop_rounds, report=lambda line: None)
            row |= {name: common.summary(values) for name, values in seconds.items()}
            row["loop_by_whole"] = common.ratio(seconds["loop"], seconds["whole"])
        rows.append(row)
    return rows


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options = result["options"]
    header = ["mode", "ms a batch", "bare PyTorch", "ours / bare"]
    header += [f"ms a step at {options['early']}", f"at {options['late']}", "late / early", "forward / late"]
    header += ["whole, ms", "step by step, ms", "step by step / whole"]
    rows = [
        [
            row["mode"],
            f"{row['ours']['median_s'] * 1e3:.3g}",
            f"{row['bare']['median_s'] * 1e3:.3g}" if "bare" in row else "",
            f"{row['ours_by_bare']:.2f}" if "bare" in row else "",
            f"{row['early']['median_s'] * 1e3:.2g}",
            f"{row['late']['median_s'] * 1e3:.2g}",
            f"{row['late_by_early']:.2f}",
            f"{row['forward_by_late']:.1f}" if "forward_by_late" in row else "",
            f"{row['whole']['median_s'] * 1e3:.3g}" if "whole" in row else "",
            f"{row['loop']['median_s'] * 1e3:.3g}" if "loop" in row else "",
            f"{row['loop_by_whole']:.1f}" if "loop" in row else "",
        ]
        for row in result["modes"]
    ]
    return "\n\n".join(
        [
            common.machine_line(result["machine"], {}),
            f"{options['batch_size']} trajectories of {options['segments'] * options['context_length']} steps a batch; "
            f"{options['episodes']} episodes at once; d_model {options['d_model']}. Processor time, medians of "
            f"{options['rounds']} rounds. Last columns: a recurrent memory, forward and backward, over "
            f"{options['loop_batch']} trajectories of {options['loop_steps']} steps, in one call and in one call a "
            f"step, {options['loop_rounds']} rounds, wall-clock time with {result['loop_threads']} threads.",
            common.table(header, rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/memories.py", description="Time of every memory."
        )
        common.set_threads(options.threads)
        result = {
            "benchmark": "memories",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            "loop_threads": options.loop_threads or torch.get_num_threads(),
            "modes": measure(options),
        }
        common.publish(
            "memories", format_table(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
