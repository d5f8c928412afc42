"""Linear recurrences over whole trajectories: all states at once, or chunk by chunk where states are large.

    s_t = a_t * s_{t-1} + x_t          element by element, real or complex

Two steps combine into one of the same form: (a, x), then (b, y), is (b a, b x + y). So states can be computed in any
grouping, by a tree of depth log2(T) (Blelloch 1990; Martin and Cundy 2018, arXiv 1709.04057). Only products of decays
are formed, never quotients or exponentials of running sums, so with decays of at most 1 nothing overflows however long
the sequence.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

StateT = TypeVar("StateT")

# From this many numbers per step, a CPU is faster step by step, in place, than with the tree, which makes several
# passes over memory: benchmarks/README.md.
_WIDE = 2048
# Numbers in the states of a chunk: 4 MiB in float32.
_NUMBERS = {"cpu": 2**20}
_NUMBERS_ELSEWHERE = 2**25


def scan(decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """All states of the recurrence; differentiable once.

    Args:
        decay: a, `(B, T, ...)`. Any dimension may be 1; where T is, all steps have one decay.
        x: `(B, T, ...)`; may be real where the others are complex.
        initial: s_0, `(B, ...)`.

    Returns:
        s_1 to s_T, `(B, T, ...)`, in the widest dtype of the three, at least float32.
    """
    dtype = _widest(decay, x, initial)
    x = x.to(dtype if x.is_complex() else dtype.to_real())  # real ones are only converted where they are added
    return _Scan.apply(decay.to(dtype), x, initial.to(dtype))


def _widest(*tensors: Tensor) -> torch.dtype:
    """The widest dtype, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


class _Scan(torch.autograd.Function):
    """The gradient of a recurrence is the same recurrence, from the last step to the first."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
        first = torch.addcmul(x[:, :1].to(decay.dtype), decay[:, :1], initial[:, None])
        states = _states(decay, x, first)
        ctx.save_for_backward(decay, states, initial)
        ctx.real = not x.is_complex()
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        decay, states, initial = ctx.saved_tensors
        decay = decay.conj().resolve_conj()
        reaching = _states(decay, gradient, gradient[:, -1:], backwards=True)
        to_decay = to_initial = None
        if ctx.needs_input_grad[0]:
            to_decay = _to_decay(decay, reaching, initial, states)
        if ctx.needs_input_grad[2]:
            to_initial = decay[:, 0] * reaching[:, 0]
        return to_decay, reaching.real if ctx.real else reaching, to_initial


def _to_decay(decay: Tensor, reaching: Tensor, initial: Tensor, states: Tensor) -> Tensor:
    """The gradient of the decays: what reaches each state times the state before it, conjugate."""
    first, others = reaching[:, :1] * initial.conj()[:, None], reaching[:, 1:] * states[:, :-1].conj()
    if decay.shape[1] == 1:  # added without joining them
        return (first + others.sum(dim=1, keepdim=True)).sum_to_size(decay.shape)
    return torch.cat([first, others], dim=1).sum_to_size(decay.shape)


def _states(decay: Tensor, x: Tensor, first: Tensor, *, backwards: bool = False, in_place: bool = False) -> Tensor:
    """The recurrence from its first state `(B, 1, ...)`; `x` of that step is ignored.

    Backwards, from the last step to the first, the decay that leads to a step is that of the step after it. `in_place`
    allows the states to take the place of `x`.
    """
    if x.shape[1] == 1:
        return first
    if x.device.type == "cpu" and first.numel() >= _WIDE:
        return _sweep(decay, x, first, backwards=backwards, in_place=in_place)
    if not backwards:
        return _tree(decay, torch.cat([first, x[:, 1:]], dim=1))
    later = decay if decay.shape[1] == 1 else decay.flip(1).roll(1, 1)
    return _tree(later, torch.cat([first, x[:, :-1].flip(1)], dim=1)).flip(1)


def _sweep(decay: Tensor, x: Tensor, first: Tensor, *, backwards: bool, in_place: bool) -> Tensor:
    """The recurrence step by step, as written."""
    length = x.shape[1]
    states = x if in_place else torch.empty(x.shape, dtype=first.dtype, device=x.device)
    if x.dtype != states.dtype:  # real x of complex states
        x = states.copy_(x)
    decays, steps = decay.expand(-1, length, *decay.shape[2:]).unbind(1), states.unbind(1)
    xs = steps if x is states else x.unbind(1)
    begin, order, shift = (-1, range(length - 2, -1, -1), 1) if backwards else (0, range(1, length), 0)
    before = steps[begin].copy_(first[:, 0])
    for t in order:
        before = torch.addcmul(xs[t], decays[t + shift], before, out=steps[t])
    return states


def _tree(decay: Tensor, x: Tensor) -> Tensor:
    """By pairs: every second state from half as many double steps; the states in between follow.

    s_0 = x_0; the first decay is ignored.
    """
    length = x.shape[1]
    if length == 1:
        return x

    def part(start: int, stop: int | None = None) -> Tensor:
        return decay if decay.shape[1] == 1 else decay[:, start:stop:2]

    states = torch.empty_like(x)
    states[:, :1] = x[:, :1]
    pairs = torch.addcmul(x[:, 1::2], part(1), x[:, : length - 1 : 2])
    states[:, 1::2] = _tree(part(1) * part(0, length - 1), pairs)
    torch.addcmul(x[:, 2::2], part(2), states[:, 1 : length - 1 : 2], out=states[:, 2::2])
    return states


class Decay(NamedTuple):
    """Decays a, `(B, L, p, q)` for L steps, as a function of smaller tensors, its factors.

    Attributes:
        of: (factors..., tensor to write the decays into) -> that tensor.
        gradients: (gradient of the decays, the decays, factors...) -> gradients of the factors. It may overwrite the
            first two, which change afterwards, so what it returns must not share their memory.
    """

    of: Callable[..., Tensor]
    gradients: Callable[..., tuple[Tensor, ...]]


def scan_and_read(
    rule: Decay,
    factors: Sequence[Tensor],
    key: Tensor,
    value: Tensor,
    query: Tensor,
    initial: Tensor,
    *,
    shared: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """The product q_t s_t of every state of s_t = a_t * s_{t-1} + k_t v_t^T. Differentiable once.

    Equals `scan` of products k v^T and a product with q. But decays and states exist for a chunk of steps at a time,
    which stays in a processor's cache, and are found once more for the gradient: to store all of them, and to read them
    again, takes longer.

    Args:
        rule, factors: what a, `(B, T, p, q)`, is made of; factors are `(B, T, ...)` each.
        key, query: `(B, T, p)`.
        value: `(B, T, q)`.
        initial: s_0, `(B, p, q)`.
        shared: the rule's last factors, the same at all steps.

    Returns:
        `(B, T, q)`, and s_T `(B, p, q)`, in dtypes as of `scan`.
    """
    tensors = initial, *shared, key, value, query, *factors
    dtype = _widest(*tensors)
    with torch.autocast(key.device.type, enabled=False):
        return _ScanAndRead.apply(rule, len(shared), *(tensor.to(dtype) for tensor in tensors))


class _ScanAndRead(torch.autograd.Function):
    """Each gradient is the product of the one that reaches a state and the factors that made or read it.

    Its tensors are the initial state, shared factors, and of every step key, value, query and factors.
    """

    @staticmethod
    def forward(ctx: Any, rule: Decay, num_shared: int, *tensors: Tensor) -> Any:
        state, shared, stepwise = tensors[0], tensors[1 : 1 + num_shared], tensors[1 + num_shared :]
        size = _steps_of_a_chunk(state, stepwise[0].shape[1])
        scratch, read, between = _scratch(2, state, size), [], []
        for steps in _chunks(stepwise, size):
            between.append(state)
            _, states = _decays_and_states(rule, state, shared, steps, scratch)
            read.append((steps[2][:, :, None] @ states).squeeze(2))
            state = states[:, -1].clone()
        ctx.rule, ctx.size, ctx.ends = rule, size, (num_shared, num_shared + len(stepwise))
        ctx.save_for_backward(*shared, *stepwise, *between)
        return torch.cat(read, dim=1), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_read: Tensor, of_last: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.ends
        shared, stepwise, between = (
            ctx.saved_tensors[:first],
            ctx.saved_tensors[first:second],
            ctx.saved_tensors[second:],
        )
        scratch, found = _scratch(3, of_last, ctx.size), []
        of_shared = [torch.zeros_like(factor) for factor in shared]
        chunks = list(zip(between, _chunks(stepwise, ctx.size), of_read.split(ctx.size, dim=1), strict=True))
        with torch.autocast(of_read.device.type, enabled=False):
            for before, steps, upper in reversed(chunks):
                of_steps, of_last = _through_chunk(ctx.rule, before, shared, steps, upper, of_last, scratch)
                found.append(of_steps[: len(steps)])
                for total, part in zip(of_shared, of_steps[len(steps) :], strict=True):
                    total += part
        of_stepwise = (torch.cat(parts[::-1], dim=1) for parts in zip(*found, strict=True))
        return None, None, of_last, *of_shared, *of_stepwise


def _steps_of_a_chunk(state: Tensor, length: int) -> int:
    """As many as fit into a CPU's cache; elsewhere, larger tensors are faster."""
    return min(length, max(2, _NUMBERS.get(state.device.type, _NUMBERS_ELSEWHERE) // max(1, state.numel())))


def _scratch(count: int, state: Tensor, size: int) -> Tensor:
    """Tensors that chunk after chunk uses: new ones would have to come into the cache first."""
    return state.new_empty(count, len(state), size, *state.shape[1:])


def _decays_and_states(
    rule: Decay, before: Tensor, shared: Sequence[Tensor], steps: Sequence[Tensor], scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a chunk, in the scratch."""
    key, value, _, *factors = steps
    decay, x = scratch[:2, :, : key.shape[1]]
    rule.of(*factors, *shared, decay)
    torch.mul(key[..., None], value[:, :, None], out=x)
    x[:, 0].addcmul_(decay[:, 0], before)
    return decay, _states(decay, x, x[:, :1], in_place=True)


def _through_chunk(
    rule: Decay,
    before: Tensor,
    shared: Sequence[Tensor],
    steps: Sequence[Tensor],
    of_read: Tensor,
    of_last: Tensor,
    scratch: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of a chunk's steps and of shared factors; and of the state before it."""
    key, value, query, *factors = steps
    decay, states = _decays_and_states(rule, before, shared, steps, scratch)
    gradient = torch.mul(query[..., None], of_read[:, :, None], out=scratch[2, :, : key.shape[1]])
    gradient[:, -1] += of_last
    reaching = _states(decay, gradient, gradient[:, -1:], backwards=True, in_place=True)
    of_query, of_key = times(states, of_read), times(reaching, value)
    of_value = (key[:, :, None] @ reaching).squeeze(2)
    of_before = decay[:, 0] * reaching[:, 0]
    of_decay = reaching
    of_decay[:, 0].mul_(before)
    of_decay[:, 1:].mul_(states[:, :-1])
    return [of_key, of_value, of_query, *rule.gradients(of_decay, decay, *factors, *shared)], of_before


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """`(..., p, q)` times `(..., q)`; transposed, a CPU multiplies many of them up to seven times as fast."""
    return (vector[..., None, :] @ matrix.transpose(-1, -2)).squeeze(-2)


def last(states: Tensor) -> Tensor:
    """The last of states `(B, T, ...)`; frees the others."""
    return states[:, 0] if states.shape[1] == 1 else states[:, -1].clone()


def in_chunks(
    piece: Callable[..., tuple[Any, StateT]], state: StateT, inputs: Sequence[Tensor], *, size: int
) -> tuple[list[Any], StateT]:
    """A recurrence over chunks of steps, whose large intermediate results then fit into a processor's cache.

    Args:
        piece: (state, inputs of some steps...) -> (outputs of these steps, the state after them).
        state: the state before the first step: a tensor, or a tuple of tensors.
        inputs: `(B, T, ...)` each.
        size: steps per chunk.

    Returns:
        The outputs of `piece`, chunk by chunk, and the state after the last step.
    """
    found = []
    for chunk in _chunks(inputs, size):
        wanted, state = piece(state, *chunk)
        found.append(wanted)
    return found, state


def _chunks(stepwise: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(size, dim=1) for tensor in stepwise), strict=True))
