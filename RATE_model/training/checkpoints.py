"""Checkpoints that survive kill -9, power loss and a full disk, and are verified before use.

A checkpoint is a directory, complete when it has its final name::

    checkpoints/
        step_00000400/  model.safetensors   the weights, readable without this project
                        training.pt         optimizer, schedule, sampler position, RNG states, ... (no pickled code)
                        manifest.json       step, and the sha256 of both files
        step_00000500/  ...
        best                                a text file: the name of the checkpoint that carries the tag

Saving writes ``step_X.tmp``, flushes its files to disk and renames it. When a step is saved again, the old directory
is first renamed to ``step_X.old``, which counts as step X if the process dies before the new one is in place.
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
from RATE_model.system.locks import owner
from RATE_model.training.continuing import advice

MODEL, TRAINING, MANIFEST = "model.safetensors", "training.pt", "manifest.json"
# Beside checkpoints/: mean and std of observations, for checkpoints whose spec lacks them.
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
    """Save step ``step`` and return its directory, ``directory/step_XXXXXXXX``.

    Also kept are the ``keep - 1`` newest before it and those that carry a tag ("best"); ``tag`` moves to this one.
    Checkpoints of later steps are removed: they are left over from before the run was resumed at an earlier step.

    ``training_state`` may contain dicts, lists, tuples, tensors, numbers, strings, bytes, booleans and None, so that it
    can be loaded without running code; anything else raises TypeError. Tensors are stored as on the CPU, shared ones
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
        TRAINING: _serialise(training_state),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clean_up(directory)
        _write(final, step, payload)
        if tag is not None:
            _tag(final, tag)
        _rotate(directory, step, keep)
    except OSError as error:
        shutil.rmtree(final.with_suffix(".tmp"), ignore_errors=True)
        earlier = "Make" if (good := find_checkpoint(directory)) is None else f"{good.name} is intact; make"
        raise UserError(
            f"cannot save checkpoint {final}: {error.strerror or error}. {earlier} room or fix the directory, then "
            "continue with --resume auto"
        ) from error
    return final


def finish_save(path: Path, *, keep: int = 2, tag: str | None = None) -> None:
    """Finish a save if the process died right after the checkpoint was written.

    Later checkpoints, and earlier ones beside them, stay until the next save.
    """
    directory, step = path.parent, int(path.stem.removeprefix("step_"))
    _clean_up(directory)
    if tag is not None:
        _tag(path, tag)
    if step == max(_candidates(directory)):
        _rotate(directory, step, keep)


def _tag(path: Path, tag: str) -> None:
    """Move a tag to this checkpoint."""
    atomic_write_text(path.parent / tag, f"{path.stem}\n")


def find_checkpoint(directory: Path, *, tag: str | None = None) -> Path | None:
    """The newest intact checkpoint in ``directory``, or None; with ``tag``, the one that carries it, if intact.

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
    """Resolve ``path`` to a checkpoint: itself, or the newest (or tagged) intact one of a run or its checkpoints/.

    Raises UserError if there is no intact one.
    """
    try:
        return _resolve(Path(path), tag)
    except OSError as error:  # the name is too long, or the directory may not be entered
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _resolve(path: Path, tag: str | None) -> Path:
    """`resolve_checkpoint` without the handling of file system errors."""
    if (path / MANIFEST).is_file():
        if damage := find_damage(path):
            raise UserError(f"checkpoint {path} is damaged ({damage}); choose another, or the run directory above it")
        return path
    if path.is_file() and (tagged := _tagged(path.parent, path.name)) is not None:
        return _resolve(tagged, None)
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = find_checkpoint(directory, tag=tag) if path.is_dir() else None
    if found is None:
        run = directory.parent if directory.name == "checkpoints" else path
        if (run / "environment.json").is_file() and not _candidates(directory):
            raise UserError(_not_begun(run))
        what = "has no intact checkpoint" if path.exists() else "does not exist"
        if damaged := sorted(_candidates(directory).items()):
            newest = damaged[-1][1]
            what += f" ({newest.name}: {find_damage(newest)})"
        raise UserError(f"{path} {what}; give a run directory, its checkpoints/, or one of its step_* directories")
    return found


def run_of(path: Path) -> Path:
    """The directory of a run that is given by itself, by its checkpoints/, or by one of these, whatever their folder is
    called. A path as relative as the given one, unless that is too short."""
    place = path if len(path.parts) > 2 else path.absolute()
    if (place / MANIFEST).is_file() or place.parent.name == "checkpoints":
        return place.parent.parent
    return place.parent if place.name == "checkpoints" else path


def _not_begun(run: Path) -> str:
    """Why a run has no checkpoint, and what to do."""
    if (by := owner(run / ".lock")) is not None:
        return f"{run} has no checkpoint yet: {by} is training it; wait for its first one"
    return f"{run} has no checkpoint: the run was stopped before its first one; continue it {advice(run)}"


def load_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(model_state, training_state) of a checkpoint, on the CPU; raises UserError if it is missing or damaged."""
    path = Path(path)
    if not path.exists() and path.with_suffix(".old").exists():
        path = path.with_suffix(".old")
    if damage := find_damage(path):
        raise UserError(f"checkpoint {path} cannot be used: {damage}")
    content: list[Any] = []
    for name, read in ((MODEL, safetensors.torch.load), (TRAINING, _deserialise)):
        try:
            content.append(read((path / name).read_bytes()))
        except OSError:
            raise
        except Exception as error:  # any kind: the file was written by something else
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"checkpoint {path} cannot be used: {name} was not written by this project ({reason})"
            ) from None
    weights, training = content
    if not isinstance(training, dict):
        raise UserError(f"checkpoint {path} cannot be used: {TRAINING} contains no training state")
    return weights, training


def has_checkpoints(directory: Path) -> bool:
    """Whether ``directory`` contains any checkpoint, intact or damaged."""
    return bool(_candidates(directory))


def find_damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at ``path`` (a file missing, truncated or altered); None if it is intact."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        expected = {name: files[name] for name in (MODEL, TRAINING)}
    except FileNotFoundError:
        return f"no {MANIFEST}" if path.is_dir() else "no such directory"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, digest in expected.items():
        try:
            with open(path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} differs from what was saved"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _serialise(training_state: dict[str, Any]) -> bytes:
    """The bytes of training.pt, verified to be loadable: a save should fail now rather than a resume later."""
    buffer = io.BytesIO()
    torch.save(training_state, buffer)
    try:
        _deserialise(buffer.getvalue())
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error))
        raise TypeError(f"training_state must be plain data, but cannot be loaded: {reason}") from error
    return buffer.getvalue()


def _deserialise(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _write(final: Path, step: int, payload: dict[str, bytes]) -> None:
    """Write all files under a temporary name and move them into place in one step."""
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


def _clean_up(directory: Path) -> None:
    """Remove leftovers of interrupted saves, and restore a step whose replacement was never completed."""
    for path in directory.iterdir():
        if path.suffix == ".tmp":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.suffix == ".old" and path.with_suffix("").exists():
            shutil.rmtree(path)
        elif path.suffix == ".old":
            os.rename(path, path.with_suffix(""))


def _rotate(directory: Path, step: int, keep: int) -> None:
    """Remove checkpoints that save_checkpoint does not keep, and tags without a checkpoint."""
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
    """``{step: path}`` of everything named like a checkpoint."""
    found: dict[int, Path] = {}
    for path in sorted(directory.iterdir() if directory.is_dir() else ()):
        match = re.fullmatch(r"step_(\d{8,})(\.old)?", path.name)
        if match and path.is_dir():
            found.setdefault(int(match[1]), path)  # sorted: step_X comes before step_X.old
    return found


def _tagged(directory: Path, tag: str) -> Path | None:
    """The checkpoint that carries a tag, or None."""
    name = _tagged_name(directory / tag)
    return _candidates(directory).get(int(name.removeprefix("step_"))) if name else None


def _tagged_name(path: Path) -> str | None:
    """The directory name in a tag file, or None if ``path`` is not a tag file."""
    try:
        name = path.read_text().strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return None
    return name if re.fullmatch(r"step_\d{8,}", name) else None
