"""The actor: runs an agent in a batch of environments, one step at a time; tracks returns-to-go and samples actions.

How a memory processes a step is defined by `RATE_model.memories.contract.Stepper`.
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from RATE_model.agent import Agent
from RATE_model.data.frames import Frames
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryTransform, StepOptions
from RATE_model.system import distributed
from RATE_model.system.freed_memory import keep_freed_memory
from RATE_model.system.precision import Precision, autocast, uses_bfloat16


class Actor:
    """Acts in `batch_size` environments at once.

    The parameters are read at construction, so make a new actor after a training step.

    Args:
        agent: the agent, in eval mode.
        batch_size: B, the number of environments.
        target_return: the initial return-to-go, in units of reward; one number, or `(B,)`.
        greedy: take the most probable action; False: sample from the predicted distribution (discrete actions).
        seed: seed for sampling; with several processes each derives its own from it.
        window: attend to the last K steps at every step, across segment borders, as DT and DTXL always do.
        slide: how many of the oldest steps leave a full window at once. 1 is the published protocol and recomputes the
            window at every step; larger values are faster, with a shorter context. Ignored by memories without a
            window.
        reset_target: set the return-to-go back to the target return every K steps, regardless of rewards.
        rtg_floor: lower bound of the return-to-go, since values below the smallest in the data are out of distribution.
            A lower target return is kept. None: no bound.
        transform_memory: applied to the memory before every segment except an episode's first, as
            `transform(memory, initial_memory)`; for control experiments, see `RATE_model.acting.controls`.
        precision: "32", "bf16" or "auto"; see `uses_bfloat16`.
        cuda_graphs: on a GPU, capture steps as CUDA graphs, which pays off in episodes of many segments; RATE and its
            relatives only.

    Raises:
        ValueError: an agent in training mode, or a `slide` below 1.
        UserError: no environments. Here and later: observations, rewards or target returns of a wrong shape, or, as
            NumPy arrays, not finite; an oracle that is not told what it is to see.
    """

    def __init__(
        self,
        agent: Agent,
        batch_size: int,
        target_return: float | np.ndarray | Tensor,
        *,
        greedy: bool = True,
        seed: int = 0,
        window: bool = False,
        slide: int = 1,
        reset_target: bool = False,
        rtg_floor: float | None = None,
        transform_memory: MemoryTransform | None = None,
        precision: str = "32",
        cuda_graphs: bool = False,
    ) -> None:
        if agent.training:
            raise ValueError("the model is in training mode, with dropout on: call model.eval() before acting")
        if isinstance(slide, float) or slide < 1:
            raise ValueError(f"slide {slide}: must be a whole number, at least 1")
        if precision not in get_args(Precision):
            raise UserError(f"precision {precision!r}: must be one of {', '.join(get_args(Precision))}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UserError(f"batch_size {batch_size!r}: must be a number of environments, at least 1")
        keep_freed_memory()
        self.agent, self.batch_size, self.greedy = agent, batch_size, greedy
        self.reset_target, self.rtg_floor = reset_target, rtg_floor
        self._precision = precision
        # Deduplicate images until a step has no duplicates: if all images differ, searching is wasted time.
        self._images_repeat = agent.spec.is_image and batch_size > 1
        self._device = agent.device
        self._generator = torch.Generator(self._device).manual_seed(distributed.process_seed(seed))
        self._rtg = torch.empty(batch_size, device=self._device)
        self._target = torch.empty(batch_size, device=self._device)
        self._fresh = np.ones(batch_size, dtype=bool)  # rows at the start of an episode
        self._logits: Tensor | None = None  # of the last step
        dtype = torch.bfloat16 if uses_bfloat16(self._device, precision) else agent.encoder.parameter_dtype
        options = StepOptions(window=window, slide=slide, transform=transform_memory, cuda_graphs=cuda_graphs)
        with torch.inference_mode(), autocast(self._device, precision):
            self._stepper = agent.memory.stepper(batch_size, options, dtype)
        _check_finite("target_return", target_return)  # None too: nothing was asked for before
        self.reset(target_return=target_return)

    @torch.inference_mode()
    def reset(
        self, rows: np.ndarray | None = None, *, target_return: float | np.ndarray | Tensor | None = None
    ) -> None:
        """Start new episodes.

        Args:
            rows: bool mask or indices of the environments that start over; None: all.
            target_return: the new target return of these rows; None: keep their last one.
        """
        rows = np.arange(self.batch_size) if rows is None else np.arange(self.batch_size)[rows]
        index = torch.as_tensor(rows, device=self._device)
        if target_return is not None:
            if np.shape(target_return) not in ((), (len(rows),)):
                raise UserError(f"target_return: has shape {np.shape(target_return)}; expected () or ({len(rows)},)")
            _check_finite("target_return", target_return)
            target = torch.as_tensor(target_return, dtype=torch.float32, device=self._device)
            self._target[index] = target.expand(self.batch_size)[index] if target.ndim == 0 else target
        self._rtg[index] = self._target[index]
        self._fresh[rows] = True
        self._stepper.reset(rows)

    def keep(self, rows: np.ndarray) -> None:
        """Continue with a subset of rows, `(b,)` indices in the new order, so that finished episodes cost nothing."""
        index = torch.as_tensor(rows, device=self._device)
        self._logits = None if self._logits is None else self._logits[index]
        with torch.inference_mode():
            self._rtg, self._target = self._rtg[index], self._target[index]
            self._stepper.keep(rows)
        self._fresh = self._fresh[rows]
        self.batch_size = len(rows)

    def finite(self) -> np.ndarray:
        """Which rows decided by finite numbers at the last step, `(B,)` bool. A memory may overflow."""
        if self._logits is None:
            return np.ones(self.batch_size, dtype=bool)
        return self._logits.isfinite().all(-1).cpu().numpy()

    def act(
        self,
        observations: np.ndarray | Tensor,
        rewards: np.ndarray | Tensor | None = None,
        infos: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """One environment step for every row: `observe`, choose, `take`.

        Args:
            observations: `(B, *observation_shape)`.
            rewards: `(B,)` rewards of the previous actions; ignored where an episode begins; None: all zero.
            infos: for an oracle: what it sees besides, `(B, n)` by name, as data holds it.

        Returns:
            Actions, `(B,)` int64, or `(B, A)` float32 when continuous.
        """
        logits = self.observe(observations, rewards, infos)
        if self.agent.spec.continuous:
            actions = logits
        elif self.greedy:
            actions = logits.argmax(-1)
        else:
            # Of a row that is not finite any action: all are equally likely.
            probabilities = logits.softmax(-1).nan_to_num(1.0)
            actions = torch.multinomial(probabilities, 1, generator=self._generator).squeeze(1)
        self.take(actions)
        return actions.cpu().numpy()

    @torch.inference_mode()
    def observe(
        self,
        observations: np.ndarray | Tensor,
        rewards: np.ndarray | Tensor | None = None,
        infos: Mapping[str, np.ndarray] | None = None,
    ) -> Tensor:
        """Show the rows their next observations, `(B, *observation_shape)`; arguments as for `act`.

        Returns:
            float32 action logits `(B, num_actions)` (actions when continuous). Call `take` before the next `observe`.
        """
        _check_shape("observations", observations, (self.batch_size, *self.agent.spec.observation_shape))
        _check_finite("observations", observations)
        if rewards is not None:
            if self.batch_size > 1 or np.shape(rewards) != ():  # the reward of a single environment may be a number
                _check_shape("rewards", rewards, (self.batch_size,))
            _check_finite("rewards", rewards, ignored=self._fresh)
            rewards = torch.as_tensor(rewards, dtype=torch.float32, device=self._device)
            if self._fresh.any():
                rewards = torch.where(torch.as_tensor(self._fresh, device=self._device), 0.0, rewards)
            self._rtg -= rewards
            if self.rtg_floor is not None:
                self._rtg.clamp_(min=self._target.clamp(max=self.rtg_floor))
        self._fresh[:] = False
        with autocast(self._device, self._precision):
            passed = self._stepper.pass_on()
            if self.reset_target and passed.any():
                index = torch.as_tensor(np.flatnonzero(passed), device=self._device)
                self._rtg[index] = self._target[index]
            encoder = self.agent.encoder
            rtg = None if encoder.rtg is None else encoder.encode_rtg(self._rtg[:, None])
            hidden = self._stepper.append(rtg, self._encode(observations, infos))
            self._logits = logits = self.agent.head(hidden).float()
            return logits

    def _encode(self, observations: np.ndarray | Tensor, infos: Mapping[str, np.ndarray] | None) -> Tensor:
        """Observation tokens `(B, 1, d_model)`, with what an oracle is told."""
        rows = {name: torch.as_tensor(values, device=self._device)[:, None] for name, values in (infos or {}).items()}
        told = self.agent.encoder.encode_infos(rows or None)
        seen = self._encode_observations(observations)
        return seen if told is None else seen + told

    def _encode_observations(self, observations: np.ndarray | Tensor) -> Tensor:
        """Observation tokens `(B, 1, d_model)`; images that several rows show are encoded once."""
        encoder = self.agent.encoder
        if self._images_repeat and isinstance(observations, np.ndarray):
            frames = Frames.of(observations)
            self._images_repeat = len(frames.images) < len(observations)
            return encoder.encode_observations(encoder.encode_frames(frames.to(self._device)))
        return encoder.encode_observations(torch.as_tensor(observations, device=self._device)[:, None])

    @torch.inference_mode()
    def take(self, actions: np.ndarray | Tensor) -> None:
        """Record the actions that are taken, `(B,)` int64 or `(B, A)` float; `act` does this itself."""
        spec = self.agent.spec
        _check_shape("actions", actions, (self.batch_size, *((spec.num_actions,) if spec.continuous else ())))
        _check_finite("actions", actions)
        actions = torch.as_tensor(actions, device=self._device)
        with autocast(self._device, self._precision):
            self._stepper.record(self.agent.encoder.encode_actions(actions[:, None]))


def _check_shape(name: str, values: object, shape: tuple[int, ...]) -> None:
    found = tuple(np.shape(values))  # pyright: ignore[reportArgumentType, reportCallIssue]
    if found != shape:
        raise UserError(f"{name}: shape is {found}; expected {shape}, one row per environment")


def _check_finite(name: str, values: Any, *, ignored: np.ndarray | bool = False) -> None:
    """Only what lies in main memory: to look into a tensor on a device would wait for the device."""
    if isinstance(values, Tensor):
        return
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise UserError(f"{name}: the type is {values.dtype}; give real numbers")
    if values.dtype.kind != "f":
        return
    if values.dtype != np.float32:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite for the agent
            values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all() and not np.all(finite | ignored):
        raise UserError(f"{name}: a value is NaN or infinite")
