"""What MuJoCo draws, also where there is no screen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ctypes.util import find_library
from typing import Any

import gymnasium
import numpy as np

from RATE_model.acting.video import with_caption
from RATE_model.errors import UserError

# What MuJoCo can draw with, where there is no screen, and what it needs.
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_PACKAGES = (
    "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0 (Debian; for MUJOCO_GL=egl), "
    "or libosmesa6 (for MUJOCO_GL=osmesa)"
)


def rendering(render_mode: str) -> dict[str, Any]:
    """How a robot that is drawn is made: from a camera that follows it. Raises UserError; see `choose_renderer`."""
    choose_renderer()
    return {"render_mode": render_mode, "width": 320, "height": 320, "camera_name": "track"}


def choose_renderer() -> None:
    """Let MuJoCo draw without a screen, by EGL or else OSMesa, unless MUJOCO_GL says how.

    Raises:
        UserError: neither is installed.
    """
    if "MUJOCO_GL" in os.environ:
        return
    found = [name for name, library in _LIBRARIES.items() if find_library(library)]
    if not found:
        raise UserError(f"--video: no rendering library for MuJoCo is installed: {_PACKAGES}")
    os.environ["MUJOCO_GL"] = found[0]


def frame(environment: gymnasium.Env, caption: Sequence[str]) -> np.ndarray:
    """One picture of a video, (H, W, 3) uint8. Raises UserError if OpenGL is missing or broken."""
    try:
        picture = np.asarray(environment.render())
    except Exception as error:  # what a missing or broken OpenGL raises depends on where it fails
        how = os.environ.get("MUJOCO_GL")
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"--video: MuJoCo cannot draw with MUJOCO_GL={how} ({reason}). {_PACKAGES}") from error
    return with_caption(picture, *caption)
