"""Make results/memory_maze.*: memories intact and knocked out, no memory, and players without a model.

    python3 MemoryMaze/MemoryMaze_src/reproduce.py --seeds 1 2
    python3 MemoryMaze/MemoryMaze_src/reproduce.py --seeds 1 2 --models LSTM MLP

Finished runs are kept and interrupted ones continued, so the command can be repeated at any time. Evaluations that
exist are read from the runs' eval/. With `--models` the page keeps the entries of the other models, with the commit and
day of their measurement.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from MemoryMaze.MemoryMaze_src.dataset import DATA
from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT
from MemoryMaze.MemoryMaze_src.evaluate import PLAYERS, player_returns
from RATE_model.acting.controls import knock_out_memory, knock_out_part
from RATE_model.acting.rollout import format_mean_and_error, mean_and_error
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.cli.reproduce import (
    ROOT,
    PageOptions,
    Study,
    by_model,
    final_results,
    kept_entries,
    merged,
    origin,
    play_again,
    provenance,
    seed_table,
    table,
    training_of,
    training_table,
    write_results,
)
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryTransform
from RATE_model.plots import plot_bars
from RATE_model.system.atomic import atomic_write_text

FAST = "MemoryMaze/MemoryMaze_src/config_fast.yaml"
STUDY = Study.of(
    ENVIRONMENT,
    ("--config", FAST, "--online_inference", "false", "--last_inference", "false"),
    {label: ("--model_mode", label) for label in ("RATE", "LSTM", "MLP")},
)
SCRIPT = "MemoryMaze/MemoryMaze_src/reproduce.py"
PAGE = "memory_maze"  # the name of the files of results


@dataclass(frozen=True)
class Control:
    """A further evaluation of a model's runs."""

    model: str
    what: str
    file: str  # in eval/, without what says how it was played
    transform: MemoryTransform | None
    greedy: bool = True

    @property
    def label(self) -> str:
        """Its name on the page."""
        return f"{self.model}, {self.what}"


KNOCKED_OUT = "memory knocked out"
CONTROLS = (
    Control("RATE", KNOCKED_OUT, "knocked_out", knock_out_memory),
    Control("RATE", "memory tokens knocked out", "tokens_knocked_out", knock_out_part("tokens")),
    Control("RATE", "cache knocked out", "cache_knocked_out", knock_out_part("cache")),
    Control("RATE", "actions drawn", "intact", None, greedy=False),
    Control("LSTM", KNOCKED_OUT, "knocked_out", knock_out_memory),
)
# Mean and standard error of the control that results/memory_maze.md describes, with its commands. This script does not
# train it.
WITHOUT_MEMORY = {"trained without memory": (8.1, 1.0)}
# Published figures (arXiv 2306.09459 and its code; human: arXiv 2210.13383), on data other than ours.
PUBLISHED = {
    "RATE": "7.64",
    "DT": "6.83",
    "BC-LSTM": "4.75 (8.8 in the authors' notebooks)",
    "random": "0.0",
    "human": "26.4",
}


@dataclass(frozen=True)
class Options(PageOptions):
    """Which runs, how they are played, and where they and the results go."""

    # Seeds of every model; consecutive
    seeds: tuple[int, ...] = (1,)
    # Mazes that every run plays, with seeds spread over 0 to 99
    episodes: int = 10

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        ENVIRONMENT.check_episodes(episodes=self.episodes)


def setting() -> Any:
    """The flags that all runs share."""
    return ENVIRONMENT.read_config(["--config", str(ROOT / FAST)])


def returns_of(run: Path, name: str, transform: MemoryTransform | None, greedy: bool, episodes: int) -> np.ndarray:
    """Returns (E,) of a run's model in the evaluation's mazes; played once, then read from its eval/."""
    kept = run / "eval" / f"{name}_{'argmax' if greedy else 'drawn'}_{episodes}_episodes.json"

    def made_now() -> list[float]:
        options = {"use_argmax": greedy}
        _, played = play_again(ENVIRONMENT, run, transform=transform, episodes=episodes, options=options)
        return played[None].returns.tolist()

    return np.array(_kept(kept, made_now))


def _kept(path: Path, make: Callable[[], list[float]]) -> list[float]:
    """The content of a file, made and written first if missing."""
    if not path.exists():
        atomic_write_text(path, json.dumps(make()) + "\n")
    return json.loads(path.read_text())


def collect(directories: Mapping[str, Sequence[Path]], episodes: int) -> dict[str, dict]:
    """By model and control: the returns of every seed's episodes and, for models, the cost of training."""
    document: dict[str, dict] = {}
    for label, runs in directories.items():
        results = final_results(runs)
        document[label] = {
            "returns": [returns_of(run, "intact", None, True, episodes).tolist() for run in runs],
            **{key: [result[key] for result in results] for key in ("validation_loss", "validation_accuracy")},
            **training_of(runs),
        }
        for control in (control for control in CONTROLS if control.model == label):
            returns = [returns_of(run, control.file, control.transform, control.greedy, episodes) for run in runs]
            document[control.label] = {"returns": [found.tolist() for found in returns], **provenance(runs)}
    return document


def kept_of_page(options: Options) -> dict[str, Any]:
    """The entries that the page keeps (see `kept_entries`). Raises UserError if they were played in other mazes."""
    kept = kept_entries(PAGE, STUDY, options)
    for label, entry in kept.items():
        if (count := len(entry["returns"][0])) != options.episodes:
            raise UserError(
                f"--episodes {options.episodes}: the page has {count} of {label}; give as many, or measure all models "
                "(without --models)"
            )
    return kept


def returns_table(document: dict[str, dict]) -> str:
    """Mean and standard error over all episodes, smallest and largest return, as Markdown."""
    rows = []
    for label, entry in document.items():
        values = np.concatenate(entry["returns"])
        spread = f"{values.min():g} to {values.max():g}"
        rows.append(
            [label, format_mean_and_error(*mean_and_error(values)), spread, len(values), PUBLISHED.get(label, "")]
        )
    rows += [[label, "", "", "", value] for label, value in PUBLISHED.items() if label not in document]
    return table(["", "balls found", "range", "episodes", "published"], rows)


def runs_table(document: dict[str, dict], seeds: Sequence[int]) -> str:
    """Every run, as Markdown."""
    models = {label: {"label": label, **document[label]} for label in STUDY.models if label in document}

    def found(label: str, index: int) -> str:
        return f"{np.mean(document[label]['returns'][index]):.2f}" if label in document else ""

    columns: dict[str, Callable[[dict[str, Any], int], str]] = {
        "validation loss": lambda entry, index: f"{entry['validation_loss'][index]:.3f}",
        "accuracy": lambda entry, index: f"{entry['validation_accuracy'][index]:.3f}",
        "balls found": lambda entry, index: found(entry["label"], index),
        KNOCKED_OUT: lambda entry, index: found(f"{entry['label']}, {KNOCKED_OUT}", index),
    }
    return seed_table(models, seeds, columns)


def differences(document: dict[str, dict]) -> str:
    """The value of a memory and of its parts, as Markdown: mean differences over pairs of episodes in the same maze."""
    pairs = [(control.model, control.label) for control in CONTROLS if control.transform is not None]
    pairs += [("RATE", label) for label in STUDY.models if label != "RATE"]
    rows = []
    for one, other in pairs:
        if one in document and other in document:
            more = np.subtract(*(np.concatenate(document[label]["returns"]) for label in (one, other)))
            rows.append([one, other, format_mean_and_error(*mean_and_error(more))])
    return table(["finds more", "than", "balls, in the same mazes"], rows)


def write(document: dict[str, dict], data: Sequence[Path], options: Options) -> None:
    """results/memory_maze.json, .png and the generated part of .md."""
    returns = {label: np.concatenate(entry["returns"]) for label, entry in document.items()}
    returns = {"RATE": returns.pop("RATE"), **WITHOUT_MEMORY, **returns} if "RATE" in returns else returns
    title = f"Memory Maze 9x9, {options.episodes} mazes, 1000 steps"
    bars = {
        player: {"return": values if isinstance(values, tuple) else mean_and_error(values)}
        for player, values in returns.items()
    }
    plot_bars(bars, options.results_dir / f"{PAGE}.png", ylabel="balls found", title=title)
    numbers = " ".join(map(str, options.seeds))
    seeds = f"seed{'s' * (len(options.seeds) > 1)} {numbers.replace(' ', ', ')}"
    asked = setting().task.target_return
    held = "; ".join(DATA.describe(path).partition(": ")[2] for path in data)
    text = (
        f"Balls found in 1000 steps, mean and standard error over the episodes of {seeds} in {options.episodes} "
        f"mazes that are not in the data, measured {origin(document)}. Target return {asked:g}; the most probable "
        f"actions are taken unless noted. "
        f"Data: {held}.\n\n{returns_table(document)}\n\n"
        f"{differences(document)}\n\n{training_table(document)}\n\nEvery run:\n\n"
        f"{runs_table(document, options.seeds)}\n\n"
        f"Commands for the page, and for training alone:\n\n"
        f"    python3 {SCRIPT} --seeds {numbers} --episodes {options.episodes}\n{STUDY.commands(options.seeds)}\n"
    )
    write_results(PAGE, "Memory Maze", document, text, options)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, play, write the results."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog="reproduce.py", description="Make results/memory_maze.*")
        kept = kept_of_page(options)
        # Before several processes try to.
        data = ENVIRONMENT.files(setting())
        document = collect(STUDY.run_all(options, options.models), options.episodes)
        for player in PLAYERS:
            if player not in kept:
                document[player] = {"returns": [player_returns(player, episodes=options.episodes).tolist()]}
        document = merged(kept, document, by_model(STUDY, {**kept, **document}))
        write(document, data, options)
        print(returns_table(document))


if __name__ == "__main__":
    main()
