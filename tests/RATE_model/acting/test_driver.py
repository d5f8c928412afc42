"""DAgger data: a trained agent acts while an expert labels every step."""

import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MemoryMaze.MemoryMaze_src.privileged import PrivilegedRecorder
from MinigridMemory.MinigridMemory_src import generate
from MinigridMemory.MinigridMemory_src.dataset import DATA, DataOptions
from MinigridMemory.MinigridMemory_src.env import SPEC
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT
from RATE_model.acting import driver as module
from RATE_model.acting.driver import DriverChoice
from RATE_model.acting.rollout import torch_threads
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from RATE_model.spec import PrivilegedKind
from tests.commands import error_of
from tests.small_models import save_small_model, small_model

FLAGS = {"size": 7, "trajectories": 12, "cap": 12}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run directory with a random model."""
    pytest.importorskip("minigrid")
    monkeypatch.setattr(generate, "BLOCK", 8)
    agent = small_model(spec=SPEC, d_model=8, d_head=4)
    save_small_model(agent, tmp_path / "run")
    evaluation = Evaluation(ENVIRONMENT, agent, ENVIRONMENT.play_options(), (1.0,))
    monkeypatch.setattr(module, "_evaluation", lambda checkpoint, acting, name: evaluation)
    return tmp_path / "run"


def make(options: DataOptions, path: Path) -> Path:
    DATA.make(options, path, workers=1)
    return path


def test_an_agent_drives_and_the_expert_labels(run, tmp_path):
    options = DataOptions(**FLAGS, driver=run)
    options.validate()
    with DATA.open(make(options, tmp_path / "driven.h5")) as driven:
        expert = driven.expert_actions()
        assert 0.05 < (expert != driven.actions).mean() < 0.95  # a random model and an expert
        assert driven.attributes["driver"] == "run" and driven.attributes["driver_step"] == 1
        assert driven.attributes["generator"].startswith("trained agent, labelled by scripted expert")
        assert "driver_success" in driven.attributes and "expert_success" not in driven.attributes
        seeds = driven.info("seed")
        agreed = (expert == driven.actions).mean()
    assert f"the expert would have done the same at {agreed:.2f} of the steps" in DATA.describe(tmp_path / "driven.h5")
    with DATA.open(make(DataOptions(**FLAGS), tmp_path / "played.h5")) as played:
        assert np.array_equal(played.expert_actions(), played.actions)
        assert not set(played.info("seed").ravel()) & set(seeds.ravel())
        assert "driver" not in played.attributes
        assert {"agent_pos", "agent_dir", "cue", "arm"} <= set(played.info_names())
    again = make(options, tmp_path / "again.h5")
    with DATA.open(tmp_path / "driven.h5") as first, DATA.open(again) as second:
        assert np.array_equal(first.actions, second.actions)
    training, validation = DATA.whole_windows([tmp_path / "played.h5", again], size=96, learn="expert")
    assert {0, 1} == set(training.windows[:, 0]) and len(training) + len(validation) > 12


def test_driven_files_have_distinct_names(run, tmp_path):
    names = [DATA.file_name(DataOptions(**FLAGS, driver=driver)) for driver in (None, run)]
    assert names[0] != names[1] and "driver-" in names[1]
    save_small_model(small_model(spec=SPEC, seed=1), tmp_path / "other")
    assert DATA.file_name(DataOptions(**FLAGS, driver=tmp_path / "other")) not in names
    (run / "config.yaml").write_text("use_argmax: true\n")  # as resuming may change it
    argmax = DataOptions(**FLAGS, driver=run)
    assert DATA.file_name(argmax) not in names
    assert argmax.driver_choice.attributes["driver_acting"] == '{"use_argmax": true}'


@pytest.mark.parametrize("name", ["noise", "wrong_arm", "guess"])
def test_a_driver_and_an_expert_that_errs_exclude_each_other(run, name):
    with pytest.raises(UserError, match=f"--{name} 0.5: with --driver .*give --{name} 0$"):
        DataOptions(driver=run, **{name: 0.5}).validate()


@pytest.mark.parametrize("module", ["VizDoom.VizDoom_src.dataset", "MemoryMaze.MemoryMaze_src.dataset"])
def test_a_driver_is_not_perturbed(module, run, tmp_path):
    options = importlib.import_module(module).DataOptions
    with pytest.raises(UserError, match="--perturbation 0.2: with --driver .*give --perturbation 0$"):
        options(driver=run, perturbation=0.2).validate()
    with pytest.raises(UserError, match="nowhere does not exist"):
        options(driver=tmp_path / "nowhere", perturbation=0.2).validate()


def test_an_invalid_driver_is_an_error(run, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        DATA.path(DataOptions(driver=tmp_path / "nowhere"))
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    shutil.copytree(checkpoint, tmp_path / "kept")
    with pytest.raises(UserError, match="--driver .*kept: not in a run; give a run directory"):
        DATA.path(DataOptions(driver=tmp_path / "kept"))
    with pytest.raises(UserError, match="--driver: no data is made with --data_path"):
        DataOptions(driver=run, data_path=tmp_path / "some.h5").validate()


def test_a_driver_of_another_environment_is_refused(run, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("RATE_model.environments.find.environment_of", lambda run: ENVIRONMENT)
    with pytest.raises(UserError, match="trained in Minigrid-Memory, but data is made in Elsewhere"):
        DriverChoice.of(run).driver("Elsewhere", 0)


def test_a_driver_acts_as_when_it_was_chosen(run, monkeypatch):
    """Even if its run has changed since."""
    monkeypatch.undo()
    monkeypatch.setattr("RATE_model.environments.find.environment_of", lambda run: ENVIRONMENT)
    (run / "config.yaml").write_text("use_argmax: true\ntarget_return: 0.5\n")
    choice = DriverChoice.of(run)
    (run / "config.yaml").write_text("use_argmax: false\ntarget_return: 1.0\n")
    evaluation = module._evaluation(choice.checkpoint, choice.acting, "Minigrid-Memory")
    assert evaluation.options.use_argmax and evaluation.targets == (0.5,)


def test_a_driver_uses_one_core(run, monkeypatch):
    class Player:
        def act(self, *_: object) -> np.ndarray:
            return np.array([torch.get_num_threads()])

    monkeypatch.setattr(type(ENVIRONMENT), "player", lambda *_: Player())
    with torch_threads(2):
        assert DriverChoice.of(run).driver("Minigrid-Memory", 0).act(np.zeros(1), 0.0) == 1
        assert torch.get_num_threads() == 2


def test_an_oracle_drives_where_it_is_told_what_it_sees(run, monkeypatch):
    spec = replace(SPEC, oracle=(PrivilegedKind("place", 2, 0), PrivilegedKind("cue", 1, 2)))
    agent = small_model(spec=spec, d_model=8, d_head=4).eval()
    monkeypatch.setattr(
        module, "_evaluation", lambda *_: Evaluation(ENVIRONMENT, agent, ENVIRONMENT.play_options(), (1.0,))
    )
    told = []
    monkeypatch.setattr(agent.encoder.oracle, "forward", lambda infos: told.append(infos) or torch.zeros(1, 1, 8))
    observation = np.zeros(SPEC.observation_shape, dtype=np.uint8)
    driver = DriverChoice.of(run).driver("Minigrid-Memory", 0)
    assert 0 <= driver.act(observation, 0.0, {"cue": np.uint8(1), "place": np.ones(2), "seed": np.int64(4)}) < 3
    assert {name: rows.shape for name, rows in told[0].items()} == {"place": (1, 1, 2), "cue": (1, 1, 1)}
    assert (told[0]["place"].dtype, told[0]["cue"].dtype) == (torch.float32, torch.int64)  # as in batches
    with pytest.raises(UserError, match="oracle that sees infos/place, which is not noted"):
        driver.act(observation, 0.0, {"cue": np.uint8(1)})


def test_data_is_added(run, tmp_path):
    played, driven = (
        make(DataOptions(**FLAGS), tmp_path / "a.h5"),
        make(DataOptions(**FLAGS, driver=run), tmp_path / "b.h5"),
    )
    options = replace(DataOptions(**FLAGS), data_path=played, add_data=(driven,))
    assert DATA.files(options) == [played, driven]
    (tmp_path / "link.h5").symlink_to(driven)
    shutil.copyfile(played, tmp_path / "copy.h5")
    refused = {
        "on already": (driven, tmp_path / "link.h5"),
        "copy.h5.* on already": (tmp_path / "copy.h5",),
        "does not exist": (tmp_path / "nothing.h5",),
    }
    for message, added in {**refused, "a.h5.* once": (played,)}.items():
        with pytest.raises(UserError, match=message):
            DATA.files(replace(options, add_data=added))


def test_files_of_one_driver_share_episodes(run, tmp_path):
    """A validation episode of one would be trained on with the other."""
    few, many = (
        make(DataOptions(**FLAGS | {"trajectories": count}, driver=run), tmp_path / f"{count}.h5") for count in (12, 16)
    )
    with pytest.raises(UserError, match=f"--add_data '{many}': 12 of its episodes are in '{few}', too"):
        DATA.files(DataOptions(**FLAGS, data_path=few, add_data=(many,)))


def test_the_players_of_a_mix_only_label_a_driver(run):
    maze = importlib.import_module("MemoryMaze.MemoryMaze_src.dataset")
    driven = maze.DataOptions(driver=run, mix=("explorer:0:0.4", "explorer:0.1:0.4", "planner:0:0.2"))
    assert driven.recipe().mix == ("explorer:0:0.8", "planner:0:0.2")
    with pytest.raises(UserError, match="--mix explorer:0.1:0.4: with --driver the agent acts"):
        driven.validate()
    default = maze.DataOptions(driver=run)
    default.validate()
    assert default.recipe().mix == ("explorer:0:1",) and maze.DataOptions().recipe().mix == maze.DEFAULT_MIX


def test_added_data_is_opened_before_any_is_made(tmp_path):
    (tmp_path / "a.h5").write_text("text")
    with pytest.raises(UserError, match="a.h5' cannot be read"):
        DATA.files(DataOptions(**FLAGS, data_dir=tmp_path, add_data=(tmp_path / "a.h5",)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_a_data_script_adds_no_files(tmp_path, capsys):
    flags = ["--add_data", str(tmp_path / "a.h5"), "--output", str(tmp_path / "b.h5")]
    assert "leave it out" in error_of(capsys, tmp_path, DATA.main, flags)


def test_the_witness_sees_from_the_agents_position():
    """A ball two cells ahead is in view, one behind is not; a ball once seen stays known."""
    layout = np.ones((9, 9), dtype=bool)
    balls = np.array([[6.5, 4.5], [2.5, 4.5]])
    info = {"agent_pos": np.array([4.5, 4.5]), "agent_dir": np.array([1.0, 0.0]), "targets_pos": balls,
            "maze_layout": layout, "target_index": 0}  # fmt: skip
    recorder = PrivilegedRecorder()
    noted = recorder.note(info)
    np.testing.assert_allclose(noted["targets_vec"], [[2, 0], [-2, 0]])
    assert noted["target_visible"] == 1 and np.isnan(noted["seen_vec"][1]).all()
    noted = recorder.note(info | {"agent_dir": np.array([0.0, 1.0])})
    np.testing.assert_allclose(noted["seen_vec"][0], [0, -2], atol=1e-6)
    assert noted["target_visible"] == 0
