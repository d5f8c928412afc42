"""Videos of what a model does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from Atari.env import PUBLISHED_CAP, AtariEnv, Opening
from Atari.evaluate import ClippedRewards, evaluation_seeds
from Atari.games import Game
from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import BatchActor
from RATE_model.acting.video import with_caption, write_video
from RATE_model.agent import Agent

_ENLARGE = 2  # a console's pixel, in pixels of a video


def record_videos(
    model: Agent,
    game: Game,
    count: int,
    directory: Path,
    *,
    target_return: float,
    sticky: float = 0.0,
    max_steps: int = PUBLISHED_CAP,
    opening: Opening = "black",
    seed: int = 0,
    clip_rewards: bool = False,
    slide: int = 1,
    **acting: Any,
) -> list[Path]:
    """One MP4 per episode, with the step, the points so far and the action.

    Args:
        model: in eval mode.
        game: which.
        count: episodes, with the first seeds of the evaluation.
        directory: where {game}_return_{target}_{number}.mp4 go.
        target_return: the return to ask for.
        sticky, max_steps, opening: of the environment.
        seed: of the actions drawn in the first episode; the others have the next ones.
        clip_rewards: the model was trained on clipped rewards; see `ClippedRewards`.
        slide, acting: of `Actor`.

    Raises:
        UserError: the files cannot be written.
    """
    environment = AtariEnv(game.name, sticky=sticky, max_steps=max_steps, opening=opening, render_mode="rgb_array")
    steps = model.memory.segment
    paths = []
    for number, episode in enumerate(evaluation_seeds(count)):
        actor = Actor(model, 1, target_return, seed=seed + number, slide=min(slide, steps), **acting)
        player = ClippedRewards(actor) if clip_rewards else actor
        path = directory / f"{game.name}_return_{target_return:g}_{number}.mp4"
        frames = _frames(environment, player, int(episode), steps)
        paths.append(write_video(frames, path, fps=round(environment.metadata["render_fps"])))
    environment.close()
    return paths


def _frames(environment: AtariEnv, player: BatchActor, seed: int, segment_steps: int) -> Iterator[np.ndarray]:
    """The pictures of one episode as it is played, (H, W, 3) uint8."""
    observation, _ = environment.reset(seed=seed)
    reward, points, step, over = 0.0, 0.0, 0, False
    while not over:
        action = int(player.act(observation[None], np.array([reward]))[0])
        screen = environment.render()
        assert screen is not None  # it was made to be seen
        screen = screen.repeat(_ENLARGE, axis=0).repeat(_ENLARGE, axis=1)
        segment = step // segment_steps + 1
        yield with_caption(screen, f"step {step}, segment {segment}, action {action}", f"{points:g} points")
        observation, reward, terminated, truncated, _ = environment.step(action)
        over, points, step = terminated or truncated, points + reward, step + 1
