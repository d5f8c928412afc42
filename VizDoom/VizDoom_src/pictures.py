"""Pictures of what a model does in ViZDoom-Two-Colors: returns by colour, with and without its memory, and videos."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import exchange_twins, memory_conditions
from RATE_model.acting.rollout import evaluating, mean_and_error
from RATE_model.acting.video import with_caption, write_video
from RATE_model.agent import Agent
from RATE_model.memories.contract import MemoryTransform
from RATE_model.plots import plot_bars, plot_curves
from VizDoom.VizDoom_src.env import PUBLISHED_CAP, VizDoomTwoColorsEnv
from VizDoom.VizDoom_src.evaluate import COLOURS, Played, colour_options, has_free_colour, play
from VizDoom.VizDoom_src.expert import FULL_HEALTH
from VizDoom.VizDoom_src.scenario import Scenario

BAR_COLOURS = {"red": "#D55E00", "green": "#009E73"}
_DRAWN = {True: (235, 30, 30), False: (40, 220, 60)}
_BAND = 24  # pixels of what is drawn below a picture
_OUTCOME_FRAMES = 18  # about a second


def draw_run(directory: Path, result: Mapping[str, float], *, target_return: float) -> list[Path]:
    """The pictures of a run that is over, into its plots/: training curves, and returns by colour if it was evaluated.

    Args:
        directory: of the run.
        result: of its last evaluation.
        target_return: what was asked for there.

    Returns:
        The PNGs' paths.
    """
    plots, asked = directory / "plots", f"{target_return:g}"
    names = {colour: f"ReturnsMean_{colour}_{asked}" for colour in COLOURS}
    curves = {directory.name: directory / "metrics.jsonl"}
    paths = [plot_curves(curves, plots / "curves.png", ("train_loss", "train_accuracy", *names.values()))]
    if names["red"] in result:
        bars = {colour: (result[name], result[f"ReturnsSEM_{colour}_{asked}"]) for colour, name in names.items()}
        paths.append(returns_by_colour({directory.name: bars}, plots / "returns_by_colour.png"))
    return paths


def bars_of(played: Played) -> dict[str, tuple[float, float]]:
    """Mean return and its standard error over episodes, by colour."""
    return {colour: mean_and_error(played.returns(colour)) for colour in COLOURS}


def returns_by_colour(
    groups: Mapping[str, Mapping[str, tuple[float, float]]], path: Path, *, title: str | None = None
) -> Path:
    """Draw returns, `{group: {colour: (mean, standard error)}}`, side by side."""
    return plot_bars(groups, path, ylabel="return", colours=BAR_COLOURS, title=title)


def knock_out(
    model: Agent, *, known: Played | None = None, known_with: MemoryTransform | None = None, **acting: Any
) -> dict[str, Played]:
    """Episodes with the memory as it is and without (see `memory_conditions`).

    Where the colour can be chosen, also with the memories of twins exchanged (see `exchange_twins`): what is not about
    the colour is then left to the agent. `known` are episodes that were played already, with the `transform_memory`
    `known_with`; `acting` goes to `play`.
    """
    conditions: dict[str, MemoryTransform | None] = memory_conditions(model)
    played = {}
    with evaluating(model):
        for label, transform in conditions.items():
            there = known is not None and transform is known_with
            played[label] = known if there else play(model, transform_memory=transform, **acting)
        if len(conditions) > 1 and has_free_colour(acting.get("scenario") or Scenario()):
            exchanged = play(model, transform_memory=exchange_twins(), twins=True, **acting)
            played["memories of twins exchanged"] = exchanged
    return played


def record_videos(
    model: Agent,
    seeds: Sequence[int],
    colours: Sequence[bool],
    directory: Path,
    *,
    target_return: float,
    scenario: Scenario | None = None,
    max_steps: int = PUBLISHED_CAP,
    reset_target: bool = False,
    greedy: bool = True,
    slide: int = 1,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
) -> list[Path]:
    """One MP4 per seed: what the player sees; below it the colour to remember, health, rewards, the segment.

    They are the episodes of `play` where the most probable actions are taken. Actions that are drawn are others than
    there, where the draws of all episodes come from one stream; here each has its seed's.

    Args:
        model: in eval mode.
        seeds: one episode each.
        colours: whether the pillar of each is red.
        directory: where {colour}_seed_{seed}.mp4 go.
        target_return, reset_target, scenario, max_steps, greedy, slide, transform_memory, precision: as in `play`.
    """
    scenario = scenario or Scenario()
    options = {"greedy": greedy, "transform_memory": transform_memory, "precision": precision}
    options["reset_target"] = reset_target
    options["slide"] = slide
    game = VizDoomTwoColorsEnv(scenario, max_steps=max_steps, render_mode="rgb_array")
    paths = []
    try:
        for seed, is_red in zip(seeds, colours, strict=True):
            actor = Actor(model, 1, target_return, seed=seed, **options)
            frames = _frames(game, actor, seed, colour_options(scenario, is_red))
            path = directory / f"{COLOURS[not is_red]}_seed_{seed}.mp4"
            paths.append(write_video(frames, path, fps=round(game.metadata["render_fps"]), quality=5))
    finally:
        game.close()
    return paths


def _frames(game: VizDoomTwoColorsEnv, actor: Actor, seed: int, options: dict[str, Any] | None) -> Iterator[np.ndarray]:
    """The pictures of one episode as it is played, and a second of its last one to read the outcome."""
    observation, info = game.reset(seed=seed, options=options)
    total, reward, steps, over, said = 0.0, 0.0, 0, False, ""
    context = actor.agent.memory.segment
    while True:
        segment = steps // context + 1
        screen = game.render()
        assert screen is not None  # it was made to be seen
        shown = _frame(screen, info, reward, f"return {total:.2f}, step {steps}, segment {segment}{said}")
        yield shown
        if over:
            break
        action = actor.act(observation[None], np.array([reward]))[0]
        observation, reward, dead, truncated, info = game.step(int(action))
        total, steps, over = total + reward, steps + 1, dead or truncated
        said = "" if not over else ": dead" if dead else ": still alive"
    for _ in range(_OUTCOME_FRAMES):
        yield shown


def _frame(picture: np.ndarray, info: Mapping[str, Any], reward: float, line: str) -> np.ndarray:
    """One picture of a video, (H, W, 3) uint8: what the player sees, a bar of its health, and what there is to say.

    The reward is that of the step that led here. The bar, and the square left of it, have the colour to remember.
    """
    width, colour = picture.shape[1], _DRAWN[bool(info["is_red"])]
    health = max(0.0, info["health"])
    band = np.zeros((_BAND, width, 3), dtype=np.uint8)
    band[2:-2, 4 : _BAND + 4] = colour
    left = _BAND + 12
    band[8:-8, left : width - 4] = 60
    band[8:-8, left : left + round((width - 4 - left) * min(1.0, health / FULL_HEALTH))] = colour
    remembered = COLOURS[not info["is_red"]]
    what = f"remember {remembered}; health {health:.0f}, reward {reward:.2f}"
    return with_caption(np.concatenate([picture, band]), what, line)
