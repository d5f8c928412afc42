"""How the model sees a robot: its numbers, actions in [-1, 1], and the published encoder variant."""

from MuJoCo.tasks import RETURN_SCALE, Robot
from RATE_model.spec import EnvironmentSpec


def spec_of(robot: Robot, *, condition_on_returns: bool = True) -> EnvironmentSpec:
    """A robot's spec. Without returns the return token is the same at every step: behaviour cloning."""
    return EnvironmentSpec(
        observation_shape=(robot.observation_size,),
        num_actions=robot.action_size,
        continuous=True,
        return_scale=1 / RETURN_SCALE if condition_on_returns else 0.0,
    )
