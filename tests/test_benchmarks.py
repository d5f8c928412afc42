"""The benchmarks: operation counts against PyTorch's, agreement before timing, and scripts on tiny sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import against, common, gpu, memories, rollout, roofline, scale, train_step, valve
from benchmarks.flops import acting_flops, training_flops
from benchmarks.plain import make_batch, make_meta, make_model
from RATE_model.acting.actor import Actor
from RATE_model.cli.options import updated
from RATE_model.cli.settings import ModelOptions
from RATE_model.memories import MEMORIES, MODES
from tests.small_models import save_small_model, small_model
from TMaze_new.TMaze_new_src.env import SPEC

K, N, BATCH = 13, 3, 2  # 39 tokens: two row groups
SIZES = dict(n_layer=2, n_head=2, d_model=16, d_head=8, d_inner=24, nmt=3, n_head_ca=2)
TINY = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
TINY += ["--context_length", "4", "--batch_size", "3", "--rounds", "2", "--matrix_size", "64", "--precisions", "32"]

MODELS = {
    "no valve": dict(n_head_ca=0),
    "no tokens, cache": dict(nmt=0, n_head_ca=0, mem_len=20),
    "valve": dict(),
    "feed-forward": dict(skip_dec_ffn=False),
    "gated, cache": dict(arch_mode="GTrXL", skip_dec_ffn=False, mem_len=20),
}


def model_options(**changes) -> ModelOptions:
    return updated(ModelOptions(), SIZES | dict(skip_dec_ffn=True, dropout=0.0) | changes)


def train_options(**changes) -> train_step.Options:
    measure = train_step.MeasureOptions(context_length=K, segments=N, batch_size=BATCH)
    return train_step.Options(model=model_options(**changes), measure=measure)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, plus the in-place product that it does not know."""

    def product(added: torch.Size, left: torch.Size, right: torch.Size, **_: object) -> int:
        return 2 * left.numel() * right[-1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: product})


def assert_same_count(ours: float, counted: int, *, valve: bool) -> None:
    """PyTorch's counter does not see the two products of the valve's fused attention on the CPU, far below 1 %."""
    assert counted > 0
    assert counted <= round(ours) <= 1.002 * counted if valve else round(ours) == counted


@pytest.mark.parametrize(
    ("changes", "bptt_segments"),
    [*((changes, -1) for changes in MODELS.values()), (MODELS["gated, cache"], 0), (MODELS["valve"], 1)],
)
def test_training_flops_match_pytorchs_counter(changes, bptt_segments):
    config = train_options(**changes).model_config()
    meta = make_meta(config, batch_size=BATCH, segments=N)
    weights = train_step.reference.random_weights(meta, seed=0)
    trainer = train_step.make_trainer(config, weights, bptt_segments=bptt_segments, precision="32")
    with flop_counter() as counter:
        trainer.train_batch(make_batch(meta))
    ours = training_flops(config, SPEC, batch_size=BATCH, segments=N, bptt_segments=bptt_segments)
    assert_same_count(ours, counter.get_total_flops(), valve=config.n_head_ca > 0)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_acting_flops_match_pytorchs_counter(changes):
    config = train_options(**changes).model_config()
    weights = train_step.reference.random_weights(make_meta(config, batch_size=BATCH, segments=1), seed=0)
    actor = Actor(make_model(config, weights).eval(), BATCH, 1.0)
    observations = np.zeros((BATCH, 4), dtype=np.float32)
    for _ in range(2 * K):
        actor.act(observations)
    with flop_counter() as counter:
        for _ in range(K):
            actor.act(observations)
    ours = acting_flops(config, SPEC, batch_size=BATCH) * K
    assert_same_count(ours, counter.get_total_flops(), valve=config.n_head_ca > 0)


@pytest.mark.parametrize("changes", [dict(), dict(mem_len=20)], ids=["tokens", "tokens and cache"])
def test_losses_and_logits_agree_with_the_plain_implementation(changes):
    differences = train_step.check_losses(train_options(**changes))
    assert len(differences) == 4 and max(differences.values()) < 2e-2
    measure = rollout.MeasureOptions(context_length=K)
    assert rollout.check_logits(rollout.Options(model_options(**changes), measure), "32") < 1e-4


@pytest.mark.parametrize("module", [train_step, rollout])
def test_differing_model_is_not_timed(module, monkeypatch):
    def spoiled(config, weights):
        model = make_model(config, weights)
        with torch.no_grad():
            model.memory.valve.output.weight *= 0.9  # shows from the second segment on
        return model

    monkeypatch.setattr(module, "make_model", spoiled)
    with pytest.raises(RuntimeError, match="differ"):
        if module is train_step:
            train_step.check_losses(train_options())
        else:
            measure = rollout.MeasureOptions(context_length=K)
            rollout.check_logits(rollout.Options(model_options(), measure), "32")


def test_every_memory_is_timed(tmp_path, capsys):
    sizes = "--d_model 16 --context_length 4 --segments 2 --batch_size 2 --episodes 3 --early 1 --late 3 --rounds 2"
    sizes += " --loop_steps 5 --loop_batch 2 --loop_rounds 1"
    memories.main([*sizes.split(), "--threads", "0", "--output", str(tmp_path / "out.json")])
    assert "ours / bare" in capsys.readouterr().out
    rows = {row["mode"]: row for row in json.loads((tmp_path / "out.json").read_text())["modes"]}
    assert {MODES[mode].memory for mode in rows} == MEMORIES.keys()
    for mode, row in rows.items():
        assert len(row["early"]["seconds"]) == len(row["late"]["seconds"]) == 2 and row["ours"]["min_s"] > 0
        assert ("ours_by_bare" in row) == (mode in ("LSTM", "GRU", "MLP"))
        if mode in ("RATE", "MLP", "LSTM", "Mamba"):
            assert ("loop_by_whole" in row) == (mode in ("LSTM", "Mamba"))


@pytest.mark.parametrize("mode", memories.BARE)
def test_differing_bare_loop_is_not_timed(mode, monkeypatch):
    options = memories.Options(segments=2, context_length=3, batch_size=2)
    assert memories.check_losses(options, mode) < 1e-5
    monkeypatch.setattr(memories.BARE[mode], "hidden", lambda self, steps: steps[..., : options.d_model])
    with pytest.raises(RuntimeError, match="differ"):
        memories.check_losses(options, mode)


def test_gpu_check_runs_on_a_cpu(tmp_path, capsys):
    flags = ["--device", "cpu", "--tiny", "true", "--rounds", "1", "--output_dir", str(tmp_path)]
    assert gpu.main([*flags, "--parts", "benchmarks", "training"]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    rows = result["train_step"]
    assert {name: len(each) for name, each in rows.items()} == {"T-Maze": 8, "ViZDoom": 3}
    assert all(row["min_s"] > 0 for each in rows.values() for row in each)
    assert all(row["min_s"] > 0 for row in result["acting"]) and result["training"]["success"].keys() == {"9", "13"}
    page = (tmp_path / "gpu.md").read_text()
    assert "success" in page and str(tmp_path) not in page + json.dumps(result)


def fails(error):
    def run(*arguments, **keywords):
        raise error

    return run


def test_gpu_check_goes_on_after_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "time_acting", fails(RuntimeError("no memory\nat address 1")))
    monkeypatch.setattr(gpu, "time_training", lambda *arguments: iter(()))
    train_to_the_end = gpu.train_to_the_end
    monkeypatch.setattr(gpu, "train_to_the_end", lambda options: {"ok": True, "success": {"9": 1.0}, "seconds": 1})
    flags = ["--device", "cpu", "--tiny", "true", "--output_dir", str(tmp_path)]
    assert gpu.main([*flags, "--parts", "benchmarks", "training"]) == 1
    page = (tmp_path / "gpu.md").read_text()
    assert "Acting failed: RuntimeError: no memory\n" in page and "success 1.0 at 9 steps" in page
    monkeypatch.setattr(gpu.train_tmaze, "main", fails(SystemExit(2)))
    monkeypatch.setattr(gpu, "train_to_the_end", train_to_the_end)
    assert gpu.main([*flags, "--parts", "training"]) == 1
    assert "Training on T-Maze failed: refused for the reason printed above" in (tmp_path / "gpu.md").read_text()


def test_signals_end_a_gpu_check(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.train_tmaze, "main", fails(SystemExit(143)))  # as after SIGTERM
    flags = ["--device", "cpu", "--tiny", "true", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="^143$"):
        gpu.main([*flags, "--parts", "training", "tests"])


def test_gpu_page_keeps_what_was_measured_of_an_uncounted_row():
    row = {"attention": "whole", "how": "graph", "precision": "bf16", "median_s": 0.02, "min_s": 0.01}
    table = gpu.training_table([row | {"peak_mib": 100.0, "uncounted": "RuntimeError: no counters"}])
    assert "RuntimeError: no counters" in table and "| 100 " in table


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "cpu", "--parts="], "--parts is empty; give some of tests, benchmarks, training"),
        (["--device", "cpu", "--parts", "tests"], "--output_dir is missing: only a check of all parts"),
        (["--device", "cpu", "--output_dir", "nowhere"], "--output_dir nowhere: give an existing folder"),
        (["--device", "cpu", "--output_dir", "/proc"], "--output_dir /proc: gpu.json cannot be written ("),
    ],
    ids=str,
)
def test_gpu_check_refuses_what_it_cannot_do(flags, words, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        gpu.main(flags)
    assert words in capsys.readouterr().err


def test_candidates_alternate_after_a_warm_up_round():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) or 1.0 * len(calls) for name in "ab"}
    seconds = common.interleave(candidates, rounds=2, report=lambda line: None)
    assert "".join(calls) == "ababab"
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert common.ratio([8.0, 30.0, 6.0], [2.0, 3.0, 2.0]) == 4.0


def memory_around_a_block() -> list[tuple[float, float]]:
    """`memory_mib` before, during and after an allocation of 512 MiB."""
    told = [common.memory_mib()]
    block = torch.ones(2**27)
    told.append(common.memory_mib())
    del block
    return [*told, common.memory_mib()]


@pytest.mark.skipif(common.memory_mib() is None, reason="memory is read from /proc")
def test_new_process_does_not_inherit_peak_memory():
    block = torch.ones(2**27)
    # In a separate process: after many tests this one may keep the block's pages.
    (before, peak_before), (held, _), (after, peak_after) = common.in_fresh_process(memory_around_a_block)
    assert peak_before < common.memory_mib()[0] - 256
    assert held > before + 500
    assert after < held - 256 and peak_after > held - 16  # the system counts pages in parts and is a little late
    del block


def test_figures_are_written_between_the_marks():
    page = "before\n<!-- x -->\nold\n<!-- end x -->\nafter\n"
    assert common.between_marks(page, "x", "new") == "before\n<!-- x -->\n\nnew\n\n<!-- end x -->\nafter\n"
    with pytest.raises(common.UserError, match="<!-- y -->"):
        common.between_marks(page, "y", "new")
    readme = common.README.read_text()
    for name in ("train_step", "rollout", "memories", "against", "roofline"):
        common.between_marks(readme, name, "")


def test_every_operation_of_attention_is_timed(tmp_path, capsys):
    roofline.main(["--batch_size", "1", "--segments", "1", "--calls", "1", "--output", str(tmp_path / "found.json")])
    assert "| bf16 | all |" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "found.json").read_text())["operations"]
    assert len(found) == 8 and all(row["seconds"] > 0 for row in found)
    assert all((row["gflops"] > 0) == row["kind"].startswith("products") for row in found)


@pytest.mark.parametrize(
    ("main", "flags", "words"),
    [
        (rollout.main, ["--lengths", "900", "90"], "--lengths 900 90"),
        (rollout.main, ["--lengths", "20"], "--context_length 30"),
        (rollout.main, ["--model_mode", "DT", "--mem_len", "0"], "--model_mode DT"),
        (memories.main, ["--modes", "LTSM"], "--modes LTSM"),
        (train_step.main, ["--rounds", "0"], "--rounds 0"),
        (against.main, ["--other", "nowhere"], "--other nowhere"),
        (scale.main, ["--rows", "6", "2"], "--rows 6 2"),
        (scale.main, ["--models", "Pong"], "--models Pong"),
        (scale.main, ["--pairs", "1"], "--pairs 1"),
        (train_step.main, ["--output", "no/such/folder/file.json"], "--output no/such/folder/file.json"),
    ],
)
def test_bad_flags_are_named_before_anything_runs(main, flags, words, capsys):
    with pytest.raises(SystemExit) as exit_code:
        main(flags)
    assert exit_code.value.code == 2
    assert words in capsys.readouterr().err


def test_messages_grow_with_processes_and_parameters():
    assert scale.messages(1000, 1, 1.0, 1.0) == 0
    # Ring of two: half of the gradient each way; the other four sums are tiny.
    assert scale.messages(1000, 2, 0.0, 4000.0) == pytest.approx(1.0) and scale.messages(0, 2, 1.0, 1.0) == 10
    assert scale.messages(1000, 64, 0.0, 4000.0) == pytest.approx(2 * 63 / 64)
    figures = {"T-Maze": {"fixed_s": 0.0, "each_s": 1.0, "parameters": 1000}}
    assert "| 64 | 2.0 (0%) | 4.0 (0%) |" in scale.table(figures, 0.0, 1e9)


def test_the_gain_is_the_median_within_pairs():
    """A machine that is twice as slow in every second pair does not affect the ratios."""
    slow = np.tile([1.0, 2.0], 10)
    found = {name + by: slow * time for by in ("", " CPU") for name, time in (("alone", 3), ("half", 1.5), ("both", 2))}
    line = scale.speed_table(found).splitlines()[-1]
    assert "4.500 s" in line and "1.50 (1.50 to 1.50)" in line and "2.00 (2.00" in line and "1.33 (1.33" in line


def test_the_small_model_is_that_of_the_fast_setting():
    config = rollout.with_fast_model(rollout.Options()).model_config()
    assert (config.n_layer, config.n_head, config.d_head, config.context_length) == (2, 2, 32, 30)
    assert rollout.Options().model_config().n_layer == 8


@pytest.fixture
def in_this_process(monkeypatch):
    """Run memory measurements in this process, because another one takes seconds to start."""
    monkeypatch.setattr(common, "in_fresh_process", lambda function, *arguments: function(*arguments))


def run_script(module, capsys, output: Path, *flags: str) -> tuple[str, dict]:
    """What a script prints, and the JSON that it writes."""
    module.main([*TINY, "--output", str(output), *flags])
    result = json.loads(output.read_text())
    assert {"cpu", "cpus", "torch_threads", "torch", "date", "commit"} <= result["machine"].keys()
    assert module.__name__.endswith(result["benchmark"]) and result["options"]["n_layer"] == 2
    return capsys.readouterr().out, result


def test_train_step_runs(tmp_path, capsys, in_this_process):
    flags = ["--segments", "2", "--memory_segments", "2", "--profile", "true"]
    text, result = run_script(train_step, capsys, tmp_path / "out.json", *flags)
    assert "Where the time of a batch goes (32, all segments): forward" in text and "matrix products" in text
    found = result["profile"]["32"]
    assert all(abs(sum(part.values()) - 1) < 0.01 and min(part.values()) >= 0 for part in found.values())
    assert "times faster" in text and "peak MiB" in text
    assert result["matrix_product_gflops"].keys() == {"32"}
    kinds = [(row["implementation"], row["bptt_segments"]) for row in result["timings"]]
    assert kinds == [("ours", 0), ("plain", 0), ("ours", -1), ("plain", -1)]
    for row in result["timings"]:
        assert len(row["seconds"]) == 2 and 0 < row["min_s"] <= row["median_s"]
        assert ("ratio" in row and 0 < row["share"] < 1) == (row["implementation"] == "ours")
    assert [(row["bptt_segments"], row["segments"]) for row in result["memory"]] == [(0, 2), (-1, 2)]


def test_rollout_runs(tmp_path, capsys, in_this_process):
    text, result = run_script(rollout, capsys, tmp_path / "out.json", "--lengths", "8", "20", "--fast", "false")
    assert "late / early" in text and "peak MiB" in text
    (case,) = result["cases"]
    assert case["precision"] == "32" and case["logit_difference"] < 1e-4
    assert case["peak_mib"].keys() == {"8", "20"}
    for key in ("early", "late", "plain_episode"):
        assert len(case[key]["seconds"]) == 2 and case[key]["min_s"] > 0
    assert case["ratio"] > 0 and case["late_by_early"] > 0 and 0 < case["share"] < 1


def test_valves_are_compared(capsys, tmp_path):
    valve.main(["--mrv", "none", "FSQ", "--names", "2", "--limit", "0.001", "--output", str(tmp_path / "valve.json")])
    assert "given up" in capsys.readouterr().out
    runs = json.loads((tmp_path / "valve.json").read_text())["runs"]
    assert [(run["mrv"], run["batches"], run["solved"]) for run in runs] == [("none", 1, False), ("FSQ", 1, False)]


def test_memory_of_a_run_is_recorded_and_perturbed(capsys, tmp_path):
    save_small_model(small_model(spec=SPEC, mrv="FSQ", seed=1), tmp_path)
    valve.main(["--runs", str(tmp_path), "--segments", "10", "--episodes", "2"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [int(row[0]) for row in rows] == [1, 2, 9, 10]
    assert [bool(row[-1].strip()) for row in rows] == [False, False, True, True]
    assert float(rows[2][-1]) == 1, "the effect of a push is complete at first"
