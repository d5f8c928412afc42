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

from MemoryMaze.MemoryMaze_src import dataset, train_mem_maze
from MemoryMaze.MemoryMaze_src.env import MIRRORED, SPEC
from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT, Mazes
from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.cli import experiment, training
from RATE_model.cli.evaluation import evaluation_of
from RATE_model.cli.options import changeable_flags, to_flat_dict
from RATE_model.loading import load_agent
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.original.variants import VARIANTS
from tests import commands
from tests.interruptions import STOPPED, assert_same, killed_behind_a_save, outcome, stopped_after
from tests.memory_maze_runs import BATCHES_PER_EPOCH, NO_EVALUATION, TINY, only_run, train, write_data
from tests.small_models import rate_agent

HERE = Path(train_mem_maze.__file__).parent

# The published spellings.
SCRIPT = "python3 -W ignore MemoryMaze/MemoryMaze_src/train_mem_maze.py"
COMMANDS = {
    "RATE": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'RATE' --text 'RATE' --nmt 5 --mem_len 300 --n_head_ca 2 --mrv_act 'relu' --skip_dec_attn",  # noqa: E501
    "DT": f"{SCRIPT} --model_mode 'DT' --arch_mode 'TrXL' --ckpt_folder 'DT' --text 'DT' --nmt 0 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "RMT": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'RMT' --text 'RMT' --nmt 5 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "TrXL": f"{SCRIPT} --model_mode 'RATE' --arch_mode 'TrXL' --ckpt_folder 'TrXL' --text 'TrXL' --nmt 0 --mem_len 360 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
}
PUBLISHED = RATEConfig(
    n_layer=6, n_head=8, d_model=64, d_head=64, d_inner=64, context_length=30, num_mem_tokens=5, n_head_ca=2,
    mrv_act="relu", arch="TrXL", skip_dec_ffn=True, dropout=0.5, dropatt=0.2, mem_len=300, sliding=False,
)  # fmt: skip
WITHOUT_VALVE = replace(PUBLISHED, n_head_ca=0, mrv_act="no_act", skip_dec_ffn=False, mem_len=0)
EXPECTED = {
    "RATE": PUBLISHED,
    "DT": replace(WITHOUT_VALVE, num_mem_tokens=0, context_length=90, sliding=True),
    "RMT": WITHOUT_VALVE,
    "TrXL": replace(WITHOUT_VALVE, num_mem_tokens=0, mem_len=360),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A file of tiny data."""
    return write_data(tmp_path_factory.mktemp("data") / "tiny.h5")


@pytest.fixture
def played(monkeypatch) -> list:
    """Nothing is played, but arguments are recorded; results are made up."""
    asked = []

    def play(self, evaluation, acting, *, twins=False):
        assert not evaluation.agent.training
        asked.append(evaluation)
        returns = np.arange(1.0, evaluation.episodes + 1)
        return {None: Episodes(returns, np.full(len(returns), evaluation.options.episode_timeout), returns)}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    return asked


# --- flags ---


@pytest.mark.parametrize("name", COMMANDS)
def test_published_commands_keep_their_meaning(name):
    flags = shlex.split(COMMANDS[name])[4:]
    config = ENVIRONMENT.read_config(flags)
    assert config.agent_config().sizes == EXPECTED[name] and config.run.seeds == range(1, 4)
    directory = training.run_directory(ENVIRONMENT, config, 3)
    assert directory.parent == HERE.parent / "MemoryMaze_checkpoints" / name
    mode = "DT" if name == "DT" else "RATE"
    assert re.fullmatch(rf"{name}_arch_mode_TrXL_{mode}_[0-9a-f]{{8}}_RUN_3", directory.name)


def test_run_is_evaluated_by_the_published_protocol(capsys):
    """The published evaluations come every 8 million environment steps."""
    found = commands.printed_config(capsys, train_mem_maze.main, [])
    steps = found["ckpt_epoch"] * found["epoch_batches"] * found["batch_size"] * found["context_length"]
    assert steps * found["segments"] == pytest.approx(8e6, rel=0.001)
    assert "eval_episodes" in changeable_flags(ENVIRONMENT.read_config([]))


def test_the_model_is_the_published_one():
    assert VARIANTS["memory_maze"].spec == SPEC
    encoder = rate_agent(PUBLISHED, SPEC).encoder
    assert encoder.observation[0].project.weight.shape == (64, 7744)


# --- a run ---


def test_learn_flag_selects_the_targets(data, tmp_path):
    losses = []
    for learn in ("recorded", "expert"):
        assert train(tmp_path / learn, data, "--learn", learn, "--epochs", "1", *NO_EVALUATION) == 0
        losses.append(json.loads((only_run(tmp_path / learn) / "eval" / "final.json").read_text())["validation_loss"])
    assert losses[0] != losses[1]


def test_run_directory_has_all_documented_files(data, tmp_path, played, capsys):
    assert train(tmp_path, data) == 0
    run = only_run(tmp_path)
    assert {path.name for path in (run / "plots").iterdir()} == {"curves.png"}
    assert {path.name for path in (run / "eval").iterdir()} == {"epoch_0001.json", "final.json"}
    early, final = (json.loads((run / "eval" / f"{name}.json").read_text()) for name in ("epoch_0001", "final"))
    names = {"LifeTimeMean_18.1", "ReturnsMax_18.1", "ReturnsMean_18.1", "ReturnsSEM_18.1"}
    assert early.keys() == {"validation_loss", "validation_accuracy"} | names
    assert final.keys() == early.keys() | {"optimizer_steps", "train_seconds", "eval_seconds"}
    assert [final[f"{name}_18.1"] for name in ("LifeTimeMean", "ReturnsMax", "ReturnsMean")] == [7, 2, 1.5]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train_loss", "train_accuracy", "segments_count", "lr"} <= set().union(*lines)
    assert "ReturnsMean_18.1 1.5 (balls, 2 episodes), validation_loss" in capsys.readouterr().out
    assert len(played) == 2


@pytest.mark.parametrize(
    ("flags", "options", "floor"),
    [
        ("--size 11 --use_argmax --rtg_floor none --episode_timeout none --slide 4",
         Mazes(use_argmax=True, slide=4, episode_timeout=None, size=11), None),
        ("", Mazes(rtg_floor=0.0), 0.0),
    ],
)  # fmt: skip
def test_flags_determine_the_episodes(flags, options, floor):
    config = ENVIRONMENT.read_config(flags.split())
    agent = Agent(config.agent_config(), SPEC).eval()
    asked = evaluation_of(ENVIRONMENT, agent, to_flat_dict(config), cases=(None,), seed=5)
    assert asked.options == options and asked.acting(18.1).rtg_floor == floor
    assert (asked.targets, asked.episodes, asked.seed) == ((18.1,), 5, 5)


def test_conv_channels_flag_is_applied_and_loadable(data, tmp_path):
    assert train(tmp_path, data, *NO_EVALUATION, "--epochs", "1", "--conv_channels", "4", "8", "6") == 0
    model = load_agent(only_run(tmp_path))
    convolutions = (layer for layer in model.encoder.observation[0].convolutions if hasattr(layer, "out_channels"))
    assert [layer.out_channels for layer in convolutions] == [4, 8, 6]


@pytest.mark.parametrize(("flags", "expected"), [((), None), (("--mirror",), MIRRORED)])
def test_mirror_flag_mirrors_actions(flags, expected, data, tmp_path, monkeypatch):
    given = []

    class Recorded(experiment.Trainer):
        def __init__(self, *arguments, **options):
            given.append(options["transform"] and options["transform"].actions)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(experiment, "Trainer", Recorded)
    assert train(tmp_path, data, *NO_EVALUATION, "--epochs", "1", *flags) == 0
    assert given == [expected]


def test_windows_flag_selects_published_windows(tmp_path):
    path = write_data(tmp_path / "data.h5", steps=24)
    sides = {
        windows: ENVIRONMENT.load(
            ENVIRONMENT.read_config([*TINY, "--data_path", str(path), "--windows", windows])
        ).windows(2)
        for windows in ("all", "published")
    }
    assert len(sides["all"][0]) == 9 * 19 > len(sides["published"][0]) > 0
    assert (sides["published"][0].windows[:, 1] % 6 == 0).all()


# --- interruptions ---


def test_interruption_anywhere_changes_nothing(data, tmp_path):
    """Every epoch draws from all windows, and so does a resumed one."""
    flags = (*NO_EVALUATION, "--epochs", "3")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for batch in (1, 2):
        with stopped_after(batch):
            assert train(stopped, data, *flags, "--resume", "auto") == STOPPED
    with killed_behind_a_save():
        train(stopped, data, *flags, "--resume", "auto")
    assert train(stopped, data, *flags, "--resume", "auto") == 0
    assert train(whole, data, *flags) == 0
    expected = outcome(only_run(whole))
    assert_same(outcome(only_run(stopped)), expected)
    assert expected["state"]["trainer"]["step"] == 3 * BATCHES_PER_EPOCH


def test_run_does_not_resume_with_other_data(data, tmp_path, capsys):
    with stopped_after(1):
        assert train(tmp_path, data, *NO_EVALUATION) == STOPPED
    copy = shutil.copy(data, tmp_path / "copy.h5")
    with h5py.File(copy, "r+") as file:
        del file["checksums"]  # changed, not damaged
        file["actions"][0] = (file["actions"][0] + 1) % 6
    with pytest.raises(SystemExit, match="^2$"):
        train(tmp_path, copy, *NO_EVALUATION, "--resume", "auto")
    assert f"{only_run(tmp_path)} was trained on other data" in capsys.readouterr().err


# --- mistakes ---


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--steps 5", ("--steps 5", "6 steps (--segments times --context_length)")),
        ("--windows published --segments 250", ("--windows published", "750 steps", "--windows all")),
    ],
)
def test_impossible_windows_are_reported_before_making_data(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("wandb_config.yaml").touch()
    made = []
    monkeypatch.setattr(dataset, "generate", lambda recipe, episodes, path: made.append(write_data(path, steps=5)))
    flags = [*TINY, "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "runs"), *flags.split()]
    message = commands.error_of(capsys, tmp_path, train_mem_maze.main, flags)
    assert [word for word in named if word not in message] == [] and not made


def test_given_data_may_have_any_episode_length(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wandb_config.yaml").write_text(f"memory_maze:\n  data: {data}\n")
    settings = [ENVIRONMENT.read_config([*TINY, "--steps", "5"])]
    Path("wandb_config.yaml").write_text("")
    settings.append(ENVIRONMENT.read_config([*TINY, "--steps", "5", "--data_path", str(data)]))
    assert [config.data.steps for config in settings] == [5, 5]


MISTAKES = {
    "size": ("--size 10", ("--size 10", "9, 11, 13, 15")),
    "windows": ("--windows some", ("--windows some", "all, published")),
    "no episodes": ("--eval_episodes 0", ("--eval_episodes 0", "at least 1")),
    "episodes that are data": ("--eval_episodes 10001", ("--eval_episodes 10001", "at most 10000")),
    "no steps": ("--episode_timeout 0", ("--episode_timeout 0", "at least 1")),
    "no context": ("--context_length 0", ("--context_length 0", "at least 1")),
    "no segments": ("--segments 0", ("--segments 0", "at least 1")),
    "channels": ("--conv_channels 8 8", ("--conv_channels 8 8", "three numbers")),
    "no channels": ("--conv_channels 8 0 8", ("--conv_channels 0", "at least 1")),
    "floor": ("--rtg_floor low", ("--rtg_floor low", "a finite number or none")),
    "long windows": ("--segments 9", ("no window of 27 steps", "tiny.h5")),
    "no such data": ("--data_path nowhere", ("--data_path", "nowhere", "does not exist")),
    "no data in a folder": (f"--data_path {HERE}", ("--data_path", str(HERE), "*.npz")),
    "other data": (f"--data_path {HERE / 'config.yaml'}", ("config.yaml",)),
    "valve without tokens": ("--nmt 0", ("--nmt 0", "--n_head_ca 0")),
    "folder above": ("--ckpt_folder ../up", ("--ckpt_folder ../up", "plain folder name")),
    "no such run": ("--resume nowhere", ("nowhere", "does not exist")),
    "curriculum": ("--curr true", ("--curr",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, data, tmp_path, capsys):
    flags, named = MISTAKES[mistake]
    flags = [*TINY, "--data_path", str(data), "--output_dir", str(tmp_path / "runs"), *flags.split()]
    message = commands.error_of(capsys, tmp_path, train_mem_maze.main, flags)
    assert [word for word in named if word not in message] == []


@pytest.mark.parametrize("flags", [(), NO_EVALUATION])
def test_missing_package_is_reported_before_making_data(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "memory_maze", None)
    with pytest.raises(SystemExit, match="^2$"):
        train_mem_maze.main(
            [*TINY, "--output_dir", str(tmp_path / "runs"), "--data_dir", str(tmp_path / "data"), *flags]
        )
    printed, errors = capsys.readouterr()
    assert (
        not printed and "pip install -c constraints.txt -e '.[memory-maze]'" in errors and not list(tmp_path.iterdir())
    )
