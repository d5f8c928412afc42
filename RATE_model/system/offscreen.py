"""Which graphics library can draw without a screen: EGL (a graphics card, or Mesa's software renderer), or OSMesa.

A library that is missing shows as an error deep inside what draws with it. So both are tried here first.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os

EGL_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
OSMESA_PACKAGES = "libosmesa6"

_EGL_EXTENSION_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT


def choose_backend(variable: str) -> bool:
    """Set this environment variable to what works here, "egl" or "osmesa", unless the user has set it; False if neither
    does."""
    if not os.environ.get(variable, "").strip():
        found = "egl" if egl_works() else "osmesa" if osmesa_works() else None
        if found is None:
            return False
        os.environ[variable] = found
    return True


def egl_works() -> bool:
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


def osmesa_works() -> bool:
    """Whether OSMesa can be loaded."""
    for name in (ctypes.util.find_library("OSMesa"), "libOSMesa.so.8", "libOSMesa.so.6"):
        with contextlib.suppress(OSError):
            if name and ctypes.CDLL(name):
                return True
    return False
