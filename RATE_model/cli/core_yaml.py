"""YAML by the core schema of version 1.2, in which `no`, `off`, `010` and `1:30` are text, text, 10 and text.

PyYAML follows version 1.1, which reads them as False, False, 8 and 90, and dates as dates.
"""

import re
import sys
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_NULL = (f"{_TAG}null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""])
_SCALARS = (
    _NULL,
    (f"{_TAG}bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    (f"{_TAG}int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    (
        f"{_TAG}float",
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        list("-+.0123456789"),
    ),
)


def resolvers(scalars: tuple[Any, ...]) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Tags and patterns of whole scalars, by first character, for PyYAML."""
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, firsts in scalars:
        for first in firsts:
            resolvers.setdefault(first, []).append((tag, re.compile(rf"(?:{pattern.pattern})\Z")))
    return resolvers


NULL_ONLY = resolvers((_NULL,))
"""For a loader that keeps all other plain scalars as text."""


class CoreLoader(yaml.SafeLoader):
    """Plain scalars are null, booleans, numbers or text."""

    yaml_implicit_resolvers = resolvers(_SCALARS)


class CoreDumper(yaml.SafeDumper):
    """One key per line, lists within a line. Quotes text that version 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *resolvers(_SCALARS).get(first, [])]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *resolvers(_SCALARS)}
    }


def dump(values: dict[str, Any]) -> str:
    """A mapping as text."""
    return yaml.dump(values, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


CoreLoader.add_constructor(f"{_TAG}int", _integer)
CoreDumper.add_representer(dict, lambda dumper, value: dumper.represent_mapping(f"{_TAG}map", value, flow_style=False))
CoreDumper.add_representer(list, lambda dumper, value: dumper.represent_sequence(f"{_TAG}seq", value, flow_style=True))
