"""Make results/vizdoom*: every model of a setting, every seed, beside players without a model.

    python3 VizDoom/VizDoom_src/reproduce.py --seeds 1 2 3
    python3 VizDoom/VizDoom_src/reproduce.py --seeds 1 2 --models LSTM MLP
    python3 VizDoom/VizDoom_src/reproduce.py --setting published --seeds 1 2 3

The first two use config_fast.yaml, on a CPU, and write results/vizdoom.*; the last trains RATE and DT with config.yaml,
for a GPU, and writes results/vizdoom_published.*. Finished runs are kept and interrupted ones continued, so the command
can be repeated at any time. With `--models` the page keeps the entries of the other models, with the commit, day and
seeds of their measurement.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import mean_and_error
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.cli.reproduce import (
    ROOT,
    PageOptions,
    Study,
    by_model,
    cell,
    final_results,
    kept_entries,
    merged,
    origin,
    play_again,
    provenance,
    table,
    training_of,
    training_table,
    write_results,
)
from VizDoom.VizDoom_src.baselines import PLAYERS, play_baselines
from VizDoom.VizDoom_src.dataset import DATA
from VizDoom.VizDoom_src.engine import describe_graphics
from VizDoom.VizDoom_src.environment import ENVIRONMENT, Config
from VizDoom.VizDoom_src.evaluate import COLOURS, COLUMNS, ERRORS, TARGET_RETURN, figures, has_free_colour
from VizDoom.VizDoom_src.pictures import returns_by_colour
from VizDoom.VizDoom_src.scenario import Graphics

Setting = Literal["fast", "published"]
STUDIES: dict[Setting, Study] = {
    "fast": Study.of(
        ENVIRONMENT,
        ("--config", "VizDoom/VizDoom_src/config_fast.yaml"),
        {label: ("--model_mode", label) for label in ("RATE", "LSTM", "MLP")},
    ),
    "published": Study.of(
        ENVIRONMENT,
        ("--config", "VizDoom/VizDoom_src/config.yaml"),
        {
            "RATE": tuple(
                "--model_mode RATE --nmt 5 --mem_len 300 --n_head_ca 2 --mrv_act relu --skip_dec_ffn".split()
            ),
            "DT": tuple("--model_mode DT --nmt 0 --mem_len 0 --n_head_ca 0 --mrv_act no_act".split()),
        },
        prefix="published",
        device="auto",
    ),
}
# Models whose memory is knocked out and exchanged.
CONTROLLED = ("RATE", "LSTM")
OF_DATA = "data"  # the entry with the mean return of the data
# Cherepanov et al. 2023 (arXiv 2306.09459), table 5, mean over 6 runs; and the score of RATE in a later comparison.
PUBLISHED = {
    "RATE": {"red": 38.2, "green": 44.7, "mean": 41.5},
    "DT": {"red": 7.2, "green": 42.3, "mean": 24.8},
    "DT, told the colour": {"red": 55.3, "green": 57.2, "mean": 56.5},
    "RATE, data of 150 steps, pillar for 90": {"mean": 59.2},
}


@dataclass(frozen=True)
class Options(PageOptions):
    """Which setting, which runs, and where they and the results go."""

    # fast: RATE, LSTM and MLP with config_fast.yaml, on a CPU; published: RATE and DT with config.yaml, on a GPU if
    # there is one
    setting: Setting = "fast"
    # Graphics, see train_vizdoom.py; none = the setting's. Other graphics get runs and pages of their own
    graphics: Graphics | None = None

    @property
    def page(self) -> str:
        """The name of the files of results."""
        name = "vizdoom" if self.setting == "fast" else f"vizdoom_{self.setting}"
        return name if self.graphics is None else f"{name}_{self.graphics}_graphics"

    @property
    def study(self) -> Study:
        """The runs."""
        study = STUDIES[self.setting]
        if self.graphics is None:
            return study
        flags = ("--graphics", self.graphics)
        prefix = f"{study.prefix}_{self.graphics}_graphics"
        return replace(study, settings=(*study.settings, *flags), prefix=prefix)


def settings_of(study: Study) -> Config:
    """The configuration that all models of a table share."""
    return ENVIRONMENT.read_config([str(ROOT / word) if word.endswith(".yaml") else word for word in study.settings])


def of_results(results: Sequence[Mapping[str, float]], target_return: float) -> dict[str, list[float]]:
    """The columns of runs' last evaluations, and their errors, as COLUMN_error."""
    names = COLUMNS | {f"{column}_error": name for column, name in ERRORS.items()}
    return {column: [result[f"{name}_{target_return:g}"] for result in results] for column, name in names.items()}


def of_figures(found: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The same columns of the `figures` of evaluations."""
    return {column: [one[column] for one in found] for column in (*COLUMNS, *(f"{error}_error" for error in ERRORS))}


def described(target_return: float, reset: bool) -> str:
    """A target return in words."""
    return f"{target_return:g} at every segment" if reset else f"{target_return:g}"


def controls(label: str) -> dict[str, dict[str, Any]]:
    """A control: its name, and the arguments for `played_otherwise`."""
    return {
        f"{label}, memory knocked out": {"transform": knock_out_memory},
        f"{label}, memories of twins exchanged": {"twins": True},
    }


def asked_otherwise(label: str, config: Config, data_return: float) -> dict[str, dict[str, Any]]:
    """A model with another target return: its name, and the arguments for `played_otherwise`.

    Runs with the published target return get the mean return of their data, reset at every segment; all others get the
    published one.
    """
    as_published = config.task.target_return == TARGET_RETURN and not config.task.reset_target
    asked = round(data_return, 1) if as_published else TARGET_RETURN
    called = f"{label}, asked for {described(asked, as_published)}"
    otherwise = {"target_return": asked, "options": {"reset_target": as_published}}
    return {called: otherwise, f"{called}, memory knocked out": otherwise | {"transform": knock_out_memory}}


def collect(
    directories: Mapping[str, Sequence[Path]], config: Config, data_return: float, device: str
) -> dict[str, dict[str, Any]]:
    """Returns and training costs of every seed by model, and the controls of `CONTROLLED`.

    RATE is also evaluated with another target return.
    """
    document: dict[str, dict[str, Any]] = {}
    for label, runs in directories.items():
        document[label] = of_results(final_results(runs), config.task.target_return) | training_of(runs)
        again = controls(label) if label in CONTROLLED else {}
        again |= asked_otherwise(label, config, data_return) if label == "RATE" else {}
        for name, options in again.items():
            if "twins" not in options or has_free_colour(config.data.scenario):
                document[name] = played_otherwise(runs, device, **options) | provenance(runs)
    return document


def played_otherwise(runs: Sequence[Path], device: str, **changes: Any) -> dict[str, list[float]]:
    """Replay the episodes of the evaluations of runs under a change; see `play_again`."""
    found = []
    for run in runs:
        evaluation, played = play_again(ENVIRONMENT, run, device=device, **changes)
        found.append(ENVIRONMENT.figures(None, played[None], evaluation))
    return of_figures(found)


def baseline_entries(config: Config) -> dict[str, dict[str, list[float]]]:
    """What players without a model do in the same episodes."""
    task = config.task
    played = play_baselines(task.eval_episodes, scenario=config.data.scenario, max_steps=task.episode_timeout)
    return {label: of_figures([figures(episodes)]) for label, episodes in played.items()}


def mean_return_of_data(paths: Sequence[Path]) -> float:
    """Mean return of the training episodes."""
    returns = []
    for path in paths:
        with DATA.open(path) as file:
            returns += file.returns_to_go()[file.starts].tolist()
    return sum(returns) / len(returns)


def mean_cell(entry: Mapping[str, Any], column: str) -> str:
    """Mean and standard error: over seeds; for a single seed, or a player without a model, over episodes."""
    values = entry.get(column)
    return seed_cell(entry, column, 0) if values and len(values) == 1 else cell(values, 1)


def seed_cell(entry: Mapping[str, Any], column: str, index: int) -> str:
    """One seed's value, with the standard error over episodes where there is one."""
    errors = entry.get(f"{column}_error")
    return f"{entry[column][index]:.1f}" + (f" ± {errors[index]:.1f}" if errors else "")


def returns_table(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns by player, as Markdown."""
    rows = [[label, *(mean_cell(entry, column) for column in COLUMNS)] for label, entry in document.items()]
    return table(["", *COLUMNS], rows)


def published_table() -> str:
    """The published figures, as Markdown."""
    rows = []
    for label, found in PUBLISHED.items():
        red, green = found.get("red"), found.get("green")
        entry = dict(found)
        if red is not None and green is not None:
            entry |= {"weaker": min(red, green), "difference": abs(red - green)}
        rows.append([label, *(f"{entry[column]:.1f}" if column in entry else "" for column in COLUMNS)])
    return table(["published", *COLUMNS], rows)


def seed_table(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Every seed, as Markdown."""
    rows = []
    for label, entry in document.items():
        for index, seed in enumerate(entry.get("seeds", ())):
            trained = (entry[name][index] if name in entry else "" for name in ("optimizer_steps", "train_seconds"))
            steps, seconds = trained
            returns = [seed_cell(entry, column, index) for column in COLUMNS]
            rows.append([label, seed, steps, f"{seconds:.0f}" if seconds else "", *returns])
    return table(["", "seed", "optimizer steps", "training, s", *COLUMNS], rows)


def write(document: dict[str, dict[str, Any]], config: Config, options: Options) -> None:
    """The JSON file, the picture and the generated part of the page."""
    task, scenario, data_return = config.task, config.data.scenario, document[OF_DATA]["mean"][0]
    players = {label: entry for label, entry in document.items() if label != OF_DATA}
    bars = {label: {colour: _bar(entry, colour) for colour in COLOURS} for label, entry in players.items()}
    returns_by_colour(bars, options.results_dir / f"{options.page}.png")
    text = (
        f"Return in {task.eval_episodes} episodes a seed, half of them red, of at most {task.episode_timeout} steps, "
        f"asked for {described(task.target_return, task.reset_target)}, measured {origin(players)}. ± denotes the "
        "standard error over seeds, and over episodes for a single seed and for players without a model. *Weaker* is "
        f"the smaller of a seed's two means by colour. Variant `{scenario.variant}` ({describe_graphics(scenario)}); "
        f"episodes in the data have {config.data.steps} steps and a mean return of {data_return:.2f}.\n\n"
        f"{returns_table(players)}\n\n{training_table(players)}\n\n"
        f"Every seed, with standard errors over its episodes:\n\n{seed_table(players)}\n\n"
        "For context, published results with the original graphics, 5000 episodes of another policy and a cap of 2100 "
        f"steps:\n\n{published_table()}\n\nCommands:\n\n{commands(options.study, players)}\n"
    )
    write_results(options.page, "ViZDoom-Two-Colors", document, text, options)


def commands(study: Study, document: Mapping[str, Mapping[str, Any]]) -> str:
    """The commands of the models on the page, each with its seeds."""
    return "\n".join(study.commands(document[label]["seeds"], [label]) for label in study.models if label in document)


def _bar(entry: Mapping[str, Any], colour: str) -> tuple[float, float]:
    """Mean and standard error, as in `mean_cell`."""
    values = entry[colour]
    return mean_and_error(values) if len(values) > 1 else (values[0], entry[f"{colour}_error"][0])


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, collect everything, write the results."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog="reproduce.py", description="Make results/vizdoom*")
        study = options.study
        config, device = settings_of(study), options.device or study.device
        kept = kept_entries(options.page, study, options, same_seeds=False)
        data_return = mean_return_of_data(ENVIRONMENT.files(config))  # before several processes try to
        document = collect(study.run_all(options, options.models), config, data_return, device)
        if not kept.keys() >= PLAYERS.keys():
            document |= baseline_entries(config)
        document[OF_DATA] = {"mean": [data_return]}
        document = merged(kept, document, by_model(study, {**kept, **document}))
        write(document, config, options)
        print(returns_table({label: document[label] for label in document if label != OF_DATA}))


if __name__ == "__main__":
    main()
