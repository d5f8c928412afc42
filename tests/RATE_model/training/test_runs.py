"""Run directories: recording, refusal, resuming, interruption and several seeds."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from RATE_model.errors import RunError, UserError
from RATE_model.system import locks
from RATE_model.system.interrupts import Interrupted, Interrupts
from RATE_model.training import runs
from RATE_model.training.checkpoints import save_checkpoint
from RATE_model.training.runs import FinishedRun, Run, check_run, check_unowned, open_run, owning, run_name, run_seeds

ROOT = Path(__file__).parents[3]
CONFIG = {"model_mode": "RATE", "epochs": 10, "lengths": [9, 30], "curr": "false", "wandb_mode": "auto", "resume": "no"}


def begin(directory: Path, **options) -> Run:
    options = {"config": CONFIG, "seed": 1, "may_change": {"resume", "overwrite"}, **options}
    with open_run(check_run(directory, **options), config=options["config"]) as run:
        return run


def save(run: Run, step: int) -> Path:
    return save_checkpoint(run.checkpoints, step, model_state={"w": torch.ones(2)}, training_state={"step": step})


def snapshot(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_new_run_records_configuration_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--nmt", "5"])
    run = begin(tmp_path / "a" / "run")
    assert run.checkpoint is None
    assert yaml.safe_load((run.directory / "config.yaml").read_text()) == CONFIG
    (start,) = json.loads((run.directory / "environment.json").read_text())["starts"]
    assert start["command"] == ["train.py", "--nmt", "5"] and start["seed"] == 1
    assert start["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert start["torch_threads"] == torch.get_num_threads() and start["cpus"] == os.cpu_count()
    assert set(start) == {
        *("started", "seed", "command", "git", "python", "platform", "versions", "cpus", "torch_threads", "gpu")
    }
    assert run.write_evaluation("last", {"x": 1}).read_text() == '{\n  "x": 1\n}\n'
    assert run.plots.is_dir()


def test_git_state_names_the_commit() -> None:
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("not a git checkout")
    assert runs._git_state()["commit"] == head.stdout.strip()


@pytest.mark.parametrize("key_from", ["environment", "file"])
def test_no_wandb_key_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_from: str) -> None:
    key = "0123456789abcdef" * 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key_from == "environment":
        monkeypatch.setenv("WANDB_API_KEY", key)
    else:
        (tmp_path / "wandb_config.yaml").write_text(f"wandb_api: {key}\n")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--text=x{key}"])
    run = begin(tmp_path / "run", config={**CONFIG, "text": f"x{key}"})
    files = snapshot(run.directory)
    assert len(files) == 2 and not any(key.encode() in content for content in files.values())
    assert "--text=x***" in (run.directory / "environment.json").read_text()


def test_a_run_with_a_checkpoint_is_not_touched_unless_asked(tmp_path: Path) -> None:
    save(begin(tmp_path), 5)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="--resume auto.*\n?.*--overwrite true"):
        begin(tmp_path)
    with pytest.raises(UserError, match="are mutually exclusive"):
        begin(tmp_path, resume="auto", overwrite=True)
    assert snapshot(tmp_path) == before


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run = begin(tmp_path)
    save(run, 5)
    run.write_evaluation("last", {})
    for name in ("metrics.jsonl", "timing.jsonl", "wandb_id", "mine.txt"):
        (tmp_path / name).write_text("old\n")
    assert begin(tmp_path, overwrite=True).checkpoint is None
    assert sorted(path.name for path in snapshot(tmp_path)) == ["config.yaml", "environment.json", "mine.txt"]


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    begin(tmp_path)
    assert begin(tmp_path, config={**CONFIG, "model_mode": "DT"}).checkpoint is None, "it has made nothing"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "eval" / "epoch_0001.json").write_text("{}")
    with pytest.raises(UserError, match="already contains metrics.jsonl, eval/epoch_0001.json: continue"):
        begin(tmp_path)
    assert begin(tmp_path, resume="auto").checkpoint is None
    assert not (tmp_path / "metrics.jsonl").exists() and not list((tmp_path / "eval").iterdir())


@pytest.mark.parametrize("kept", ["eval/final.json", "eval/mine.json", "plots/mine.png"])
@pytest.mark.parametrize("resume", ["no", "auto"])
def test_results_without_checkpoints_are_kept(tmp_path: Path, kept: str, resume: str) -> None:
    begin(tmp_path)
    (tmp_path / kept).write_text("{}")
    (tmp_path / "checkpoints").rmdir()
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=f"contains {kept}.*--overwrite true"):
        begin(tmp_path, resume=resume)
    assert snapshot(tmp_path) == before
    assert begin(tmp_path, overwrite=True).checkpoint is None and not (tmp_path / kept).exists()


def test_a_finished_run_without_checkpoints_is_recognised(tmp_path: Path) -> None:
    begin(tmp_path).write_evaluation("epoch_0001", {})
    (tmp_path / "eval" / "last.json").write_text("{}")

    def refused(**options) -> UserError:
        with pytest.raises(UserError, match="but no checkpoint to continue from") as refusal:
            begin(tmp_path, resume="auto", **options)
        return refusal.value

    assert not isinstance(refused(), FinishedRun)
    (tmp_path / "eval" / "final.json").write_text("{}")
    finished = refused(config={**CONFIG, "resume": "auto"})
    assert isinstance(finished, FinishedRun) and finished.directory == tmp_path
    others = {"config": {**CONFIG, "model_mode": "DT"}}, {"config": {**CONFIG, "epochs": 11}}, {"seed": 2}
    assert not any(isinstance(refused(**other), FinishedRun) for other in others)


def run_for_ever(directory: Path) -> None:
    with open_run(check_run(directory, config=CONFIG, seed=1), config=CONFIG) as run:
        save(run, 5)
        (directory / "ready").touch()
        time.sleep(300)


def test_a_run_has_one_owner(tmp_path: Path) -> None:
    owner = multiprocessing.get_context("fork").Process(target=run_for_ever, args=(tmp_path,))
    checked = check_run(tmp_path, config=CONFIG, seed=1)
    owner.start()
    while not (tmp_path / "ready").exists():
        assert owner.is_alive()
        time.sleep(0.01)
    before = snapshot(tmp_path)
    stopping = rf"in use by process {owner.pid} on .* wait for it or stop it \(kill {owner.pid} on .*\), or "
    for options in ({}, {"resume": "auto"}, {"overwrite": True}):
        with pytest.raises(UserError, match=stopping + r".*--text or --ckpt_folder$"):
            check_run(tmp_path, config=CONFIG, seed=1, **options)
    with pytest.raises(UserError, match=f"in use by process {owner.pid} on"), open_run(checked, config=CONFIG):
        pass
    with pytest.raises(UserError, match="--output .*final.json: .* is " + stopping):
        check_unowned(pictures=None, output=tmp_path / "eval" / "final.json")
    assert snapshot(tmp_path) == before
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    check_unowned(output=tmp_path / "eval" / "final.json")
    assert begin(tmp_path, resume="auto").checkpoint.name == "step_00000005"
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": "auto"}])
def test_a_run_is_checked_again_when_opened(tmp_path: Path, options: dict) -> None:
    """Another command finished it between the check of all seeds and the start of this one."""
    checked = check_run(tmp_path, config=CONFIG, seed=1, **options)
    step = save(begin(tmp_path), 5)
    before = snapshot(tmp_path)
    if "resume" in options:
        with open_run(checked, config=CONFIG) as run:
            assert run.checkpoint == step
        return
    with (
        pytest.raises(RunError, match="already contains|another command in the meantime"),
        open_run(checked, config=CONFIG),
    ):
        pass
    assert snapshot(tmp_path) == before


def test_errors_inside_an_open_run_are_run_errors(tmp_path: Path) -> None:
    run = check_run(tmp_path, config=CONFIG, seed=1)
    with pytest.raises(RunError, match="^no room$"), open_run(run, config=CONFIG):
        raise UserError("no room")
    with pytest.raises(ZeroDivisionError) as caught, open_run(run, config=CONFIG):
        _ = 1 / 0
    assert caught.value.__notes__ == [f"the traceback is in {tmp_path / 'traceback.txt'}"]
    assert "1 / 0" in (tmp_path / "traceback.txt").read_text()
    assert begin(tmp_path).checkpoint is None, "a traceback is not a result"


def test_leftovers_of_a_killed_owner_are_removed(tmp_path: Path) -> None:
    run = begin(tmp_path)
    save(run, 5)
    left = [tmp_path / ".config.yaml.0123abcd.tmp", run.plots / ".a.png.0123abcd.tmp", run.plots / ".a.png.lock"]
    for path in left:
        path.touch()
    begin(tmp_path, resume="auto")
    assert not any(path.exists() for path in left)


def test_resume_auto_starts_or_continues(tmp_path: Path) -> None:
    run = begin(tmp_path, resume="auto")
    assert run.checkpoint is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    save(run, 5), save(run, 6)
    assert begin(tmp_path, resume="auto").checkpoint == tmp_path / "checkpoints" / "step_00000006"
    assert (tmp_path / "metrics.jsonl").exists()
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 2
    (tmp_path / "checkpoints" / "step_00000006" / "training.pt").write_bytes(b"")
    assert begin(tmp_path, resume="auto").checkpoint == tmp_path / "checkpoints" / "step_00000005"
    (tmp_path / "checkpoints" / "step_00000005" / "training.pt").write_bytes(b"")
    with pytest.raises(UserError, match="only damaged checkpoints"):
        begin(tmp_path, resume="auto")


@pytest.mark.parametrize("content", [b"", b"{", b'{"starts": 3}', b'{"starts": [1]}', b"\xff"])
def test_a_damaged_record_is_kept_with_a_warning(tmp_path: Path, capsys, content: bytes) -> None:
    save(begin(tmp_path), 5)
    (tmp_path / "environment.json").write_bytes(content)
    begin(tmp_path, resume="auto")
    assert f"warning: {tmp_path / 'environment.json'} is damaged" in capsys.readouterr().err
    assert (tmp_path / "environment.damaged.json").read_bytes() == content
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 1
    begin(tmp_path, resume="auto")
    assert "damaged" not in capsys.readouterr().err


def test_writing_into_a_run_waits_for_its_owner(tmp_path: Path, monkeypatch, capsys) -> None:
    owner = multiprocessing.get_context("fork").Process(target=run_for_ever, args=(tmp_path,))
    owner.start()
    while not (tmp_path / "ready").exists():
        assert owner.is_alive()
        time.sleep(0.01)
    monkeypatch.setattr(locks, "print", lambda text, **_: (owner.kill(), print(text)), raising=False)
    with owning(tmp_path / "eval" / "mine.json"):
        assert not owner.is_alive() and (tmp_path / ".lock").exists()
    assert f"{tmp_path} is in use by another process; waiting for it" in capsys.readouterr().out


def test_resume_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(tmp_path / "first")
    five, _ = save(first, 5), save(first, 6)
    monkeypatch.chdir(tmp_path)
    assert begin(tmp_path / "first", resume="first/checkpoints/step_00000005").checkpoint == five
    other = begin(tmp_path / "other", resume=str(tmp_path / "first"))
    assert other.directory.name == "other" and other.checkpoint.name == "step_00000006"
    with pytest.raises(UserError, match="absent does not exist"):
        begin(tmp_path / "new", resume="absent")
    assert not (tmp_path / "new").exists()
    save(other, 7)
    with pytest.raises(UserError, match="already contains"):
        begin(tmp_path / "other", resume="first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 20}, None),
        ({"wandb_mode": "offline", "resume": "auto"}, None),
        ({"epochs": 5}, "epochs was 10 and may only grow, now 5"),
        ({"model_mode": "DT"}, "model_mode was RATE, now DT"),
        ({"lengths": [9]}, r"lengths was \[9, 30\], now \[9\]"),
        ({"new_flag": 1}, "new_flag was None, now 1"),
    ],
)
def test_only_some_flags_may_change_on_resuming(tmp_path: Path, change: dict, message: str | None) -> None:
    save(begin(tmp_path), 5)
    config = CONFIG | change
    if message is None:
        begin(tmp_path, resume="auto", config=config)
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    else:
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match=message):
            begin(tmp_path, resume="auto", config=config)
        assert snapshot(tmp_path) == before


def test_a_run_with_earlier_spellings_is_resumed(tmp_path: Path) -> None:
    save(begin(tmp_path, config={"sections": 3, "desired_return": 56.5, "astray": 0.5}), 5)
    config = {"segments": 3, "target_return": 56.5, "perturbation": 0.5}
    assert begin(tmp_path, resume="auto", config=config).checkpoint is not None
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    with pytest.raises(UserError, match="segments was 3, now 4"):
        begin(tmp_path, resume="auto", config=config | {"segments": 4})


def test_a_run_older_than_a_flag_uses_its_former_value(tmp_path: Path) -> None:
    save(begin(tmp_path, config={"layouts": "own"}), 5)
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    both = {"config": {"epochs": 1, "layouts": "own"}, "resume": "auto"}
    with pytest.raises(UserError, match="layouts was None, now own"):
        begin(tmp_path, **both)
    with pytest.raises(UserError, match="layouts was published, now own"):
        begin(tmp_path, **both, before={"layouts": "published"})
    assert begin(tmp_path, **both, before={"layouts": "own"}).checkpoint is not None


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    save(begin(tmp_path), 5)
    with pytest.raises(UserError, match="seed was 1, now 2"):
        begin(tmp_path, resume="auto", seed=2)


def test_a_directory_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be written"):
        begin(tmp_path / "file" / "run")


def test_run_names() -> None:
    assert run_name("", "arch_mode_TrXL", "RATE", "RUN", 1) == "arch_mode_TrXL_RATE_RUN_1"
    assert run_name("my comment/../x", 1) == "my-comment-..-x_1"
    assert run_name("../up") == "up" and run_name("a=1.5+b") == "a=1.5+b"
    long = [run_name("ü" * 300 + end, "RATE", "RUN", 1) for end in ("", "a", "b")]
    assert all(len(name.encode()) <= 200 and name.endswith("_RATE_RUN_1") for name in long) and len(set(long)) == 3
    with pytest.raises(UserError):
        run_name("/", "")


def test_a_signal_is_recorded_and_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        with Interrupts() as interrupts:
            interrupts.stop()
            os.kill(os.getpid(), number)
            assert interrupts.requested == signal.Signals(number).name
            with pytest.raises(Interrupted, match=interrupts.requested):
                interrupts.stop()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_only_a_second_ctrl_c_stops_at_once() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_forked_worker_still_dies_of_sigterm_and_ignores_ctrl_c() -> None:
    with Interrupts() as interrupts:
        worker = os.fork()
        if worker == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(worker, signal.SIGINT)
        time.sleep(0.1)
        assert os.waitpid(worker, os.WNOHANG) == (0, 0)
        os.kill(worker, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(worker, 0)[1]) == signal.SIGTERM
        assert interrupts.requested is None


def of_seeds(*seeds: int) -> list[Run]:
    return [Run(Path(f"runs/x_RUN_{seed}"), seed, None, lambda: (None, ())) for seed in seeds]


def test_every_seed_runs_and_a_failed_one_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    ran = []

    def train(run: Run) -> None:
        ran.append(run.seed)
        if run.seed == 2:
            raise RuntimeError("loss is nan")
        if run.seed == 3:
            raise UserError("--text x: taken")

    assert run_seeds(of_seeds(1, 2, 3, 4), train) == 1
    errors = capsys.readouterr().err
    assert ran == [1, 2, 3, 4]
    assert "Traceback" in errors and "seed 2 failed: RuntimeError: loss is nan\n" in errors
    assert "seed 3 failed: --text x: taken" in errors and "2 of 4 seeds finished; failed: 2, 3" in errors


def test_successful_seeds_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_seeds(of_seeds(1, 2), lambda run: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_user_error_in_the_first_seed_is_raised() -> None:
    def train(run: Run) -> None:
        raise UserError("no data")

    with pytest.raises(UserError, match="no data"):
        run_seeds(of_seeds(1, 2), train)


@pytest.mark.parametrize(
    ("error", "code"), [(Interrupted("SIGTERM"), 143), (Interrupted("SIGINT"), 130), (KeyboardInterrupt(), 130)]
)
def test_an_interrupt_stops_all_seeds(capsys: pytest.CaptureFixture[str], error: BaseException, code: int) -> None:
    ran = []

    def train(run: Run) -> None:
        ran.append(run.seed)
        raise error

    typed = ["python3", "train.py", "--text", "a b", "--resume=no", "--overwrite", "true", "--epochs", "3"]
    assert run_seeds(of_seeds(1, 2), train, command=typed) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert ran == [1] and line.startswith("runs/x_RUN_1: seed 1 stopped by SIG")
    assert line.endswith("; continue with python3 train.py --text 'a b' --epochs 3 --resume auto")


def test_checking_a_run_creates_and_removes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "run"
    assert check_run(directory, config=CONFIG, seed=1).checkpoint is None
    assert not (tmp_path / "new").exists()
    save(begin(tmp_path / "old"), 5)
    before = snapshot(tmp_path)
    assert check_run(tmp_path / "old", config=CONFIG, seed=1, overwrite=True).checkpoint is None
    assert snapshot(tmp_path) == before


def test_a_too_long_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="longer than 255 bytes"):
        begin(tmp_path / "runs" / ("x" * 300) / "run")
    with pytest.raises(UserError, match="File name too long"):
        begin(tmp_path.joinpath(*["x" * 200] * 30))


def test_malformed_wandb_settings_delete_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    save(begin(directory), 3)
    before = snapshot(directory)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb_config.yaml").write_text("wandb_api: [")
    with pytest.raises(UserError, match="wandb_config.yaml"):
        begin(directory, overwrite=True, config=CONFIG | {"wandb_mode": "offline"})
    assert snapshot(directory) == before
