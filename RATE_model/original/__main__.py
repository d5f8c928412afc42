"""Convert a checkpoint of the published RATE code to one of this project.

    python -m RATE_model.original CHECKPOINT --output CONVERTED

CONVERTED is a run directory: pass it to an inference script as --checkpoint. The environment is recognised from names
and shapes. What the weights do not show is read from config.json beside the checkpoint (branch `main`) or from the name
of its folder (branch `rate-old`), or else is as published. All of it is printed, and flags override it.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from torch import Tensor

from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.options import ArgumentParser, exit_on_user_error, to_yaml
from RATE_model.errors import UserError, error_reason
from RATE_model.memories.rate.config import ACTIVATIONS, ARCHS, MODES, RATEConfig
from RATE_model.original.normalisation import read_normalisation
from RATE_model.original.settings import FLAGS, Settings, beside, published, published_config
from RATE_model.original.variants import VARIANTS, branch_of, check_variant, infer_spec, recognise
from RATE_model.original.weights import convert_weights, load_published
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.atomic import atomic_write_text
from RATE_model.system.locks import exclusive, temporary
from RATE_model.training.checkpoints import save_checkpoint

_FLAGS = ("model_mode", "context_length", "n_head_ca", "mrv_act", "mem_len", "arch")


def parser() -> ArgumentParser:
    """The command's flags."""
    parser = ArgumentParser(
        prog="python3 -m RATE_model.original",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the published code (*.pth, *.ckpt)")
    parser.add_argument("--output", type=Path, required=True, help="a new directory, for the converted run")
    parser.add_argument("--variant", choices=list(VARIANTS), help="the environment, if the weights fit several")
    parser.add_argument("--model_mode", choices=MODES, help="the published --model_mode; distinguishes DT from TrXL")
    parser.add_argument("--context_length", type=int, help="steps per segment (for DT: of its whole window, N K)")
    parser.add_argument("--n_head_ca", type=int, help="heads of the MRV; 0: none")
    parser.add_argument("--mrv_act", choices=ACTIVATIONS, help="activation before the MRV")
    parser.add_argument("--mem_len", type=int, help="cached hidden states, in tokens")
    parser.add_argument("--arch_mode", dest="arch", choices=ARCHS, help="decoder block")
    parser.add_argument("--sliding", action="store_true", help="the same as --model_mode DT, or DTXL with a cache")
    parser.add_argument(
        "--normalisation",
        type=Path,
        help="of observations: a JSON file with mean and std, or the training data (*.hdf5, *.pkl)",
    )
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """Settings from the flags and from the files beside the checkpoint."""
    given = {name: getattr(args, name) for name in (*_FLAGS, "variant")}
    if args.sliding and given["model_mode"] is None:
        given["model_mode"] = "DTXL" if args.mem_len else "DT"
    return beside(args.checkpoint, Settings().then(given, FLAGS))


def choose_variant(weights: Mapping[str, Tensor], settings: Settings) -> tuple[str, str]:
    """The variant, and how it was determined.

    Raises:
        UserError: none fits, or not the one named by a flag or config.json.
    """
    name = settings.values.get("variant")
    if name is None:
        fitting = recognise(weights)
        also = f"; {', '.join(fitting[1:])} would also fit: see --variant" if fitting[1:] else ""
        return fitting[0], f"by its names and shapes{also}"
    if name not in VARIANTS:
        raise UserError(f"{settings.sources['variant']}: unknown environment {name!r}")
    check_variant(weights, name)
    return name, settings.sources["variant"]


def write_run(directory: Path, model: Agent, settings: Mapping[str, Any]) -> Path:
    """Save a model as the only checkpoint of a run directory; returns the checkpoint's path.

    Args:
        directory: the run directory; missing or empty.
        model: the model to save.
        settings: the run's flags for inference, written to config.yaml.
    """
    state = {**model.config.saved(), "spec": asdict(model.spec)}
    path = save_checkpoint(directory / "checkpoints", 0, model_state=model.state_dict(), training_state=state)
    atomic_write_text(directory / "config.yaml", to_yaml(dict(settings)))
    return path


def _write_alone(directory: Path, model: Agent, settings: Mapping[str, Any]) -> Path:
    """`write_run` for the process that holds the lock; the directory appears once it is complete."""
    try:
        with exclusive(directory):
            _check_new(directory)
            with temporary(directory, folder=True) as place:
                path = write_run(place, model, settings)
                os.replace(place, directory)
    except OSError as error:
        raise UserError(f"--output {directory} cannot be written: {error_reason(error)}") from error
    return directory / path.relative_to(place)


def _check_new(directory: Path) -> None:
    """Raise a `UserError` unless a directory is missing or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"--output {directory} exists: give a new directory")


def recorded(config: RATEConfig, settings: Settings, variant: str) -> dict[str, Any]:
    """The run's settings for inference scripts, by flag name."""
    known = {
        "published_variant": variant,
        "model_mode": settings.values.get("model_mode"),
        "game": settings.values.get("game"),
        "task": settings.values.get("task") or settings.values.get("env_name"),
        "unplayable": None if VARIANTS[variant].playable else VARIANTS[variant].title,
        "arch_mode": config.arch,
        "nmt": config.num_mem_tokens,
        "skip_dec_ffn": config.skip_dec_ffn,
    } | {
        name: getattr(config, name)
        for name in ("mem_len", "n_head_ca", "mrv_act", "n_layer", "n_head", "d_model", "d_head", "d_inner")
    }
    return {name: value for name, value in known.items() if value is not None}


def describe(name: str, how: str, model: Agent, settings: Settings) -> str:
    """A description of the recognised model, for printing."""
    variant, spec = VARIANTS[name], model.spec
    shape = "x".join(map(str, spec.observation_shape))
    found = f"{variant.title} ({name}, {how}): observations {shape}, {spec.num_actions} actions"
    used = {key: source for key, source in settings.sources.items() if key in _FLAGS}
    lines = [found, f"settings: {Settings(settings.values, used)}"]
    if not variant.playable:
        lines.append(f"no environment of this project plays {variant.title}; the model is converted anyway")
    return "\n".join(lines)


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Convert one checkpoint and print what it is and where it went."""
    args = parser().parse_args(argv)
    _check_new(args.output)
    weights = load_published(args.checkpoint)
    settings = settings_of(args)
    try:
        name, how = choose_variant(weights, settings)
        mode = settings.values.get("model_mode")
        settings = settings.then(published(weights, name, branch_of(weights), mode), "as published")
        spec = acting_spec(weights, name)
        if args.normalisation is not None:
            spec = normalised(spec, args.normalisation)
        sizes = published_config(weights, settings)
        model = Agent(AgentConfig("RATE", sizes), spec)
        left_out = convert_weights(weights, model)
    except UserError as error:
        raise UserError(f"{args.checkpoint}: {error}") from None
    path = _write_alone(args.output, model, recorded(sizes, settings, name))
    print(describe(name, how, model, settings), file=sys.stderr)
    print(f"wrote {path}; dropped {len(left_out)} tensors that the published model never uses", file=sys.stderr)


def acting_spec(weights: Mapping[str, Tensor], variant: str) -> EnvironmentSpec:
    """`infer_spec`, for returns in units of reward."""
    return replace(infer_spec(weights, variant), return_scale=VARIANTS[variant].return_scale)


def normalised(spec: EnvironmentSpec, path: Path) -> EnvironmentSpec:
    """Add the statistics in a file, which normalise the model's observations, to a spec."""
    if spec.is_image:
        raise UserError("--normalisation: observations are images, which are not normalised; leave it out")
    mean, std = read_normalisation(path, spec.observation_shape[0])
    return replace(spec, observation_mean=mean, observation_std=std)


if __name__ == "__main__":
    main()
