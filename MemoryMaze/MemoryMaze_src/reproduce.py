"""Make results/memory_maze.*: RATE with its memory, without it and without either part of it, and other players.

    python3 MemoryMaze/MemoryMaze_src/reproduce.py --seeds 1 2

Runs that are finished are kept, interrupted ones are continued, so the command can be given again at any time; what was
played already is read from the runs' eval/.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

import numpy as np

from MemoryMaze.MemoryMaze_src.dataset import describe, ensure_dataset
from MemoryMaze.MemoryMaze_src.evaluate import PLAYERS, check_episodes, play, player_returns
from MemoryMaze.MemoryMaze_src.pictures import returns_picture
from MemoryMaze.MemoryMaze_src.train_mem_maze import check, read_config
from RATE_model.acting.controls import knock_out_memory, knock_out_part
from RATE_model.acting.rollout import mean_and_error, with_error
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.cli.reproduce import ROOT, Study, StudyOptions, commits, final_results, made, table, write_results
from RATE_model.loading import load_model
from RATE_model.memories.contract import MemoryTransform
from RATE_model.system.atomic import atomic_write_text
from RATE_model.training.checkpoints import resolve_checkpoint

FAST = "MemoryMaze/MemoryMaze_src/config_fast.yaml"
STUDY = Study(
    script="MemoryMaze/MemoryMaze_src/train_mem_maze.py",
    settings=("--config", FAST, "--online_inference", "false", "--last_inference", "false"),
    models={
        "RATE": ("--model_mode", "RATE"),
    },
    read_config=read_config,
    check=check,
)
SCRIPT = "MemoryMaze/MemoryMaze_src/reproduce.py"
FORGETFUL = "RATE, memory knocked out"
# What else RATE's runs do: label, name of the file, what is done to memory, whether the most probable action is taken.
CONTROLS: tuple[tuple[str, str, MemoryTransform | None, bool], ...] = (
    (FORGETFUL, "knocked_out", knock_out_memory, True),
    ("RATE, memory tokens knocked out", "tokens_knocked_out", knock_out_part("tokens"), True),
    ("RATE, cache knocked out", "cache_knocked_out", knock_out_part("cache"), True),
    ("RATE, actions drawn", "intact", None, False),
)
# Mean and standard error of the control that results/memory_maze.md describes and gives the commands of: this script
# does not train it.
WITHOUT_MEMORY = {"trained without memory": (8.1, 1.0)}
# Published figures (arXiv 2306.09459 and its code; arXiv 2210.13383 for the human), of other data than ours.
PUBLISHED = {
    "RATE": "7.64",
    "DT": "6.83",
    "BC-LSTM": "4.75 (8.8 in the authors' notebooks)",
    "random": "0.0",
    "human": "26.4",
}


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which runs, how they are played, and where they and the results go."""

    # Seeds of every model; consecutive
    seeds: tuple[int, ...] = (1,)
    # Mazes that every run is played in: of seeds spread over 0 to 99
    episodes: int = 10

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        check_episodes(episodes=self.episodes)


def returns_of(run: Path, name: str, transform: MemoryTransform | None, greedy: bool, episodes: int) -> np.ndarray:
    """Returns (E,) of a run's model in the evaluation's mazes; played once, then read from its eval/."""
    kept = run / "eval" / f"{name}_{'argmax' if greedy else 'drawn'}_{episodes}_episodes.json"

    def made_now() -> list[float]:
        config = read_config(["--config", str(run / "config.yaml")])
        model = load_model(resolve_checkpoint(run))
        played = play(
            model,
            size=config.data.size,
            episodes=episodes,
            steps=config.task.episode_timeout,
            target_return=config.task.target_return,
            rtg_floor=config.task.rtg_floor,
            greedy=greedy,
            precision=config.train.precision,
            transform_memory=transform,
        )
        return played.returns.tolist()

    return np.array(_kept(kept, made_now))


def _kept(path: Path, make: Callable[[], list[float]]) -> list[float]:
    """What a file holds, or what is made and written to it now."""
    if not path.exists():
        atomic_write_text(path, json.dumps(make()) + "\n")
    return json.loads(path.read_text())


def collect(directories: dict[str, list[Path]], options: Options) -> dict[str, dict]:
    """By who plays: the returns of every seed's episodes and, of models, what their training took."""
    document: dict[str, dict] = {}
    for label, runs in directories.items():
        results = final_results(runs)
        document[label] = {
            "returns": [returns_of(run, "intact", None, True, options.episodes).tolist() for run in runs],
            **{key: [result[key] for result in results] for key in ("train_seconds", "optimizer_steps")},
            **{key: [result[key] for result in results] for key in ("validation_loss", "validation_accuracy")},
            "commit": commits(runs),
        }
    runs = directories["RATE"]
    for label, name, transform, greedy in CONTROLS:
        returns = [returns_of(run, name, transform, greedy, options.episodes).tolist() for run in runs]
        document[label] = {"returns": returns}
    for player in PLAYERS:
        document[player] = {"returns": [player_returns(player, episodes=options.episodes).tolist()]}
    return document


def returns_table(document: dict[str, dict]) -> str:
    """Mean and standard error over all episodes, smallest and largest return, as Markdown."""
    rows = []
    for label, entry in document.items():
        values = np.concatenate(entry["returns"])
        spread = f"{values.min():g} to {values.max():g}"
        rows.append([label, with_error(*mean_and_error(values)), spread, len(values), PUBLISHED.get(label, "")])
    rows += [[label, "", "", "", value] for label, value in PUBLISHED.items() if label not in document]
    return table(["", "balls found", "range", "episodes", "published"], rows)


def seed_table(document: dict[str, dict], seeds: Sequence[int]) -> str:
    """Every run, as Markdown."""
    rows, entry = [], document["RATE"]
    for index, seed in enumerate(seeds):
        found, forgotten = (np.mean(document[label]["returns"][index]) for label in ("RATE", FORGETFUL))
        rows.append(
            [
                *(seed, entry["optimizer_steps"][index], f"{entry['train_seconds'][index]:.0f}"),
                *(f"{entry['validation_loss'][index]:.3f}", f"{entry['validation_accuracy'][index]:.3f}"),
                *(f"{found:.2f}", f"{forgotten:.2f}"),
            ]
        )
    header = ["seed", "optimizer steps", "training, s", "validation loss", "accuracy"]
    return table([*header, "balls found", "memory knocked out"], rows)


def differences(document: dict[str, dict]) -> str:
    """What memory and its parts are worth, as Markdown: means over pairs of episodes in one maze, standard errors."""
    intact, rows = np.concatenate(document["RATE"]["returns"]), []
    for label, _, transform, _ in CONTROLS:
        if transform is not None:
            rows.append([label, with_error(*mean_and_error(intact - np.concatenate(document[label]["returns"])))])
    return table(["RATE finds more than", "balls, in the same mazes"], rows)


def write(document: dict[str, dict], data: Sequence[Path], options: Options) -> None:
    """results/memory_maze.json, .png and the generated part of .md."""
    returns = {"RATE": np.concatenate(document["RATE"]["returns"]), **WITHOUT_MEMORY}
    returns |= {label: np.concatenate(entry["returns"]) for label, entry in document.items()}
    title = f"Memory Maze 9x9, {options.episodes} mazes, 1000 steps"
    returns_picture(returns, options.results_dir / "memory_maze.png", title=title)
    numbers = " ".join(map(str, options.seeds))
    seeds = f"seed{'s' * (len(options.seeds) > 1)} {numbers.replace(' ', ', ')}"
    asked = read_config(["--config", str(ROOT / FAST)]).task.target_return
    held = "; ".join(describe(path).partition(": ")[2] for path in data)
    text = (
        f"Balls found in 1000 steps, mean and standard error over the episodes of {seeds} in {options.episodes} "
        f"mazes that no data was made in, made {made(document)}. Asked for was a return of {asked:g}; the "
        f"most probable actions are taken unless said otherwise. "
        f"Data: {held}.\n\n{returns_table(document)}\n\n"
        f"{differences(document)}\n\nEvery run of RATE:\n\n{seed_table(document, options.seeds)}\n\n"
        f"All of it, and the training by itself:\n\n"
        f"    python3 {SCRIPT} --seeds {numbers} --episodes {options.episodes}\n{STUDY.commands(options.seeds)}\n"
    )
    write_results("memory_maze", "Memory Maze", document, text, options)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, play, write the results."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog="reproduce.py", description="Make results/memory_maze.*")
        # Before several processes want to.
        data = ensure_dataset(read_config(["--config", str(ROOT / FAST)]).data)
        document = collect(STUDY.run_all(options), options)
        write(document, data, options)
        print(returns_table(document))


if __name__ == "__main__":
    main()
