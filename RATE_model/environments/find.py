"""Find the environment of a run."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from RATE_model.cli.options import load_yaml
from RATE_model.environments.contract import Environment
from RATE_model.environments.table import environment
from RATE_model.errors import UserError
from RATE_model.own.environment import OwnEnvironment

_MODULE = "environment"


@lru_cache
def _own() -> Environment:
    return OwnEnvironment()


def environment_of(run: Path) -> Environment:
    """The environment of a run: that of the train script in its environment.json, or a user's own.

    Raises:
        UserError: this is not a run, or it does not name an environment's train script.
    """
    record = run / "environment.json"
    try:
        command = json.loads(record.read_text(encoding="utf-8"))["starts"][-1]["command"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{run}: {record.name} is missing or damaged; give a run directory, or --env") from None
    for word in command[:3]:  # the script, or the module after -m
        parts = Path(word).with_suffix("").parts
        for start in range(len(parts)):
            if (found := in_folder(".".join(parts[start:-1]))) is not None:
                return found
    if {"env", "env_args", "wrappers"} <= set(load_yaml(run / "config.yaml")):  # of RATE_model.train
        return _own()
    raise UserError(f"{run}: '{' '.join(command[:3])}' is not an environment's train script; name it with --env")


def common_environment(runs: Sequence[Path], name: str | None = None) -> Environment:
    """The environment shared by some runs, or the named one.

    Raises:
        UserError: the runs are from several environments, or from none.
    """
    if name is not None:
        return environment(name)
    found = {run: environment_of(run) for run in runs}
    first, *others = found.items()
    for run, other in others:
        if other is not first[1]:
            raise UserError(
                f"{first[0]} is from {first[1].name} and {run} from {other.name}: compare runs of one environment"
            )
    return first[1]


def in_folder(package: str) -> Environment | None:
    """`ENVIRONMENT` in the module `environment` of a package; None if there is none."""
    try:
        if not package or importlib.util.find_spec(f"{package}.{_MODULE}") is None:
            return None
    except (ImportError, ValueError):
        return None
    found = getattr(importlib.import_module(f"{package}.{_MODULE}"), "ENVIRONMENT", None)
    return found if isinstance(found, Environment) else None
