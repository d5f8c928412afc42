"""The packages and the graphics library that Memory Maze needs, found before they are imported.

dm_control decides once, on import, how it draws: from ``MUJOCO_GL``. Without a display that is EGL (a graphics card, or
Mesa's software renderer) or OSMesa, and a library that is missing shows as an error deep inside. So both are tried by
themselves first.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from types import ModuleType

from RATE_model.errors import UserError

VARIABLE = "MUJOCO_GL"
EGL_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
OSMESA_PACKAGES = "libosmesa6"
INSTALL_HINT = "pip install -e '.[memory-maze]'"
if sys.version_info >= (3, 13):
    INSTALL_HINT += " with Python 3.11 or 3.12 (labmaze, which it needs, has no wheels for later ones)"

_PACKAGE = "memory_maze"
_EGL_EXTENSION_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT


@functools.cache
def maze_tasks() -> ModuleType:
    """``memory_maze.tasks``, ready to draw; sets ``MUJOCO_GL`` where the user has not.

    The package registers its environments with the old ``gym`` on import and fails without it. Its tasks do not need
    it: they are imported under a bare parent module with the package's path.

    Raises:
        UserError: a package is missing or of a version that does not work, or no graphics library works.
    """
    spec = importlib.util.find_spec(_PACKAGE)  # finds it, does not run it
    if spec is None:
        raise UserError(f"Memory Maze needs the package memory-maze: {INSTALL_HINT}")
    _check_mujoco()
    _choose_backend()
    # An image of 64x64 pixels is a single tile to Mesa's software renderer: more threads have nothing to do.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations or ())
        package.__spec__ = spec
        sys.modules[_PACKAGE] = package
    try:
        if importlib.import_module("dm_control._render").BACKEND == "glfw":
            _check_display()
        return importlib.import_module(f"{_PACKAGE}.tasks")
    except ModuleNotFoundError as error:
        raise UserError(f"Memory Maze needs the package {error.name}: {INSTALL_HINT}") from error
    except Exception as error:  # each graphics library fails in its own way
        raise _cannot_draw(f"{VARIABLE}={os.environ[VARIABLE]} does not work here ({error})") from error


def _check_mujoco() -> None:
    """Version 4 of mujoco breaks the newest dm_control, whose error says nothing of it."""
    for name in ("mujoco", "dm_control"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"Memory Maze needs the package {name}: {INSTALL_HINT}")
    version = importlib.metadata.version("mujoco")
    if int(version.split(".")[0]) >= 4:
        raise UserError(f"Memory Maze needs mujoco 3.17.0, and {version} is installed: {INSTALL_HINT}")


def _choose_backend() -> None:
    """Set ``MUJOCO_GL`` to what works; what the user set stays."""
    given = os.environ.get(VARIABLE, "").strip().lower()
    if given in ("disable", "disabled", "off", "false", "0"):
        raise UserError(f"{VARIABLE}={given} disables rendering, which Memory Maze needs; unset it.")
    if given:
        return
    if _egl_works():
        os.environ[VARIABLE] = "egl"
    elif _osmesa_works():
        os.environ[VARIABLE] = "osmesa"
    else:
        raise _cannot_draw("neither EGL nor OSMesa works here")


def _check_display() -> None:
    """GLFW can be imported where it cannot draw: it draws in windows, of which there are none without a display."""
    if not importlib.import_module("glfw").init():
        raise RuntimeError("it means GLFW, which needs a display")


def _egl_works() -> bool:
    """Whether EGL opens a display without a screen on any device, and OpenGL is there to draw on it."""
    with contextlib.suppress(OSError, AttributeError):
        egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
        if not (ctypes.util.find_library("OpenGL") or ctypes.util.find_library("GL")):
            return False
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        query, display_of = (
            egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")
        )
        if not (query and display_of):
            return False
        pointer, number = ctypes.c_void_p, ctypes.c_int
        query = ctypes.CFUNCTYPE(ctypes.c_uint, number, ctypes.POINTER(pointer), ctypes.POINTER(number))(query)
        display_of = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, ctypes.POINTER(number))(display_of)
        devices, count = (pointer * 16)(), number()
        if not query(16, devices, ctypes.byref(count)):
            return False
        for device in devices[: count.value]:
            display = display_of(_EGL_EXTENSION_DEVICE, device, None)
            if display and egl.eglInitialize(pointer(display), None, None):
                return True  # left open: another user of EGL in this process may be given the same display
    return False


def _osmesa_works() -> bool:
    """Whether OSMesa can be loaded."""
    for name in (ctypes.util.find_library("OSMesa"), "libOSMesa.so.8", "libOSMesa.so.6"):
        with contextlib.suppress(OSError):
            if name and ctypes.CDLL(name):
                return True
    return False


def _cannot_draw(problem: str) -> UserError:
    return UserError(
        f"Memory Maze cannot draw: {problem}. On Debian or Ubuntu: apt-get install {EGL_PACKAGES} (EGL), or "
        f"{OSMESA_PACKAGES} and {VARIABLE}=osmesa."
    )
