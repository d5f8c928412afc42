"""MuJoCo's pictures, also without a display."""

from __future__ import annotations

import os
from typing import Any

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


def cannot_draw(error: Exception) -> UserError:
    """Says why a picture failed, and what to install."""
    how, reason = os.environ.get("MUJOCO_GL"), str(error).partition("\n")[0][:200]
    return UserError(f"--video: MuJoCo cannot draw with MUJOCO_GL={how} ({reason}). {_PACKAGES}")
