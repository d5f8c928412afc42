"""Ten lines of Python: train, load, evaluate, act; the same from the shell; one-line errors."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml
from torch.testing import assert_close

from RATE_model import Dataset, UserError, evaluate, load_agent, train
from RATE_model.acting.controls import knock_out_memory
from RATE_model.cli.options import to_flat_dict
from RATE_model.environments.spaces import Encoded
from RATE_model.own.api import _words
from RATE_model.own.arguments import in_python
from RATE_model.own.environment import OwnEnvironment
from RATE_model.own.making import make_environment
from tests.RATE_model.own.toys import STEPS, Recall, Watched, episodes

RECALL = "tests.RATE_model.own.toys:Recall"
TINY = dict(
    context_length=2, segments=2, epochs=2, batch_size=4, n_layer=1, d_model=16, n_head=2, d_head=8, nmt=2,
    n_head_ca=2, eval_episodes=4, wandb_mode="disabled", device="cpu",
)  # fmt: skip

PLACE = {"environment": Recall, "env_args": {"size": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("own") / "mine"
    return train(Dataset.from_episodes(episodes()), output_dir=str(directory), seed=1, **PLACE, **TINY)


def test_a_run_is_trained_loaded_and_evaluated(run, capsys):
    assert {"eval_return", "validation_loss"} <= run.result.keys()
    assert (run.directory / "plots" / "curves.png").exists()
    newest, best = load_agent(str(run.directory)), load_agent(run.directory, "best")
    step = run.result["optimizer_steps"]
    for agent in (newest, load_agent(run.directory, step), best):
        result = evaluate(agent, RECALL, episodes=6, target_return=1)
        assert result.returns.shape == (6,) and (result.lengths == STEPS).all()
    assert str(result).startswith("return ") and "6 episodes" in str(result)
    again = evaluate(best, Recall(), episodes=6, target_return=1)
    np.testing.assert_array_equal(again.returns, result.returns)
    evaluate(best, Recall, episodes=3, target_return=1, transform_memory=knock_out_memory, greedy=False, seed=2)


def test_agent_acts_in_your_own_loop(run):
    actor, scene = load_agent(run.directory).actor(batch_size=1, target_return=1), Recall()
    observation, _ = scene.reset(seed=0)
    reward, over, steps = np.zeros(1), False, 0
    while not over:
        action = actor.act(observation[None], reward)
        assert action.shape == (1,) and action.dtype == np.int64
        observation, earned, over, _, _ = scene.step(int(action[0]))
        reward[0], steps = earned, steps + 1
    assert steps == STEPS


def test_run_continues_and_is_not_overwritten(run):
    data = Dataset.from_episodes(episodes())
    with pytest.raises(UserError, match="already contains"):
        train(data, **PLACE, output_dir=run.directory, **TINY)
    more = train(data, **PLACE, output_dir=run.directory, **TINY | {"epochs": 3}, resume="auto")
    assert more.result["optimizer_steps"] > run.result["optimizer_steps"]


def test_a_run_starts_with_the_weights_of_another(run, tmp_path, capsys):
    """And with its normalisation, which the new data does not change. To resume, the other run is not needed."""
    old = Path(shutil.copytree(run.directory, tmp_path / "old"))
    data = Dataset.from_episodes([each | {"rewards": 5 * each["rewards"]} for each in episodes()])
    given = TINY | {"learning_rate": 1e-9, "epochs": 1, "init_from": str(old), "weight_decay": 0}
    tuned = train(data, output_dir=tmp_path / "new", **given)
    assert f"starting with the weights of {old}" in capsys.readouterr().out
    before, after = load_agent(old), tuned.agent()
    assert before.spec == after.spec and data.spec().return_scale != after.spec.return_scale
    assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=1e-6)
    fresh = train(data, output_dir=tmp_path / "fresh", seed=2, **{**given, "init_from": None}).agent()
    with pytest.raises(AssertionError):
        assert_close(fresh.state_dict(), before.state_dict(), rtol=0, atol=1e-2)
    shutil.rmtree(old)
    more = train(data, output_dir=tmp_path / "new", **given | {"epochs": 2}, resume="auto")
    assert more.result["optimizer_steps"] > tuned.result["optimizer_steps"] and more.agent().spec == before.spec


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": "GRU", "context_length": 2}, "has the memory RATE, not GRU"),
        (TINY | {"d_model": 32}, r"its weights do not fit this model; it was trained with d_model 16 \(here 32\)"),
        (TINY | {"init_from": "nowhere"}, "init_from: nowhere does not exist; give a run directory"),
        (TINY | {"data": "other"}, r"was trained in another environment: its observation_shape"),
    ],
)
def test_unsuitable_weights_are_refused(run, tmp_path, given, message):
    made = [each | {"observations": np.tile(each["observations"], 2)} for each in episodes()]
    data = Dataset.from_episodes(made if "data" in given else episodes())
    flags = {"init_from": str(run.directory), **given}
    flags.pop("data", None)
    with pytest.raises(UserError, match=message):
        train(data, output_dir=tmp_path / "new", **flags)
    assert not list(tmp_path.iterdir())


def test_no_environment_is_needed(tmp_path):
    done = train(episodes_file(tmp_path), memory="GRU", output_dir=tmp_path / "run", hidden_size=8, **small("GRU"))
    assert "eval_return" not in done.result and done.agent().config.memory == "GRU"
    with pytest.raises(UserError, match="target_return is missing"):
        evaluate(done.agent(), RECALL)
    cloned = train(episodes_file(tmp_path), output_dir=tmp_path / "bc", condition="none", **TINY | {"epochs": 1})
    assert evaluate(cloned.agent(), RECALL, episodes=2).returns.shape == (2,)


def small(mode: str) -> dict:
    """Small sizes for a mode."""
    own = ("n_layer", "n_head", "d_head", "nmt", "n_head_ca")
    return {name: value for name, value in TINY.items() if name not in own}


def episodes_file(folder: Path) -> Path:
    return Dataset.from_episodes(episodes()).to_hdf5(folder / "data.h5")


def run_module(monkeypatch, name: str, *arguments: object) -> None:
    """`python -m NAME ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        runpy.run_module(name, run_name="__main__")
    except SystemExit as end:
        assert not end.code


def test_the_shell_does_the_same(tmp_path, monkeypatch, capsys):
    flags = [word for name, value in TINY.items() for word in (f"--{name}", value)]
    data = episodes_file(tmp_path)
    run_module(
        monkeypatch, "RATE_model.train", "--data", data, "--env", RECALL, *flags, "--output_dir", tmp_path / "runs"
    )
    said = capsys.readouterr().out
    (run,) = (tmp_path / "runs" / "ckpt").iterdir()
    assert "eval_return" in said and str(run) in said
    output = tmp_path / "out.json"
    evaluation = ["--checkpoint", run, "--episodes", 3, "--output", output, "--video", 1, "--pictures", tmp_path / "p"]
    run_module(monkeypatch, "RATE_model.evaluate", *evaluation)
    document = json.loads(output.read_text())
    assert document["env"] == RECALL and document["results"]["1"].keys() == {
        "mean_return", "mean_steps", "standard_error",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"returns.png", "return_1_seed_0.mp4"}


def test_pictures_and_numbers_in_one_dict_are_learned_from(tmp_path):
    data = Dataset.collect(Watched, episodes=6)
    spec = data.spec()
    assert spec.images == ((1, 40, 40),) and len(spec.observation_mean) == 2 and spec.observation_mean[1] == 10
    path = data.to_hdf5(tmp_path / "data.h5")
    for again in (Dataset.open(path), Dataset.open(path, environment=Watched)):
        assert again.spec() == spec
        np.testing.assert_array_equal(again.trajectories.read(0, 8)[0], data.trajectories.read(0, 8)[0])
    done = train(path, environment=Watched, output_dir=tmp_path / "run", **TINY | {"epochs": 1})
    agent = load_agent(done.directory)
    assert agent.spec.images == spec.images and agent.spec.numbers == 2
    played = evaluate(done.directory, Watched, episodes=3, target_return=1)
    assert played.lengths.tolist() == [STEPS] * 3
    scene = Encoded(Watched())
    action = agent.actor(1, target_return=1.0).act(scene.reset(seed=0)[0][None], np.zeros(1))
    assert action.shape == (1,)
    with pytest.raises(UserError, match="observations"):
        evaluate(done.directory, Recall, target_return=1)


def test_an_environment_without_pictures_is_refused_before_it_is_played(run, monkeypatch, capsys):
    monkeypatch.setattr(Recall, "render", lambda self: None)
    monkeypatch.setattr("RATE_model.cli.evaluation.report", lambda *given: pytest.fail("it plays first"))
    with pytest.raises(SystemExit):
        OwnEnvironment(Recall).infer(["--checkpoint", str(run.directory), "--target_return", "1", "--video", "1"])
    assert "--video: an environment of your own draws no pictures" in capsys.readouterr().err


MISTAKES = {
    "no data": (["--env", "CartPole-v1"], "--data is missing"),
    "no such data": (["--data", "nowhere"], "is not a Minari dataset"),
    "no such environment": (["--data", "data.h5", "--env", "Nothing-v0"], "environment Nothing-v0 cannot be made"),
    "no such class": (["--data", "data.h5", "--env", "tests.RATE_model.own.toys:Nothing"], "registers 'Nothing'"),
    "no such module": (["--data", "data.h5", "--env", "nowhere:Nothing"], "add the folder to PYTHONPATH"),
    "no such infos": (["--data", "data.h5", "--env", RECALL, "--aux", "infos/x"], "infos/x: 'data.h5' has no"),
    "broken environment": (
        ["--data", "data.h5", "--env", "tests.RATE_model.own.toys:Broken"],
        "cannot be made: RuntimeError: the licence has expired",
    ),
    "other environment": (
        ["--data", "data.h5", "--env", "CartPole-v1"],
        "'observations' have shape (2,), but the observation space has (4,)",
    ),
    "arguments": (["--data", "data.h5", "--env", RECALL, "--env_args", "size"], "--env_args size: give NAME=VALUE"),
    "unknown argument": (["--data", "data.h5", "--env", RECALL, "--env_args", "sise=3"], "unexpected keyword"),
    "arguments of nothing": (["--data", "data.h5", "--env_args", "size=3"], "--env_args: without --env nothing is"),
    "share": (["--data", "data.h5", "--training_share", "1"], "--training_share 1.0: must be above 0"),
    "return": (["--data", "data.h5", "--target_return", "1e300"], "--target_return 1e+300: must be at most 3.4"),
    "flag": (["--data", "data.h5", "--lerning_rate", "1"], "unknown flag --lerning_rate"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_and_create_nothing(mistake, tmp_path, monkeypatch, capsys):
    flags, named = MISTAKES[mistake]
    episodes_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    with pytest.raises(SystemExit, match="^2$"):
        runpy.run_module("RATE_model.train", run_name="__main__")
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and named in errors[0], errors
    assert [path.name for path in tmp_path.iterdir()] == ["data.h5"]


def test_an_agent_of_another_environment_is_refused(run):
    with pytest.raises(UserError, match=r"has observations of shape \(2,\).*CartPole-v1 has .*\(4,\)"):
        evaluate(run.directory, "CartPole-v1", target_return=1)
    with pytest.raises(UserError, match="^unknown argument no_such_flag"):
        train(Dataset.from_episodes(episodes()), output_dir="nowhere", no_such_flag=1)
    assert not Path("nowhere").exists()


def test_equal_rewards_are_noted_and_trained_on(tmp_path, capsys):
    same = [episode | {"rewards": np.ones(STEPS)} for episode in episodes()]
    train(Dataset.from_episodes(same), output_dir=tmp_path / "run", **TINY | {"epochs": 1})
    assert "note: all rewards are 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"sise": 2}, "unexpected keyword"), ({"size": 4}, r"\(4,\)"), ({"size": object()}, "not JSON serializable")],
)
def test_arguments_of_the_environment_are_a_dict(run, arguments, said, tmp_path):
    assert yaml.safe_load((run.directory / "config.yaml").read_text())["env_args"] == ["size=2"]
    with pytest.raises(UserError, match=said):
        train(episodes_file(tmp_path), environment=Recall, env_args=arguments, output_dir=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()


def test_wrappers_and_arguments_reach_the_environment(run):
    wide = evaluate(
        run.directory, lambda **options: gymnasium.wrappers.TimeLimit(Recall(**options), 2), target_return=1
    )
    assert (wide.lengths == 2).all()
    assert (evaluate(run.directory, Recall, target_return=1, max_episode_steps=3).lengths == 3).all()


def test_arguments_of_an_object_without_a_spec_are_refused(tmp_path):
    """It can only be copied. An object with a spec is made again."""
    for given in ({"size": 3}, {"render_mode": "rgb_array"}):
        with pytest.raises(UserError, match="without a spec; give a function that makes it, or module:Class") as error:
            make_environment(Recall(), arguments=given)
        assert "\n" not in str(error.value) and f"{next(iter(given))}=" in str(error.value)
    with pytest.raises(UserError, match="cannot be made with size=2"):
        train(episodes_file(tmp_path), environment=Recall(), env_args={"size": 2}, output_dir=tmp_path / "run", **TINY)
    assert make_environment(Recall(3)).size == 3
    drawn = make_environment(Recall(render_mode="rgb_array"), arguments={"render_mode": "rgb_array"})
    assert drawn.render_mode == "rgb_array"
    made = make_environment(gymnasium.make("CartPole-v1"), arguments={"render_mode": "rgb_array"})
    assert made.render_mode == "rgb_array"


@pytest.mark.parametrize(
    ("name", "value"),
    [("aux", []), ("aux", ["next_latent", "return"]), ("target_return", -1.5), ("init_from", "-x"), ("env_args", [])],
)
def test_arguments_are_read_unchanged(name, value):
    config = OwnEnvironment(Recall, Dataset.from_episodes(episodes())).read_config(_words({name: value}))
    assert to_flat_dict(config)[name] == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"aux": ["return"], "aux_weight": ()}, "0 weights for 1 objectives"),
        ({"aux": ["-x"]}, "^aux='-x': must be next_latent"),
    ],
)
def test_empty_lists_and_dashes_reach_the_checks(given, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train(Dataset.from_episodes(episodes()), output_dir=tmp_path / "run", **TINY, **given)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"target_return": float("nan")}, "target_return nan: must be a finite number"),
        ({"target_return": 1e300}, "target_return 1e[+]300: must be a finite number, at most 3.4e[+]38"),
        ({"target_return": [1, 2]}, "target_return .*: must be a finite number"),
        ({"target_return": 1, "slide": 0}, "slide=0: must be at least 1"),
        ({"target_return": 1, "max_episode_steps": 0}, "max_episode_steps=0: must be at least 1"),
        ({"target_return": 1, "sed": 0}, "sed: evaluate has no such argument"),
    ],
)
def test_invalid_evaluation_arguments_are_refused(run, asked, said):
    with pytest.raises(UserError, match=said):
        evaluate(load_agent(run.directory), Recall, **asked)


def test_wrong_kinds_of_arguments_are_named(run, tmp_path):
    data = Dataset.from_episodes(episodes())
    for call, said in (
        (lambda: train(data, output_dir=tmp_path / "new", seed=None, **TINY), "seed None: must be a whole number"),
        (lambda: train(list(episodes()), output_dir=tmp_path / "new", **TINY), "data is of type list.*from_episodes"),
        (lambda: evaluate(run.directory, Recall, target_return=1, seed=0.5), "seed 0.5: must be a whole number"),
        (lambda: load_agent(None), "path None is not a path; give a run directory"),
        (lambda: load_agent(run.directory, "worst"), "'worst' is not a checkpoint"),
        (lambda: load_agent(run.directory).actor(batch_size=0, target_return=1), "batch_size 0: must be"),
    ):
        with pytest.raises(UserError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("--epochs 0: must be at least 1", "epochs=0: must be at least 1"),
        ("--learning_rate 1e-9: too small", "learning_rate=1e-9: too small"),
        ("--model_mode lstm: must be one of LSTM (did you mean LSTM?)", "memory='lstm': must be one of LSTM (did "),
        ("x: continue with --resume auto, or --overwrite true", 'x: continue with resume="auto", or overwrite=True'),
        ("start another with another --text or --ckpt_folder", "start another with another output_dir"),
        (
            "unknown flag --lernng (did you mean --learning_rate?); see --help",
            "unknown argument lernng (did you mean",
        ),
        ("add --resume auto to: python3 train.py --resume no", 'add resume="auto" to: python3 train.py --resume no'),
    ],
)
def test_errors_of_python_calls_name_arguments(message, said):
    assert in_python(message).startswith(said)


def test_errors_of_train_and_load_agent_name_arguments(run, tmp_path):
    data = Dataset.from_episodes(episodes())
    with pytest.raises(UserError, match=r"^memory='LTSM': .*\(did you mean LSTM"):
        train(data, memory="LTSM", output_dir=tmp_path / "new", **TINY)
    with pytest.raises(UserError, match='resume="auto".*overwrite=True.*another output_dir$'):
        train(data, output_dir=run.directory, **TINY)
    (tmp_path / "environment.json").write_text('{"starts": [{"command": ["mine.py"]}]}')
    with pytest.raises(UserError, match='before its first one; continue it with resume="auto"; it was started by mine'):
        load_agent(tmp_path)


def test_data_of_another_environment_is_refused(tmp_path):
    data = Dataset.from_episodes(episodes())
    for make, output_dir in ((lambda **_: Recall(size=3), tmp_path / "mine"), (None, "")):
        with pytest.raises(UserError, match="comes from another environment|output_dir is empty"):
            train(data, environment=make, output_dir=output_dir, **TINY)
    assert not list(tmp_path.iterdir())


class Unlimited(Recall):
    """An environment without a step limit."""

    def __init__(self) -> None:
        super().__init__()
        del self.max_steps


def test_an_environment_without_a_limit_is_played(run):
    result = evaluate(load_agent(run.directory), Unlimited, episodes=2, target_return=1)
    assert (result.lengths == STEPS).all()
    result = evaluate(load_agent(run.directory), Unlimited, episodes=2, target_return=1, max_episode_steps=2)
    assert (result.lengths == 2).all()
