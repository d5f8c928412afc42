"""Make results/vizdoom.*: RATE under one setting, every seed, beside players without a model.

    python3 VizDoom/VizDoom_src/reproduce.py --seeds 1

Runs that are finished are kept, interrupted ones are continued, so the command can be given again at any time.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: make the repository importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from RATE_model.actor import exchange_twins, knock_out_memory
from RATE_model.checkpoints import resolve_checkpoint
from RATE_model.evaluation import mean_and_error
from RATE_model.fit import load_model
from RATE_model.options import exit_on_user_error, parse_options
from RATE_model.reproduce import ROOT, Study, StudyOptions, cell, commits, final_results, made, table, write_results
from VizDoom.VizDoom_src.baselines import play_baselines
from VizDoom.VizDoom_src.dataset import ensure_dataset, open_dataset
from VizDoom.VizDoom_src.evaluate import COLOURS, has_free_colour, metrics, play
from VizDoom.VizDoom_src.pictures import returns_by_colour
from VizDoom.VizDoom_src.train_vizdoom import Config, check, read_config

FAST = "VizDoom/VizDoom_src/config_fast.yaml"
STUDY = Study(
    script="VizDoom/VizDoom_src/train_vizdoom.py",
    settings=("--config", FAST),
    models={
        "RATE": ("--model_mode", "RATE"),
    },
    read_config=read_config,
    check=check,
)
# What the data can promise, asked for anew at every segment. Chosen among 4.4, 6 and 8 for a model of an earlier
# setting, on 60 episodes of other seeds.
WITHIN_DATA = {"target_return": 4.4, "renew_target": True}
# Further evaluations of the first model's runs: label -> what differs for `play`.
FURTHER: dict[str, dict[str, Any]] = {
    "RATE, asked for 4.4 at every segment": WITHIN_DATA,
    "the same, memory knocked out": WITHIN_DATA | {"transform_memory": knock_out_memory},
    "the same, memories of twins exchanged": WITHIN_DATA | {"transform_memory": exchange_twins(), "twins": True},
}
# What `metrics` calls a column of the tables.
COLUMNS = {
    "red": "ReturnsMean_red",
    "green": "ReturnsMean_green",
    "mean": "ReturnsMean",
    "weaker": "ReturnsMin",
    "difference": "ReturnsDifference",
}
# Cherepanov et al. 2023 (arXiv 2306.09459), table 5, mean over 6 runs; and what a later comparison found for RATE.
PUBLISHED = {
    "RATE": {"red": 38.2, "green": 44.7, "mean": 41.5},
    "DT": {"red": 7.2, "green": 42.3, "mean": 24.8},
    "DT, told the colour": {"red": 55.3, "green": 57.2, "mean": 56.5},
    "RATE, data of 150 steps, pillar for 90": {"mean": 59.2},
}


def of_results(results: Sequence[Mapping[str, float]], target_return: float) -> dict[str, list[float]]:
    """The columns of evaluations, each under the names of `metrics`."""
    return {column: [result[f"{name}_{target_return:g}"] for result in results] for column, name in COLUMNS.items()}


def collect(directories: Mapping[str, Sequence[Path]], config: Config) -> dict[str, dict[str, Any]]:
    """Per model the returns of every seed, and seconds and steps of training; the first model's with other memories."""
    document: dict[str, dict[str, Any]] = {}
    for label, runs in directories.items():
        results = final_results(runs)
        document[label] = of_results(results, config.task.desired_return) | {
            "train_seconds": [result["train_seconds"] for result in results],
            "optimizer_steps": [result["optimizer_steps"] for result in results],
            "commit": commits(runs),
        }
        if label == "RATE":
            for name, options in FURTHER.items():
                if "twins" not in options or has_free_colour(config.data.scenario):
                    document[name] = play_again(runs, config, options)
    return document


def play_again(runs: Sequence[Path], config: Config, options: Mapping[str, Any]) -> dict[str, list[float]]:
    """What the runs do in the episodes of their evaluation when these options of `play` differ."""
    task, results = config.task, []
    usual = {
        "episodes": task.eval_episodes,
        "target_return": task.desired_return,
        "greedy": task.use_argmax,
        "scenario": config.data.scenario,
        "max_steps": task.episode_timeout,
        "precision": config.train.precision,
    }
    for run in runs:
        played = play(load_model(resolve_checkpoint(run)), **usual | options)
        results.append(metrics(played, target_return=task.desired_return))
    return of_results(results, task.desired_return)


def baseline_entries(config: Config) -> dict[str, dict[str, list[float]]]:
    """What players without a model do in the same episodes."""
    task = config.task
    played = play_baselines(task.eval_episodes, scenario=config.data.scenario, max_steps=task.episode_timeout)
    return {
        label: of_results([metrics(episodes, target_return=task.desired_return)], task.desired_return)
        for label, episodes in played.items()
    }


def mean_return_of_data(paths: Sequence[Path]) -> float:
    """Mean return of the episodes that are trained on."""
    returns = []
    for path in paths:
        with open_dataset(path) as file:
            returns += file.returns_to_go()[file.starts].tolist()
    return sum(returns) / len(returns)


def returns_table(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns by player, mean and standard error over seeds, as Markdown."""
    rows = [[label, *(cell(entry.get(column), 1) for column in COLUMNS)] for label, entry in document.items()]
    return table(["", *COLUMNS], rows)


def published_table() -> str:
    """The published figures, as Markdown."""
    rows = []
    for label, found in PUBLISHED.items():
        red, green = found.get("red"), found.get("green")
        entry = dict(found) if red is None else {**found, "weaker": min(red, green), "difference": abs(red - green)}
        rows.append([label, *(f"{entry[column]:.1f}" if column in entry else "" for column in COLUMNS)])
    return table(["published", *COLUMNS], rows)


def seed_table(document: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Every seed, as Markdown."""
    rows = []
    for label, entry in document.items():
        for index, seed in enumerate(seeds if len(entry["mean"]) == len(seeds) else ()):
            trained = (entry[name][index] if name in entry else "" for name in ("optimizer_steps", "train_seconds"))
            steps, seconds = trained
            returns = [f"{entry[column][index]:.1f}" for column in COLUMNS]
            rows.append([label, seed, steps, f"{seconds:.0f}" if seconds else "", *returns])
    return table(["", "seed", "optimizer steps", "training, s", *COLUMNS], rows)


def write(
    document: dict[str, dict[str, Any]],
    baselines: dict[str, dict[str, Any]],
    data_return: float,
    config: Config,
    options: StudyOptions,
) -> None:
    """results/vizdoom.json, .png and the generated part of .md."""
    task, everything = config.task, document | baselines
    bars = {label: {colour: _bar(entry[colour]) for colour in COLOURS} for label, entry in everything.items()}
    returns_by_colour(bars, options.results_dir / "vizdoom.png")
    seeds = ", ".join(map(str, options.seeds))
    text = (
        f"Return, mean and standard error over seeds {seeds}, {task.eval_episodes} episodes a seed, half of them red, "
        f"of at most {task.episode_timeout} steps, asked for {task.desired_return:g}, made {made(document)}. *Weaker* "
        f"is the smaller of a seed's means of both colours. It is the variant `{config.data.scenario.variant}`; the "
        f"episodes of its data have {config.data.steps} steps and a mean return of {data_return:.2f}.\n\n"
        f"{returns_table(everything)}\n\nEvery seed:\n\n{seed_table(document, options.seeds)}\n\n"
        "For context, what was published for the original graphics, 5000 episodes of another policy, and a cap of 2100 "
        "steps:\n\n"
        f"{published_table()}\n\nCommands:\n\n{STUDY.commands(options.seeds)}\n"
    )
    document = everything | {"data": {"mean": [data_return]}}
    write_results("vizdoom", "ViZDoom-Two-Colors", document, text, options)


def _bar(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; players that are played once have no error."""
    return mean_and_error(values) if len(values) > 1 else (values[0], 0.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, collect everything, write the results."""
    with exit_on_user_error():
        options = parse_options(StudyOptions, argv=argv, prog="reproduce.py", description="Make results/vizdoom.*")
        config = read_config(["--config", str(ROOT / FAST)])
        data = ensure_dataset(config.data)  # before several processes want to
        document = collect(STUDY.run_all(options), config)
        write(document, baseline_entries(config), mean_return_of_data(data), config, options)
        print(returns_table(document))


if __name__ == "__main__":
    main()
