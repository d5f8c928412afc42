"""Behaviour cloning: predict the actions of the data, or an expert's, with or without returns."""

import torch
from torch import Tensor
from torch.nn import functional as F

from RATE_model.spec import EnvironmentSpec


def cloning_loss(spec: EnvironmentSpec, predictions: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
    """Mean loss of the predicted actions over valid steps.

    Args:
        spec: whether actions are discrete.
        predictions: `(B, T, num_actions)` logits, or actions in [-1, 1] when continuous.
        actions: `(B, T)` int64, or `(B, T, num_actions)` float when continuous.
        valid: `(B, T)` bool, True where a step counts.

    Returns:
        A float32 scalar: cross-entropy in nats, or the squared error averaged over action dimensions. Zero when no step
        is valid.
    """
    return mean_over(action_errors(spec, predictions, actions), valid)


def action_errors(spec: EnvironmentSpec, predictions: Tensor, actions: Tensor) -> Tensor:
    """The loss of every step, `(B, T)` float32; arguments as in `cloning_loss`."""
    predictions = predictions.float()
    if spec.continuous:
        return F.mse_loss(predictions, actions.float(), reduction="none").mean(-1)
    return F.cross_entropy(predictions.flatten(0, 1), actions.flatten(), reduction="none").view(actions.shape)


def mean_over(per_step: Tensor, valid: Tensor) -> Tensor:
    """Mean of `per_step` `(B, T)` over the steps that are `valid` `(B, T)` bool; zero when none is."""
    # `where` rather than a product: padding must not turn an infinity into NaN.
    total = torch.where(valid, per_step, per_step.new_zeros(())).sum()
    return total / valid.sum().clamp(min=1)
