"""The table of environments: `rate_model.environments` in pyproject.toml, of the checkout and of installed packages."""

from __future__ import annotations

import importlib
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

from RATE_model.cli.options import close_matches
from RATE_model.environments.contract import Environment
from RATE_model.errors import UserError

GROUP = "rate_model.environments"
_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def table() -> dict[str, str]:
    """The modules of all environments, by name; importing one may need extra packages."""
    listed = {point.name: point.value for point in entry_points(group=GROUP)}
    if _PROJECT.is_file():  # an editable installation only knows the entries from when it was made
        project = tomllib.loads(_PROJECT.read_text())["project"]
        listed |= project.get("entry-points", {}).get(GROUP, {})
    return listed


def environment(name: str) -> Environment:
    """An environment from the table, or from any module.

    Raises:
        UserError: there is no environment of this name.
    """
    known = table()
    try:
        return importlib.import_module(known.get(name, name)).ENVIRONMENT
    except (ModuleNotFoundError, AttributeError) as error:
        nearest = close_matches(name, list(known))
        raise UserError(f"there is no environment '{name}' ({error}): {', '.join(known)}{nearest}") from error
