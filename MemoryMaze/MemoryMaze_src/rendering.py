"""Drawing mazes: many at once, with a single copy of their textures.

The textures of a maze take 200 MB, and loading them is the slowest part of starting an episode; but all mazes of a size
share them. So a maze is compiled with one-pixel placeholders, and draws with the textures that were loaded into the
graphics library for the first one: all mazes of a process share one OpenGL context, where a texture is a number.

    shared context   texture numbers  7  8  9 ...   made from the images, once per process and set of textures
                                      |  |  |
    a maze's context texture numbers  7  8  9 ...   its floors, its materials and its buffer; its own numbers are
                                                    put back before it is freed, which deletes them
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np

from MemoryMaze.MemoryMaze_src.graphics import mujoco

_MAX_GEOMS = 2000
_FONT_SCALE = 100  # per cent; nothing is written into the pictures
_ARROW_COLOR = np.array([1.0, 0.0, 1.0, 1.0], dtype=np.float32)
_ARROW_WIDTH = 0.15  # metres

# Contexts must be freed while the OpenGL context exists; remaining ones are freed at exit.
_alive: weakref.WeakSet[Context] = weakref.WeakSet()


class Textures:
    """The textures of a model, taken out of it.

    Attributes:
        elements: of the model's XML, in order; one of every file.
        files: name -> content of the files that they name.

    Args:
        root: the model's XML. Its textures become stand-ins, and materials use the first texture of each file.
        assets: name -> content of all its files.
    """

    def __init__(self, root: ElementTree.Element, assets: Mapping[str, bytes]) -> None:
        self.elements: list[ElementTree.Element] = []
        asset = root.find("asset")
        assert asset is not None  # every maze has textures
        same: dict[str | None, str] = {}  # texture -> the one that replaces it
        first: dict[str, str] = {}  # file -> the first texture of it
        for texture in list(asset.iter("texture")):
            name, file = texture.attrib["name"], texture.get("file")
            texture.attrib.pop("class", None)
            if file in first:
                same[name] = first[file]
                asset.remove(texture)
                continue
            if file is not None:
                first[file] = name
            self.elements.append(ElementTree.fromstring(ElementTree.tostring(texture)))
            kind = texture.attrib["type"]
            texture.attrib.clear()
            texture.attrib.update(name=name, type=kind, builtin="flat", width="1", height="1")
        for material in asset.iter("material"):
            if (name := material.get("texture")) in same:
                material.set("texture", same[name])
        self.files = {name: assets[name] for name in first}

    def load(self) -> Any:
        """MuJoCo's context that holds them in the graphics library; one per process for all equal sets."""
        text = "".join(ElementTree.tostring(element, encoding="unicode") for element in self.elements)
        return _loaded(text, frozenset(self.files.items()))


class Context:
    """What MuJoCo needs to draw one model, with textures that were loaded before.

    ``free()`` releases the graphics memory, as does the end of the object; further calls do nothing.

    Args:
        model: MuJoCo's model, with stand-ins for its textures.
        textures: what they stand for.
    """

    def __init__(self, model: Any, textures: Textures) -> None:
        self._shared = textures.load()
        with _drawing() as thread:
            self._context = thread.call(_make_context, model)
        count = self._shared.ntexture
        own = self._context.texture[:count].copy()
        self._context.texture[:count] = self._shared.texture[:count]
        # Also without an explicit call: a context that is just collected would delete the shared textures.
        self.free = weakref.finalize(self, _free, self._context, own)
        self.free.atexit = False  # too late there: see `_opengl`
        _alive.add(self)

    def draw(self, area: Any, scene: Any, pixels: np.ndarray) -> None:
        """Draw a scene and write its pixels, (height, width, 3) uint8, lowest row first."""
        with _drawing() as thread:
            thread.call(_draw, area, scene, self._context, pixels)


class Camera:
    """Draws square pictures of a model with one of its cameras.

    Args:
        physics: of dm_control.
        context: of its model.
        name: of the camera.
        pixels: height and width.
    """

    def __init__(self, physics: Any, context: Context, name: str, pixels: int) -> None:
        self._physics, self._context = physics, context
        self._scene = mujoco().MjvScene(physics.model.ptr, maxgeom=_MAX_GEOMS)
        self._option, self._perturbation = mujoco().MjvOption(), mujoco().MjvPerturb()
        self._camera = mujoco().MjvCamera()
        self._camera.type = mujoco().mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = physics.model.name2id(name, "camera")
        self._area = mujoco().MjrRect(0, 0, pixels, pixels)
        self._pixels = np.empty((pixels, pixels, 3), dtype=np.uint8)
        self._everything = mujoco().mjtCatBit.mjCAT_ALL.value

    def image(self, arrow: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """(pixels, pixels, 3) uint8, with an arrow from one point of the world, (3,) in metres, to another."""
        model, data = self._physics.model.ptr, self._physics.data.ptr
        mujoco().mjv_updateScene(
            model, data, self._option, self._perturbation, self._camera, self._everything, self._scene
        )
        if arrow is not None:
            self._add_arrow(*arrow)
        self._context.draw(self._area, self._scene, self._pixels)
        return self._pixels[::-1].copy()  # the first row is the lowest

    def _add_arrow(self, start: np.ndarray, end: np.ndarray) -> None:
        scene = self._scene
        shape = mujoco().mjtGeom.mjGEOM_ARROW
        geom = scene.geoms[scene.ngeom]
        mujoco().mjv_initGeom(geom, shape, np.zeros(3), np.zeros(3), np.zeros(9), _ARROW_COLOR)
        mujoco().mjv_connector(geom, shape, _ARROW_WIDTH, start, end)
        scene.ngeom += 1


@functools.cache
def _opengl() -> Any:
    """This process's OpenGL context, of dm_control."""
    from dm_control import _render

    context = _render.Renderer(max_width=1, max_height=1)  # the size of a window; pictures have buffers of their own
    atexit.register(_free_all)  # registered after dm_control's own, so that it runs before it
    return context


@contextlib.contextmanager
def _drawing() -> Iterator[Any]:
    """The thread that draws (OSMesa has one of its own), with this process's OpenGL context current in it.

    dm_control does not make a context current that it believes to be current, but it only knows its own contexts. If
    Gymnasium's MuJoCo, or anything else that draws in this process, has replaced it, mazes would be drawn there, or not
    at all.
    """
    opengl = _opengl()
    with opengl.make_current() as thread:
        thread.call(opengl._platform_make_current)
        yield thread


def _free(context: Any, own_textures: np.ndarray) -> None:
    context.texture[: len(own_textures)] = own_textures
    with _drawing() as thread:
        thread.call(context.free)


def _free_all() -> None:
    for context in list(_alive):
        context.free()
    _loaded.cache_clear()


@functools.lru_cache(maxsize=4)  # one set for each size of maze
def _loaded(textures: str, files: frozenset[tuple[str, bytes]]) -> Any:
    """MuJoCo's context of a model that only has textures."""
    model = mujoco().MjModel.from_xml_string(
        f"<mujoco><asset>{textures}</asset><worldbody/></mujoco>", assets=dict(files)
    )
    with _drawing() as thread:
        return thread.call(_make_context, model)


def _make_context(model: Any) -> Any:
    return mujoco().MjrContext(model, _FONT_SCALE)


def _draw(area: Any, scene: Any, context: Any, pixels: np.ndarray) -> None:
    mujoco().mjr_setBuffer(mujoco().mjtFramebuffer.mjFB_OFFSCREEN.value, context)
    mujoco().mjr_render(area, scene, context)
    mujoco().mjr_readPixels(pixels, None, area, context)
