"""Minigrid-Memory trajectories: select, make or read them, and load them as windows.

The expert collects the data (`MinigridMemory/get_data/collect_traj.py`, or the first training that needs it), or the
user provides it: a file made here, or a folder of the published collector's ``train_data_*.npz``, converted once.

A preset defines what to collect: size, corridors and the lengths kept. Every other flag overrides one of these. The
clean presets keep all episodes; the published ones keep the lengths of the published training data. Files are named by
their content, so different flags for the same data share a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from MinigridMemory.MinigridMemory_src.env import ENV_ID, SPEC, Size
from MinigridMemory.MinigridMemory_src.evaluate import widest_cap
from MinigridMemory.MinigridMemory_src.expert import Flaws
from MinigridMemory.MinigridMemory_src.generate import Selection, generate
from RATE_model.cli.limits import MAX_STEPS, Count, Probability, Range, Steps
from RATE_model.cli.options import changeable
from RATE_model.data.maker import DAggerOptions, DataMaker, exact
from RATE_model.data.npz import require_expert_labels
from RATE_model.data.trajectories import Learn
from RATE_model.errors import UserError

MAX_TRAJECTORIES = 200_000

Preset = Literal["clean_31", "clean_41", "published_31", "published_41"]


# Which episodes a preset keeps, in corridors of random length; max_steps is also limited by the time limit.
# published_41 was collected with a flag for fixed corridors, which its collector ignored.
PRESETS = {
    "clean_31": {"size": 31, "min_steps": 1, "max_steps": MAX_STEPS},
    "clean_41": {"size": 41, "min_steps": 1, "max_steps": MAX_STEPS},
    "published_31": {"size": 31, "min_steps": 38, "max_steps": 45},
    "published_41": {"size": 41, "min_steps": 60, "max_steps": 96},
}


@dataclass(frozen=True)
class DataOptions(DAggerOptions):
    """Which trajectories to collect or to train on."""

    # Data to collect, in corridors of random length. clean_31 and clean_41: mazes of that size, episodes of any length;
    # published_31: 38 to 45 steps; published_41: 60 to 96 steps. Each of the next five flags overrides one part of this
    preset: Preset = "clean_31"
    # Maze size, odd and at least 7; none = the preset's
    size: Size | None = None
    # End of the corridor: random in every maze, or fixed as far east as possible; none = the preset's
    corridor: Literal["random", "fixed"] | None = None
    # Shortest episodes to keep, in steps; none = the preset's
    min_steps: Count | None = None
    # Longest episodes to keep, in steps; none = the preset's
    max_steps: Count | None = None
    # Time limit in steps; none = 96 (published), or 2 size + 14 if that is more: the expert never needs that many
    cap: Steps | None = None
    # Probability of a random action at each step of the expert
    noise: Probability = 0.0
    # Probability that the expert takes the wrong arm on purpose; above 0, failed episodes are kept too
    wrong_arm: Probability = 0.0
    # Probability that the expert guesses instead of looking at the cue; above 0, failed episodes are kept too
    guess: Probability = 0.0
    # Episodes to keep, half with a key and half with a ball to remember, half to the north and half to the south
    trajectories: Annotated[int, Range(10, MAX_TRAJECTORIES)] = 10_000
    # Targets at every step: recorded = the action taken, expert = the action that the expert would have taken. Files
    # made here hold both
    learn: Learn = "recorded"
    # Data to read instead: an .h5 file made here, or a folder of train_data_*.npz. The flags above then have no effect
    data_path: Path | None = changeable(None)
    # Folder for data files; none = MinigridMemory/MinigridMemory_data
    data_dir: Path | None = changeable(None)

    flaws: ClassVar = ("noise", "wrong_arm", "guess")

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        require_expert_labels(self.data_path, self.learn)
        chosen = replace(self, driver=None).selection()  # a missing driver is reported when it is loaded
        if chosen.min_steps > chosen.max_steps:
            limit = "--cap" if chosen.max_steps == chosen.cap else "--max_steps"
            preset = f" (of --preset {self.preset})"
            of_least = preset if self.min_steps is None else ""
            of_limit = preset if self.max_steps is None and limit == "--max_steps" else ""
            raise UserError(
                f"--min_steps {chosen.min_steps}{of_least}: must be at most {limit}, "
                f"which is {chosen.max_steps}{of_limit}"
            )

    def selection(self) -> Selection:
        """The preset with all overrides applied."""
        preset = PRESETS[self.preset]
        chosen = preset | {name: value for name in preset if (value := getattr(self, name)) is not None}
        cap = widest_cap(chosen["size"]) if self.cap is None else self.cap
        return Selection(
            size=chosen["size"],
            random_length=self.corridor != "fixed",
            min_steps=chosen["min_steps"],
            max_steps=min(chosen["max_steps"], cap),
            cap=cap,
            flaws=Flaws(noise=self.noise, wrong_arm=self.wrong_arm, guess=self.guess),
            trajectories=self.trajectories,
            driver=self.driver_choice,
        )


class MinigridMemoryData(DataMaker[DataOptions]):
    """The expert's episodes, or published ones."""

    name = "Minigrid-Memory"
    environment = ENV_ID
    script = "MinigridMemory/get_data/collect_traj.py"
    directory = Path(__file__).resolve().parents[1] / "MinigridMemory_data"
    prefix = "minigrid_memory"
    options = DataOptions
    spec = SPEC
    advice = "Raise --segments or --context_length, or choose data of shorter episodes."

    def file_name(self, options: DataOptions) -> str:
        """A name made from the selection."""
        chosen = options.selection()
        parts = [f"minigrid_memory_size{chosen.size}", "random" if chosen.random_length else "fixed"]
        if (chosen.min_steps, chosen.max_steps) != (1, chosen.cap):
            parts.append(f"steps{chosen.min_steps}-{chosen.max_steps}")
        if chosen.cap != widest_cap(chosen.size):
            parts.append(f"cap{chosen.cap}")
        parts += [f"{name}{exact(value)}" for name, value in vars(chosen.flaws).items() if value]
        return f"{'_'.join(parts + options.driver_name)}_n{chosen.trajectories}.h5"

    def count(self, options: DataOptions) -> int:
        """The number of episodes kept."""
        return options.trajectories

    def make(self, options: DataOptions, path: Path, *, overwrite: bool = False, workers: int | None = None) -> None:
        """See `generate`."""
        generate(options.selection(), path, overwrite=overwrite, workers=workers)

    def conversion(self, options: DataOptions) -> Mapping[str, Any]:
        """Store equal images only once."""
        return {"index_frames": True}

    def note(self, made: Mapping[str, Any], episodes: int) -> str:
        """How many episodes were played, and why some were dropped."""
        if "played" not in made:
            return ""
        dropped = ", ".join(f"{count} {reason}" for reason, count in made["dropped"].items())
        kept = f"; {made['acceptance']:.1%} of {made['played']} episodes played were kept"
        return kept + (f" (dropped: {dropped})" if dropped else "")


DATA = MinigridMemoryData()
