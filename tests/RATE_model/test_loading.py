"""Loading models from checkpoints."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from RATE_model.errors import UserError
from RATE_model.loading import load_model
from RATE_model.training.checkpoints import save_checkpoint
from tests.small_models import small_model


def described():
    """A model and its checkpoint metadata."""
    model = small_model()
    return model, {**model.config.saved(), "spec": asdict(model.spec)}


def test_the_loaded_model_is_the_saved_one(tmp_path):
    model, state = described()
    loaded = load_model(save_checkpoint(tmp_path, 1, model_state=model.state_dict(), training_state=state))
    assert (loaded.config, loaded.spec, loaded.training) == (model.config, model.spec, False)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_without_a_memory_name_is_rate(tmp_path):
    """Older checkpoints have weights without the memory's prefix."""
    model, state = described()
    del state["memory"], state["config"]["conditioned"]
    weights = {name.removeprefix("memory."): weight for name, weight in model.state_dict().items()}
    loaded = load_model(save_checkpoint(tmp_path, 1, model_state=weights, training_state=state))
    assert loaded.config == model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


WRONG = {
    "no spec": (lambda state: state.pop("spec"), "it has no 'spec'"),
    "no configuration": (lambda state: state.pop("config"), "it has no 'config'"),
    "a spec that is none": (lambda state: state.update(spec=3), "int"),
    "an unknown memory": (lambda state: state.update(memory="NTM"), "unknown memory 'NTM'; known are RATE, LSTM"),
    "an unknown field": (lambda state: state["config"].update(depth=3), "depth"),
    "a field of another type": (lambda state: state["config"].update(n_layer="two"), "str"),
    "invalid sizes": (lambda state: state["config"].update(n_layer=0), "--n_layer 0"),
    "actions that are none": (lambda state: state["spec"].update(num_actions=0), "num_actions 0"),
    "other sizes": (lambda state: state["config"].update(d_inner=3), "size mismatch"),
    "other layers": (lambda state: state["config"].update(n_layer=9), "Missing key"),
}


@pytest.mark.parametrize(("spoil", "named"), WRONG.values(), ids=WRONG)
def test_a_checkpoint_without_a_model_is_an_error(tmp_path, spoil, named):
    model, state = described()
    spoil(state)
    path = save_checkpoint(tmp_path, 1, model_state=model.state_dict(), training_state=state)
    with pytest.raises(UserError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path} is not a checkpoint of this project: ") and named in message
    assert len(message.splitlines()) == 1


REPOSITORY = Path(__file__).resolve().parents[2]


def test_inference_does_not_import_the_training_loop():
    scripts = [path.relative_to(REPOSITORY) for path in sorted(REPOSITORY.glob("*/**/inference_*.py"))]
    modules = [".".join(path.with_suffix("").parts) for path in scripts if path.parts[0] not in ("tests", ".venv")]
    assert len(modules) >= 6
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    imported = {name for name in run.stdout.split() if name.startswith("RATE_model.training.")}
    assert not imported & {"RATE_model.training.loop", "RATE_model.training.trainer"}, imported
