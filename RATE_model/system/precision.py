"""Device and numeric precision."""

from typing import Literal

import torch

from RATE_model.errors import UserError
from RATE_model.system import distributed

Precision = Literal["auto", "32", "bf16"]
# What a processor calls its bfloat16 products: x86-64 (two kinds), 64-bit Arm.
_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")


def uses_bfloat16(device: torch.device, precision: str) -> bool:
    """Whether matrix products run in bfloat16; `auto` uses it where the device supports it natively.

    Emulation is slow: on a CPU with AVX2 only, bfloat16 takes fifty times as long as float32.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(units.get(name) for name in _BFLOAT16_UNITS)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context for training and acting: float32, or bfloat16 products with float32 parameters and sums."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bfloat16(device, precision))


def check_device(name: str) -> None:
    """Raise a `UserError` for `--device` if there is no such device; uses none."""
    try:
        device = torch.device("cpu" if name == "auto" else f"cuda:{name}" if name.isdecimal() else name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; give auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"--device {name}: not usable here ({count} GPUs); give auto, cpu, cuda or cuda:N")


def pick_device(name: str) -> torch.device:
    """The device for `--device`; `auto` is the first GPU if there is one, else the CPU; 1 means cuda:1.

    A chosen GPU becomes torch's current one, on which events and streams are made. With several processes, `auto` and
    `cuda` give each its own GPU, by its local rank.

    Raises:
        UserError: there is no such device, or the processes of a run would share it.
    """
    together = distributed.size() > 1
    if together and name in ("auto", "cuda") and torch.cuda.is_available():
        device = torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(name)
    try:
        probe = torch.empty(1, device=f"cuda:{name}" if name.isdecimal() else name)
        probe.item()  # fails on the device "meta", which has no data
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name}: not usable here ({reason}); give auto, cpu, cuda or cuda:N") from None
    if together and probe.device.type == "cuda":
        raise UserError(f"--device {name}: all processes of the run would share it; give auto or cuda")
    if probe.device.type == "cuda":
        torch.cuda.set_device(probe.device)
    return probe.device
