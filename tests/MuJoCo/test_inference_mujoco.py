"""Evaluating a checkpoint from the command line, with pictures and videos."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml

pytest.importorskip("mujoco")

from MuJoCo import environment, inference_mujoco, pictures
from MuJoCo.environment import ENVIRONMENT, Play
from MuJoCo.files import generated_name
from MuJoCo.tasks import HALFCHEETAH, HOPPER, task_of
from RATE_model import plots
from RATE_model.acting import video
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.evaluation import Acting
from RATE_model.acting.rollout import Episodes
from RATE_model.errors import UserError
from RATE_model.loading import load_model
from RATE_model.spec import EnvironmentSpec
from RATE_model.system import offscreen
from RATE_model.training.checkpoints import load_checkpoint, resolve_checkpoint, save_checkpoint
from tests import commands
from tests.mujoco_runs import only_run, random_play, train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of hopper-medium; its data is gone."""
    folder = tmp_path_factory.mktemp("inference")
    data = random_play(folder / "data" / generated_name(task_of(6)), HOPPER)
    assert train(folder, "--env_id", "6", "--epochs", "1", "--reset_target", "true") == 0
    data.unlink()
    return only_run(folder)


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory) -> Path:
    """A run of halfcheetah-medium, whose observations and actions have walker2d's sizes."""
    folder = tmp_path_factory.mktemp("cheetah")
    random_play(folder / "data" / generated_name(task_of(0)), HALFCHEETAH)
    assert train(folder, *"--env_id 0 --epochs 1 --online_inference false --last_inference false".split()) == 0
    return only_run(folder)


def infer(*flags: object) -> None:
    inference_mujoco.main([*map(str, flags), "--device", "cpu"])


def test_inference_reproduces_final_evaluation_without_data(run, tmp_path, capsys):
    output = tmp_path / "out.json"
    infer("--checkpoint", run, "--episodes", 3, "--reset_target", "--output", output)
    printed = capsys.readouterr().out
    document = json.loads(output.read_text())
    final = json.loads((run / "eval" / "final.json").read_text())
    assert final["reset_target"] is True and document["reset_target"] is True and document["episodes"] == 3
    names = [name for name in final if name.startswith(("episode", "return", "length"))]
    assert document["results"] == {
        prompt: {name: final[prefix + name] for name in names} for prompt, prefix in (("1", ""), ("5", "5_"))
    }
    header, *lines = [line.split() for line in printed.splitlines() if line.split()[0] in ("prompt", "1", "5")]
    assert [line[0] for line in lines] == ["1", "5"]
    assert float(lines[0][header.index("return_MEAN")]) == pytest.approx(final["return_MEAN"], abs=0.006)
    assert float(lines[1][header.index("episode_MEAN")]) == pytest.approx(final["5_episode_MEAN"], abs=0.006)
    assert "hopper-medium, Hopper-v4, target reset at every segment, target return 3600" in printed


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, Play, Acting]]:
    """Recorded arguments of evaluations: episodes, the robot, how the agent acts."""
    found = []

    def play(environment, evaluation, acting, twins=False):
        found.append((evaluation.episodes, evaluation.options, acting))
        return {"1": Episodes(np.ones(2), np.ones(2), np.ones(2))}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    return found


def test_flags_reach_the_evaluation(run, asked):
    infer("--checkpoint", run)
    infer(
        *("--checkpoint", run, "--target_return", 100, 200.5, "--env_version", "v5", "--episodes", 7, "--slide", 3),
        *("--long_prompt", "false", "--reset_target", "false", "--knock_out", "--precision", "bf16", "--env_id", 8),
    )
    acting = Acting(target_return=3600.0, greedy=False, reset_target=True)
    assert asked[0] == (3, Play(env_id=6, reset_target=True), acting)  # the run had three episodes
    changed = Play(env_id=8, env_version="v5", long_prompt=False, slide=3)
    acting = Acting(target_return=100.0, greedy=False, slide=3, precision="bf16", transform_memory=knock_out_memory)
    assert asked[1:] == [(7, changed, acting), (7, changed, replace(acting, target_return=200.5))]


def test_pictures_compare_memory_with_none(run, tmp_path, monkeypatch, capsys):
    drawn = []

    def plot(played, path, *, title, references):
        drawn.append((played, title))
        return plot_returns(played, path, title=title, references=references)

    plot_returns = plots.plot_returns
    monkeypatch.setattr(plots, "plot_returns", plot)
    infer("--checkpoint", run, "--episodes", 2, "--target_return", 3600, 1000, "--pictures", tmp_path / "new")
    assert (tmp_path / "new" / "returns.png").read_bytes()[:4] == b"\x89PNG"
    ((lines, title),) = drawn
    assert [*lines] == [f"memory {kind}, prompt {k}" for kind in ("intact", "knocked out") for k in (1, 5)]
    assert all([*line] == [3600.0, 1000.0] for line in lines.values()) and "hopper-medium" in title
    intact, without = (lines[f"memory {kind}, prompt 1"][3600.0].returns for kind in ("intact", "knocked out"))
    assert intact.shape == (2,) and not np.array_equal(intact, without)


def test_videos_show_whole_episodes(run, tmp_path, monkeypatch):
    shown = []

    def write(frames, path, *, fps):
        frames = list(frames)
        shown.append((len(frames), frames[0].shape, path.name, fps))
        return path

    class Screen(gymnasium.Wrapper):
        """Draws nothing, quickly."""

        def render(self) -> np.ndarray:
            return np.zeros((32, 32, 3), np.uint8)

    def make_environment(*arguments, **rendering):
        made = make(*arguments)
        if not rendering:
            return made
        assert rendering["render_mode"] == "rgb_array" and rendering["camera_name"] == "track"
        return Screen(made)

    make = environment.make_environment
    monkeypatch.setattr(environment, "make_environment", make_environment)
    monkeypatch.setattr(video, "write_video", write)
    monkeypatch.setattr(pictures, "choose_renderer", lambda: None)
    infer("--checkpoint", run, "--episodes", 2, "--long_prompt", "false", "--video", 2, "--pictures", tmp_path,
          "--output", tmp_path / "out.json")  # fmt: skip
    steps = json.loads((tmp_path / "out.json").read_text())["results"]["1"]["length_MEAN"]
    assert [name for *_, name, _ in shown] == [f"return_3600_seed_{2**31 + number}.mp4" for number in range(2)]
    (fps,), frames = {rate for *_, rate in shown}, sum(count for count, *_ in shown)
    assert fps == 25 and 2 * (steps + 125) / 5 <= frames <= 2 * ((steps + 125) / 5 + 2)  # and the end for a second


def test_missing_display_error_names_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")  # as if unset; restored afterwards, also if the code sets it
    works = {"egl_works": False, "osmesa_works": False}
    for name in works:
        monkeypatch.setattr(offscreen, name, lambda name=name: works[name])
    with pytest.raises(UserError, match=r"apt-get install libegl1 .*libosmesa6"):
        pictures.choose_renderer()
    works["osmesa_works"] = True
    pictures.choose_renderer()
    assert pictures.os.environ["MUJOCO_GL"] == "osmesa"
    works["osmesa_works"] = False
    pictures.choose_renderer()  # it was printed

    class Broken:
        def render(self) -> None:
            raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    with pytest.raises(UserError, match="MUJOCO_GL=osmesa.*apt-get install"):
        environment.ENVIRONMENT.frame(Broken(), np.zeros(0), [])


# --- mistakes ---


def test_checkpoint_of_another_robot_is_refused(run, cheetah, tmp_path, capsys):
    said = commands.error_of(capsys, tmp_path, inference_mujoco.main, ["--checkpoint", str(run), "--env_id", "0"])
    assert "--env_id 0 is halfcheetah-medium" in said and "was trained on hopper-medium" in said
    said = commands.error_of(capsys, tmp_path, inference_mujoco.main, ["--checkpoint", str(cheetah), "--env_id", "3"])
    assert "--env_id 3 is walker2d-medium" in said and "was trained on halfcheetah-medium" in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--env_id 12", "--env_id 12: must be one of"),
        ("--episodes 0", "--episodes 0: must be at least 1"),
        ("--video -1", "--video -1: must be at least 0"),
        ("--env_version v3", "v4, v5"),
        ("--target_return much", "--target_return much"),
    ],
)
def test_a_mistake_is_named(flags, expected, run, tmp_path, capsys):
    said = commands.error_of(capsys, tmp_path, inference_mujoco.main, ["--checkpoint", str(run), *flags.split()])
    assert expected in said


def test_a_run_without_its_settings_is_read_from_its_checkpoint(run, tmp_path, asked):
    infer("--checkpoint", run)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "config.yaml").unlink()
    infer("--checkpoint", copy)
    assert asked[0] == asked[1]


def test_converted_checkpoint_names_its_task(run, tmp_path, asked, capsys):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(yaml.safe_dump({"published_variant": "mujoco", "task": "Hopper-medium_replay-v2"}))
    infer("--checkpoint", tmp_path / "run")
    assert asked[0][1] == Play(env_id=7)
    config.write_text(yaml.safe_dump({"published_variant": "mujoco", "task": None}))
    with pytest.raises(SystemExit, match="2"):
        infer("--checkpoint", tmp_path / "run")
    assert "config.yaml does not name an env_id" in capsys.readouterr().err
    infer("--checkpoint", tmp_path / "run", "--env_id", 11)
    assert asked[1][1] == Play(env_id=11)


def without_statistics(run: Path, copy: Path) -> EnvironmentSpec:
    """Copy a run without statistics in its checkpoint, like earlier versions; returns the original spec."""
    path = resolve_checkpoint(run)
    weights, state = load_checkpoint(path)
    spec = load_model(path).spec
    for name in ("observation_mean", "observation_std"):
        del state["spec"][name]
    save_checkpoint(copy / "checkpoints", 1, model_state=weights, training_state=state)
    (copy / "config.yaml").write_text((run / "config.yaml").read_text())
    return spec


def test_statistics_beside_an_earlier_checkpoint(run, tmp_path, capsys):
    spec, file = without_statistics(run, tmp_path), tmp_path / "normalisation.json"
    with pytest.raises(SystemExit, match="2"):
        infer("--checkpoint", tmp_path)
    assert f"{file}: there is no such file" in capsys.readouterr().err
    checkpoint = resolve_checkpoint(str(tmp_path))
    content = {"mean": list(spec.observation_mean), "std": list(spec.observation_std)}
    file.write_text(json.dumps(content))
    assert load_model(str(checkpoint)).spec == spec
    zeros = json.dumps({"mean": [0] * 11, "std": [0] * 11})
    for text in ("", "[1]", '{"mean": [0], "std": "x"}', '{"mean": [0], "std": [1]}', zeros, zeros.replace("0", "NaN")):
        file.write_text(text)
        with pytest.raises(UserError, match="normalisation.json: (damaged|expected 11 means)"):
            load_model(checkpoint)


def test_flags_default_to_those_of_the_run(run, tmp_path, asked):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    changes = {"target_return": 900, "env_version": "v5", "long_prompt": False, "slide": 2, "precision": "bf16"}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | changes))
    infer("--checkpoint", tmp_path / "run")
    ((_, options, acting),) = asked
    assert options == Play(env_id=6, env_version="v5", long_prompt=False, slide=2, reset_target=True)
    assert (acting.target_return, acting.slide, acting.precision, acting.reset_target) == (900, 2, "bf16", True)
