"""Make results/memory_maze.*: memories intact and knocked out, no memory, and players without a model.

    python3 MemoryMaze/MemoryMaze_src/reproduce.py --seeds 1 2 3
    python3 MemoryMaze/MemoryMaze_src/reproduce.py --seeds 3 --models LSTM MLP
    python3 MemoryMaze/MemoryMaze_src/reproduce.py --setting more_data --seeds 1 2 3 --episodes 20

The last has three times the data and more than twice the training, and writes results/memory_maze_more_data.*.
Finished runs are kept and interrupted ones continued, so the command can be repeated at any time; it plays the
evaluations again. With `--models` the figures of these models and seeds are added to the page, which keeps all others.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
from numpy.typing import NDArray

from MemoryMaze.MemoryMaze_src.dataset import DATA
from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT
from MemoryMaze.MemoryMaze_src.evaluate import PLAYERS, player_returns
from RATE_model.acting.controls import knock_out_memory, knock_out_part
from RATE_model.acting.rollout import format_mean_and_error
from RATE_model.errors import UserError
from RATE_model.pages.controls_page import ControlsPage, Document, Entry
from RATE_model.pages.run_results import final_results, play_again
from RATE_model.pages.study import PageOptions, Study, consecutive, of_modes
from RATE_model.pages.tables import origin, seed_table, table
from RATE_model.plots import plot_bars
from RATE_model.protocol.statistics import crossed_error

Setting = Literal["fast", "more_data"]
FAST = "MemoryMaze/MemoryMaze_src/config_fast.yaml"
# Windows from random places in the episodes, as many steps per batch as RATE has.
WINDOWS = "--bptt_segments -1 --epoch_batches 60"
# The same precision on every processor.
SETTINGS = ("--config", FAST, *"--precision 32 --online_inference false --last_inference false".split())
# RATE's layers and segments, with nothing to pass on.
WITHOUT_MEMORY = f"--nmt 0 --n_head_ca 0 --mem_len 0 --segments 1 --batch_size 160 {WINDOWS}"
STUDIES: dict[Setting, Study] = {
    "fast": Study.of(
        ENVIRONMENT,
        SETTINGS,
        of_modes(
            {
                "RATE": "",
                "RATE, without memory": WITHOUT_MEMORY,
                "LSTM": "",
                "MLP": "",
                # It slides over 20 steps, as far as RATE's cache reaches back.
                "DT": f"--segments 2 --batch_size 80 {WINDOWS} --slide 5",
            }
        ),
    ),
    "more_data": Study.of(
        ENVIRONMENT,
        (*SETTINGS, "--episodes", "600"),
        of_modes({"RATE": "--epochs 20", "RATE, without memory": f"{WITHOUT_MEMORY} --epochs 57"}),
        prefix="more_data",
    ),
}
SCRIPT = "MemoryMaze/MemoryMaze_src/reproduce.py"


KNOCKED_OUT = "memory knocked out"
# Arguments of `play_again`.
CONTROLS: dict[str, dict[str, Any]] = {
    f"RATE, {KNOCKED_OUT}": {"transform": knock_out_memory},
    "RATE, memory tokens knocked out": {"transform": knock_out_part("tokens")},
    "RATE, cache knocked out": {"transform": knock_out_part("cache")},
    "RATE, actions drawn": {"options": {"use_argmax": False}},
    f"LSTM, {KNOCKED_OUT}": {"transform": knock_out_memory},
}
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

    # fast: config_fast.yaml; more_data: the same with 600 episodes instead of 200, and 3400 optimizer steps instead of
    # 1500
    setting: Setting = "fast"
    # Seeds of every model; consecutive
    seeds: tuple[int, ...] = (1, 2, 3)
    # Mazes that every run plays, with seeds spread over 0 to 99
    episodes: int = 10

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        ENVIRONMENT.check_episodes(episodes=self.episodes)


class Page(ControlsPage):
    """What is measured and shown."""

    environment = ENVIRONMENT
    options_type = Options
    figures = ("returns",)
    of_model = ("validation_loss", "validation_accuracy")
    played_otherwise = CONTROLS

    @property
    def name(self) -> str:
        """Named by setting."""
        return "memory_maze" if self.options.setting == "fast" else f"memory_maze_{self.options.setting}"

    @property
    def study(self) -> Study:
        """The setting's runs."""
        return STUDIES[self.options.setting]

    def kept(self) -> dict[str, Any]:
        """The entries that are kept. Raises UserError if they were played in other mazes."""
        kept = super().kept()
        for label, entry in kept.items():
            counts = {len(returns) if isinstance(returns, list) else 0 for returns in entry["returns"]}
            if counts != {self.options.episodes}:
                raise UserError(
                    f"--episodes {self.options.episodes}: the page has {' and '.join(map(str, sorted(counts)))} of "
                    f"{label}; give as many, or measure all models (without --models)"
                )
        return kept

    def of_runs(self, runs: Sequence[Path]) -> Entry:
        """Returns of every seed's episodes, and how well it predicts actions."""
        results = final_results(runs)
        predicted = {key: [result[key] for result in results] for key in ("validation_loss", "validation_accuracy")}
        return self.of_control(runs) | predicted

    def of_control(self, runs: Sequence[Path], **changes: Any) -> Entry:
        """Returns of every seed's episodes, by default with the most probable actions."""
        how = {
            "device": self.options.device or self.study.device,
            "episodes": self.options.episodes,
            "options": {"use_argmax": True},
        } | changes
        played = [play_again(ENVIRONMENT, run, **how) for run in runs]
        return {"returns": [episodes[None].returns.tolist() for _, episodes in played]}

    def others(self, kept: Mapping[str, Any]) -> Document:
        """Players without a model."""
        return {
            player: {"returns": [player_returns(player, episodes=self.options.episodes).tolist()]}
            for player in PLAYERS
            if player not in kept
        }

    def table(self, document: Document) -> str:
        """Mean and standard error, smallest and largest return."""
        rows = []
        for label, entry in document.items():
            values = np.array(entry["returns"])
            spread = f"{values.min():g} to {values.max():g}"
            rows.append(
                [label, format_mean_and_error(*of_mazes(values)), spread, values.size, PUBLISHED.get(label, "")]
            )
        rows += [[label, "", "", "", value] for label, value in PUBLISHED.items() if label not in document]
        return table(["", "balls found", "range", "episodes", "published"], rows)

    def draw(self, document: Document, path: Path) -> None:
        """Balls found by every player."""
        bars = {label: of_mazes(np.array(entry["returns"])) for label, entry in document.items()}
        title = f"Memory Maze 9x9, {self.options.episodes} mazes, 1000 steps"
        plot_bars({label: {"return": bar} for label, bar in bars.items()}, path, ylabel="balls found", title=title)

    def paragraphs(self, document: Document) -> list[str]:
        """All tables."""
        trained = {label: document[label]["seeds"] for label in self.study.models if label in document}
        episodes = self.options.episodes
        setting = "" if self.options.setting == "fast" else f" --setting {self.options.setting}"
        held = "; ".join(DATA.describe(path).partition(": ")[2] for path in self.data)
        return [
            f"Balls found in 1000 steps, mean and standard error over seeds and mazes: {episodes} mazes that are not "
            f"in the data, the same for all seeds, measured {origin(document)}. Target return "
            f"{self.config.task.target_return:g}; the most probable actions are taken unless noted. Data: {held}.",
            self.table(document),
            self.differences(document),
            self.costs(document),
            "Every run:",
            self.runs_table(document),
            "Commands for the page, and for training alone:",
            "\n".join(
                [
                    f"    python3 {SCRIPT}{setting} --seeds {' '.join(map(str, some))} --episodes {episodes}"
                    + ("" if labels == list(trained) else f" --models {shlex.join(labels)}")
                    for some, labels in by_seeds(trained).items()
                ]
                + [self.study.commands(seeds, [label]) for label, seeds in trained.items()]
            ),
        ]

    def runs_table(self, document: Document) -> str:
        """Every run, as Markdown."""
        models = {label: {"label": label, **document[label]} for label in self.study.models if label in document}

        def found(label: str, seed: int) -> str:
            returns = of_seeds(document[label]).get(seed) if label in document else None
            return "" if returns is None else f"{np.mean(returns):.2f}"

        columns: dict[str, Callable[[dict[str, Any], int], str]] = {
            "validation loss": lambda entry, index: f"{entry['validation_loss'][index]:.3f}",
            "accuracy": lambda entry, index: f"{entry['validation_accuracy'][index]:.3f}",
            "balls found": lambda entry, index: found(entry["label"], entry["seeds"][index]),
            KNOCKED_OUT: lambda entry, index: found(f"{entry['label']}, {KNOCKED_OUT}", entry["seeds"][index]),
        }
        return seed_table(models, None, columns)

    def differences(self, document: Document) -> str:
        """The value of a memory and of its parts, as Markdown: mean differences over pairs of episodes in a maze."""
        pairs = [(label.partition(", ")[0], label) for label, changes in CONTROLS.items() if "transform" in changes]
        pairs += [("RATE", label) for label in self.study.models if label != "RATE"]
        more = {
            (one, other): paired(document[one], document[other])
            for one, other in pairs
            if {one, other} <= set(document)
        }
        rows = [
            [*pair, format_mean_and_error(*of_mazes(values)), values.size]
            for pair, values in more.items()
            if values.size
        ]
        return table(["finds more", "than", "balls, in the same mazes", "episodes"], rows)


def of_mazes(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard error over seeds and mazes, from a value for each, (S, E)."""
    return float(values.mean()), crossed_error(values)


def paired(one: Entry, other: Entry) -> NDArray[np.float64]:
    """How many more balls one player finds than another in each maze, with the seeds that both have, (S, E)."""
    first, second = of_seeds(one), of_seeds(other)
    return np.array([np.subtract(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())])


def of_seeds(entry: Entry) -> dict[int, Sequence[float]]:
    """The returns of an entry's episodes by seed."""
    return dict(zip(entry["seeds"], entry["returns"], strict=True))


def by_seeds(trained: Mapping[str, Sequence[int]]) -> dict[tuple[int, ...], list[str]]:
    """The models of every range of consecutive seeds, from the seeds of every model."""
    found: dict[tuple[int, ...], list[str]] = {}
    for label, seeds in trained.items():
        for some in consecutive(seeds):
            found.setdefault(tuple(some), []).append(label)
    return found


main = Page.main

if __name__ == "__main__":
    main()
