"""The command: what its flags mean, its data, its output, interruptions, and mistakes."""

import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("mujoco")

import torch

from MuJoCo import train_rate_mujoco_ca
from MuJoCo.dataset import open_data, spec_of
from MuJoCo.environment import ENVIRONMENT
from MuJoCo.files import generated_name
from MuJoCo.tasks import HALFCHEETAH, HOPPER, TASKS, task_of
from RATE_model.cli import training
from RATE_model.cli.options import to_flat_dict
from RATE_model.loading import load_model
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.original.variants import VARIANTS
from RATE_model.training.checkpoints import resolve_checkpoint
from RATE_model.training.trainer import Trainer
from tests import commands
from tests.interruptions import STOPPED, assert_same, outcome, stopped_after
from tests.mujoco_runs import NO_EVALUATION, TINY, only_run, places, random_play, train

HOPPER_MEDIUM = 6

# The published spelling.
COMMAND = "python3 MuJoCo/train_rate_mujoco_ca.py --env_id 0 --number_of_segments 3 --segment_length 20 --num_mem_tokens 5 --n_head_ca 1 --mrv_act 'relu' --skip_dec_ffn --seed 123"  # noqa: E501
PUBLISHED = RATEConfig(
    n_layer=3, n_head=1, d_model=128, d_head=128, d_inner=128, context_length=20, num_mem_tokens=5, n_head_ca=1,
    mrv_act="relu", arch="TrXL", skip_dec_ffn=True, dropout=0.2, dropatt=0.05, mem_len=210, sliding=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder whose data/ holds short episodes of a hopper that acts at random."""
    folder = tmp_path_factory.mktemp("mujoco")
    random_play(folder / "data" / generated_name(task_of(HOPPER_MEDIUM)), HOPPER)
    return folder


@pytest.fixture
def here(data, tmp_path) -> Path:
    """A folder for runs that sees the data."""
    (tmp_path / "data").symlink_to(data / "data")
    return tmp_path


# --- flags ---


def test_published_command_keeps_its_meaning():
    config = ENVIRONMENT.read_config(shlex.split(COMMAND)[2:])
    assert config.agent_config().sizes == PUBLISHED
    assert config.run.seeds == range(123, 124)
    assert ENVIRONMENT.target_returns(to_flat_dict(config)) == (6000,)
    directory = training.run_directory(ENVIRONMENT, config, 123)
    assert directory.parent == ENVIRONMENT.folder / "MuJoCo_checkpoints" / "ckpt"
    assert re.fullmatch(r"halfcheetah-medium_arch_mode_TrXL_RATE_[0-9a-f]{8}_RUN_123", directory.name)


def test_flag_aliases_are_accepted():
    ours = "--num_mem_tokens 7 --number_of_segments 4 --segment_length 6 --target_return 5"
    others = "--nmt 7 --segments 4 --context_length 6 --desired_return 5"
    one, two = (ENVIRONMENT.read_config(flags.split()) for flags in (ours, others))
    assert one == two and one.model.rate.nmt == 7 and one.task.segments == 4 and one.task.target_return == 5


def test_seeds():
    def seeds(flags: str) -> list[int]:
        return list(ENVIRONMENT.read_config(flags.split()).run.seeds)

    assert seeds("") == [1] and seeds("--start_seed 4 --end_seed 6") == [4, 5, 6] and seeds("--seed 0") == [0]
    assert seeds("--seed 9 --start_seed 4 --end_seed 6") == [9]


def test_model_matches_published_one_with_returns_in_thousands():
    variant = VARIANTS["mujoco"].spec
    spec = spec_of(HOPPER)
    assert (spec.observation_shape, spec.num_actions, spec.continuous) == ((11,), 3, variant.continuous)
    assert (spec.observation_tanh, spec.action_tanh, spec.return_tanh) == (False, False, False)
    assert spec.return_scale == 1 / 1000 and spec_of(HALFCHEETAH).num_actions == 6


# --- runs ---


def test_run_directory_has_all_documented_files(here, capsys):
    assert train(here, "--env_id", "6") == 0
    run = only_run(here)
    assert re.fullmatch(r"hopper-medium_arch_mode_TrXL_RATE_[0-9a-f]{8}_RUN_1", run.name)
    result = json.loads((run / "eval" / "final.json").read_text())
    for prefix in ("", "5_"):
        assert {f"{prefix}{name}_{kind}" for name in ("episode", "length", "return")
                for kind in ("MEAN", "STD", "SEM")} <= result.keys()  # fmt: skip
        assert result[f"{prefix}length_MEAN"] > 1
        score = HOPPER.normalised_score(result[f"{prefix}return_MEAN"])
        assert result[f"{prefix}episode_MEAN"] == pytest.approx(score)
    assert result["target_return"] == 3600 and "reset_target" not in result and result["optimizer_steps"] == 6
    file = open_data(task_of(HOPPER_MEDIUM), here / "data")
    spec = load_model(str(resolve_checkpoint(str(run)))).spec
    assert spec == spec_of(HOPPER, file.statistics) and spec.is_normalised
    assert (run / "plots" / "curves.png").stat().st_size > 1000
    assert "return_MEAN " in (printed := capsys.readouterr().out) and "normalised score" in printed
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("5_episode_MEAN" in line for line in metrics[:-1]), "evaluated at a checkpoint too"


def test_dropout_stays_on_after_an_evaluation(here, monkeypatch):
    """The published code evaluated at iteration 0, and from then on trained without dropout."""
    modes, train_batch = [], Trainer.train_batch

    def look(trainer, batch):
        calls = []
        handle = trainer.model.memory.dropout.register_forward_hook(lambda module, *_: calls.append(module.training))
        result = train_batch(trainer, batch)
        handle.remove()
        modes.append(bool(calls) and all(calls) and trainer.model.memory.dropout.p == 0.2)
        return result

    monkeypatch.setattr(Trainer, "train_batch", look)
    assert train(here, "--env_id", "6", "--dropout", "0.2", "--ckpt_epoch", "1") == 0
    assert (only_run(here) / "eval" / "epoch_0001.json").exists() and modes == [True] * 6


@pytest.mark.parametrize("mode", ["RATE", "DT"])
def test_a_cloned_behaviour_does_not_depend_on_returns(here, mode):
    flags = [] if mode == "RATE" else "--mem_len 0 --nmt 0 --n_head_ca 0".split()
    for condition in ("true", "false"):
        folder = here / condition
        (folder / "data").parent.mkdir()
        (folder / "data").symlink_to(here / "data")
        assert train(folder, "--env_id", "6", "--model_mode", mode, "--condition_on_returns", condition,
                     *flags, *NO_EVALUATION) == 0  # fmt: skip
        model = load_model(resolve_checkpoint(only_run(folder)))
        inputs = torch.randn(2, 10, 11), torch.rand(2, 10, 3), torch.full((2, 10), 100.0)
        valid = torch.ones(2, 10, dtype=torch.bool)
        with torch.no_grad():
            low, high = (model(*inputs[:2], inputs[2] * factor, valid)[0] for factor in (1, 30))
        assert torch.equal(low, high) == (condition == "false")
        assert ("_condition_none_" in only_run(folder).name) == (condition == "false")


def test_interruption_changes_nothing(here, tmp_path):
    flags = ("--env_id", "6", "--dropout", "0.1", "--online_inference", "false")
    assert train(here, *flags) == 0
    expected, folder = only_run(here), tmp_path / "stopped"
    folder.mkdir()
    (folder / "data").symlink_to(here / "data")
    with stopped_after(2):
        assert train(folder, *flags) == STOPPED
    assert load_model(resolve_checkpoint(only_run(folder))).spec.is_normalised, "what was saved can act"
    assert train(folder, *flags, "--resume", "auto") == 0
    assert_same(outcome(only_run(folder)), outcome(expected))


def test_single_seed_gives_the_same_run_as_a_range(here):
    assert train(here, "--env_id", "6", "--seed", "2", *NO_EVALUATION) == 0
    run = only_run(here)
    before = outcome(run)
    assert train(here, "--env_id", "6", "--start_seed", "2", "--end_seed", "2", "--resume", "auto", *NO_EVALUATION) == 0
    assert only_run(here) == run and run.name.endswith("RUN_2")
    assert before["weights"].keys() == outcome(run)["weights"].keys()


# --- mistakes ---

MISTAKES = {
    "a task that is none": ("--env_id 12", "--env_id 12: must be one of 0 halfcheetah-medium", "11 hopper-medium-exp"),
    "a negative task": ("--env_id -1", "--env_id -1: must be one of"),
    "no segment": ("--segments 0", "--segments 0: must be at least 1"),
    "no step": ("--context_length 0", "--context_length 0: must be at least 1"),
    "a negative seed": ("--seed -1", "--seed -1: must be at least 0"),
    "a seed too large": (f"--seed {2**63}", f"--seed {2**63}: must be at most"),
    "no episode": ("--eval_episodes 0", "--eval_episodes 0: must be at least 1"),
    "a version that is none": ("--env_version v3", "v4, v5"),
    "DT with a cache": ("--model_mode DT --nmt 0 --n_head_ca 0 --mem_len 210", "--mem_len 210 with --model_mode DT"),
    "a flag that is none": ("--chunks 3", "unknown flag --chunks"),
    "no data": ("--env_id 3", "walker2d-medium", "generate_dataset.py --env walker2d --dataset medium"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, here, capsys):
    flags, *expected = MISTAKES[mistake]
    said = commands.error_of(capsys, here, train_rate_mujoco_ca.main, [*TINY, *places(here), *shlex.split(flags)])
    assert all(part in said for part in expected)


def test_data_of_another_robot_is_refused(here, capsys):
    path = here / "data" / generated_name(task_of(HOPPER_MEDIUM))
    flags = [*TINY, *places(here), "--env_id", "0", "--data_path", str(path)]
    said = commands.error_of(capsys, here, train_rate_mujoco_ca.main, flags)
    assert str(path) in said and "17" in said and "11" in said


def test_missing_mujoco_is_reported_before_training(here, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mujoco", None)
    flags = [*TINY, *places(here), "--env_id", "6"]
    assert "pip install -c constraints.txt -e '.[mujoco]'" in commands.error_of(
        capsys, here, train_rate_mujoco_ca.main, flags
    )
    assert train(here, "--env_id", "6", *NO_EVALUATION) == 0, "it is needed for acting alone"


def test_every_task_has_a_target():
    assert [task.target_return for task in TASKS] == [6000] * 3 + [5000] * 3 + [3600] * 3 + [12000, 5000, 3600]
