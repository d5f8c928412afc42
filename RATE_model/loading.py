"""Models out of checkpoints, for inference: nothing of training is imported but the files' format."""

from pathlib import Path

import torch
from torch import Tensor

from RATE_model.errors import UserError
from RATE_model.memories.rate.config import ModelConfig
from RATE_model.memories.rate.model import RATE
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import load_checkpoint


def load_model(path: Path, *, device: torch.device | str = "cpu") -> RATE:
    """The model of a checkpoint (of `resolve_checkpoint`), in eval mode.

    Raises:
        UserError: the checkpoint is damaged or absent, or is not a checkpoint of this project.
    """
    weights, state = load_checkpoint(path)
    try:
        spec = {name: tuple(value) if isinstance(value, list) else value for name, value in state["spec"].items()}
        model = RATE(ModelConfig(**state["config"]), EnvironmentSpec(**spec))
        model.load_state_dict(weights)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, UserError, ValueError) as error:
        raise unusable(path, error) from None
    check_weights(path, weights)
    return model.to(device).eval()


def check_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise `UserError` if one is infinite or NaN."""
    if lost := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(f"checkpoint {path} cannot be used: {lost[0]} is infinite or NaN; use an earlier one")


def unusable(path: Path, error: Exception) -> UserError:
    """What to raise for a checkpoint whose content led to this error."""
    if isinstance(error, KeyError):
        return UserError(f"checkpoint {path} is not a checkpoint of this project: it has no {error}")
    reason = " ".join(str(error).split())[:300]  # PyTorch lists every weight on a line of its own
    return UserError(f"checkpoint {path} is not a checkpoint of this project: {reason}")
