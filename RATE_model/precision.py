"""One place that says in which precision a computation runs."""

from typing import Literal

import torch

from RATE_model.errors import UserError

Precision = Literal["32", "bf16"]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of training and acting: float32, or bfloat16 products with float32 parameters and sums."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is the first GPU if there is one, else the CPU, and 1 is cuda:1.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        probe = torch.empty(1, device=f"cuda:{name}" if name.isdecimal() else name)
        probe.item()  # the device "meta" has no numbers to read
        return probe.device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({reason}); give auto, cpu, cuda or cuda:N") from None
