"""The packages and the graphics library that Memory Maze needs, found before they are imported.

dm_control decides once, on import, how it draws: from ``MUJOCO_GL``. Without a display that is EGL or OSMesa.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from RATE_model.errors import UserError
from RATE_model.system import offscreen, packages

VARIABLE = "MUJOCO_GL"
INSTALL_HINT = packages.extra("memory-maze")
if sys.version_info >= (3, 13):
    INSTALL_HINT += " with Python 3.11 or 3.12 (labmaze, which it needs, has no wheels for later ones)"

_PACKAGE = "memory_maze"


@functools.cache
def mujoco() -> Any:
    """The package mujoco, untyped because it is compiled. Call `maze_tasks` first: it chooses how to draw."""
    return importlib.import_module("mujoco")


@functools.cache
def maze_tasks() -> ModuleType:
    """``memory_maze.tasks``, ready to draw; sets ``MUJOCO_GL`` unless the user has.

    The package registers its environments with the old ``gym`` on import and fails without it. Its tasks do not need
    it: they are imported under a bare parent module with the package's path.

    Raises:
        UserError: a package is missing or of a version that does not work, or no graphics library works.
    """
    spec = check_installed()
    _choose_backend()
    # An image of 64x64 pixels is a single tile to Mesa's software renderer: more threads have nothing to do.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations or ())
        package.__spec__ = spec
        sys.modules[_PACKAGE] = package
    try:
        backend = importlib.import_module("dm_control._render").BACKEND
        if backend == "glfw" and not importlib.import_module("glfw").init():  # it can be imported without a display
            raise RuntimeError("it means GLFW, which needs a display")
        return importlib.import_module(f"{_PACKAGE}.tasks")
    except ModuleNotFoundError as error:
        raise UserError(f"Memory Maze needs the package {error.name}: {INSTALL_HINT}") from error
    except Exception as error:  # each graphics library fails in its own way
        raise _cannot_draw(f"{VARIABLE}={os.environ[VARIABLE]} does not work here ({error})") from error


def check_installed() -> ModuleSpec:
    """Where memory-maze is, without importing it; raises UserError if it or a package it needs is missing."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:
        raise UserError(f"Memory Maze needs the package memory-maze: {INSTALL_HINT}")
    for name in ("mujoco", "dm_control"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"Memory Maze needs the package {name}: {INSTALL_HINT}")
    version = importlib.metadata.version("mujoco")  # version 4 breaks the newest dm_control, whose error is unclear
    if int(version.split(".")[0]) >= 4:
        raise UserError(f"Memory Maze needs mujoco 3.17.0, and {version} is installed: {INSTALL_HINT}")
    return spec


def _choose_backend() -> None:
    """Set ``MUJOCO_GL`` to what works, unless the user has set it."""
    given = os.environ.get(VARIABLE, "").strip().lower()
    if given in ("disable", "disabled", "off", "false", "0"):
        raise UserError(f"{VARIABLE}={given} disables rendering, which Memory Maze needs; unset it.")
    if not offscreen.choose_backend(VARIABLE):
        raise _cannot_draw("neither EGL nor OSMesa works here")


def _cannot_draw(problem: str) -> UserError:
    return UserError(
        f"Memory Maze cannot draw: {problem}. On Debian or Ubuntu: apt-get install {offscreen.EGL_PACKAGES} (EGL), or "
        f"{offscreen.OSMESA_PACKAGES} and {VARIABLE}=osmesa."
    )
