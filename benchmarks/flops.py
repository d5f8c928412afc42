"""Number of floating-point operations in the matrix products of training and acting, from the sizes alone.

A product of (a, b) and (b, c) matrices is 2 a b c operations. Only products of our algorithm are counted: shared keys
(see RATE_model/memories/rate/attention.py) need other products than the published layout, and masked scores that are
never computed do not count. Element-wise work (softmax, norms, masks, the optimizer) is left out, one reason why the
share of the machine's speed computed from these counts stays below 1.

In the backward pass, a product costs once more for each operand that needs a gradient; data, sinusoids and detached
memory need none. Names: B rows of a batch, d = d_model, H heads, w = d_head, n memory tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from RATE_model.memories.rate.config import RATEConfig
from RATE_model.memories.rate.layout import Layout
from RATE_model.spec import EnvironmentSpec


@dataclass(frozen=True)
class Product:
    """One matrix product: forward operations, and the number of operands that need a gradient."""

    forward: int
    gradients: int = 2

    @property
    def both(self) -> int:
        """Operations forward and backward."""
        return self.forward * (1 + self.gradients)


def training_flops(
    config: RATEConfig, spec: EnvironmentSpec, *, batch_size: int, segments: int, bptt_segments: int
) -> int:
    """Operations of one batch of full trajectories of `segments` segments, forward and backward, all windows.

    Vector observations only.
    """
    window = segments if bptt_segments < 0 else bptt_segments + 1
    total = 0
    for start in range(0, segments, window):
        total += sum(product.both for product in _fold(config))
        stop = min(start + window, segments)
        for index in range(start, stop):
            # The initial memory of a later window is detached; what the last segment of a window writes is not part
            # of the loss.
            products = _segment(
                config, spec, batch_size, index, old_gradient=index > start or start == 0, used=index < stop - 1
            )
            total += sum(product.both for product in products)
    return total


def acting_flops(config: RATEConfig, spec: EnvironmentSpec, *, batch_size: int) -> float:
    """Operations of one environment step of `batch_size` episodes, averaged over a segment with a full cache.

    Counts what `RATE_model.acting.actor` does: two tokens at a segment's first step (return-to-go, observation), three
    at every other (the last action before them), the read tokens when a segment opens, the last action, the write
    tokens and the MRV when it closes. The projections are folded once per actor and not counted. Vector observations
    only.
    """
    tokens, steps = config.num_mem_tokens, config.context_length
    base = config.mem_len  # also the number of columns of a full cache

    def append(count: int, start: int, *, outputs: int, block: bool = False) -> int:
        first = base if block else 0
        return sum(_appended(config, batch_size, count, columns=start + count - first, outputs=outputs, block=block))

    total = append(tokens, base, outputs=0, block=True)
    for step in range(steps):
        count = 3 if step else 2
        total += append(count, base + tokens + 3 * step - (count - 2), outputs=1)
    end = base + tokens + 3 * steps
    total += append(1, end - 1, outputs=0)
    total += append(tokens, end, outputs=tokens, block=True)
    total += sum(product.forward for product in _valve(config, batch_size, old_gradient=False, used=False))
    ends = (*_encoders(config, spec, batch_size), *_head(config, spec, batch_size))
    return total / steps + sum(product.forward for product in ends)


def _fold(config: RATEConfig) -> list[Product]:
    """W_k and W_r folded into the queries, W_v into the output: once per forward pass, whatever the batch."""
    d, width, heads = config.d_model, config.d_head, config.n_head
    weight = Product(2 * heads * (2 * d) * width * d)
    biases = Product(2 * heads * width * (2 * d))
    output = Product(2 * heads * d * width * d)
    return [weight, biases, output] * config.n_layer


def _segment(
    config: RATEConfig, spec: EnvironmentSpec, batch: int, index: int, *, old_gradient: bool, used: bool
) -> Iterable[Product]:
    """Segment number `index` of a trajectory.

    Args:
        old_gradient: its initial memory needs a gradient.
        used: the loss depends on the memory that it passes on.
    """
    tokens, steps = config.num_mem_tokens, config.context_length
    cached = min(config.mem_len, index * config.segment_tokens)
    layout = Layout(steps=steps, tokens=tokens, cached=cached)
    yield from _encoders(config, spec, batch * steps)
    for number in range(config.n_layer):
        last = number == config.n_layer - 1
        rows = 0
        for group in layout.groups(torch.device("cpu"), last=last):
            count = len(range(group.rows.start, group.rows.stop, group.rows.step or 1))
            columns = group.columns[1] - group.columns[0]
            yield from _attention(config, batch, count, columns, block=group.is_memory)
            rows += count
        yield from _after_attention(config, batch * rows)
    yield from _head(config, spec, batch * steps)
    yield from _valve(config, batch, old_gradient=old_gradient, used=used)


def _attention(config: RATEConfig, batch: int, rows: int, columns: int, *, block: bool) -> list[Product]:
    """Some rows of one layer's attention over `columns` keys, with both projections."""
    d, heads, tokens = config.d_model, config.n_head, config.num_mem_tokens
    queries = Product(2 * batch * rows * d * heads * 2 * d)
    positions = Product(2 * batch * rows * heads * d * columns, gradients=1)  # by a fixed table
    content = Product(2 * batch * rows * heads * d * columns)
    context = Product(2 * batch * rows * heads * columns * d)
    output = Product(2 * batch * rows * heads * d * d)
    wrapped = [Product(2 * batch * rows * heads * d * tokens, gradients=1)] * 2 if block else []
    return [queries, positions, content, context, output, *wrapped]


def _after_attention(config: RATEConfig, rows: int) -> list[Product]:
    """Feed-forward network and gates of one layer."""
    d = config.d_model
    feed_forward = [] if config.skip_dec_ffn else [Product(2 * rows * d * config.d_inner)] * 2
    gates = 0 if config.arch != "GTrXL" else 1 if config.skip_dec_ffn else 2
    return feed_forward + [Product(2 * rows * d * 6 * d)] * gates


def _appended(config: RATEConfig, batch: int, count: int, *, columns: int, outputs: int, block: bool) -> Iterable[int]:
    """Acting: `count` tokens appended to the buffers, `outputs` of which need the last layer's output."""
    for number in range(config.n_layer):
        rows = outputs if number == config.n_layer - 1 else count
        for product in (
            *_attention(config, batch, rows, columns, block=block),
            *_after_attention(config, batch * rows),
        ):
            yield product.forward


def _encoders(config: RATEConfig, spec: EnvironmentSpec, rows: int) -> list[Product]:
    """Linear maps of return, observation and continuous action; a table of actions is not a product."""
    features = 1 + spec.observation_shape[0] + (spec.num_actions if spec.continuous else 0)
    return [Product(2 * rows * features * config.d_model, gradients=1)]


def _head(config: RATEConfig, spec: EnvironmentSpec, rows: int) -> list[Product]:
    return [Product(2 * rows * config.d_model * spec.num_actions)]


def _valve(config: RATEConfig, batch: int, *, old_gradient: bool, used: bool) -> list[Product]:
    """The memory retention valve: four linear maps, and two products of its attention."""
    if not config.n_head_ca:
        return []
    tokens, d = config.num_mem_tokens, config.d_model
    linear = 2 * batch * tokens * d * d
    query = Product(linear, gradients=(1 + old_gradient) * used)
    rest = [Product(linear, gradients=2 * used)] * 3
    attention = [Product(2 * batch * tokens * tokens * d, gradients=2 * used)] * 2
    return [query, *rest, *attention]
