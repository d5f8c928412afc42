"""Environments by name: registered ids, classes in modules, environment objects, and functions that make one."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import yaml

from RATE_model.acting.vector import step_limit
from RATE_model.cli.core_yaml import CoreLoader
from RATE_model.errors import UserError

MAX_STEPS = 10_000  # for episodes without any other limit

EnvironmentLike = str | gymnasium.Env | Callable[..., gymnasium.Env]
"""A registered id, ``module:Class``, an environment to be copied, or a function that makes one."""


def maker_of(
    environment: EnvironmentLike,
    *,
    arguments: Mapping[str, Any] | None = None,
    wrappers: Sequence[str | Callable[[gymnasium.Env], gymnasium.Env]] = (),
    max_steps: int | None = None,
) -> Callable[..., gymnasium.Env]:
    """A function that makes environments of one kind; it may be called with a `render_mode`.

    Args:
        environment: the environment.
        arguments: of its constructor.
        wrappers: the innermost first; ``module:Class`` or callable.
        max_steps: truncate episodes after this many steps; None: the environment's own limit.
    """
    return partial(_make, environment, dict(arguments or {}), tuple(wrappers), max_steps)


def make_environment(environment: EnvironmentLike, **options: Any) -> gymnasium.Env:
    """One environment; `options` are those of `maker_of`. Raises a one-line UserError if it cannot be made."""
    return maker_of(environment, **options)()


def known_step_limit(environment: EnvironmentLike) -> int | None:
    """The most steps of an episode; None without a limit. Raises a one-line UserError if it cannot be made."""
    with contextlib.closing(make_environment(environment)) as made:
        try:
            return step_limit(made)
        except UserError:
            return None


def name_of(environment: EnvironmentLike | None) -> str | None:
    """A name that can recreate an environment later: its id or ``module:Class``; None if it has none."""
    if environment is None or isinstance(environment, str):
        return environment
    if isinstance(environment, gymnasium.Env):
        return environment.spec.id if environment.spec is not None else None
    module, name = getattr(environment, "__module__", None), getattr(environment, "__qualname__", None)
    return None if module in (None, "__main__") or name is None or "<" in name else f"{module}:{name}"


def read_arguments(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """Parse NAME=VALUE pairs, with values in YAML. Raises UserError for anything else."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--{flag} {pair}: give NAME=VALUE")
        try:
            found[name] = yaml.load(value, Loader=CoreLoader)
        except yaml.YAMLError:
            raise UserError(f"--{flag} {pair}: the value is not YAML; quote it") from None
    return found


def write_arguments(arguments: Mapping[str, Any], flag: str) -> list[str]:
    """Write arguments for `read_arguments`. Raises UserError for one that YAML cannot represent."""
    try:
        return [f"{name}={json.dumps(value)}" for name, value in arguments.items()]
    except (TypeError, ValueError) as error:
        raise UserError(f"{flag} {arguments}: {error}; give numbers, strings, lists and dicts of them") from None


def _make(
    environment: EnvironmentLike,
    arguments: dict[str, Any],
    wrappers: tuple[Any, ...],
    max_steps: int | None,
    *,
    render_mode: str | None = None,
) -> gymnasium.Env:
    """See `maker_of`."""
    if render_mode is not None:
        arguments = arguments | {"render_mode": render_mode}
    try:
        made = _bare(environment, arguments)
        for wrapper in wrappers:
            made = (_object(wrapper) if isinstance(wrapper, str) else wrapper)(made)
    except UserError:
        raise
    except Exception as error:  # third-party environments may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        hint = _hint(error, environment, render_mode)
        raise UserError(f"environment {environment} cannot be made: {type(error).__name__}: {reason}{hint}") from error
    if not isinstance(made, gymnasium.Env):
        raise UserError(f"environment {environment} is {type(made).__name__}, not a gymnasium.Env")
    return made if max_steps is None else gymnasium.wrappers.TimeLimit(made, max_steps)


def _hint(error: Exception, environment: EnvironmentLike, render_mode: str | None) -> str:
    """A hint for an error while making an environment; empty if there is none."""
    if isinstance(error, ModuleNotFoundError) and str(environment).partition(":")[0] == error.name:
        return "; run in the module's folder, or add the folder to PYTHONPATH"
    if isinstance(error, TypeError) and render_mode is not None:
        return f"; for videos it must accept render_mode='{render_mode}'"
    return ""


def _bare(environment: EnvironmentLike, arguments: dict[str, Any]) -> gymnasium.Env:
    """The environment without its wrappers."""
    if isinstance(environment, gymnasium.Env):
        if environment.spec is not None and arguments:
            return gymnasium.make(environment.spec, **arguments)
        own_mode = ("render_mode", environment.render_mode)
        if new := {name: value for name, value in arguments.items() if (name, value) != own_mode}:
            given = ", ".join(f"{name}={value!r}" for name, value in new.items())
            raise UserError(
                f"environment {environment} cannot be made with {given}: it is an object without a spec; give a "
                "function that makes it, or module:Class"
            )
        return copy.deepcopy(environment)
    if isinstance(environment, str):
        module, colon, name = environment.partition(":")
        if colon and environment not in gymnasium.registry and hasattr(_module(module), name.partition(".")[0]):
            return _object(environment)(**arguments)
        try:
            return gymnasium.make(environment, **arguments)
        except gymnasium.error.NameNotFound:
            if not colon:
                raise
            raise UserError(
                f"environment {environment} cannot be made: {module} neither has nor registers '{name}'"
            ) from None
    return environment(**arguments)


def _module(name: str) -> Any:
    """Import a module, possibly from the current directory."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _object(name: str) -> Any:
    """The object that ``module:Class`` names."""
    module, colon, inner = name.partition(":")
    if not colon:
        raise UserError(f"'{name}': give module:Class")
    found = _module(module)
    for part in inner.split("."):
        found = getattr(found, part)
    return found
