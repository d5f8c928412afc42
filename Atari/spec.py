"""How the model sees a game: four pictures, its actions, and the published encoder variant."""

from Atari.env import FRAME_STACK
from Atari.games import Game
from RATE_model.data.dopamine import FRAME_SHAPE
from RATE_model.spec import EnvironmentSpec


def spec_of(game: Game, *, return_scale: float = 1.0, conv_channels: tuple[int, ...] = (32, 64, 64)) -> EnvironmentSpec:
    """A game's spec.

    Args:
        game: which.
        return_scale: factor of returns-to-go before a linear map and a tanh encode them; the published system has 1,
            where 20 and 180 look alike. 0: the return token is constant, behaviour cloning.
        conv_channels: of the three convolutions; the default is the published one.
    """
    return EnvironmentSpec(
        observation_shape=(FRAME_STACK, *FRAME_SHAPE),
        num_actions=game.actions,
        observation_scale=1 / 255,
        return_scale=return_scale,
        conv_channels=conv_channels,
        observation_tanh=True,
        action_tanh=True,
        return_tanh=True,
    )
