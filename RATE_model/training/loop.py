"""The training loop of every environment: stages, epochs, logging, validation, evaluation, checkpoints, interruption.

A run that is interrupted at any point and resumed passes through the same states as an uninterrupted one: a checkpoint
contains everything that later batches depend on, and is taken between batches.

With several processes each runs this loop (see `system.distributed`). Measurements cover all processes, so they make
the same decisions; process 0 logs and saves.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from RATE_model.acting.rollout import evaluating
from RATE_model.agent import Agent, with_memory_prefix
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.loader import EpochSampler, make_loader
from RATE_model.data.workers import worker_failures
from RATE_model.errors import UserError
from RATE_model.loading import check_weights, unusable
from RATE_model.system import distributed
from RATE_model.system.interrupts import Interrupted, Interrupts, stop_if_asked
from RATE_model.system.progress import progress_bar
from RATE_model.training.checkpoints import find_checkpoint, finish_save, load_checkpoint, save_checkpoint
from RATE_model.training.curriculum import AdaptiveStages, FixedStages
from RATE_model.training.optimization import not_finite
from RATE_model.training.runs import Run
from RATE_model.training.tracking import Tracker
from RATE_model.training.trainer import Trainer, TrainingDiverged

# Segments of a stage -> training and validation windows.
StageData = Callable[[int], tuple[WindowDataset, WindowDataset]]
# (model in eval mode, whether training is over) -> metrics of acting in the environment.
Evaluate = Callable[[Agent, bool], dict[str, float]]

FINAL, BEST = "final", "best"


class Fit:
    """Trains one run from its current position to the end.

    Args:
        trainer: model, optimizer, schedule.
        curriculum: the stages, and when each ends.
        data: segments -> the windows of that stage.
        run: an open run; if it has a checkpoint, training continues there.
        tracker: receives the metrics.
        seed: seed for the order of batches.
        evaluate: called at checkpoints and at the end; must not use torch's global random state.
        interrupts: polled between batches.
        flags: the run's flags, as in its config.yaml; also stored in checkpoints.
    """

    def __init__(
        self,
        trainer: Trainer,
        curriculum: FixedStages | AdaptiveStages,
        data: StageData,
        *,
        run: Run,
        tracker: Tracker,
        seed: int,
        evaluate: Evaluate | None = None,
        interrupts: Interrupts | None = None,
        flags: dict[str, Any] | None = None,
    ) -> None:
        self.trainer, self.curriculum, self.data = trainer, curriculum, data
        self.run, self.tracker, self.seed = run, tracker, seed
        self.evaluate, self.interrupts = evaluate, interrupts
        self.options, self.flags = trainer.options, flags or {}
        # Position: `batch` batches of epoch `epoch` of the current stage are done.
        self.epoch = self.batch = self.epochs_done = 0
        # Training time of earlier starts of the run in seconds, and when this one started.
        self.seconds, self._started = 0.0, time.perf_counter()
        self._best = float("inf")
        self._best_step = -1  # step of the best checkpoint
        # A `_validate_and_save` that a signal interrupted; it is done first when the run continues.
        self._due: dict[str, Any] | None = None
        self._pending: list[dict[str, Tensor]] = []
        self._saved_at = time.monotonic()
        if run.checkpoint is not None:
            self._resume(run.checkpoint)

    def __call__(self) -> dict[str, Any]:
        """Run `_train_to_the_end`; if training diverges, the error says how to continue."""
        try:
            return self._train_to_the_end()
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}. {self._recovery_advice()}") from error

    def _train_to_the_end(self) -> dict[str, Any]:
        """Train to the end; returns the final validation and evaluation results, also written to eval/final.json.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            TrainingDiverged: loss or gradient became NaN or infinite.
        """
        was_finished = self.curriculum.finished and self._due is None  # then its last checkpoint exists
        if self._due is not None and not self.curriculum.finished:
            self._validate_and_save(**self._due)
        while not self.curriculum.finished:
            self._stage()
        self._log(self.curriculum.segments)
        self._check_finite()
        with self._redone_if_interrupted(self.curriculum.segments, FINAL):
            result = self._validate(self.curriculum.segments) | {"optimizer_steps": self.trainer.step}
        if isinstance(self.curriculum, AdaptiveStages):
            result["all_stages_solved"] = self.curriculum.solved
        if not was_finished:
            self._save(best=self._improved(result))
        if self.interrupts is not None:
            distributed.run_in_all(self.interrupts.stop)
        started = time.perf_counter()
        result |= self._evaluate(final=True)
        self.tracker.log(result, self.trainer.step)  # without times: a resumed run writes the same lines
        seconds = {
            "train_seconds": self.seconds + started - self._started,
            "eval_seconds": time.perf_counter() - started,
        }
        result |= {name: round(value, 1) for name, value in seconds.items()}
        self.run.write_evaluation(FINAL, result)
        return result

    def _stage(self) -> None:
        """Train until the stage changes or everything is done."""
        segments = self.curriculum.segments
        training, _ = self.data(segments)
        self.trainer.begin_stage(training)
        options = self.options
        sampler = EpochSampler(
            len(training), options.batch_size, self.seed, key=segments, max_batches=options.epoch_batches
        )
        loader = make_loader(
            training,
            sampler,
            epoch=self.epoch,
            batch=self.batch,
            num_workers=options.num_workers,
            pin_memory=self.trainer.model.device.type == "cuda",
        )
        bar = progress_bar(
            desc=f"{segments} segment{'s' * (segments > 1)}",
            unit="batch",
            initial=self.epoch * len(sampler) + self.batch,
            total=self.curriculum.epochs_of_stage and self.curriculum.epochs_of_stage * len(sampler),
        )
        with worker_failures(), closing(loader), bar:
            for epoch, number, batch in loader:
                self._train(batch)
                if len(self._pending) >= self.options.log_every:
                    bar.set_postfix_str(f"loss {self._log(segments):.3g}", refresh=False)
                bar.update()
                ended = number + 1 == len(sampler)
                self.epoch, self.batch = (epoch + 1, 0) if ended else (epoch, number + 1)
                if ended:
                    self.epochs_done += 1
                    self.curriculum.after_epoch()
                # Before a checkpoint: it must not record the next stage at the position where this one ended.
                if changed := self.curriculum.segments != segments:
                    self._log(segments)
                    self.epoch = self.batch = 0
                    self.trainer.end_stage()
                if ended:
                    self._end_epoch(segments)
                elif (
                    not (changed or self.curriculum.finished)
                    and self.options.ckpt_batches
                    and self.batch % self.options.ckpt_batches == 0
                ):
                    self._validate_and_save(segments, f"epoch_{self.epochs_done + 1:04d}_batch_{self.batch:06d}")
                if changed:
                    self._best = float("inf")  # losses of different stages are not comparable
                if changed or self.curriculum.finished:
                    return
                self._save_or_stop()

    def _train(self, batch: Any) -> None:
        """Train on one batch."""
        position = {"segments": self.curriculum.segments, "epoch": self.epoch, "batch": self.batch, "seed": self.seed}
        self.trainer.position = position
        metrics = self.trainer.train_batch(batch)
        self.curriculum.after_batch(metrics)
        if self.curriculum.annealing:
            self.trainer.schedule.start_decay(self.trainer.step)
        self._pending.append(metrics)

    def _end_epoch(self, segments: int) -> None:
        """After the last batch of an epoch: if due, validate, evaluate and save."""
        if self.epochs_done != 1 and self.epochs_done % self.options.ckpt_epoch:
            return
        if self.curriculum.finished:
            return  # done at the end of training
        self._validate_and_save(segments, f"epoch_{self.epochs_done:04d}")

    def _validate_and_save(self, segments: int, name: str) -> None:
        """Validate, evaluate and save."""
        self._log(segments)
        self._check_finite()
        with self._redone_if_interrupted(segments, name):
            result = self._validate(segments) | self._evaluate(final=False)
        if not math.isfinite(result["validation_loss"]):
            print(f"warning: the validation loss is not finite at step {self.trainer.step}", file=sys.stderr)
        self.tracker.log(result, self.trainer.step)
        self.run.write_evaluation(name, result)
        improved = self._improved(result)
        if self.curriculum.segments != segments:
            self._best = float("inf")
        self._save(best=improved)

    @contextmanager
    def _redone_if_interrupted(self, segments: int, name: str) -> Iterator[None]:
        """If a signal interrupts the work inside, redo it first when the run continues: its checkpoint is missing."""
        try:
            yield
        except Interrupted:
            self._due = {"segments": segments, "name": name}
            self._save()
            raise
        self._due = None

    def _improved(self, result: dict[str, float]) -> bool:
        """Whether this validation loss is the lowest of the stage so far."""
        best, self._best = self._best, min(self._best, result["validation_loss"])
        return self._best < best

    def _save_or_stop(self) -> None:
        """Between batches: save if it is time, and stop if a signal asked to."""
        name = distributed.signal_in_any(None if self.interrupts is None else self.interrupts.requested)
        late = time.monotonic() - self._saved_at > 60 * self.options.save_minutes
        if name is not None or distributed.any_process(late):
            self._save()
        if name is not None:
            raise Interrupted(name)

    def _log(self, segments: int) -> float:
        """Log averages over the batches since the last line, all of one stage; returns the mean loss, NaN without
        batches.

        Training reads from the device only here, apart from an adaptive curriculum, which reads one number per batch.
        """
        if not self._pending:
            return math.nan
        means = {name: float(torch.stack([m[name].float() for m in self._pending]).mean()) for name in self._pending[0]}
        self.tracker.log(means | {"segments_count": segments, "epoch": self.epochs_done}, self.trainer.step)
        self._pending.clear()
        return means["train_loss"]

    def _validate(self, segments: int) -> dict[str, float]:
        """Loss and metrics on the validation windows of a stage."""
        _, validation = self.data(segments)
        sampler = EpochSampler(len(validation), self.options.batch_size, self.seed, shuffle=False)
        loader = make_loader(validation, sampler, end_epoch=1)
        with evaluating(self.trainer.model):
            return self.trainer.validate(_until_interrupted(batch for _, _, batch in loader))

    def _evaluate(self, *, final: bool) -> dict[str, float]:
        if (evaluate := self.evaluate) is None:
            return {}
        with evaluating(self.trainer.model):
            return distributed.run_in_all(lambda: evaluate(self.trainer.model, final))[0]

    def _save(self, *, best: bool = False) -> None:
        """Save everything that the next batch depends on. Saving the best checkpoint again keeps its tag."""
        self._check_finite()
        self.trainer.check_same()
        if best:
            self._best_step = self.trainer.step
        trained = self.trainer.state_dict()
        distributed.run_on_first(lambda: self._write(trained, best=self._best_step == self.trainer.step))
        self._saved_at = time.monotonic()

    def _write(self, trained: dict[str, Any], *, best: bool) -> None:
        """See `_save`."""
        model = self.trainer.model
        state = {
            **model.config.saved(),
            "spec": asdict(model.spec),
            "flags": self.flags,
            "seed": self.seed,
            "trainer": trained,
            "curriculum": self.curriculum.state_dict(),
            "data": self._fingerprint(),
            "position": {"epoch": self.epoch, "batch": self.batch, "epochs_done": self.epochs_done},
            "due": self._due,
            "pending": self._pending,
            "best": self._best,
            "is_best": best,
            "seconds": self.seconds + time.perf_counter() - self._started,
            "metrics_position": self.tracker.position(),
            "metrics_digest": self.tracker.digest(),
        }
        save_checkpoint(
            self.run.checkpoints,
            self.trainer.step,
            model_state=model.state_dict(),
            training_state=state,
            tag=BEST if best else None,
        )

    def _fingerprint(self) -> str:
        """The fingerprint of the stage's training data: a resumed run may find it at other paths, but unchanged."""
        training, _ = self.data(self.curriculum.segments)
        return training.fingerprint

    def _check_finite(self) -> None:
        """Raise `TrainingDiverged` instead of saving or evaluating a diverged model."""
        self.trainer.check_finite()
        if what := not_finite(self.trainer.model, self.trainer.optimizer):
            raise TrainingDiverged(f"the {what} are not finite after optimizer step {self.trainer.step}")

    def _recovery_advice(self) -> str:
        """What to do after training has diverged."""
        options = self.trainer.options
        by_tokens = options.warmup_tokens and options.lr_schedule != "late_linear"
        warmup = "warmup_tokens" if by_tokens else "warmup_steps"
        advice = f"a lower --learning_rate, more --{warmup} or --precision 32"
        good = find_checkpoint(self.run.checkpoints)
        if good is None:
            return f"No checkpoint was saved yet; start again with {advice}"
        return (
            f"The last checkpoint, {good}, is intact: resume from it with --resume {self.run.directory}, "
            f"another --text, and {advice}"
        )

    def _resume(self, path: Path) -> None:
        """Restore the state of the run's checkpoint."""
        weights, state = load_to_resume(path, self.trainer.model)
        planned = self.trainer.schedule.decay_start
        try:
            self.trainer.model.load_state_dict(weights)
            self.trainer.load_state_dict(state["trainer"])
            self.curriculum.load_state_dict(state["curriculum"])
            position = {name: state["position"][name] for name in ("epoch", "batch", "epochs_done")}
            self._due, device = state.get("due"), self.trainer.model.device
            # All metrics are on the device, apart from the learning rate.
            self._pending = [
                {name: value if name == "lr" else value.to(device) for name, value in each.items()}
                for each in state["pending"]
            ]
            self._best, self.seconds = float(state["best"]), float(state["seconds"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise unusable(path, error) from None
        if planned is not None:  # recompute it: the flags of a run under another name may set another warm-up
            self.trainer.schedule.decay_start = planned
        known, now = str(state["data"]), self._fingerprint()
        if known not in (now, now.partition(":")[0]):  # older checkpoints do not cover the observations
            raise UserError(
                f"{self.run.directory} was trained on other data than is found now; restore its data, or start a new "
                "run with --overwrite true or another --text"
            )
        for name, value in position.items():
            setattr(self, name, value)
        self.tracker.truncate(state["metrics_position"], step=self.trainer.step, digest=state.get("metrics_digest"))
        if state["is_best"]:
            self._best_step = self.trainer.step
        if path.parent == self.run.checkpoints and distributed.is_first():
            finish_save(path, tag=BEST if state["is_best"] else None)


# What a checkpoint must contain for training to continue.
_RESUMED = ["trainer", "curriculum", "data", "position", "pending", "best", "is_best", "seconds", "metrics_position"]


def load_to_resume(path: Path, model: Agent) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`load_checkpoint` for resuming training with this model.

    Raises:
        UserError: the checkpoint is damaged, of another model, not finite, or lacks the state needed to continue.
    """
    weights, state = load_checkpoint(path)
    if "memory" not in state:
        weights = with_memory_prefix(weights)
    if (memory := state.get("memory", "RATE")) != model.config.memory:
        raise UserError(f"checkpoint {path} has the memory {memory}, but --model_mode selects {model.config.memory}")
    if missing := [name for name in _RESUMED if name not in state]:
        raise UserError(
            f"checkpoint {path} has no '{missing[0]}' (was it converted?): it can be evaluated, but not resumed"
        )
    expected = {name: value.shape for name, value in model.state_dict().items()}
    differing = [
        name for name in (*expected, *weights) if getattr(weights.get(name), "shape", None) != expected.get(name)
    ]
    if differing:
        raise UserError(f"checkpoint {path} cannot be resumed: its weight {differing[0]} does not fit this model")
    check_weights(path, weights)
    return weights, state


def _until_interrupted(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; raises Interrupted before the next one if a signal asked to stop."""
    for batch in batches:
        stop_if_asked()
        yield batch
