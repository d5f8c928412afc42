"""Checkpoints: round trip, rotation, damage, and kill -9 in the middle of a save."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from RATE_model.errors import UserError
from RATE_model.system import locks
from RATE_model.training import checkpoints
from RATE_model.training.checkpoints import (
    find_checkpoint,
    find_damage,
    finish_save,
    load_checkpoint,
    resolve_checkpoint,
    run_of,
    save_checkpoint,
)

ROOT = Path(__file__).parents[3]


def save(directory: Path, step: int, value: float | None = None, **options) -> Path:
    weights = {"weight": torch.full((3,), float(step if value is None else value))}
    return save_checkpoint(directory, step, model_state=weights, training_state={"step": step}, **options)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def value_at(path: Path) -> float:
    return load_checkpoint(path)[0]["weight"][0].item()


def test_model_and_training_state_round_trip_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    model[0].weight = nn.Parameter(torch.randn(4, 3).t())  # Not contiguous.
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 4)).square().mean().backward()
    optimizer.step()
    training = {
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "numpy": ["MT19937", [1, 2], 3],
        "nested": {
            "float": 0.1,
            "none": None,
            "tuple": (1, "a"),
            "infinite": float("inf"),
            "bf16": torch.ones(2).bfloat16(),
        },
    }
    path = save_checkpoint(tmp_path, 12, model_state=model.state_dict(), training_state=training)
    weights, restored = load_checkpoint(path)

    assert path == tmp_path / "step_00000012"
    assert json.loads((path / "manifest.json").read_text())["step"] == 12
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert restored["nested"]["tuple"] == (1, "a") and torch.equal(restored["rng"], training["rng"])
    fresh = torch.optim.AdamW(model.parameters())
    fresh.load_state_dict(restored["optimizer"])
    for old, new in zip(optimizer.state_dict()["state"].values(), fresh.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    path = save_checkpoint(tmp_path, 0, model_state={"a": shared, "b": shared, "c": shared[2:]}, training_state={})
    weights, _ = load_checkpoint(path)
    assert torch.equal(weights["a"], shared) and torch.equal(weights["b"], shared) and len(weights["c"]) == 4


def test_state_that_is_not_plain_data_is_refused_when_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="PosixPath|pathlib"):
        save_checkpoint(tmp_path, 0, model_state={}, training_state={"path": tmp_path})
    assert find_checkpoint(tmp_path) is None


def test_the_newest_and_the_tagged_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, tag="best" if step == 2 else None)
    assert names(tmp_path) == ["best", "step_00000002", "step_00000004", "step_00000005"]
    assert find_checkpoint(tmp_path) == tmp_path / "step_00000005"
    assert find_checkpoint(tmp_path, tag="best") == tmp_path / "step_00000002"
    save(tmp_path, 6, tag="best", keep=1)
    assert names(tmp_path) == ["best", "step_00000006"]


def test_checkpoints_of_later_steps_are_removed(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, keep=9, tag="best" if step == 30 else None)
    save(tmp_path, 15, keep=2)
    assert names(tmp_path) == ["step_00000010", "step_00000015"]


def test_other_files_beside_checkpoints_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "picture").write_bytes(b"\xff\xfe")
    save(tmp_path, 1)
    assert names(tmp_path) == ["notes.txt", "picture", "step_00000001"]
    assert find_checkpoint(tmp_path, tag="notes.txt") == tmp_path / "step_00000001"


def test_a_step_saved_twice_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1, 1.0, keep=1)
    path = save(tmp_path, 1, 2.0, keep=1)
    assert value_at(path) == 2.0 and names(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("new_one_arrived", [False, True])
def test_dying_while_a_step_is_replaced_loses_nothing(tmp_path: Path, new_one_arrived: bool) -> None:
    path = save(tmp_path, 1, 1.0)
    path.rename(tmp_path / "step_00000001.old")
    if new_one_arrived:
        other = save(tmp_path / "other", 1, 2.0)
        other.rename(path)
        shutil.rmtree(tmp_path / "other")
    assert value_at(find_checkpoint(tmp_path)) == (2.0 if new_one_arrived else 1.0)
    assert value_at(path) == (2.0 if new_one_arrived else 1.0)
    save(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def damage_truncated(path: Path) -> None:
    with open(path / "training.pt", "r+b") as file:
        file.truncate(100)


def damage_flipped(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


def damage_missing(path: Path) -> None:
    (path / "training.pt").unlink()


def damage_empty(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def damage_manifest_empty(path: Path) -> None:
    (path / "manifest.json").write_bytes(b"")


def damage_manifest_missing(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_truncated, "training.pt"),
        (damage_flipped, "model.safetensors"),
        (damage_missing, "training.pt"),
        (damage_empty, "model.safetensors"),
        (damage_manifest_empty, "manifest.json"),
        (damage_manifest_missing, "manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, capsys, damage, named) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2, tag="best")
    assert find_damage(bad) is None
    damage(bad)
    for tag in (None, "best"):
        assert find_checkpoint(tmp_path, tag=tag) == good
        warning = capsys.readouterr().err
        assert str(bad) in warning and named in warning and len(warning.splitlines()) == 1
    with pytest.raises(UserError, match=named):
        load_checkpoint(bad)
    damage(good)
    assert find_checkpoint(tmp_path) is None
    assert capsys.readouterr().err == ""  # none is used
    with pytest.raises(UserError, match=rf"has no intact checkpoint .{bad.name}: .*{named}"):
        resolve_checkpoint(tmp_path)


def test_no_checkpoint_is_found_in_empty_directories(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None and find_checkpoint(tmp_path / "absent") is None
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=path.name):
            load_checkpoint(path)
        with pytest.raises(UserError, match=path.name):
            resolve_checkpoint(path)


def test_run_without_checkpoint_says_how_to_continue(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    starts = [{"command": ["/code/RATE_model/train.py", "--data", "my data.h5"]}]
    (tmp_path / "environment.json").write_text(json.dumps({"starts": starts}))
    for path in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(UserError, match="stopped before its first one; continue it with python3") as caught:
            resolve_checkpoint(path)
        assert str(caught.value).endswith("with python3 -m RATE_model.train --data 'my data.h5' --resume auto")
    with locks.hold(tmp_path / ".lock"), pytest.raises(UserError, match="no checkpoint yet: .* is training it"):
        resolve_checkpoint(tmp_path)


def test_a_checkpoint_is_found_from_the_run_or_below(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    best, last = save(directory, 1, tag="best"), save(directory, 2)
    for path, tag, expected in [
        (tmp_path, None, last),
        (tmp_path, "best", best),
        (directory, None, last),
        (best, None, best),
        (directory / "best", None, best),
    ]:
        assert resolve_checkpoint(path, tag=tag) == expected
    damage_flipped(best)
    with pytest.raises(UserError, match="model.safetensors"):
        resolve_checkpoint(best)


def test_a_full_disk_leaves_the_older_ones_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = checkpoints.write_durably

    def full(path: Path, data: bytes) -> None:
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoints, "write_durably", full)
    with pytest.raises(UserError, match="step_00000002: No space left on device. step_00000001 is intact; make"):
        save(tmp_path, 2)
    with pytest.raises(UserError, match="step_00000001: No space left on device. Make room"):
        save(tmp_path.with_name("other"), 1)
    assert names(tmp_path) == ["step_00000001"] and find_checkpoint(tmp_path) == tmp_path / "step_00000001"


def test_an_uncreatable_directory_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot save checkpoint"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_a_full_disk_error_names_no_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage_flipped(save(tmp_path, 1))

    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "atomic_write_text", full)  # writes the tag
    with pytest.raises(UserError, match="step_00000002: No space left on device. step_00000002 is intact; make"):
        save(tmp_path, 2, tag="best")
    monkeypatch.setattr(checkpoints, "write_durably", full)
    damage_flipped(tmp_path / "step_00000002")
    with pytest.raises(UserError, match="step_00000003: No space left on device. Make"):
        save(tmp_path, 3)


class PowerLoss(BaseException):
    """Not caught anywhere in the program."""


def test_dying_at_any_point_of_a_save_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each file operation of a save, die before it; for the removal of a tree, also halfway."""
    remaining = 0

    def dying(real, halfway=None):
        def operation(path, *arguments, **options):
            nonlocal remaining
            if remaining == 0 and halfway is not None:
                halfway(Path(path))
            if remaining == 0:
                raise PowerLoss
            remaining -= 1
            return real(path, *arguments, **options)

        return operation

    def remove_one(path: Path) -> None:
        next(path.iterdir()).unlink()

    survived, points = False, 0
    while not survived:
        directory = tmp_path / str(points)
        save(directory, 1, 1.0), save(directory, 2, 2.0, tag="best")
        remaining = points
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", dying(os.rename))
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree, remove_one))
            patch.setattr(checkpoints, "write_durably", dying(checkpoints.write_durably))
            patch.setattr(checkpoints, "sync_directory", dying(checkpoints.sync_directory))
            try:
                save(directory, 2, 2.5, keep=1, tag="best")  # Replaces step 2 and removes step 1.
                survived = True
            except PowerLoss:
                points += 1
        for tag in (None, "best"):
            assert value_at(find_checkpoint(directory, tag=tag)) in ((2.5,) if survived else (2.0, 2.5)), points
        found = find_checkpoint(shutil.copytree(directory, tmp_path / f"{points} {survived}"))
        assert found is not None
        finish_save(found, keep=1, tag="best")
        assert names(found.parent) == ["best", "step_00000002"], points
        save(directory, 3, keep=1)
        assert names(directory) == ["best", "step_00000002", "step_00000003"], points
    assert points > 8


SAVER = """
import sys, torch
from pathlib import Path
from RATE_model.training.checkpoints import save_checkpoint
directory, start = Path(sys.argv[1]), int(sys.argv[2])
for step in range(start, start + 100_000):
    step = step // 3  # Every step is saved three times: replacing is part of it.
    tensors = {f"w{i}": torch.full((20_000,), float(step)) for i in range(4)}
    save_checkpoint(directory, step, model_state=tensors, training_state={"step": step}, keep=1, tag="best")
    print(step, flush=True)
"""


def test_kill_9_while_saving_never_loses_a_finished_checkpoint(tmp_path: Path) -> None:
    random.seed(0)
    start = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path), str(start)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for _ in range(random.randint(2, 6)):
            finished = int(process.stdout.readline())
        time.sleep(random.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        lines = process.communicate()[0].split("\n")[:-1]
        finished = max([finished, *map(int, lines)])
        weights, training = load_checkpoint(find_checkpoint(tmp_path))
        assert training["step"] >= finished
        assert all((tensor == training["step"]).all() for tensor in weights.values())
        start = 3 * training["step"]


def test_a_too_long_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        resolve_checkpoint(tmp_path / ("x" * 300))


@pytest.mark.parametrize("folder", ["checkpoints", "saved"])
def test_the_run_of_a_checkpoint_is_found_whatever_its_folder_is_called(folder, tmp_path, monkeypatch):
    step = save_checkpoint(tmp_path / "run" / folder, 3, model_state={}, training_state={})
    assert run_of(step) == tmp_path / "run" and run_of(tmp_path / "run") == tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert run_of(Path("run") / folder / step.name) == Path("run")
    monkeypatch.chdir(step.parent)
    assert run_of(Path(step.name)) == tmp_path / "run"
    monkeypatch.chdir(tmp_path / "run")
    assert run_of(Path(folder) / step.name) == tmp_path / "run"


def test_the_run_of_a_folder_of_checkpoints_is_found(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "run" / "checkpoints", 3, model_state={}, training_state={})
    assert run_of(tmp_path / "run" / "checkpoints") == run_of(tmp_path / "run" / "checkpoints" / "best")
    monkeypatch.chdir(tmp_path / "run")
    assert run_of(Path("checkpoints")) == tmp_path / "run"
