"""Models out of checkpoints, for inference: nothing of training is imported but the files' format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from RATE_model.agent import Agent, AgentConfig, with_memory_prefix
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import NORMALISATION, load_checkpoint


def load_model(path: Path | str, *, device: torch.device | str = "cpu") -> Agent:
    """The model of a checkpoint (of `resolve_checkpoint`), in eval mode. It takes observations as they are.

    Raises:
        UserError: the checkpoint is damaged or absent, or is not a checkpoint of this project.
    """
    weights, state = load_checkpoint(path)
    recorded = _recorded_normalisation(Path(path), state.get("spec"))
    try:
        spec: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in state["spec"].items()
        }
        spec |= recorded
        model = Agent(AgentConfig.of(state), EnvironmentSpec(**spec))
        model.load_state_dict(weights if "memory" in state else with_memory_prefix(weights))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, UserError, ValueError) as error:
        raise unusable(path, error) from None
    check_weights(path, weights)
    return model.to(device).eval()


def check_weights(path: Path | str, weights: dict[str, Tensor]) -> None:
    """Raise `UserError` if one is infinite or NaN."""
    if lost := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(f"checkpoint {path} cannot be used: {lost[0]} is infinite or NaN; use an earlier one")


def unusable(path: Path | str, error: Exception) -> UserError:
    """What to raise for a checkpoint whose content led to this error."""
    if isinstance(error, KeyError):
        return UserError(f"checkpoint {path} is not a checkpoint of this project: it has no {error}")
    reason = " ".join(str(error).split())[:300]  # PyTorch lists every weight on a line of its own
    return UserError(f"checkpoint {path} is not a checkpoint of this project: {reason}")


def _recorded_normalisation(path: Path, spec: Any) -> dict[str, tuple[float, ...]]:
    """What a spec has to say of normalisation, from the file beside a run's checkpoints if the checkpoint has none.

    Raises:
        UserError: the file is damaged, or of other observations.
    """
    file = path.absolute().parent.parent / NORMALISATION
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
