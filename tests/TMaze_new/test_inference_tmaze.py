"""Evaluating a checkpoint from the command line."""

import json
import shutil

import numpy as np
import pytest
import yaml

from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.evaluation import Acting
from RATE_model.acting.rollout import Episodes
from tests.small_models import CONTINUOUS, save_small_model, small_model
from tests.tmaze_runs import only_run, train
from TMaze_new.TMaze_new_src import inference_tmaze
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("inference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)
        assert train(folder, "--epochs", "2", "--eval_lengths", "9", "13", "--eval_episodes", "10") == 0
    return only_run(folder)


def infer(*flags: object) -> None:
    inference_tmaze.main([*map(str, flags), "--device", "cpu"])


def fails(capsys, *flags: object) -> str:
    with pytest.raises(SystemExit, match="^2$"):
        infer(*flags)
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") <= 2 and "Traceback" not in errors
    return errors


def test_a_run_is_evaluated_at_any_length(run, tmp_path, capsys):
    """The results equal the run's own final evaluation."""
    output = tmp_path / "results" / "out.json"
    output.parent.mkdir()
    infer("--checkpoint", run, "--lengths", 9, 13, 40, "--episodes", 10, "--output", output)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert [row[0] for row in rows if len(row) == 3 and row[0].isdigit()] == ["9", "13", "40"]
    assert "step_00000008" in printed and "10 episodes" in printed and "knocked out" not in printed
    document = json.loads(output.read_text())
    assert document["checkpoint"] == str(run) and document["episodes"] == 10
    assert document["results"].keys() == {"9", "13", "40"}
    final = json.loads((run / "eval" / "final.json").read_text())
    for length in ("9", "13"):
        assert document["results"][length]["success_rate"] == final[f"Success_rate_T_{length}"]
    assert document["results"]["40"].keys() == {"success_rate", "mean_delay"}


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/best", "checkpoints/step_00000004"])
def test_checkpoint_paths_in_every_form(run, place, capsys):
    infer("--checkpoint", run / place, "--lengths", 9, "--episodes", 2)
    expected = "step_00000004" if place.endswith("4") else "step_0000000"
    assert expected in capsys.readouterr().out


def test_checkpoint_is_found_from_its_own_folder(run, monkeypatch, capsys):
    monkeypatch.chdir(run / "checkpoints")
    infer("--checkpoint", "step_00000008", "--lengths", 9, "--episodes", 2)
    assert "step_00000008" in capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch):
    """Recorded arguments of evaluations: cases, options, how the agent acts, episodes."""
    found = []

    def play(environment, evaluation, acting, twins=False):
        found.append((list(evaluation.cases), evaluation.options, acting, evaluation.episodes))
        return {length: Episodes(np.ones(1), np.ones(1), np.ones(1)) for length in evaluation.cases}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    return found


def test_flags_reach_the_evaluation(run, asked, capsys):
    infer("--checkpoint", run)
    infer(
        *("--checkpoint", run, "--lengths", 5, 1000000, "--episodes", 20, "--knock_out", "--slide", 3, "--seed", 4),
        *("--hint_steps", 2, "--target_return", 0.5, 2, "--precision", "bf16", "--use_argmax", "false"),
    )
    lengths, options, acting, episodes = asked[0]
    assert lengths == [9, 30, 90, 150, 300, 600, 900, 1200, 2400, 4800, 9600]
    assert (episodes, options.hint_steps, acting) == (10, 1, Acting(target_return=1.0)), "as many as in the run"
    for (lengths, options, acting, episodes), target in zip(asked[1:], (0.5, 2.0), strict=True):
        assert (lengths, episodes, options.hint_steps) == ([5, 1000000], 20, 2)
        assert acting == Acting(
            target_return=target, transform_memory=knock_out_memory, slide=3, precision="bf16", greedy=False, seed=4
        )
    assert "memory knocked out" in capsys.readouterr().out


def test_wrong_checkpoints_are_named(run, tmp_path, capsys):
    assert "--checkpoint is missing" in fails(capsys)
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} does not exist" in fails(capsys, "--checkpoint", nowhere)
    assert f"{tmp_path} has no intact checkpoint" in fails(capsys, "--checkpoint", tmp_path)
    assert "config.yaml" in fails(capsys, "--checkpoint", run / "config.yaml")


def test_damaged_checkpoint_is_skipped_or_reported(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    newest = copy / "checkpoints" / "step_00000008"
    (newest / "model.safetensors").write_bytes(b"")
    assert "damaged" in fails(capsys, "--checkpoint", newest)
    infer("--checkpoint", copy, "--lengths", 9, "--episodes", 2)
    output = capsys.readouterr()
    assert "step_00000008 is damaged" in output.err and "step_00000004" in output.out


def test_a_checkpoint_of_another_environment_is_named(tmp_path, capsys):
    save_small_model(small_model(spec=CONTINUOUS), tmp_path)
    message = fails(capsys, "--checkpoint", tmp_path, "--lengths", 9)
    assert "another environment" in message and str(tmp_path) in message


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--lengths 2", "--lengths 2: must be at least 3"),
        ("--lengths 9 -30", "--lengths -30: must be at least 3"),
        ("--lengths 9 99999999999999999999", "--lengths 99999999999999999999: must be at most 2147483648"),
        ("--hint_steps 99999999999999999999", "--hint_steps 99999999999999999999: must be at most 2147483648"),
        ("--lengths", "--lengths needs a value"),
        ("--episodes 1", "--episodes 1: must be at least 2"),
        ("--episodes 100000", "--episodes 100000: must be at least 2 and at most 9992"),
        ("--slide 0", "--slide 0: must be at least 1"),
        ("--precision 16", "--precision 16"),
        ("--length 9", "--lengths"),
        ("--device tpu", "tpu"),
    ],
)
def test_mistakes_are_named(run, flags, named, capsys):
    words = flags.split()
    if "--device" in words:
        with pytest.raises(SystemExit, match="^2$"):
            inference_tmaze.main(["--checkpoint", str(run), *words])
        assert named in capsys.readouterr().err
    else:
        assert named in fails(capsys, "--checkpoint", run, *words)


def test_unwritable_output_is_reported(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "out.json"
    assert str(place) in fails(capsys, "--checkpoint", run, "--lengths", 9, "--episodes", 2, "--output", place)


def test_flags_default_to_those_of_the_run(run, tmp_path, asked):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    text = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(text | {"target_return": 0.5, "hint_steps": 2, "slide": 3, "precision": "bf16"}))
    infer("--checkpoint", tmp_path / "run")
    ((_, options, acting, _),) = asked
    assert acting == Acting(target_return=0.5, slide=3, precision="bf16") and options.hint_steps == 2
