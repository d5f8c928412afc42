"""The command: what its flags mean, its data, its output, interruptions, and mistakes."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("minigrid")

import torch

from MinigridMemory.MinigridMemory_src import train_minigridmemory
from MinigridMemory.MinigridMemory_src.dataset import DATA
from MinigridMemory.MinigridMemory_src.env import SPEC
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT, Mazes
from RATE_model.acting.evaluation import Acting
from RATE_model.acting.rollout import Episodes
from RATE_model.cli import training
from RATE_model.cli.options import changeable_flags
from RATE_model.data.frames import Frames
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.original.variants import VARIANTS
from RATE_model.training.runs import Run
from tests import commands
from tests.interruptions import (
    STOPPED,
    assert_same,
    differences,
    killed_behind_a_save,
    newest_state,
    outcome,
    stopped_after,
)
from tests.minigrid_runs import NO_EVALUATION, TINY, only_run, places, train
from tests.small_models import rate_agent

HERE = Path(train_minigridmemory.__file__).parent
K = 5  # steps of a segment in the tiny setting

# The published spellings.
SCRIPT = "python3 MinigridMemory/MinigridMemory_src/train_minigridmemory.py"
COMMANDS = {
    "RATE": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'RATE' --text 'RATE' --nmt 15 --mem_len 180 --n_head_ca 1 --mrv_act 'relu' --skip_dec_attn",  # noqa: E501
    "DT": f"{SCRIPT} --model_mode 'DT' --arch_mode 'TrXL' --ckpt_folder 'DT' --text 'DT' --nmt 0 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "RMT": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'RMT' --text 'RMT' --nmt 15 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "TrXL": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'RMT' --text 'TrXL' --nmt 0 --mem_len 90 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
}
PUBLISHED = RATEConfig(
    n_layer=8, n_head=10, d_model=64, d_head=64, d_inner=64, context_length=10, num_mem_tokens=15, n_head_ca=1,
    mrv_act="relu", arch="TrXL", skip_dec_ffn=True, dropout=0.2, dropatt=0.05, mem_len=180, sliding=False,
)  # fmt: skip
WITHOUT_VALVE = replace(PUBLISHED, n_head_ca=0, mrv_act="no_act", skip_dec_ffn=False, mem_len=0)
EXPECTED = {
    "RATE": PUBLISHED,
    "DT": replace(WITHOUT_VALVE, num_mem_tokens=0, context_length=30, sliding=True),
    "RMT": WITHOUT_VALVE,
    "TrXL": replace(WITHOUT_VALVE, num_mem_tokens=0, mem_len=90),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, str]:
    """Flags for a folder that already contains the tiny data."""
    flags = "--data_dir", str(tmp_path_factory.mktemp("data"))
    DATA.ensure(ENVIRONMENT.read_config([*TINY, *flags]).data)
    return flags


# --- flags ---


@pytest.mark.parametrize("name", COMMANDS)
def test_published_commands_keep_their_meaning(name):
    flags = shlex.split(COMMANDS[name])[2:]
    config = ENVIRONMENT.read_config(flags)
    assert config.agent_config().sizes == EXPECTED[name]
    assert config.curriculum.curr == "false" and config.run.seeds == range(1, 4)
    folder, text = (flags[flags.index(flag) + 1] for flag in ("--ckpt_folder", "--text"))
    directory = training.run_directory(ENVIRONMENT, config, 3)
    assert directory.parent.parent == HERE.parent / "MinigridMemory_checkpoints"
    assert directory.parent.name == folder
    mode = "DT" if name == "DT" else "RATE"
    assert re.fullmatch(rf"{text}_arch_mode_TrXL_{mode}_[0-9a-f]{{8}}_RUN_3", directory.name)


def test_finished_run_can_be_evaluated_again(capsys):
    found = commands.printed_config(capsys, train_minigridmemory.main, [])
    changeable = set(changeable_flags(ENVIRONMENT.read_config([])))
    assert {"eval_sizes", "final_sizes", "eval_episodes"} <= changeable <= found.keys()


def test_model_matches_published_one_without_fourth_action():
    assert replace(VARIANTS["minigrid_memory"].spec, num_actions=3, action_embeddings=4) == SPEC
    model = rate_agent(PUBLISHED, SPEC)
    assert model.head.project.weight.shape == (3, 64) and model.encoder.action.weight.shape == (4, 64)


# --- data ---


def test_stage_has_all_episodes_that_fit(data):
    def stages(*flags: str):
        loaded = ENVIRONMENT.load(ENVIRONMENT.read_config([*TINY, *data, *flags]))
        return loaded.windows, [*loaded.stages]

    windows, numbers = stages("--batch_size", "1")
    everything = windows(3)
    lengths = np.concatenate([side.windows[:, 2] for side in everything])
    assert numbers == [2, 3] and len(lengths) == 40 and lengths.max() <= 3 * K
    for segments in numbers:
        for side, whole in zip(windows(segments), everything, strict=True):
            assert side.size == segments * K
            fits = whole.windows[:, 2] <= side.size
            assert side.windows.tolist() == whole.windows[fits].tolist()
    of_training = everything[0].windows[:, 2]
    short = int((of_training <= 2 * K).sum())
    assert 10 <= short < len(of_training) - 10
    most = short // 10
    assert stages("--batch_size", str(most))[1] == [2, 3] and stages("--batch_size", str(most + 1))[1] == [3]
    assert stages("--batch_size", "1000")[1] == [3], "batches that nothing fills"
    assert stages("--batch_size", "1", "--context_length", "3", "--segments", "6")[1][0] * 3 >= lengths.min()


def test_segments_that_are_padding_are_not_run(data):
    windows = ENVIRONMENT.load(ENVIRONMENT.read_config([*TINY, *data, "--segments", "9"])).windows
    batch = windows(9)[0].__getitems__(range(20))
    assert isinstance(batch.observations, Frames) and batch.valid.shape == (20, 9 * K)
    config = ENVIRONMENT.read_config([*TINY]).agent_config().sizes
    model, rows = rate_agent(config, SPEC), []
    model.encoder.rtg.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape))
    logits, _ = model(batch.observations, batch.actions, batch.rtg, batch.valid)
    assert logits.shape == (20, 9 * K, 3)
    assert sum(shape[0] for shape in rows) == int((-(-batch.lengths // K)).sum()) < 20 * 3


def test_curriculum_is_judged_at_the_fork(data):
    windows = ENVIRONMENT.load(ENVIRONMENT.read_config([*TINY, *data])).windows
    batch = windows(3)[0].__getitems__(range(4))
    logits = torch.nn.functional.one_hot(batch.actions, 3).float()
    rows = torch.arange(4)
    wrong = (batch.actions + 1) % 3
    logits[0, batch.lengths[0] - 4], logits[1, batch.lengths[1] - 3] = (
        torch.nn.functional.one_hot(wrong[row, batch.lengths[row] - back], 3).float() for row, back in ((0, 4), (1, 3))
    )
    found = ENVIRONMENT.batch_metrics(logits, batch)
    assert found["train_last_acc"] == 3 / 4 and found["train_accuracy"].mean == 1 - 2 / batch.lengths[rows].sum()


# --- a run ---


@pytest.mark.parametrize("file", ["config.yaml", "config_fast.yaml"])
def test_every_shipped_configuration_trains(file, tmp_path):
    flags = ["--config", str(HERE / file), *places(tmp_path), "--size", "11", "--trajectories", "12", *NO_EVALUATION]
    flags += "--epochs 1 --stage_batches 1 --anneal_batches 1 --end_seed 1 --device cpu --wandb_mode disabled".split()
    assert train_minigridmemory.main(flags) == 0
    result = json.loads((only_run(tmp_path) / "eval" / "final.json").read_text())
    assert result["optimizer_steps"] >= 1 and 0 < result["validation_loss"] < 10
    assert not any("Success_rate" in name for name in result)


def test_run_directory_has_all_documented_files(data, tmp_path, capsys):
    assert train(tmp_path, *data) == 0
    run = only_run(tmp_path)
    assert {path.name for path in (run / "plots").iterdir()} == {"curves.png", "success_by_size.png"}
    assert {path.name for path in (run / "eval").iterdir()} == {"epoch_0001.json", "final.json"}
    early, final = (json.loads((run / "eval" / f"{name}.json").read_text()) for name in ("epoch_0001", "final"))

    def names(prefix: str, size: int) -> set[str]:
        published = {f"{name}_r_0.96_l_{size}" for name in ("LifeTimeMean", "ReturnsMax", "ReturnsMean")}
        success = f"Success_rate_l_{size}"
        return {prefix + name for name in {*published, success, f"{success}_expert_cap", f"Expert_s{success[1:]}"}}

    losses = {"validation_loss", "validation_accuracy", "validation_last_acc"}
    assert early.keys() == losses | names("", 7) | names("", 9)
    seconds = {"optimizer_steps", "train_seconds", "eval_seconds"}
    assert final.keys() == early.keys() | seconds | names("FINAL_", 7) | names("FINAL_", 11)
    assert final["FINAL_Success_rate_l_7"] == final["Success_rate_l_7"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train_loss", "train_accuracy", "train_last_acc", "segments_count", "lr"} <= set().union(*lines)
    said = capsys.readouterr().out
    assert f"Success_rate_l_9 {final['Success_rate_l_9']:.3g} (within 96 steps), Success_rate_l_9_expert_cap " in said


def test_flags_set_sizes_and_actions(monkeypatch):
    asked = []

    def play(environment, evaluation, acting, twins=False):
        asked.append((list(evaluation.cases), evaluation.episodes, evaluation.options, acting))
        return {size: Episodes(np.ones(7), np.full(7, 90 + size), np.ones(7)) for size in evaluation.cases}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    config = ENVIRONMENT.read_config(
        "--eval_sizes 9 31 --final_sizes 11 31 --eval_episodes 7 --target_return 0.5 --precision bf16 "
        "--layouts own --episode_timeout 110 --slide 2".split()
    )
    run = Run(Path("run"), 5, None, ())
    early, final = (training.evaluate(ENVIRONMENT, None, config, run, final=final) for final in (False, True))
    assert early["Success_rate_l_9"] == final["FINAL_Success_rate_l_11"] == 1, "within 110 steps"
    assert early["Success_rate_l_31"] == final["FINAL_Success_rate_l_31"] == 0
    sizes = [re.findall(r"(FINAL_)?Success_rate_l_(\d+) ", " ".join(found) + " ") for found in (early, final)]
    assert sizes == [[("", "9"), ("", "31")], [("", "9"), ("", "31"), ("FINAL_", "11"), ("FINAL_", "31")]]
    mazes = Mazes(layouts="own", episode_timeout=110, slide=2)
    acting = Acting(target_return=0.5, greedy=False, seed=5, slide=2, precision="bf16")
    expected = [([9, 31], 7, mazes, acting), ([9, 11, 31], 7, mazes, acting)]
    assert asked == expected, "a size that is in both is played once"


# --- interruptions ---


# Flags, and the batches after which each start is stopped: within epochs and between them.
RUNS = {
    "short epochs": (("--epochs", "3", "--epoch_batches", "2"), (1, 1, 1, 2)),
    # No stage is solved: 3 batches of two segments, 3 of three, and the annealing.
    "adaptive": ("--curr adaptive --stage_batches 3 --anneal_batches 3 --batch_size 2".split(), (1, 2, 1, 3)),
}


@pytest.mark.parametrize("kind", RUNS)
def test_interruption_anywhere_changes_nothing(kind, data, tmp_path):
    flags, stops = RUNS[kind]
    flags = (*flags, *data, *NO_EVALUATION, "--log_every", "1")
    stopped, whole, states = tmp_path / "stopped", tmp_path / "whole", []
    for batch in stops:
        with stopped_after(batch):
            assert train(stopped, *flags, "--resume", "auto") == STOPPED
        states.append(newest_state(only_run(stopped)))
    with killed_behind_a_save():
        train(stopped, *flags, "--resume", "auto")
    assert train(stopped, *flags, "--resume", "auto") == 0
    assert train(whole, *flags) == 0
    expected = outcome(only_run(whole))
    assert_same(outcome(only_run(stopped)), expected)
    assert expected["state"]["trainer"]["step"] == {"short epochs": 6, "adaptive": 9}[kind]
    if kind == "adaptive":
        stages = [(state["curriculum"]["index"], state["curriculum"]["anneal_left"]) for state in states]
        assert stages == [(0, None), (1, None), (1, None), (1, 1)]


def test_run_resumes_with_moved_data_but_no_other(data, tmp_path, capsys):
    """The file's content counts, not its name."""
    (original,), copy = Path(data[1]).glob("*.h5"), tmp_path / "copy.h5"
    shutil.copy(original, copy)
    with stopped_after(2):
        assert train(tmp_path, *data, *NO_EVALUATION) == STOPPED
    with stopped_after(1):
        assert train(tmp_path, "--data_path", str(copy), *NO_EVALUATION, "--resume", "auto") == STOPPED
    with h5py.File(copy, "r+") as file:
        del file["checksums"]  # changed, not damaged
        file["actions"][0] = (file["actions"][0] + 1) % 3
    with pytest.raises(SystemExit, match="^2$"):
        train(tmp_path, "--data_path", str(copy), *NO_EVALUATION, "--resume", "auto")
    assert f"{only_run(tmp_path)} was trained on other data" in capsys.readouterr().err


def test_evaluation_does_not_affect_training(data, tmp_path):
    """Acting samples from separate generators."""
    assert train(tmp_path / "with", *data, "--last_inference", "false", "--eval_sizes", "7") == 0
    assert train(tmp_path / "without", *data, *NO_EVALUATION) == 0
    both = (outcome(only_run(tmp_path / name))["weights"] for name in ("with", "without"))
    assert list(differences(*both)) == []


# --- mistakes ---


MISTAKES = {
    "even size": ("--size 30", ("--size 30", "odd")),
    "small size": ("--size 5", ("--size 5", "7 to 2001")),
    "even sizes at checkpoints": ("--eval_sizes 31 90", ("--eval_sizes 90", "odd")),
    "small sizes at the end": ("--final_sizes 5", ("--final_sizes 5", "7 to 2001")),
    "preset": ("--preset clean_51", ("--preset", "clean_51", "published_41")),
    "no time": ("--episode_timeout 0", ("--episode_timeout 0", "at least 1")),
    "layouts": ("--layouts old", ("--layouts old", "own, published")),
    "no episodes": ("--eval_episodes 0", ("--eval_episodes 0", "at least 1")),
    "episodes that are data": ("--eval_episodes 10001", ("--eval_episodes 10001", "at most 10000")),
    "no context": ("--context_length 0", ("--context_length 0", "at least 1")),
    "no segments": ("--segments 0", ("--segments 0", "at least 1")),
    "no slide": ("--slide 0", ("--slide 0", "at least 1")),
    "no short epoch": ("--epoch_batches 0", ("--epoch_batches 0", "at least 1")),
    "episodes too long": (
        "--context_length 2",
        ("40 episodes", "at most 6 steps", "--segments", "--context_length"),
    ),
    "no such data": ("--data_path nowhere", ("--data_path", "nowhere", "does not exist")),
    "no data in a folder": (f"--data_path {HERE}", ("--data_path", str(HERE), "train_data_*.npz")),
    "other data": (f"--data_path {HERE / 'config.yaml'}", ("config.yaml",)),
    "valve without tokens": ("--nmt 0", ("--nmt 0", "--n_head_ca 0")),
    "cache in DT": ("--model_mode DT --nmt 0 --n_head_ca 0 --mem_len 19", ("--mem_len 19", "DT", "set it to 0")),
    "folder above": ("--ckpt_folder ../up", ("--ckpt_folder ../up", "plain folder name")),
    "device": ("--device tpu", ("--device tpu", "cpu")),
    "no such run": ("--resume nowhere", ("nowhere", "does not exist")),
    "unknown flag": ("--eval_lengths 9", ("--eval_lengths",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, data, tmp_path, capsys):
    flags, named = MISTAKES[mistake]
    flags = [*TINY, *places(tmp_path), *data, *flags.split()]
    message = commands.error_of(capsys, tmp_path, train_minigridmemory.main, flags)
    assert [word for word in named if word not in message] == []


@pytest.mark.parametrize("flags", [(), NO_EVALUATION])
def test_missing_package_is_reported_before_making_data(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(SystemExit, match="^2$"):
        train_minigridmemory.main([*TINY, *places(tmp_path), *flags])
    printed, errors = capsys.readouterr()
    assert not printed and "pip install -c constraints.txt -e '.[minigrid]'" in errors and not list(tmp_path.iterdir())
