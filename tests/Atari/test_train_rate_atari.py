"""The command: what its flags mean, its data, its output, interruptions, and mistakes."""

import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("ale_py")

import torch

from Atari import evaluate as protocol
from Atari import train_rate_atari
from Atari.env import spec_of
from Atari.environment import ENVIRONMENT
from Atari.games import GAMES
from RATE_model.cli import training
from RATE_model.data.dopamine import export_replay
from RATE_model.errors import UserError
from RATE_model.loading import load_model
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.original.variants import VARIANTS
from RATE_model.training.checkpoints import resolve_checkpoint
from RATE_model.training.trainer import Trainer
from tests import commands
from tests.atari_runs import NO_EVALUATION, TINY, only_run, places, random_play, train
from tests.interruptions import STOPPED, assert_same, newest_state, outcome, stopped_after

# The published spellings.
COMMANDS = {
    "Breakout": "python3 Atari/train_rate_atari.py --game Breakout --num_mem_tokens 15 --mem_len 360 --n_head_ca 1 --mrv_act 'relu' --skip_dec_ffn --seed 123",  # noqa: E501
    "Qbert": "python3 Atari/train_rate_atari.py --game Qbert --num_mem_tokens 15 --mem_len 360 --n_head_ca 1 --mrv_act 'relu' --skip_dec_ffn --seed 123",  # noqa: E501
    "Seaquest": "python3 Atari/train_rate_atari.py --game Seaquest --num_mem_tokens 15 --mem_len 360 --n_head_ca 1 --mrv_act 'relu' --skip_dec_ffn --seed 123",  # noqa: E501
    "Pong": "python3 Atari/train_rate_atari.py --game Pong --num_mem_tokens 15 --mem_len 360 --n_head_ca 1 --mrv_act 'leaky_relu' --skip_dec_ffn --seed 123",  # noqa: E501
}
TARGETS = {"Breakout": 180, "Qbert": 14000, "Seaquest": 1150, "Pong": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return random_play(tmp_path_factory.mktemp("atari") / "data.h5")


@pytest.fixture
def here(data, tmp_path) -> Path:
    """A folder for runs that sees the data."""
    (tmp_path / "data.h5").symlink_to(data)
    return tmp_path


# --- flags ---


@pytest.mark.parametrize("game", COMMANDS)
def test_published_commands_keep_their_meaning(game):
    config = ENVIRONMENT.read_config(shlex.split(COMMANDS[game])[2:])
    assert config.agent_config().sizes == RATEConfig(
        n_layer=6, n_head=8, d_model=128, d_head=128, d_inner=128, context_length=30, num_mem_tokens=15, n_head_ca=1,
        mrv_act="leaky_relu" if game == "Pong" else "relu", arch="TrXL", skip_dec_ffn=True, dropout=0.2, dropatt=0.05,
        mem_len=360, sliding=False,
    )  # fmt: skip
    assert config.run.seeds == range(123, 124) and config.game.name == game and config.target == TARGETS[game]
    directory = training.run_directory(ENVIRONMENT, config, 123)
    assert directory.parent == ENVIRONMENT.folder / "Atari_checkpoints" / "ckpt"
    assert re.fullmatch(rf"{game}_arch_mode_TrXL_RATE_[0-9a-f]{{8}}_RUN_123", directory.name)


def test_flag_aliases_are_accepted():
    ours = "--num_mem_tokens 7 --save_path here --target_return 5"
    others = "--nmt 7 --output_dir here --target_return 5"
    one, two = (ENVIRONMENT.read_config(flags.split()) for flags in (ours, others))
    assert one == two and one.model.rate.nmt == 7 and one.run.output_dir == Path("here") and one.target == 5


def test_the_model_is_the_published_one():
    variant, spec = VARIANTS["atari"].spec, spec_of(GAMES["Seaquest"])
    assert (spec.observation_shape, spec.num_actions, spec.observation_scale) == ((4, 84, 84), 18, 1 / 255)
    names = ("conv_padding", "observation_tanh", "action_tanh", "return_tanh", "continuous")
    assert [getattr(spec, name) for name in names] == [getattr(variant, name) for name in names]
    assert spec.return_tanh and spec.return_scale == 1


def test_flags_of_replay_data_need_such_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("buffers", "trajectories_per_buffer", "buffer_transitions", "data_seed"):
        with pytest.raises(UserError, match=f"^--{name} 7: only applies to .*, but the data is our own; name their f"):
            ENVIRONMENT.read_config([f"--{name}", "7"])
        ENVIRONMENT.read_config([f"--{name}", "7", "--data_path", str(tmp_path)])
    assert ENVIRONMENT.read_config(["--transitions", "7"]).data.replay.transitions == 7, "it is made"
    Path("setting.yaml").write_text("buffers: 7\n")
    assert ENVIRONMENT.read_config(["--config", "setting.yaml"]).data.replay.buffers == 7, "a file may serve other data"
    Path("wandb_config.yaml").write_text(f"atari:\n  data: {tmp_path}\n")
    assert ENVIRONMENT.read_config(["--buffers", "7"]).data.replay.buffers == 7


def test_what_the_model_sees_of_returns():
    def scale(flags: str) -> float:
        return ENVIRONMENT.read_config(flags.split()).spec.return_scale

    assert scale("") == 1 and scale("--return_scale 10") == 0.1 and scale("--return_scale none") == 1 / 90
    assert scale("--return_scale none --game Pong --target_return -10") == 1 / 5
    assert scale("--condition none --return_scale none") == 1


def test_other_games_need_a_target_return():
    config = ENVIRONMENT.read_config("--game space_invaders --target_return 500".replace("_i", "I").split())
    assert config.game.name == "SpaceInvaders" and config.target == 500 and config.game.actions == 6
    ENVIRONMENT.read_config(["--game", "SpaceInvaders", *NO_EVALUATION])
    cloning = "--condition none --return_scale none".split()
    assert ENVIRONMENT.read_config(["--game", "SpaceInvaders", *NO_EVALUATION, *cloning]).spec.return_scale == 1


# --- runs ---


def test_run_directory_has_all_documented_files(here, capsys):
    assert train(here, "--ckpt_batches", "2") == 0
    run = only_run(here)
    assert re.fullmatch(r"Breakout_arch_mode_TrXL_RATE_[0-9a-f]{8}_RUN_1", run.name)
    figures = {"eval_return", "eval_std", "eval_sem", "eval_length", "target_return", "normalised_score"}
    names = sorted(path.stem for path in (run / "eval").iterdir())
    assert names == ["epoch_0001", "epoch_0001_batch_000002", "epoch_0002_batch_000002", "final"]
    for name in names:
        result = json.loads((run / "eval" / f"{name}.json").read_text())
        assert figures <= result.keys()
        assert result["eval_length"] == 12 and result["target_return"] == 180
        score = GAMES["Breakout"].normalised_score(result["eval_return"])
        assert result["normalised_score"] == pytest.approx(score) and 0 <= result["validation_accuracy"] <= 1
    assert result["optimizer_steps"] == 6
    assert (run / "plots" / "curves.png").stat().st_size > 1000
    assert "eval_return " in (printed := capsys.readouterr().out) and "validation_accuracy" in printed
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train_loss", "train_accuracy", "lr", "grad_norm", "epoch"} <= lines[0].keys()
    assert sum("eval_return" in line for line in lines) == 4
    model = load_model(resolve_checkpoint(run))
    assert model.spec == spec_of(GAMES["Breakout"]) and model.memory.config.mem_len == 19


def test_decay_ends_after_the_published_share(here):
    """2 epochs of 3: after that the learning rate stays at its minimum; in the published code it rose again."""
    assert train(here, "--epochs", "3", "--decay_epochs", "2", "--epoch_batches", "none", "--batch_size", "16",
                 "--log_every", "1", *NO_EVALUATION) == 0  # fmt: skip
    run = only_run(here)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    over = round(len(rates) * 2 / 3)
    assert rates[over - 2] > 3.1e-4 and rates[over + 1 :] == pytest.approx([3e-4] * (len(rates) - over - 1))


def test_evaluation_clips_rewards_as_training_and_says_so(here, data, monkeypatch):
    export_replay(data, here / "replay", game="Breakout")
    clipped, init = [], protocol.ClippedRewards.__init__
    monkeypatch.setattr(
        protocol.ClippedRewards, "__init__", lambda self, player: clipped.append(True) or init(self, player)
    )
    flags = ("--epochs", "1", "--online_inference", "false", "--data_dir", str(here))
    assert train(here, *flags, "--data_path", str(here / "replay")) == 0
    assert clipped == [True] and json.loads((only_run(here) / "rewards.json").read_text()) == {"clipped": True}


def test_weight_decay_and_seed_are_applied(here, tmp_path, monkeypatch):
    groups, optimize = [], Trainer._optimize

    def look(trainer, *arguments):
        groups.append([group["weight_decay"] for group in trainer.optimizer.param_groups])
        return optimize(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_optimize", look)
    weights = {}
    for folder, seed in (("one", 7), ("two", 7), ("three", 8)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.h5").symlink_to(here / "data.h5")
        assert train(tmp_path / folder, "--seed", str(seed), *NO_EVALUATION) == 0
        weights[folder] = load_model(resolve_checkpoint(only_run(tmp_path / folder))).state_dict()
    assert groups and all(group == [0.1, 0.0] for group in groups)
    same = [
        all(torch.equal(weights["one"][k], weights[other][k]) for k in weights["one"]) for other in ("two", "three")
    ]
    assert same == [True, False]


def test_interruption_changes_nothing(here, tmp_path):
    flags = ("--dropout", "0.1", "--ckpt_batches", "2", "--last_inference", "false")
    assert train(here, *flags) == 0
    expected, folder = only_run(here), tmp_path / "stopped"
    folder.mkdir()
    (folder / "data.h5").symlink_to(here / "data.h5")
    for stop, extra in ((2, ()), (3, ("--resume", "auto"))):
        with stopped_after(stop):
            assert train(folder, *flags, *extra) == STOPPED
    assert newest_state(only_run(folder))["position"]["batch"] == 2
    assert train(folder, *flags, "--resume", "auto") == 0
    assert_same(outcome(only_run(folder)), outcome(expected))


def test_cloned_behaviour_does_not_depend_on_returns(here):
    assert train(here, "--condition_on_returns", "false", *NO_EVALUATION) == 0
    assert "_condition_none_" in only_run(here).name
    model = load_model(resolve_checkpoint(only_run(here)))
    inputs = torch.randint(0, 255, (1, 10, 4, 84, 84)), torch.randint(0, 4, (1, 10))
    valid = torch.ones(1, 10, dtype=torch.bool)
    with torch.no_grad():
        low, high = (model(*inputs, torch.full((1, 10), rtg), valid)[0] for rtg in (0.0, 100.0))
    assert torch.equal(low, high)


# --- mistakes ---

MISTAKES = {
    "a game that is none": ("--game Chess", "--game Chess", "Breakout, Qbert, Seaquest, Pong", "any ALE game works"),
    "no target return": ("--game SpaceInvaders", "--target_return: SpaceInvaders has no published target"),
    "no segment": ("--segments 0", "--segments 0: must be at least 1"),
    "no step": ("--context_length 0", "--context_length 0: must be at least 1"),
    "no buffer": ("--data_path replay --buffers 0", "--buffers 0: must be at least 1"),
    "half of nothing": ("--return_scale none --target_return 0", "--return_scale none: half of --target_return 0"),
    "no scale": ("--return_scale 0", "--return_scale 0.0: must be at least 1e-06"),
    "no channels": ("--conv_channels 8 0 8", "--conv_channels 0: must be at least 1"),
    "no decay": ("--decay_epochs -1", "--decay_epochs -1.0: must be above 0"),
    "always sticky": ("--sticky 1", "--sticky 1.0: must be at least 0 and below 1"),
    "no episode": ("--eval_episodes 0", "--eval_episodes 0: must be at least 1"),
    "no batches": ("--ckpt_batches 0", "--ckpt_batches 0: must be at least 1"),
    "DT with a cache": ("--model_mode DT --nmt 0 --n_head_ca 0 --mem_len 19", "--mem_len 19 with --model_mode DT"),
    "another game's data": ("--game Pong", "contains Breakout, not Pong"),
    "a selection from one file": ("--buffers 5", "--buffers 5: only applies to DQN-replay files", "is used as it is"),
    "an amount of one file": ("--transitions 5", "--transitions 5: only applies to DQN-replay files", "--data_path"),
    "no data": ("--data_path nowhere", "--data_path nowhere: does not exist"),
    "a flag that is none": ("--tie_weight true", "unknown flag --tie_weight"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, here, capsys):
    flags, *expected = MISTAKES[mistake]
    said = commands.error_of(capsys, here, train_rate_atari.main, [*TINY, *places(here), *shlex.split(flags)])
    assert all(part in said for part in expected)


def test_missing_ale_py_is_reported_before_training(here, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ale_py", None)
    said = commands.error_of(capsys, here, train_rate_atari.main, [*TINY, *places(here)])
    assert "pip install -c constraints.txt -e '.[atari]'" in said
    assert train(here, *NO_EVALUATION) == 0, "it is needed for acting alone"
    said = commands.error_of(capsys, here, train_rate_atari.main, [*TINY, *places(here), "--game", "Brakeout"])
    assert "--game Brakeout: Breakout, Qbert, Seaquest, Pong are described here" in said and "pip install" in said
