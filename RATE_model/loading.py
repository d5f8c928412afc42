"""Load models from checkpoints for inference. Imports nothing of training except the file format."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from RATE_model.agent import Agent, AgentConfig, with_memory_prefix
from RATE_model.errors import UserError
from RATE_model.own.arguments import naming_arguments
from RATE_model.spec import EnvironmentSpec, PrivilegedKind
from RATE_model.training.checkpoints import NORMALISATION, load_checkpoint, resolve_checkpoint, run_of


@naming_arguments()
def load_agent(path: Path | str, which: str | int | None = None, *, device: torch.device | str = "cpu") -> Agent:
    """The agent of a run, in eval mode.

    Args:
        path: a run directory, its checkpoints/, or one checkpoint in it.
        which: "best", or the step of a checkpoint; None: the newest one.
        device: the agent's device.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    if not isinstance(path, str | Path):
        raise UserError(f"load_agent: path {path!r} is not a path; give a run directory or a checkpoint")
    if which not in (None, "best") and (isinstance(which, bool) or not isinstance(which, int)):
        raise UserError(f'load_agent: {which!r} is not a checkpoint; give "best", a step, or None for the newest')
    path = Path(path).expanduser()
    if isinstance(which, int):
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        return load_model(resolve_checkpoint(folder / f"step_{which:08d}"), device=device)
    return load_model(resolve_checkpoint(path, tag=which), device=device)


def load_model(path: Path | str, *, device: torch.device | str = "cpu") -> Agent:
    """The model of a checkpoint (from `resolve_checkpoint`), in eval mode. It takes raw observations.

    Raises:
        UserError: the checkpoint is missing, damaged, or not of this project.
    """
    weights, state = load_checkpoint(path)
    recorded = _recorded_normalisation(Path(path), state.get("spec"))
    try:
        spec: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in state["spec"].items()
        }
        spec |= recorded | {"oracle": tuple(PrivilegedKind(**kind) for kind in spec.get("oracle", ()))}
        spec["images"] = tuple(map(tuple, spec.get("images", ())))
        model = Agent(AgentConfig.of(state), EnvironmentSpec(**spec))
        model.load_state_dict(weights if "memory" in state else with_memory_prefix(weights))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, UserError, ValueError) as error:
        raise unusable(path, error) from None
    check_weights(path, weights)
    return model.to(device).eval()


_INTERFACE = ("observation_shape", "images", "num_actions", "continuous", "observation_scale")


def same_interface(model: EnvironmentSpec, environment: EnvironmentSpec) -> bool:
    """Whether a model can act in an environment: its observations and actions match.

    How they are encoded (a tanh, channels, rows of the action table, the scale of returns) is up to the model.
    """
    return all(getattr(model, name) == getattr(environment, name) for name in _INTERFACE)


def without_padding_action(model: Agent, spec: EnvironmentSpec) -> Agent:
    """The model without outputs for padding rows of the action table, if it has those and `spec` has fewer rows.

    Some published models also predict their padding action, and may take it when acting.
    """
    rows = spec.action_embeddings
    if rows is None or not same_interface(model.spec, replace(spec, num_actions=rows)):
        return model
    smaller = Agent(model.config, replace(model.spec, num_actions=spec.num_actions)).to(model.device).eval()
    weights = model.state_dict()
    weights["head.project.weight"] = weights["head.project.weight"][: spec.num_actions]
    smaller.load_state_dict(weights)
    return smaller


def load_for(
    path: Path, spec: EnvironmentSpec, *, device: torch.device | str = "cpu", flags: Mapping[str, Any] | None = None
) -> Agent:
    """The model of a checkpoint, for acting in an environment; its encoders may differ from the spec's.

    Args:
        path: the checkpoint.
        spec: the environment's spec.
        device: the model's device.
        flags: the run's flags, flat.

    Raises:
        UserError: the checkpoint is damaged, or its observations or actions differ.
    """
    if unplayable := (flags or {}).get("unplayable"):
        raise UserError(f"{path} is for {unplayable}, which no environment of this project plays")
    model = without_padding_action(load_model(path, device=device), spec)
    if not same_interface(model.spec, spec):
        differing = [
            f"{name} {getattr(model.spec, name)} (here {getattr(spec, name)})"
            for name in _INTERFACE
            if getattr(model.spec, name) != getattr(spec, name)
        ]
        raise UserError(f"{path} was trained in another environment: its {', its '.join(differing)}")
    return model


def load_config(path: Path | str) -> AgentConfig:
    """The memory and its sizes of a checkpoint's agent (from `resolve_checkpoint`).

    Raises:
        UserError: see `load_model`.
    """
    try:
        return AgentConfig.of(load_checkpoint(path)[1])
    except (KeyError, TypeError) as error:
        raise unusable(path, error) from None


def check_weights(path: Path | str, weights: dict[str, Tensor]) -> None:
    """Raise `UserError` if any tensor is infinite or NaN."""
    if lost := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(f"checkpoint {path} cannot be used: {lost[0]} is infinite or NaN; use an earlier one")


def unusable(path: Path | str, error: Exception) -> UserError:
    """The error for a checkpoint whose content caused this error."""
    if isinstance(error, KeyError):
        return UserError(f"checkpoint {path} is not a checkpoint of this project: it has no {error}")
    reason = " ".join(str(error).split())[:300]  # PyTorch lists every weight on its own line
    return UserError(f"checkpoint {path} is not a checkpoint of this project: {reason}")


def _recorded_normalisation(path: Path, spec: Any) -> dict[str, tuple[float, ...]]:
    """The normalisation for a spec, from the file beside a run's checkpoints if the checkpoint has none.

    Raises:
        UserError: the file is damaged, or belongs to other observations.
    """
    file = run_of(path) / NORMALISATION
    if not isinstance(spec, dict) or spec.get("observation_mean") is not None or not file.exists():
        return {}
    shape = spec.get("observation_shape")
    if not isinstance(shape, list | tuple) or len(shape) != 1:
        return {}
    try:
        content = json.loads(file.read_text())
        statistics = [tuple(map(float, content[name])) for name in ("mean", "std")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error})") from None
    mean, std = statistics
    if {len(mean), len(std)} != {*shape} or not np.isfinite([mean, std]).all() or min(std) <= 0:
        raise UserError(f"{file}: expected {shape[0]} means and as many positive standard deviations")
    return {"observation_mean": mean, "observation_std": std}
