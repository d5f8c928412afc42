"""MuJoCo's pictures, also without a display."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from RATE_model.acting.video import with_caption
from RATE_model.errors import UserError
from RATE_model.system import offscreen

_PACKAGES = (
    f"apt-get install {offscreen.EGL_PACKAGES} (Debian; for MUJOCO_GL=egl), "
    f"or {offscreen.OSMESA_PACKAGES} (for MUJOCO_GL=osmesa)"
)


def rendering(render_mode: str) -> dict[str, Any]:
    """Arguments that render a robot from a camera that follows it. Raises UserError; see `choose_renderer`."""
    choose_renderer()
    return {"render_mode": render_mode, "width": 320, "height": 320, "camera_name": "track"}


def choose_renderer() -> None:
    """Let MuJoCo render without a display, with EGL or else OSMesa, unless MUJOCO_GL is set.

    Raises:
        UserError: neither works.
    """
    if not offscreen.choose_backend("MUJOCO_GL"):
        raise UserError(f"--video: no rendering library for MuJoCo is installed: {_PACKAGES}")


def frame(environment: gymnasium.Env, caption: Sequence[str]) -> np.ndarray:
    """One frame of a video, (H, W, 3) uint8. Raises UserError if OpenGL is missing or broken."""
    try:
        picture = np.asarray(environment.render())
    except Exception as error:  # the type of error depends on where OpenGL fails
        how = os.environ.get("MUJOCO_GL")
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"--video: MuJoCo cannot draw with MUJOCO_GL={how} ({reason}). {_PACKAGES}") from error
    return with_caption(picture, *caption)
