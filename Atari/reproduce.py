"""Make results/atari.*: RATE and a Decision Transformer on our own data of Breakout and Pong, beside those who made it.

    python3 Atari/reproduce.py --seeds 1

Data is made first where it is missing. Runs that are finished are kept, interrupted ones are continued, so the command
can be given again at any time.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

import numpy as np

from Atari.dataset import configured_folder, open_dataset
from Atari.env import AtariEnv
from Atari.evaluate import RandomPlayer, evaluation_seeds, play_with
from Atari.experts import expert
from Atari.games import GAMES, Game
from Atari.generate_dataset import SCRIPT, ensure_own_data
from Atari.train_rate_atari import check, read_config
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.cli.reproduce import Study, StudyOptions, cell, commits, final_results, made, table, write_results
from RATE_model.errors import UserError

FAST = "Atari/config_fast.yaml"
TRANSITIONS = {"Breakout": 150_000, "Pong": 30_000}  # of our own data
SHORTER = {"Pong": ("--epoch_batches", "800")}  # it has less data
EPISODES = 20  # of an evaluation
EXPERT_EPISODES = 3
MODELS = {"RATE": ("--model_mode", "RATE"), "DT": ("--model_mode", "DT", "--slide", "5")}
RANDOM, EXPERT, DATA = "random player", "expert, without noise", "data"


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which runs, and where they and the results go."""

    # Seeds of every model; consecutive
    seeds: tuple[int, ...] = (1,)


def data_command(game: Game) -> str:
    """The command that makes a game's data; a training makes it itself where it is missing."""
    return f"    {SCRIPT} --game {game.name} --transitions {TRANSITIONS[game.name]}"


def study(game: Game) -> Study:
    """The runs of one game."""
    return Study(
        script="Atari/train_rate_atari.py",
        settings=(
            *("--config", FAST, "--game", game.name, "--transitions", str(TRANSITIONS[game.name])),
            *("--eval_episodes", str(EPISODES), "--online_inference", "false"),
            *SHORTER.get(game.name, ()),
        ),
        models=MODELS,
        read_config=read_config,
        check=check,
        prefix=f"reproduce_{game.name.lower()}",
    )


def expert_returns(game: Game) -> np.ndarray:
    """What the scripted player without noise earns in the first episodes of the evaluation, (E,)."""
    environment = AtariEnv(game.name, frame_stack=1)
    returns = []
    for seed in evaluation_seeds(EXPERT_EPISODES):
        player = expert(game, np.random.default_rng(int(seed)))
        environment.reset(seed=int(seed))
        player.reset(environment)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = environment.step(player.act(environment))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    environment.close()
    return np.array(returns)


def of_players(game: Game) -> dict[str, dict[str, Any]]:
    """Returns of whoever needs no training: whole episodes of the data, the scripted player, buttons at random."""
    with open_dataset(ensure_own_data(game, transitions=TRANSITIONS[game.name]), game) as file:
        data = file.returns_to_go()[file.starts[file.whole]]
    drawn = play_with(RandomPlayer(game), game, episodes=EPISODES).returns
    return {
        label: {"return": [float(returns.mean())], "return_std": float(np.std(returns)), "episodes": len(returns)}
        for label, returns in ((RANDOM, drawn), (EXPERT, expert_returns(game)), (DATA, data))
    }


def of_runs(runs: Sequence[Path]) -> dict[str, Any]:
    """Returns of every seed, and what its training took."""
    results = final_results(runs)
    names = {"return": "eval_return", "return_std": "eval_std", "length": "eval_length"}
    entry: dict[str, Any] = {name: [result[key] for result in results] for name, key in names.items()}
    for name in ("validation_accuracy", "train_seconds", "optimizer_steps"):
        entry[name] = [result[name] for result in results]
    return entry | {"target_return": results[0]["target_return"], "commit": commits(runs)}


def returns_table(document: Mapping[str, Mapping[str, Any]], game: Game) -> str:
    """One game: raw and gamer-normalised returns, mean and standard error over seeds, as Markdown."""
    entries = {label: entry for label, entry in document.items() if label.startswith(game.name)}
    (data_return,) = entries[f"{game.name}, {DATA}"]["return"]
    rows = []
    for label, entry in entries.items():
        scores = [score for value in entry["return"] if (score := game.normalised_score(float(value))) is not None]
        share = f"{np.mean(entry['return']) / data_return:.2f}" if data_return > 0 else ""
        rows.append([label.partition(", ")[2], cell(entry["return"], 1), share, cell(scores, 0) if scores else ""])
    return table(["", "points", "times the data's mean", "gamer-normalised, %"], rows)


def seed_table(document: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Every seed, as Markdown."""
    rows = []
    for label, entry in document.items():
        for index, seed in enumerate(seeds if "optimizer_steps" in entry else ()):
            figures = [f"{entry[name][index]:.0f}" for name in ("optimizer_steps", "train_seconds")]
            played = [f"{entry[name][index]:.1f}" for name in ("return", "return_std")]
            accuracy = f"{entry['validation_accuracy'][index]:.3f}"
            rows.append([label, seed, *figures, accuracy, *played, f"{entry['length'][index]:.0f}"])
    header = ["", "seed", "optimizer steps", "training, s", "validation accuracy", "points", "std of episodes", "steps"]
    return table(header, rows)


def write(document: dict[str, dict[str, Any]], options: Options) -> None:
    """results/atari.json and the generated part of .md."""
    seeds = ", ".join(map(str, options.seeds))
    parts = [
        f"Means of {EPISODES} episodes of at most 7000 decisions ({EXPERT_EPISODES} of the expert); of seeds {seeds}, "
        f"with the standard error where there are several. Made {made(document)}."
    ]
    for name in TRANSITIONS:
        data, asked = document[f"{name}, {DATA}"], document[f"{name}, RATE"]["target_return"]
        parts += [
            f"{name}, asked for {asked:g} points; the data are {data['episodes']} episodes with returns of "
            f"{data['return'][0]:.1f} ± {data['return_std']:.1f} (standard deviation):",
            returns_table(document, GAMES[name]),
        ]
    commands = "\n".join(
        f"{data_command(GAMES[name])}\n{study(GAMES[name]).commands(options.seeds)}" for name in TRANSITIONS
    )
    parts += ["Every seed:", seed_table(document, options.seeds), f"Commands:\n\n{commands}\n"]
    write_results("atari", "Atari", document, "\n\n".join(parts), options)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data, train what is missing, collect everything, write the results."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog="reproduce.py", description="Make results/atari.*")
        if configured := configured_folder():
            raise UserError(
                f"'atari: data: {configured}' of wandb_config.yaml: these results are of our own data; leave it empty "
                "while they are made"
            )
        document: dict[str, dict[str, Any]] = {}
        for name in TRANSITIONS:
            game = GAMES[name]
            document |= {f"{name}, {label}": entry for label, entry in of_players(game).items()}
            for label, runs in study(game).run_all(options).items():
                document[f"{name}, {label}"] = of_runs(runs)
        write(document, options)
        for name in TRANSITIONS:
            print(f"{name}\n{returns_table(document, GAMES[name])}")


if __name__ == "__main__":
    main()
