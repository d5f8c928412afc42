"""Making ViZDoom-Two-Colors trajectories with the scripted expert, on all cores.

Episodes are divided into parts of ``PART`` episodes. Each part has its own seeds, so it does not depend on the process
that makes it, and an interrupted run reuses the finished parts (`RATE_model.data.parts`).

The colours alternate: an episode takes the next seed of the colour it needs. Only full-length episodes are kept, as
training needs them; if the player dies early, the next seed of that colour is played, and the drop is counted.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from RATE_model.acting.driver import DriverChoice, driver_attributes, generator_of
from RATE_model.data.maker import Drive, record
from RATE_model.data.parts import Job, make_in_parts
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from VizDoom.VizDoom_src.engine import vizdoom
from VizDoom.VizDoom_src.env import ENV_ID, NAME, OBSERVATION_SHAPE, VizDoomTwoColorsEnv
from VizDoom.VizDoom_src.expert import PERTURBATION_STEPS, PerturbedExpert, View
from VizDoom.VizDoom_src.graphics import ensure_graphics
from VizDoom.VizDoom_src.privileged import notes_of
from VizDoom.VizDoom_src.scenario import BUILDER_VERSION, Scenario, ensure_scenario
from VizDoom.VizDoom_src.seeds import FIRST_DATA_SEED

PART = 20  # episodes; with 90 or 150 steps they fill whole chunks of a trajectory file
PART_SEEDS = 1000  # seeds per part; it needs two per episode, and more for dropped ones
EXPERT_STREAM = 2  # one of the random streams of a seed

EXPERT_VERSION = 1  # increment when a seed gives different actions or labels: parts of other versions are not reused

INFOS_VERSION = 2  # increment when the stored infos change: parts of other versions are not reused
_ATTEMPT = "attempt"  # info in a part: number of episodes played to get this one


@dataclass(frozen=True)
class Recipe:
    """Everything a dataset depends on except its number of episodes."""

    scenario: Scenario
    steps: int  # per episode
    view: View  # the expert's
    noise: float  # share of random actions
    perturbation: float = 0.0  # share of time in which it mistakes wrong items for right ones
    perturbation_steps: int = PERTURBATION_STEPS  # mean number after which this is redrawn
    driver: DriverChoice | None = None  # the agent that moves while the expert labels

    @property
    def first_seed(self) -> int:
        """First seed of the episodes."""
        return FIRST_DATA_SEED if self.driver is None else self.driver.first_seed


def generate(recipe: Recipe, episodes: int, path: Path, *, overwrite: bool = False, workers: int | None = None) -> Path:
    """Make a file of trajectories, half of them, rounded up, red; see `DataMaker.make`."""
    vizdoom()  # fails here, not in a worker, if the package or graphics are missing
    ensure_graphics(recipe.scenario)
    ensure_scenario(recipe.scenario)
    attributes = {
        "environment": ENV_ID,
        "generator": generator_of(recipe.driver, f"scripted expert with a {recipe.view} view"),
        "first_seed": recipe.first_seed,
        "played": 0,
    }

    def note(episode: dict[str, Any]) -> None:
        attributes["played"] += int(episode["infos"].pop(_ATTEMPT)[0])
        attributes["last_seed"] = int(episode["infos"]["seed"][0])

    return make_in_parts(
        job_of(recipe), episodes, path, attributes=attributes, on_join=note, overwrite=overwrite, workers=workers
    )


def job_of(recipe: Recipe) -> Job:
    """The job that makes the parts of a recipe."""
    described = asdict(replace(recipe, scenario=recipe.scenario.settled()))
    described |= {"infos": INFOS_VERSION}
    del described["driver"]
    if recipe.perturbation_steps == PERTURBATION_STEPS:
        del described["perturbation_steps"]  # as in files and parts made before it could be chosen
    versions = {"builder": BUILDER_VERSION, "expert": EXPERT_VERSION, "vizdoom": vizdoom().__version__}
    return Job(
        functools.partial(play_part, recipe),
        layout={"observation_shape": OBSERVATION_SHAPE, "observation_dtype": "uint8"},
        recipe={**described.pop("scenario"), **described, **versions, **driver_attributes(recipe.driver)},
        episodes_per_part=PART,
    )


def play_part(recipe: Recipe, writer: TrajectoryWriter, first: int, count: int) -> None:
    """Play and write one part: episodes first to first + count - 1.

    Raises:
        UserError: too few episodes reach full length, or an engine died twice.
    """
    start = recipe.first_seed + first // PART * PART_SEEDS
    seeds = iter(range(start, start + PART_SEEDS))
    with contextlib.closing(VizDoomTwoColorsEnv(recipe.scenario, max_steps=recipe.steps, privileged=True)) as game:
        for number in range(count):
            red = (first + number) % 2 == 0
            tried = enumerate(_played(game, recipe, seeds, red), start=1)
            full = ((episode, attempt) for attempt, episode in tried if len(episode["actions"]) == recipe.steps)
            episode, attempt = next(full, (None, 0))
            if episode is None:
                raise UserError(
                    f"in {PART_SEEDS} seeds {number} of {count} episodes reached {recipe.steps} steps: in the others "
                    "the player died before. Lower --steps, --noise or --perturbation."
                )
            episode["infos"][_ATTEMPT] = np.full(recipe.steps, attempt, dtype=np.int32)
            writer.add_episode(**episode)


def _played(game: VizDoomTwoColorsEnv, recipe: Recipe, seeds: Iterator[int], red: bool) -> Iterator[dict[str, Any]]:
    """Full-length episodes from the next seeds of a colour."""
    for seed in seeds:
        first = game.reset(seed=seed)
        if first[1]["is_red"] == red:
            yield play(game, first, recipe, seed)


def play(
    game: VizDoomTwoColorsEnv, first: tuple[np.ndarray, dict[str, Any]], recipe: Recipe, seed: int
) -> dict[str, Any]:
    """A perturbed expert's episode in a game reset to a seed, with its first observation and info; see `record`.

    Every step records whether the episode is red, its seed, the health at the time of the observation, and what the
    expert would have done.
    """
    generator = np.random.default_rng([seed, EXPERT_STREAM])
    player = PerturbedExpert(
        generator,
        view=recipe.view,
        noise=recipe.noise,
        perturbation=recipe.perturbation,
        perturbation_steps=recipe.perturbation_steps,
    )
    is_red = np.uint8(first[1]["is_red"])

    def act(observation: np.ndarray, info: Mapping[str, Any], drive: Drive | None) -> tuple[int, dict[str, Any]]:
        around = game.surroundings()
        noted = {"is_red": is_red, "seed": np.int64(seed), "health": np.uint8(info["health"]), **notes_of(around)}
        action, best = player.act(around, None if drive is None else drive(noted))
        return action, {**noted, "expert_action": np.uint8(best)}

    return record(game, first, act, None if recipe.driver is None else recipe.driver.driver(NAME, seed))
