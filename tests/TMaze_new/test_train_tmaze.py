"""The command: what its flags mean, its output, and its errors."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from RATE_model.acting.rollout import Episodes
from RATE_model.cli import training
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.training.checkpoints import find_checkpoint
from RATE_model.training.trainer import Trainer, TrainingDiverged
from tests import commands
from tests.commands import contents, error_of
from tests.tmaze_runs import TINY, only_run, places, train
from TMaze_new.TMaze_new_src import train_tmaze
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT

HERE = Path(train_tmaze.__file__).parent

# The published spellings.
COMMANDS = {
    "RATE": "python3 TMaze_new/TMaze_new_src/train_tmaze.py --model_mode 'RATE' --arch_mode 'TrXL' --curr 'false' --ckpt_folder 'RATE_max_3' --max_n_final 3 --text 'RATE_max_3' --nmt 5 --mem_len 0 --n_head_ca 4 --mrv_act 'relu' --skip_dec_attn",  # noqa: E501
    "DT": "python3 TMaze_new/TMaze_new_src/train_tmaze.py --model_mode 'DT' --arch_mode 'TrXL' --curr 'false' --ckpt_folder 'DT' --max_n_final 3 --text 'DT_max_3' --nmt 0 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "RMT": "python3 TMaze_new/TMaze_new_src/train_tmaze.py --model_mode 'RATE' --arch_mode 'TrXL' --curr 'false' --ckpt_folder 'RMT_max_3' --max_n_final 3 --text 'RMT_max_3' --nmt 5 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "TrXL": "python3 TMaze_new/TMaze_new_src/train_tmaze.py --model_mode 'RATE' --arch_mode 'TrXL' --curr 'false' --ckpt_folder 'TrXL_max_3' --max_n_final 3 --text 'TrXL_max_3' --nmt 0 --mem_len 270 --n_head_ca 0 --mrv_act 'no_act'",  # noqa: E501
    "curriculum": "python3 TMaze_new/TMaze_new_src/train_tmaze.py --model_mode 'RATE' --arch_mode 'TrXL' --curr 'true' --ckpt_folder 'RATE_max_3' --max_n_final 3 --text 'my_comment' --nmt 5 --mem_len 0 --n_head_ca 4 --mrv_act 'relu' --skip_dec_attn",  # noqa: E501
}
PUBLISHED = RATEConfig(
    n_layer=8, n_head=10, d_model=64, d_head=64, d_inner=64, context_length=30, num_mem_tokens=5, n_head_ca=4,
    mrv_act="relu", arch="TrXL", skip_dec_ffn=True, dropout=0.05, dropatt=0.0, mem_len=0, sliding=False,
)  # fmt: skip
WITHOUT_VALVE = replace(PUBLISHED, n_head_ca=0, mrv_act="no_act", skip_dec_ffn=False)
EXPECTED = {
    "RATE": PUBLISHED,
    "DT": replace(WITHOUT_VALVE, num_mem_tokens=0, context_length=90, sliding=True),
    "RMT": WITHOUT_VALVE,
    "TrXL": replace(WITHOUT_VALVE, num_mem_tokens=0, mem_len=270),
    "curriculum": PUBLISHED,
}


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)


def printed_config(capsys, *flags: str) -> dict:
    return commands.printed_config(capsys, train_tmaze.main, flags)


# --- flags ---


@pytest.mark.parametrize("name", COMMANDS)
def test_published_commands_keep_their_meaning(name):
    flags = shlex.split(COMMANDS[name])[2:]
    config = ENVIRONMENT.read_config(flags)
    assert config.agent_config().sizes == EXPECTED[name]
    assert config.curriculum.curr == ("true" if name == "curriculum" else "false")
    assert config.run.seeds == range(1, 11) and config.run.ckpt_folder == flags[flags.index("--ckpt_folder") + 1]
    directory = training.run_directory(ENVIRONMENT, config, 3)
    assert directory.parent.parent.relative_to(HERE.parents[1]) == Path("TMaze_new/TMaze_new_checkpoints")
    text, mode = flags[flags.index("--text") + 1], flags[flags.index("--model_mode") + 1]
    assert re.fullmatch(rf"{text}_arch_mode_TrXL_{mode}_min_1_max_3_[0-9a-f]{{8}}_RUN_3", directory.name)
    train = config.train
    assert (train.batch_size, train.learning_rate, train.lr_end_factor, train.epochs) == (64, 3e-4, 0.1, 50)
    assert (train.weight_decay, train.beta_1, train.beta_2, train.warmup_steps) == (0.1, 0.9, 0.95, 100)
    assert (train.grad_norm_clip, train.ckpt_epoch, config.data.trajectories) == (1.0, 10, 2000)


@pytest.mark.parametrize("spelling", ["--skip_dec_ffn", "--skip_dec_attn", "--skip-dec-ffn", "--skip_dec_attn=true"])
def test_skip_dec_ffn_in_every_form(spelling, capsys):
    assert printed_config(capsys)["skip_dec_ffn"] is False
    assert printed_config(capsys, spelling)["skip_dec_ffn"] is True


def test_every_published_flag_is_accepted(capsys):
    changed = dict(
        model_mode="RATEM", arch_mode="GTrXL", start_seed=2, end_seed=4, ckpt_folder="a", text="b", nmt=7, mem_len=0,
        n_head_ca=2, mrv_act="elu", min_n_final=2, max_n_final=5, curr="true", n_layer=3, n_head=4, d_model=32,
        context_length=20, segments=6,
    )  # fmt: skip
    found = printed_config(capsys, *(word for name, value in changed.items() for word in (f"--{name}", str(value))))
    assert {name: found[name] for name in changed} == changed


def test_a_flag_without_effect_is_noted(capsys):
    ENVIRONMENT.check(ENVIRONMENT.read_config(["--segments", "6"]))
    assert "--segments 6 has no effect; --max_n_final is 3" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["RMT", "RATEM", "RATE_wo_nmt", "DTXL"])
def test_every_mode_is_a_name(mode):
    cache = ["--mem_len", "8"] if mode in ("RATE_wo_nmt", "DTXL") else []
    config = ENVIRONMENT.read_config(["--model_mode", mode, *cache])
    model = config.agent_config().sizes
    tokens, valve, cache, steps = {
        "RMT": (5, 0, 0, 30), "RATEM": (5, 4, 0, 30), "RATE_wo_nmt": (0, 0, 8, 30), "DTXL": (0, 0, 8, 90),
    }[mode]  # fmt: skip
    assert (model.num_mem_tokens, model.n_head_ca, model.mem_len, model.context_length) == (tokens, valve, cache, steps)


def test_print_config_creates_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed_config(capsys, *TINY, *places(tmp_path), "--overwrite", "true")
    assert contents(tmp_path) == {}


def test_print_config_output_is_valid_config(tmp_path, capsys):
    first = printed_config(capsys, *TINY, "--curr", "adaptive", "--eval_lengths", "9", "30")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first))
    assert printed_config(capsys, "--config", str(tmp_path / "config.yaml")) == first
    assert first["eval_lengths"] == [9, 30]


# --- a run ---


@pytest.mark.parametrize("file", ["config.yaml", "config_fast.yaml"])
def test_every_shipped_configuration_trains(file, tmp_path):
    flags = ["--config", str(HERE / file), *places(tmp_path), "--trajectories", "6", "--max_n_final", "2"]
    flags += ["--epochs", "1", "--stage_batches", "1", "--anneal_batches", "1", "--end_seed", "1", "--device", "cpu"]
    flags += ["--wandb_mode", "disabled", "--last_inference", "false", "--online_inference", "false"]
    assert train_tmaze.main(flags) == 0
    result = json.loads((only_run(tmp_path) / "eval" / "final.json").read_text())
    assert result["optimizer_steps"] >= 1 and 0 < result["validation_loss"] < 10
    assert not any(name.startswith("Success_rate") for name in result)


def test_run_directory_has_all_documented_files(tmp_path):
    flags = ("--context_length", "30", "--eval_lengths", "9", "30", "60", "90", "150", "270", "480", "900")
    assert train(tmp_path, *flags, "--epochs", "2") == 0
    run = only_run(tmp_path)
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "eval"}
    final = json.loads((run / "eval" / "final.json").read_text())
    lengths = {f"Success_rate_T_{length}" for length in (9, 30, 60, 90, 150, 270, 480, 900)}
    segments = {name for s in (1, 2, 3, 5, 9, 16, 30) for name in (f"Success_rate_S_{s}", f"Mean_D[time]_S_{s}")}
    assert lengths | segments | {"Success_rate", "Mean_D[time]", "train_seconds", "eval_seconds"} <= final.keys()
    assert final["Success_rate_S_3"] == final["Success_rate_T_90"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = set().union(*lines)
    expected = {"train_loss", "train_last_loss", "train_accuracy", "train_last_acc", "segments_count", "lr", "step"}
    assert expected | {"validation_loss", "Success_rate"} | lengths | segments <= keys
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    at_epochs = {path.name for path in (run / "eval").iterdir()}
    assert at_epochs == {"epoch_0001.json", "final.json"}
    environment = json.loads((run / "environment.json").read_text())["starts"][-1]
    assert environment["seed"] == 1 and environment["versions"]["torch"]
    assert yaml.safe_load((run / "config.yaml").read_text())["d_model"] == 16
    assert find_checkpoint(run / "checkpoints").name == f"step_{final['optimizer_steps']:08d}"


def test_default_evaluation_lengths_are_the_published_ones(tmp_path, monkeypatch):
    asked = []

    def play(environment, evaluation, acting, twins=False):
        asked.append(list(evaluation.cases))
        return {length: Episodes(np.ones(1), np.ones(1), np.ones(1)) for length in evaluation.cases}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    flags = [*TINY[: TINY.index("--eval_lengths")], *TINY[TINY.index("--end_seed") :], *places(tmp_path)]
    assert train_tmaze.main([*flags, "--epochs", "1"]) == 0
    papers = {9, 30, 90, 150, 300, 600, 900, 1200, 2400, 4800, 9600} | {30 * s for s in (1, 2, 3, 5, 9, 16, 30)}
    assert asked == [sorted(papers | {12})]


def test_each_seed_is_a_run_and_failures_are_reported(tmp_path, monkeypatch, capsys):
    trained = Trainer.train_batch

    def train_batch(self, batch):
        if "RUN_2" in str(self._crash_directory):
            raise RuntimeError("the machine is on fire")
        return trained(self, batch)

    monkeypatch.setattr(Trainer, "train_batch", train_batch)
    assert train(tmp_path, "--end_seed", "3", "--epochs", "1") == 1
    errors = capsys.readouterr().err
    assert "seed 2 failed: RuntimeError: the machine is on fire" in errors
    assert "2 of 3 seeds finished; failed: 2" in errors
    runs = sorted(path.parent.parent for path in tmp_path.glob("runs/*/*/eval/final.json"))
    assert [run.name[-5:] for run in runs] == ["RUN_1", "RUN_3"]
    weights = [(find_checkpoint(run / "checkpoints") / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] != weights[1]


def test_diverging_seed_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    trained = Trainer.train_batch

    def train_batch(self, batch):
        if "RUN_1" in str(self._crash_directory):
            raise TrainingDiverged("loss or gradient is not finite at optimizer step 0")
        return trained(self, batch)

    monkeypatch.setattr(Trainer, "train_batch", train_batch)
    assert train(tmp_path, "--end_seed", "2", "--epochs", "1") == 1
    errors = capsys.readouterr().err
    assert "seed 1 failed: loss or gradient is not finite" in errors and "Traceback" not in errors
    assert [path.parents[1].name[-5:] for path in tmp_path.glob("runs/*/*/eval/final.json")] == ["RUN_2"]


def test_a_run_that_diverges_keeps_its_last_checkpoint(tmp_path, capsys):
    """With an absurd learning rate, the batch is recorded and no invalid weights are saved."""
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path, "--learning_rate", "1e30", "--warmup_steps", "5", "--grad_norm_clip", "1e9")
    errors = capsys.readouterr().err
    assert "loss or gradient is not finite" in errors and "--learning_rate" in errors
    run = only_run(tmp_path)
    (crash,) = run.glob("crash_step_*.json")
    assert json.loads(crash.read_text())["windows"] and not (run / "eval" / "final.json").exists()
    checkpoint = find_checkpoint(run / "checkpoints")
    assert checkpoint is None or int(checkpoint.name[5:]) <= json.loads(crash.read_text())["step"]


# --- mistakes ---


MISTAKES = {
    "unknown flag": ("--modle_mode RATE", ("--modle_mode", "--model_mode")),
    "mode": ("--model_mode LSTM", ("--model_mode", "LSTM", "RATE_wo_nmt")),
    "arch": ("--arch_mode XL", ("--arch_mode", "XL", "GTrXL")),
    "activation": ("--mrv_act gelu", ("--mrv_act", "gelu", "leaky_relu")),
    "curriculum": ("--curr fast", ("--curr", "fast", "adaptive")),
    "precision": ("--precision 16", ("--precision", "16", "bf16")),
    "schedule": ("--lr_schedule step", ("--lr_schedule", "step", "cosine")),
    "heads that do not divide": ("--n_head_ca 3", ("--n_head_ca 3", "--d_model 16", "2, 4, 8")),
    "valve without tokens": ("--nmt 0", ("--nmt 0", "--n_head_ca 4", "--n_head_ca 0")),
    "cache in DT": ("--model_mode DT --mem_len 20", ("--mem_len 20", "DT", "set it to 0")),
    "odd width": ("--d_model 15 --n_head_ca 3", ("--d_model 15", "even")),
    "no layers": ("--n_layer 0", ("--n_layer 0", "at least 1")),
    "negative heads": ("--n_head -2", ("--n_head -2", "at least 1")),
    "no width": ("--d_model 0", ("--d_model 0", "at least 1")),
    "negative head width": ("--d_head -1", ("--d_head -1", "at least 1")),
    "no inner width": ("--d_inner 0", ("--d_inner 0", "at least 1")),
    "negative tokens": ("--nmt -1", ("--nmt -1", "0")),
    "negative cache": ("--mem_len -1", ("--mem_len -1", "0")),
    "negative valve": ("--n_head_ca -1", ("--n_head_ca -1", "0")),
    "a cache beyond memory": ("--mem_len 10000000000", ("--mem_len 10000000000", "at most 1000000")),
    "tokens beyond memory": ("--nmt 1000000000", ("--nmt 1000000000", "at most 65536")),
    "valve beyond memory": ("--n_head_ca 1000000000", ("--n_head_ca 1000000000", "at most 65536")),
    "width beyond memory": ("--d_inner 100000000000", ("--d_inner 100000000000", "at most 65536")),
    "context beyond memory": ("--context_length 100000000000", ("--context_length 1000", "at most 1000000")),
    "segments beyond memory": ("--max_n_final 100000000000", ("--max_n_final 1000", "at most 1000000")),
    "trajectories beyond memory": ("--trajectories 10000000000", ("--trajectories 1000", "at most 900000")),
    "hint beyond counting": ("--hint_steps 100000000000000000000", ("--hint_steps 1000", "at most 2147483648")),
    "length beyond counting": ("--eval_lengths 99999999999999999999", ("--eval_lengths 999", "at most 2147483648")),
    "folder above": ("--ckpt_folder ../up", ("--ckpt_folder ../up", "plain folder name")),
    "folder elsewhere": ("--ckpt_folder /up", ("--ckpt_folder /up", "plain folder name")),
    "long folder": (f"--ckpt_folder {'x' * 300}", ("run directory", "longer than 255 bytes")),
    "no context": ("--context_length 0", ("--context_length", "0", "at least")),
    "no segments": ("--max_n_final 0", ("--max_n_final", "0", "at least")),
    "fewer than the fewest": ("--min_n_final 4", ("--min_n_final", "4", "--max_n_final")),
    "no segments given": ("--segments 0", ("--segments 0", "at least 1")),
    "no trajectories": ("--trajectories 0", ("--trajectories", "0", "at least")),
    "no hint": ("--hint_steps 0", ("--hint_steps", "0", "at least")),
    "no epochs": ("--epochs 0", ("--epochs 0", "at least 1")),
    "no batch": ("--batch_size 0", ("--batch_size 0", "at least 1")),
    "negative batch": ("--batch_size -64", ("--batch_size -64", "at least 1")),
    "gradient windows": ("--bptt_segments -2", ("--bptt_segments -2", "at least -1")),
    "no parts": ("--accumulate 0", ("--accumulate 0", "at least 1")),
    "learning rate": ("--learning_rate 0", ("--learning_rate 0", "above 0")),
    "no number": ("--learning_rate fast", ("--learning_rate", "fast", "number")),
    "endless learning rate": ("--learning_rate inf", ("--learning_rate inf",)),
    "dropout": ("--dropout 1", ("--dropout 1", "below 1")),
    "end factor": ("--lr_end_factor 2", ("--lr_end_factor 2", "at most 1")),
    "seeds": ("--start_seed 5 --end_seed 4", ("--end_seed 4", "--start_seed 5")),
    "no annealing": ("--curr adaptive --anneal_batches 0", ("--anneal_batches 0", "at least 1")),
    "short episodes": ("--eval_lengths 9 2", ("--eval_lengths 2", "at least 3")),
    "many episodes": ("--eval_episodes 100000", ("--eval_episodes 100000", "at most")),
    "no slide": ("--slide 0", ("--slide 0", "at least 1")),
    "device": ("--device tpu", ("--device tpu", "cpu")),
    "no such configuration": ("--config nowhere.yaml", ("nowhere.yaml", "no such file")),
    "no such run": ("--resume nowhere", ("nowhere", "does not exist")),
    "resume and overwrite": ("--resume auto --overwrite true", ("--resume auto", "--overwrite true")),
    "a word too many": ("RATE", ("RATE",)),
}


def fails(capsys, folder: Path, *flags: str) -> str:
    return error_of(capsys, folder, train_tmaze.main, [*TINY, *places(folder), *flags])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, tmp_path, capsys):
    flags, named = MISTAKES[mistake]
    message = fails(capsys, tmp_path, *flags.split())
    assert [word for word in named if word not in message] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("n_layers: 3", ("n_layers", "did you mean n_layer")),
        ("n_layer: three", ("n_layer", "three", "an integer")),
        ("n_layer: [1", ("line",)),
        ("- 3", ("key: value",)),
        ("model_mode: LTSM", ("model_mode", "LTSM", "RATE", "LSTM")),
    ],
)
def test_mistakes_in_a_file_are_named(text, named, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(text + "\n")
    message = fails(capsys, tmp_path, "--config", str(path))
    assert [word for word in (*named, str(path)) if word not in message] == []


@pytest.mark.parametrize(("losses", "best"), [([3.0, 2.0], 8), ([2.0, 3.0], 4)])
def test_best_checkpoint_has_the_lowest_validation_loss(losses, best, tmp_path, monkeypatch):
    """Two epochs of four batches: validated after the first one and at the end."""
    left = list(losses)
    monkeypatch.setattr(Trainer, "validate", lambda self, batches: {"validation_loss": left.pop(0)})
    flags = ("--epochs", "2", "--online_inference", "false", "--last_inference", "false")
    assert train(tmp_path, *flags) == 0
    checkpoints = only_run(tmp_path) / "checkpoints"
    assert left == [] and find_checkpoint(checkpoints).name == "step_00000008"
    assert find_checkpoint(checkpoints, tag="best").name == f"step_{best:08d}"


def rewrite(path: Path, name: str, values: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.pop("checksums", None)  # the first change removed them
        file[name] = values


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


STEPS = 40 * 11  # of the file of two segments
DAMAGE = {
    "truncated": (truncate, ()),
    "zero bytes": (lambda path: path.write_bytes(b""), ()),
    "not HDF5": (lambda path: path.write_bytes(b"tmaze" * 1000), ()),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ()),
    "no episode": (
        lambda path: [
            rewrite(path, name, np.zeros((0, *shape), dtype))
            for name, shape, dtype in [
                ("observations", (4,), "float32"),
                ("actions", (), "uint8"),
                ("rewards", (), "float32"),
                ("terminals", (), bool),
                ("timeouts", (), bool),
            ]
        ],
        (),
    ),  # fmt: skip
    "shape": (lambda path: rewrite(path, "observations", np.zeros((STEPS, 5), "float32")), ("observations", "5")),
    "dtype": (lambda path: rewrite(path, "observations", np.zeros((STEPS, 4), "uint8")), ("observations", "uint8")),
    "rewards": (lambda path: rewrite(path, "rewards", np.full(STEPS, np.nan, "float32")), ("rewards",)),
    "actions": (lambda path: rewrite(path, "actions", np.full(STEPS, 9, "uint8")), ("action", "9")),
    "lengths": (lambda path: rewrite(path, "rewards", np.zeros(STEPS - 1, "float32")), ("rewards",)),
    "no end": (lambda path: rewrite(path, "terminals", np.zeros(STEPS, bool)), ()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_data_is_reported_before_creating_anything(damage, tmp_path, capsys):
    spoil, named = DAMAGE[damage]
    assert train(tmp_path / "first", "--epochs", "1", "--online_inference", "false", "--last_inference", "false") == 0
    path = tmp_path / "first/data/tmaze_S2_K6_hint1_n40_win.h5"
    spoil(path)
    data = ("--data_dir", str(path.parent))
    message = fails(capsys, tmp_path, *data)
    assert [word for word in (*named, str(path)) if word not in message] == []


def test_data_too_long_for_its_segments_is_reported(tmp_path, capsys):
    """One file replaced by another, whose episodes fill three segments."""
    assert train(tmp_path, "--epochs", "1", "--max_n_final", "3") == 0
    folder = tmp_path / "data"
    (folder / "tmaze_S3_K6_hint1_n40_win.h5").rename(folder / "tmaze_S2_K6_hint1_n40_win.h5")
    message = fails(capsys, tmp_path)
    assert "tmaze_S2_K6_hint1_n40_win.h5" in message and "17" in message


def test_too_little_data_for_validation_is_reported(tmp_path, capsys):
    assert "--trajectories 2: must be at least 3" in fails(capsys, tmp_path, "--trajectories", "2")
    assert train(tmp_path, "--trajectories", "3", "--epochs", "1") == 0


@pytest.mark.parametrize("flag", ["--output_dir", "--data_dir"])
def test_unwritable_folder_is_reported(flag, tmp_path, capsys):
    """Below a file there is no directory, not even for root."""
    (tmp_path / "file").write_text("")
    message = fails(capsys, tmp_path, flag, str(tmp_path / "file" / "below"))
    assert str(tmp_path / "file" / "below") in message
