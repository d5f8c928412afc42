"""Checkpoints that survive kill -9, power loss and a full disk, and that are verified before they are used.

A checkpoint is a directory, complete when it has its final name::

    checkpoints/
        step_00000400/  model.safetensors   the weights, readable without this project
                        training.pt         optimizer, schedule, sampler position, RNG states, ... (no pickled code)
                        manifest.json       step, and the sha256 of both files
        step_00000500/  ...
        best                                a text file: the name of the checkpoint that carries the tag

Saving writes ``step_X.tmp``, brings its files to the disk and renames it. Only a step saved twice has something to
replace: the old directory then steps aside as ``step_X.old`` and is taken for step X should the process die before the
new one has the name.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from RATE_model.errors import UserError
from RATE_model.system.atomic import atomic_write_text, sync_directory, write_durably

MODEL, TRAINING, MANIFEST = "model.safetensors", "training.pt", "manifest.json"
# Beside checkpoints/: mean and std of observations, for checkpoints whose spec does not hold them.
NORMALISATION = "normalisation.json"


def save_checkpoint(
    directory: Path,
    step: int,
    *,
    model_state: dict[str, Tensor],
    training_state: dict[str, Any],
    keep: int = 2,
    tag: str | None = None,
) -> Path:
    """Saves step ``step`` and returns its directory, ``directory/step_XXXXXXXX``.

    Kept besides it: the ``keep - 1`` newest before it and those that carry a tag ("best"); ``tag`` moves to this one.
    Checkpoints of later steps are removed: they belong to the future of a run that was taken back to an earlier step.

    ``training_state`` may hold dicts, lists, tuples, tensors, numbers, strings, bytes, booleans and None, so that it is
    read back without running code; raises TypeError otherwise. Tensors are stored as they are on the CPU, shared ones
    once per name. Raises UserError if the disk is full or refuses; the older checkpoints are then intact.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be >= 0 and keep >= 1, not {step} and {keep}")
    final = directory / f"step_{step:08d}"
    payload = {
        MODEL: safetensors.torch.save(
            {
                name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in model_state.items()
            }
        ),
        TRAINING: _serialised(training_state),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _tidy(directory)
        _write(final, step, payload)
        if tag is not None:
            _tag(final, tag)
        _rotate(directory, step, keep)
    except OSError as error:
        shutil.rmtree(final.with_suffix(".tmp"), ignore_errors=True)
        earlier = "Make" if (good := find_checkpoint(directory)) is None else f"{good.name} is intact; make"
        raise UserError(
            f"cannot save checkpoint {final}: {error.strerror or error}. {earlier} room or mend the directory, then "
            "continue with --resume auto"
        ) from error
    return final


def finish_save(path: Path, *, keep: int = 2, tag: str | None = None) -> None:
    """Does what `save_checkpoint` does once a checkpoint is written, should the process have died before that.

    Later checkpoints, and earlier ones beside them, stay until the next save.
    """
    directory, step = path.parent, int(path.stem.removeprefix("step_"))
    _tidy(directory)
    if tag is not None:
        _tag(path, tag)
    if step == max(_candidates(directory)):
        _rotate(directory, step, keep)


def _tag(path: Path, tag: str) -> None:
    """Lets a checkpoint, and no other of its directory, carry a tag."""
    atomic_write_text(path.parent / tag, f"{path.stem}\n")


def find_checkpoint(directory: Path, *, tag: str | None = None) -> Path | None:
    """The newest checkpoint in ``directory`` that verifies, or None; with ``tag``, the one that carries it, if it does.

    A damaged one is skipped with a warning on stderr that names it, if another is found; leftovers of interrupted saves
    are ignored.
    """
    candidates = [path for _, path in sorted(_candidates(directory).items(), reverse=True)]
    tagged = _tagged(directory, tag) if tag else None
    if tagged is not None:
        candidates.insert(0, tagged)
    skipped: list[str] = []
    for path in dict.fromkeys(candidates):
        damage = find_damage(path)
        if damage is None:
            for text in skipped:
                print(f"warning: checkpoint {text} and skipped; the one before it is used", file=sys.stderr)
            return path
        skipped.append(f"{path} is damaged ({damage})")
    return None


def resolve_checkpoint(path: Path | str, *, tag: str | None = None) -> Path:
    """The checkpoint meant by ``path``: a checkpoint, or the newest (or tagged) good one of a run or its checkpoints/.

    Raises UserError if there is none that verifies.
    """
    try:
        return _resolve(Path(path), tag)
    except OSError as error:  # a name that is too long, or a directory that may not be entered
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _resolve(path: Path, tag: str | None) -> Path:
    """`resolve_checkpoint`, but for errors of the file system."""
    if (path / MANIFEST).is_file():
        if damage := find_damage(path):
            raise UserError(f"checkpoint {path} is damaged ({damage}); choose another, or the run directory above it")
        return path
    if path.is_file() and (tagged := _tagged(path.parent, path.name)) is not None:
        return _resolve(tagged, None)
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = find_checkpoint(directory, tag=tag) if path.is_dir() else None
    if found is None:
        what = "holds no intact checkpoint" if path.exists() else "does not exist"
        if damaged := sorted(_candidates(directory).items()):
            newest = damaged[-1][1]
            what += f" ({newest.name}: {find_damage(newest)})"
        raise UserError(
            f"{path} {what}; give a run directory, its checkpoints/, or one of the directories step_* in it"
        )
    return found


def load_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(model_state, training_state) of one checkpoint, on the CPU; raises UserError if it is absent or damaged."""
    path = Path(path)
    if not path.exists() and path.with_suffix(".old").exists():
        path = path.with_suffix(".old")
    if damage := find_damage(path):
        raise UserError(f"checkpoint {path} cannot be used: {damage}")
    content: list[Any] = []
    for name, read in ((MODEL, safetensors.torch.load), (TRAINING, _deserialised)):
        try:
            content.append(read((path / name).read_bytes()))
        except OSError:
            raise
        except Exception as error:  # of many kinds: this file was written by something else
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"checkpoint {path} cannot be used: {name} is not a file of this project ({reason})"
            ) from None
    weights, training = content
    if not isinstance(training, dict):
        raise UserError(f"checkpoint {path} cannot be used: {TRAINING} holds no state of training")
    return weights, training


def has_checkpoints(directory: Path) -> bool:
    """Whether ``directory`` holds anything that was saved as a checkpoint, good or damaged."""
    return bool(_candidates(directory))


def find_damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at ``path`` (a file missing, shortened or altered), or None if it is whole."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        expected = {name: files[name] for name in (MODEL, TRAINING)}
    except FileNotFoundError:
        return f"no {MANIFEST}" if path.is_dir() else "there is no such directory"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, digest in expected.items():
        try:
            with open(path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} is not what was saved"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _serialised(training_state: dict[str, Any]) -> bytes:
    """The bytes of training.pt, proven readable: better that a save fails now than a resume later."""
    buffer = io.BytesIO()
    torch.save(training_state, buffer)
    try:
        _deserialised(buffer.getvalue())
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error))
        raise TypeError(f"training_state must be plain data, it could not be read back: {reason}") from error
    return buffer.getvalue()


def _deserialised(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _write(final: Path, step: int, payload: dict[str, bytes]) -> None:
    """Writes all files beside the final name and puts them in place in one step."""
    temporary, old = final.with_suffix(".tmp"), final.with_suffix(".old")
    manifest = {"step": step, "files": {name: hashlib.sha256(data).hexdigest() for name, data in payload.items()}}
    temporary.mkdir()
    for name, data in payload.items():
        write_durably(temporary / name, data)
    write_durably(temporary / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    sync_directory(temporary)
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    sync_directory(final.parent)
    if old.exists():
        shutil.rmtree(old)


def _tidy(directory: Path) -> None:
    """Clears what interrupted saves have left, and gives a step back its name if its replacement never came."""
    for path in directory.iterdir():
        if path.suffix == ".tmp":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.suffix == ".old" and path.with_suffix("").exists():
            shutil.rmtree(path)
        elif path.suffix == ".old":
            os.rename(path, path.with_suffix(""))


def _rotate(directory: Path, step: int, keep: int) -> None:
    """Removes what save_checkpoint does not keep, and tags that have lost their checkpoint."""
    candidates = _candidates(directory)
    tags = {path: name for path in directory.iterdir() if (name := _tagged_name(path))}
    newest = sorted((other for other in candidates if other <= step), reverse=True)[:keep]
    for other, path in candidates.items():
        if other > step or (other not in newest and path.name not in tags.values()):
            os.rename(path, path.with_suffix(".tmp"))  # First: half removed, it would look like a damaged one.
            shutil.rmtree(path.with_suffix(".tmp"))
    for path, name in tags.items():
        if not (directory / name).is_dir():
            path.unlink()


def _candidates(directory: Path) -> dict[int, Path]:
    """``{step: path}`` of what looks like a checkpoint by its name."""
    found: dict[int, Path] = {}
    for path in sorted(directory.iterdir() if directory.is_dir() else ()):
        match = re.fullmatch(r"step_(\d{8,})(\.old)?", path.name)
        if match and path.is_dir():
            found.setdefault(int(match[1]), path)  # Sorted: step_X comes before step_X.old.
    return found


def _tagged(directory: Path, tag: str) -> Path | None:
    """The checkpoint that carries a tag, if there is such a tag."""
    name = _tagged_name(directory / tag)
    return _candidates(directory).get(int(name.removeprefix("step_"))) if name else None


def _tagged_name(path: Path) -> str | None:
    """The directory name that a tag file holds, or None if ``path`` is not a tag file."""
    try:
        name = path.read_text().strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return None
    return name if re.fullmatch(r"step_\d{8,}", name) else None
