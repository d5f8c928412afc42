"""Make results/vizdoom*: every model of a setting, every seed, and players without a model.

    python3 VizDoom/VizDoom_src/reproduce.py --seeds 1 2 3
    python3 VizDoom/VizDoom_src/reproduce.py --seeds 1 2 --models LSTM MLP
    python3 VizDoom/VizDoom_src/reproduce.py --setting auxiliary --seeds 1 2 3
    python3 VizDoom/VizDoom_src/reproduce.py --setting recorded --seeds 1 2 3
    python3 VizDoom/VizDoom_src/reproduce.py --setting published --seeds 1 2 3

The first four use config_fast.yaml, on a CPU, and write results/vizdoom.*, vizdoom_auxiliary.* and vizdoom_recorded.*;
the last trains RATE and DT with config.yaml, for a GPU, and writes results/vizdoom_published.*. Finished runs are kept
and interrupted ones continued, so the command can be repeated at any time. With `--models` the figures of these models
and seeds are added to the page, which keeps all others.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from RATE_model.acting.controls import knock_out_memory
from RATE_model.pages.controls_page import ControlsPage, Document, Entry, bar, mean_cell, seed_cell
from RATE_model.pages.run_results import final_results
from RATE_model.pages.study import PageOptions, Study, of_modes
from RATE_model.pages.tables import origin, seed_table, table
from VizDoom.VizDoom_src.baselines import PLAYERS, play_baselines
from VizDoom.VizDoom_src.dataset import DATA
from VizDoom.VizDoom_src.engine import describe_graphics
from VizDoom.VizDoom_src.environment import ENVIRONMENT
from VizDoom.VizDoom_src.evaluate import COLOURS, COLUMNS, ERRORS, TARGET_RETURN, figures, has_free_colour
from VizDoom.VizDoom_src.pictures import returns_by_colour
from VizDoom.VizDoom_src.scenario import Graphics

Setting = Literal["fast", "auxiliary", "recorded", "published"]
FAST = ("--config", "VizDoom/VizDoom_src/config_fast.yaml")
# The published graphics; training also predicts the colour, from what the model remembers.
AUXILIARY = (*FAST, *"--variant published --stages 1:10 2:4 4:2 --epochs 3 --aux infos/is_red --aux_weight 1".split())
RECORDED = (*AUXILIARY, *"--perturbation 0 --learn recorded".split())
SMALL = of_modes({"RATE": "", "LSTM": "", "MLP": ""})
# The second valve rounds what it keeps, so that nothing drifts in games that are much longer than training episodes.
IN_PUBLISHED_GRAPHICS = of_modes(
    {"RATE": "", "RATE, FSQ valve": "--mrv FSQ", "LSTM": "", "MLP": "", "DT": "--slide 10"}
)
STUDIES: dict[Setting, Study] = {
    "fast": Study.of(ENVIRONMENT, FAST, SMALL),
    "auxiliary": Study.of(ENVIRONMENT, AUXILIARY, IN_PUBLISHED_GRAPHICS, prefix="auxiliary"),
    "recorded": Study.of(ENVIRONMENT, RECORDED, IN_PUBLISHED_GRAPHICS, prefix="recorded"),
    "published": Study.of(
        ENVIRONMENT,
        ("--config", "VizDoom/VizDoom_src/config.yaml"),
        of_modes(
            {
                "RATE": "--nmt 5 --mem_len 300 --n_head_ca 2 --mrv_act relu --skip_dec_ffn",
                "DT": "--nmt 0 --mem_len 0 --n_head_ca 0 --mrv_act no_act",
            }
        ),
        prefix="published",
        device="auto",
    ),
}
# Models whose memory is knocked out and swapped.
CONTROLLED = ("RATE", "RATE, FSQ valve", "LSTM")
OF_DATA = "data"  # entry for the mean return of the data
# Cherepanov et al. 2023 (arXiv 2306.09459), table 5, mean over 6 runs; and the score of RATE in a later comparison.
# "weaker" and "difference" follow from red and green.
PUBLISHED = {
    "RATE": {"red": 38.2, "green": 44.7, "mean": 41.5, "weaker": 38.2, "difference": 6.5},
    "DT": {"red": 7.2, "green": 42.3, "mean": 24.8, "weaker": 7.2, "difference": 35.1},
    "DT, told the colour": {"red": 55.3, "green": 57.2, "mean": 56.5, "weaker": 55.3, "difference": 1.9},
    "RATE, data of 150 steps, pillar for 90": {"mean": 59.2},
}


@dataclass(frozen=True)
class Options(PageOptions):
    """Which setting, which runs, and where they and the results go."""

    # fast: RATE, LSTM and MLP with config_fast.yaml, on a CPU; auxiliary: the same and DT in the published graphics,
    # with the colour as an auxiliary objective; recorded: as auxiliary, from recorded actions instead of the expert's;
    # published: RATE and DT with config.yaml, on a GPU if there is one
    setting: Setting = "fast"
    # Graphics, see train_vizdoom.py; none = the setting's. Other graphics have separate runs and pages
    graphics: Graphics | None = None


class Page(ControlsPage):
    """What is measured and shown."""

    environment = ENVIRONMENT
    options_type = Options
    figures = tuple(COLUMNS)

    @property
    def name(self) -> str:
        """Named by setting and graphics."""
        setting, graphics = self.options.setting, self.options.graphics
        name = "vizdoom" if setting == "fast" else f"vizdoom_{setting}"
        return name if graphics is None else f"{name}_{graphics}_graphics"

    @property
    def study(self) -> Study:
        """The setting's runs."""
        study, graphics = STUDIES[self.options.setting], self.options.graphics
        if graphics is None:
            return study
        prefix = f"{study.prefix}_{graphics}_graphics"
        return replace(study, settings=(*study.settings, "--graphics", graphics), prefix=prefix)

    @cached_property
    def data_return(self) -> float:
        """Mean return of the training episodes."""
        returns = []
        for path in self.data:
            with DATA.open(path) as file:
                returns.append(file.episode_returns())
        return float(np.concatenate(returns).mean())

    def of_runs(self, runs: Sequence[Path]) -> Entry:
        """The columns of the runs' last evaluations, with standard errors as COLUMN_error."""
        names = COLUMNS | {f"{column}_error": name for column, name in ERRORS.items()}
        results, asked = final_results(runs), self.config.task.target_return
        return {column: [result[f"{name}_{asked:g}"] for result in results] for column, name in names.items()}

    def of_control(self, runs: Sequence[Path], **changes: Any) -> Entry:
        """The same columns for a control."""
        return of_figures(super().of_control(runs, **changes))

    def controls(self, label: str) -> dict[str, dict[str, Any]]:
        """For `CONTROLLED`, memory knocked out and, where the colour can be chosen, swapped; for RATE, another target.

        In the settings fast and published, runs with the published target return get the mean return of their data,
        reset at every segment; all others get the published one.
        """
        found: dict[str, dict[str, Any]] = {}
        if label in CONTROLLED:
            found[f"{label}, memory knocked out"] = {"transform": knock_out_memory}
            if has_free_colour(self.config.data.scenario):
                found[f"{label}, memories of twins exchanged"] = {"twins": True}
        if label == "RATE" and self.options.setting in ("fast", "published"):
            task = self.config.task
            as_published = task.target_return == TARGET_RETURN and not task.reset_target
            asked = round(self.data_return, 1) if as_published else TARGET_RETURN
            otherwise = {"target_return": asked, "options": {"reset_target": as_published}}
            called = f"{label}, asked for {described(asked, as_published)}"
            found[called] = otherwise
            found[f"{called}, memory knocked out"] = otherwise | {"transform": knock_out_memory}
        return found

    def needed(self, label: str, model: str | None) -> Sequence[str]:
        """The data has a mean only."""
        errors = tuple(f"{column}_error" for column in ERRORS)
        return ("mean",) if label == OF_DATA else (*super().needed(label, model), *errors)

    def others(self, kept: Mapping[str, Any]) -> Document:
        """Players without a model in the same episodes, and the data."""
        task, found = self.config.task, {}
        if not kept.keys() >= PLAYERS.keys():
            scenario = self.config.data.scenario
            played = play_baselines(task.eval_episodes, scenario=scenario, max_steps=task.episode_timeout)
            for label, episodes in played.items():
                found[label] = of_figures({column: [value] for column, value in figures(episodes).items()})
        return found | {OF_DATA: {"mean": [self.data_return]}}

    def table(self, document: Document) -> str:
        """Returns by player."""
        players = {label: entry for label, entry in document.items() if label != OF_DATA}
        rows = [[label, *(mean_cell(entry, column) for column in COLUMNS)] for label, entry in players.items()]
        return table(["", *COLUMNS], rows)

    def draw(self, document: Document, path: Path) -> None:
        """Returns by colour."""
        players = {label: entry for label, entry in document.items() if label != OF_DATA}
        bars = {label: {colour: bar(entry, colour) for colour in COLOURS} for label, entry in players.items()}
        returns_by_colour(bars, path)

    def paragraphs(self, document: Document) -> list[str]:
        """All tables."""
        task, scenario, data_return = self.config.task, self.config.data.scenario, document[OF_DATA]["mean"][0]
        players = {label: entry for label, entry in document.items() if label != OF_DATA}
        columns: dict[str, Callable[[Any, int], str]] = {
            column: lambda entry, index, column=column: seed_cell(entry, column, index) for column in COLUMNS
        }
        trained = [label for label in self.study.models if label in players]
        published = [[label, *(found.get(column, "") for column in COLUMNS)] for label, found in PUBLISHED.items()]
        return [
            f"Return in {task.eval_episodes} episodes a seed, half of them red, of at most {task.episode_timeout} "
            f"steps, asked for {described(task.target_return, task.reset_target)}, measured {origin(players)}. ± "
            "denotes the standard error over seeds, and over episodes for a single seed and for players without a "
            "model. *Weaker* is the smaller of a seed's two means by colour. Variant "
            f"`{scenario.variant}` ({describe_graphics(scenario)}); episodes in the data have "
            f"{self.config.data.steps} steps and a mean return of {data_return:.2f}.",
            self.table(document),
            self.costs(players),
            "Every seed, with standard errors over its episodes:",
            seed_table(players, None, columns, heading=""),
            "For context, published results with the original graphics, 5000 episodes of another policy and a cap of "
            "2100 steps:",
            table(["published", *COLUMNS], published),
            "Commands:",
            "\n".join(self.study.commands(players[label]["seeds"], [label]) for label in trained),
        ]


def of_figures(found: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The columns of the page, with their standard errors."""
    return {column: found[column] for column in (*COLUMNS, *(f"{error}_error" for error in ERRORS))}


def described(target_return: float, reset: bool) -> str:
    """A target return in words."""
    return f"{target_return:g} at every segment" if reset else f"{target_return:g}"


main = Page.main

if __name__ == "__main__":
    main()
