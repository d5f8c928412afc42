"""Flags that every environment's train script has in common. An environment adds groups of its own."""

from collections.abc import Set
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import torch

from RATE_model.agent import AgentConfig
from RATE_model.cli.limits import MAX_SEED, MAX_SIZE, MAX_STEPS, at_least, at_most, at_most_processes
from RATE_model.cli.options import Boolean, changeable, heading
from RATE_model.errors import UserError
from RATE_model.memories import MEMORIES, MODES
from RATE_model.memories.budget import BUDGETS, width_for
from RATE_model.memories.contract import Memory, MemoryConfig
from RATE_model.system.secrets import redact

if TYPE_CHECKING:
    ModelMode = str
    Budget = str
else:
    ModelMode = Literal[*MODES]  # a type checker does not read tables
    Budget = Literal["none", *BUDGETS]

Model = TypeVar("Model")

# See `precision.uses_bfloat16`.
Precision = Literal["auto", "32", "bf16"]

# Flags of one command, on one machine: a run is the same whatever they are, and its checkpoints do not say.
STEERING = frozenset(
    {"output_dir", "data_dir", "data_path", "text", "ckpt_folder"}  # where it is; it may go on under another name
    | {"seed", "start_seed", "end_seed", "device", "num_workers", "save_minutes", "memory_gib"}
    | {"wandb_mode", "wandb_project"}
)

# Flags whose value may be larger when a run is resumed.
MAY_GROW = frozenset({"epochs"})

# What helps where training diverged: a run may go on under another name with other values of these.
STABILISERS = frozenset({"learning_rate", "warmup_steps", "warmup_tokens", "precision", "grad_norm_clip"})

# Every seed of a command is looked at before the first is trained.
MAX_SEEDS = 10_000


# Flags that say how an agent acts, and for which not every agent has a use.
ACTING_FLAGS = frozenset({"slide", "target_return", "reset_target"})


def check_acting_flags(typed: Set[str], memory: type[Memory], *, conditioned: bool, agent: str) -> None:
    """Raise a `UserError` for one of the `ACTING_FLAGS` that was typed for an agent that has no use for it.

    Args:
        typed: the names of all flags on the command line.
        memory, conditioned: of the agent; whether it sees returns.
        agent: what it is called in the message.
    """
    if "slide" in typed and not memory.can_slide:
        raise UserError(f"--slide: {agent} sees no window of steps that could slide; leave it out")
    for name in sorted(typed & (ACTING_FLAGS - {"slide"})):
        if not conditioned:
            raise UserError(f"--{name}: {agent} sees no returns (--condition none), so none is asked for; leave it out")


def group_of(memory: str) -> str:
    """The name of the group of flags of a memory in `ModelOptions`; memories may share one."""
    return MEMORIES[memory].options.__name__.removesuffix("Options").lower()


def _names(options: type) -> set[str]:
    return {field.name for field in fields(options)}


def _with_flags_of_memories(cls: type[Model]) -> type[Model]:
    """The dataclass with a group for each memory's flags; its heading in --help names the modes that they are of."""
    groups = {group_of(memory): entry.options for memory, entry in MEMORIES.items()}
    modes = {group: [name for name, mode in MODES.items() if group_of(mode.memory) == group] for group in groups}
    return make_dataclass(
        cls.__name__,
        [
            (name, Annotated[options, heading(", ".join(modes[name]))], field(default_factory=options))
            for name, options in groups.items()
        ],
        bases=(cls,),
        frozen=True,
        # The comments in the source are the help text: the new class must be found where this one stands.
        namespace={"__module__": cls.__module__, "__doc__": cls.__doc__},
    )


@_with_flags_of_memories
@dataclass(frozen=True)
class ModelOptions:
    """Which memory, and what all of them have; flags of one alone are below, under its modes."""

    # RATE or an ablation of it: RMT (memory tokens), TrXL (cached hidden states), DT (Decision Transformer: one
    # segment), DTXL (DT with a cache when acting), RATEM (RATE without cache), RATE_wo_nmt (TrXL); or another memory,
    # each with a page in docs/memories: D before its name says that return, observation and action enter one by one,
    # BC- that it sees no returns
    model_mode: ModelMode = "RATE"
    # Show the return that is still to come: rtg or none (behaviour cloning); auto = as the mode says
    condition: Literal["auto", "rtg", "none"] = "auto"
    # Width of the embedded steps and of the model
    d_model: int = 64
    # Parameters of the memory, without encoders and head: the --d_model is chosen with which it has this many within a
    # tenth; none = as --d_model says
    budget: Budget = "none"
    # Dropout of embeddings, and inside and after the memory
    dropout: float = 0.05

    @property
    def memory(self) -> str:
        """The name of the mode's memory."""
        return MODES[self.model_mode].memory

    def memory_options(self) -> Any:
        """The flags of the mode's memory, with what the mode fixes."""
        return replace(getattr(self, group_of(self.memory)), **MODES[self.model_mode].fixed)

    def check_typed(self, typed: Set[str]) -> None:
        """Raise a `UserError` for a flag on the command line that the mode has no use for.

        Flags in YAML files are not looked at: a setting serves several modes.
        """
        mode, own = MODES[self.model_mode], MEMORIES[self.memory].options
        if "d_model" in typed and self.budget != "none":
            raise UserError(
                f"--d_model {self.d_model}: --budget {self.budget} chooses the width; leave one of them out"
            )
        for name in sorted(typed):
            owners = [memory for memory, entry in MEMORIES.items() if name in _names(entry.options)]
            if owners and name not in _names(own):
                modes = [other for other, entry in MODES.items() if entry.memory in owners]
                raise UserError(
                    f"--{name} is a flag of {' and '.join(owners)}; --model_mode {self.model_mode} has no use for it: "
                    f"leave it out, or choose one of {', '.join(modes)}"
                )
            given = getattr(getattr(self, group_of(self.memory)), name, None)
            if name in mode.fixed and given != mode.fixed[name]:
                raise UserError(
                    f"--{name} {given}: --model_mode {self.model_mode} is {self.memory} with {mode.fixed[name]!r}; "
                    f"leave it out, or use --model_mode {self.memory}"
                )
        getattr(self, group_of(self.memory)).check_mode(self.model_mode, typed)
        memory, named = MEMORIES[self.memory].memory, f"--model_mode {self.model_mode}"
        check_acting_flags(typed, memory, conditioned=self.conditioned, agent=named)

    @property
    def conditioned(self) -> bool:
        """Whether the agent sees returns-to-go."""
        return "rtg" == (MODES[self.model_mode].condition if self.condition == "auto" else self.condition)

    @property
    def name_parts(self) -> tuple[str, ...]:
        """What the name of a run says of the model."""
        arch = getattr(self.memory_options(), "arch_mode", None)
        condition = () if self.condition == "auto" else ("condition", self.condition)
        return (*(("arch_mode", arch) if arch else ()), self.model_mode, *condition)

    def agent_config(self, *, context_length: int, segments: int) -> AgentConfig:
        """The agent for segments of `context_length` steps and trajectories of this many segments; validated."""
        if self.budget == "none":
            sizes = self._sizes(self.d_model, context_length, segments)
        else:
            sizes = _within_budget(self, context_length, segments)
        sizes.validate()
        return AgentConfig(self.memory, sizes)

    def _sizes(self, d_model: int, context_length: int, segments: int) -> MemoryConfig:
        return self.memory_options().config(
            mode=self.model_mode,
            d_model=d_model,
            dropout=self.dropout,
            context_length=context_length,
            segments=segments,
            conditioned=self.conditioned,
        )


@cache
def _within_budget(options: ModelOptions, context_length: int, segments: int) -> MemoryConfig:
    """The sizes of `--budget`."""

    def sized(d_model: int) -> MemoryConfig:
        return options._sizes(d_model, context_length, segments)

    memory = MEMORIES[options.memory].memory
    return sized(width_for(options.budget, options.model_mode, memory, sized))


@dataclass(frozen=True)
class ImageOptions:
    """How images are encoded."""

    # Channels of the three convolutions; fewer than the published cost less
    conv_channels: tuple[int, ...] = (32, 64, 64)

    def validate(self) -> None:
        """Raise a UserError for other than three numbers, or one out of range."""
        if len(self.conv_channels) != 3:
            raise UserError(f"--conv_channels {' '.join(map(str, self.conv_channels))}: give three numbers")
        at_least(1, conv_channels=min(self.conv_channels))
        at_most(MAX_SIZE, conv_channels=max(self.conv_channels))


@dataclass(frozen=True)
class TrainOptions:
    """How it is trained."""

    # Passes over the training data, per curriculum stage (an adaptive curriculum counts batches instead)
    epochs: int = 50
    # Batches of an epoch, resampled for each; none = as many as show every trajectory once
    epoch_batches: int | None = None
    # Trajectories per batch
    batch_size: int = 64
    # Segments through which gradients flow back through memory: windows of bptt_segments + 1 segments, one optimizer
    # step each. -1 = all of a trajectory; 0 = none, one step per segment (the published training)
    bptt_segments: int = -1
    # State that a window from the middle of an episode begins with in training: initial, or stored, the state that an
    # earlier pass over the episode left at its first step, if there was one (R2D2, Kapturowski et al. 2019)
    window_state: Literal["initial", "stored"] = "initial"
    # First steps of windows from the middle of episodes that carry no loss and no gradient (R2D2's burn-in); with RATE
    # no gradient beyond whole segments: the rest of --burn_in only carries no loss. Validation does the same
    burn_in: int = 0
    # Peak learning rate (AdamW)
    learning_rate: float = 3e-4
    # Optimizer steps of linear warm-up
    warmup_steps: int = 100
    # Environment steps of linear warm-up, instead of --warmup_steps; 0 = those
    warmup_tokens: int = 0
    # Decay after the warm-up. Published: late_linear (linear from the first epoch after the warm-up on, made for one
    # optimizer step a segment) and rising_cosine (of environment steps; rises again after --final_tokens)
    lr_schedule: Literal["linear", "cosine", "constant", "late_linear", "rising_cosine"] = "linear"
    # Environment steps after which the decay is over; none = when training is. --curr adaptive has a decay of its own
    final_tokens: int | None = None
    # Learning rate at the end, as a fraction of the peak
    lr_end_factor: float = 0.1
    # Decay rate of AdamW's average of gradients
    beta_1: float = 0.9
    # Decay rate of AdamW's average of squared gradients
    beta_2: float = 0.95
    # Weight decay
    weight_decay: float = 0.1
    # What is decayed: the matrices of linear maps and convolutions, or all parameters (published)
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    # Initial weights: scaled (image encoders keep the size of what passes through them, memory tokens differ), or
    # published (PyTorch's for all layers, memory tokens are all equal)
    initialisation: Literal["scaled", "published"] = "scaled"
    # Largest norm of the gradient
    grad_norm_clip: float = 1.0
    # Process a batch in this many parts to save memory; the gradient is the same
    accumulate: int = 1
    # Share of past actions that are shown as random ones in training, against a model that learns to go on with what it
    # did before instead of looking at what there is; 0 = none, as published
    action_noise: float = 0.0
    # Data-dependent initialisation of image encoders, with motion-sensitive first filters where an observation is
    # several pictures
    calibrate: Boolean = False
    # float32, bfloat16 products, or auto: those where the device has units for them
    precision: Precision = "32"
    # Compile the model (pays off in long runs)
    compile: Boolean = False
    # Processes that load data; 0 = none, right for small data
    num_workers: int = changeable(0)
    # Evaluate and save a checkpoint at epoch 1 and every N epochs
    ckpt_epoch: int = 10
    # Also evaluate and save a checkpoint after every N batches of an epoch; none = at the ends of epochs only
    ckpt_batches: int | None = None
    # Save a checkpoint at least every N minutes
    save_minutes: float = changeable(10.0)
    # Log averages of this many batches
    log_every: int = 10

    def validate(self) -> None:
        """Raise `UserError` for values that cannot be trained with."""
        counts = ("epochs", "batch_size", "accumulate", "ckpt_epoch", "log_every")
        at_least(1, **{name: getattr(self, name) for name in counts})
        at_least(1, final_tokens=self.final_tokens, epoch_batches=self.epoch_batches, ckpt_batches=self.ckpt_batches)
        at_least(
            0,
            warmup_steps=self.warmup_steps,
            warmup_tokens=self.warmup_tokens,
            weight_decay=self.weight_decay,
            num_workers=self.num_workers,
            burn_in=self.burn_in,
        )
        at_most_processes(num_workers=self.num_workers)
        at_least(-1, bptt_segments=self.bptt_segments)
        for name in ("learning_rate", "grad_norm_clip", "save_minutes"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} {getattr(self, name)}: must be above 0")
        if not 0 <= self.lr_end_factor <= 1:
            raise UserError(f"--lr_end_factor {self.lr_end_factor}: must be between 0 and 1")
        if not 0 <= self.action_noise <= 1:
            raise UserError(f"--action_noise {self.action_noise}: must be between 0 and 1")
        for name in ("beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 0 and below 1")


# Of `TrainOptions`: what the published training does otherwise, in every environment.
PUBLISHED_TRAINING: dict[str, Any] = {
    "bptt_segments": 0,
    "window_state": "initial",
    "burn_in": 0,
    "weight_decay_on": "all",
    "initialisation": "published",
    "action_noise": 0.0,
    "calibrate": False,
    "precision": "32",
}


@dataclass(frozen=True)
class CurriculumOptions:
    """Whether training begins with short trajectories."""

    # false: all lengths from the start; true: stages of ever more segments, --epochs each; adaptive: the next stage
    # when the deciding steps of --streak batches in a row are all right, and annealing at the end
    curr: Literal["false", "true", "adaptive"] = "false"
    # With --curr adaptive, batches in a row that solve a stage; `all_stages_solved` in eval/final.json says whether all
    # stages ended so, and nothing of how well the trained model plays
    streak: int = 10
    # With --curr adaptive, a stage that is not solved ends after this many batches
    stage_batches: int = 1000
    # Batches over which --curr adaptive anneals the learning rate to zero
    anneal_batches: int = 150

    def validate(self) -> None:
        """Raise `UserError` for a value out of range."""
        at_least(1, streak=self.streak, stage_batches=self.stage_batches, anneal_batches=self.anneal_batches)


@dataclass(frozen=True)
class PlayOptions:
    """What an evaluation asks of the agent and its environment, in training and afterwards alike.

    An environment adds flags of its own, such as sizes or the scenario that is played. The defaults are those of the
    published evaluation, which a checkpoint gets that no run recorded anything of.
    """

    # Ask for the return again whenever K steps have passed, as if nothing had been earned
    reset_target: Boolean = False
    # Take the most probable action; false: draw from the predicted distribution. Continuous actions are never drawn
    use_argmax: Boolean = changeable(False)
    # DT and DTXL: steps that leave a full window at once when acting; 1 is the published protocol, more is faster
    slide: int = changeable(1)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, slide=self.slide)


@dataclass(frozen=True)
class TaskOptions(PlayOptions):
    """When and how the agent is evaluated in training."""

    # Return that the agent is asked for
    target_return: float | None = 1.0
    # Evaluate in the environment at checkpoints
    online_inference: Boolean = True
    # Evaluate in the environment at the end
    last_inference: Boolean = changeable(True)
    # Episodes of an evaluation, of every case
    eval_episodes: int = changeable(100)


@dataclass(frozen=True)
class SegmentOptions(TaskOptions):
    """How trajectories are cut into segments, and when and how the agent is evaluated."""

    # Steps of a segment (K)
    context_length: int = 30
    # Segments of a trajectory (N)
    segments: int = 3

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        at_least(1, context_length=self.context_length, segments=self.segments)
        at_most(MAX_STEPS, context_length=self.context_length, segments=self.segments)


@dataclass(frozen=True)
class RunOptions:
    """Where it runs and what is kept."""

    # First seed; every seed is a run of its own
    start_seed: int = changeable(1)
    # Last seed
    end_seed: int = changeable(10)
    # One run, of this seed, instead of those from --start_seed to --end_seed
    seed: int | None = None
    # Prefix of the run's name
    text: str = changeable("")
    # Folder for the runs, inside the environment's checkpoint folder
    ckpt_folder: str = changeable("ckpt")
    # Another folder for the runs, instead of the environment's
    output_dir: Path | None = changeable(None)
    # no; auto: continue an interrupted run if there is one, else start; or the path of a run or checkpoint to continue
    resume: str = changeable("no")
    # Delete a run of the same name and start again
    overwrite: Boolean = changeable(False)
    # auto (a GPU if there is one), cpu, cuda, cuda:1 (or 1), ...
    device: str = changeable("auto")
    # auto: online if wandb_config.yaml or WANDB_API_KEY holds a key, else off
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    # Project in wandb
    wandb_project: str = "RATE"

    def validate(self) -> None:
        """Raise `UserError` for impossible seeds, or a folder outside the one for runs."""
        for name in ("text", "ckpt_folder", "wandb_project"):
            value = getattr(self, name)
            if redact(value) != value:
                raise UserError(
                    f"--{name} holds a wandb key, which would be written into names; keys belong in "
                    "wandb_config.yaml or WANDB_API_KEY"
                )
        if not self.resume.strip():
            raise UserError("--resume '': give no, auto, or the path of a run or checkpoint")
        folder = Path(self.ckpt_folder)
        if folder.is_absolute() or ".." in folder.parts:
            raise UserError(f"--ckpt_folder {self.ckpt_folder}: give a plain folder name, or --output_dir")
        at_least(0, seed=self.seed, start_seed=self.start_seed)
        at_most(MAX_SEED, seed=self.seed, end_seed=self.end_seed)
        if self.end_seed < self.start_seed:
            raise UserError(f"--end_seed {self.end_seed}: must not be below --start_seed {self.start_seed}")
        if len(self.seeds) > MAX_SEEDS:
            raise UserError(f"--end_seed {self.end_seed}: at most {MAX_SEEDS} seeds in one command")

    def recorded(self, flags: dict[str, Any]) -> dict[str, Any]:
        """What a run keeps of the flags: not how this command treats a run that is there already."""
        return {name: value for name, value in flags.items() if name not in ("resume", "overwrite")}

    @property
    def seeds(self) -> range:
        """The one seed, or those from first to last, both included."""
        if self.seed is not None:
            return range(self.seed, self.seed + 1)
        return range(self.start_seed, self.end_seed + 1)


def check_window_starts(train: TrainOptions, model: AgentConfig, *, steps: int | None, pad: str = "right") -> None:
    """Raise `UserError` for --window_state or --burn_in where they make no sense; before any data is made.

    Args:
        steps: of a window; None: every window is a whole episode.
        pad: which side of windows is padded.
    """
    typed = f"--burn_in {train.burn_in}" if train.burn_in else f"--window_state {train.window_state}"
    if steps is None and (train.burn_in or train.window_state == "stored"):
        raise UserError(
            f"{typed}: trajectories are whole episodes here, and begin with the initial state; leave it out"
        )
    if steps is not None and train.burn_in >= steps:
        raise UserError(
            f"{typed}: leaves nothing to learn of windows of {steps} steps (--segments times --context_length); give "
            f"at most {steps - 1}"
        )
    if train.window_state == "initial":
        return
    if pad == "left":
        raise UserError("--window_state stored: --pad left pads the steps that states are kept at; use --pad right")
    with torch.device("meta"):
        memory = MEMORIES[model.memory].memory(model.sizes)
    if not memory.has_memory:
        raise UserError("--window_state stored: this --model_mode hands no state on; leave it out")


@dataclass(frozen=True)
class ExperimentConfig:
    """All flags of a train script; an environment adds those of its data, and of its own tasks."""

    # Whether every window that is trained on is a whole episode
    whole_episodes: ClassVar[bool] = False

    model: ModelOptions = field(default_factory=ModelOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def validate(self) -> None:
        """Raise a UserError for sizes of no model, or windows that cannot begin as asked."""
        steps = None if self.whole_episodes else self.segments * self.context_length
        check_window_starts(self.train, self.agent_config(), steps=steps, pad=self.pad)

    @property
    def pad(self) -> str:
        """Which side of windows is padded, "left" or "right"."""
        return "right"

    @property
    def context_length(self) -> int:
        """K: steps of a segment."""
        assert isinstance(self.task, SegmentOptions), "a task without segments says here how long they are"
        return self.task.context_length

    @property
    def segments(self) -> int:
        """N: segments of the longest trajectories that are trained on."""
        assert isinstance(self.task, SegmentOptions), "a task without segments says here how many they are"
        return self.task.segments

    def agent_config(self) -> AgentConfig:
        """Sizes of the model; validated."""
        return self.model.agent_config(context_length=self.context_length, segments=self.segments)
