"""Losses, gradients, logits and actions equal the recorded ones.

Bit for bit on the type of machine that recorded them. On others the order of sums differs, and with it the last bits,
which training amplifies; there, within a tolerance.
"""

from typing import Any

import numpy as np
import pytest
import torch

from tests.golden import record, runs
from tests.golden.cases import ARCHS, MODES, SPECS, TRANSFORMS, Case, cases, run

SAME_MACHINE = record.recorded_runs()["machine"] == record.machine()
SAME = {
    "32": SAME_MACHINE,
    "bf16": SAME_MACHINE and record.recorded_runs()["bfloat16"] == record.bfloat16_units(),
}
TOLERANCE = {"32": 1e-6, "bf16": 5e-2}  # relative and absolute
# Processors round bf16 products differently. After 20 updates of so small a model losses still agree, logits roughly,
# and of the norms of gradients those before the second update.
TRAINED_LOGITS, EARLY_NORMS = 0.5, 2


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# The quick cases cover every value of these.
OPTIONS = (
    "accumulate", "action_noise", "mirror", "skip_dec_ffn", "window", "slide", "reset_target", "rtg_floor", "greedy",
    "mrv_act", "transform",
)  # fmt: skip


def shown_by(case: Case) -> set[tuple[Any, ...]]:
    """Values and pairs of values that a case covers."""
    trained = (case.bptt, case.precision)
    pairs = ((owner, value) for owner in (case.environment, case.mode) for value in trained)
    return {(case.mode, case.arch), *pairs, *((name, getattr(case, name)) for name in OPTIONS)}


def quick_cases() -> set[str]:
    """A small set of cases that covers the same values as all, found greedily; the default suite runs these."""
    everything, chosen = list(cases()), set()
    left = set().union(*map(shown_by, everything))
    while left:
        best = max(everything, key=lambda case: len(shown_by(case) & left))
        chosen.add(best.name)
        left -= shown_by(best)
    return chosen


def parameters() -> list[Any]:
    quick = quick_cases()
    return [pytest.param(case, id=case.name, marks=() if case.name in quick else pytest.mark.slow) for case in cases()]


def compare(name: str, computed: np.ndarray, kept: np.ndarray, precision: str) -> None:
    if SAME[precision]:
        np.testing.assert_array_equal(computed, kept, name)
    else:
        tolerance = TOLERANCE[precision]
        if precision == "bf16" and name == "logits":
            tolerance = TRAINED_LOGITS
        elif precision == "bf16" and name == "grad_norms":
            computed, kept = computed[:EARLY_NORMS], kept[:EARLY_NORMS]
        np.testing.assert_allclose(computed, kept, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", parameters())
def test_training_and_acting_as_recorded(case: Case):
    kept = record.recorded(case.name)
    computed = run(case, follow=None if SAME[case.precision] else kept["actions"])
    assert computed.keys() == kept.keys()
    for name, array in computed.items():
        compare(name, array, kept[name], case.precision)


@pytest.mark.parametrize("name", runs.RUNS)
def test_whole_run_as_recorded(name: str):
    if name.startswith("Minigrid"):
        pytest.importorskip("minigrid")
    computed, kept = runs.run(name), record.recorded_runs()["runs"][name]
    if SAME_MACHINE:
        assert computed == kept
    else:
        assert [line.keys() for line in computed["metrics"]] == [line.keys() for line in kept["metrics"]]
        losses = [[line["train_loss"] for line in run["metrics"] if "train_loss" in line] for run in (computed, kept)]
        compare("train_loss", *map(np.array, losses), "32")


def test_cases_cover_all_options():
    everything = list(cases())
    names = [case.name for case in everything]
    assert len(set(names)) == len(names)
    assert {(case.environment, case.mode) for case in everything} == {(e, m) for e in SPECS for m in MODES}
    tmaze = {(c.mode, c.arch, c.bptt, c.precision) for c in everything if c.environment == "T-Maze"}
    assert len(tmaze) == len(MODES) * len(ARCHS) * 2 * 2
    assert len(quick_cases()) < len(everything) / 4
    for field, values in {
        "environment": SPECS, "bptt": (0, -1), "precision": ("32", "bf16"), "accumulate": (1, 2),
        "action_noise": (0.0, 0.2), "mirror": (False, True), "skip_dec_ffn": (False, True), "window": (False, True),
        "slide": (1, 3), "reset_target": (False, True), "rtg_floor": (None, 0.5), "greedy": (False, True),
        "mrv_act": ("relu", "leaky_relu", "elu", "tanh", "no_act"), "transform": (None, *TRANSFORMS, "twins"),
    }.items():  # fmt: skip
        assert {getattr(case, field) for case in everything} == set(values), field


def test_recordings_are_not_replaced_unasked(capsys):
    before = record.ARRAYS.read_bytes()
    assert record.main([]) == 2
    assert "--overwrite" in capsys.readouterr().err and record.ARRAYS.read_bytes() == before
