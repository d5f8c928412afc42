"""The description of an environment that the model needs.

The model package does not know environments by name. An environment describes its observations, actions and published
encoder variant with one `EnvironmentSpec`; the encoders, the head and the loss follow from it.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

# Arguments of `EnvironmentSpec`: for images stored as uint8, and for a tanh after every encoder.
IMAGES: dict[str, Any] = {"observation_scale": 1 / 255}
TANH: dict[str, Any] = {"observation_tanh": True, "action_tanh": True, "return_tanh": True}


@dataclass(frozen=True)
class PrivilegedKind:
    """A privileged array `infos/NAME` of the data, which an acting agent never sees.

    Attributes:
        name: NAME.
        width: numbers per step.
        classes: number of values if they are integers; 0: real numbers.
    """

    name: str
    width: int
    classes: int

    @property
    def numbers(self) -> int:
        """Numbers per step that a model sees or predicts."""
        return self.width * max(1, self.classes)


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What the model needs to know about an environment."""

    # (features,) for a vector, (channels, height, width) for an image
    observation_shape: tuple[int, ...]
    # (channels, height, width) of images that a vector begins with, flattened, with values of 0 to 255; the numbers
    # after them are a vector of their own. Empty: the vector holds no images
    images: tuple[tuple[int, ...], ...] = ()
    # Number of discrete actions, or of action dimensions when `continuous`
    num_actions: int
    # Actions are vectors in [-1, 1], predicted by a tanh head, with a mean squared error
    continuous: bool = False
    # Rows of the action embedding; more than `num_actions` means that row `num_actions` stands for padding
    action_embeddings: int | None = None
    # Observations are multiplied by this before they are encoded (1/255 for images stored as uint8)
    observation_scale: float = 1.0
    # Mean and standard deviation per number of a vector, `images` left out, to normalise them before they are encoded,
    # in training and acting. Both or neither
    observation_mean: tuple[float, ...] | None = None
    observation_std: tuple[float, ...] | None = None
    # Returns-to-go are multiplied by this before they are encoded, in training and acting
    return_scale: float = 1.0
    # Padding of all three convolutions (images only)
    conv_padding: int = 0
    # Channels of the three convolutions (images only); fewer are faster and less accurate
    conv_channels: tuple[int, ...] = (32, 64, 64)
    # A tanh after the observation, action and return encoders
    observation_tanh: bool = False
    action_tanh: bool = False
    return_tanh: bool = False
    # For an oracle: privileged arrays that it sees with every observation
    oracle: tuple[PrivilegedKind, ...] = ()

    def __post_init__(self) -> None:
        if len(self.observation_shape) not in (1, 3) or min(self.observation_shape) < 1:
            raise ValueError(
                f"observation_shape {self.observation_shape}: give (features,) or (channels, height, width)"
            )
        if self.images and (self.is_image or self.numbers < 0):
            raise ValueError(f"images {self.images}: they do not fit into observation_shape {self.observation_shape}")
        if self.is_normalised:
            statistics = self.observation_mean or (), self.observation_std or ()
            if self.is_image or {len(values) for values in statistics} != {self.numbers}:
                raise ValueError(f"observation_mean and _std: give {self.numbers} numbers each")
            if not all(map(math.isfinite, itertools.chain(*statistics))) or min(statistics[1]) <= 0:
                raise ValueError("observation_mean and _std: must be finite, and the standard deviations above 0")
        if len(self.conv_channels) != 3 or min(self.conv_channels) < 1:
            raise ValueError(f"conv_channels {self.conv_channels}: give three positive numbers")
        if self.num_actions < 1:
            raise ValueError(f"num_actions {self.num_actions}: must be at least 1")
        if self.action_embeddings is not None and self.action_embeddings < self.num_actions:
            raise ValueError(f"action_embeddings {self.action_embeddings} is less than num_actions {self.num_actions}")

    @property
    def is_image(self) -> bool:
        """Whether observations are images."""
        return len(self.observation_shape) == 3

    @property
    def numbers(self) -> int:
        """Numbers of an observation besides images."""
        return 0 if self.is_image else self.observation_shape[0] - sum(map(math.prod, self.images))

    @property
    def is_normalised(self) -> bool:
        """Whether observations are normalised before they are encoded."""
        return self.observation_mean is not None or self.observation_std is not None
