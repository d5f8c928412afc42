"""Flags of every train script. Environments add their own groups."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import torch

from RATE_model.agent import AgentConfig
from RATE_model.cli.limits import (
    MAX_SEED,
    MAX_SIZE,
    Count,
    Natural,
    Positive,
    Probability,
    Range,
    Ranged,
    Return,
    Share,
    Steps,
    at_least,
    at_most,
    at_most_processes,
)
from RATE_model.cli.options import Boolean, changeable, heading
from RATE_model.errors import UserError
from RATE_model.memories import MEMORIES, MODES
from RATE_model.memories.budget import BUDGETS, width_for
from RATE_model.memories.contract import Memory, MemoryConfig
from RATE_model.objectives.auxiliary import WEIGHTS, check_objectives
from RATE_model.objectives.privileged import check_infos, named
from RATE_model.system.precision import Precision
from RATE_model.system.secrets import redact

if TYPE_CHECKING:
    ModelMode = str
    Budget = str
else:
    ModelMode = Literal[*MODES]  # type checkers cannot evaluate this
    Budget = Literal["none", *BUDGETS]

Model = TypeVar("Model")

# Flags that only concern one command on one machine. They do not affect results, and checkpoints do not record them.
COMMAND_FLAGS = frozenset(
    {"output_dir", "data_dir", "data_path", "text", "ckpt_folder"}  # where the run is
    | {"seed", "start_seed", "end_seed", "device", "num_workers", "save_minutes", "memory_gib"}
    | {"wandb_mode", "wandb_project"}
)

# Flags whose value may be larger when a run is resumed.
MAY_GROW = frozenset({"epochs"})

# Flags that help if training diverges. A run may be resumed under another name with other values of them.
STABILISERS = frozenset({"learning_rate", "warmup_steps", "warmup_tokens", "precision", "grad_norm_clip"})

# All seeds of a command are checked before the first is trained.
MAX_SEEDS = 10_000


# Flags of acting that do not apply to every agent.
ACTING_FLAGS = frozenset({"slide", "target_return", "reset_target"})


def check_acting_flags(typed: Set[str], memory: type[Memory], *, conditioned: bool, agent: str) -> None:
    """Raise a `UserError` for a typed flag among `ACTING_FLAGS` that does not apply to this agent.

    Args:
        typed: the names of all flags on the command line.
        memory, conditioned: the agent's memory, and whether it sees returns.
        agent: the agent's name in the message.
    """
    if "slide" in typed and not memory.can_slide:
        raise UserError(f"--slide: {agent} does not act on a sliding window; leave it out")
    for name in sorted(typed & (ACTING_FLAGS - {"slide"})):
        if not conditioned:
            raise UserError(f"--{name}: {agent} is not conditioned on returns (--condition none); leave it out")


def group_of(memory: str) -> str:
    """The name of a memory's flag group in `ModelOptions`. Memories may share a group."""
    return MEMORIES[memory].options.__name__.removesuffix("Options").lower()


def _names(options: type) -> set[str]:
    return {field.name for field in fields(options)}


def _with_flags_of_memories(cls: type[Model]) -> type[Model]:
    """Add one group of flags per memory. A group's heading in --help lists the modes it applies to."""
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
        # tyro reads help texts from source comments, so the new class must be found in this module.
        namespace={"__module__": cls.__module__, "__doc__": cls.__doc__},
    )


@_with_flags_of_memories
@dataclass(frozen=True)
class ModelOptions:
    """Which memory to use, and its common settings. Flags of a single memory are listed below, under its modes."""

    # RATE or an ablation of it: RMT (memory tokens), TrXL (cached hidden states), DT (Decision Transformer, one
    # segment), DTXL (DT with a cache when acting), RATEM (RATE without cache), RATE_wo_nmt (TrXL). Or another memory;
    # docs/memories has a page on each. D before a name: return, observation and action enter one by one. BC- before a
    # name: behaviour cloning, without returns
    model_mode: ModelMode = "RATE"
    # What the agent is conditioned on. rtg: the return-to-go; none: nothing (behaviour cloning); auto: the mode's
    # default
    condition: Literal["auto", "rtg", "none"] = "auto"
    # Width of the embedded steps and of the model
    d_model: int = 64
    # Target number of parameters of the memory, without encoders and head. Chooses the --d_model that comes within a
    # tenth of it; none = use --d_model
    budget: Budget = "none"
    # Dropout of embeddings, and inside and after the memory
    dropout: float = 0.05

    @property
    def memory(self) -> str:
        """The name of the mode's memory."""
        return MODES[self.model_mode].memory

    def memory_options(self) -> Any:
        """The flags of the mode's memory, including values fixed by the mode."""
        return replace(getattr(self, group_of(self.memory)), **MODES[self.model_mode].fixed)

    def check_typed(self, typed: Set[str]) -> None:
        """Raise a `UserError` for a typed flag that does not apply to the mode.

        Flags in YAML files are not checked: one file serves several modes.
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
                    f"--{name} is a flag of {' and '.join(owners)}; --model_mode {self.model_mode} does not use it: "
                    f"leave it out, or choose one of {', '.join(modes)}"
                )
            given = getattr(getattr(self, group_of(self.memory)), name, None)
            if name in mode.fixed and given != mode.fixed[name]:
                raise UserError(
                    f"--{name} {given}: --model_mode {self.model_mode} is {self.memory} with {mode.fixed[name]!r}; "
                    f"leave it out, or use --model_mode {self.memory}"
                )
        getattr(self, group_of(self.memory)).check_mode(self.model_mode, typed)
        if "dropout" in typed and self.dropout and "dropout" not in _names(MEMORIES[self.memory].config):
            raise UserError(f"--dropout {self.dropout}: --model_mode {self.model_mode} has no dropout; leave it out")
        memory, named = MEMORIES[self.memory].memory, f"--model_mode {self.model_mode}"
        check_acting_flags(typed, memory, conditioned=self.conditioned, agent=named)

    @property
    def conditioned(self) -> bool:
        """Whether the agent sees returns-to-go."""
        return "rtg" == (MODES[self.model_mode].condition if self.condition == "auto" else self.condition)

    @property
    def name_parts(self) -> tuple[str, ...]:
        """The parts of a run's name that describe the model."""
        arch = getattr(self.memory_options(), "arch_mode", None)
        condition = () if self.condition == "auto" else ("condition", self.condition)
        return (*(("arch_mode", arch) if arch else ()), self.model_mode, *condition)

    def agent_config(self, *, context_length: int, segments: int) -> AgentConfig:
        """The validated agent configuration for trajectories of `segments` segments of `context_length` steps."""
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
    """The sizes that meet `--budget`."""

    def sized(d_model: int) -> MemoryConfig:
        return options._sizes(d_model, context_length, segments)

    memory = MEMORIES[options.memory].memory
    return sized(width_for(options.budget, options.model_mode, memory, sized))


@dataclass(frozen=True)
class ImageOptions:
    """Image encoder."""

    # Channels of the three convolutions. Fewer are faster
    conv_channels: tuple[int, ...] = (32, 64, 64)

    def validate(self) -> None:
        """Raise a UserError unless there are three numbers in range."""
        if len(self.conv_channels) != 3:
            raise UserError(f"--conv_channels {' '.join(map(str, self.conv_channels))}: give three numbers")
        at_least(1, conv_channels=min(self.conv_channels))
        at_most(MAX_SIZE, conv_channels=max(self.conv_channels))


@dataclass(frozen=True)
class TrainOptions(Ranged):
    """Optimisation, checkpoints and logging."""

    # Passes over the training data, per curriculum stage (an adaptive curriculum counts batches instead)
    epochs: Count = 50
    # Batches per epoch, resampled every epoch; none = enough to show every trajectory once
    epoch_batches: Count | None = None
    # Trajectories per batch
    batch_size: Count = 64
    # Segments that gradients flow back through. Each optimizer step takes a window of bptt_segments + 1 segments. -1 =
    # the whole trajectory; 0 = no gradient through memory, one step per segment (published)
    bptt_segments: Annotated[int, Range(-1)] = -1
    # State at the start of a training window in the middle of an episode. initial: the initial memory; stored: the
    # state of an earlier pass over the episode at that step, if any (R2D2, Kapturowski et al. 2019)
    window_state: Literal["initial", "stored"] = "initial"
    # First steps without loss or gradient in a window that starts in the middle of an episode (R2D2's burn-in). RATE
    # stops gradients only at whole segments; the remaining steps just have no loss. Applies to validation too
    burn_in: Natural = 0
    # Peak learning rate (AdamW)
    learning_rate: Positive = 3e-4
    # Optimizer steps of linear warm-up
    warmup_steps: Natural = 100
    # Environment steps of linear warm-up; 0 = use --warmup_steps
    warmup_tokens: Natural = 0
    # Decay after the warm-up. Published: late_linear (linear, starting at the first epoch after the warm-up; meant for
    # one optimizer step per segment) and rising_cosine (counts environment steps; rises again after --final_tokens)
    lr_schedule: Literal["linear", "cosine", "constant", "late_linear", "rising_cosine"] = "linear"
    # Environment steps at which the decay ends; none = the end of training. --curr adaptive has its own decay
    final_tokens: Count | None = None
    # Final learning rate, as a fraction of the peak
    lr_end_factor: Probability = 0.1
    # Decay rate of AdamW's average of gradients
    beta_1: Share = 0.9
    # Decay rate of AdamW's average of squared gradients
    beta_2: Share = 0.95
    # Weight decay
    weight_decay: Annotated[float, Range(0)] = 0.1
    # Parameters with weight decay: the matrices of linear layers and convolutions, or all (published)
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    # Initial weights. scaled: image encoders preserve the scale of their input and memory tokens differ; published:
    # PyTorch defaults and identical memory tokens
    initialisation: Literal["scaled", "published"] = "scaled"
    # Start with the weights of this run (its newest checkpoint) or checkpoint instead of random ones: fine-tuning, or
    # the next round of DAgger. The optimizer, the schedule and auxiliary objectives start from scratch
    init_from: Path | None = None
    # Clip the gradient at this norm
    grad_norm_clip: Positive = 1.0
    # Split each batch into this many parts to save memory; the gradient is the same
    accumulate: Count = 1
    # Share of past actions replaced by random ones in training, against a model that copies its past actions instead of
    # looking at the observation; 0 = none (published)
    action_noise: Probability = 0.0
    # Auxiliary objectives of the hidden states, in training only. next_latent: the encoded next observation; return:
    # the return-to-go; infos/NAME: an array of the data, floats by squared error and integers by cross-entropy
    aux: tuple[str, ...] = ()
    # Weights of the auxiliary losses; the action loss has weight 1. One for all, or one each
    aux_weight: tuple[float, ...] = WEIGHTS
    # Arrays of the data, infos/NAME, shown to the model with every observation. Such an oracle is not evaluated; its
    # validation loss shows what a model of this size reaches when it need not remember them. It can be a --driver
    oracle: tuple[str, ...] = ()
    # Data-dependent initialisation of image encoders. If an observation stacks several frames, half of the first
    # filters start motion-sensitive
    calibrate: Boolean = False
    # 32: float32; bf16: products in bfloat16; auto: bfloat16 if the device has hardware for it
    precision: Precision = "32"
    # Compile the model; on a GPU also capture training and acting as CUDA graphs. Pays off in long runs
    compile: Boolean = False
    # How the RATE family computes attention in training. auto: by device and size; shared: everywhere; blocks: CPUs
    # only; whole: for GPUs; fused: for GPUs and long segments. Results differ by rounding; see docs/speed.md
    attention: Literal["auto", "shared", "blocks", "whole", "fused"] = changeable("auto")
    # Data loading processes; 0 = none, best for small data
    num_workers: Natural = changeable(0)
    # Evaluate and save a checkpoint after epoch 1 and every N epochs
    ckpt_epoch: Count = 10
    # Also evaluate and save a checkpoint every N batches within an epoch; none = only after epochs
    ckpt_batches: Count | None = None
    # Save a checkpoint at least every N minutes
    save_minutes: Positive = changeable(10.0)
    # Average logged metrics over this many batches
    log_every: Count = 10

    def __post_init__(self) -> None:
        for name in ("aux", "oracle"):  # a,b and a b are the same
            object.__setattr__(self, name, named(getattr(self, name)))

    def check_typed(self, typed: Set[str]) -> None:
        """Raise a `UserError` for a typed flag without effect on the learning rate or the first weights."""
        for name, asked in {"initialisation": True, "calibrate": self.calibrate}.items():
            if name in typed and asked and self.init_from is not None:
                raise UserError(
                    f"--{name} {str(getattr(self, name)).lower()}: --init_from {self.init_from} gives all weights; "
                    "leave one of them out"
                )
        for name in _UNUSED.get(self.lr_schedule, ()):
            if name in typed and (value := getattr(self, name)) is not None:
                raise UserError(
                    f"--{name} {value}: --lr_schedule {self.lr_schedule} does not use it; leave it out, or choose "
                    "another schedule"
                )
        if "warmup_steps" in typed and self.warmup_steps and self.warmup_tokens and self.lr_schedule != "late_linear":
            raise UserError(
                f"--warmup_steps {self.warmup_steps}: --warmup_tokens {self.warmup_tokens} takes its place; leave it "
                "out, or set --warmup_tokens to 0"
            )

    def validate(self) -> None:
        """Raise `UserError` for values out of range."""
        check_objectives(self.aux, self.aux_weight)
        check_infos(self.oracle, flag="oracle")
        super().validate()
        at_most_processes(num_workers=self.num_workers)


# Flags that a schedule does not use.
_UNUSED = {"constant": ("final_tokens", "lr_end_factor"), "late_linear": ("final_tokens", "warmup_tokens")}

# Values of `TrainOptions` that the published training uses in every environment.
PUBLISHED_TRAINING: dict[str, Any] = {
    "bptt_segments": 0,
    "window_state": "initial",
    "burn_in": 0,
    "weight_decay_on": "all",
    "initialisation": "published",
    "init_from": None,
    "action_noise": 0.0,
    "aux": (),
    "oracle": (),
    "calibrate": False,
    "precision": "32",
}


@dataclass(frozen=True)
class CurriculumOptions(Ranged):
    """Whether training starts with short trajectories."""

    # false: all lengths from the start; true: one more segment per stage, --epochs each; adaptive: start the next stage
    # when the deciding steps of --streak batches in a row are all right, and anneal the learning rate at the end
    curr: Literal["false", "true", "adaptive"] = "false"
    # With --curr adaptive: batches in a row that must be right to solve a stage. `all_stages_solved` in eval/final.json
    # records whether every stage was solved, not how well the trained model plays
    streak: Count = 10
    # With --curr adaptive: end an unsolved stage after this many batches
    stage_batches: Count = 1000
    # With --curr adaptive: after this many batches in all, skip the remaining stages and anneal; none = no limit
    curriculum_batches: Count | None = None
    # Batches over which --curr adaptive anneals the learning rate to zero
    anneal_batches: Count = 150


@dataclass(frozen=True)
class PlayOptions(Ranged):
    """How the agent is evaluated, during and after training.

    Environments add their own flags, such as sizes or scenarios. The defaults are the published evaluation, and apply
    to checkpoints without a recorded run.
    """

    # Reset the return-to-go to the target return every K steps
    reset_target: Boolean = False
    # Take the most probable action; false: sample from the predicted distribution. Continuous actions are never sampled
    use_argmax: Boolean = changeable(False)
    # DT and DTXL: steps by which a full window slides when acting. 1 is the published protocol; more is faster
    slide: Count = changeable(1)


@dataclass(frozen=True)
class TaskOptions(PlayOptions):
    """Evaluation during training."""

    # Target return
    target_return: Return | None = 1.0
    # Evaluate in the environment at checkpoints
    online_inference: Boolean = True
    # Evaluate in the environment at the end
    last_inference: Boolean = changeable(True)
    # Episodes per evaluation and case
    eval_episodes: int = changeable(100)


@dataclass(frozen=True)
class SegmentOptions(TaskOptions):
    """Segments of trajectories, and evaluation during training."""

    # Steps per segment (K)
    context_length: Steps = 30
    # Segments per trajectory (N)
    segments: Steps = 3


@dataclass(frozen=True)
class RunOptions:
    """The run's seeds, name, place and device."""

    # First seed. Each seed is a separate run
    start_seed: int = changeable(1)
    # Last seed
    end_seed: int = changeable(10)
    # Run only this seed, instead of --start_seed to --end_seed
    seed: int | None = None
    # Prefix of the run's name
    text: str = changeable("")
    # Folder for runs, inside the environment's checkpoint folder
    ckpt_folder: str = changeable("ckpt")
    # Folder for runs, instead of the environment's checkpoint folder
    output_dir: Path | None = changeable(None)
    # no; auto: continue an interrupted run if there is one, else start; or the path of a run or checkpoint to continue
    resume: str = changeable("no")
    # Delete an existing run of the same name and start again
    overwrite: Boolean = changeable(False)
    # auto (a GPU if there is one), cpu, cuda, cuda:1 (or 1), ...
    device: str = changeable("auto")
    # auto: online if wandb_config.yaml or WANDB_API_KEY holds a key, else disabled
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    # wandb project
    wandb_project: str = "RATE"

    def validate(self) -> None:
        """Raise `UserError` for invalid seeds, names or folders."""
        for name in ("text", "ckpt_folder", "wandb_project"):
            value = getattr(self, name)
            if redact(value) != value:
                raise UserError(
                    f"--{name} contains a wandb key, which would become part of names; put keys into "
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
        """The flags to record with a run: all except those about an existing run of the same name."""
        return {name: value for name, value in flags.items() if name not in ("resume", "overwrite")}

    @property
    def seeds(self) -> range:
        """The single seed, or all seeds from first to last (inclusive)."""
        if self.seed is not None:
            return range(self.seed, self.seed + 1)
        return range(self.start_seed, self.end_seed + 1)


def check_window_starts(train: TrainOptions, model: AgentConfig, *, steps: int | None, pad: str = "right") -> None:
    """Raise `UserError`, before any data is made, if --window_state or --burn_in do not apply.

    Args:
        steps: length of a window; None: every window is a whole episode.
        pad: the side on which windows are padded.
    """
    typed = f"--burn_in {train.burn_in}" if train.burn_in else f"--window_state {train.window_state}"
    if steps is None and (train.burn_in or train.window_state == "stored"):
        raise UserError(f"{typed}: windows are whole episodes here, which begin with the initial state; leave it out")
    if steps is not None and train.burn_in >= steps:
        raise UserError(
            f"{typed}: covers whole windows of {steps} steps (--segments times --context_length); give "
            f"at most {steps - 1}"
        )
    if train.window_state == "initial":
        return
    if pad == "left":
        raise UserError("--window_state stored: does not work with --pad left; use --pad right")
    with torch.device("meta"):
        memory = MEMORIES[model.memory].memory(model.sizes)
    if not memory.has_memory:
        raise UserError("--window_state stored: this --model_mode passes no state on; leave it out")


@dataclass(frozen=True)
class ExperimentConfig:
    """All flags of a train script. An environment adds flags for its data and tasks."""

    # Whether every training window is a whole episode
    whole_episodes: ClassVar[bool] = False

    model: ModelOptions = field(default_factory=ModelOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def check_typed(self, typed: Set[str]) -> None:
        """Raise a `UserError` for a typed form of attention, or compilation, that the mode does not have."""
        used: dict[str, tuple[bool, Callable[[type[Memory]], bool]]] = {
            "attention": (self.train.attention != "auto", lambda memory: memory.has_forms),
            "compile": (self.train.compile, lambda memory: memory.compile is not Memory.compile),
        }
        for name, (asked, applies) in used.items():
            if name in typed and asked and not applies(MEMORIES[self.model.memory].memory):
                having = [mode for mode, entry in MODES.items() if applies(MEMORIES[entry.memory].memory)]
                raise UserError(
                    f"--{name} {str(getattr(self.train, name)).lower()}: --model_mode {self.model.model_mode} does not "
                    f"use it; leave it out, or choose one of {', '.join(having)}"
                )

    def validate(self) -> None:
        """Raise a UserError for invalid model sizes or initial states of windows."""
        steps = None if self.whole_episodes else self.segments * self.context_length
        check_window_starts(self.train, self.agent_config(), steps=steps, pad=self.pad)

    @property
    def pad(self) -> str:
        """The side on which windows are padded, "left" or "right"."""
        return "right"

    @property
    def context_length(self) -> int:
        """K: steps per segment."""
        assert isinstance(self.task, SegmentOptions), "a task without segments must override this"
        return self.task.context_length

    @property
    def segments(self) -> int:
        """N: segments of the longest training trajectories."""
        assert isinstance(self.task, SegmentOptions), "a task without segments must override this"
        return self.task.segments

    def agent_config(self) -> AgentConfig:
        """The validated configuration of the agent."""
        return self.model.agent_config(context_length=self.context_length, segments=self.segments)


@dataclass(frozen=True)
class ImageExperimentConfig(ExperimentConfig):
    """All flags of a train script for images."""

    image: ImageOptions = field(default_factory=ImageOptions)
