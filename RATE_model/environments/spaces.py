"""Conversion between Gymnasium spaces and a model's observations and actions.

observation space                     an observation, as the model sees it
Box, uint8, three dimensions           an image, channels first
Box                                   a vector, float32
Discrete, MultiDiscrete               a one-hot vector
MultiBinary                           a vector of zeros and ones
Dict, Tuple of these                  a vector: first the images, flattened, then the other parts, in the space's order

action space                          an action, as the model predicts it
Discrete                              its number, from 0
MultiDiscrete, MultiBinary            the number of the combination
Box with finite bounds                a vector in [-1, 1]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec

# Limit on the combinations of a MultiDiscrete or MultiBinary action, each of which has its own output.
MAX_COMBINATIONS = 4096
SMALLEST_IMAGE = 36  # pixels; required by the three convolutions
_OBSERVATIONS = (
    "supported are Box (vectors, and images as uint8), Discrete, MultiDiscrete, MultiBinary, and Dict of these"
)
_ACTIONS = "supported are Discrete, MultiDiscrete, MultiBinary, and Box with finite bounds"


@dataclass(frozen=True)
class Observations:
    """Observations of a space as a model sees them.

    Attributes:
        space: the environment's space.
        shape: `(features,)` or `(channels, height, width)`.
        images: `(channels, height, width)` of the images that a vector begins with.
    """

    space: spaces.Space
    shape: tuple[int, ...]
    images: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, space: spaces.Space, *, images: Iterable[Sequence[int]] = ()) -> Observations:
        """Of a space. `images` are those that the vectors of a Box begin with, as in files written here.

        Raises UserError for unsupported spaces.
        """
        if _is_image(space):
            return cls(space, _image_shape(space))
        parts = _parts(space)
        for part in parts:
            if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
                raise UserError(f"observation space {space}: {part} is not supported here; {_OBSERVATIONS}")
        if not spaces.flatdim(space):
            raise UserError(f"observation space {space}: its observations are empty; give at least one number")
        own = tuple(_image_shape(part) for part in parts if _is_image(part))
        return cls(space, (spaces.flatdim(space),), own or tuple(map(tuple, images)))

    @property
    def is_image(self) -> bool:
        """Whether they are images."""
        return len(self.shape) == 3

    @property
    def dtype(self) -> type[np.generic]:
        """uint8 or float32."""
        return np.uint8 if self.is_image else np.float32

    @property
    def box(self) -> spaces.Box:
        """The space that the model sees."""
        if self.is_image:
            return spaces.Box(0, 255, self.shape, np.uint8)
        return spaces.Box(-np.inf, np.inf, self.shape, np.float32)

    def encode(self, observation: Any) -> np.ndarray:
        """One observation as the model sees it. Raises ValueError, KeyError or TypeError if it is not in the space."""
        if self.is_image:
            return _channels_first(self.space, observation)
        if not self.images or isinstance(self.space, spaces.Box):
            return np.asarray(spaces.flatten(self.space, observation), dtype=np.float32)
        leaves = list(_leaves(self.space, observation))
        images = [_channels_first(part, value).reshape(-1) for part, value in leaves if _is_image(part)]
        others = [np.asarray(spaces.flatten(part, value)) for part, value in leaves if not _is_image(part)]
        return np.concatenate([*images, *others]).astype(np.float32)

    def encode_many(self, values: Any) -> np.ndarray:
        """T observations, `(T, ...)` or a dict of these, as the model sees them: `(T, *shape)`."""
        if self.is_image:
            return _channels_first(self.space, values)
        if isinstance(self.space, spaces.Box) or self.is_encoded(values):  # the common case first
            return np.asarray(values, dtype=np.float32).reshape(len(values), *self.shape)
        rows = _rows(values, self.space)
        return np.stack([self.encode(row) for row in rows])

    def is_encoded(self, values: Any) -> bool:
        """Whether T observations are vectors as the model sees them, such as those of a file."""
        return not self.is_image and isinstance(values, np.ndarray) and values.shape[1:] == self.shape


@dataclass(frozen=True)
class Actions:
    """Actions of a space as a model predicts them.

    Attributes:
        space: the environment's space.
        count: number of discrete actions, or of dimensions of continuous ones.
        continuous: whether they are vectors in [-1, 1].
    """

    space: spaces.Space
    count: int
    continuous: bool = False

    @classmethod
    def of(cls, space: spaces.Space) -> Actions:
        """Raises UserError for unsupported spaces."""
        if isinstance(space, spaces.Discrete):
            return cls(space, int(space.n))
        if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
            count = int(np.prod(_sizes(space), dtype=np.float64).clip(max=2**31))
            if count > MAX_COMBINATIONS:
                raise UserError(f"action space {space}: {count} combinations; at most {MAX_COMBINATIONS} are supported")
            return cls(space, count)
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise UserError(f"action space {space}: its bounds are not finite; {_ACTIONS}")
            return cls(space, int(np.prod(space.shape)), continuous=True)
        raise UserError(f"action space {space} is not supported; {_ACTIONS}")

    @property
    def box(self) -> spaces.Space:
        """The space that the model predicts."""
        return spaces.Box(-1, 1, (self.count,), np.float32) if self.continuous else spaces.Discrete(self.count)

    def encode(self, actions: Any) -> np.ndarray:
        """T actions of the space as the model predicts them: `(T,)` int64 or `(T, count)` float32 in [-1, 1].

        Raises:
            ValueError: an action is not in the space; the message names it and what is allowed.
        """
        values = np.asarray(actions)
        steps = len(values)
        if self.continuous:
            assert isinstance(self.space, spaces.Box)
            low, high = self.space.low.reshape(-1), self.space.high.reshape(-1)
            values = values.reshape(steps, -1).astype(np.float64)
            if values.shape[1] != self.count:
                raise ValueError(f"they have {values.shape[1]} dimensions, and an action of the space has {self.count}")
            slack = 1e-4 * (high - low)
            inside = (values >= low - slack) & (values <= high + slack)  # also refuses NaN
            _refuse(values, ~inside, f"between {low.min():g} and {high.max():g}")
            scaled = 2 * (values - low) / np.where(high > low, high - low, 1) - 1
            return scaled.clip(-1, 1).astype(np.float32)
        if not np.issubdtype(values.dtype, np.integer) and not (values == np.round(values)).all():
            raise ValueError("they are not integers")
        values = values.astype(np.int64)
        if isinstance(self.space, spaces.Discrete):
            values = values.reshape(steps, -1)[:, 0] if values.size == steps else values
            if values.shape != (steps,):
                raise ValueError(
                    f"they have the shape {values.shape[1:]}, and an action of the space is a single number"
                )
            values = values - int(self.space.start)
            _refuse(values, (values < 0) | (values >= self.count), f"between 0 and {self.count - 1}")
            return values
        sizes = _sizes(self.space)
        values = values.reshape(steps, -1)
        if values.shape[1] != len(sizes):
            raise ValueError(f"they have {values.shape[1]} parts, and an action of the space has {len(sizes)}")
        _refuse(values, (values < 0) | (values >= sizes), f"below {sizes.tolist()}, each part")
        return np.ravel_multi_index(tuple(values.T), tuple(sizes))

    @property
    def stored(self) -> spaces.Space:
        """The space of actions in files: the environment's; joint numbers for actions of several discrete parts."""
        return self.space if isinstance(self.space, spaces.Box | spaces.Discrete) else self.box

    def store(self, actions: np.ndarray) -> np.ndarray:
        """T predicted actions, `(T,)` or `(T, count)`, in the form that files store: `(T, *stored.shape)`."""
        if self.stored is self.space:
            return np.stack([np.asarray(self.decode(action)) for action in actions])
        return actions

    def decode(self, action: Any) -> Any:
        """The environment's action for a predicted action."""
        if self.continuous:
            assert isinstance(self.space, spaces.Box)
            low, high = self.space.low, self.space.high
            unit = (np.asarray(action, dtype=np.float64).reshape(self.space.shape).clip(-1, 1) + 1) / 2
            return (low + unit * (high - low)).astype(self.space.dtype)
        if isinstance(self.space, spaces.Discrete):
            return int(action) + int(self.space.start)
        parts = np.array(np.unravel_index(int(action), tuple(_sizes(self.space))))
        return parts.reshape(self.space.shape).astype(self.space.dtype)


def spec_of(
    observations: Observations,
    actions: Actions,
    *,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
    return_scale: float = 1.0,
) -> EnvironmentSpec:
    """The spec of an environment.

    Args:
        observations, actions: its spaces.
        mean, std: of a vector's numbers, without images; None: no normalisation.
        return_scale: see `EnvironmentSpec`.
    """
    return EnvironmentSpec(
        observation_shape=observations.shape,
        images=observations.images,
        num_actions=actions.count,
        continuous=actions.continuous,
        observation_scale=1 / 255 if observations.is_image else 1.0,
        observation_mean=None if mean is None else tuple(map(float, mean)),
        observation_std=None if std is None else tuple(map(float, std)),
        return_scale=return_scale,
    )


class Encoded(gymnasium.Wrapper):
    """An environment whose observations and actions are those of the model."""

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self._observations = Observations.of(environment.observation_space)
        self._actions = Actions.of(environment.action_space)
        self.observation_space, self.action_space = self._observations.box, self._actions.box

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the wrapped environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observations.encode(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See the wrapped environment."""
        observation, reward, terminated, truncated, info = self.env.step(self._actions.decode(action))
        return self._observations.encode(observation), float(reward), terminated, truncated, info


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _image_shape(space: spaces.Space) -> tuple[int, ...]:
    """(channels, height, width). Raises UserError for a small one."""
    shape = tuple(space.shape or ())
    shape = (shape[2], *shape[:2]) if _is_channels_last(space) else shape
    if min(shape[1:]) < SMALLEST_IMAGE:
        raise UserError(
            f"observation space {space}: images need at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE} pixels; "
            "enlarge them, or make them vectors with gymnasium.wrappers.FlattenObservation"
        )
    return shape


def _is_channels_last(space: spaces.Space) -> bool:
    first, _, last = np.array(space.shape).tolist()
    return last in (1, 3, 4) and first not in (1, 3, 4)


def _channels_first(space: spaces.Space, images: Any) -> np.ndarray:
    """An image of the space, or T of them."""
    images = np.asarray(images)
    return np.ascontiguousarray(np.moveaxis(images, -1, -3) if _is_channels_last(space) else images)


def _leaves(space: spaces.Space, value: Any) -> Iterator[tuple[spaces.Space, Any]]:
    """The parts of an observation with their spaces, in the order of `_parts`."""
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            yield from _leaves(part, value[name])
    elif isinstance(space, spaces.Tuple):
        for part, inner in zip(space.spaces, value, strict=True):
            yield from _leaves(part, inner)
    else:
        yield space, value


def _parts(space: spaces.Space) -> list[spaces.Space]:
    if isinstance(space, spaces.Dict):
        return [part for inner in space.spaces.values() for part in _parts(inner)]
    if isinstance(space, spaces.Tuple):
        return [part for inner in space.spaces for part in _parts(inner)]
    return [space]


def _sizes(space: spaces.Space) -> np.ndarray:
    """The number of values of each part of an action."""
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.nvec, dtype=np.int64).reshape(-1)
    return np.full(int(np.prod(space.shape or ())), 2)


def _rows(values: Any, space: Any) -> list[Any]:
    """Single observations, also from a dict of columns, in which a tuple's parts are named "0", "1", ..."""
    if isinstance(values, dict) and isinstance(space, spaces.Tuple):
        parts = [_rows(values[str(index)], part) for index, part in enumerate(space.spaces)]
        return list(zip(*parts, strict=True))
    if isinstance(values, dict):
        columns = {name: _rows(column, space[name]) for name, column in values.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return list(values)


def _refuse(values: np.ndarray, wrong: np.ndarray, allowed: str) -> None:
    if wrong.any():
        step = int(np.argwhere(wrong)[0][0])
        raise ValueError(f"action {np.asarray(values[step]).tolist()} at step {step}: must be {allowed}")
