"""Videos of what a model does."""

from __future__ import annotations

import os
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np

from MuJoCo.evaluate import Version, evaluation_seeds
from MuJoCo.tasks import Robot, make_environment
from RATE_model.acting.actor import Actor
from RATE_model.acting.video import with_caption, write_video
from RATE_model.agent import Agent
from RATE_model.errors import UserError

# What MuJoCo can draw with, where there is no screen, and what it needs.
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_PACKAGES = (
    "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0 (Debian; for MUJOCO_GL=egl), "
    "or libosmesa6 (for MUJOCO_GL=osmesa)"
)
_RENDERING = {"render_mode": "rgb_array", "width": 320, "height": 320, "camera_name": "track"}  # follows the robot
_FRAMES = 30  # at most so many a second


def record_videos(
    model: Agent,
    robot: Robot,
    count: int,
    directory: Path,
    *,
    target_return: float,
    version: Version = "v4",
    **acting: Any,
) -> list[Path]:
    """One MP4 per episode, with the step and the return so far.

    Args:
        model: in eval mode.
        count: episodes, with the first seeds of the evaluation.
        directory: where {robot}_return_{target}_{number}.mp4 go.
        target_return: the return to ask for.
        acting: of `Actor`.

    Raises:
        UserError: nothing can be drawn on this machine, or the files cannot be written.
    """
    choose_renderer()
    environment = make_environment(robot, version, **_RENDERING)
    rate = environment.metadata["render_fps"]
    every = -(-rate // _FRAMES)
    paths = []
    for number, seed in enumerate(evaluation_seeds(count)):
        actor = Actor(model, 1, target_return, **acting)
        observation, _ = environment.reset(seed=int(seed))
        reward, total, step, over = 0.0, 0.0, 0, False
        frames = [_frame(environment, step, total)]
        while not over:
            action = actor.act(observation[None].astype(np.float32), np.array([reward]))[0]
            observation, reward, terminated, truncated, _ = environment.step(action)
            over, total, step = terminated or truncated, total + float(reward), step + 1
            if over or step % every == 0:
                frames.append(_frame(environment, step, total))
        path = directory / f"{robot.name}_return_{target_return:g}_{number}.mp4"
        paths.append(write_video(frames, path, fps=rate // every))
    environment.close()
    return paths


def choose_renderer() -> None:
    """Let MuJoCo draw without a screen, by EGL or else OSMesa, unless MUJOCO_GL says how.

    Raises:
        UserError: neither is installed.
    """
    if "MUJOCO_GL" in os.environ:
        return
    found = [name for name, library in _LIBRARIES.items() if find_library(library)]
    if not found:
        raise UserError(f"--video: nothing is installed that MuJoCo could draw with: {_PACKAGES}")
    os.environ["MUJOCO_GL"] = found[0]


def _frame(environment: Any, step: int, total: float) -> np.ndarray:
    """One picture of a video, (H, W, 3) uint8."""
    try:
        picture = environment.render()
    except Exception as error:  # what a missing or broken OpenGL raises depends on where it fails
        how = os.environ.get("MUJOCO_GL")
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"--video: MuJoCo cannot draw with MUJOCO_GL={how} ({reason}). {_PACKAGES}") from error
    return with_caption(picture, f"step {step}, return {total:.0f}")
