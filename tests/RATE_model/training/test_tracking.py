"""Metrics files, and wandb in every state of account and network, with a fake wandb."""

import hashlib
import json
import math
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy
import pytest
import torch

from RATE_model.errors import UserError
from RATE_model.training import tracking
from RATE_model.training.tracking import Tracker, probe_online

KEY = "k" * 40
ROOT = Path(__file__).parents[3]


class FakeRun:
    url = "https://wandb.example/run"

    def __init__(self, wandb: "FakeWandb") -> None:
        self.wandb = wandb

    def log(self, metrics: dict, step: int) -> None:
        if self.wandb.fail_in == "log":
            raise RuntimeError("the service died\nat line 2")
        self.wandb.logged.append((step, metrics))

    def finish(self, exit_code: int) -> None:
        if self.wandb.fail_in == "finish":
            raise RuntimeError("the service died")
        self.wandb.exit_codes.append(exit_code)


class FakeWandb(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.fail_in: str | None = None
        self.inits: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.exit_codes: list[int] = []
        self.Settings = dict

    def init(self, **arguments) -> FakeRun:
        self.inits.append(arguments)
        if self.fail_in == arguments["mode"]:
            raise RuntimeError("CommError")
        return FakeRun(self)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeWandb:
    """A fake wandb, a server that accepts every key, and no settings in the environment."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(tracking, "probe_online", lambda key: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb_config.yaml").write_text("")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_ERROR_REPORTING", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")  # Set, not deleted, so that changes by a Tracker are undone too.
    return fake


def track(directory: Path, **options) -> Tracker:
    directory.mkdir(exist_ok=True)
    return Tracker(
        directory, **{"project": "project", "name": "name", "group": "group", "config": {"nmt": 5}, **options}
    )


def modes(wandb: FakeWandb) -> list[str]:
    return [arguments["mode"] for arguments in wandb.inits]


def test_metrics_are_one_json_object_per_line(tmp_path: Path, wandb: FakeWandb) -> None:
    run = tmp_path / "run"
    with track(run) as tracker:
        tracker.log({"loss": torch.tensor(0.5), "Success_rate_S_9": numpy.float32(1.0), "n": 3}, step=1)
        tracker.log({"loss": math.nan, "best": math.inf}, step=2)
        lines = (run / "metrics.jsonl").read_text().splitlines()  # Readable before it is closed.
        assert tracker.position() == (run / "metrics.jsonl").stat().st_size
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5, "Success_rate_S_9": 1.0, "n": 3},
        {"step": 2, "loss": None, "best": None},
    ]
    assert [json.loads(line)["step"] for line in (run / "timing.jsonl").read_text().splitlines()] == [1, 2]


def test_a_metric_may_not_be_called_step(tmp_path: Path, wandb: FakeWandb) -> None:
    with track(tmp_path / "run") as tracker, pytest.raises(ValueError, match="step"):
        tracker.log({"step": 1.0}, step=1)


@pytest.mark.parametrize("half_line", ["", '{"step": 6, "lo', "garbage"])
def test_a_resumed_file_equals_an_uninterrupted_one(
    tmp_path: Path, wandb: FakeWandb, half_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def log(tracker: Tracker, first: int, last: int) -> None:
        for step in range(first, last + 1):
            tracker.log({"loss": 1 / (step + 1)}, step=step)
            tracker.log({"validation": step * 0.1}, step=step)

    with track(tmp_path / "whole") as tracker:
        log(tracker, 0, 9)
    with track(tmp_path / "resumed") as tracker:
        log(tracker, 0, 3)
        position, digest = tracker.position(), tracker.digest()
        log(tracker, 4, 5)
    with open(tmp_path / "resumed" / "metrics.jsonl", "a") as file:
        file.write(half_line)
    with track(tmp_path / "resumed") as tracker:
        tracker.truncate(position, step=3, digest=digest)
        log(tracker, 4, 9)
    assert "lost" not in capsys.readouterr().err
    whole, resumed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed and whole.count(b"\n") == 20


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda path: path.unlink(), []),
        (lambda path: path.write_text(""), []),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), [0, 1]),
        (lambda path: path.write_text(path.read_text().replace("1.0", "2.0")), [0, 1, 2, 3]),
        (lambda path: path.write_bytes(b"\xff\xfe\n" + path.read_bytes()), [0, 1, 2, 3]),
    ],
    ids=["deleted", "emptied", "cut off", "changed", "a line added"],
)
def test_changed_metrics_are_detected_and_complete_lines_kept(tmp_path, wandb, capsys, damage, kept) -> None:
    with track(tmp_path) as tracker:
        for step in range(6):
            tracker.log({"loss": 1.0}, step=step)
            if step == 3:
                position, digest = tracker.position(), tracker.digest()
    damage(tmp_path / "metrics.jsonl")
    with track(tmp_path) as tracker:
        tracker.truncate(position, step=3, digest=digest)
        tracker.log({"loss": 1.0}, step=4)
        assert tracker.position() == (tmp_path / "metrics.jsonl").stat().st_size
        assert tracker.digest() == hashlib.sha256((tmp_path / "metrics.jsonl").read_bytes()).hexdigest()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*kept, 4]
    assert (
        f"metrics.jsonl was changed or truncated since its checkpoint was saved; {len(kept)} complete lines"
        in capsys.readouterr().err
    )


def test_wandb_continues_under_its_id_and_gets_every_step_once(tmp_path: Path, wandb: FakeWandb) -> None:
    for first in (0, 2, 3):  # Killed twice after step 4, resumed at 1, then at 2.
        with track(tmp_path / "run", wandb_mode="offline") as tracker:
            for step in range(first, 5 + (first == 3)):
                tracker.log({"loss": 1.0}, step=step)
    assert [step for step, _ in wandb.logged] == [0, 1, 2, 3, 4, 5]
    identities = {arguments["id"] for arguments in wandb.inits}
    assert identities == {(tmp_path / "run" / "wandb_id").read_text().strip()}
    assert {arguments["resume"] for arguments in wandb.inits} == {"allow"}


def test_wandb_is_started_inside_the_run(tmp_path: Path, wandb: FakeWandb) -> None:
    track(tmp_path / "run", wandb_mode="offline").close(exit_code=3)
    (arguments,) = wandb.inits
    expected = {"dir": str(tmp_path / "run"), "project": "project", "name": "name", "group": "group", "mode": "offline"}
    assert expected.items() <= arguments.items() and arguments["config"] == {"nmt": 5}
    assert arguments["settings"]["disable_git"] and not arguments["settings"]["save_code"]
    assert wandb.exit_codes == [3]


@pytest.mark.parametrize(
    ("mode", "key", "expected", "warning"),
    [
        ("auto", "", [], ""),
        ("auto", KEY, ["online"], ""),
        ("auto", "your_api_key_", ["offline"], "13 characters"),
        ("online", "", ["offline"], "no wandb key"),
        ("online", "short", ["offline"], "5 characters"),
        ("online", KEY, ["online"], ""),
        ("offline", "", ["offline"], ""),
        ("offline", KEY, ["offline"], ""),
        ("disabled", KEY, [], ""),
        ("disabled", "short", [], ""),
    ],
)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_modes_and_keys(tmp_path, monkeypatch, capsys, wandb, mode, key, expected, warning, place) -> None:
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", key)
    else:
        (tmp_path / "wandb_config.yaml").write_text(f"wandb_api: {key}\n")
    track(tmp_path / "run", wandb_mode=mode).close()
    errors = capsys.readouterr().err
    assert modes(wandb) == expected
    assert warning in errors and len(errors.splitlines()) == (1 if warning else 0)


WISHES = {
    "WANDB_MODE=run": ["online"],
    "WANDB_MODE=shared": ["online"],
    "WANDB_MODE=dryrun": ["offline"],
    "WANDB_MODE=Offline": ["offline"],
    "WANDB_MODE=disabled": [],
    "WANDB_MODE=somewhere": ["offline"],
    **{f"WANDB_DISABLED={value}": [] for value in ("true", "1", "YES", "on", "y")},
    **{f"WANDB_DISABLED={value}": ["online"] for value in ("", "false", "0", "No", "off")},
    "WANDB_DISABLED=perhaps": ["offline"],
    "WANDB_SILENT=perhaps": ["online"],
}


@pytest.mark.parametrize("mode", ["auto", "online"])
@pytest.mark.parametrize("variable", WISHES)
def test_wandbs_environment_variables(tmp_path, monkeypatch, capsys, wandb, variable, mode) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv(*variable.split("="))
    track(tmp_path / "run", wandb_mode=mode).close()
    assert modes(wandb) == WISHES[variable]
    unknown = "somewhere" in variable or variable == "WANDB_DISABLED=perhaps"
    overruled = mode == "online" and WISHES[variable] == ["offline"]
    assert len(capsys.readouterr().err.splitlines()) == (unknown or overruled)


@pytest.mark.parametrize("variable", ["WANDB_MODE", "WANDB_DISABLED"])
def test_a_key_in_the_wrong_variable_is_not_printed(tmp_path, monkeypatch, capsys, wandb, variable) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv(variable, key)
    track(tmp_path / "run").close()
    shown = capsys.readouterr()
    assert "***: must be one of online" in shown.err and key not in shown.err + shown.out


@pytest.mark.parametrize(
    ("file_mode", "variable", "expected"),
    [("offline", "", ["offline"]), ("disabled", "offline", []), ("", "offline", ["offline"]), ("", "disabled", [])],
)
def test_auto_reads_the_file_then_the_variable(tmp_path, monkeypatch, wandb, file_mode, variable, expected) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    (tmp_path / "wandb_config.yaml").write_text(f"mode: {file_mode}\nentity: team\nproject: other\n")
    track(tmp_path / "run").close()
    assert modes(wandb) == expected
    if expected:
        assert (wandb.inits[0]["entity"], wandb.inits[0]["project"]) == ("team", "other")


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_refused_key_or_a_missing_network_means_offline(tmp_path, monkeypatch, capsys, wandb, mode) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "probe_online", lambda key: "the server refused the key")
    track(tmp_path / "run", wandb_mode=mode).close()
    errors = capsys.readouterr().err
    assert modes(wandb) == ["offline"] and len(errors.splitlines()) == 1
    assert "the server refused the key" in errors and "offline" in errors


def test_a_failed_online_start_falls_back_to_offline(tmp_path, monkeypatch, capsys, wandb) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.fail_in = "online"
    with track(tmp_path / "run", wandb_mode="online") as tracker:
        tracker.log({"loss": 1.0}, step=1)
    assert modes(wandb) == ["online", "offline"] and len(wandb.logged) == 1
    assert wandb.inits[0]["id"] != wandb.inits[1]["id"]  # The real one refuses an id whose start has failed.
    assert wandb.inits[0]["settings"]["init_timeout"] <= tracking.ONLINE_SECONDS
    assert "CommError" in capsys.readouterr().err


@pytest.mark.parametrize("fail_in", ["offline", "log", "finish"])
def test_wandb_never_stops_training(tmp_path, capsys, wandb, fail_in) -> None:
    wandb.fail_in = fail_in
    with track(tmp_path / "run", wandb_mode="offline") as tracker:
        for step in range(3):
            tracker.log({"loss": 1.0}, step=step)
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1 and "continuing without it" in errors
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("mode", "warnings"), [("auto", 0), ("offline", 1)])
def test_without_wandb_installed(tmp_path, monkeypatch, capsys, wandb, mode, warnings) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # Makes `import wandb` fail.
    with track(tmp_path / "run", wandb_mode=mode) as tracker:
        tracker.log({"loss": 1.0}, step=1)
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == warnings and ("pip install wandb" in errors) == bool(warnings)


def fake_wandb_package(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A package called wandb for the probe's process to import."""
    (directory / "wandb.py").write_text(f"import os, subprocess, sys, time\ndef Api(timeout):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(directory))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("assert os.environ['WANDB_API_KEY'] == 'k' * 40", None),
        ("sys.exit('AuthenticationError: returned error 401: no')", "refused the key"),
        ("sys.exit('AuthenticationError: invalid credentials')", "refused the key"),
        ("sys.exit('AuthenticationError: dial tcp')", "cannot be reached"),
        ("raise ImportError('broken')", "ImportError: broken"),
        ("time.sleep(60)", "did not answer within 1 s"),
        ("subprocess.Popen(['sleep', '60'])", None),
        ("subprocess.Popen(['sleep', '60']); time.sleep(60)", "did not answer within 1 s"),
    ],
)
def test_the_probe_gives_a_reason_and_always_answers(tmp_path, monkeypatch, body, reason) -> None:
    fake_wandb_package(tmp_path, monkeypatch, body)
    began = time.monotonic()
    answer = probe_online(KEY, seconds=1.0 if reason and "within 1 s" in reason else 30.0)
    assert time.monotonic() - began < 30
    assert answer == reason if reason is None else reason in answer


def test_a_hanging_server_costs_less_than_ten_seconds(tmp_path, monkeypatch, capsys, wandb) -> None:
    monkeypatch.setattr(tracking, "probe_online", probe_online)  # the real one ...
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake_wandb_package(tmp_path, monkeypatch, "time.sleep(60)")  # ... which imports this.
    began = time.monotonic()
    track(tmp_path / "run", wandb_mode="online").close()
    assert time.monotonic() - began < 40 and modes(wandb) == ["offline"]
    assert "did not answer" in capsys.readouterr().err


MALFORMED = {
    "wandb_apy: x": "wandb_api",
    "wandb_api: [x]": "wandb_api",
    "project: {name: other}": "project: expected one value",
    "- x": "key: value",
    "wandb_api: 'x": "line",
    "api: !include key.yaml": "constructor",
}


@pytest.mark.parametrize("content", MALFORMED)
def test_a_malformed_settings_file(tmp_path, capsys, wandb, content) -> None:
    (tmp_path / "wandb_config.yaml").write_text(content)
    for mode in ("offline", "online"):
        with pytest.raises(UserError, match=f"wandb_config.yaml.*{MALFORMED[content]}"):
            track(tmp_path / "run", wandb_mode=mode)
    assert not capsys.readouterr().err
    track(tmp_path / "run", wandb_mode="disabled").close()  # it may belong to another project
    assert not capsys.readouterr().err and not wandb.inits
    track(tmp_path / "run", wandb_mode="auto").close()
    assert re.search(f"wandb_config.yaml.*{MALFORMED[content]}.*; wandb is off\n", capsys.readouterr().err)
    assert not wandb.inits


def test_old_and_new_settings_files(tmp_path: Path, capsys, wandb) -> None:
    text = f"wandb_api: {KEY}\ncomet_ml_api: y\nworkspace_name: z\nsome_task:\n  data: /d\nanother:\n"
    (tmp_path / "wandb_config.yaml").write_text(text)
    track(tmp_path / "run").close()
    assert modes(wandb) == ["online"] and "wandb_config.yaml" not in capsys.readouterr().err


def test_the_committed_template_is_empty() -> None:
    committed = subprocess.run(["git", "-C", str(ROOT), "show", ":wandb_config.yaml"], capture_output=True, text=True)
    if committed.returncode:
        pytest.skip("not a git checkout")
    lines = [line.strip() for line in committed.stdout.splitlines() if line.strip() and not line.startswith("#")]
    assert all(line.startswith("#") or line.endswith(":") for line in lines), lines


def test_a_metrics_file_that_cannot_be_written_is_a_user_error(tmp_path: Path, wandb: FakeWandb) -> None:
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match="metrics.jsonl cannot be written"):
        track(tmp_path / "run")


REAL = """
import sys
from pathlib import Path
from RATE_model.training.tracking import Tracker
with Tracker(Path(sys.argv[1]), wandb_mode="offline", project="p", name="n", config={"nmt": 5}) as tracker:
    for step in range(3):
        tracker.log({"loss": 1.0}, step=step)
"""


def test_the_real_wandb_offline_leaves_no_key_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    key = "0123456789abcdef" * 3
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "-c", REAL, str(tmp_path), key], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if key.encode() in path.read_bytes()]
