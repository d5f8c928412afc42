"""Compare this model with recorded outputs of the published one.

    python tools/check_parity.py FILE...

A recording is an `.npz` with the published weights, one batch of trajectories and what the published model computed
segment by segment: `meta`, `observations`, `actions`, `rtg`, `weights/NAME`, `logits_i`, `memory_i`. Prints the largest
absolute error of every output and exits 1 if one is above the tolerance.
"""

import json
import sys
import zipfile
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
import torch

from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.options import ArgumentParser, exit_on_user_error
from RATE_model.errors import UserError
from RATE_model.original.settings import infer_config
from RATE_model.original.variants import infer_spec
from RATE_model.original.weights import convert_weights

TOLERANCE = 1e-5


def load_recording(path: Path) -> tuple[Agent, dict[str, np.ndarray]]:
    """Our model with the published weights, and the recording's arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays["meta"]))
        # For a DT, which has one segment of N*K steps, the meta data may contain K.
        steps = arrays["logits_0"].shape[1]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"not a recording ({error}); see the format in this script") from None
    weights = {
        name.removeprefix("weights/"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("weights/")
    }
    config = infer_config(
        weights,
        n_head_ca=meta["n_head_ca"],
        context_length=steps,
        mem_len=meta["mem_len"],
        mrv_act=meta["mrv_act"] or "no_act",
        arch=meta["arch_mode"],
    )
    model = Agent(AgentConfig("RATE", config), infer_spec(weights, meta["env"])).eval()
    convert_weights(weights, model)
    return model, arrays


@torch.no_grad()
def compare(path: Path) -> dict[str, float]:
    """Largest absolute error of every recorded output."""
    model, arrays = load_recording(path)
    observations, actions, rtg = (torch.from_numpy(arrays[name]) for name in ("observations", "actions", "rtg"))
    if not model.spec.continuous:
        actions = actions.squeeze(-1)
    steps, errors = model.memory.segment, {}
    state = model.initial(len(rtg))
    for index in range(rtg.shape[1] // steps):
        segment = slice(index * steps, (index + 1) * steps)
        inputs = (observations[:, segment], actions[:, segment], rtg[:, segment].squeeze(-1))
        logits, state = model(*inputs, torch.ones(inputs[2].shape, dtype=torch.bool), state)
        tokens = state.memory.slots
        errors[f"logits_{index}"] = _difference(logits, arrays[f"logits_{index}"])
        if f"memory_{index}" in arrays and tokens is not None:
            errors[f"memory_{index}"] = _difference(tokens, arrays[f"memory_{index}"])
    outputs = {name for name, array in arrays.items() if name.startswith(("logits_", "memory_")) and array.size}
    if unchecked := sorted(outputs - set(errors)):
        raise UserError(f"has no trajectory or no model part for {', '.join(unchecked)}")
    return errors


def _difference(ours: torch.Tensor, recorded: np.ndarray) -> float:
    if tuple(ours.shape) != recorded.shape:
        raise UserError(f"shape {tuple(ours.shape)}, but the recording has {recorded.shape}")
    return float(np.abs(ours.numpy() - recorded).max(initial=0.0))


@exit_on_user_error()
def main() -> int:
    """Print a line per output; 1 if any error is above the tolerance."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recordings (.npz)")
    worst = 0.0
    for path in parser.parse_args().files:
        try:
            errors = compare(path)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (EOFError, KeyError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: incomplete recording ({error!r}); see the format in this script") from None
        for name, error in errors.items():
            # NaN must count as a failure: comparisons with it are false.
            worst = max(worst, error if error == error else float("inf"))
            print(f"{path.name:32} {name:12} {error:.2e}{'' if error <= TOLERANCE else '  ABOVE ' + str(TOLERANCE)}")
    print(f"largest error {worst:.2e} (tolerance {TOLERANCE:.0e})")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
