"""What every memory promises (see `RATE_model.memories.contract`), held for every mode in the table."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import exchange_twins, knock_out_memory, knock_out_part, memory_conditions
from RATE_model.agent import Agent, AgentConfig
from RATE_model.loading import load_model
from RATE_model.memories import MEMORIES, MODES
from RATE_model.memories.bank import BankOptions
from RATE_model.memories.compressive import CompressiveOptions
from RATE_model.memories.contract import State
from RATE_model.memories.dnc import DNCOptions
from RATE_model.memories.elmur import ELMUROptions
from RATE_model.memories.hcam import HCAMOptions
from RATE_model.memories.knn import KNNOptions
from RATE_model.memories.lsdt import LSDTOptions
from RATE_model.memories.none import MLPOptions
from RATE_model.memories.rate.config import RATEOptions
from RATE_model.memories.recurrent import RecurrentOptions
from RATE_model.memories.retrieval import RetrievalOptions
from RATE_model.memories.rmc import RMCOptions
from RATE_model.memories.stack import CellStepper
from RATE_model.objectives.cloning import cloning_loss
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import save_checkpoint
from tests.small_models import CONTINUOUS, VECTOR, Inputs, everywhere, logits_of, random_inputs

K, N = 4, 3
STEPS = K * N  # of a training trajectory
LONG = 3 * STEPS + 2
CLOSE = dict(rtol=1e-4, atol=1e-5)

IMAGE = EnvironmentSpec(
    observation_shape=(1, 36, 36), num_actions=3, observation_scale=1 / 255, conv_channels=(4, 4, 4)
)

# Flags of small memories; one whose flags are not here has those that it comes with.
SMALL = {
    RATEOptions: RATEOptions(n_layer=2, n_head=2, d_head=8, d_inner=24, nmt=3, mem_len=8, n_head_ca=2),
    RecurrentOptions: RecurrentOptions(recurrent_layers=2, hidden_size=12),
    MLPOptions: MLPOptions(),
    HCAMOptions: HCAMOptions(hcam_heads=2, hcam_inner=24, hcam_chunks=3, hcam_top_k=2),
    CompressiveOptions: CompressiveOptions(compressive_heads=2, compressive_inner=24, compressive_compressed=2),
    BankOptions: BankOptions(bank_heads=2, bank_inner=24, bank_steps=7),
    LSDTOptions: LSDTOptions(lsdt_layers=2, lsdt_heads=2, lsdt_inner=24, lsdt_window=5, lsdt_kernel=3),
    RMCOptions: RMCOptions(rmc_layers=2, rmc_heads=2, rmc_inner=24, rmc_slots=2),
    DNCOptions: DNCOptions(dnc_hidden=12, dnc_slots=4, dnc_width=6),
    KNNOptions: KNNOptions(knn_entries=100, knn_neighbours=20, knn_temperature=1.0, knn_horizons=3, knn_projected=8),
    RetrievalOptions: RetrievalOptions(
        retrieval_heads=2,
        retrieval_inner=24,
        retrieval_entries=20,
        retrieval_neighbours=4,
        retrieval_horizons=3,
    ),
    ELMUROptions: ELMUROptions(elmur_heads=2, elmur_inner=24, elmur_slots=2),
}


@dataclass(frozen=True)
class Case:
    """A memory of the table, with sizes."""

    name: str
    config: AgentConfig

    @classmethod
    def of(cls, mode: str, condition: str, **flags: Any) -> "Case":
        """What a mode makes of small sizes, conditioned by returns ("rtg") or not ("none")."""
        options = MEMORIES[MODES[mode].memory].options
        own = replace(SMALL.get(options, options()), **flags, **MODES[mode].fixed)
        sizes = own.config(
            mode=mode, d_model=16, dropout=0.0, context_length=K, segments=N, conditioned=condition == "rtg"
        )
        changed = [f"{name} {value}" for name, value in flags.items()]
        return cls(" ".join([mode, condition, *changed]), AgentConfig(MODES[mode].memory, sizes))

    def agent(self, spec: EnvironmentSpec = VECTOR) -> Agent:
        """In eval mode; fresh gates and a fresh valve let little through, larger weights more."""
        torch.manual_seed(0)
        agent = Agent(self.config, spec).eval()
        with torch.no_grad():
            for parameter in agent.memory.parameters():
                parameter.mul_(1.5)
            if agent.memory.keeps_data:
                logits_of(agent.train(), inputs_of(spec, 8, seed=7))
                agent.memory.store_shown()
        return agent.eval()


def distinct(cases: Iterable[Case]) -> list[Case]:
    """Modes that come to the same are one case."""
    named: dict[AgentConfig, Case] = {}
    for case in cases:
        named.setdefault(case.config, case)
    return list(named.values())


def cases_with_returns() -> list[Case]:
    """Every mode, and variants that compute something else."""
    return distinct(
        [
            *(Case.of(mode, "rtg") for mode in MODES),
            Case.of("TrXL", "rtg", mem_len=60),
            *(Case.of("RATE", "rtg", arch_mode=arch) for arch in ("TrXL-I", "GTrXL")),
            Case.of("Bank", "rtg", bank_trained=False),
            *(Case.of("RATE", "rtg", mrv=valve) for valve in ("CA-1", "G", "LSTM", "FSQ")),
        ]
    )


def cases_without_returns() -> list[Case]:
    """The first mode of every memory with each set of fixed flags, and RATE's without tokens and without memory."""
    first = {(mode.memory, *mode.fixed.items()): name for name, mode in reversed(MODES.items())}
    return distinct(Case.of(mode, "none") for mode in (*first.values(), "TrXL", "DT"))


def inputs_of(spec: EnvironmentSpec, batch: int = 2, steps: int = STEPS, seed: int = 0) -> Inputs:
    """Random trajectories of an environment."""
    observations, actions, rtg = random_inputs(batch, steps, spec=spec, seed=seed)
    return (observations * 64 + 128).clamp(0, 255).byte() if spec.is_image else observations, actions, rtg


def take(inputs: Inputs, *index: Any) -> Inputs:
    """`tensor[index]` of each."""
    return tuple(tensor[index] for tensor in inputs)  # type: ignore[return-value]


def actor_of(agent: Agent, rtg: Tensor, **options: Any) -> Actor:
    """An actor whose windows, if it has any, slide by themselves: then acting is training across every border."""
    slide = agent.memory.segment if agent.memory.slides else 1
    return Actor(agent, len(rtg), rtg[:, 0], **{"slide": slide} | options)


def play(actor: Actor, inputs: Inputs, start: int = 0) -> Tensor:
    """Logits `(B, T, A)` of an actor that is shown recorded trajectories from a step on."""
    observations, actions, rtg = inputs
    logits = []
    for step in range(start, rtg.shape[1]):
        rewards = rtg[:, step - 1] - rtg[:, step] if step else None
        logits.append(actor.observe(observations[:, step], rewards))
        actor.take(actions[:, step])
    return torch.stack(logits, dim=1)


def largest(difference: Tensor) -> float:
    return difference.abs().max().item() if difference.numel() else 0.0


def gradient_of(tensor: Tensor) -> Tensor:
    """Zeros where none has come."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def stored(thing: Any, seen: dict[int, int]) -> dict[int, int]:
    """Bytes of the tensors that an object holds, by where they are."""
    if isinstance(thing, Tensor):
        seen[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    elif isinstance(thing, State):
        stored(thing.tensors(), seen)
    elif isinstance(thing, list | tuple):
        for item in thing:
            stored(item, seen)
    elif isinstance(thing, CellStepper):
        stored(thing.buffers, seen)
    return seen


class Work(TorchDispatchMode):
    """Counts the numbers that torch's operations return: what acting costs, without a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, list | tuple) else [result]
        self.numbers += sum(item.numel() for item in made if isinstance(item, Tensor))
        return result


class StepContract:
    """What a step sees and does: what returns enter as, and so differs with and without them."""

    @torch.no_grad()
    def test_acting_is_forward_at_every_step(self, case):
        self.act_as_forward(case, VECTOR, LONG)

    @staticmethod
    def act_as_forward(case: Case, spec: EnvironmentSpec, steps: int) -> None:
        agent, inputs = case.agent(spec), inputs_of(spec, 3, steps)
        expected = logits_of(agent, inputs)
        assert expected.std() > 1e-3
        torch.testing.assert_close(play(actor_of(agent, inputs[2]), inputs), expected, **CLOSE)

    @torch.no_grad()
    def test_a_step_sees_no_later_step_and_not_its_own_action(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR)
        before = logits_of(agent, inputs)
        for step in (0, 2, K - 1, K, STEPS - 1):
            for part, first in ((0, step), (1, step + 1), (2, step)):
                changed = [tensor.clone() for tensor in inputs]
                changed[part][:, step] = (changed[part][:, step] + 1) % 4 if part == 1 else changed[part][:, step] + 1
                after = logits_of(agent, changed)
                assert largest(after[:, :first] - before[:, :first]) < 1e-6, (part, step)
                if part == 0 or (part == 2 and case.config.sizes.conditioned):
                    assert largest(after[:, first] - before[:, first]) > 1e-5, (part, step)

    @torch.no_grad()
    def test_the_last_action_is_seen_if_the_memory_sees_actions(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR)
        actions = inputs[1].clone()
        actions[:, 1] = (actions[:, 1] + 1) % 4
        change = largest((logits_of(agent, (inputs[0], actions, inputs[2])) - logits_of(agent, inputs))[:, 2])
        assert (change > 1e-5) == agent.memory.sees_actions

    @torch.no_grad()
    def test_an_observation_matters_as_far_as_the_memory_reaches(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR, 2, LONG)
        reach = agent.memory.reach
        changed = (inputs[0].clone(), *inputs[1:])
        changed[0][:, 0] += 1
        seen = (logits_of(agent, changed) - logits_of(agent, inputs)).abs().amax(dim=(0, 2))
        assert seen[0] > 0
        if reach is None:
            assert (seen[:STEPS] > 0).all()
        else:
            assert not seen[reach:].any() and reach < LONG or reach >= LONG

    @pytest.mark.parametrize(("side", "spec"), [("left", VECTOR), ("right", CONTINUOUS), ("right", IMAGE)])
    @torch.no_grad()
    def test_padding_changes_nothing(self, case, spec, side):
        agent, inputs = case.agent(spec), inputs_of(spec, 5)
        valid = self.padding(agent, side)
        padded = self.spoilt(inputs, valid)
        logits, state = agent(*padded, valid)
        assert logits.isfinite().all()
        for row in range(5):
            own = take(inputs, slice(row, row + 1), valid[row])
            if valid[row].any():
                torch.testing.assert_close(logits[row, valid[row]], logits_of(agent, own)[0], **CLOSE)
        if side == "left":  # such trajectories continue
            more = inputs_of(spec, 5, K, seed=1)
            going, _ = agent(*more, everywhere(more), state)
            for row in range(5):
                own = [torch.cat([old[row, valid[row]], new[row]])[None] for old, new in zip(inputs, more, strict=True)]
                torch.testing.assert_close(going[row], logits_of(agent, own)[0, -K:], **CLOSE)

    @staticmethod
    def padding(agent: Agent, side: str) -> Tensor:
        """`valid` of five rows, the last of nothing but padding. At the left it fills what is seen at once."""
        if side == "right":
            steps = torch.tensor([STEPS, STEPS - 3, K, 1, 0])
            return torch.arange(STEPS) < steps[:, None]
        context = agent.memory.context
        lead = torch.tensor([0, 1, K + 1, 2 * K, STEPS]) // context * context
        return torch.arange(STEPS) >= lead[:, None]

    @staticmethod
    def spoilt(inputs: Inputs, valid: Tensor) -> Inputs:
        """Other numbers where there is padding."""
        observations, actions, rtg = (tensor.clone() for tensor in inputs)
        observations[~valid], rtg[~valid] = 50, 50.0
        actions[~valid] = 1
        return observations, actions, rtg

    @pytest.mark.parametrize("segments", [1, 2])
    @torch.no_grad()
    def test_windows_with_state_handed_over_equal_one_call(self, case, segments):
        agent = case.agent()
        size = agent.memory.segment * segments
        inputs = inputs_of(VECTOR, 2, 2 * size + 1)
        expected, final = agent(*inputs, everywhere(inputs))
        state, parts = None, []
        for start in range(0, 2 * size + 1, size):
            window = take(inputs, slice(None), slice(start, start + size))
            logits, state = agent(*window, everywhere(window), state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, **CLOSE)
        for ours, theirs in zip(state.tensors(), final.tensors(), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)

    def test_the_last_decision_has_a_gradient_of_the_first_observation(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR)
        observations = inputs[0].requires_grad_()
        logits_of(agent, inputs)[:, -1].square().sum().backward()
        reached = (gradient_of(observations) != 0).any(-1).all(0)  # (T,)
        reach = agent.memory.gradient_reach
        first = 0 if reach is None else max(0, STEPS - reach)
        assert reached[first:].all() and not reached[:first].any()

    def test_every_parameter_moves_in_one_step(self, case):
        agent, inputs = case.agent().train(), inputs_of(VECTOR, 8)
        before = {name: parameter.detach().clone() for name, parameter in agent.named_parameters()}
        optimizer = torch.optim.AdamW(agent.parameters(), lr=1e-2, weight_decay=0.0)
        cloning_loss(agent.spec, logits_of(agent, inputs), inputs[1], everywhere(inputs)).backward()
        optimizer.step()
        still = [name for name, parameter in agent.named_parameters() if torch.equal(parameter, before[name])]
        assert not [name for name in still if agent.memory.trains_encoders or not name.startswith("encoder.")]


class MemoryContract(StepContract):
    """The suite. A class that inherits it gives the fixture `case`."""

    # --- acting equals training ---

    @pytest.mark.parametrize("spec", [CONTINUOUS, IMAGE], ids=["continuous", "images"])
    @torch.no_grad()
    def test_acting_is_forward_in_every_kind_of_environment(self, case, spec):
        self.act_as_forward(case, spec, STEPS + 2)

    @torch.no_grad()
    def test_rows_begin_anew_and_leave_at_any_time(self, case):
        agent, inputs, other = case.agent(), inputs_of(VECTOR, 4, LONG), inputs_of(VECTOR, 4, LONG, seed=1)
        expected, again = logits_of(agent, inputs), logits_of(agent, other)
        for reset, drop in ((K + 1, 2 * K + 3), (2 * K, 3 * K), (STEPS - 1, STEPS)):
            actor = actor_of(agent, inputs[2])
            torch.testing.assert_close(
                play(actor, take(inputs, slice(None), slice(reset))), expected[:, :reset], **CLOSE
            )
            actor.reset(np.array([1]), target_return=other[2][[1], 0])
            going = [tensor.clone() for tensor in inputs]
            for tensor, new in zip(going, other, strict=True):
                tensor[1, reset:] = new[1, : LONG - reset]
            wanted = expected.clone()
            wanted[1, reset:] = again[1, : LONG - reset]
            torch.testing.assert_close(
                play(actor, take(going, slice(None), slice(drop)), reset), wanted[:, reset:drop], **CLOSE
            )
            kept = np.array([3, 1])
            actor.keep(kept)
            torch.testing.assert_close(play(actor, take(going, kept), drop), wanted[kept, drop:], **CLOSE)

    @torch.no_grad()
    def test_what_cannot_slide_ignores_windows(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR, 2, STEPS + 3)
        same = torch.equal(
            play(Actor(agent, 2, inputs[2][:, 0], window=True, slide=2), inputs),
            play(Actor(agent, 2, inputs[2][:, 0]), inputs),
        )
        assert same != agent.memory.can_slide

    # --- what a step may see ---

    @torch.no_grad()
    def test_rows_do_not_see_one_another(self, case):
        agent, inputs, other = case.agent(), inputs_of(VECTOR, 3), inputs_of(VECTOR, 3, seed=1)
        expected = logits_of(agent, inputs)
        for row in range(3):
            mixed = [new.clone() for new in other]
            for tensor, old in zip(mixed, inputs, strict=True):
                tensor[row] = old[row]
            assert largest(logits_of(agent, mixed)[row] - expected[row]) < 1e-6
            alone = logits_of(agent, take(inputs, slice(row, row + 1)))
            torch.testing.assert_close(alone[0], expected[row], **CLOSE)

    # --- padding ---

    @pytest.mark.parametrize("side", ["right", "left"])
    @torch.no_grad()
    def test_padding_changes_nothing_in_windows(self, case, side):
        agent, inputs = case.agent(), inputs_of(VECTOR, 5)
        size, valid = agent.memory.segment, self.padding(agent, side)
        padded = self.spoilt(inputs, valid)
        expected, state, parts = agent(*padded, valid)[0], None, []
        for start in range(0, STEPS, size):
            times = slice(start, start + size)
            logits, state = agent(*take(padded, slice(None), times), valid[:, times], state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, dim=1)[valid], expected[valid], **CLOSE)

    def test_padding_has_no_gradient(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR, 5)
        valid = self.padding(agent, "right")
        observations = self.spoilt(inputs, valid)[0].requires_grad_()
        logits, _ = agent(observations, *inputs[1:], valid)
        cloning_loss(agent.spec, logits, inputs[1], valid).backward()
        found = gradient_of(observations)
        assert found[valid].any() == agent.memory.trains_encoders and not found[~valid].any()
        agent.zero_grad()
        logits, _ = agent(*inputs, torch.zeros_like(valid))
        loss = cloning_loss(agent.spec, logits, inputs[1], torch.zeros_like(valid))
        assert loss == 0
        if loss.requires_grad:
            loss.backward()
        assert not any(p.grad is not None and p.grad.any() for p in agent.parameters())

    # --- windows and gradients ---

    def test_no_gradient_flows_between_two_calls(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR, 2, 2 * STEPS)
        observations = inputs[0].requires_grad_()
        first, last = (take(inputs, slice(None), part) for part in (slice(STEPS), slice(STEPS, None)))
        _, state = agent(*first, everywhere(first))
        agent(*last, everywhere(last), state)[0].square().sum().backward()
        found = gradient_of(observations)
        assert not found[:, :STEPS].any() and found[:, STEPS:].any() == agent.memory.trains_encoders

    # --- state ---

    @torch.no_grad()
    def test_state_does_not_grow_with_the_episode(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR, 2, 4 * STEPS)
        early = take(inputs, slice(None), slice(2 * STEPS))  # a cache is full by then
        sizes = [agent(*some, everywhere(some))[1].memory.numbers_per_row() for some in (early, inputs)]
        assert sizes[0] == sizes[1] and bool(sizes[0]) >= agent.memory.has_memory

    @torch.no_grad()
    def test_acting_does_not_slow_down_or_fill_memory(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR, 2, 4 * STEPS)
        actor, costs, sizes = actor_of(agent, inputs[2]), [], []
        for stop in range(STEPS, 5 * STEPS, STEPS):
            shown = take(inputs, slice(None), slice(stop))
            with Work() as work:
                play(actor, shown, stop - STEPS)
            costs.append(work.numbers)
            sizes.append(sum(stored(list(vars(actor._stepper).values()), {}).values()))
        assert costs[3] <= costs[2] and sizes[3] == sizes[2]
        assert sizes[3] / 2 <= 2 * agent.memory.bytes_per_row()

    @torch.no_grad()
    def test_rows_of_a_state_are_those_of_the_trajectories(self, case):
        agent, inputs, other = case.agent(), inputs_of(VECTOR, 4), inputs_of(VECTOR, 2, seed=1)
        _, state = agent(*inputs, everywhere(inputs))
        _, two = agent(*other, everywhere(other))
        last = inputs_of(VECTOR, 4, K, seed=2)
        expected, _ = agent(*last, everywhere(last), state)
        copies = [tensor.clone() for tensor in state.tensors()]
        order = torch.tensor([2, 0, 3])
        found, _ = agent(*take(last, order), everywhere(last)[order], state.rows(order))
        torch.testing.assert_close(found, expected[order], **CLOSE)
        index = torch.tensor([3, 1])
        found, _ = agent(*last, everywhere(last), state.put(index, two))
        of_two, _ = agent(*take(last, index), everywhere(last)[index], two)
        wanted = expected.clone()
        wanted[index] = of_two
        torch.testing.assert_close(found, wanted, **CLOSE)
        assert all(torch.equal(old, new) for old, new in zip(copies, state.tensors(), strict=True))
        assert state.memory.batch_size in (4, 0)

    def test_a_part_of_a_state_is_taken_alone(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR)
        memory, initial = agent(*inputs, everywhere(inputs))[1].memory, agent.memory.initial(2)
        for part, names in memory.parts.items():
            mixed = memory.with_part(part, initial)
            for field in fields(memory):
                source = initial if field.name in names else memory
                assert getattr(mixed, field.name) is getattr(source, field.name)

    def test_a_detached_state_has_no_gradient(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR)
        _, state = agent(*inputs, everywhere(inputs))
        detached = state.detach()
        assert not any(tensor.requires_grad for tensor in detached.tensors())
        assert all(torch.equal(a, b) for a, b in zip(detached.tensors(), state.tensors(), strict=True))

    @torch.no_grad()
    def test_what_there_is_to_look_at_is_what_was_computed(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR, 2, STEPS)
        _, final = agent(*inputs, everywhere(inputs))
        states = agent.inspect(*inputs)["states"]
        assert len(states) == 1 + STEPS // agent.memory.segment
        for ours, theirs in zip(states[-1].tensors(), final.memory.tensors(), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
        slots = states[-1].slots
        assert slots is None or slots.ndim == 3 and len(slots) == 2

    # --- control experiments ---

    @torch.no_grad()
    def test_knocked_out_memory_begins_every_segment_as_the_first(self, case):
        agent = case.agent()
        parts = type(agent.memory.initial(1)).parts
        assert bool(parts) or not agent.memory.has_memory
        segment = agent.memory.segment
        inputs = inputs_of(VECTOR, 2, 2 * segment + 2)
        intact = play(actor_of(agent, inputs[2]), inputs)
        found = {}
        for name, transform in {"all": knock_out_memory, **{part: knock_out_part(part) for part in parts}}.items():
            state, expected = None, []
            for start in range(0, inputs[2].shape[1], segment):
                window = take(inputs, slice(None), slice(start, start + segment))
                logits, state = agent(*window, everywhere(window), state)
                expected.append(logits)
                state = replace(state, memory=transform(state.memory, agent.memory.initial(2)))
            found[name] = play(actor_of(agent, inputs[2], transform_memory=transform), inputs)
            torch.testing.assert_close(found[name], torch.cat(expected, dim=1), **CLOSE)
        assert torch.equal(found["all"][:, :segment], intact[:, :segment])
        changed = (found["all"] - intact)[:, segment:].abs().amax(dim=(0, 2)) > 1e-6
        assert changed.all() if agent.memory.has_memory else not changed.any()
        assert len(memory_conditions(agent)) == 1 + agent.memory.has_memory

    @torch.no_grad()
    def test_exchanged_twins_go_on_with_the_memory_of_the_other(self, case):
        agent = case.agent()
        segment, pairs = agent.memory.segment, 4
        inputs = [tensor.clone() for tensor in inputs_of(VECTOR, 2 * pairs, 2 * segment)]
        for tensor in inputs:  # twins differ in the first segment alone, but for its last step
            tensor[1::2, segment - 1 :] = tensor[::2, segment - 1 :]
        inputs[2][1::2, 0] = inputs[2][::2, 0]
        intact = play(actor_of(agent, inputs[2]), inputs)[:, segment:]
        transform = exchange_twins(1)
        exchanged = play(actor_of(agent, inputs[2], transform_memory=transform), inputs)[:, segment:]
        others = intact.view(pairs, 2, *intact.shape[1:]).flip(1).flatten(0, 1)
        own, of_other = ((exchanged - one).abs().amax(dim=(1, 2)) < 1e-4 for one in (intact, others))
        if agent.memory.has_memory:
            assert (own ^ of_other).all() and 0 < own.sum() < 2 * pairs
        else:
            assert own.all()

    # --- precision and checkpoints ---

    def test_bfloat16_is_finite_and_close(self, case):
        agent, inputs = case.agent(), inputs_of(VECTOR, 4)
        exact = logits_of(agent, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = logits_of(agent, inputs)
            cloning_loss(agent.spec, rough, inputs[1], everywhere(inputs)).backward()
            valid = self.padding(agent, "right")[:4]
            padded, _ = agent(*inputs, valid)
            assert largest((padded - rough)[valid]) < 0.1
        acted = play(actor_of(agent, inputs[2], precision="bf16"), inputs)
        for found in (rough.float(), acted):
            error = (found - exact).abs()
            assert found.isfinite().all() and 0 < error.max() and error.mean() < 0.05 * exact.std()
        trained = agent if agent.memory.trains_encoders else agent.head
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trained.parameters())

    @torch.no_grad()
    def test_a_checkpoint_brings_the_agent_back(self, case, tmp_path):
        agent, inputs = case.agent(), inputs_of(VECTOR)
        training = {**agent.config.saved(), "spec": asdict(agent.spec)}
        loaded = load_model(save_checkpoint(tmp_path, 1, model_state=agent.state_dict(), training_state=training))
        assert loaded.config == agent.config and not loaded.training
        assert torch.equal(logits_of(loaded, inputs), logits_of(agent, inputs))


class TestTable(MemoryContract):
    """Every mode that users can type."""

    @pytest.fixture(params=cases_with_returns(), ids=lambda case: case.name)
    def case(self, request) -> Case:
        return request.param


class TestWithoutReturns(StepContract):
    """Every memory, and every way that steps enter it."""

    @pytest.fixture(params=cases_without_returns(), ids=lambda case: case.name)
    def case(self, request) -> Case:
        return request.param


def test_every_mode_and_memory_is_held_to_it():
    assert {Case.of(mode, "rtg").config for mode in MODES} <= {case.config for case in cases_with_returns()}
    assert {case.config.memory for case in cases_without_returns()} == MEMORIES.keys()
