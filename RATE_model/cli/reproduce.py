"""Results tables: every model with every seed under one setting, trained, collected and written to a page.

Finished runs are kept and interrupted ones continued, so the command of a table can be repeated at any time.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from RATE_model.acting.controls import exchange_twins
from RATE_model.acting.rollout import Episodes, format_mean_and_error, mean_and_error
from RATE_model.cli.aliases import canonical_flags
from RATE_model.cli.evaluation import evaluation_of_run
from RATE_model.cli.experiment import BEFORE
from RATE_model.cli.limits import at_least, at_most_processes, writable
from RATE_model.cli.options import changeable_flags, close_matches, load_yaml, to_flat_dict
from RATE_model.cli.training import check
from RATE_model.environments.contract import Case, Environment, Evaluation
from RATE_model.errors import UserError, error_reason
from RATE_model.loading import load_agent
from RATE_model.memories.contract import MemoryTransform
from RATE_model.system.atomic import atomic_write_json, atomic_write_text
from RATE_model.system.precision import check_device
from RATE_model.training.runs import FinishedRun, Run, short_hash

ROOT = Path(__file__).resolve().parents[2]
_VALUES = "  # flags "  # between a command and the hash of its flags' values
# Marks around the generated part of a results page.
BEGIN, END = "<!-- reproduce.py: begin -->", "<!-- reproduce.py: end -->"


@dataclass(frozen=True)
class StudyOptions:
    """Which runs to train, and where to put them and the results."""

    # Seeds of every model; consecutive
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    # Runs at a time, one core each
    jobs: int = 2
    # Device for training and evaluation: auto, cpu, cuda, ...; none = the one of the published table
    device: str | None = None
    # Folder for the runs; none = the environment's checkpoint folder
    runs_dir: Path | None = None
    # Folder for tables and pictures
    results_dir: Path = ROOT / "results"

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if not self.seeds:
            raise UserError("--seeds is empty: give at least one seed")
        at_least(0, seeds=min(self.seeds))
        if list(self.seeds) != list(range(self.seeds[0], self.seeds[-1] + 1)):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give consecutive seeds, such as 1 2 3")
        at_least(1, jobs=self.jobs)
        at_most_processes(jobs=self.jobs)
        if self.device is not None:
            check_device(self.device)
        writable(runs_dir=self.runs_dir, results_dir=self.results_dir)


@dataclass(frozen=True)
class PageOptions(StudyOptions):
    """Which models and seeds to run, and where to put the runs and the results."""

    # Models to train and measure; the page keeps the figures of all others. Empty: all
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """The runs of one table.

    Attributes:
        script: the train script, relative to the repository.
        settings: flags shared by all models; paths relative to the repository.
        models: the flags that each model adds.
        read_config, check: functions of the train script.
        before: the values of flags in runs made before these flags existed.
    """

    script: str
    settings: tuple[str, ...]
    models: Mapping[str, tuple[str, ...]]
    read_config: Callable[[Sequence[str]], Any]
    check: Callable[[Any, int], Run]
    # Prefix of the run folders; separates tables that train models of the same name
    prefix: str = "reproduce"
    device: str = "cpu"  # on the CPU a run is reproducible to the last bit
    before: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=lambda: {"OMP_NUM_THREADS": "1"})

    @classmethod
    def of(
        cls, environment: Environment, settings: Sequence[str], models: Mapping[str, tuple[str, ...]], **more: Any
    ) -> Study:
        """A study with an environment's train script; `more` are further attributes."""
        return cls(
            environment.train_script,
            tuple(settings),
            models,
            environment.read_config,
            partial(check, environment),
            before=BEFORE | dict(environment.before),
            **more,
        )

    def setting(self) -> Any:
        """The configuration that all models share."""
        return self.read_config(_here(self.settings))

    def folder(self, label: str) -> str:
        """The folder for a model's runs."""
        return f"{self.prefix}_" + "".join(c if c.isalnum() else "_" for c in label.lower())

    def command(self, label: str, seeds: Sequence[int]) -> list[str]:
        """The arguments that train and evaluate a model, as typed on the command line."""
        return [*self._command(label), "--start_seed", str(seeds[0]), "--end_seed", str(seeds[-1])]

    def key(self, label: str, *more: str) -> str:
        """What a model's entry of a page depends on: its command without seeds, and the values of its flags.

        Entries of a page with the same key belong together; see `entry_of`. The values are a comment, eight digits:
        those in YAML files may change while the command stays. `more` are words that follow the command.
        """
        flags = _of_results(self.read_config(_here(self._command(label)[1:])))
        values = {name: value for name, value in flags.items() if name not in self.before or value != self.before[name]}
        return f"{shlex.join([*self._command(label), *more])}{_VALUES}{short_hash(values)}"

    def _command(self, label: str) -> list[str]:
        return [self.script, *self.settings, *self.models[label], "--ckpt_folder", self.folder(label)]

    def run(self, label: str, seed: int, options: StudyOptions, stop: threading.Event | None = None) -> Path:
        """Start or continue one run; returns its directory. Raises UserError if it fails.

        Once ``stop`` is set, the run saves its state and stops.
        """
        arguments = self._arguments(label, seed, options)
        done, path = self._find(label, seed, options)
        if done:
            return path
        code, said = _finish([sys.executable, *arguments], os.environ | self.environment, stop or threading.Event())
        if code:
            reason = (said.strip().splitlines() or ["no message"])[-1][-500:]
            raise UserError(f"{label}, seed {seed}: exit code {code}: {reason}")
        print(f"{label}, seed {seed}: done", flush=True)
        return path

    def finished(self, label: str, seed: int, options: StudyOptions) -> Path | None:
        """The directory of a finished run, or None. Raises UserError for a run with other flags, or damaged results."""
        done, path = self._find(label, seed, options)
        return path if done else None

    def _arguments(self, label: str, seed: int, options: StudyOptions) -> list[str]:
        """The arguments of one run."""
        arguments = [*self.command(label, [seed]), "--resume", "auto", "--wandb_mode", "disabled"]
        arguments += ["--device", options.device or self.device]
        folder = [] if options.runs_dir is None else ["--output_dir", str(options.runs_dir.resolve())]
        return arguments + folder

    def _find(self, label: str, seed: int, options: StudyOptions) -> tuple[bool, Path]:
        """Whether a run is finished, and its directory.

        The exact directory: an earlier setting may have left a run of the same model and seed under another name. A run
        that finished with fewer epochs, or another evaluation, is not finished. One with other flags besides, with
        damaged results, or without a checkpoint to evaluate again is refused with a UserError.
        """
        config = self.read_config(_here(self._arguments(label, seed, options)[1:]))
        try:
            path = self.check(config, seed).directory
            done = _has_results(path) and not self._changed(config, path)
        except FinishedRun as finished:
            done, path = True, finished.directory
            if changed := self._changed(config, path):
                raise UserError(
                    f"{label}, seed {seed}: {path} finished with another {', '.join(changed)}, and has no checkpoint "
                    "to continue from; move it away, or give another --runs_dir"
                ) from None
        except UserError as error:
            raise UserError(f"{label}, seed {seed}: {error} (here: give another --runs_dir)") from None
        if done:
            final_results([path])
            provenance([path])
        return done, path

    def _changed(self, config: Any, run: Path) -> list[str]:
        """The flags whose values differ from those of a run's results."""
        recorded, flags = {**self.before, **canonical_flags(load_yaml(run / "config.yaml"))}, _of_results(config)
        return [f"--{name}" for name, value in flags.items() if recorded.get(name, value) != value]

    def chosen(self, models: Sequence[str]) -> list[str]:
        """The models named by a table's `--models`, in the table's order; all if empty. Raises UserError for unknown
        ones."""
        check_models(models, list(self.models))
        return [label for label in self.models if label in models or not models]

    def run_all(self, options: StudyOptions, models: Sequence[str] = ()) -> dict[str, list[Path]]:
        """Make the runs of these models (all if empty), one per seed, in parallel.

        Raises a UserError for a run that cannot be started, or with damaged results, before any is started; and the
        first of a run that fails after the others have finished.
        """
        labels = self.chosen(models)
        cells = [(label, seed) for label in labels for seed in options.seeds]
        for label, seed in cells:
            self.finished(label, seed, options)
        paths: dict[str, list[Path]] = {label: [] for label in labels}
        errors = []
        for label, done in self.run_each(options, cells):
            if isinstance(done, UserError):
                errors.append(done)
            else:
                paths[label].append(done)
        if errors:
            raise errors[0]
        return paths

    def run_each(
        self, options: StudyOptions, cells: Sequence[tuple[str, int]]
    ) -> Generator[tuple[str, Path | UserError], None, None]:
        """Make runs, given as (model label, seed), in parallel. Yields each run in turn when it has finished, or its
        error; closing the generator stops running ones."""
        stop = threading.Event()

        def one(cell: tuple[str, int]) -> Path | UserError:
            try:
                return self.run(*cell, options, stop)
            except UserError as error:
                return error

        with ThreadPoolExecutor(options.jobs) as pool:
            try:
                yield from zip((label for label, _ in cells), pool.map(one, cells), strict=True)
            except BaseException as error:  # including other signals; the runs can be continued
                stop.set()
                if isinstance(error, KeyboardInterrupt):
                    print("stopping all runs; the same command continues them", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                raise

    def commands(self, seeds: Sequence[int], models: Iterable[str] | None = None) -> str:
        """The commands of these models (None: all), indented as Markdown code; one for every range of seeds."""
        chosen = self.models if models is None else models
        ranges = consecutive(seeds)
        return "\n".join("    python3 " + shlex.join(self.command(label, some)) for label in chosen for some in ranges)


def _has_results(run: Path) -> bool:
    """Whether a run's last start has ended with results. config.yaml is written when it starts."""
    config, results = run / "config.yaml", run / "eval" / "final.json"
    return results.exists() and config.exists() and results.stat().st_mtime >= config.stat().st_mtime


def _of_results(config: Any) -> dict[str, Any]:
    """The flags that results depend on, as in a run's config.yaml.

    All but those that name the run and its place, and those that may change in a run, except for its evaluation's.
    """
    free = {*changeable_flags(config)} - {*to_flat_dict(config.task)}
    return {
        name: value for name, value in to_flat_dict(config).items() if name not in free | {*to_flat_dict(config.run)}
    }


def of_modes(flags: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The flags of models that are called like their --model_mode, up to a comma, from their other flags as typed."""
    return {label: ("--model_mode", label.partition(",")[0], *shlex.split(typed)) for label, typed in flags.items()}


def consecutive(seeds: Sequence[int]) -> list[list[int]]:
    """Seeds in ascending order, split where one is missing."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return parts


def check_models(models: Sequence[str], known: Sequence[str]) -> None:
    """Raise a UserError for the first, in alphabetical order, of `--models` that is not known."""
    if unknown := sorted(set(models) - set(known)):
        allowed, nearest = ", ".join(map(shlex.quote, known)), close_matches(unknown[0], known)
        raise UserError(f"--models {shlex.quote(unknown[0])}: must be one of {allowed}{nearest}")


def _here(arguments: Sequence[str]) -> list[str]:
    """Arguments with the repository's files found from any folder."""
    return [str(ROOT / word) if word.endswith((".yaml", ".h5")) else word for word in arguments]


def _finish(command: Sequence[str], environment: Mapping[str, str], stop: threading.Event) -> tuple[int, str]:
    """Exit code and stderr of a command, which is interrupted once ``stop`` is set."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        interrupted = False
        while True:
            try:
                _, said = process.communicate(timeout=0.5)
                return process.returncode, said
            except subprocess.TimeoutExpired:
                if stop.is_set() and not interrupted:
                    process.terminate()
                    interrupted = True


class _OfRun(dict[str, Any]):
    """What a file of a run holds; a missing key is a UserError."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise self.damaged(error_reason(error) if isinstance(error, OSError) else str(error)) from None
        if not isinstance(found, dict):
            raise self.damaged(f"it holds {type(found).__name__}")
        super().__init__(found)

    def damaged(self, reason: str) -> UserError:
        """The error for a file that cannot be used."""
        return UserError(f"{self.file}: cannot be used ({reason}); move it away and repeat this command")

    def __missing__(self, key: str) -> NoReturn:
        raise self.damaged(f"it has no '{key}'")


def final_results(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The results of each run's final evaluation. Raises UserError for damaged ones, and for a missing key."""
    return [_OfRun(path / "eval" / "final.json") for path in runs]


def training_of(runs: Sequence[Path]) -> dict[str, Any]:
    """The training costs of every seed, for an entry of a page."""
    results = final_results(runs)
    return {
        **{name: [result[name] for result in results] for name in ("train_seconds", "optimizer_steps")},
        "parameters": sum(parameter.numel() for parameter in load_agent(runs[0]).parameters()),
        **provenance(runs),
    }


def play_again(
    environment: Environment,
    run: Path,
    *,
    transform: MemoryTransform | None = None,
    twins: bool = False,
    target_return: float | None = None,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[Evaluation, dict[Case, Episodes]]:
    """Repeat a run's evaluation with some changes; returns it and its episodes by case.

    Args:
        environment, run: the environment and the run.
        transform: applied to the memory.
        twins: play every episode twice; see `Environment.twins`. Without a transform, their memories are exchanged.
        target_return: replaces the run's.
        device: where the agent acts.
        options: changes to the environment's `play_options`.
        changes: further attributes of `Evaluation`, such as cases and episodes.
    """
    if target_return is not None:
        changes["targets"] = (target_return,)
    evaluation = evaluation_of_run(environment, run, device=device, **changes)
    evaluation = replace(evaluation, options=replace(evaluation.options, **(options or {})))
    if twins and transform is None:
        transform = exchange_twins()  # a new one, so every run uses the same random draws
    (played,) = evaluation.play_with(transform, twins=twins).values()
    return evaluation, played


def provenance(runs: Sequence[Path]) -> dict[str, Any]:
    """The origin of an entry: seeds, commits, and the date of the last run. Raises UserError for damaged files."""
    starts = [start for path in runs for start in _OfRun(path / "environment.json")["starts"]]
    return {
        "seeds": list(dict.fromkeys(start["seed"] for start in starts)),
        "commit": sorted({start["git"]["commit"] for start in starts if start["git"]}),
        "date": max(start["started"] for start in starts)[: len("2026-01-01")],
    }


def origin(document: Mapping[str, Mapping[str, Any]]) -> str:
    """The origin of a document's entries: "at commit 0123456789ab on 2026-01-01".

    Entries of older pages have a commit but no date.
    """
    by_day: dict[str, set[str]] = {}
    for entry in document.values():
        if "commit" in entry:
            by_day.setdefault(entry.get("date", "an unrecorded date"), set()).update(entry["commit"])
    phrases = [
        (f"at commit {', '.join(sorted(commit[:12] for commit in known))} " if known else "") + f"on {day}"
        for day, known in sorted(by_day.items())
    ]
    return " and ".join(phrases) or f"on {date.today()}"


def read_results(name: str, options: StudyOptions) -> dict[str, Any]:
    """The entries of NAME.json; none if there is no such file.

    Raises:
        UserError: a file of the page is damaged or a folder. A page reads this before it trains anything.
    """
    path = options.results_dir / f"{name}.json"
    for file in (path, path.with_suffix(".md"), path.with_suffix(".png")):
        if file.is_dir():
            raise UserError(f"{file} is a folder, but a file of this page; move it away, or give another --results_dir")
    _handwritten(path.with_suffix(".md"), "")
    document = read_page(path) if path.exists() else {}
    for label, entry in document.items():
        _check_entry(entry, f"{path}: '{label}'")
    return document


def keep_seeds(name: str, replaced: Mapping[str, Any], options: StudyOptions, *, made: str = "") -> None:
    """Raise a UserError if entries of NAME.json that are measured again have seeds that are not.

    Args:
        name, options: the page.
        replaced: the entries by label.
        made: says how they came about.
    """
    for label, entry in replaced.items():
        if set(had := entry.get("seeds", ())) - set(options.seeds):
            every = sorted({*had, *options.seeds})
            asked, has, need = (
                " ".join(map(str, seeds)) for seeds in (options.seeds, had, range(every[0], every[-1] + 1))
            )
            raise UserError(
                f"--seeds {asked}: {options.results_dir / name}.json has seeds {has} of {label}{made}, and they "
                f"would be lost; give --seeds {need}, or another --results_dir"
            )


def kept_entries(name: str, study: Study, options: PageOptions, figures: Sequence[str] = ()) -> dict[str, Any]:
    """The entries of NAME.json that are not measured again, on a page whose models all have the same seeds.

    Without `--models` there are none. `figures` are what each must have.

    Raises:
        UserError: `--models` names an unknown model, the page is damaged or lacks figures, or it has other seeds.
    """
    chosen, path = study.chosen(options.models), options.results_dir / f"{name}.json"
    page = read_results(name, options)
    again = {label: entry for label, entry in page.items() if not options.models or model_of(study, label) in chosen}
    keep_seeds(name, again, options)
    kept = {label: entry for label, entry in page.items() if label not in again}
    refuse_outdated(name, kept, study, options)
    asked = " ".join(map(str, options.seeds))
    for label, entry in kept.items():
        require_figures(entry, f"{path}: '{label}'", figures)
        if (has := " ".join(map(str, entry.get("seeds", options.seeds)))) != asked:
            raise UserError(
                f"--seeds {asked}: {path} has seeds {has} of {label}; give these, or measure all models (without "
                "--models)"
            )
    return kept


def read_page(path: Path, *, flag: str = "") -> dict[str, Any]:
    """The entries of a page's JSON file, by label.

    Args:
        path: the file.
        flag: what named the file, to start a message with.

    Raises:
        UserError: the file cannot be read, or does not hold entries.
    """
    place = f"{flag} {path}".lstrip()
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error_reason(error)}") from None
    except ValueError as error:
        raise UserError(f"{place}: is damaged, or not JSON ({error}); restore it or remove it") from None
    if not isinstance(document, dict):
        raise UserError(f"{place}: holds {type(document).__name__}; it must be the JSON file of a page of results")
    if wrong := [label for label, entry in document.items() if not isinstance(entry, dict)]:
        raise UserError(f"{place}: '{wrong[0]}' is not an entry of a page of results; remove it")
    return document


def merged(kept: Mapping[str, Any], measured: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Kept and newly measured entries, in the order of these labels; new ones override kept ones."""
    entries = {**kept, **measured}
    return {label: entries[label] for label in sorted(entries, key=lambda label: _place(label, order))}


def entry_of(document: Mapping[str, Any], label: str, key: str) -> dict[str, Any]:
    """An entry of a page's document; empty if there is none, or if another command, or other values of flags, made it.

    Args:
        document: entries by label. Those of older pages without a command, or without values, count as made by these.
        key: the command and values; see `Study.key`.
    """
    entry = document.get(label, {})
    made, by = (text.partition(_VALUES) for text in (entry.get("command", key), key))
    return entry if made[0] == by[0] and made[2] in ("", by[2]) else {}


def keep_outdated(name: str, document: Mapping[str, Any], keys: Mapping[str, str], options: StudyOptions) -> None:
    """As `keep_seeds`, for the entries that other commands made than these, which are given by label."""
    replaced = {
        label: document[label]
        for label, key in keys.items()
        if label in document and not entry_of(document, label, key)
    }
    keep_seeds(name, replaced, options, made=", made by another command")


def refuse_outdated(name: str, kept: Mapping[str, Any], study: Study, options: StudyOptions) -> None:
    """Raise a UserError for the first entry of NAME.json that is kept, but was made by another command than today's.

    A page prints today's commands. `kept` are entries by label, with those of controls and of players without a model.
    """
    keys = {model: study.key(model) for model in study.models}
    for label in kept:
        model = model_of(study, label)
        if model is not None and not entry_of(kept, label, keys[model]):
            raise UserError(
                f"{options.results_dir / name}.json: '{label}' was made by another command than today's; name "
                f"{shlex.quote(model)} in --models, too"
            )


def missing_seeds(entry: Mapping[str, Any], seeds: Sequence[int]) -> list[int]:
    """The seeds without figures in an entry."""
    return [seed for seed in seeds if seed not in entry.get("seeds", ())]


def with_seeds(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with the seeds of two entries of one command; for seeds in both, the new figures count.

    Either may be empty. Lists have one value per seed, and are left out if an entry lacks them; what is not measured
    per seed is that of the entry with the lowest one.
    """
    places = {seed: (entry, index) for entry in (old, new) for index, seed in enumerate(entry.get("seeds", ()))}
    sources = [places[seed] for seed in sorted(places)]

    def joined(fields: list[Any]) -> Any:
        """A field of the entry, from that field of every seed's source."""
        if isinstance(fields[0], Mapping):
            return {case: joined([field[case] for field in fields]) for case in fields[0]}
        if isinstance(fields[0], list):
            return [field[index] for field, (_, index) in zip(fields, sources, strict=True)]
        return fields[0]

    first = {**old, **new, **sources[0][0]}
    entries = [entry for entry in (old, new) if entry]
    known = [
        name
        for name, field in first.items()
        if name != "commit" and (not isinstance(field, list | Mapping) or all(name in entry for entry, _ in sources))
    ]
    dates = [entry["date"] for entry in entries if "date" in entry]  # older pages have none
    return {
        **{name: joined([entry.get(name, first[name]) for entry, _ in sources]) for name in known},
        "commit": sorted({commit for entry in entries for commit in entry["commit"]}),
    } | ({"date": max(dates)} if dates else {})


def join_pages(
    document: Mapping[str, Any],
    files: Sequence[Path],
    keys: Mapping[str, str],
    check_entry: Callable[[str, Any, str], None],
) -> dict[str, Any]:
    """Add the seeds in the JSON files of other machines' pages to a document.

    For seeds in several, the document's figures count, then those of the first file. Entries of the document that other
    commands made are replaced.

    Args:
        document: entries by label.
        files: `--join`.
        keys: the labels of all entries in the order of the page, and the commands that make them; see `Study.key`.
        check_entry: raises a UserError for an entry without all that the page needs, from its label, itself and the
            beginning of a message; see `check_figures`.

    Raises:
        UserError: a file cannot be read, has an entry of another command, or lacks seeds of an entry that it replaces.
    """
    joined = dict(document)
    for file in files:
        found = read_page(file, flag="--join")
        if not found:
            raise UserError(f"--join {file}: has no figures; give another file")
        for name in found:
            place = f"--join {file}: '{name}'"
            if name not in keys or not (entry := entry_of(found, name, keys[name])):
                raise UserError(f"{place} was made by another command than today's; remove it")
            check_entry(name, entry, place)
            outdated = name in joined and not entry_of(joined, name, keys[name])
            if outdated and set(joined[name]["seeds"]) - set(entry["seeds"]):
                raise UserError(f"{place} would replace seeds that another command made; give another --results_dir")
            joined = merged(joined, {name: with_seeds(entry, entry_of(joined, name, keys[name]))}, list(keys))
    return joined


def check_entries(
    name: str,
    document: Mapping[str, Any],
    keys: Mapping[str, str],
    check_entry: Callable[[str, Any, str], None],
    options: StudyOptions,
) -> None:
    """Raise a UserError for the first entry of NAME.json that today's commands made and that lacks figures.

    For `document`, `keys` and `check_entry` see `join_pages`.
    """
    for label, key in keys.items():
        if entry := entry_of(document, label, key):
            check_entry(label, entry, f"{options.results_dir / name}.json: '{label}'")


def check_figures(
    entry: Any,
    place: str,
    *,
    of_seeds: Sequence[str],
    rates: Mapping[str, Sequence[Case]],
    alone: Sequence[str],
) -> None:
    """Raise a UserError unless an entry has its figures and its origin.

    Args:
        entry: the entry.
        place: the beginning of a message.
        of_seeds: lists of one number per seed, besides the seeds themselves.
        rates: such lists of numbers from 0 to 1, by case; without cases a single list.
        alone: numbers.
    """
    entry = entry if isinstance(entry, Mapping) else {}
    require_figures(entry, place, (*rates, "seeds", *of_seeds, *alone, "commit", "date"))
    _check_entry(entry, place)
    found = {name: entry[name] for name in of_seeds}
    for name, cases in rates.items():
        by_case = entry[name] if isinstance(entry[name], Mapping) else {}
        found |= {f"{name} {case}": by_case.get(str(case)) for case in cases} or {name: entry[name]}
    for name, values in found.items():
        if not isinstance(values, list):
            raise UserError(f"{place}: '{name}' is {values!r}; must be a list of numbers")
        if name not in of_seeds and not all(_is_number(value) and 0 <= value <= 1 for value in values):
            raise UserError(f"{place}: '{name}' is {values}; rates are from 0 to 1")
    if wrong := [name for name in alone if not _is_number(entry[name])]:
        raise UserError(f"{place}: '{wrong[0]}' is {entry[wrong[0]]!r}; must be a number")


def require_figures(entry: Mapping[str, Any], place: str, names: Iterable[str]) -> None:
    """Raise a UserError for the first of these names that an entry lacks; `place` begins the message."""
    if missing := [name for name in names if name not in entry]:
        raise UserError(f"{place} has no '{missing[0]}'; restore the file, or remove this entry")


def _check_entry(entry: Mapping[str, Any], place: str) -> None:
    """Raise a UserError unless an entry's fields have the types that pages hold, and its lists a value per seed."""
    seeds, commits, day = (entry.get(name, default) for name, default in (("seeds", [0]), ("commit", []), ("date", "")))
    if not _is_list_of(int, seeds) or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{place}: 'seeds' is {seeds!r}; must be different seeds, at least one")
    if not _is_list_of(str, commits) or not isinstance(day, str):
        raise UserError(f"{place}: 'commit' must be a list of texts and 'date' a text")
    count = len(seeds) if "seeds" in entry else None
    for name, values in entry.items():
        if name not in ("seeds", "commit", "date", "command"):
            _check_field(values, place, name, count)


def _check_field(found: Any, place: str, name: str, count: int | None) -> None:
    """Raise a UserError unless a field is a number, a list of numbers, lists of them, or all of that by case."""
    if isinstance(found, Mapping):
        for case, values in found.items():
            _check_field(values, place, f"{name} {case}", count)
    elif isinstance(found, list):
        if not found or not all(_is_number(value) or _is_list_of(float, value) for value in found):
            raise UserError(f"{place}: '{name}' is {found!r:.200}; must be a list of numbers")
        if count is not None and len(found) != count:
            raise UserError(f"{place} has {count} seeds, but {len(found)} values of '{name}'")
    elif not _is_number(found):
        raise UserError(f"{place}: '{name}' is {found!r:.200}; must be a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_list_of(kind: type, found: Any) -> bool:
    """Whether this is a list of integers (int), finite numbers (float) or texts (str)."""
    return isinstance(found, list) and all(_is_number(x) if kind is float else type(x) is kind for x in found)


def by_model(study: Study, labels: Iterable[str]) -> list[str]:
    """Labels sorted by model, each followed by its controls ("MODEL, CONTROL"); labels without a model come last."""
    models = list(study.models)
    return sorted(labels, key=lambda label: _place(model_of(study, label) or label, models))


def model_of(study: Study, label: str) -> str | None:
    """The model of a label, "MODEL" or "MODEL, CONTROL"; None for players without a model."""
    owners = [model for model in study.models if f"{label}, ".startswith(f"{model}, ")]
    return max(owners, key=len) if owners else None


def _place(label: str, order: Sequence[str]) -> int:
    """The position of a label; unknown ones come last."""
    return order.index(label) if label in order else len(order)


def training_table(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Per model: size, training cost averaged over seeds, and origin of the figures."""
    rows = [
        [
            label,
            entry["parameters"],
            cell(entry["optimizer_steps"], 0),
            cell(entry["train_seconds"], 0),
            ", ".join(commit[:12] for commit in entry["commit"]),
            entry.get("date", ""),
        ]
        for label, entry in document.items()
        if "train_seconds" in entry
    ]
    return table(["model", "parameters", "optimizer steps", "training, s", "commit", "date"], rows)


def seed_table(
    document: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int] | None,
    columns: Mapping[str, Callable[[Any, int], str]],
    *,
    heading: str = "model",
) -> str:
    """Training cost and further columns for every seed, as Markdown.

    Args:
        document: entries by label.
        seeds: of all trained entries, in the order of their values; None: each entry's own, also of controls.
        columns: a heading -> the cell, from an entry and the index of a seed.
        heading: of the first column.
    """

    def of_entry(entry: Mapping[str, Any]) -> Sequence[int]:
        if seeds is None:
            return entry.get("seeds", ())
        return seeds if "optimizer_steps" in entry else ()

    def cost(entry: Mapping[str, Any], name: str, index: int) -> str:
        return f"{entry[name][index]:.0f}" if name in entry else ""

    rows = [
        [
            label,
            seed,
            cost(entry, "optimizer_steps", index),
            cost(entry, "train_seconds", index),
            *(column(entry, index) for column in columns.values()),
        ]
        for label, entry in document.items()
        for index, seed in enumerate(of_entry(entry))
    ]
    return table([heading, "seed", "optimizer steps", "training, s", *columns], rows)


def cell(values: Sequence[float] | None, digits: int = 2) -> str:
    """Mean and standard error over seeds; no error for a single value; empty without values."""
    if not values:
        return ""
    return format_mean_and_error(*mean_and_error(np.array(values)), digits)


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [list(map(str, header)), ["---"] * len(header), *(list(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(name: str, title: str, document: Mapping[str, Any], text: str, options: StudyOptions) -> None:
    """Write NAME.json and the part of NAME.md between the two marks; hand-written text around it is kept.

    Raises:
        UserError: the page cannot be read, or its marks are not a pair; nothing is written.
    """
    options.results_dir.mkdir(parents=True, exist_ok=True)
    page = options.results_dir / f"{name}.md"
    before, after = _handwritten(page, title)
    atomic_write_json(options.results_dir / f"{name}.json", document, indent=1)
    atomic_write_text(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def _handwritten(page: Path, title: str) -> tuple[str, str]:
    """What stands before and after the generated part of a page."""
    try:
        old = page.read_text(encoding="utf-8") if page.exists() else f"# {title}\n\n{BEGIN}\n{END}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{page}: cannot be read ({error}); move it away") from None
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    counts = {mark: old.count(mark) for mark in (BEGIN, END)}
    if set(counts.values()) not in ({0}, {1}) or old.find(END) < old.find(BEGIN):
        raise UserError(
            f"{page}: has '{BEGIN}' {counts[BEGIN]} times and '{END}' {counts[END]} times; must have each once, at "
            "the beginning and the end of the generated part"
        )
    return before, after
