"""Linear recurrences over whole trajectories: all states at once, or chunk by chunk where states are large.

    s_t = a_t * s_{t-1} + x_t          element by element, real or complex

Two steps combine into one of the same form: (a, x), then (b, y), is (b a, b x + y). So states can be computed in any
grouping, by a tree of depth log2(T) (Blelloch 1990; Martin and Cundy 2018, arXiv 1709.04057). Only products of decays
are formed, never quotients or exponentials of running sums, so with decays of at most 1 nothing overflows however long
the sequence.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

StateT = TypeVar("StateT")

# From this many numbers per step, a CPU is faster step by step, in place, than with the tree, which makes several
# passes over memory: benchmarks/README.md.
_WIDE = 2048


def scan(decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """All states of the recurrence; differentiable once.

    Args:
        decay: a, `(B, T, ...)`. Any dimension may be 1; where T is, all steps have one decay.
        x: `(B, T, ...)`.
        initial: s_0, `(B, ...)`.

    Returns:
        s_1 to s_T, `(B, T, ...)`, in the widest dtype of the three, at least float32.
    """
    return _Scan.apply(*_widest(decay, x, initial))


def _widest(*tensors: Tensor) -> list[Tensor]:
    """Convert to the widest dtype, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


class _Scan(torch.autograd.Function):
    """The gradient of a recurrence is the same recurrence, from the last step to the first."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, x: Tensor, initial: Tensor) -> Tensor:
        first = torch.addcmul(x[:, :1], decay[:, :1], initial[:, None])
        states = _states(decay, x, first)
        ctx.save_for_backward(decay, states, initial)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        decay, states, initial = ctx.saved_tensors
        decay = decay.conj().resolve_conj()
        later = decay if decay.shape[1] == 1 else decay.roll(-1, 1)  # leads from a state to the next
        reaching = _states(later, gradient, gradient[:, -1:], backwards=True)
        to_decay = to_initial = None
        if ctx.needs_input_grad[0]:
            before = torch.cat([initial[:, None], states[:, :-1]], dim=1)
            to_decay = (reaching * before.conj()).sum_to_size(decay.shape)
        if ctx.needs_input_grad[2]:
            to_initial = decay[:, 0] * reaching[:, 0]
        return to_decay, reaching, to_initial


def _states(decay: Tensor, x: Tensor, first: Tensor, *, backwards: bool = False) -> Tensor:
    """The recurrence from its first state `(B, 1, ...)`; `x` of that step is ignored."""
    if x.shape[1] == 1:
        return first
    if x.device.type == "cpu" and first.numel() >= _WIDE:
        return _sweep(decay, x, first, backwards=backwards)
    if not backwards:
        return _tree(decay, torch.cat([first, x[:, 1:]], dim=1))
    return _tree(decay.flip(1), torch.cat([first, x[:, :-1].flip(1)], dim=1)).flip(1)


def _sweep(decay: Tensor, x: Tensor, first: Tensor, *, backwards: bool = False) -> Tensor:
    """The recurrence step by step, as written."""
    states = torch.empty_like(x)
    decays = decay.expand(-1, x.shape[1], *decay.shape[2:]).unbind(1)
    steps: list[Sequence[Tensor]] = [decays, x.unbind(1), states.unbind(1)]
    if backwards:
        steps = [each[::-1] for each in steps]
    steps[2][0].copy_(first[:, 0])
    before = steps[2][0]
    for a, new, state in list(zip(*steps, strict=True))[1:]:
        torch.addcmul(new, a, before, out=state)
        before = state
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


def scan_and_read(decay: Tensor, key: Tensor, value: Tensor, query: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """The product q_t s_t of every state of s_t = a_t * s_{t-1} + k_t v_t^T. Differentiable once.

    Equals `scan` of products k v^T and a product with q, with half as many backward passes over the states.

    Args:
        decay: a, `(B, T, p, q)`.
        key, query: `(B, T, p)`.
        value: `(B, T, q)`.
        initial: s_0, `(B, p, q)`.

    Returns:
        `(B, T, q)`, and s_T `(B, p, q)`, in dtypes as of `scan`.
    """
    with torch.autocast(decay.device.type, enabled=False):
        return _ScanAndRead.apply(*_widest(decay, key, value, query, initial))


class _ScanAndRead(torch.autograd.Function):
    """Each gradient is the product of the one that reaches a state and the factors that made or read it."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, key: Tensor, value: Tensor, query: Tensor, initial: Tensor) -> Any:
        x = key[..., None] * value[:, :, None]
        states = _states(decay, x, torch.addcmul(x[:, :1], decay[:, :1], initial[:, None]))
        ctx.save_for_backward(decay, key, value, query, initial, states)
        return (query[:, :, None] @ states).squeeze(2), last(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_read: Tensor, of_last: Tensor) -> tuple[Tensor, ...]:
        decay, key, value, query, initial, states = ctx.saved_tensors
        gradient = query[..., None] * of_read[:, :, None]
        gradient[:, -1] += of_last
        reaching = _states(decay.roll(-1, 1), gradient, gradient[:, -1:], backwards=True)
        to_decay = torch.empty_like(decay)
        torch.mul(reaching[:, :1], initial[:, None], out=to_decay[:, :1])
        torch.mul(reaching[:, 1:], states[:, :-1], out=to_decay[:, 1:])
        to_key, to_query = (reaching @ value[..., None]).squeeze(-1), (states @ of_read[..., None]).squeeze(-1)
        to_value = (key[:, :, None] @ reaching).squeeze(2)
        return to_decay, to_key, to_value, to_query, decay[:, 0] * reaching[:, 0]


def last(states: Tensor) -> Tensor:
    """The last of states `(B, T, ...)`; frees the others."""
    return states[:, 0] if states.shape[1] == 1 else states[:, -1].clone()


def in_chunks(
    piece: Callable[..., tuple[Any, StateT]], state: StateT, inputs: Sequence[Tensor], *, size: int, again: bool = True
) -> tuple[list[Any], StateT]:
    """A recurrence whose states are too large to store at every step; only those between chunks are stored.

    Args:
        piece: (state, inputs of some steps...) -> (outputs of these steps, the state after them).
        state: the state before the first step: a tensor, or a tuple of tensors.
        inputs: `(B, T, ...)` each.
        size: steps per chunk.
        again: recompute inside `piece` for the gradient, instead of storing intermediate results.

    Returns:
        The outputs of `piece`, chunk by chunk, and the state after the last step.
    """
    found = []
    chunks = list(zip(*(tensor.split(size, dim=1) for tensor in inputs), strict=True))
    again = again and len(chunks) > 1 and torch.is_grad_enabled()
    for chunk in chunks:
        if again:
            wanted, state = checkpoint(piece, state, *chunk, use_reentrant=False, preserve_rng_state=False)
        else:
            wanted, state = piece(state, *chunk)
        found.append(wanted)
    return found, state
