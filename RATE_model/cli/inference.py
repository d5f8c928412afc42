"""What every inference script has in common: the flags that name a checkpoint and where results go."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from RATE_model.acting.controls import knock_out_memory
from RATE_model.agent import Agent
from RATE_model.cli.evaluation import check_typed, flags_of
from RATE_model.cli.limits import at_least, writable, writable_file
from RATE_model.cli.options import Boolean, typed_values
from RATE_model.cli.settings import Precision
from RATE_model.errors import UserError, reason_of
from RATE_model.loading import load_for
from RATE_model.memories.contract import MemoryTransform
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.atomic import atomic_write_json
from RATE_model.system.precision import pick_device
from RATE_model.training.checkpoints import resolve_checkpoint
from RATE_model.training.runs import check_unowned, owning


class HasInferenceOptions(Protocol):
    """The options of an inference script."""

    @property
    def common(self) -> "InferenceOptions":
        """Those that all of them have."""
        ...


Options = TypeVar("Options", bound=HasInferenceOptions)
# How a checkpoint that is of no run acts.
ACTING = {"slide": 1, "precision": "32"}


def fill_from_run(
    options: Options, published: Mapping[str, Any], *, before: Mapping[str, Any] | None = None
) -> Options:
    """A script's options, with what was not given as the checkpoint's run evaluated itself in training.

    Args:
        options: with a group `common`, the `InferenceOptions`, whose `slide` and `precision` are filled too.
        published: the flags that are filled, and their values where there is no run. One is open while it has the
            default of its class. A flag that takes several values takes the one that the run recorded.
        before: what a run did that was made before it could record these flags.

    Raises:
        UserError: there is no such checkpoint, or its run's config.yaml is damaged.
    """
    recorded = options.common.recorded(before)

    def filled(group: Any, published: Mapping[str, Any]) -> Any:
        found = {}
        for name, value in published.items():
            if getattr(group, name) != (default := getattr(type(group), name)):
                continue
            value = recorded.get(name, value)
            if isinstance(default, tuple) and not isinstance(value, list | tuple):
                value = () if value is None else (value,)
            found[name] = value
        source = str(options.common.config_file)
        return replace(group, **typed_values(type(group), found, source=source))

    return replace(filled(options, published), common=filled(options.common, ACTING))


@dataclass(frozen=True)
class InferenceOptions:
    """Which checkpoint, how it acts, and where results go."""

    # A run directory (its newest checkpoint), a directory step_*, or a tag such as RUN/checkpoints/best
    checkpoint: Path | None = None
    # Replace the memory by the initial one at every segment: what needs memory must fall to chance
    knock_out: Boolean = False
    # DT and DTXL: steps that leave a full window at once; 1 is the published protocol, more is faster; none = as the
    # run evaluated itself, or 1 where nothing tells
    slide: int | None = None
    # float32, bfloat16 products, or auto: those where the device has units for them; none = as the run evaluated
    # itself, or float32 where nothing tells
    precision: Precision | None = None
    # auto (a GPU if there is one), cpu, cuda, ...
    device: str = "auto"
    # Also draw pictures, into this folder
    pictures: Path | None = None
    # Also write the results to this JSON file
    output: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for what can be seen to be wrong before anything is loaded."""
        self.given_checkpoint()
        at_least(1, slide=self.slide)
        writable_file(output=self.output)
        writable(pictures=self.pictures)
        check_unowned(output=self.output, pictures=self.pictures)

    def check_typed(self, typed: Set[str]) -> None:
        """Raise a UserError for a flag on the command line that the checkpoint's agent has no use for."""
        check_typed(self.checkpoint, typed)

    def given_checkpoint(self) -> Path:
        """`--checkpoint`. Raises UserError if it is missing."""
        if self.checkpoint is None:
            raise UserError("--checkpoint is missing: give a run directory or a checkpoint")
        return self.checkpoint

    def recorded(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The flags of the run that the checkpoint is of; none where it is of no run.

        Args:
            before: what a run did that was made before it could record these flags. A converted checkpoint, which
                records what it was converted from, is of no such run.

        Raises:
            UserError: there is no such checkpoint, or its run's config.yaml is damaged.
        """
        return flags_of(self.given_checkpoint(), before)

    @property
    def config_file(self) -> Path:
        """Where the checkpoint's run recorded its flags. Raises UserError if there is no such checkpoint."""
        return resolve_checkpoint(self.given_checkpoint()).absolute().parent.parent / "config.yaml"

    @property
    def transform_memory(self) -> MemoryTransform | None:
        """For `Actor`."""
        return knock_out_memory if self.knock_out else None

    def load(self, spec: EnvironmentSpec) -> tuple[Path, Agent]:
        """The checkpoint's path, and its model in eval mode on the device; its encoders may differ from the spec's.

        Raises:
            UserError: there is no such checkpoint or device, it is damaged, or observations or actions are others.
        """
        path = resolve_checkpoint(self.given_checkpoint())
        return path, load_for(path, spec, device=pick_device(self.device), flags=self.recorded())

    def write(self, **results: Any) -> None:
        """The results, and whose they are, to `output`, if it was given. Raises UserError if they cannot be written."""
        if self.output is None:
            return
        try:
            document = {"checkpoint": str(self.checkpoint), "knock_out": self.knock_out, **results}
            with owning(self.output):
                atomic_write_json(self.output, document)
        except OSError as error:
            raise UserError(f"--output {self.output} cannot be written: {reason_of(error)}") from error
