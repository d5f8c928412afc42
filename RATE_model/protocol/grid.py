"""The grid of context K against horizon xi: train a memory on one length at a time, validate it at all lengths.

The grid of Cherepanov et al. 2024 (arXiv 2412.06531): training episodes are one segment (short-term memory), two or
three (long-term memory), and every memory is validated at all trained lengths and beyond.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from RATE_model.cli.evaluation import evaluation_of_run
from RATE_model.environments.contract import Case, Environment
from RATE_model.errors import UserError, error_reason
from RATE_model.pages.study import Study, StudyOptions
from RATE_model.plots.heat_map import plot_heat_map
from RATE_model.protocol.examination import RunPlayer, task_cases_of
from RATE_model.protocol.verdict import Case as Outcomes
from RATE_model.system.atomic import atomic_write_json, atomic_write_text

# Segments per training episode: K >= xi, then K about half of it and a third of it.
PARTS = (1, 2, 3)
# Multiples of the longest trained case.
LONGER = (2, 4)


@dataclass(frozen=True)
class Grid:
    """A memory to train and validate.

    Attributes:
        environment: the environment.
        mode: the model's mode.
        trained: the trained cases, ascending.
        settings: further flags of the train script.
    """

    environment: Environment
    mode: str
    trained: Sequence[Case]
    settings: tuple[str, ...] = ()

    def study(self) -> Study:
        """The runs, resumable."""
        environment = self.environment
        models = {
            label(environment, case, parts): tuple(environment.grid_flags(case, parts))
            for case in self.trained
            for parts in PARTS
        }
        settings = ("--model_mode", self.mode, *self.settings)
        return Study.of(environment, settings, models, prefix=f"grid_{self.mode.lower()}")

    @property
    def validated(self) -> list[Case]:
        """All trained cases, and multiples of the longest."""
        return [*self.trained, *(self.trained[-1] * factor for factor in LONGER)]


def label(environment: Environment, case: Case, parts: int) -> str:
    """The label of a row of the grid."""
    return f"{environment.axis} {case} in {parts} segment{'s' * (parts > 1)}"


def run_grid(grid: Grid, options: StudyOptions, *, episodes: int) -> dict[str, Any]:
    """Train missing runs, validate all; `{"rows": {label: {...}}, "validated": [...]}`.

    Raises:
        UserError: the environment does not declare a grid, or a run fails.
    """
    if not grid.trained:
        raise UserError(f"{grid.environment.name} declares no grid of contexts and horizons")
    rows: dict[str, Any] = {}
    for name, runs in grid.study().run_all(options).items():
        evaluations = [
            evaluation_of_run(
                grid.environment, run, device=options.device or "cpu", cases=tuple(grid.validated), episodes=episodes
            )
            for run in runs
        ]
        answers = [RunPlayer(evaluation).play(None) for evaluation in evaluations]
        memory, cells = evaluations[0].agent.memory, []
        for number, task_case in enumerate(task_cases_of(evaluations[0])):
            seeds = [answer[number] for answer in answers]
            case = Outcomes(
                task_case.name, task_case.horizons, task_case.chance, {"intact": np.stack(seeds)}, task_case.outcome
            )
            interval = case.interval()
            cells.append(
                {
                    "case": task_case.name,
                    "horizons": list(task_case.horizons),
                    "regime": case.regime(memory.context),
                    "success": float(interval.value),
                    "interval": [float(interval.low), float(interval.high)],
                    "seeds": [float(values.mean()) for values in seeds],
                }
            )
        rows[name] = {"context": memory.context, "runs": [str(run) for run in runs], "cells": cells}
        print(f"{name}: " + " ".join(f"{cell['success']:.2f}" for cell in cells), flush=True)
    return {
        "environment": grid.environment.name,
        "model_mode": grid.mode,
        "settings": shlex.join(grid.settings),
        "episodes": episodes,
        "validated": list(map(str, grid.validated)),
        "rows": rows,
    }


def write_grid(found: Mapping[str, Any], folder: Path, stem: str) -> list[Path]:
    """Write JSON, CSV and the heat map of a grid; returns their paths. Raises UserError if they cannot be written."""
    values = {name: [cell["success"] for cell in row["cells"]] for name, row in found["rows"].items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trained on", *found["validated"]])
    writer.writerows([name, *row] for name, row in values.items())
    paths = [folder / f"{stem}.{kind}" for kind in ("json", "csv", "png")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(paths[0], dict(found))
        atomic_write_text(paths[1], text.getvalue())
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error_reason(error)}") from error
    plot_heat_map(values, found["validated"], paths[2], title=f"{found['environment']}, {found['model_mode']}: success",
                  rows="trained on", columns="validated at")  # fmt: skip
    return paths
