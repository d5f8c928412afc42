"""One place that says in which precision a computation runs."""

from typing import Literal

import torch

Precision = Literal["32", "bf16"]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of training and acting: float32, or bfloat16 products with float32 parameters and sums."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
