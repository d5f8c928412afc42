"""Evaluate a checkpoint on ViZDoom-Two-Colors.

    python3 VizDoom/VizDoom_src/inference_vizdoom.py --checkpoint RUN_DIR --episodes 100 --video 4

Prints returns by colour, beside those of players without a model, and records episodes as MP4 files.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from RATE_model.acting.rollout import with_error
from RATE_model.agent import Agent
from RATE_model.cli.inference import InferenceOptions, fill_from_run
from RATE_model.cli.limits import MAX_SEED, at_least, at_most
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from VizDoom.VizDoom_src import evaluate as protocol
from VizDoom.VizDoom_src.baselines import play_baselines
from VizDoom.VizDoom_src.engine import described_pictures, pictures_of, vizdoom
from VizDoom.VizDoom_src.env import PUBLISHED_CAP
from VizDoom.VizDoom_src.graphics import ensure_graphics
from VizDoom.VizDoom_src.pictures import bars_of, knock_out, record_videos, returns_by_colour
from VizDoom.VizDoom_src.scenario import BEFORE, Graphics, Scenario, Variant
from VizDoom.VizDoom_src.spec import SPEC

SCRIPT = "python3 VizDoom/VizDoom_src/inference_vizdoom.py"
MODEL = "model"
# What is asked for where no run tells.
PUBLISHED = {
    "target_return": protocol.TARGET_RETURN,
    "reset_target": False,
    "use_argmax": False,
    "episode_timeout": PUBLISHED_CAP,
}


@dataclass(frozen=True)
class ScenarioOptions:
    """The scenario that is played; what is none is as the run was trained with, or published where nothing tells."""

    # published: the original's graphics, seeds and damage; clear: larger, brighter sprites and exactly 25 damage
    variant: Variant | None = None
    # Steps during which the pillar is seen
    pillar_steps: int | None = None
    # Items of each colour at the start
    items: int | None = None
    # Tics between two new items; a step has 2 tics
    spawn_tics: int | None = None
    # Whether there is a pillar; without it nothing tells the colour
    pillar: Boolean | None = None
    # published: Freedoom of vizdoom 1.2.4, without flashes on damage, as published; it is obtained once (28 MB).
    # installed: Freedoom of the installed vizdoom, with flashes; none = as trained; with another --variant, or where
    # nothing tells: published for the variant published, installed for clear
    graphics: Graphics | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        self.over(Scenario()).validate()

    def over(self, trained: Scenario) -> Scenario:
        """A scenario with what is given here; another variant has its own graphics unless they are given."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if given.get("variant", trained.variant) != trained.variant:
            trained = replace(trained, graphics=None)
        return replace(trained, **given)


@dataclass(frozen=True)
class Options:
    """Flags of this script; those of `PUBLISHED`, and the scenario, are filled from what the run recorded."""

    common: InferenceOptions = field(default_factory=InferenceOptions)
    # Episodes, half of them red: 50 (published) or up to 200
    episodes: int = protocol.EPISODES
    # Return that the agent is asked for; none = the run's (56.5 for a converted checkpoint)
    target_return: float | None = None
    # Ask for the return again whenever K steps have passed, as if nothing had been earned; none = as in the run (false
    # for a converted checkpoint)
    reset_target: Boolean | None = None
    # Take the most probable action; false: draw from the predicted distribution (published); none = as in the run
    # (false for a converted checkpoint)
    use_argmax: Boolean | None = None
    # Seed of those draws
    seed: int = 0
    # Steps after which an episode is over, if the player is still alive; none = the run's (4200 for a converted
    # checkpoint)
    episode_timeout: int | None = None
    # The scenario that is played; what is none is as the run was trained with, or published where nothing tells
    scenario: ScenarioOptions = field(default_factory=ScenarioOptions)
    # Also say what players without a model do in the same episodes; takes minutes, once
    baselines: Boolean = True
    # Also record N episodes, half of them red (of an odd number one more), as MP4 files, into --pictures or the working
    # directory. With --use_argmax false their actions are other draws than those of the evaluation
    video: int = 0

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        protocol.check_episodes(episodes=self.episodes)
        at_least(0, seed=self.seed, video=self.video)
        at_most(MAX_SEED - protocol.MAX_EPISODES, seed=self.seed)
        at_most(protocol.MAX_EPISODES, video=self.video)
        at_least(1, episode_timeout=self.episode_timeout)

    def filled(self) -> "Options":
        """With what was not given, the scenario's flags among it, as the checkpoint's run recorded it.

        Raises:
            UserError: there is no such checkpoint, or its run's config.yaml is damaged.
        """
        recorded = self.common.recorded(BEFORE)
        trained = Scenario(**{name: recorded[name] for name in asdict(Scenario()) if name in recorded})
        scenario = ScenarioOptions(**asdict(self.scenario.over(trained).settled()))
        return replace(fill_from_run(self, PUBLISHED), scenario=scenario)

    @property
    def acting(self) -> dict[str, Any]:
        """What `play` and `record_videos` take, of filled options."""
        return {
            "target_return": self.target_return,
            "reset_target": self.reset_target,
            "greedy": self.use_argmax,
            "slide": self.common.slide,
            "scenario": self.scenario.over(Scenario()),
            "max_steps": self.episode_timeout,
            "precision": self.common.precision,
        }


def show(played: Mapping[str, protocol.Played]) -> None:
    """Print one line per player: returns with their standard errors over episodes, and lifetimes in game tics."""
    width = max(map(len, played)) + 2
    print(
        f"{'':{width}}{'red':>14}{'green':>14}{'mean':>14}{'weaker':>9}{'difference':>12}{'tics: red':>12}{'green':>7}"
    )
    for label, episodes in played.items():
        found = protocol.metrics(episodes, target_return=0)
        returns = (
            with_error(found[f"ReturnsMean{part}_0"], found[f"ReturnsSEM{part}_0"], 1)
            for part in ("_red", "_green", "")
        )
        red, green = (found[f"LifeTimeMean_{colour}_0"] for colour in protocol.COLOURS)
        print(
            f"{label:{width}}"
            + "".join(f"{text:>14}" for text in returns)
            + f"{found['ReturnsMin_0']:9.1f}{found['ReturnsDifference_0']:12.1f}{red:12.0f}{green:7.0f}"
        )


def evaluate(options: Options) -> None:
    """Print a table of results by player, write them, under the names of `metrics`, and draw what is asked for."""
    vizdoom()
    path, model = options.common.load(SPEC)
    options = options.filled()
    shared = options.acting
    scenario, trained = shared["scenario"], options.common.recorded(BEFORE).get("graphics")
    ensure_graphics(scenario)
    print(
        f"{path}: {options.episodes} episodes of the {scenario.variant} variant ({described_pictures(scenario)}), half "
        f"of them red, asked for a return of {protocol.described(shared['target_return'], shared['reset_target'])}"
        f"{', memory knocked out' if options.common.knock_out else ''}",
        flush=True,
    )
    if trained not in (None, scenario.graphics):
        print(f"It was trained in {trained} graphics, and plays {scenario.graphics} ones.", flush=True)
    started = time.perf_counter()
    acting = {"episodes": options.episodes, "seed": options.seed, **shared}
    played = {MODEL: protocol.play(model, transform_memory=options.common.transform_memory, **acting)}
    seconds = time.perf_counter() - started
    bars = {}
    if options.common.pictures is not None:
        given = {"known": played[MODEL], "known_with": options.common.transform_memory}
        conditions = knock_out(model, **given, **acting)
        bars = {label: bars_of(episodes) for label, episodes in conditions.items()}
        played |= {f"{MODEL}, {label}": found for label, found in conditions.items() if found is not played[MODEL]}
    if options.baselines:
        others = play_baselines(options.episodes, scenario=scenario, max_steps=shared["max_steps"])
        bars |= {label: bars_of(episodes) for label, episodes in others.items()}
        played |= others
    show(played)
    print(f"{seconds:.1f} s")
    asked = shared["target_return"]
    results = {label: protocol.metrics(found, target_return=asked) for label, found in played.items()}
    told = {"variant": scenario.variant, **pictures_of(scenario)}
    options.common.write(episodes=options.episodes, **told, results=results)  # before anything that can fail is drawn
    draw(model, bars, shared, options)


def draw(
    model: Agent, bars: Mapping[str, Mapping[str, tuple[float, float]]], acting: Mapping[str, Any], options: Options
) -> None:
    """Returns by colour and videos, where asked for."""
    folder = options.common.pictures or Path()
    if options.common.pictures is not None:
        asked = protocol.described(acting["target_return"], acting["reset_target"])
        title = f"{options.episodes} episodes, asked for {asked}"
        print(f"pictures: {returns_by_colour(bars, folder / 'returns_by_colour.png', title=title)}")
    if options.video:
        pairs = options.video + options.video % 2
        seeds, is_red = (values[: options.video] for values in protocol.evaluation_seeds(pairs))
        transform = options.common.transform_memory
        paths = record_videos(model, seeds.tolist(), is_red.tolist(), folder, transform_memory=transform, **acting)
        print("videos: " + " ".join(map(str, paths)))


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate what the flags ask for."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog=SCRIPT, description="Evaluate a checkpoint on ViZDoom-Two-Colors."
        )
        evaluate(options)


if __name__ == "__main__":
    main()
