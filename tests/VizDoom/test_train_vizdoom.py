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

pytest.importorskip("vizdoom")

import torch

from RATE_model.agent import Agent
from RATE_model.cli import experiment, training
from RATE_model.cli.evaluation import evaluation_of
from RATE_model.cli.options import changeable_flags, to_flat_dict
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.original.variants import VARIANTS
from RATE_model.training.trainer import Trainer
from tests import commands
from tests.interruptions import (
    STOPPED,
    assert_same,
    killed_behind_a_save,
    newest_state,
    outcome,
    stopped_after,
)
from tests.vizdoom_runs import BATCHES_PER_EPOCH, NO_EVALUATION, TINY, only_run, places, train
from VizDoom.VizDoom_src import train_vizdoom
from VizDoom.VizDoom_src.dataset import DATA
from VizDoom.VizDoom_src.engine import BUTTONS, Surroundings
from VizDoom.VizDoom_src.env import MIRRORED, SPEC
from VizDoom.VizDoom_src.environment import ENVIRONMENT
from VizDoom.VizDoom_src.privileged import SIGNS_IN_THE_MIRROR, notes_of
from VizDoom.VizDoom_src.scenario import Scenario

HERE = Path(train_vizdoom.__file__).parent

# The published spellings.
SCRIPT = "python3 VizDoom/VizDoom_src/train_vizdoom.py"
COMMANDS = {
    "RATE": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'RATE' --text 'RATE' --nmt 5 --mem_len 300 --n_head_ca 2 --mrv_act 'relu' --skip_dec_attn",  # noqa: E501
    "RATE, other spelling": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'RATE_ckpt' --text 'my_comment' --nmt 5 --mem_len 300 --n_head_ca 2 --mrv_act 'relu' --skip_dec_ffn",  # noqa: E501
    "DT": f"{SCRIPT} --model_mode 'DT' --arch_mode 'TrXL' --ckpt_folder 'DT' --text 'DT' --nmt 0 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "RMT": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'RMT' --text 'RMT' --nmt 5 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "TrXL": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'TrXL' --text 'TrXL' --nmt 0 --mem_len 270 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
}
PUBLISHED = RATEConfig(
    n_layer=6, n_head=8, d_model=128, d_head=128, d_inner=128, context_length=30, num_mem_tokens=5, n_head_ca=2,
    mrv_act="relu", arch="TrXL", skip_dec_ffn=True, dropout=0.2, dropatt=0.05, mem_len=300, sliding=False,
)  # fmt: skip
WITHOUT_VALVE = replace(PUBLISHED, n_head_ca=0, mrv_act="no_act", skip_dec_ffn=False, mem_len=0)
EXPECTED = {
    "RATE": PUBLISHED,
    "RATE, other spelling": PUBLISHED,
    "DT": replace(WITHOUT_VALVE, num_mem_tokens=0, context_length=90, sliding=True),
    "RMT": WITHOUT_VALVE,
    "TrXL": replace(WITHOUT_VALVE, num_mem_tokens=0, mem_len=270),
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
    assert Agent(config.agent_config(), SPEC).spec == VARIANTS["doom"].spec, "published weights fit"
    assert config.run.seeds == range(1, 7) and config.data.scenario == Scenario().settled()
    folder, text = (flags[flags.index(flag) + 1] for flag in ("--ckpt_folder", "--text"))
    directory = training.run_directory(ENVIRONMENT, config, 3)
    assert directory.parent.parent == HERE.parent / "VizDoom_checkpoints" and directory.parent.name == folder
    mode = "DT" if name == "DT" else "RATE"
    assert re.fullmatch(rf"{text}_arch_mode_TrXL_{mode}_[0-9a-f]{{8}}_RUN_3", directory.name)


def test_finished_run_can_be_evaluated_again(capsys):
    found = commands.printed_config(capsys, train_vizdoom.main, [])
    changeable = set(changeable_flags(ENVIRONMENT.read_config([])))
    assert {"eval_episodes", "slide"} <= changeable <= found.keys()


# --- a run ---


def test_run_directory_has_all_documented_files(data, tmp_path, capsys, engines):
    assert train(tmp_path, *data) == 0
    run = only_run(tmp_path)
    assert {path.name for path in (run / "plots").iterdir()} == {"curves.png", "returns_by_colour.png"}
    assert {path.name for path in (run / "eval").iterdir()} == {"epoch_0001.json", "final.json"}
    assert "\ngraphics: installed\n" in (run / "config.yaml").read_text()
    (start,) = json.loads((run / "environment.json").read_text())["starts"]
    assert start["versions"]["vizdoom"]
    early, final = (json.loads((run / "eval" / f"{name}.json").read_text()) for name in ("epoch_0001", "final"))
    kinds = ("LifeTimeMean", "ReturnsMean", "ReturnsSEM")
    names = {f"{kind}{colour}_56.5" for kind in kinds for colour in ("", "_red", "_green")}
    names |= {"ReturnsMin_56.5", "ReturnsDifference_56.5", "validation_loss", "validation_accuracy"}
    assert early.keys() == names
    assert final.keys() == names | {"optimizer_steps", "train_seconds", "eval_seconds"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train_loss", "train_accuracy", "lr", "ReturnsMin_56.5"} <= set().union(*lines)
    returns = [final[f"ReturnsMean{colour}_56.5"] for colour in ("_red", "_green", "")]
    red, green, both = (f"{value:.3g}" for value in returns)
    said = f"ReturnsMean_red_56.5 {red}, ReturnsMean_green_56.5 {green}, ReturnsMean_56.5 {both}, validation_loss"
    assert said in capsys.readouterr().out
    assert not engines() and not list(Path.cwd().glob("_vizdoom/*"))


def test_training_begins_with_the_first_segments(data, tmp_path):
    assert (
        train(
            tmp_path,
            *data,
            *NO_EVALUATION,
            *"--stages 1:3 --epochs 2 --warmup_tokens 0 --warmup_steps 1 --log_every 1".split(),
        )
        == 0
    )
    lines = [json.loads(line) for line in (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    segments = [line["segments_count"] for line in lines if "train_loss" in line]
    assert segments == [1] * 3 * BATCHES_PER_EPOCH + [2] * 2 * BATCHES_PER_EPOCH
    rates = [line["lr"] for line in lines if "train_loss" in line]
    assert rates == sorted(rates, reverse=True), "one decay over all stages"
    assert rates[-1] == pytest.approx(3e-4, rel=0.01)


def test_flags_determine_the_game():
    config = ENVIRONMENT.read_config(
        "--eval_episodes 8 --target_return 20 --variant clear --pillar_steps 9 --episode_timeout 70".split()
    )
    agent = Agent(config.agent_config(), SPEC).eval()
    asked = evaluation_of(ENVIRONMENT, agent, to_flat_dict(config), cases=(None,), seed=5)
    assert asked.options.scenario == Scenario("clear", pillar_steps=9, graphics="installed")
    assert (asked.options.episode_timeout, asked.targets, asked.episodes, asked.seed) == (70, (20,), 8, 5)


def test_images_stay_uint8_until_the_model(data):
    config = ENVIRONMENT.read_config([*TINY, *data])
    training, validation = DATA.whole_windows([DATA.ensure(config.data)], size=6, shortest=6)
    assert (len(training), len(validation)) == (18, 2)
    assert training.__getitems__([0, 1]).observations.dtype == torch.uint8


def test_learn_flag_selects_the_targets(tmp_path):
    """The players of this data always act at random, so the expert's actions are different targets."""
    losses = []
    for learn in ("recorded", "expert"):
        flags = ["--data_dir", str(tmp_path), "--perturbation", "1", "--learn", learn, *NO_EVALUATION, "--epochs", "1"]
        assert train(tmp_path / learn, *flags) == 0
        losses.append(json.loads((only_run(tmp_path / learn) / "eval" / "final.json").read_text())["validation_loss"])
    assert losses[0] != losses[1]


def test_every_image_of_a_batch_is_encoded_once(data):
    config = ENVIRONMENT.read_config([*TINY, *data])
    batch = DATA.whole_windows([DATA.ensure(config.data)], size=6, shortest=6)[0].__getitems__([0, 1, 2])
    model, encoded = Agent(config.agent_config(), SPEC), []
    model.encoder.observation.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    model(batch.observations, batch.actions, batch.rtg, batch.valid)
    assert sum(encoded) == 3 * 6


# --- interruptions ---


# Flags; the batches after which each start is stopped, within epochs and between them; epochs.
RUNS = {
    "loader processes": (("--num_workers", "1"), (2,), 2),
    "two stages": (("--stages", "1:2", "--epochs", "1"), (2, 3, 2), 3),
}


@pytest.mark.parametrize("kind", RUNS)
def test_interruption_anywhere_changes_nothing(kind, data, tmp_path):
    flags, stops, epochs = RUNS[kind]
    flags = (*flags, *data, *NO_EVALUATION, "--log_every", "1")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for batch in stops:
        with stopped_after(batch):
            assert train(stopped, *flags, "--resume", "auto") == STOPPED
        assert newest_state(only_run(stopped))["trainer"]["step"] > 0
    with killed_behind_a_save():
        train(stopped, *flags, "--resume", "auto")
    assert train(stopped, *flags, "--resume", "auto") == 0
    assert train(whole, *flags) == 0
    expected = outcome(only_run(whole))
    assert_same(outcome(only_run(stopped)), expected)
    assert expected["state"]["trainer"]["step"] == epochs * BATCHES_PER_EPOCH


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
        file["actions"][0] = (file["actions"][0] + 1) % 5
    with pytest.raises(SystemExit, match="^2$"):
        train(tmp_path, "--data_path", str(copy), *NO_EVALUATION, "--resume", "auto")
    assert f"{only_run(tmp_path)} was trained on other data" in capsys.readouterr().err


def test_runs_of_before_a_flag_existed_had_its_default():
    """Otherwise they could not be continued, and finished ones would not be found."""
    assert ENVIRONMENT.before["perturbation_steps"] == ENVIRONMENT.config().data.perturbation_steps == 20


def test_mirror_swaps_left_and_right(data, tmp_path, monkeypatch):
    """The engine's behaviour for each action, and the trainer's transform; none without the flag."""
    for action, mirrored in enumerate(MIRRORED):
        left, right, forward = BUTTONS[action]
        assert BUTTONS[mirrored] == [right, left, forward]
    told = []

    class Recorded(Trainer):
        def __init__(self, *arguments, transform, **options) -> None:
            told.append(transform)
            super().__init__(*arguments, transform=transform, **options)

    monkeypatch.setattr(experiment, "Trainer", Recorded)
    assert train(tmp_path / "mirror", *data, *NO_EVALUATION, "--epochs", "1", "--mirror") == 0
    assert train(tmp_path / "plain", *data, *NO_EVALUATION, "--epochs", "1") == 0
    assert [transform and transform.actions for transform in told] == [MIRRORED, None]


def test_items_to_the_left_are_to_the_right_in_the_mirror():
    """Facing north: an item north-west of the player, and its mirror image."""
    north, items = dict(angle=90.0, velocity=np.zeros(2), health=100.0, pillar=True), np.array([[-30.0, 40.0]])
    notes = [
        notes_of(Surroundings(position=np.zeros(2), right=items * sign, wrong=items * sign, **north))
        for sign in ([1, 1], [-1, 1])
    ]
    np.testing.assert_allclose(notes[0]["right_vec"], [40, 30], atol=1e-4)
    for name, signs in SIGNS_IN_THE_MIRROR.items():
        np.testing.assert_allclose(notes[1][name], signs * notes[0][name], atol=1e-4)


# --- mistakes ---


MISTAKES = {
    "episodes of one colour": ("--eval_episodes 7", ("--eval_episodes 7", "in steps of 2", "at most 200")),
    "no episodes": ("--eval_episodes 0", ("--eval_episodes 0", "at least 4")),
    "no end": ("--episode_timeout 0", ("--episode_timeout 0", "at least 1")),
    "no context": ("--context_length 0", ("--context_length 0", "at least 1")),
    "no segments": ("--segments 0", ("--segments 0", "at least 1")),
    "no stage": ("--stages 1", ("--stages 1", "SEGMENTS:EPOCHS")),
    "a stage of all segments": ("--stages 2:4", ("--stages 2:4", "must increase")),
    "no slide": ("--slide 0", ("--slide 0", "at least 1")),
    "variant": ("--variant own", ("--variant own", "published, clear")),
    "no pillar steps": ("--pillar_steps 0", ("--pillar_steps 0", "at least 1")),
    "too much noise": ("--noise 2", ("--noise 2", "at most 1")),
    "data of another length": (
        "--context_length 4",
        ("--steps 6", "--segments 2 times --context_length 4", "--steps 8"),
    ),
    "no such data": ("--data_path nowhere", ("--data_path", "nowhere", "does not exist")),
    "no data in a folder": (f"--data_path {HERE}", ("--data_path", str(HERE), "train_data_*.npz")),
    "other data": (f"--data_path {HERE / 'config.yaml'}", ("config.yaml",)),
    "valve without tokens": ("--nmt 0", ("--nmt 0", "--n_head_ca 0")),
    "cache in DT": ("--model_mode DT --nmt 0 --n_head_ca 0 --mem_len 19", ("--mem_len 19", "DT", "set it to 0")),
    "folder above": ("--ckpt_folder ../up", ("--ckpt_folder ../up", "plain folder name")),
    "device": ("--device tpu", ("--device tpu", "cpu")),
    "no such run": ("--resume nowhere", ("nowhere", "does not exist")),
    "unknown flag": ("--eval_sizes 9", ("--eval_sizes",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, data, tmp_path, capsys):
    flags, named = MISTAKES[mistake]
    flags = [*TINY, *places(tmp_path), *data, *flags.split()]
    message = commands.error_of(capsys, tmp_path, train_vizdoom.main, flags)
    assert [word for word in named if word not in message] == []


def test_unusable_data_is_not_generated(tmp_path, capsys):
    """Given data may have episodes of several lengths; training uses one of them."""
    flags = [*TINY, *places(tmp_path), "--segments", "3"]
    message = commands.error_of(capsys, tmp_path, train_vizdoom.main, flags)
    assert "--steps 6" in message and "--segments 3 times --context_length 3" in message and "--steps 9" in message
    assert ENVIRONMENT.read_config([*flags, "--data_path", "folder"]).data.steps == 6
    with pytest.raises(UserError, match="--steps 90: .*--segments 4 times --context_length 30"):
        ENVIRONMENT.read_config(["--segments", "4"])


def test_data_of_another_game_is_reported(data, tmp_path, capsys):
    (path,) = Path(data[1]).glob("*.h5")
    flags = [*TINY, *places(tmp_path), "--data_path", str(path), "--variant", "clear"]
    message = commands.error_of(capsys, tmp_path, train_vizdoom.main, flags)
    assert str(path) in message and "made with --variant published, but the flags are --variant clear" in message


def test_images_of_another_size_are_named(data, tmp_path, capsys):
    (path,) = Path(data[1]).glob("*.h5")
    with h5py.File(path) as file, h5py.File(tmp_path / "small.h5", "w") as smaller:
        for name in ("actions", "rewards", "terminals", "timeouts"):
            smaller[name] = file[name][:]
        smaller["observations"] = file["observations"][:, :, ::2]
    flags = [*TINY, *places(tmp_path), "--data_path", str(tmp_path / "small.h5")]
    message = commands.error_of(capsys, tmp_path, train_vizdoom.main, flags)
    assert "small.h5" in message and "(3, 32, 112)" in message and "(3, 64, 112)" in message


@pytest.mark.parametrize("flags", [(), NO_EVALUATION])
def test_missing_vizdoom_is_reported_before_creating_anything(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    message = commands.error_of(capsys, tmp_path, train_vizdoom.main, [*TINY, *places(tmp_path), *flags])
    assert "pip install -c constraints.txt -e '.[vizdoom]'" in message


def test_existing_data_can_be_trained_on_without_vizdoom(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    assert train(tmp_path, *data, *NO_EVALUATION, "--epochs", "1") == 0
