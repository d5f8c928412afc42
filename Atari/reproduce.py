"""Make results/atari.*: RATE and what it is compared with on our own data of Breakout and Pong, and the data's players.

    python3 Atari/reproduce.py --seeds 1 2 3

Makes missing data first. Finished runs are kept and interrupted ones continued, so the command can be repeated at any
time.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from Atari.dataset import open_dataset
from Atari.env import AtariEnv
from Atari.environment import ENVIRONMENT, Play
from Atari.evaluate import random_player
from Atari.experts import expert
from Atari.games import GAMES, Game
from Atari.generate_dataset import DATA as OWN_DATA
from Atari.generate_dataset import GenerateOptions
from RATE_model.acting.players import play_episode
from RATE_model.cli.local_settings import configured_folder
from RATE_model.cli.options import exit_on_user_error
from RATE_model.errors import UserError
from RATE_model.pages.returns_page import Part, ReturnsPage, of_returns
from RATE_model.pages.study import Study, of_modes
from RATE_model.pages.tables import cell

FAST = "Atari/config_fast.yaml"
PLAYED = "Breakout", "Pong"
TRANSITIONS = 150_000  # of our own data, per game
EPISODES = 20  # of an evaluation
EXPERT_EPISODES = 3
# All batches have as many steps. With a cache, RATE sees as far back as DT's window.
MODELS = of_modes(
    {
        "RATE": "--mem_len 36 --segments 6 --batch_size 16",
        # RATE's layers and segments, with nothing to pass on.
        # An epoch of single segments has fewer than 3000 batches.
        "RATE, without memory": "--nmt 0 --n_head_ca 0 --segments 1 --batch_size 96 --epochs 3 --epoch_batches 1000",
        # With the others' learning rate, 2e-3, it predicts the most frequent action in two of three seeds.
        "LSTM": "--segments 6 --batch_size 16 --learning_rate 1e-3",
        "DT": "--slide 5",
    }
)
RANDOM, EXPERT, DATA = "random player", "expert, without noise", "data"


def data_command(game: Game) -> str:
    """The command that makes a game's data; training makes it if it is missing."""
    return f"    python3 {OWN_DATA.script} --game {game.name} --transitions {TRANSITIONS}"


def study(game: Game) -> Study:
    """The runs of one game."""
    settings = (
        f"--config {FAST} --game {game.name} --transitions {TRANSITIONS} --eval_episodes {EPISODES} "
        "--online_inference false"
    )
    return Study.of(ENVIRONMENT, settings.split(), MODELS, prefix=f"reproduce_{game.name.lower()}")


def expert_returns(game: Game) -> np.ndarray:
    """Returns of the scripted player without noise in the first episodes of the evaluation, (E,)."""
    environment = AtariEnv(game.name, frame_stack=1)
    returns = []
    for seed in ENVIRONMENT.seeds(EXPERT_EPISODES):
        player = expert(game, np.random.default_rng(int(seed)))
        environment.reset(seed=int(seed))
        total, _, _ = play_episode(environment, partial(player.act, environment))
        returns.append(total)
    environment.close()
    return np.array(returns)


def of_players(game: Game) -> dict[str, dict[str, Any]]:
    """Returns without training: whole episodes of the data, the scripted player, random buttons."""
    with open_dataset(OWN_DATA.ensure(GenerateOptions(game.name, TRANSITIONS)), game) as file:
        data = file.episode_returns()
    rules = Play(game=game.name, opening="black")
    drawn = ENVIRONMENT.play_as(random_player(game), rules, episodes=EPISODES).returns
    return {RANDOM: of_returns(drawn), EXPERT: of_returns(expert_returns(game)), DATA: of_returns(data)}


def scores(name: str, entry: Mapping[str, Any]) -> str:
    """Gamer-normalised returns, mean and standard error."""
    found = [GAMES[name].normalised_score(float(value)) for value in entry["return"]]
    return cell([score for score in found if score is not None], 0)


def page() -> ReturnsPage:
    """The page's runs, data and table."""
    games = [GAMES[name] for name in PLAYED]
    return ReturnsPage(
        name="atari",
        title=ENVIRONMENT.name,
        seeds=(1, 2, 3),
        parts=[
            Part(
                name=game.name,
                study=study(game),
                others=partial(of_players, game),
                command=data_command(game),
                ratio=game is not GAMES["Pong"],  # its returns may be negative
            )
            for game in games
        ],
        data=DATA,
        text=(
            f"Means over {EPISODES} episodes (expert: {EXPERT_EPISODES}) of at most 7000 decisions, seeds "
            "{seeds}; with several seeds, ± the standard error over seeds. Measured {origin}."
        ),
        asked="{:g} points",
        unit="points",
        digits=1,
        kept={
            "return": "eval_return",
            "return_std": "eval_std",
            "length": "eval_length",
            "validation_accuracy": "validation_accuracy",
        },
        columns={"gamer-normalised, %": scores},
        shown={
            "validation accuracy": ("validation_accuracy", 3),
            "points": ("return", 1),
            "std of episodes": ("return_std", 1),
            "steps": ("length", 0),
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Make the page."""
    with exit_on_user_error():
        if configured := configured_folder("atari", "data"):
            raise UserError(
                f"'atari: data: {configured}' of wandb_config.yaml: this page is about our own data; leave it empty "
                "while the page is made"
            )
    page().main(argv)


if __name__ == "__main__":
    main()
