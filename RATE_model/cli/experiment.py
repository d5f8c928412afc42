"""The common part of every train script: check a run, plan its schedule, train it.

A script's configuration is a dataclass whose groups `train` and `run` are `TrainOptions` and `RunOptions`.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.aliases import canonical_flags
from RATE_model.cli.options import changeable_flags, load_yaml, to_flat_dict
from RATE_model.cli.settings import (
    COMMAND_FLAGS,
    MAY_GROW,
    STABILISERS,
    CurriculumOptions,
    ModelOptions,
    RunOptions,
    TrainOptions,
)
from RATE_model.data.batch import BatchTransform
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.loader import EpochSampler
from RATE_model.errors import UserError
from RATE_model.loading import load_for
from RATE_model.memories import MEMORIES
from RATE_model.objectives.auxiliary import RETURN, Auxiliary, check_transform
from RATE_model.objectives.privileged import Privileged, infos_of, with_infos
from RATE_model.spec import EnvironmentSpec
from RATE_model.system import distributed
from RATE_model.system.interrupts import Interrupts
from RATE_model.system.precision import pick_device
from RATE_model.training.checkpoints import resolve_checkpoint
from RATE_model.training.curriculum import AdaptiveStages, FixedStages
from RATE_model.training.loop import Evaluate, Fit, StageData, load_to_resume
from RATE_model.training.optimization import RisingCosine, Schedule, decay_over, initialise_as_published, late_linear
from RATE_model.training.runs import Run, check_run, clean_name, open_run, run_name, short_hash
from RATE_model.training.stored_states import StoredStates
from RATE_model.training.tracking import NoTracker, Tracker
from RATE_model.training.trainer import (
    BatchMetrics,
    Trainer,
    TrainingDiverged,
    optimizer_steps,
    variants_of,
)

_CALIBRATION_IMAGES = 128


class Config(Protocol):
    """The part of a script's configuration that these functions use."""

    @property
    def model(self) -> ModelOptions:
        """The model."""
        ...

    @property
    def train(self) -> TrainOptions:
        """The optimisation."""
        ...

    @property
    def run(self) -> RunOptions:
        """The run."""
        ...


# Values, in every environment, for runs older than these flags.
BEFORE: dict[str, Any] = {
    # Flags of memories that did not exist yet.
    **{name: value for entry in MEMORIES.values() for name, value in to_flat_dict(entry.options()).items()},
    "budget": "none",
    "weight_decay_on": "matrices",
    "initialisation": "scaled",
    "window_state": "initial",
    "burn_in": 0,
    "reset_target": False,
    "aux": [],
    "aux_weight": [0.5],
    "oracle": [],
    "driver": None,
    "add_data": [],
    "init_from": None,
}


def run_directory(
    config: Config,
    seed: int,
    *,
    usual: Config,
    checkpoints: Path,
    name: Sequence[object],
    named: Collection[str] = (),
    before: Mapping[str, Any] | None = None,
) -> Path:
    """The directory of a seed's run. Equal flags give the same directory, different flags different ones.

    Flags that are not in the name and differ from config.yaml are hashed into it. Runs of earlier versions, whose
    hash is missing or different, are found by the flags in their config.yaml.

    Args:
        usual: the default configuration.
        checkpoints: the environment's checkpoint folder.
        name: parts of the name between --text and the seed.
        named: the flags in these parts, besides those of the model.
        before: as for `check`.
    """
    run, flags, defaults = config.run, to_flat_dict(config), to_flat_dict(usual)
    folder = (run.output_dir or checkpoints) / run.ckpt_folder
    shown = {*named, "model_mode", "condition", *({"arch_mode"} & set(name))}
    silent = {*changeable_flags(config), *MAY_GROW, "seed", *shown}

    def mark(flags: Mapping[str, Any]) -> str:
        others = {flag: flags.get(flag, value) for flag, value in defaults.items() if flag not in silent}
        others = {flag: value for flag, value in others.items() if not flag.startswith("wandb_")}
        differing = {flag: value for flag, value in others.items() if value != defaults[flag]}
        if clean_name(run.text) != run.text:  # "a b" and "a-b" give the same name
            differing["text"] = run.text
        return short_hash(differing) if differing else ""

    before = BEFORE | dict(before or {})
    marked = folder / run_name(run.text, *name, mark(flags), "RUN", seed)
    beginning = run_name(run.text, *name)
    with suppress(OSError):  # a name that is too long is reported later
        if not marked.exists():
            for other in sorted(folder.glob(f"{beginning}*_RUN_{seed}")):
                if re.fullmatch(rf"(_[0-9a-f]{{8}})?_RUN_{seed}", other.name[len(beginning) :]):
                    with suppress(UserError):  # missing or damaged: flags unknown
                        if mark({**before, **canonical_flags(load_yaml(other / "config.yaml"))}) == mark(flags):
                            return other
    return marked


def check_calibration(train: TrainOptions, spec: EnvironmentSpec) -> None:
    """Raise `UserError`, before any data is made, if there is no image encoder to calibrate."""
    if train.calibrate and not spec.is_image:
        raise UserError("--calibrate true: observations are not images; leave it out")


def initial_agent(path: Path, model: AgentConfig, spec: EnvironmentSpec) -> Agent:
    """The agent that `--init_from` names, as the start of a new run. It keeps its normalisation.

    Args:
        path: a run or a checkpoint.
        model, spec: of the new run. Sizes that no weight depends on, such as dropout, may differ.

    Raises:
        UserError: there is no such checkpoint, or its memory, sizes, observations or actions differ.
    """
    try:
        trained = load_for(resolve_checkpoint(path), spec)
    except UserError as error:
        raise UserError(f"--init_from: {error}") from None
    if trained.config.memory != model.memory:
        raise UserError(
            f"--init_from {path}: has the memory {trained.config.memory}, not {model.memory} (--model_mode)"
        )
    network = Agent(model, trained.spec)
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError:
        old, new = asdict(trained.config.sizes), asdict(model.sizes)
        differing = [f"{name} {old[name]} (here {new[name]})" for name in new if old[name] != new[name]]
        raise UserError(
            f"--init_from {path}: its weights do not fit this model; it was trained with {', '.join(differing)}"
        ) from None
    return network


def check_initial(config: Config, run: Run, model: AgentConfig, spec: EnvironmentSpec) -> None:
    """Raise `UserError`, before any data is made, if a new run cannot start with the weights of `--init_from`."""
    if config.train.init_from is not None and run.checkpoint is None:
        initial_agent(config.train.init_from, model, spec)


def _new_agent(train: TrainOptions, run: Run, model: AgentConfig, spec: EnvironmentSpec) -> Agent:
    """The agent to train, with random weights or those of `--init_from`."""
    if train.init_from is None:
        network = Agent(model, spec)
        if train.initialisation == "published":
            initialise_as_published(network)
        return network
    network = initial_agent(run.checkpoint or train.init_from, model, spec)
    if network.spec.oracle != spec.oracle:
        seen = " ".join(f"infos/{kind.name}" for kind in network.spec.oracle) or "none"
        raise UserError(f"--init_from {train.init_from}: was trained with --oracle {seen}; give the same")
    if run.checkpoint is None and distributed.is_first():
        print(f"starting with the weights of {resolve_checkpoint(train.init_from)}", flush=True)
    return network


def _check_windows(
    train: TrainOptions, network: Agent, windows: tuple[WindowDataset, WindowDataset], transform: BatchTransform | None
) -> None:
    """Raise `UserError` if stored states need too much memory, or --burn_in covers all of some windows."""
    if train.window_state == "stored":
        StoredStates(windows[0], network, variants=variants_of(transform))
    if not train.burn_in:
        return
    for data, enough, side in zip(windows, (np.all, np.any), ("training", "validation"), strict=True):
        if not enough(data.begins | (data.windows[:, 2] > train.burn_in)):
            raise UserError(f"--burn_in {train.burn_in}: covers all steps of some {side} windows; give fewer steps")


def _with_privileged(train: TrainOptions, data: StageData, transform: BatchTransform | None) -> StageData:
    """The same windows, with the privileged arrays that --aux and --oracle need.

    Raises:
        UserError: a transform invalidates them; from the returned function: the data lacks them.
    """
    for flag, names in {"aux": train.aux, "oracle": train.oracle}.items():
        check_transform(names, transform, flag=flag)
    wanted = {flag: infos_of(names) for flag, names in {"aux": train.aux, "oracle": train.oracle}.items()}
    if not any(wanted.values()):
        return data

    @lru_cache
    def sides(segments: int) -> tuple[WindowDataset, WindowDataset]:
        training, validation = data(segments)
        for flag, names in wanted.items():
            training, validation = (with_infos(side, names, flag=flag) for side in (training, validation))
        return training, validation

    return sides


def _oracle(train: TrainOptions, data: WindowDataset) -> list[Privileged]:
    """The arrays that an oracle sees, normalised by the training data."""
    return [Privileged.of(name, data.info(name), flag="oracle") for name in infos_of(train.oracle)]


def _auxiliary(train: TrainOptions, network: Agent, data: WindowDataset) -> Auxiliary | None:
    """New auxiliary objectives of a run; None without --aux."""
    if not train.aux:
        return None
    if RETURN in train.aux and network.config.sizes.conditioned:
        print(
            "note: --aux return: this model is shown the return that it is to predict; with --condition none it has to "
            "find it",
            flush=True,
        )
    return Auxiliary.of(train.aux, train.aux_weight, network, data)


def _say_of_rewards(data: WindowDataset) -> None:
    """Print a note if all rewards of the data are equal: returns then carry little information."""
    lowest = min(file.rewards.min() for file in data.files)
    highest = max(file.rewards.max() for file in data.files)
    if lowest == highest:
        print(
            f"note: all rewards are {lowest:g}: returns only depend on the length of a trajectory; "
            '--condition none (in Python: condition="none") leaves them out',
            flush=True,
        )


def check(config: Config, directory: Path, seed: int, *, before: Mapping[str, Any] | None = None) -> Run:
    """The new or resumed run of a seed. Creates nothing; raises UserError if there is a problem.

    `before` are values for runs older than these flags.
    """
    if pick_device(config.run.device).type != "cpu" and config.train.attention == "blocks":
        raise UserError(
            f"--attention blocks with --device {config.run.device}: runs on CPUs only; use auto, whole, fused or shared"
        )
    flags = to_flat_dict(config)
    return check_run(
        directory,
        config=config.run.recorded(flags),
        seed=seed,
        resume=config.run.resume,
        overwrite=config.run.overwrite,
        may_change=changeable_flags(config),
        may_grow=MAY_GROW,
        may_change_elsewhere=STABILISERS,
        # Not all scripts have all flags.
        before={name: value for name, value in (BEFORE | dict(before or {})).items() if name in flags},
    )


@contextmanager
def together(config: Config) -> Iterator[None]:
    """A context in which the processes started by torchrun train together; without torchrun, there is only one.

    Raises:
        UserError: their flags differ, or they outnumber the trajectories in a batch; see `distributed.process_group`.
    """
    with distributed.process_group():
        distributed.check_same(to_flat_dict(config))
        if distributed.size() > config.train.batch_size:
            raise UserError(
                f"--batch_size {config.train.batch_size}: fewer trajectories than the {distributed.size()} "
                "processes that share every batch; start fewer processes, or give a larger batch"
            )
        yield


def plan(
    train: TrainOptions,
    options: CurriculumOptions,
    model: AgentConfig,
    data: StageData,
    segments: Sequence[int],
    segment_steps: int,
    *,
    metric: str = "",
    before: Sequence[tuple[int, int]] = (),
) -> tuple[FixedStages | AdaptiveStages, Schedule | RisingCosine]:
    """The curriculum and its learning rate schedule.

    Args:
        train: `warmup_tokens` and `final_tokens` become optimizer steps by the mean number of environment steps per
            optimizer step.
        options: the curriculum; without one, the last stage is the only one.
        model: its context length determines the optimizer steps per batch.
        data: the windows of a stage; called for all stages.
        segments: numbers of segments of the stages, ascending.
        segment_steps: environment steps per segment.
        metric: a batch metric that is 1 when all deciding steps are right; for an adaptive curriculum.
        before: segments and epochs of earlier stages; an adaptive curriculum ends them by its own measure.
    """
    chosen = [(count, train.epochs) for count in (segments if options.curr != "false" else segments[-1:])]
    stages, epochs = map(list, zip(*before, *chosen, strict=True))
    per_epoch = [_stage_size(train, model, data(count)[0], count * segment_steps) for count in stages]
    steps, tokens = np.array(epochs) @ np.array(per_epoch)
    tokens_per_step = tokens / steps
    warmup = round(train.warmup_tokens / tokens_per_step) if train.warmup_tokens else train.warmup_steps
    if options.curr == "adaptive":
        last = optimizer_steps(train, model.context_length, stages[-1] * segment_steps)
        schedule = Schedule(warmup, None, options.anneal_batches * last, 0.0)
        limits = options.anneal_batches, options.stage_batches, options.curriculum_batches
        return AdaptiveStages(stages, metric, options.streak, *limits), schedule
    if train.lr_schedule == "rising_cosine":
        schedule = RisingCosine(
            train.warmup_tokens or round(train.warmup_steps * tokens_per_step),
            train.final_tokens or round(tokens),
            train.lr_end_factor,
        )
        return FixedStages(stages, epochs), schedule
    if train.lr_schedule == "late_linear":
        batches = [_batches(train, data(count)[0]) for count in stages]
        schedule = late_linear(
            batches,
            epochs,
            steps_per_batch=optimizer_steps(train, model.context_length, stages[0] * segment_steps),
            segments=stages[-1],
            warmup_steps=train.warmup_steps,
            end_factor=train.lr_end_factor,
        )
        return FixedStages(stages, epochs), schedule
    total = round(train.final_tokens / tokens_per_step) if train.final_tokens else round(steps)
    schedule = decay_over(total, warmup_steps=warmup, end_factor=train.lr_end_factor, shape=train.lr_schedule)
    return FixedStages(stages, epochs), schedule


def _stage_size(train: TrainOptions, model: AgentConfig, data: WindowDataset, steps: int) -> tuple[int, float]:
    """Optimizer steps and environment steps of an epoch of windows padded to this many steps."""
    batches = _batches(train, data)
    shown = min(batches * train.batch_size, len(data))
    return batches * optimizer_steps(train, model.context_length, steps), shown * float(data.windows[:, 2].mean())


def _batches(train: TrainOptions, data: WindowDataset) -> int:
    """Batches per epoch."""
    return len(EpochSampler(len(data), train.batch_size, seed=0, max_batches=train.epoch_batches))


def _some_observations(data: WindowDataset, device: torch.device) -> Any:
    """One observation from each of a few windows, spread evenly over the data."""
    numbers = np.linspace(0, len(data) - 1, min(len(data), _CALIBRATION_IMAGES)).astype(int)
    return data.__getitems__(numbers.tolist()).to(device).observations[:, -1:]


def _tracker(config: Config, directory: Path, flat: dict[str, Any]) -> Tracker:
    """The tracker of the run's metrics."""
    if not distributed.is_first():
        return NoTracker()
    return Tracker(
        directory,
        wandb_mode=config.run.wandb_mode,
        project=config.run.wandb_project,
        name=directory.name,
        group=directory.name.rsplit("_RUN_", 1)[0],
        config=flat,
    )


def train_run(
    config: Config,
    run: Run,
    *,
    model: AgentConfig,
    spec: EnvironmentSpec,
    data: StageData,
    curriculum: FixedStages | AdaptiveStages,
    schedule: Schedule | RisingCosine,
    metrics: BatchMetrics | None,
    evaluate: Evaluate,
    finish: Callable[[Agent, dict[str, Any]], None],
    prepare: Callable[[Path], None] = lambda directory: None,
    transform: BatchTransform | None = None,
) -> dict[str, Any]:
    """Train one checked run, from its first batch or from where it was interrupted, through its final evaluation.

    Args:
        config, run: the flags, and the run that `check` returned.
        model, spec: what to train; the initial parameters follow from the run's seed.
        data, curriculum, schedule, metrics, evaluate, transform: see `Fit` and `Trainer`.
        finish: called with the model in eval mode and the result, to draw pictures and print the last line.
        prepare: called with the open run's directory, to write files that checkpoints depend on.

    Returns:
        The content of eval/final.json.

    Raises:
        UserError: before the run is created, for invalid model sizes.
        Interrupted, TrainingDiverged: see `Fit`; also if the last validation loss is not finite.
    """
    device = pick_device(config.run.device)
    data = _with_privileged(config.train, data, transform)
    oracle = _oracle(config.train, data(curriculum.last_stage)[0])
    torch.manual_seed(run.seed)
    network = _new_agent(config.train, run, model, replace(spec, oracle=tuple(each.kind for each in oracle)))
    if config.model.budget != "none":
        count = sum(parameter.numel() for parameter in network.memory.parameters())
        print(
            f"--budget {config.model.budget}: --d_model {model.sizes.d_model}, {count:,} memory parameters",
            flush=True,
        )
    network = network.to(device)
    if config.train.init_from is None:
        if config.train.calibrate:
            network.encoder.calibrate(_some_observations(data(curriculum.segments)[0], device))
        for array, seen in zip(network.encoder.oracle.arrays if oracle else (), oracle, strict=True):
            array.load_state_dict(seen.state_dict())
    auxiliary = _auxiliary(config.train, network, data(curriculum.last_stage)[0])

    _check_windows(config.train, network, data(curriculum.segments), transform)
    if model.sizes.conditioned:
        _say_of_rewards(data(curriculum.segments)[0])

    if run.checkpoint is not None:
        load_to_resume(run.checkpoint, network)
    if not distributed.is_first():  # each process draws its own noise
        torch.manual_seed(distributed.process_seed(run.seed))

    # All problems with flags, data, sizes or the checkpoint have been found by now.
    flat, directory = config.run.recorded(to_flat_dict(config)), run.directory
    with open_run(run, config=flat) as run:
        distributed.run_on_first(lambda: prepare(directory))
        flags = {
            name: value for name, value in load_yaml(directory / "config.yaml").items() if name not in COMMAND_FLAGS
        }
        if run.changed:
            print(f"{directory}: resuming from {run.checkpoint}; {'; '.join(run.changed)}", flush=True)
        trainer = Trainer(
            network,
            config.train,
            schedule,
            metrics=metrics,
            transform=transform,
            auxiliary=auxiliary,
            crash_directory=directory,
        )
        with _tracker(config, directory, flat) as tracker, Interrupts() as interrupts:
            fit = Fit(
                trainer,
                curriculum,
                data,
                run=run,
                tracker=tracker,
                seed=run.seed,
                evaluate=evaluate,
                interrupts=interrupts,
                flags=flags,
            )
            result = fit()
        distributed.run_on_first(lambda: finish(network.eval(), result))
    distributed.run_in_all(interrupts.stop)  # a signal during the last evaluation: do not start another seed
    if not math.isfinite(result["validation_loss"]):
        raise TrainingDiverged(f"{directory}: the final validation loss is not finite, although the weights are")
    return result
