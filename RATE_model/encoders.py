"""Encoders from observations, actions and returns-to-go to tokens, and the head from hidden states to actions.

The published system has one encoder variant per environment; `EnvironmentSpec` selects among them (convolution padding,
a tanh after an encoder, a padding row in the action table).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from RATE_model.data.frames import Frames, FrameStack
from RATE_model.errors import UserError
from RATE_model.objectives.privileged import Privileged
from RATE_model.spec import EnvironmentSpec, PrivilegedKind
from RATE_model.system.products import Linear

# (kernel, stride) of the three convolutions of Mnih et al. 2015, "Human-level control through deep reinforcement
# learning", which have 32, 64 and 64 channels.
_CONVOLUTIONS = ((8, 4), (4, 2), (3, 1))


def _observation_encoder(spec: EnvironmentSpec, d_model: int) -> nn.Module:
    """For an image, a vector, or a vector that begins with images."""
    if spec.is_image:
        return ImageEncoder(spec, d_model)
    return JointEncoder(spec, d_model) if spec.images else Linear(spec.observation_shape[0], d_model)


def _with_tanh(module: nn.Module, tanh: bool) -> nn.Module:
    return nn.Sequential(module, nn.Tanh()) if tanh else module


class ImageEncoder(nn.Module):
    """Three convolutions and a linear map: `(M, C, H, W)` to `(M, d_model)`."""

    def __init__(self, spec: EnvironmentSpec, d_model: int) -> None:
        super().__init__()
        self.scale = spec.observation_scale
        channels, height, width = spec.observation_shape
        layers: list[nn.Module] = []
        for out_channels, (kernel, stride) in zip(spec.conv_channels, _CONVOLUTIONS, strict=True):
            layers += [nn.Conv2d(channels, out_channels, kernel, stride, spec.conv_padding), nn.ReLU()]
            channels = out_channels
            height, width = ((size + 2 * spec.conv_padding - kernel) // stride + 1 for size in (height, width))
        if min(height, width) < 1:
            raise ValueError(f"images of {spec.observation_shape[1:]} pixels are too small for the convolutions")
        self.convolutions = nn.Sequential(*layers)
        self.project = Linear(channels * height * width, d_model)
        self._initialise()

    @property
    def _first(self) -> nn.Conv2d:
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        return first

    def _initialise(self) -> None:
        """He et al. 2015 (arXiv 1502.01852), equation 10: every layer preserves the scale of its input.

        PyTorch's default shrinks it layer by layer: an image's token would start fifty times smaller than an action's
        or a return's, and the difference between two images even smaller.
        """
        for layer in self.convolutions:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        nn.init.kaiming_normal_(self.project.weight, nonlinearity="linear")
        nn.init.zeros_(self.project.bias)

    @torch.no_grad()
    def calibrate(self, images: Tensor, *, pictures: int = 1) -> None:
        """Data-dependent initialisation: give every output of every layer mean 0 and variance 1 over these images.

        Mishkin and Matas 2016 (arXiv 1511.06422), Krähenbühl et al. 2016 (arXiv 1511.06856). A small moving object is a
        few pixels among thousands that never change. So if an observation stacks several pictures, half of the first
        filters start with weights that sum to 0 over time: they respond to motion only, which is amplified as much as
        the rest.

        Args:
            images: `(M, C, H, W)`, as for `forward`.
            pictures: number of pictures stacked in an image's channels, oldest first.
        """
        first = self._first.weight
        if pictures > 1:
            moving = first[: len(first) // 2].unflatten(1, (pictures, -1))
            moving -= moving.mean(dim=1, keepdim=True)
        hidden = images.to(first.dtype) * self.scale
        for layer in [*self.convolutions, nn.Flatten(), self.project]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                outputs = layer(hidden)
                deviation, mean = torch.std_mean(outputs, dim=[d for d in range(outputs.ndim) if d != 1])
                assert layer.bias is not None
                scale = 1 / deviation.where(deviation > 1e-6, 1.0)
                layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
                layer.bias.copy_((layer.bias - mean) * scale)
            hidden = layer(hidden)

    def forward(self, images: Tensor) -> Tensor:
        """Encode `(M, C, H, W)` images of any dtype, unscaled, to `(M, d_model)`."""
        first, others = self._first, list(self.convolutions)[1:]
        # One pass over the images, to the dtype and memory layout in which convolutions are fastest: bfloat16
        # represents every uint8, and scaling the weights instead of the images is equivalent.
        device = images.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else first.weight.dtype
        images = images.to(dtype, memory_format=torch.channels_last)
        hidden = F.conv2d(images, first.weight * self.scale, first.bias, first.stride, first.padding)
        for layer in others:
            hidden = layer(hidden)
        return self.project(hidden.flatten(1))


class JointEncoder(nn.Module):
    """Images and numbers in one vector, `(M, features)` to `(M, d_model)`: the sum of what their encoders make of them.

    `EnvironmentSpec.images` says where the images are.
    """

    def __init__(self, spec: EnvironmentSpec, d_model: int) -> None:
        super().__init__()
        of_image = {"images": (), "observation_scale": 1 / 255, "observation_mean": None, "observation_std": None}
        self.shapes = spec.images
        self.images = nn.ModuleList(
            ImageEncoder(replace(spec, observation_shape=shape, **of_image), d_model) for shape in spec.images
        )
        self.numbers = Linear(spec.numbers, d_model) if spec.numbers else None

    def forward(self, flat: Tensor) -> Tensor:
        """Encode vectors `(M, features)`, the images in them unscaled, to `(M, d_model)`."""
        sizes = [math.prod(shape) for shape in self.shapes]
        *images, numbers = flat.split([*sizes, flat.shape[1] - sum(sizes)], dim=1)
        parts = [
            encode(image.unflatten(1, shape))
            for encode, image, shape in zip(self.images, images, self.shapes, strict=True)
        ]
        parts += [] if self.numbers is None else [self.numbers(numbers)]
        return torch.stack(parts).sum(0)


class TokenEncoder(nn.Module):
    """Encodes each of the three token kinds of a step to `d_model` numbers.

    Args:
        spec: what observations and actions are.
        d_model: width of a token.
        rtg: encode returns-to-go; False if the agent is not conditioned on returns.
        actions: encode actions; False for an agent that does not see them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EnvironmentSpec, d_model: int, *, rtg: bool = True, actions: bool = True) -> None:
        super().__init__()
        self.spec = spec
        if spec.is_normalised:  # saved with the spec in every checkpoint, so not with the weights
            pixels = spec.observation_shape[0] - spec.numbers  # of images, which come first and stay as they are
            mean, std = (0.0,) * pixels + (spec.observation_mean or ()), (1.0,) * pixels + (spec.observation_std or ())
            self.register_buffer("mean", torch.tensor(mean), persistent=False)
            self.register_buffer("std", torch.tensor(std), persistent=False)
        observation = _observation_encoder(spec, d_model)
        self.observation = _with_tanh(observation, spec.observation_tanh)
        self.d_model = d_model
        self.action = _with_tanh(self._action_table(), spec.action_tanh) if actions else None
        self.rtg = _with_tanh(Linear(1, d_model), spec.return_tanh) if rtg else None
        if spec.oracle:
            self.oracle = OracleEncoder(spec.oracle, d_model)

    def _action_table(self) -> nn.Module:
        spec = self.spec
        if spec.continuous:
            return Linear(spec.num_actions, self.d_model)
        return nn.Embedding(spec.action_embeddings or spec.num_actions, self.d_model)

    def encode_observations(self, observations: Tensor | Frames) -> Tensor:
        """Encode `(B, T, *observation_shape)` of any dtype to `(B, T, d_model)`. Images may be uint8: scaling happens
        here.

        `Frames` must come from `encode_frames`.
        """
        if isinstance(observations, Frames):
            return observations.dense()
        batch, steps = observations.shape[:2]
        return self._encode(observations.flatten(0, 1)).view(batch, steps, -1)

    def encode_frames(self, frames: Frames) -> Frames:
        """Encode every distinct image to `(d_model,)`, once for all segments that show it."""
        return frames.map(self._encode)

    def _encode(self, flat: Tensor) -> Tensor:
        """Encode `(M, *observation_shape)` of any dtype to `(M, d_model)`."""
        # Converted and scaled on the device: a uint8 image crosses the bus at a quarter of the size.
        if not self.spec.is_image:
            flat = flat.to(self.parameter_dtype) * self.spec.observation_scale
        if self.spec.is_normalised:
            flat = (flat - self.mean) / self.std
        return self.observation(flat)

    def calibrate(self, observations: Tensor | Frames | FrameStack) -> None:
        """Fit the image encoder's initial weights to observations `(B, T, *observation_shape)`; see `ImageEncoder`.

        Raises:
            ValueError: observations are not images.
        """
        if not self.spec.is_image:
            raise ValueError("observations are not images")
        pictures = observations.size if isinstance(observations, FrameStack) else 1
        dense = observations if isinstance(observations, Tensor) else observations.dense()
        encoder = next(module for module in self.observation.modules() if isinstance(module, ImageEncoder))
        encoder.calibrate(dense.flatten(0, 1), pictures=pictures)

    def encode_actions(self, actions: Tensor) -> Tensor:
        """Encode `(B, T)` int64, or `(B, T, num_actions)` float when continuous, to `(B, T, d_model)`; zeros if the
        agent does not see them."""
        if self.action is None:
            return torch.zeros(*actions.shape[:2], self.d_model, device=actions.device)
        if torch.is_grad_enabled() or self.spec.continuous or not self.spec.action_tanh:
            return self.action(actions)
        # A tanh of the table, which has a few rows, in place of one of every row that is looked up.
        every = torch.arange(self.spec.action_embeddings or self.spec.num_actions, device=actions.device)
        return F.embedding(actions, self.action(every))

    def encode_infos(self, infos: Mapping[str, Tensor] | None) -> Tensor | None:
        """Encode an oracle's privileged arrays `(B, T, n)`, by name, to `(B, T, d_model)`.

        None if the agent is not an oracle. Raises UserError if an oracle gets no arrays.
        """
        if not self.spec.oracle:
            return None
        if infos is None:
            names = ", ".join(kind.name for kind in self.spec.oracle)
            raise UserError(
                f"this agent is an oracle, trained with --oracle: it needs {names}, which only data provides, and "
                "cannot be evaluated; see its validation loss, or let it drive (dataset.py --driver)"
            )
        return self.oracle(infos)

    def encode_rtg(self, rtg: Tensor) -> Tensor:
        """Encode `(B, T)` returns-to-go in units of reward to `(B, T, d_model)`."""
        assert self.rtg is not None
        return self.rtg((rtg * self.spec.return_scale).unsqueeze(-1))

    @property
    def parameter_dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.parameters()).dtype


class OracleEncoder(nn.Module):
    """A linear map of privileged arrays of the data. Their scale is saved with the weights."""

    def __init__(self, kinds: Sequence[PrivilegedKind], d_model: int) -> None:
        super().__init__()
        self.privileged = nn.ModuleList(map(Privileged, kinds))
        self.project = Linear(sum(kind.numbers for kind in kinds), d_model)

    def forward(self, infos: Mapping[str, Tensor]) -> Tensor:
        """`(B, T, n)` by name to `(B, T, d_model)`."""
        seen = [each.inputs(infos[each.kind.name]) for each in self.arrays]
        return self.project(torch.cat(seen, dim=-1))

    @property
    def arrays(self) -> list[Privileged]:
        """The arrays, in the order of the spec."""
        return [each for each in self.privileged if isinstance(each, Privileged)]


class ActionHead(nn.Module):
    """Maps hidden states to action logits, or to actions in [-1, 1] when continuous."""

    def __init__(self, spec: EnvironmentSpec, d_model: int) -> None:
        super().__init__()
        self.project = Linear(d_model, spec.num_actions, bias=spec.continuous)
        self.squash = nn.Tanh() if spec.continuous else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., d_model)` to `(..., num_actions)`."""
        return self.squash(self.project(hidden))
