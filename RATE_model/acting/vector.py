"""Vector environments that freeze finished episodes, and checks of their arguments."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from RATE_model.acting.single import SeededEnv
from RATE_model.errors import UserError
from RATE_model.system.interrupts import stop_if_asked
from RATE_model.system.processes import available_cores, begin_worker


def episode_seeds(
    environments: VectorEnv, seed: int | Sequence[int] | np.ndarray | None, *, below: int = 2**31
) -> Sequence[int] | np.ndarray:
    """One seed per environment, B in all.

    Args:
        environments: the environments; a given seed also re-seeds their ``np_random``.
        seed: as passed to ``reset``: one per environment, or an int s for s, s + 1, ..., or None to draw them.
        below: upper bound (exclusive) of drawn seeds.

    Raises:
        ValueError: there are not B seeds, or the first is negative.
    """
    count = environments.num_envs
    if seed is None:
        return environments.np_random.integers(below, size=count)
    seeds = seed + np.arange(count) if isinstance(seed, (int, np.integer)) else seed
    if len(seeds) != count:
        raise ValueError(f"got {len(seeds)} seeds for {count} environments")
    if seeds[0] < 0:
        raise ValueError(f"a seed must not be negative, got {seeds[0]}")
    VectorEnv.reset(environments, seed=int(seeds[0]))  # not the subclass's reset, which asks for the seeds
    return seeds


def reset_mask(environments: VectorEnv, options: dict[str, Any] | None) -> np.ndarray:
    """The environments to reset, from ``reset``'s option ``reset_mask``; default: all. (B,) bool.

    Raises:
        ValueError: the mask has the wrong shape or dtype.
    """
    count = environments.num_envs
    mask = np.asarray((options or {}).get("reset_mask", np.ones(count, dtype=bool)))
    if mask.shape != (count,) or mask.dtype != bool:
        raise ValueError(f"reset_mask must be bool of shape ({count},), got {mask.dtype} {mask.shape}")
    return mask


def discrete_actions(environments: VectorEnv, actions: Any) -> np.ndarray:
    """Validate the actions of all environments, including finished ones; (B,) integers.

    Raises:
        ValueError: they are not B integers, or out of range.
    """
    assert isinstance(environments.single_action_space, Discrete)
    count, last = environments.num_envs, int(environments.single_action_space.n) - 1
    actions = np.asarray(actions)
    if actions.shape != (count,) or not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(f"actions must be integers of shape ({count},), got {actions.dtype} {actions.shape}")
    if actions.min() < 0 or actions.max() > last:
        raise ValueError(f"actions must be between 0 and {last}, got {actions.min()} to {actions.max()}")
    return actions


def register_once(env_id: str, entry_point: str, vector_entry_point: str, **arguments: Any) -> None:
    """Register an environment with `gymnasium.make` and `gymnasium.make_vec`, unless it is registered.

    Args:
        env_id: the id to register.
        entry_point, vector_entry_point: "module:Class" of the single and of the vector environment.
        arguments: further arguments of `gymnasium.register`.
    """
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=entry_point, vector_entry_point=vector_entry_point, kwargs=arguments)


class FrozenVectorEnv(VectorEnv):
    """B Gymnasium environments side by side; a finished episode stays frozen until it is reset.

    A finished environment keeps its last observation, gets reward 0, ignores actions and costs nothing
    (`AutoresetMode.DISABLED`). Call `reset` first. ``info`` has the entries that the environments' own infos share,
    with B as the first dimension.

    Environments with slow steps can run in parallel: `threads` for those that wait for something, such as an engine;
    `workers` for those that compute in Python. Worker processes start at the first reset and end with `close`, or with
    the object or this process.

    Attributes:
        environments: the B environments; empty if they are in other processes.
        max_steps: (B,) int64, the step limit of each.

    Args:
        make: makes each environment; with `workers` it must be picklable, such as a `functools.partial`.
        max_steps: step limits; None: each environment's own attribute `max_steps`, or its registered limit.
        threads: environments that step at once in this process.
        workers: number of processes, at most one per environment. 0: the environments are in this process.
        spaces: of one observation and one action; required with `workers`, otherwise the first environment's.
        render_mode: passed to the environments.
        seeds_below: upper bound (exclusive) of seeds.
        name: of the environments, for messages.

    Raises:
        UserError: raised by making an environment; later, if a process was killed or could not start.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        make: Sequence[Callable[[], gymnasium.Env]],
        *,
        max_steps: int | Sequence[int] | np.ndarray | None = None,
        threads: int = 1,
        workers: int = 0,
        spaces: tuple[gymnasium.Space, gymnasium.Space] | None = None,
        render_mode: str | None = None,
        seeds_below: int = 2**63,
        name: str = "the environment",
    ) -> None:
        if not make:
            raise UserError(f"{name}: num_envs is 0; it must be at least 1.")
        self.num_envs, self.render_mode, self._name, self._seeds_below = len(make), render_mode, name, seeds_below
        workers = min(workers, self.num_envs)
        self._groups: list[_Group | _RemoteGroup] = []
        self._parts = np.array_split(np.arange(self.num_envs), max(1, workers))  # the rows of each group
        self._makers = list(make) if workers else []
        self.environments = [] if workers else [one() for one in make]
        if not workers:
            self._groups = [_Group(self.environments, threads)]
        if spaces is None:
            spaces = self.environments[0].observation_space, self.environments[0].action_space
        self.single_observation_space, self.single_action_space = spaces
        self.observation_space, self.action_space = (batch_space(space, self.num_envs) for space in spaces)
        limits = [step_limit(environment) for environment in self.environments] if max_steps is None else max_steps
        self.max_steps = np.broadcast_to(np.asarray(limits, dtype=np.int64), (self.num_envs,)).copy()
        self._observations = np.zeros(self.observation_space.shape or (), dtype=spaces[0].dtype)
        self._terminated, self._truncated = np.zeros(self.num_envs, dtype=bool), np.ones(self.num_envs, dtype=bool)
        self._infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]

    def reset(
        self, *, seed: int | Sequence[int] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start new episodes.

        Args:
            seed: one per environment, or an int s for s, s + 1, ..., or None to draw them from `np_random`.
            options: ``reset_mask`` (B,) bool selects the environments to reset; the others keep their state. All other
                options go to the environments' own reset; a value with B entries is split by row.

        Returns:
            Observations (B, ...) and info.

        Raises:
            ValueError: there are not B seeds, one is out of range, or the mask has the wrong shape or dtype.
        """
        self._check_open()
        seeds, mask = episode_seeds(self, seed, below=min(self._seeds_below, 2**31)), reset_mask(self, options)
        if not all(0 <= int(seed) < self._seeds_below for seed in seeds):
            raise ValueError(f"seeds must be between 0 and {self._seeds_below - 1}, got {list(seeds)}")
        given = {
            name: np.broadcast_to(value, (self.num_envs,))
            for name, value in (options or {}).items()
            if name != "reset_mask"
        }
        if not self._groups:
            self._groups = [_RemoteGroup(self._makers[rows[0] : rows[-1] + 1], self) for rows in self._parts]
        chosen = {name: [_plain(value) for value in values] for name, values in given.items()}
        asked = {
            row: (int(seeds[row]), {name: values[row] for name, values in chosen.items()} or None)
            for row in np.flatnonzero(mask).tolist()
        }
        self._ask("reset", asked)
        return self._observations.copy(), self._info()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """One action per environment, (B,) integers or (B, A) floats. Actions of finished environments are ignored.

        Returns:
            Observations (B, ...), rewards (B,) float64, terminated (B,) bool, truncated (B,) bool, and info.

        Raises:
            ValueError: the actions are not B integers, or out of range.
        """
        self._check_open()
        discrete = isinstance(self.single_action_space, Discrete)
        actions = discrete_actions(self, actions) if discrete else np.asarray(actions)
        running = np.flatnonzero(~(self._terminated | self._truncated)).tolist()
        rewards = self._ask("step", {row: int(actions[row]) if discrete else actions[row] for row in running})
        return self._observations.copy(), rewards, self._terminated.copy(), self._truncated.copy(), self._info()

    def render(self) -> tuple[Any, ...] | None:
        """The image of each environment; None without a render mode."""
        if self.render_mode is None:
            return None
        if not self._groups:
            raise ValueError("environments in other processes can only be rendered after their first reset")
        for group in self._groups:
            group.send("render", range(len(group)))
        return tuple(picture for group in self._groups for picture in self._received(group))

    def close_extras(self, **_: Any) -> None:
        """Close all environments and end their processes."""
        groups, self._groups = self._groups, []
        for group in groups:
            group.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{self._name}: these environments are closed; make new ones.")

    def _ask(self, command: str, values: dict[int, Any]) -> np.ndarray:
        """Run "reset" or "step" in rows, all groups at once, and record the results. Rewards (B,) float64."""
        asked, rewards = [], np.zeros(self.num_envs)
        for group, rows in zip(self._groups, self._parts, strict=True):
            share = {row - int(rows[0]): values[row] for row in rows.tolist() if row in values}
            if share:
                group.send(command, share)
                asked.append((group, int(rows[0]), share))
        for group, first, share in asked:
            for place, (observation, *stands) in zip(share, self._received(group), strict=True):
                row = first + place
                self._observations[row] = group.observations[place] if observation is None else observation
                rewards[row], self._terminated[row], self._truncated[row], self._infos[row] = stands
        return rewards

    def _received(self, group: _Group | _RemoteGroup) -> list[Any]:
        """The answer of a group. A failure ends all groups, so that no stale answer is taken for a later one."""
        try:
            return group.receive()
        except BaseException:
            self.close_extras()
            raise

    def _info(self) -> dict[str, np.ndarray]:
        common = set.intersection(*map(set, self._infos))
        return {name: np.array([info[name] for info in self._infos]) for name in self._infos[0] if name in common}


class SeededVectorEnv(FrozenVectorEnv):
    """B environments of one class side by side; see `FrozenVectorEnv`. A subclass says of which class.

    Args:
        num_envs: B.
        arguments, options: for every environment; of a list or an array, each gets one value.
        threads, workers: None: as many as are worth it for this class.
        render_mode: see the class.

    Raises:
        UserError: as for the class.
    """

    name: ClassVar[str]
    single: ClassVar[type[SeededEnv]]
    # Whether its steps wait for something, or compute in Python
    waits: ClassVar[bool] = False
    computes: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.metadata = cls.single.metadata | FrozenVectorEnv.metadata

    def __init__(
        self,
        num_envs: int = 1,
        *arguments: Any,
        threads: int | None = None,
        workers: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        def at(row: int, value: Any) -> Any:
            return np.asarray(value)[row].item() if isinstance(value, (list, tuple, np.ndarray)) else value

        make = [
            partial(
                self.single,
                *(at(row, value) for value in arguments),
                render_mode=render_mode,
                **{name: at(row, value) for name, value in options.items()},
            )
            for row in range(num_envs)
        ]
        given: dict[str, Any] = {}
        if self.waits:
            given["threads"] = max(1, min(num_envs, threads or available_cores() + 1))
        if self.computes and make:
            examples = [one() for one in make]  # nothing is built before their first reset
            spaces = examples[0].observation_space, examples[0].action_space
            workers = available_cores() if workers is None else workers
            given |= {"workers": workers, "spaces": spaces, "max_steps": [each.max_steps for each in examples]}
        super().__init__(make, render_mode=render_mode, seeds_below=self.single.seeds_below, name=self.name, **given)


def step_limit(environment: gymnasium.Env) -> int:
    """The step limit of an environment: its own `max_steps`, that of a TimeLimit, or that of its spec.

    Raises:
        UserError: it has none.
    """
    names = ("max_steps", "_max_episode_steps")  # the second is that of gymnasium.wrappers.TimeLimit
    known = [environment.get_wrapper_attr(name) for name in names if environment.has_wrapper_attr(name)]
    known += [environment.spec.max_episode_steps] if environment.spec is not None else []
    limits = [int(steps) for steps in known if steps is not None]
    if not limits:
        raise UserError(f"{environment} has no step limit; wrap it in gymnasium.wrappers.TimeLimit")
    return min(limits)


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python scalar."""
    return value.item() if isinstance(value, np.generic) else value


class _Group:
    """Some environments in this process."""

    observations: np.ndarray  # for groups in other processes

    def __init__(self, environments: Sequence[gymnasium.Env], threads: int = 1) -> None:
        self._environments = environments
        self._threads = ThreadPoolExecutor(threads) if threads > 1 else None
        self._answer: list[Any] = []

    def __len__(self) -> int:
        return len(self._environments)

    def send(self, command: str, values: Any) -> None:
        """Start "reset" (row -> seed and options), "step" (row -> action) or "render" (rows)."""

        def do(row: int) -> Any:
            environment = self._environments[row]
            if command == "render":
                return environment.render()
            if command == "step":
                observation, reward, *ends, info = environment.step(values[row])
                return observation, float(reward), *map(bool, ends), info
            seed, options = values[row]
            observation, info = environment.reset(seed=seed, options=options)
            return observation, 0.0, False, False, info

        self._answer = list(map(do, values) if self._threads is None else self._threads.map(do, values))

    def receive(self) -> list[Any]:
        """The results, in the order of the rows: images, or observation, reward, ends and info."""
        return self._answer

    def close(self) -> None:
        """Close all environments."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for environment in self._environments:
            environment.close()


class _RemoteGroup:
    """A `_Group` in a separate process, which works between `send` and `receive`; images are in shared memory."""

    def __init__(self, make: Sequence[Callable[[], gymnasium.Env]], environments: FrozenVectorEnv) -> None:
        self._name, self._count = environments._name, len(make)
        context = multiprocessing.get_context("spawn")  # a fork would copy locks of threads and graphics libraries
        space = environments.single_observation_space
        layout = (self._count, *(space.shape or ())), np.dtype(space.dtype).str
        shared = context.RawArray("B", int(np.prod(layout[0])) * np.dtype(space.dtype).itemsize)
        self.observations = _shared_array(shared, *layout)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, shared, layout, self._name), daemon=True)
        self._process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._pipe)

    def __len__(self) -> int:
        return self._count

    def send(self, command: str, values: Any) -> None:
        with contextlib.suppress(OSError):  # a dead process is noticed when it does not answer
            self._pipe.send((command, values))

    def receive(self) -> list[Any]:
        try:
            while not self._pipe.poll(0.2):
                stop_if_asked()
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise UserError(
                f"{self._name}: a worker process was killed or could not start. If memory is short, run fewer episodes "
                "at once."
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._end()


def _end(process: Any, pipe: multiprocessing.connection.Connection) -> None:
    """Wait for a process to exit, which it does once its pipe is closed."""
    pipe.close()
    process.join(timeout=1)
    if process.is_alive():
        process.kill()
        process.join()


def _work(
    pipe: multiprocessing.connection.Connection,
    make: Sequence[Callable[[], gymnasium.Env]],
    shared: Any,
    layout: tuple[tuple[int, ...], str],
    name: str,
) -> None:
    """The process's main loop: handles commands like `_Group`, until the pipe is closed."""
    begin_worker()
    observations, group = _shared_array(shared, *layout), None
    with contextlib.suppress(EOFError, OSError):
        while True:
            command, values = pipe.recv()
            try:
                group = group or _Group([one() for one in make])
                group.send(command, values)
                answer = group.receive()
                if command != "render":
                    for row, (observation, *_) in zip(values, answer, strict=True):
                        observations[row] = observation
                    answer = [(None, *stands) for _, *stands in answer]
            except UserError as error:
                answer = error
            except Exception:
                answer = RuntimeError(f"in a worker process of {name}:\n{traceback.format_exc()}")
            pipe.send(answer)
    if group is not None:
        group.close()


def _shared_array(shared: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.frombuffer(shared, dtype=dtype).reshape(shape)
