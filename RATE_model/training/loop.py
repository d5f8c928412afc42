"""The training loop of every environment: stages, epochs, logging, validation, evaluation, checkpoints, interruptions.

A run that is interrupted at any point and resumed passes through the same states as an uninterrupted one: a checkpoint
contains everything that later batches depend on, and checkpoints are taken between batches.

Processes that train together run this loop side by side (see `system.distributed`). Measurements cover all of them, so
each makes the same decisions; the first one logs and saves.
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
    """Trains one run from its current position to its end.

    Args:
        trainer: model, optimizer, schedule.
        curriculum: the stages, and when each ends.
        data: the windows of a stage.
        run: an open run; if it has a checkpoint, training continues there.
        tracker: receives the metrics.
        seed: for the order of batches.
        evaluate: called at checkpoints and at the end; must not touch torch's global random state.
        interrupts: asked between batches whether to stop.
        flags: the run's, as in its config.yaml; checkpoints contain them too.
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
        # Wall-clock training time of earlier starts of the run, and when this one began.
        self.seconds, self._started = 0.0, time.perf_counter()
        self._best = float("inf")
        self._best_step = -1  # of the best checkpoint
        # The checkpoint work (`_check_point`) that a signal interrupted; it comes first when the run continues.
        self._due: dict[str, Any] | None = None
        self._pending: list[dict[str, Tensor]] = []
        self._saved_at = time.monotonic()
        if run.checkpoint is not None:
            self._resume(run.checkpoint)

    def __call__(self) -> dict[str, Any]:
        """`_train_to_the_end`; if training diverges, the error says how to continue."""
        try:
            return self._train_to_the_end()
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}. {self._way_out()}") from error

    def _train_to_the_end(self) -> dict[str, Any]:
        """Train to the end; returns the result of the final validation and evaluation, also written to eval/final.json.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            TrainingDiverged: loss or gradient became NaN or infinite.
        """
        was_finished = self.curriculum.finished and self._due is None  # then its last checkpoint exists
        if self._due is not None and not self.curriculum.finished:
            self._check_point(**self._due)
        while not self.curriculum.finished:
            self._stage()
        self._log(self.curriculum.segments)
        self._check_finite()
        with self._saved_if_interrupted(self.curriculum.segments, FINAL):
            result = self._validate(self.curriculum.segments) | {"optimizer_steps": self.trainer.step}
        if isinstance(self.curriculum, AdaptiveStages):
            result["all_stages_solved"] = self.curriculum.solved
        if not was_finished:
            self._save(best=self._improved(result))
        if self.interrupts is not None:
            distributed.together(self.interrupts.stop)
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
            desc=f"{segments} segments",
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
                elif not changed and self.options.ckpt_batches and self.batch % self.options.ckpt_batches == 0:
                    self._check_point(segments, f"epoch_{self.epochs_done + 1:04d}_batch_{self.batch:06d}")
                if changed:
                    self._best = float("inf")  # losses of different stages are not comparable
                if changed or self.curriculum.finished:
                    return
                self._pause_if_asked()

    def _train(self, batch: Any) -> None:
        """One batch."""
        position = {"segments": self.curriculum.segments, "epoch": self.epoch, "batch": self.batch, "seed": self.seed}
        self.trainer.position = position
        metrics = self.trainer.train_batch(batch)
        self.curriculum.after_batch(metrics)
        if self.curriculum.annealing:
            self.trainer.schedule.start_decay(self.trainer.step)
        self._pending.append(metrics)

    def _end_epoch(self, segments: int) -> None:
        """After the last batch of an epoch of a stage: at some epochs, validate, evaluate and save."""
        if self.epochs_done != 1 and self.epochs_done % self.options.ckpt_epoch:
            return
        if self.curriculum.finished:
            return  # the end does all of it
        self._check_point(segments, f"epoch_{self.epochs_done:04d}")

    def _check_point(self, segments: int, name: str) -> None:
        """Validate, evaluate and save."""
        self._log(segments)
        self._check_finite()
        with self._saved_if_interrupted(segments, name):
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
    def _saved_if_interrupted(self, segments: int, name: str) -> Iterator[None]:
        """Work inside that a signal interrupts is done first when the run continues, because its checkpoint is
        missing."""
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

    def _pause_if_asked(self) -> None:
        """Between batches: save if it is time, and stop if a signal asked for it."""
        name = distributed.signal_anywhere(None if self.interrupts is None else self.interrupts.requested)
        late = time.monotonic() - self._saved_at > 60 * self.options.save_minutes
        if name is not None or distributed.any_of(late):
            self._save()
        if name is not None:
            raise Interrupted(name)

    def _log(self, segments: int) -> float:
        """Log averages of the batches since the last line, all of one stage; returns the mean loss, NaN without
        batches.

        Only here does training read from the device, apart from an adaptive curriculum, which reads one number
        per batch.
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
            return self.trainer.validate(_until_asked(batch for _, _, batch in loader))

    def _evaluate(self, *, final: bool) -> dict[str, float]:
        if (evaluate := self.evaluate) is None:
            return {}
        with evaluating(self.trainer.model):
            return distributed.together(lambda: evaluate(self.trainer.model, final))[0]

    def _save(self, *, best: bool = False) -> None:
        """A checkpoint of everything that the next batch depends on. If the best one is saved again, it stays the
        best."""
        self._check_finite()
        self.trainer.check_same()
        if best:
            self._best_step = self.trainer.step
        trained = self.trainer.state_dict()
        distributed.by_first(lambda: self._write(trained, best=self._best_step == self.trainer.step))
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
        """The fingerprint of the stage's training data: paths may change when a run is resumed, the content may not."""
        training, _ = self.data(self.curriculum.segments)
        return training.fingerprint

    def _check_finite(self) -> None:
        """Raise `TrainingDiverged` instead of saving or measuring a diverged model."""
        self.trainer.check_finite()
        if what := not_finite(self.trainer.model, self.trainer.optimizer):
            raise TrainingDiverged(f"the {what} are not finite after optimizer step {self.trainer.step}")

    def _way_out(self) -> str:
        """What to do when training has diverged."""
        advice = "a lower --learning_rate, more --warmup_steps or --precision 32"
        good = find_checkpoint(self.run.checkpoints)
        if good is None:
            return f"No checkpoint was saved yet; start again with {advice}"
        return (
            f"The last checkpoint, {good}, is intact: go on from it with --resume {self.run.directory}, "
            f"another --text, and {advice}"
        )

    def _resume(self, path: Path) -> None:
        """Continue from the run's checkpoint."""
        weights, state = load_to_resume(path, self.trainer.model)
        planned = self.trainer.schedule.decay_start
        try:
            self.trainer.model.load_state_dict(weights)
            self.trainer.load_state_dict(state["trainer"])
            self.curriculum.load_state_dict(state["curriculum"])
            position = {name: state["position"][name] for name in ("epoch", "batch", "epochs_done")}
            self._due, self._pending = state.get("due"), list(state["pending"])
            self._best, self.seconds = float(state["best"]), float(state["seconds"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise unusable(path, error) from None
        if planned is not None:  # it follows from the flags, which may set another warm-up under another name
            self.trainer.schedule.decay_start = planned
        known, now = str(state["data"]), self._fingerprint()
        if known not in (now, now.partition(":")[0]):  # older ones do not cover the observations
            raise UserError(
                f"{self.run.directory} was trained on other data than is there now; give it its own, or begin a new "
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
    """`load_checkpoint` for training that continues with this model.

    Raises:
        UserError: the checkpoint is damaged, of another model, not finite, or not one that training can continue from.
    """
    weights, state = load_checkpoint(path)
    if "memory" not in state:
        weights = with_memory_prefix(weights)
    if (memory := state.get("memory", "RATE")) != model.config.memory:
        raise UserError(f"checkpoint {path} is of the memory {memory}; --model_mode asks for {model.config.memory}")
    if missing := [name for name in _RESUMED if name not in state]:
        raise UserError(
            f"checkpoint {path} has no '{missing[0]}', as one that was converted: it can be evaluated, not resumed"
        )
    expected = {name: value.shape for name, value in model.state_dict().items()}
    differing = [
        name for name in (*expected, *weights) if getattr(weights.get(name), "shape", None) != expected.get(name)
    ]
    if differing:
        raise UserError(f"checkpoint {path} cannot be resumed: its weight {differing[0]} is not of this model")
    check_weights(path, weights)
    return weights, state


def _until_asked(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; raises Interrupted before the next one if a signal asked to stop."""
    for batch in batches:
        stop_if_asked()
        yield batch
