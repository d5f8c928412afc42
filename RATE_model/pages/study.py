"""The runs of a table: every model with every seed under one setting.

Finished runs are kept and interrupted ones continued, so the command of a table can be repeated at any time.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from RATE_model.cli.aliases import canonical_flags
from RATE_model.cli.experiment import BEFORE
from RATE_model.cli.limits import MAX_SEED, at_least, at_most, at_most_processes, writable
from RATE_model.cli.options import changeable_flags, close_matches, load_yaml, to_flat_dict
from RATE_model.cli.training import check
from RATE_model.environments.contract import Environment
from RATE_model.errors import UserError
from RATE_model.pages.run_results import final_results, provenance
from RATE_model.system.precision import check_device
from RATE_model.training.runs import FinishedRun, Run, short_hash

ROOT = Path(__file__).resolve().parents[2]
# Between a command and the hash of its flags' values.
VALUES = "  # flags "


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
        at_most(MAX_SEED, seeds=max(self.seeds))
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
        return f"{shlex.join([*self._command(label), *more])}{VALUES}{short_hash(values)}"

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
        self.check_runs(options, labels)
        cells = [(label, seed) for label in labels for seed in options.seeds]
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

    def check_runs(self, options: StudyOptions, labels: Iterable[str] | None = None) -> None:
        """Raise a UserError for the first run of these models (None: all) that cannot be started or used."""
        for label in self.models if labels is None else labels:
            for seed in options.seeds:
                self.finished(label, seed, options)

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
