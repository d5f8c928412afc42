"""One episode of Memory Maze in MuJoCo: the package's task, stepped and drawn in less time.

The task, its maze, its textures and its random numbers are those of ``memory_maze.tasks``. What is left out changes no
picture and no reward (a test compares with the package, bit for bit):

- the model is compiled once per episode, not twice, and its textures are loaded once per process (`rendering.py`);
- the scene of the camera is kept, not allocated again for every image, and the images are drawn into a buffer of their
  own size;
- touching a target is a contact with its sphere; far from all targets there is none, and the 50 physics steps between
  two actions run as one call; near one the contacts of every physics step are compared as an array;
- observations that are not used are not computed.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import numpy as np

from MemoryMaze.MemoryMaze_src.graphics import maze_tasks, mujoco
from MemoryMaze.MemoryMaze_src.rendering import Camera, Context, Textures

IMAGE = 64  # pixels, height and width of an observation
VIEW_IMAGE = 256  # pixels, height and width of a picture for people
SIZES = (9, 11, 13, 15)
STEPS_PER_SECOND = 4

_BORDER = 2  # pixels, shows the colour of the target
_BORDER_BRIGHTNESS = 255 * 0.7
_WALKER = "walker/head_body"
_AGENT_CAMERA, _TOP_CAMERA = "walker/egocentric", "top_camera"
# Metres between the centres of the agent and a target below which they may touch within one step: the target's radius
# 0.6, the agent's 0.2 and its step, at most 0.5; the rest is a safety margin.
_NEAR = 3.0


class Maze:
    """The maze and the episode of one seed.

    Attributes:
        reward: of the last step.

    Args:
        size: cells of a side, without the outer walls: 9, 11, 13 or 15.
        seed: 0 to 2**32 - 1.
        views: leave room for pictures for people.

    Raises:
        UserError: as for `maze_tasks`.
    """

    def __init__(self, size: int, seed: int, *, views: bool = False) -> None:
        tasks = maze_tasks()
        self._task, self._random, self._controls = _package_task(tasks, size, seed)
        entities = self._task.root_entity.iter_entities
        self._task.initialize_episode_mjcf(self._random)
        for entity in entities():
            entity.initialize_episode_mjcf(self._random)
        self._physics, self._context = _compile(self._task.root_entity.mjcf_model, VIEW_IMAGE if views else IMAGE)
        self._task.after_compile(self._physics, self._random)
        for entity in entities():
            entity.after_compile(self._physics, self._random)
        with _quiet(), self._physics.reset_context():
            self._task.initialize_episode(self._physics, self._random)
            for entity in entities():
                entity.initialize_episode(self._physics, self._random)
        self._targets = self._task._targets
        model = self._physics.model
        self._spheres = np.array([model.name2id(target.geom.full_identifier, "geom") for target in self._targets])
        self._walker = model.name2id(_WALKER, "body")
        self._substeps = self._task.physics_steps_per_control_step
        self._agent_view = Camera(self._physics, self._context, _AGENT_CAMERA, IMAGE)
        self._layout = _layout(self._task._maze_arena)
        self.reward = 0.0

    @property
    def target(self) -> int:
        """The index of the current target."""
        return self._task._current_target_ix

    @property
    def target_color(self) -> np.ndarray:
        """(3,) uint8, red, green, blue, of the border."""
        return (self._task._target_colors[self.target] * _BORDER_BRIGHTNESS).astype(np.uint8)

    @property
    def direction(self) -> np.ndarray:
        """(2,) float64, x and y of the unit vector in which the agent faces."""
        return self._physics.data.xmat[self._walker].reshape(3, 3)[:2, 1].copy()

    def state(self) -> dict[str, Any]:
        """What a player must not know; see `MemoryMazeEnv`."""
        data = self._physics.data
        return {
            "maze_layout": self._layout,
            "agent_pos": self._in_cells(data.xpos[self._walker]),
            "agent_dir": self.direction,
            "targets_pos": self._in_cells(data.geom_xpos[self._spheres]),
            "target_index": self.target,
        }

    def step(self, action: int) -> None:
        """Take one of the package's six actions and note the reward."""
        physics = self._physics
        self._task.before_step(physics, self._controls[action], self._random)
        with physics.check_invalid_state():
            self._advance(physics.model.ptr, physics.data.ptr)
        self._task.after_step(physics, self._random)
        self.reward = float(self._task.get_reward(physics))

    def image(self) -> np.ndarray:
        """What the agent sees, within a border of the target's colour: (64, 64, 3) uint8."""
        image = self._agent_view.image()
        _paint_border(image, _BORDER, self.target_color)
        return image

    def view(self, kind: str) -> np.ndarray:
        """A picture for people, (256, 256, 3) uint8: "agent", its view, or "top", the maze from above."""
        scale = VIEW_IMAGE // IMAGE
        if kind == "top":
            # The agent is small from above: an arrow lies on it.
            camera = Camera(self._physics, self._context, _TOP_CAMERA, VIEW_IMAGE)
            start = self._physics.data.xpos[self._walker] + (0.0, 0.0, 1.0)
            way = np.append(self.direction, 0.0)
            picture = camera.image(arrow=(start - 0.9 * way, start + 0.9 * way))
        else:
            picture = Camera(self._physics, self._context, _AGENT_CAMERA, VIEW_IMAGE).image()
        _paint_border(picture, scale * _BORDER, self.target_color)
        return picture

    def close(self) -> None:
        """Free the model and its graphics memory. Nothing else may be called after that."""
        self._context.free()
        self._physics.free()

    def _advance(self, model: Any, data: Any) -> None:
        """The physics steps of one action; which targets were touched."""
        away = data.geom_xpos[self._spheres, :2] - data.xpos[self._walker, :2]
        if np.square(away).sum(axis=1).min() > _NEAR**2:
            # Positions and velocities are in sync before and after: the order of dm_control's own steps.
            mujoco().mj_step2(model, data)
            mujoco().mj_step(model, data, self._substeps - 1)
            mujoco().mj_step1(model, data)
            return
        touched = np.zeros(len(self._targets), dtype=bool)
        for _ in range(self._substeps):
            mujoco().mj_step2(model, data)
            mujoco().mj_step1(model, data)
            if data.ncon:
                touched |= (data.contact.geom[:, :, None] == self._spheres).any(axis=(0, 1))
        for row in np.flatnonzero(touched):
            self._targets[row]._activated = True  # the task gives the reward and resets the target

    def _in_cells(self, metres: np.ndarray) -> np.ndarray:
        """Positions (..., 3) in the world as (..., 2) in cells from the corner of the maze inside its outer walls."""
        arena = self._task._maze_arena
        return metres[..., :2] / arena.xy_scale + np.array([arena.maze.width - 2.0, arena.maze.height - 2.0]) / 2


def _package_task(tasks: types.ModuleType, size: int, seed: int) -> tuple[Any, np.random.RandomState, list[np.ndarray]]:
    """The package's task of a seed, its generator and its actions.

    The package also wraps the task in an environment, which compiles a model of a maze that is never played. A stub
    keeps its arguments instead.
    """
    with mock.patch.object(tasks, "composer", types.SimpleNamespace(Environment=types.SimpleNamespace)):
        wrapped = getattr(tasks, f"memory_maze_{size}x{size}")(seed=seed)
    actions = wrapped.action_set
    while hasattr(wrapped, "env"):
        wrapped = wrapped.env
    return wrapped.task, wrapped.random_state, actions


def _compile(model: Any, pixels: int) -> tuple[Any, Context]:
    """The physics of a model, and what draws it with at most this many pixels a side."""
    from dm_control import mjcf

    root = ElementTree.fromstring(model.to_xml_string())
    textures = Textures(root, model.get_assets())
    visual = _child(root, "visual")
    _child(visual, "global").attrib.update(offwidth=str(pixels), offheight=str(pixels))
    _child(visual, "quality").set("shadowsize", "0")  # saves 64 MB for lights that cast shadows; there are none
    physics = mjcf.Physics.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    return physics, Context(physics.model.ptr, textures)


def _child(element: ElementTree.Element, name: str) -> ElementTree.Element:
    """The child of this name, added if missing."""
    found = element.find(name)
    return ElementTree.SubElement(element, name) if found is None else found


def _layout(arena: Any) -> np.ndarray:
    """(size, size) bool, True = free, read-only: the package's text of the maze without its outer walls, y upwards."""
    text = np.flip(arena.maze.entity_layer[1:-1, 1:-1], axis=0)
    layout = np.isin(text, [" ", "P", "G"])
    layout.setflags(write=False)
    return layout


def _paint_border(image: np.ndarray, width: int, color: np.ndarray) -> None:
    for edge in (image[:width], image[-width:], image[:, :width], image[:, -width:]):
        edge[:] = color


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without dm_control's warning that the agent cannot be given a velocity: it begins at rest."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
