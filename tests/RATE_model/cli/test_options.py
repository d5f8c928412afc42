"""Flags, YAML files, their precedence, and error messages."""

import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from RATE_model.cli.aliases import find_by_alias
from RATE_model.cli.options import (
    Boolean,
    changeable,
    changeable_flags,
    exit_on_user_error,
    flag_words,
    load_yaml,
    parse_options,
    to_flat_dict,
    to_yaml,
)
from RATE_model.errors import UserError


@dataclass(frozen=True)
class ModelOptions:
    # Which model to train.
    model_mode: Literal["RATE", "DT", "RMT", "TrXL"] = "RATE"
    arch_mode: Literal["TrXL", "TrXL-I", "GTrXL"] = "TrXL"
    nmt: int = 5
    mem_len: int = 0
    n_head_ca: int = 4  # Heads of the MRV.
    mrv_act: Literal["relu", "leaky_relu", "elu", "tanh", "no_act"] = "relu"
    # Leave out the feed-forward network of the decoder.
    skip_dec_ffn: Boolean = False

    def validate(self) -> None:
        if self.nmt < 0:
            raise UserError(f"--nmt {self.nmt}: must not be negative")


@dataclass(frozen=True)
class TrainOptions:
    learning_rate: float = 3e-4
    lengths: tuple[int, ...] = (9, 30)
    steps: list[int] = field(default_factory=list)
    limit: int | None = None
    switch: Boolean | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Options:
    seed: int = 1
    curr: Literal["true", "false", "adaptive"] = "false"
    ckpt_folder: str = "ckpt"
    text: str = ""
    max_n_final: int = 3
    # The model.
    model: ModelOptions = field(default_factory=ModelOptions)
    # The training.
    train: TrainOptions = field(default_factory=TrainOptions)

    def validate(self) -> None:
        if self.model.nmt == 0 and self.model.n_head_ca > 0:
            raise UserError("--nmt 0: the MRV needs memory tokens; add --n_head_ca 0")


ALIASES = {"skip_dec_attn": "skip_dec_ffn"}


def parse(line: str = "", config_file: Path | None = None) -> Options:
    return parse_options(Options, argv=shlex.split(line), config_file=config_file, prog="train.py", aliases=ALIASES)


def message(line: str, config_file: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        parse(line, config_file)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    return text


def test_no_flags_give_the_defaults() -> None:
    assert parse() == Options()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "--model_mode 'RATE' --arch_mode 'TrXL' --curr 'false' --ckpt_folder 'RATE_max_3' --max_n_final 3"
            " --text 'RATE_max_3' --nmt 5 --mem_len 0 --n_head_ca 4 --mrv_act 'relu' --skip_dec_attn",
            dict(text="RATE_max_3", ckpt_folder="RATE_max_3", skip_dec_ffn=True, n_head_ca=4),
        ),
        (
            "--model_mode 'DT' --arch_mode 'TrXL' --curr 'false' --ckpt_folder 'DT' --max_n_final 3"
            " --text 'DT_max_3' --nmt 0 --mem_len 0 --n_head_ca 0 --mrv_act 'no_act'",
            dict(model_mode="DT", ckpt_folder="DT", text="DT_max_3", nmt=0, n_head_ca=0, mrv_act="no_act"),
        ),
        ("--curr 'true' --text '' --skip_dec_ffn --seed 7", dict(curr="true", text="", skip_dec_ffn=True, seed=7)),
        ("--n-head-ca 2 --model-mode=DT", dict(n_head_ca=2, model_mode="DT")),
        ("--lengths 9 30 90 --steps 1", dict(lengths=[9, 30, 90], steps=[1])),
        ("--lengths= --seed 2", dict(lengths=[], seed=2)),
        ("--limit 3 --data some/where", dict(limit=3, data="some/where")),
        ("--limit none", dict(limit=None)),
        ("--switch --limit 3", dict(switch=True, limit=3)),
        ("--switch false", dict(switch=False)),
        ("--learning_rate 1e-3", dict(learning_rate=1e-3)),
        ("--mem_len -1", dict(mem_len=-1)),
        ("--skip_dec_ffn true --skip_dec_ffn false", dict(skip_dec_ffn=False)),
        ("--skip_dec_attn False", dict(skip_dec_ffn=False)),
        ("--text=--odd", dict(text="--odd")),
        ("--text 'two words' --seed 2", dict(text="two words", seed=2)),
    ],
)
def test_flags(line: str, expected: dict) -> None:
    assert to_flat_dict(parse(line)) == to_flat_dict(Options()) | expected


def test_precedence_is_defaults_file_config_flags(tmp_path: Path) -> None:
    base, extra = tmp_path / "config.yaml", tmp_path / "extra.yaml"
    base.write_text("nmt: 1\nmem_len: 1\nn_head_ca: 1\nlearning_rate: 1e-4\n")
    extra.write_text("mem_len: 2\nn_head_ca: 2\nlengths: [1, 2]\nskip_dec_attn: true\ncurr: false\n")
    options = parse(f"--n_head_ca 3 --config {extra}", base)
    assert (options.seed, options.model.nmt, options.model.mem_len, options.model.n_head_ca) == (1, 1, 2, 3)
    assert options.train.lengths == (1, 2) and options.model.skip_dec_ffn and options.curr == "false"
    assert options.train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("--n_haed_ca 3", ["--n_haed_ca", "did you mean --n_head_ca?"]),
        ("--skip_dec_at", ["--skip_dec_at", "--skip_dec_attn"]),
        ("--zzz 3", ["unknown flag --zzz", "--help"]),
        ("--lr 3", ["unknown flag --lr (did you mean --learning_rate?)"]),
        ("-seed 3", ["-seed", "--seed"]),
        ("seed 3", ["'seed'", "--name value"]),
        ("--model_mode RAT", ["--model_mode RAT", "RATE, DT, RMT, TrXL"]),
        ("--model_mode rate", ["RATE, DT, RMT, TrXL (did you mean RATE?)"]),
        ("--curr adaptve", ["true, false, adaptive (did you mean adaptive?)"]),
        ("--curr False", ["--curr False", "true, false, adaptive"]),
        ("--seed one", ["--seed one", "an integer"]),
        ("--seed 1.5", ["--seed 1.5", "an integer"]),
        ("--seed 1 2", ["--seed", "one value", "1 2"]),
        ("--seed", ["--seed needs a value", "an integer"]),
        ("--seed ''", ["--seed ''", "an integer"]),
        ("--learning_rate nan", ["--learning_rate nan", "a finite number"]),
        ("--lengths 3 x", ["--lengths 3 x", "an integer"]),
        ("--lengths", ["--lengths needs a value", "a list"]),
        ("--limit x", ["--limit x", "an integer or none"]),
        ("--skip_dec_ffn maybe", ["--skip_dec_ffn maybe", "true or false"]),
        ("--config absent.yaml", ["absent.yaml", "no such file"]),
        ("--nmt -1", ["--nmt -1", "negative"]),
        ("--nmt 0", ["--nmt 0", "--n_head_ca 0"]),
    ],
)
def test_a_bad_flag_is_named_with_what_is_allowed(line: str, parts: list[str]) -> None:
    text = message(line)
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("epochs: 3", ["unknown key 'epochs'"]),
        ("n_head: 3", ["unknown key 'n_head'", "n_head_ca"]),
        ("seed: many", ["seed: many", "an integer"]),
        ("seed: true", ["seed: true", "an integer"]),
        ("seed:", ["seed:", "an integer"]),
        ("seed: [1]", ["seed: [1]", "an integer"]),
        ("lengths: 3", ["lengths: 3", "a list"]),
        ("learning_rate: .nan", ["learning_rate: .nan", "a finite number"]),
        ("mrv_act: gelu", ["mrv_act: gelu", "leaky_relu"]),
        ("seed: 1\nseed: 2", ["line 2", "'seed'", "twice"]),
        ("skip_dec_ffn: true\nskip_dec_attn: true", ["skip_dec_attn", "same option"]),
        ("- seed", ["key: value", "list"]),
        ("seed", ["key: value", "str"]),
        ("seed: [", ["line 1"]),
        ("1: 2", ["unknown key '1'"]),
        ("[1]: 2", ["line 1"]),
        ("lengths: " + "[" * 5000 + "]" * 5000, ["nested too deeply"]),
        ("\x00", ["not"]),
        ("config: other.yaml", ["unknown key 'config'"]),
    ],
)
def test_a_bad_yaml_file_is_named_with_its_key(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(content)
    for text in (message(f"--config {path}"), message("", path)):
        assert str(path) in text and all(part in text for part in parts), text


def test_an_empty_yaml_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing here\n")
    assert parse(f"--config {path}") == Options()


def test_print_config_prints_what_config_reads_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "--lengths 1 2 --steps 3 --curr true --text 'a: b #c' --data a/b --limit 4 --skip_dec_attn --nmt 7"
    with pytest.raises(SystemExit) as caught:
        parse(f"{line} --print_config")
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert list(yaml.safe_load(printed)) == list(to_flat_dict(Options()))
    path = tmp_path / "printed.yaml"
    path.write_text(printed)
    assert parse(f"--config {path}") == parse(line) != Options()


def test_print_config_still_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--nmt -1" in message("--nmt -1 --print_config")
    assert capsys.readouterr().out == ""


def test_help_shows_comments_groups_and_defaults_after_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("n_head_ca: 17\n")
    with pytest.raises(SystemExit) as caught:
        parse("--help", path)
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for part in ("Heads of the MRV. (default: 17)", "model options", "train options", "--skip_dec_attn", "--config"):
        assert part in text


def test_duplicate_option_names_are_a_type_error() -> None:
    @dataclass(frozen=True)
    class Twice:
        nmt: int = 1
        model: ModelOptions = field(default_factory=ModelOptions)

    with pytest.raises(TypeError, match="nmt"):
        parse_options(Twice, argv=[])


def test_an_unreadable_yaml_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_yaml(tmp_path)


def test_a_user_error_becomes_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise UserError("--x 3: no")
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: --x 3: no\n")


def test_ctrl_c_ends_a_script_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise KeyboardInterrupt
    assert caught.value.code == 130 and caught.value.__suppress_context__
    assert capsys.readouterr() == ("", "stopped by SIGINT\n")


def test_options_do_not_import_torch() -> None:
    code = "import sys, RATE_model.cli.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_aliases_of_flags_and_keys(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Renamed:
        segments: int = 3
        target_return: float = 1.0

    def read(*argv: str) -> Renamed:
        return parse_options(Renamed, argv=argv)

    path = tmp_path / "config.yaml"
    path.write_text("sections: 6\ndesired_reward: 2.5\n")
    expected = Renamed(segments=6, target_return=2.5)
    assert read("--config", str(path)) == read("--number_of_segments", "6", "--desired_return", "2.5") == expected
    with pytest.raises(UserError, match="unknown flag --astray"):  # of other scripts
        read("--astray", "1")
    path.write_text("sections: 6\nsegments: 6\n")
    with pytest.raises(UserError, match="are the same option"):
        read("--config", str(path))


def test_file_with_an_alias_in_its_name_is_found(tmp_path: Path) -> None:
    path, older = tmp_path / "data_perturbation0.3_n9.h5", tmp_path / "data_astray0.3_n9.h5"
    assert find_by_alias(path) == path
    older.touch()
    assert find_by_alias(path) == older
    path.touch()
    assert find_by_alias(path) == path


def test_yaml_values_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in ("no", "off", "010", "1:30", "1e3", "1.10", "2024-01-01", "True", "0x10"):
        path.write_text(f"text: {text}\ndata: {text}\n")
        found = parse(f"--config {path}")
        assert (found.text, str(found.train.data)) == (text, text)
    path.write_text("seed: 010\nlearning_rate: 3e-4\nskip_dec_ffn: no\ncurr: false\nlengths: [09, 30]\nlimit: ~\n")
    found = to_flat_dict(parse(f"--config {path}"))
    expected = {"seed": 10, "learning_rate": 3e-4, "skip_dec_ffn": False, "curr": "false", "lengths": [9, 30]}
    assert {name: found[name] for name in [*expected, "limit"]} == expected | {"limit": None}
    for line in ("seed: 1:30", "seed: off", "learning_rate: 1:30", "seed: 0x10"):
        path.write_text(line)
        assert f"{line}: the value must be" in message(f"--config {path}")


def test_yaml_has_one_flag_per_line(tmp_path: Path) -> None:
    values = {"text": "no", "n": "010", "at": "1e3", "x": 1e-5, "lengths": [9, 30], "none": None, "long": ["a"] * 99}
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(values))
    assert [line.split(":")[0] for line in path.read_text().splitlines()] == [*values]
    assert load_yaml(path) == values == yaml.safe_load(path.read_text())
    flat = {name: value for name, value in values.items() if name != "lengths"}
    assert len(to_yaml(flat).splitlines()) == len(flat)


def test_wandb_keys_are_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    path = tmp_path / "config.yaml"
    for content in (f"{key}: 1", f"model_mode: {key}", f"seed: {key}"):
        path.write_text(content)
        assert key not in message(f"--config {path}")
    assert key not in message(f"--seed {key}") and key not in message(key) and key not in message(f"--{key}")
    with pytest.raises(SystemExit):
        parse(f"--text {key} --print_config")
    assert key not in capsys.readouterr().out


def test_changeable_flags_of_all_groups_are_found():
    @dataclass(frozen=True)
    class Group:
        learned: int = 1
        shown: tuple[int, ...] = changeable((1, 2))

    @dataclass(frozen=True)
    class All:
        place: Path | None = changeable(None)
        seed: int = 1
        group: Group = field(default_factory=Group)

    assert list(changeable_flags(All())) == ["place", "shown"] and All().group.shown == (1, 2)


def test_flags_as_text_are_split_as_in_a_shell():
    texts = ["lengths=9 20", "data_path='my data.h5'", "text=", "note=a=b"]
    words = ["--lengths", "9", "20", "--data_path", "my data.h5", "--text", "", "--note", "a=b"]
    assert flag_words(texts, flag="train") == words
    with pytest.raises(UserError, match="--train lengths: write flag=value"):
        flag_words(["lengths"], flag="train")
    with pytest.raises(UserError, match="--train text=it's: No closing quotation; put the value in quotes"):
        flag_words(["text=it's"], flag="train")
