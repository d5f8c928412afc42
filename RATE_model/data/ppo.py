"""Gaussian policies of Proximal Policy Optimization (Schulman et al. 2017, arXiv 1707.06347), to make data with.

Training proceeds in rounds. After every round the policy is kept, with everything that training needs to continue. A
round begins with new episodes and with random numbers that are a function of (seed, number of the round). So a training
that was stopped, or is to be longer, gives the policies of one that was never interrupted.

    {folder}/{name}_seed{seed}/{steps:09d}.pt     after this many steps; 0 is the policy before training
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from RATE_model.acting.rollout import torch_threads
from RATE_model.errors import UserError
from RATE_model.system.atomic import atomic_write_bytes
from RATE_model.system.locks import exclusive
from RATE_model.system.packages import needed

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3 import PPO

ROUND_STEPS = 65_536
NUM_ENVIRONMENTS = 8
SETTINGS = {"n_steps": 512, "batch_size": 64, "hidden": [64, 64]}


@dataclass(frozen=True)
class PPOTraining:
    """What a training depends on.

    Attributes:
        name: of the environment, for the folder.
        make: makes one environment with actions in [-1, 1].
        seed: of weights, episodes and actions.
        round_steps: training steps between two policies that are kept.
        log_std_init: logarithm of the standard deviation of actions before training.
        about: further settings to record; a policy that was made with others is not reused.
        install: the command that installs stable-baselines3.
    """

    name: str
    make: Callable[[], gymnasium.Env]
    seed: int = 0
    round_steps: int = ROUND_STEPS
    log_std_init: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)
    install: str = "pip install stable-baselines3"

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from stable-baselines3's defaults (rate 3e-4, 10 epochs, gamma 0.99, lambda 0.95, clip 0.2)."""
        return SETTINGS | {"log_std_init": self.log_std_init, "environments": NUM_ENVIRONMENTS}

    @property
    def recorded(self) -> dict[str, Any]:
        """What is kept with every policy."""
        return self.settings | dict(self.about) | {"seed": self.seed, "round_steps": self.round_steps}

    def folder(self, folder: Path) -> Path:
        """The folder of its policies."""
        return folder / f"{self.name}_seed{self.seed}"


@dataclass(frozen=True)
class Policy:
    """A policy after a round of training, ready to act; arrays only."""

    steps: int  # of training
    training_return: float  # mean of the last episodes of its round, up to 100; NaN before training
    mean: np.ndarray  # (obs,) float64, of the observations
    std: np.ndarray  # (obs,) float64
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]  # weights (in, out) and biases (out,)
    action_std: np.ndarray  # (act,)

    def act(self, observations: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw actions (B, act) float32, clipped to [-1, 1], for observations (B, obs)."""
        hidden = np.clip((observations - self.mean) / self.std, -10.0, 10.0)
        for weights, bias in self.layers[:-1]:
            hidden = np.tanh(hidden @ weights + bias)
        weights, bias = self.layers[-1]
        actions = hidden @ weights + bias
        actions += self.action_std * generator.standard_normal(actions.shape)
        return np.clip(actions, -1.0, 1.0).astype(np.float32)


def train_policies(
    training: PPOTraining,
    folder: Path,
    *,
    enough: Callable[[list[Policy]], bool],
    report: Callable[[Policy], None] = lambda policy: None,
) -> list[Policy]:
    """Policies of one training, from the untrained one onward, until `enough` is true of them.

    Those kept in ``folder`` are reused; training continues after them. It uses one thread: for networks this small more
    are slower.

    Args:
        training, folder: what is trained, and where policies are kept.
        enough: called before training and after every round.
        report: called with every new policy.

    Raises:
        UserError: stable-baselines3 is missing, a kept policy cannot be read or was made with other settings, or the
            disk is full.
    """
    place = training.folder(folder)
    with exclusive(place, f"another process is training the policies in '{place}'; waiting for it", folder=True):
        return _train_policies(training, place, enough, report)


def _train_policies(
    training: PPOTraining,
    place: Path,
    enough: Callable[[list[Policy]], bool],
    report: Callable[[Policy], None],
) -> list[Policy]:
    """See `train_policies`."""
    policies: list[Policy] = []
    state: dict[str, Any] | None = None
    while (path := place / f"{len(policies) * training.round_steps:09d}.pt").exists() and not enough(policies):
        state = _read(path, training.recorded)
        policies.append(_policy(state))
    if enough(policies):
        return policies
    with torch_threads(1):
        rounds = _Rounds(training)
        if state is not None:
            rounds.load(state)
        while not enough(policies):
            state = rounds.state() if not policies else rounds.run_round()
            policies.append(_policy(state))
            _write(place / f"{policies[-1].steps:09d}.pt", state | {"settings": training.recorded})
            report(policies[-1])
        rounds.close()
    return policies


class _Rounds:
    """A training, one round at a time."""

    def __init__(self, training: PPOTraining) -> None:
        sentence = "training policies needs stable-baselines3"
        ppo = needed(sentence, "stable_baselines3", install=training.install).PPO
        from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

        self.seed, self.round_steps, self.steps = training.seed, training.round_steps, 0
        self.training_return = float("nan")
        self.environments = VecNormalize(VecMonitor(DummyVecEnv([training.make] * NUM_ENVIRONMENTS)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*mini-batch")  # a short round's last is smaller
            self.model: PPO = ppo(
                "MlpPolicy",
                self.environments,
                n_steps=min(SETTINGS["n_steps"], self.round_steps // NUM_ENVIRONMENTS),
                batch_size=SETTINGS["batch_size"],
                policy_kwargs={"net_arch": SETTINGS["hidden"], "log_std_init": training.log_std_init},
                seed=self.seed,
                device="cpu",
            )

    def run_round(self) -> dict[str, Any]:
        """Train for one round and return `state`."""
        seed = int(np.random.SeedSequence([self.seed, self.steps // self.round_steps]).generate_state(1)[0]) // 2
        self.model.set_random_seed(seed)
        self.model._last_obs = None  # else the episodes of the previous round would continue, which no file holds
        self.model.ep_info_buffer = None
        self.model.learn(self.round_steps, reset_num_timesteps=False)
        self.steps += self.round_steps
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        self.training_return = float(np.mean(returns)) if returns else float("nan")
        return self.state()

    def state(self) -> dict[str, Any]:
        """All that the next round depends on, tensors and plain values only."""
        observations, returns = self._statistics()
        return {
            "steps": self.steps,
            "training_return": self.training_return,
            "policy": self.model.policy.state_dict(),
            "optimizer": self.model.policy.optimizer.state_dict(),
            "observations": [torch.as_tensor(observations.mean), torch.as_tensor(observations.var)],
            "returns": [float(returns.mean), float(returns.var)],
            "counts": [float(observations.count), float(returns.count)],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.steps, self.training_return = state["steps"], state["training_return"]
        self.model.policy.load_state_dict(state["policy"])
        self.model.policy.optimizer.load_state_dict(state["optimizer"])
        observations, returns = self._statistics()
        observations.mean, observations.var = (value.numpy() for value in state["observations"])
        returns.mean, returns.var = (np.float64(value) for value in state["returns"])
        observations.count, returns.count = state["counts"]

    def _statistics(self) -> tuple[Any, Any]:
        """The package's running statistics of observations and of returns."""
        return self.environments.obs_rms, self.environments.ret_rms

    def close(self) -> None:
        """Close the environments."""
        self.environments.close()


def _policy(state: dict[str, Any]) -> Policy:
    """The part of a training's state that acts."""
    weights = {name: value.double().numpy() for name, value in state["policy"].items()}
    hidden = [f"mlp_extractor.policy_net.{2 * number}" for number in range(len(SETTINGS["hidden"]))]
    mean, variance = (value.double().numpy() for value in state["observations"])
    return Policy(
        steps=state["steps"],
        training_return=state["training_return"],
        mean=mean.copy(),
        std=np.sqrt(variance + 1e-8),
        layers=tuple((weights[f"{name}.weight"].T.copy(), weights[f"{name}.bias"]) for name in (*hidden, "action_net")),
        action_std=np.exp(weights["log_std"]),
    )


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    remedy = f"delete the folder '{path.parent}' to train again."
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error) or "it ends too early").splitlines()[0]
        raise UserError(f"the policy '{path}' cannot be read ({reason}); {remedy}") from error
    if not isinstance(state, dict) or state.get("settings") != settings:
        raise UserError(f"the policy '{path}' was made with other settings; {remedy}")
    return state


def _write(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
