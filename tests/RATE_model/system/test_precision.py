"""The dtype of matrix products, and the choice of a device."""

from types import SimpleNamespace

import pytest
import torch

from RATE_model.errors import UserError
from RATE_model.system import distributed
from RATE_model.system.precision import autocast, pick_device, uses_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "units, expected",
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True}, False),
    ],
)
def test_auto_uses_bfloat16_if_the_cpu_supports_it(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert uses_bfloat16(CPU, "auto") is expected
    assert uses_bfloat16(CPU, "bf16") and not uses_bfloat16(CPU, "32")


@pytest.mark.parametrize("supported", [True, False])
def test_auto_on_a_gpu_ignores_the_cpu(monkeypatch, supported):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not supported})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert uses_bfloat16(torch.device("cuda"), "auto") is supported


def test_products_have_the_requested_dtype():
    matrix = torch.eye(4)
    for precision, dtype in (("32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, precision):
            assert (matrix @ matrix).dtype == dtype


def test_each_process_of_a_run_gets_its_own_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(distributed, "size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for number, name in ((0, "auto"), (1, "cuda"), (2, "auto")):  # with too few GPUs the third process shares one
        monkeypatch.setattr(distributed, "local_rank", lambda number=number: number)
        assert pick_device(name) == torch.device("cuda", number % 2) == chosen[-1]
    assert pick_device("cpu") == torch.device("cpu")


def test_a_chosen_gpu_becomes_the_current_one(monkeypatch):
    """Otherwise events would be recorded, and graphs made, on the first GPU."""
    chosen, device = [], torch.device("cuda", 1)
    probe = SimpleNamespace(device=device, item=lambda: 0.0)
    monkeypatch.setattr(torch, "empty", lambda *_, **options: probe if options["device"] == "cuda:1" else None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [pick_device("cuda:1"), pick_device("1")] == chosen == [device, device]


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", "meta"])
def test_an_unusable_device_is_refused_in_a_short_line(name):
    with pytest.raises(UserError, match=f"--device {name}: .*; give auto, cpu, cuda or cuda:N$") as error:
        pick_device(name)
    assert len(str(error.value)) < 180 and "\n" not in str(error.value)
