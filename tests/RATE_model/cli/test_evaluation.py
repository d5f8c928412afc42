"""Flags of inference scripts: checks, inputs, outputs, and matching checkpoints."""

import json
import re
from dataclasses import replace

import pytest
import torch

from RATE_model.cli.evaluation import EvaluationOptions, flags_of
from RATE_model.errors import UserError
from RATE_model.loading import load_for
from RATE_model.spec import EnvironmentSpec
from tests.small_models import CONTINUOUS, VECTOR, one_segment, save_small_model, small_model


def test_invalid_options_are_refused_before_loading(tmp_path):
    (tmp_path / "file").write_text("")
    mistakes = {
        "--checkpoint is missing": dict(checkpoint=None),
        "--seed -1: must be at least 0": dict(seed=-1),
        f"--output {tmp_path}: give a file": dict(output=tmp_path),
        f"--output {tmp_path / 'no' / 'out'}: give a file in an existing folder": dict(output=tmp_path / "no" / "out"),
        f"--output {tmp_path / 'file' / 'out'}: give a file": dict(output=tmp_path / "file" / "out"),
        f"--pictures {tmp_path / 'file'}: ": dict(pictures=tmp_path / "file"),
        f"--pictures {tmp_path / 'file' / 'below'}: {tmp_path / 'file'} is a file": dict(
            pictures=tmp_path / "file" / "below"
        ),
    }
    for message, changes in mistakes.items():
        with pytest.raises(UserError, match=re.escape(message)):
            EvaluationOptions(**{"checkpoint": tmp_path} | changes).validate()
    EvaluationOptions(checkpoint=tmp_path, output=tmp_path / "out.json", pictures=tmp_path / "a" / "b").validate()
    assert not (tmp_path / "a").exists()


def test_checkpoint_is_loaded_in_eval_mode_if_it_matches(tmp_path):
    model = small_model(spec=VECTOR)
    saved = save_small_model(model, tmp_path)
    loaded = load_for(saved, VECTOR)
    assert not loaded.training and loaded.config == model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match=re.escape(f"{saved} was trained in another environment")):
        load_for(saved, CONTINUOUS)


def test_convolutions_may_have_any_channels(tmp_path):
    image = EnvironmentSpec(observation_shape=(1, 36, 36), num_actions=3)
    made = replace(image, conv_channels=(2, 4, 4))
    saved = save_small_model(small_model(spec=made), tmp_path)
    assert load_for(saved, image).spec == made
    with pytest.raises(UserError, match="was trained in another environment: its [^{]*here[^{]*$"):
        load_for(saved, replace(image, num_actions=4))


def test_results_are_written_to_output(tmp_path):
    EvaluationOptions(checkpoint=tmp_path).write(results={})
    assert [*tmp_path.iterdir()] == []
    output = tmp_path / "out.json"
    options = EvaluationOptions(checkpoint=tmp_path, output=output, knock_out=True)
    options.write(episodes=3, results={9: {"success_rate": 0.5}})
    written = {"checkpoint": str(tmp_path), "knock_out": True, "episodes": 3, "results": {"9": {"success_rate": 0.5}}}
    assert json.loads(output.read_text()) == written and [*tmp_path.iterdir()] == [output]
    (tmp_path / "gone").write_text("")  # what became of the folder while the model acted
    with pytest.raises(UserError, match=r"--output .*out.json cannot be written: "):
        EvaluationOptions(checkpoint=tmp_path, output=tmp_path / "gone" / "out.json").write(results={})


def test_the_published_output_for_padding_is_dropped(tmp_path):
    spec = replace(VECTOR, num_actions=3, action_embeddings=4)
    model = small_model(spec=replace(spec, num_actions=4))
    loaded = load_for(save_small_model(model, tmp_path), spec)
    assert loaded.spec == spec and not loaded.training
    steps = torch.randn(2, 3, 4), torch.tensor([[0, 3, 1], [2, 0, 0]]), torch.rand(2, 3)
    logits, _ = one_segment(loaded, steps, loaded.initial(2).memory)
    full, _ = one_segment(model.eval(), steps, model.initial(2).memory)
    torch.testing.assert_close(logits, full[..., :3])
    assert full.shape[-1] == 4


def test_recorded_flags_get_their_current_names(tmp_path):
    save_small_model(small_model(spec=VECTOR), tmp_path)
    (tmp_path / "config.yaml").write_text("desired_return: 56.5\nsections: 3\n")
    assert flags_of(tmp_path) == {"target_return": 56.5, "segments": 3}
    assert flags_of(tmp_path, {"slide": 1, "segments": 9}) == {"slide": 1, "target_return": 56.5, "segments": 3}


@pytest.mark.parametrize("wrong", [dict(observation_mean=(0.0,) * 4), dict(observation_std=(1.0,) * 3), dict(std=0.0)])
def test_statistics_of_a_spec_are_checked(wrong):
    std = (wrong.pop("std", 1.0),) * 4
    whole = dict(observation_mean=(0.0,) * 4, observation_std=std)
    with pytest.raises(ValueError, match="observation_mean and _std"):
        replace(VECTOR, **(wrong or whole))
    assert not VECTOR.is_normalised
