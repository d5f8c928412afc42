"""ViZDoom-Two-Colors trajectories: make or convert them, and load them as windows.

    python3 VizDoom/VizDoom_src/dataset.py --episodes 5000
    python3 VizDoom/VizDoom_src/dataset.py --episodes 5000 --steps 150 --workers 8
    python3 VizDoom/VizDoom_src/dataset.py --data_path iterative_data

A file is made by the scripted expert, or converted from a folder of the published ``train_data_*.npz``. It goes to
VizDoom/VizDoom_data, where training finds it by the same flags. With --output it goes elsewhere, and training takes it
as --data_path. After an interruption, the same command continues where it was.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from RATE_model.cli.limits import Probability, Range
from RATE_model.cli.options import changeable
from RATE_model.data.maker import DAggerOptions, DataMaker, exact
from RATE_model.data.npz import require_expert_labels
from RATE_model.data.trajectories import Learn
from RATE_model.errors import UserError
from VizDoom.VizDoom_src.env import ENV_ID, PUBLISHED_CAP, SPEC
from VizDoom.VizDoom_src.expert import PERTURBATION_STEPS, View
from VizDoom.VizDoom_src.generate import EXPERT_VERSION, Recipe, generate
from VizDoom.VizDoom_src.scenario import BEFORE, BUILDER_VERSION, Scenario

MAX_EPISODES = 200_000


@dataclass(frozen=True)
class DataOptions(DAggerOptions):
    """Which trajectories to make or to train on."""

    # Episodes, half of them red; with an odd number, one more is red
    episodes: Annotated[int, Range(10, MAX_EPISODES)] = 5000
    # Steps per episode: 90 or 150 in the published data. Episodes in which the player dies early are left out
    steps: Annotated[int, Range(1, PUBLISHED_CAP)] = 90
    # limited: the expert knows the items in its field of view; full: it knows all items
    view: View = "limited"
    # Probability of a random action at each step of the expert
    noise: Probability = 0.0
    # Share of the time in which the player goes for the wrong items: expert data with perturbations (DART)
    perturbation: Probability = 0.0
    # Steps after which --perturbation is redrawn, on average. 1: the player errs from step to step, so its past says
    # nothing about what comes next
    perturbation_steps: Annotated[int, Range(1, PUBLISHED_CAP)] = PERTURBATION_STEPS
    # Targets at every step: recorded = the action taken, expert = the action that the expert would have taken. Files
    # hold both
    learn: Learn = "recorded"
    # Scenario to play
    scenario: Scenario = field(default_factory=Scenario)
    # Data to read instead: an .h5 file made here, or a folder of train_data_*.npz. --episodes, --steps, --view, --noise
    # and --perturbation* then have no effect; the scenario's flags set up evaluations, and must match the file
    data_path: Path | None = changeable(None)
    # Folder for data files; none = VizDoom/VizDoom_data
    data_dir: Path | None = changeable(None)

    flaws: ClassVar = ("noise", "perturbation")

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        self.scenario.validate()
        if self.perturbation_steps != PERTURBATION_STEPS and not self.perturbation:
            raise UserError(
                f"--perturbation_steps {self.perturbation_steps}: without --perturbation there is nothing to redraw; "
                "add it, or leave this out"
            )
        require_expert_labels(self.data_path, self.learn)

    def recipe(self) -> Recipe:
        """The recipe of the data."""
        flaws = (self.noise, self.perturbation, self.perturbation_steps)
        return Recipe(self.scenario, self.steps, self.view, *flaws, driver=self.driver_choice)


class VizDoomData(DataMaker[DataOptions]):
    """The scripted expert's episodes, or published ones."""

    name = "ViZDoom-Two-Colors"
    environment = ENV_ID
    script = "VizDoom/VizDoom_src/dataset.py"
    directory = Path(__file__).resolve().parents[1] / "VizDoom_data"
    prefix = "vizdoom"
    options = DataOptions
    spec = SPEC
    advice = "Change one of these flags, or choose data of that length: --steps {size}."

    def file_name(self, options: DataOptions) -> str:
        """Named by the recipe."""
        parts = [f"vizdoom_two_colors_{options.view}_steps{options.steps}"]
        standard = Scenario().rules
        parts += [f"{name}_{value}" for name, value in options.scenario.rules.items() if value != standard[name]]
        if (graphics := options.scenario.settled().graphics) != BEFORE["graphics"]:  # old file names
            parts.append(f"graphics_{graphics}")
        flaws = {name: getattr(options, name) for name in ("noise", "perturbation")}
        parts += [f"{name}{exact(value)}" for name, value in flaws.items() if value]
        if options.perturbation and options.perturbation_steps != PERTURBATION_STEPS:
            parts.append(f"every{options.perturbation_steps}")
        return f"{'_'.join(parts + options.driver_name)}_n{options.episodes}.h5"

    def make(self, options: DataOptions, path: Path, *, overwrite: bool = False, workers: int | None = None) -> None:
        """See `generate`."""
        generate(options.recipe(), options.episodes, path, overwrite=overwrite, workers=workers)

    def conversion(self, options: DataOptions) -> Mapping[str, Any]:
        """Includes the colour."""
        return {"infos": ("is_red",)}

    def versions(self) -> Mapping[str, int]:
        """Versions of the scripted expert and of the scenario's builder."""
        return {"expert": EXPERT_VERSION, "builder": BUILDER_VERSION}

    def check_given(self, path: Path, options: DataOptions) -> None:
        """Raise a `UserError` if a file was made with another scenario."""
        with self.open(path) as file:
            made = file.attributes
        wanted = asdict(options.scenario.settled())
        if "variant" in made:
            made = BEFORE | made
        elif wanted["graphics"] != "published":
            print(
                f"'{path}' does not say which graphics it shows. Published files show --graphics published; "
                f"evaluations play --graphics {wanted['graphics']}."
            )
        if other := [name for name, value in wanted.items() if made.get(name, value) != value]:
            of_file, of_flags = (
                " ".join(f"--{name} {str(values[name]).lower()}" for name in other) for values in (made, wanted)
            )
            raise UserError(
                f"'{path}': made with {of_file}, but the flags are {of_flags}: evaluations would not "
                f"match the data. Add {of_file}"
            )

    def note(self, made: Mapping[str, Any], episodes: int) -> str:
        """The graphics, and how many episodes were dropped."""
        dropped = made.get("played", episodes) - episodes
        shown = "; {graphics} graphics, vizdoom {vizdoom}".format(**BEFORE | dict(made)) if "vizdoom" in made else ""
        return shown + (f"; {dropped} more were too short and dropped" if dropped else "")


DATA = VizDoomData()
main = DATA.main


if __name__ == "__main__":
    main()
