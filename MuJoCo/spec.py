"""How the model sees a robot: its numbers, actions in [-1, 1], and the published encoder variant."""

from MuJoCo.dataset import Normalisation
from MuJoCo.tasks import RETURN_SCALE, Robot
from RATE_model.spec import EnvironmentSpec


def spec_of(robot: Robot, normalisation: Normalisation | None = None) -> EnvironmentSpec:
    """A robot's spec.

    Args:
        robot: the robot.
        normalisation: the data's observation statistics, which the model applies; None: no normalisation.
    """
    mean, std = (None, None) if normalisation is None else (normalisation.mean.tolist(), normalisation.std.tolist())
    return EnvironmentSpec(
        observation_shape=(robot.observation_size,),
        num_actions=robot.action_size,
        continuous=True,
        observation_mean=mean and tuple(mean),
        observation_std=std and tuple(std),
        return_scale=1 / RETURN_SCALE,
    )
