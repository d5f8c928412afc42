"""Which products are taken in which type."""

import pytest
import torch

from RATE_model.system.precision import autocast, uses_bfloat16

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
def test_auto_takes_what_the_processor_has_units_for(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert uses_bfloat16(CPU, "auto") is expected
    assert uses_bfloat16(CPU, "bf16") and not uses_bfloat16(CPU, "32")


@pytest.mark.parametrize("supported", [True, False])
def test_auto_asks_the_gpu_and_not_the_processor(monkeypatch, supported):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not supported})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert uses_bfloat16(torch.device("cuda"), "auto") is supported


def test_products_have_the_type_that_was_asked_for():
    matrix = torch.eye(4)
    for precision, dtype in (("32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, precision):
            assert (matrix @ matrix).dtype == dtype
