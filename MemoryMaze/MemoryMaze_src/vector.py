"""Many mazes side by side, on all cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import traceback
import weakref
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from MemoryMaze.MemoryMaze_src.env import (
    DEFAULT_SIZE,
    NUM_ACTIONS,
    OBSERVATION_SHAPE,
    SEED_LIMIT,
    MemoryMazeEnv,
    check_arguments,
    check_seed,
)
from RATE_model.acting.vector import discrete_actions, episode_seeds, reset_mask
from RATE_model.errors import UserError
from RATE_model.system.interrupts import stop_if_asked
from RATE_model.system.processes import available_cores, begin_worker


class MemoryMazeVectorEnv(VectorEnv):
    """B mazes, each of them a `MemoryMazeEnv`.

    Drawing holds Python's lock, so the mazes are divided among processes; pictures come back through shared memory.
    The processes are started by the first reset and ended by `close`, or when the object or this process goes. Finished
    mazes keep their last observation, get reward 0, ignore actions and cost nothing, until they are reset. ``info`` is
    that of `MemoryMazeEnv` with the mazes as the first dimension: empty without ``privileged``.

    Args:
        num_envs: B.
        size, max_steps, privileged, render_mode, view: see `MemoryMazeEnv`.
        workers: processes; no more are started than there are mazes. 0: the mazes are in this process. None: one per
            core this process may use.

    Raises:
        UserError: a value is out of range, or (by the first reset) a package is missing or nothing can draw.
    """

    metadata = MemoryMazeEnv.metadata | {"autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        num_envs: int = 1,
        size: int = DEFAULT_SIZE,
        *,
        max_steps: int | None = None,
        workers: int | None = None,
        privileged: bool = False,
        render_mode: str | None = None,
        view: str = "agent",
    ) -> None:
        self.max_steps = check_arguments(size, max_steps, render_mode, view)
        self.num_envs, self.size, self.render_mode = num_envs, size, render_mode
        self.single_observation_space = gymnasium.spaces.Box(0, 255, OBSERVATION_SHAPE, np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._arguments = {
            "size": size,
            "max_steps": max_steps,
            "privileged": privileged,
            "render_mode": render_mode,
            "view": view,
        }
        self._workers = min(num_envs, available_cores() if workers is None else workers)
        self._groups: list[_Group | _RemoteGroup] = []
        self._rows = np.array_split(np.arange(num_envs), max(1, self._workers))  # of each group
        self._observations = np.zeros((num_envs, *OBSERVATION_SHAPE), dtype=np.uint8)
        self._truncated = np.ones(num_envs, dtype=bool)
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start new episodes.

        Args:
            seed: one per maze, or an int s for s, s + 1, ..., or None to draw them from `np_random`.
            options: ``reset_mask`` (B,) bool: the mazes to reset, the others keep their state.

        Returns:
            observations (B, 3, 64, 64) uint8 and info.

        Raises:
            ValueError: there are not B seeds, one is out of range, or the mask has another shape or type.
            UserError: a package is missing, nothing can draw, or a process was killed.
        """
        seeds, mask = episode_seeds(self, seed, below=SEED_LIMIT), reset_mask(self, options)
        for row in np.flatnonzero(mask).tolist():
            check_seed(int(seeds[row]))
        if not self._groups:
            self._start()
        self._ask("reset", {int(row): int(seeds[row]) for row in np.flatnonzero(mask).tolist()})
        return self._observations.copy(), self._info()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """One action per maze, (B,) integers. Actions of finished mazes are ignored.

        Returns:
            observations (B, 3, 64, 64) uint8, rewards (B,) float64, terminated (B,) bool (False), truncated (B,) bool,
            info.

        Raises:
            ValueError: the actions are not B integers between 0 and 5.
            UserError: a process was killed.
        """
        actions = discrete_actions(self, actions)
        rewards = self._ask("step", {int(row): int(actions[row]) for row in np.flatnonzero(~self._truncated)})
        return self._observations.copy(), rewards, np.zeros_like(self._truncated), self._truncated.copy(), self._info()

    def render(self, view: str | None = None) -> tuple[np.ndarray, ...] | None:
        """What `MemoryMazeEnv.render` returns of each maze; None without a render mode."""
        if self.render_mode is None:
            return None
        if not self._groups:
            self._start()
        for group in self._groups:
            group.send("render", view)
        return tuple(picture for group in self._groups for picture in self._received(group))

    def close_extras(self, **_: Any) -> None:
        """End the processes. A reset starts new ones."""
        groups, self._groups = self._groups, []
        self._truncated[:] = True
        for group in groups:
            group.close()

    def _start(self) -> None:
        if not self._workers:
            self._groups = [_Group(self._arguments, self.num_envs, self._observations)]
            return
        self._groups = [_RemoteGroup(self._arguments, len(rows)) for rows in self._rows]

    def _ask(self, command: str, values: dict[int, int]) -> np.ndarray:
        """Let all groups work on their rows' values at once, and note what comes of it; rewards (B,) float64."""
        rewards = np.zeros(self.num_envs)
        asked = []
        for group, rows in zip(self._groups, self._rows, strict=True):
            share = {row - int(rows[0]): values[row] for row in rows.tolist() if row in values}
            if share:
                group.send(command, share)
                asked.append((group, int(rows[0]), share))
        for group, first, share in asked:
            for row, (reward, truncated, info) in zip(share, self._received(group), strict=True):
                rewards[first + row], self._truncated[first + row], self._infos[first + row] = reward, truncated, info
                if group.observations is not self._observations:
                    self._observations[first + row] = group.observations[row]
        return rewards

    def _received(self, group: _Group | _RemoteGroup) -> list[Any]:
        """The answer of a group. After a failure the others' answers must not be taken for later ones: all end."""
        try:
            return group.receive()
        except BaseException:
            self.close_extras()
            raise

    def _info(self) -> dict[str, np.ndarray]:
        return {name: np.stack([info[name] for info in self._infos]) for name in self._infos[0]}


class _Group:
    """Some mazes in this process.

    Attributes:
        observations: (n, 3, 64, 64) uint8, where the pictures go.
    """

    def __init__(self, arguments: dict[str, Any], count: int, observations: np.ndarray) -> None:
        self.observations = observations
        self._mazes = [MemoryMazeEnv(**arguments) for _ in range(count)]
        self._answer: list[Any] = []

    def send(self, command: str, values: Any) -> None:
        """Do "reset" (row -> seed) or "step" (row -> action), or "render" a view of all mazes."""
        if command == "render":
            self._answer = [maze.render(values) for maze in self._mazes]
            return
        self._answer = []
        for row, value in values.items():
            maze = self._mazes[row]
            reward = maze._start(value) if command == "reset" else maze._advance(value)
            self.observations[row] = maze._observation
            self._answer.append((reward or 0.0, maze._truncated, maze._info()))

    def receive(self) -> list[Any]:
        """What came of it: pictures, or for each row its reward, whether it is over, and its info."""
        return self._answer

    def close(self) -> None:
        """Free all mazes."""
        for maze in self._mazes:
            maze.close()


class _RemoteGroup:
    """The same in a process of its own, which works between `send` and `receive`."""

    def __init__(self, arguments: dict[str, Any], count: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks and the graphics library
        shared = context.RawArray("B", count * int(np.prod(OBSERVATION_SHAPE)))
        self.observations = _images(shared, count)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, arguments, count, shared), daemon=True)
        self._process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._pipe)

    def send(self, command: str, values: Any) -> None:
        with contextlib.suppress(OSError):  # a process that is gone shows when it does not answer
            self._pipe.send((command, values))

    def receive(self) -> list[Any]:
        try:
            while not self._pipe.poll(0.2):
                stop_if_asked()
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise UserError(
                "Memory Maze: a worker process was killed, or could not start. Is there too little memory? Fewer "
                "episodes at once need less."
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._end()


def _end(process: Any, pipe: multiprocessing.connection.Connection) -> None:
    """Let a process end by itself, which it does when nobody can ask it any more."""
    pipe.close()
    process.join(timeout=1)
    if process.is_alive():
        process.kill()
        process.join()


def _work(pipe: multiprocessing.connection.Connection, arguments: dict[str, Any], count: int, shared: Any) -> None:
    """What a process does: commands as for `_Group`, until the pipe is closed."""
    begin_worker()
    group = _Group(arguments, count, _images(shared, count))
    with contextlib.suppress(EOFError, OSError):
        while True:
            command, values = pipe.recv()
            try:
                group.send(command, values)
            except UserError as error:
                pipe.send(error)
            except Exception:
                pipe.send(RuntimeError(f"in a worker process of Memory Maze:\n{traceback.format_exc()}"))
            else:
                pipe.send(group.receive())
    group.close()


def _images(shared: Any, count: int) -> np.ndarray:
    return np.frombuffer(shared, dtype=np.uint8).reshape(count, *OBSERVATION_SHAPE)
