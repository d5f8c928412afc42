"""Flags and YAML files for an experiment described by frozen dataclasses.

A script declares its options once::

    @dataclass(frozen=True)
    class TrainOptions:
        # Peak learning rate.
        learning_rate: float = 3e-4

    @dataclass(frozen=True)
    class Options:
        seed: int = 1  # Seed of everything random.
        # Optimisation.
        train: TrainOptions = field(default_factory=TrainOptions)

The comments are the help text, groups (nested dataclasses) are its headings, and the flags are flat: ``--seed``,
``--learning_rate``. The same names are the keys of YAML files. tyro reads the dataclasses and their comments and writes
``--help``. The values themselves are read here, by one function (read_value) for flags, YAML files and the config.yaml
of a run, so that all three accept the same things and an error can name the flag or the file and key, the value, and
what is allowed.

Supported types: Boolean, int, float, str, Path, Literal, ``X | None``, and ``tuple[X, ...]`` or ``list[X]`` of these.
Every field has a default. Nothing here imports torch, so ``--help`` is immediate.
"""

import argparse
import dataclasses
import difflib
import math
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import tyro
import yaml

from RATE_model.cli import core_yaml
from RATE_model.cli.aliases import ALIASES, BOOLEAN_ALIASES
from RATE_model.cli.console import lasting_output, machine_error, one_line
from RATE_model.errors import UserError
from RATE_model.system.interrupts import exit_code, raising_interrupts, signal_name
from RATE_model.system.secrets import redact

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
Default = TypeVar("Default")

_CHANGEABLE = "changeable"  # a key of a field's metadata

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Boolean = Annotated[
    bool,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="[{true,false}]",
        instance_from_str=lambda arguments: BOOLEANS[arguments[0].lower()],
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
    ),
]
"""The type of a switch: ``--flag`` alone means true; ``--flag true`` and ``--flag false`` work as well."""


@dataclasses.dataclass(frozen=True)
class _Invocation:
    """Flags of every script that are not part of a run's configuration."""

    # A YAML file of flags (without the dashes). It overrides the defaults shown here and is overridden by flags.
    config: Path | None = None
    # Print the effective configuration as YAML and exit.
    print_config: Boolean = False


class ArgumentParser(argparse.ArgumentParser):
    """argparse for tools whose arguments are files. Errors are a one-line `UserError` instead of the usage text.

    Flags cannot be abbreviated: `--seed` and `--seeds` may differ.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            check_choice(list(action.choices), **{action.option_strings[0].removeprefix("--"): value})


@dataclasses.dataclass(frozen=True)
class _Published:
    """A flag of scripts with a published setting. It sets other flags and is not recorded with a run."""

    # Train as the authors' code does: set the flags listed in docs/deviations.md, and print them. Overrides --config
    # FILE; overridden by other flags
    published: Boolean = False


def parse_options(
    cls: type[Config],
    *,
    argv: Sequence[str] | None = None,
    config_file: Path | None = None,
    prog: str | None = None,
    description: str | None = None,
    aliases: dict[str, str] | None = None,
    published: dict[str, Any] | None = None,
    recorded: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    defaults: Mapping[str, Any] | None = None,
    also: Callable[[], Collection[str]] | None = None,
) -> Config:
    """The effective configuration: defaults of ``cls`` < ``config_file`` < ``--config FILE`` < flags.

    ``argv`` is sys.argv[1:] unless given; ``defaults`` replaces those of ``cls``, by flag; ``config_file`` is the
    environment's own config.yaml; ``aliases`` maps another spelling of a flag to its name, besides those that all
    scripts share (``aliases.ALIASES``). Flags may have hyphens instead of underscores; the last of a repeated flag
    counts; ``--flag=`` is an empty list. ``published`` are the values, by flag, that ``--published true`` sets; a
    script without them has no such flag. ``recorded`` maps the flags of the command line to values, by flag, that files
    and flags override: those that a run recorded, for example. ``also`` returns what another script calls its options:
    ``--config FILE`` may be of that script; what only that script has is ignored then, and ``overwrite``, which means
    other files there.

    Groups may define ``check_typed(self, names)``, called with the names of the flags on the command line, and
    ``validate(self)``, called on the merged values, outermost group last. ``--help`` and ``--print_config`` print and
    raise SystemExit(0). Raises UserError for invalid flags or files; scripts call this inside exit_on_user_error.
    """
    kinds = _option_kinds(cls) | _option_kinds(_Invocation)
    if published is not None:
        if unknown := published.keys() - kinds.keys():
            raise TypeError(f"published names no option of {cls.__name__}: {sorted(unknown)}")
        kinds |= _option_kinds(_Published)
    aliases = {alias: name for alias, name in (ALIASES | (aliases or {})).items() if name in kinds}
    flags = _read_flags(sys.argv[1:] if argv is None else argv, kinds, aliases)
    invocation = updated(_Invocation(), flags)
    values: dict[str, Any] = dict(defaults or {})
    if recorded is not None and "help" not in flags:
        values |= recorded(flags)
    for path in (config_file, invocation.config):
        if path is not None:
            given, other = load_yaml(path, texts=True), set[str]()
            if also is not None and path is invocation.config:
                other = set(also())
                given = _without_flags_of(other, given, kinds.keys(), aliases.keys())
            values |= typed_values(cls, given, source=str(path), aliases=aliases, other=other)
    if published is not None and flags.get("published"):
        values = _as_published(published, values, flags, invocation.config)
    if "help" in flags:
        invoked = (_Invocation,) if published is None else (_Invocation, _Published)
        _print_help(updated(cls(), values), invoked, prog=prog, description=description, aliases=aliases)
    config = updated(cls(), values | flags)
    try:
        _check_typed(config, flags.keys())
    except UserError as error:
        if flags.get("resume", "no") == "no":
            raise
        raise UserError(f"{error}. To continue a run that has it: --config RUN_DIR/config.yaml --resume auto") from None
    _validate(config)
    if invocation.print_config:
        print(redact(to_yaml(config)), end="")
        raise SystemExit(0)
    return config


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Wraps a script's main: errors of the user or the machine become one line on stderr and an exit status.

    A UserError, a full disk or too little memory: ``error: MESSAGE`` and status 2. A signal: 128 + its number. Printing
    never fails inside (see `lasting_output`).
    """
    with lasting_output(), raising_interrupts():
        try:
            yield
        except KeyboardInterrupt as interruption:
            print(f"stopped by {signal_name(interruption)}", file=sys.stderr)
            raise SystemExit(exit_code(interruption)) from None
        except UserError as error:
            message = str(error)
        except (OSError, MemoryError, RuntimeError) as error:
            message = machine_error(error)
            if message is None:
                raise
        else:
            return
        print(f"error: {one_line(message)}", file=sys.stderr)
        raise SystemExit(2)


def changeable(default: Default) -> Default:
    """The default of a flag that may differ when a run is resumed, because it does not define the run."""
    return dataclasses.field(default=default, metadata={_CHANGEABLE: True})


def heading(text: str) -> Any:
    """For `Annotated[Group, heading(...)]`: the heading of a group's flags in --help, instead of the field's name."""
    return tyro.conf.arg(name=text, prefix_name=False)


def changeable_flags(config: Any) -> Iterator[str]:
    """The names of a configuration's `changeable` flags, in the order of the fields."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from changeable_flags(value)
        elif _CHANGEABLE in field.metadata:
            yield field.name


def to_flat_dict(config: Any) -> dict[str, Any]:
    """``{flag name: value}`` in the order of the fields, as plain YAML types (paths are strings, tuples lists)."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= to_flat_dict(value)
        elif isinstance(value, list | tuple):
            flat[field.name] = [_plain(item) for item in value]
        else:
            flat[field.name] = _plain(value)
    return flat


def to_yaml(config: Any) -> str:
    """A configuration (dataclass or flat dictionary) as YAML that ``--config`` accepts, one flag per line."""
    flat = config if isinstance(config, dict) else to_flat_dict(config)
    return core_yaml.dump(flat)


def flag_pairs(texts: Sequence[str], *, flag: str) -> list[tuple[str, str]]:
    """Flags and values of texts written flag=value. Raises UserError, naming `flag`, for a text without "="."""
    if wrong := [text for text in texts if "=" not in text]:
        raise UserError(f"--{flag} {wrong[0]}: write flag=value, such as learning_rate=0.001")
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]


def flag_words(texts: Sequence[str], *, flag: str) -> list[str]:
    """Texts written flag=value as words of a command line. Values are split as in a shell.

    Raises:
        UserError: a text has no "=", or an open quotation; the message names `flag`.
    """
    words = []
    for name, value in flag_pairs(texts, flag=flag):
        try:
            words += [f"--{name}", *(shlex.split(value) or [""])]
        except ValueError as error:
            raise UserError(f'--{flag} {name}={value}: {error}; put the value in quotes: {name}="..."') from None
    return words


def load_yaml(path: Path, *, texts: bool = False) -> dict[str, Any]:
    """The mapping in a YAML 1.2 file; an empty file gives an empty mapping.

    ``texts``: keep numbers and booleans as text, for `read_value`: a name may be ``010`` or ``1e3``.
    Raises UserError if the file is missing or malformed.
    """
    try:
        if path.stat().st_size > _LARGEST_YAML:
            raise UserError(f"{path}: larger than {_LARGEST_YAML // 1024} KiB; is this a file of flags?")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader if texts else _UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date or number
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {line}{getattr(error, 'problem', None) or f'not valid YAML ({error})'}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected one 'key: value' per line") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected one 'key: value' per line, found {type(content).__name__} content")
    if wrong := [key for key in content if not isinstance(key, str)]:
        raise UserError(f"{path}: key {wrong[0]!r} is not text; keys must be names of flags")
    return content


def read_value(kind: Any, value: Any) -> Any:
    """Convert text from a flag, or an object from YAML, to type ``kind``; a ValueError says what is allowed."""
    kind, origin, arguments = _unwrap(kind)
    if origin in (typing.Union, types.UnionType):
        for member in sorted(arguments, key=lambda member: member is not types.NoneType):
            try:
                return read_value(member, value)
            except ValueError:
                continue
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            return origin(read_value(arguments[0], item) for item in value)
    elif origin is Literal:
        for choice in arguments:
            if _text(value) == _text(choice):
                return choice
    elif kind not in (float, str) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    elif kind is types.NoneType and isinstance(value, str) and value.lower() in ("none", "null"):
        return None
    elif value is not None and not isinstance(value, list | tuple | dict) and kind in _READERS:
        try:
            return _READERS[kind](_text(value))
        except (KeyError, ValueError):
            pass
    raise ValueError(_allowed(kind) + _nearest_choice(kind, value))


def close_matches(name: str, known: Sequence[str]) -> str:
    """`` (did you mean ...?)`` with the names closest to ``name``; empty if none is close.

    Upper and lower case are the same here. Initials match too: ``lr`` is close to learning_rate.
    """
    name, lower = name.lower(), {other.lower(): other for other in reversed(known)}
    short = name.removeprefix("--")
    near = (
        [other for other in lower if other == name]
        or [other for other in lower if len(short) > 1 and short == "".join(re.findall(r"(?:^--|^|_)(\w)", other))]
        or [other for other in reversed(lower) if name and other.startswith(name)]
        or difflib.get_close_matches(name, list(lower))
    )
    return f" (did you mean {' or '.join(lower[other] for other in near[:2])}?)" if near else ""


def check_choice(choices: Sequence[str], **values: str) -> None:
    """Raise `UserError` for the first flag whose value is not one of the choices."""
    for name, value in values.items():
        if value not in choices:
            nearest = close_matches(value, choices)
            raise UserError(f"--{name} {value}: the value must be one of {', '.join(choices)}{nearest}")


def _nearest_choice(kind: Any, value: Any) -> str:
    """`close_matches` of a value that is none of the choices of a type; of a list, of its first wrong item."""
    choices = [_text(choice) for choice in _choices(kind) if choice != ""]
    wrong = [_text(item) for item in (value if isinstance(value, list | tuple) else [value])]
    wrong = [text for text in wrong if text not in choices]
    return close_matches(wrong[0], choices) if wrong and choices else ""


def _choices(kind: Any) -> list[Any]:
    """The choices of a Literal, also inside a union or a list."""
    kind, origin, arguments = _unwrap(kind)
    if origin is Literal:
        return list(arguments)
    return [choice for argument in arguments for choice in _choices(argument)]


def _read_flags(argv: Sequence[str], kinds: dict[str, Any], aliases: dict[str, str]) -> dict[str, Any]:
    """The converted values of the flags, by option name; contains the key "help" if help is requested."""
    values: dict[str, Any] = {}
    for flag, tokens in _group(argv):
        if flag in ("-h", "--help"):
            values["help"] = True
            continue
        alias = flag.removeprefix("--").replace("-", "_")
        name, switch = aliases.get(alias, alias), BOOLEAN_ALIASES.get(alias)
        if name not in kinds:
            known = [f"--{option}" for option in (*kinds, *aliases)]
            raise UserError(
                f"unknown flag {flag}{close_matches('--' + flag.strip('-').replace('-', '_'), known)}; see --help"
            )
        value = _read_tokens(flag, tokens, kinds[name] if switch is None else bool)
        values[name] = value if switch is None else switch[value]
    return values


def _group(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Split the command line into flags and their values; ``--flag=value`` is a flag with one value."""
    groups: list[tuple[str, list[str]]] = []
    for token in argv:
        if re.match(r"--?[A-Za-z_]", token):  # A dash and a digit is a negative number.
            flag, equals, value = token.partition("=")
            groups.append((flag, [value] if equals else []))
        elif groups:
            groups[-1][1].append(token)
        else:
            raise UserError(f"unexpected argument '{token}': write options as --name value; see --help")
    return groups


def _read_tokens(flag: str, tokens: list[str], kind: Any) -> Any:
    """The value of a flag, from the words after it."""
    kind, origin, arguments = _unwrap(kind)
    if not tokens and _is_switch(kind):
        return True
    if not tokens:
        raise UserError(f"{flag} needs a value: {_allowed(kind)}")
    shown = " ".join(f"'{token}'" if not token or " " in token else token for token in tokens)
    if len(tokens) > 1 and origin not in (tuple, list):
        raise UserError(f"{flag} takes one value ({_allowed(kind)}), got {len(tokens)}: {shown}")
    if origin in (tuple, list) and tokens == [""]:  # --name= is an empty list
        tokens = []
    if origin in (tuple, list) and arguments[0] in (int, float):  # numbers may be separated by commas: 0.1,0.5
        tokens = [part for token in tokens for part in token.split(",")]
    try:
        return read_value(kind, tokens if origin in (tuple, list) else tokens[0])
    except ValueError as error:
        raise UserError(f"{flag} {shown}: the value must be {error}") from None


def _is_switch(kind: Any) -> bool:
    """Whether a flag of this type may come without a value, meaning true: a Boolean, or a Boolean or None."""
    kind, origin, arguments = _unwrap(kind)
    return kind is bool or (origin in (typing.Union, types.UnionType) and any(map(_is_switch, arguments)))


def typed_values(
    cls: type,
    values: dict[str, Any],
    *,
    source: str,
    aliases: dict[str, str] | None = None,
    other: Collection[str] = (),
) -> dict[str, Any]:
    """Convert a flat mapping, read from ``source``, to the types of the options of ``cls``.

    Raises UserError for an unknown key or invalid value; the message names ``source``, and for an unknown key similar
    names of options, of those in ``other`` as well.
    """
    kinds, aliases = _option_kinds(cls), aliases or {}
    typed: dict[str, Any] = {}
    for key, value in values.items():
        alias = key.replace("-", "_")
        name, switch = aliases.get(alias, alias), BOOLEAN_ALIASES.get(alias)
        if name not in kinds:
            similar = close_matches(key.replace("-", "_"), [*kinds, *aliases, *other])
            raise UserError(f"{source}: unknown key '{key}'{similar}")
        if name in typed:
            raise UserError(f"{source}: '{key}' and '{name}' are the same option; give it once")
        try:
            value = read_value(kinds[name] if switch is None else bool, value)
            typed[name] = value if switch is None else switch[value]
        except ValueError as error:
            raise UserError(f"{source}: {key}: {_text(value)}: the value must be {error}") from None
    return typed


def _without_flags_of(other: Set[str], given: dict[str, Any], ours: Set[str], aliases: Set[str]) -> dict[str, Any]:
    """The values of a file that are ours: all of them, unless it has options that only the other script has."""
    names = {key: key.replace("-", "_") for key in given}
    if not (other - ours - aliases) & set(names.values()):
        return given
    foreign = (other - ours) | {"overwrite"}
    return {key: value for key, value in given.items() if names[key] not in foreign}


def option_names(cls: type) -> set[str]:
    """What files may call the options of ``cls``: their names and the aliases of all scripts."""
    return {*_option_kinds(cls), *ALIASES, *BOOLEAN_ALIASES}


def _option_kinds(cls: type) -> dict[str, Any]:
    """``{option name: annotation}`` of a dataclass and its groups."""
    kinds: dict[str, Any] = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        group = _unwrap(hint)[0]
        inner = (
            _option_kinds(group) if isinstance(group, type) and dataclasses.is_dataclass(group) else {field.name: hint}
        )
        if twice := kinds.keys() & inner.keys():
            raise TypeError(f"{cls.__name__} has two options named {sorted(twice)}: flat flags need distinct names")
        kinds |= inner
    return kinds


def updated(config: Config, values: dict[str, Any]) -> Config:
    """A copy of a dataclass instance, and of its groups, with the options named in ``values`` replaced."""
    changes = {}
    for field in dataclasses.fields(config):
        old = getattr(config, field.name)
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            changes[field.name] = updated(old, values)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(config, **changes)


def _check_typed(config: Any, typed: Set[str]) -> None:
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, field.name)):
            _check_typed(getattr(config, field.name), typed)
    if hasattr(config, "check_typed"):
        config.check_typed(typed)


def _validate(config: Any) -> None:
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, field.name)):
            _validate(getattr(config, field.name))
    if hasattr(config, "validate"):
        config.validate()


def _as_published(
    published: dict[str, Any], values: dict[str, Any], flags: dict[str, Any], source: Path | None
) -> dict[str, Any]:
    """Replace values from files by the published ones, with a note on stderr; typed flags are kept."""
    typed = [name for name in published if name in flags and flags[name] != published[name]]
    from_file = load_yaml(source, texts=True) if source is not None else {}
    replaced = [
        name
        for name in published
        if name not in flags and name in from_file and name in values and values[name] != published[name]
    ]
    print(
        "--published true: " + _as_flags({name: published[name] for name in published if name not in typed}),
        file=sys.stderr,
    )
    if typed:
        instead = ", ".join(
            f"{_as_flags({name: flags[name]})} (published: {_shown(published[name])})" for name in typed
        )
        print(f"--published true: overridden by typed flags: {instead}", file=sys.stderr)
    if replaced:
        instead = _as_flags({name: values[name] for name in replaced})
        print(f"--published true: overrides {source}: {instead}", file=sys.stderr)
    return values | published


def _as_flags(values: dict[str, Any]) -> str:
    """Values as typed on the command line."""
    return " ".join(f"--{name} {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    """A value as typed; (none) for an empty list."""
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value)) or "(none)"
    return _text(value).lower() if value is None else _text(value)


def _print_help(
    config: Any, invoked: Sequence[type], *, prog: str | None, description: str | None, aliases: dict[str, str]
) -> None:
    """Print the help, with the values of ``config`` as defaults, and raise SystemExit(0)."""
    unnamed = tyro.conf.arg(name="")
    everything = dataclasses.make_dataclass(
        "Everything",
        [("options", Annotated[type(config), unnamed])]
        + [(f"invocation{number}", Annotated[cls, unnamed]) for number, cls in enumerate(invoked)],
    )
    try:
        tyro.cli(
            everything,
            args=["--help"],
            prog=prog,
            description=description,
            default=everything(config, *(cls() for cls in invoked)),
            use_underscores=True,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
        )
    finally:  # tyro ends with SystemExit(0)
        if aliases:
            print("Legacy aliases:", ", ".join(_alias_text(alias, name) for alias, name in aliases.items()))


def _alias_text(alias: str, name: str) -> str:
    """An alias of a flag, and what it stands for."""
    if alias in BOOLEAN_ALIASES:
        return f"--{alias} false = --{name} {BOOLEAN_ALIASES[alias][False]}"
    return f"--{alias} = --{name}"


def _unwrap(kind: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """The annotation without Annotated, its origin and its arguments."""
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    return kind, typing.get_origin(kind), typing.get_args(kind)


def _allowed(kind: Any) -> str:
    """A description of the values that type ``kind`` allows."""
    kind, origin, arguments = _unwrap(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_allowed(member) for member in arguments)
    if origin in (tuple, list):
        return f"a list, each item {_allowed(arguments[0])}"
    if origin is Literal:
        return f"one of {', '.join(_text(choice) or repr('') for choice in arguments)}"
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "text in UTF-8"}
    names[Path] = f"a path of names in UTF-8 of at most {_LONGEST_NAME} bytes"
    return names.get(kind, "none")


def _text(value: Any) -> str:
    """A value as written in YAML or on the command line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _path(text: str) -> Path:
    path = Path(_utf8(text)).expanduser()
    if not text or "\0" in text or any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
        raise ValueError("not a path")
    return path


def _utf8(text: str) -> str:
    """The text; a ValueError if it is not UTF-8, because config.yaml could not hold it."""
    text.encode()
    return text


_READERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: BOOLEANS[text.lower()],
    int: int,
    float: _number,
    str: _utf8,
    Path: _path,
}


# The limit of common file systems, in bytes.
_LONGEST_NAME = 255
# Configuration files have about a hundred lines. A few nested aliases could expand to more than memory holds.
_LARGEST_YAML, _MOST_YAML_VALUES = 2**20, 100_000


class _UniqueKeyLoader(core_yaml.CoreLoader):
    """Refuses aliases that expand to too many values, and duplicate keys, of which YAML silently keeps the last."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _count_values(node, {}) > _MOST_YAML_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) that expand to too many values", node.start_mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _TextLoader(_UniqueKeyLoader):
    """Loads every plain scalar except null as text."""

    yaml_implicit_resolvers = core_yaml.NULL_ONLY


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values that a node expands to, including aliases; above the limit if it contains itself."""
    if id(node) not in known:
        known[id(node)] = _MOST_YAML_VALUES + 1  # while it is being counted
        children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
        scalar = isinstance(node, yaml.ScalarNode)
        known[id(node)] = 1 if scalar else 1 + sum(_count_values(child, known) for child in children)
    return known[id(node)]
