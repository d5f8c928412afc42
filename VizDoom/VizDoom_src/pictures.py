"""Pictures for ViZDoom-Two-Colors: returns by colour, and video frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from RATE_model.acting.rollout import mean_and_error
from RATE_model.acting.video import with_caption
from RATE_model.plots import plot_bars
from VizDoom.VizDoom_src.env import VizDoomTwoColorsEnv
from VizDoom.VizDoom_src.evaluate import COLOURS, Played
from VizDoom.VizDoom_src.expert import FULL_HEALTH

BAR_COLOURS = {"red": "#D55E00", "green": "#009E73"}
_DRAWN = {True: (235, 30, 30), False: (40, 220, 60)}
_BAND = 24  # pixels, height of the band below a picture


def bars_of(played: Played) -> dict[str, tuple[float, float]]:
    """Mean return and its standard error over episodes, by colour."""
    return {colour: mean_and_error(played.returns(colour)) for colour in COLOURS}


def returns_by_colour(
    groups: Mapping[str, Mapping[str, tuple[float, float]]], path: Path, *, title: str | None = None
) -> Path:
    """Draw returns, `{group: {colour: (mean, standard error)}}`, side by side."""
    return plot_bars(groups, path, ylabel="return", colours=BAR_COLOURS, title=title)


def frame(game: VizDoomTwoColorsEnv, caption: Sequence[str]) -> np.ndarray:
    """One video frame, (H, W, 3) uint8: the player's view, a health bar, and the caption.

    The bar and the square to its left have the colour to remember.
    """
    picture, is_red = game.render(), game.is_red
    assert picture is not None, "it was made to be seen"
    width, colour = picture.shape[1], _DRAWN[is_red]
    band = np.zeros((_BAND, width, 3), dtype=np.uint8)
    band[2:-2, 4 : _BAND + 4] = colour
    left = _BAND + 12
    band[8:-8, left : width - 4] = 60
    band[8:-8, left : left + round((width - 4 - left) * min(1.0, max(0.0, game.health) / FULL_HEALTH))] = colour
    what = f"remember {COLOURS[not is_red]}; health {max(0.0, game.health):.0f}"
    return with_caption(np.concatenate([picture, band]), what, *caption)
