"""How the model sees Memory Maze: images, six actions, and the published encoder variant."""

from dataclasses import replace

from MemoryMaze.MemoryMaze_src.env import NUM_ACTIONS, OBSERVATION_SHAPE
from RATE_model.spec import EnvironmentSpec

SPEC = EnvironmentSpec(
    observation_shape=OBSERVATION_SHAPE,
    num_actions=NUM_ACTIONS,
    observation_scale=1 / 255,
    conv_padding=2,
    observation_tanh=True,
    action_tanh=True,
    return_tanh=True,
)


def spec_of(conv_channels: tuple[int, ...]) -> EnvironmentSpec:
    """`SPEC` with other numbers of channels in the three convolutions than the published 32, 64, 64."""
    return replace(SPEC, conv_channels=conv_channels)
