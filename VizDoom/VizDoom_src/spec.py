"""How the model sees ViZDoom-Two-Colors: images, five actions, and the published encoder variant."""

from RATE_model.spec import EnvironmentSpec
from VizDoom.VizDoom_src.env import NUM_ACTIONS, OBSERVATION_SHAPE

SPEC = EnvironmentSpec(
    observation_shape=OBSERVATION_SHAPE,
    num_actions=NUM_ACTIONS,
    observation_scale=1 / 255,
    observation_tanh=True,
    action_tanh=True,
    return_tanh=True,
)
