"""RATE remembers over any length, a Decision Transformer no farther than its window. Takes minutes."""

import json
import sys
from pathlib import Path

import pytest

from RATE_model.acting.controls import knock_out_memory
from RATE_model.loading import load_model
from RATE_model.training.checkpoints import resolve_checkpoint
from tests.tmaze_runs import only_run, places, success_by_length
from TMaze_new.TMaze_new_src import train_tmaze
from TMaze_new.TMaze_new_src.evaluate import LENGTHS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def train(folder, *flags: str) -> None:
    fast = str(Path(train_tmaze.__file__).parent / "config_fast.yaml")
    flags = (
        "--config",
        fast,
        *places(folder),
        "--end_seed",
        "1",
        "--device",
        "cpu",
        "--wandb_mode",
        "disabled",
        *flags,
    )
    assert train_tmaze.main(flags) == 0


def test_rate_remembers_at_any_length_unless_knocked_out(tmp_path):
    train(tmp_path)
    run = only_run(tmp_path)
    final = json.loads((run / "eval" / "final.json").read_text())
    assert final["all_stages_solved"]
    assert {length: final[f"Success_rate_T_{length}"] for length in LENGTHS} == dict.fromkeys(LENGTHS, 1.0)
    model = load_model(resolve_checkpoint(run))
    lengths = (9, 30, 60, 90, 900)
    forgotten = success_by_length(model, lengths, transform_memory=knock_out_memory)
    rates = {length: result["success_rate"] for length, result in forgotten.items()}
    print(rates, file=sys.stderr)
    assert rates[9] == 1.0 and model.memory.config.context_length == 10  # within a segment there is nothing to remember
    assert all(0.3 <= rates[length] <= 0.7 for length in (30, 60, 90, 900))


def test_decision_transformer_remembers_only_within_its_window(tmp_path):
    train(tmp_path, "--model_mode", "DT", "--slide", "30", "--eval_lengths", "9", "30", "90", "300", "900")
    final = json.loads((only_run(tmp_path) / "eval" / "final.json").read_text())
    rates = {length: final[f"Success_rate_T_{length}"] for length in (9, 30, 90, 300, 900)}
    print(rates, file=sys.stderr)
    assert rates[30] >= 0.9 and rates[90] >= 0.9
    assert 0.3 <= rates[300] <= 0.7 and 0.3 <= rates[900] <= 0.7
