"""MuJoCo data: tasks, finding files, episodes, windows, normalisation, and invalid files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from MuJoCo import files
from MuJoCo.dataset import (
    DataOptions,
    MuJoCoFile,
    load_data,
    open_data,
    spec_of,
)
from MuJoCo.tasks import HALFCHEETAH, HOPPER, RETURN_SCALE, ROBOTS, TASKS, WALKER2D, task_of
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.selection import tiling_windows, windows_at_every_step
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.encoders import TokenEncoder
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from tests.mujoco_files import LENGTHS, episodes, write_d4rl
from tests.small_models import small_model

ROOT = Path(__file__).resolve().parents[2]
HOPPER_MEDIUM = TASKS[6]


@pytest.fixture
def file(tmp_path):
    return MuJoCoFile(write_d4rl(tmp_path / "hopper_medium-v2.hdf5", HOPPER), HOPPER)


def test_the_table_of_tasks():
    names = [task.name for task in TASKS]
    robots = ["halfcheetah"] * 3 + ["walker2d"] * 3 + ["hopper"] * 3
    kinds = ["medium", "medium-replay", "expert"] * 3 + ["medium-expert"] * 3
    assert names == [f"{r}-{k}" for r, k in zip([*robots, "halfcheetah", "walker2d", "hopper"], kinds, strict=True)]
    assert [task.target_return for task in TASKS] == [6000] * 3 + [5000] * 3 + [3600] * 3 + [12000, 5000, 3600]
    assert [(r.observation_size, r.action_size) for r in (HALFCHEETAH, HOPPER, WALKER2D)] == [(17, 6), (11, 3), (17, 6)]
    assert task_of(11) is TASKS[11]
    for number in (-1, 12):
        with pytest.raises(
            UserError, match=rf"--env_id {number}: must be one of 0 halfcheetah-medium, .* 11 hopper-med"
        ):
            task_of(number)


def test_normalised_scores_are_those_of_d4rl():
    assert [robot.normalised_score(robot.random_return) for robot in ROBOTS.values()] == [0, 0, 0]
    assert [robot.normalised_score(robot.expert_return) for robot in ROBOTS.values()] == [100, 100, 100]
    np.testing.assert_allclose(HOPPER.normalised_score(np.array([1422.0])), 44.32, atol=0.01)
    assert RETURN_SCALE == 1000


def test_importing_needs_no_simulator():
    code = "import MuJoCo.dataset, MuJoCo.generate_dataset, download_d4rl_datasets, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "MuJoCo.dataset" in done.stdout.split()
    assert not {"mujoco", "stable_baselines3", "wandb"} & set(done.stdout.split())


def test_data_is_found_by_all_its_names(tmp_path):
    for name in reversed(files.candidates(HOPPER_MEDIUM)):
        path = tmp_path / name
        path.mkdir(parents=True) if name.startswith("mujoco/") else path.touch()
        assert files.find_data(HOPPER_MEDIUM, tmp_path) == path
    assert files.find_data(HOPPER_MEDIUM, tmp_path / "hopper-medium-v2.pkl").suffix == ".pkl"


def test_missing_data_error_names_the_commands(tmp_path):
    with pytest.raises(UserError) as error:
        files.find_data(HOPPER_MEDIUM, tmp_path)
    for part in ("hopper_medium-v2.hdf5", "hopper_medium-own.hdf5", "hopper-medium-v2.pkl", "mujoco/hopper/medium-v0"):
        assert part in str(error.value)
    assert "download_d4rl_datasets.py --datasets hopper-medium" in str(error.value)
    assert "generate_dataset.py --env hopper --dataset medium" in str(error.value)
    with pytest.raises(UserError, match="--data_path .*nowhere: does not exist"):
        files.find_data(HOPPER_MEDIUM, tmp_path / "nowhere")


def test_the_folder_of_wandb_config_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wandb_config.yaml").write_text(f"mujoco:\n  data_dir_prefix: {tmp_path / 'elsewhere'}\n")
    path = write_d4rl(tmp_path / "elsewhere" / "hopper_medium-v2.hdf5", HOPPER)
    assert files.find_data(HOPPER_MEDIUM) == path
    assert files.data_directory(tmp_path) == tmp_path
    Path("wandb_config.yaml").write_text("")
    assert files.data_directory() == files.DATA_DIRECTORY


def test_episodes_and_returns(file):
    expected = [episode["rewards"].sum() for episode in episodes(HOPPER)]
    assert tuple(file.lengths) == LENGTHS and file.whole.all()
    np.testing.assert_allclose(file.returns, expected, rtol=1e-5)


def test_an_unfinished_tail_is_left_out(tmp_path, file):
    with_tail = MuJoCoFile(write_d4rl(tmp_path / "tail.hdf5", HOPPER, tail=6), HOPPER)
    assert tuple(with_tail.lengths) == (*LENGTHS, 6)
    assert with_tail.whole.tolist() == [True] * len(LENGTHS) + [False]
    np.testing.assert_array_equal(with_tail.returns, file.returns)
    np.testing.assert_array_equal(with_tail.statistics, file.statistics)
    for make in (windows_at_every_step, tiling_windows):
        np.testing.assert_array_equal(make(0, with_tail, 5), make(0, file, 5))
    with pytest.raises(UserError, match="no complete episode"):
        MuJoCoFile(write_d4rl(tmp_path / "a.hdf5", HOPPER, [3], terminals=np.zeros(3), timeouts=np.zeros(3)), HOPPER)


@pytest.mark.parametrize(("length", "tail"), [(2000, 0), (2000, 400), (999, 0), (2500, 0)])
def test_without_timeouts_episodes_end_after_1000_steps(tmp_path, length, tail):
    """Two terminals with steps between them, and steps without an end after them."""
    path = write_d4rl(tmp_path / "a.hdf5", HOPPER, [length, 40], tail=tail, limits=False)
    expected = [1000] * (length // 1000) + ([length % 1000] if length % 1000 else []) + [40] + ([tail] if tail else [])
    file = MuJoCoFile(path, HOPPER)
    assert file.lengths.tolist() == expected
    assert file.whole.tolist() == [True] * (len(expected) - 1) + [not tail]
    whole = MuJoCoFile(write_d4rl(tmp_path / "b.hdf5", HOPPER, [1000], limits=False, terminals=np.zeros(1000)), HOPPER)
    assert whole.whole.tolist() == [True] and whole.lengths.tolist() == [1000]


def levelled(lengths, dropped=0):
    """Steps whose first feature and reward are the number of their episode, without the last ``dropped`` of each."""
    made = episodes(HOPPER, lengths)
    for number, episode in enumerate(made):
        episode["observations"][:, 0] = episode["rewards"][:] = number
        episode["next_observations"] = np.concatenate([episode["observations"][1:], np.full((1, 11), 9, np.float32)])
    return {name: np.concatenate([e[name][: len(e["rewards"]) - dropped] for e in made]) for name in made[0]}


def assert_unmixed(file, lengths):
    assert file.lengths.tolist() == lengths and file.whole.all()
    numbers = np.arange(len(lengths))
    np.testing.assert_array_equal(file.rewards, np.repeat(numbers, lengths))
    np.testing.assert_allclose(file.returns, numbers * lengths)


def test_qlearning_dataset_is_split_at_broken_successors(tmp_path, capsys):
    arrays = levelled([1000, 1000, 1000], dropped=1)
    arrays["terminals"][:] = False
    path = write_d4rl(tmp_path / "a.hdf5", HOPPER, [2997], limits=False, **arrays)
    assert_unmixed(MuJoCoFile(path, HOPPER), [999, 999, 999])
    assert "a.hdf5' marks no end at 2 steps whose successor does not match (first: step 998)" in capsys.readouterr().out


def test_all_false_timeouts_are_ignored(tmp_path, capsys):
    arrays = levelled([1000, 300, 1000, 1000, 450])
    arrays["terminals"] = np.isin(np.arange(3750), [1299, 3749])
    arrays |= {"timeouts": np.zeros(3750), "next_observations": None}
    path = write_d4rl(tmp_path / "a.hdf5", HOPPER, [3750], **arrays)
    assert_unmixed(MuJoCoFile(path, HOPPER), [1000, 300, 1000, 1000, 450])
    assert "does not mark truncations; 3 episodes end after 1000 steps" in capsys.readouterr().out


def test_an_impossible_length_is_refused_with_the_place(tmp_path):
    timeouts = np.isin(np.arange(1390), [39, 1389])
    path = write_d4rl(tmp_path / "a.hdf5", HOPPER, [1390], terminals=np.zeros(1390), timeouts=timeouts)
    with pytest.raises(UserError, match="a.hdf5' has 1350 steps in episode 1, 40 to 1389; an episode has at most 1000"):
        MuJoCoFile(path, HOPPER)


def test_observations_are_normalised_by_data_statistics(file):
    raw = np.concatenate([episode["observations"] for episode in episodes(HOPPER)])
    mean, std = file.statistics
    normalised = (raw - mean) / std
    np.testing.assert_allclose(normalised, (raw - raw.mean(0)) / (raw.std(0) + 1e-6), atol=1e-5)
    np.testing.assert_array_equal(file.load()[0], raw)
    assert file.load()[0].dtype == normalised.dtype == np.float32
    encoder = TokenEncoder(spec_of(HOPPER, file.statistics), 8)
    encoder.observation = torch.nn.Identity()
    shown = encoder.encode_observations(torch.from_numpy(raw)[None])[0]
    np.testing.assert_array_equal(shown, normalised)  # bit for bit


def test_constant_observation_stays_finite(tmp_path):
    constant = np.ones((sum(LENGTHS), 11), dtype=np.float32)
    file = MuJoCoFile(write_d4rl(tmp_path / "a.hdf5", HOPPER, observations=constant), HOPPER)
    mean, std = file.statistics
    assert ((file.load()[0] - mean) / std == 0).all()


@pytest.mark.parametrize("size", [1, 4, 12, 40])
def test_windows_equal_an_obvious_loop(file, size):
    every, tiles = [], []
    for start, length in zip(file.starts, file.lengths, strict=True):
        for step in range(length):
            first = max(0, step - size + 1)
            every.append([2, start + first, step - first + 1])
        for first in range(0, length, size):
            tiles.append([2, start + first, min(size, length - first)])
    assert windows_at_every_step(2, file, size).tolist() == every
    assert tiling_windows(2, file, size).tolist() == tiles


@pytest.mark.parametrize("pad", ["right", "left"])
def test_batches_equal_an_obvious_loop(file, pad):
    """Padding, returns-to-go to the end of the episode, and normalised observations of every window."""
    size, windows = 8, windows_at_every_step(0, file, 8)
    mean, std = file.statistics
    batch = WindowDataset([file], windows, size=size, pad=pad, blank=mean).__getitems__(range(len(windows)))
    seen = (np.asarray(batch.observations) - mean) / std
    row = 0
    for episode in episodes(HOPPER):
        observations = (np.float32(episode["observations"]) - mean) / std
        for step in range(len(observations)):
            real = slice(max(0, step - size + 1), step + 1)
            count = real.stop - real.start
            place = slice(0, count) if pad == "right" else slice(size - count, size)
            rtg = [episode["rewards"][now:].sum() for now in range(real.start, real.stop)]
            assert batch.valid[row].nonzero().squeeze(1).tolist() == list(range(size))[place]
            np.testing.assert_array_equal(seen[row, place], observations[real])
            np.testing.assert_array_equal(batch.actions[row, place], episode["actions"][real])
            np.testing.assert_allclose(batch.rtg[row, place], rtg, atol=1e-4)
            row += 1
    assert row == len(windows)
    assert (batch.actions[~batch.valid] == 0).all() and (batch.rtg[~batch.valid] == 0).all()
    if pad == "left":
        assert (seen[~batch.valid] == 0).all()


def test_training_and_validation_share_no_episode(tmp_path):
    path = write_d4rl(tmp_path / "hopper_medium-v2.hdf5", HOPPER, [20, 35, 50, 10] * 10, tail=5)
    data = load_data(HOPPER_MEDIUM, DataOptions(data_path=tmp_path), size=15, fraction=0.75)
    assert data.file.path == path and data.training.pad == "right"
    ends = np.cumsum(data.file.lengths)

    def episode_of(dataset):
        return np.searchsorted(ends, dataset.windows[:, 1], side="right")

    training, validation = set(episode_of(data.training)), set(episode_of(data.validation))
    assert not training & validation and training | validation == set(range(40))
    assert len(training) == 31  # of 41: the rest was for training
    assert data.validation.windows[:, 2].sum() == data.file.lengths[list(validation)].sum()
    assert len(data.training) == data.file.lengths[list(training)].sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, r"has no rewards \(available: actions, observations, terminals, timeouts\)"),
        ({"actions": None, "terminals": None}, "has no actions, terminals"),
        ({"rewards": np.full(sum(LENGTHS), np.nan)}, r"NaN or infinite value in 'rewards' \(first at step 0 of 64\)"),
        ({"observations": np.zeros((64, 17), "f4")}, r"shape \(17,\); expected \(11,\).*read as hopper-medium"),
        ({"actions": np.zeros((64, 6), "f4")}, "expected 3 floats"),
        ({"actions": np.full((64, 3), 1.5, "f4")}, r"action \[1.5, 1.5, 1.5\] at step 0; must be from -1 to 1"),
        ({"rewards": np.zeros(63)}, "different lengths"),
    ],
)
def test_bad_files_are_refused(tmp_path, changes, message):
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5", HOPPER, **changes)
    with pytest.raises(UserError, match=message) as error:
        open_data(HOPPER_MEDIUM, tmp_path)
    assert "hopper_medium-v2.hdf5" in str(error.value)
    assert "download_d4rl_datasets.py" in str(error.value)


def test_a_file_cut_short_is_refused(tmp_path):
    path = write_d4rl(tmp_path / "hopper_medium-v2.hdf5", HOPPER)
    content = path.read_bytes()
    for kept in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(UserError, match="hopper_medium-v2.hdf5"):
            open_data(HOPPER_MEDIUM, tmp_path)


def test_single_episode_cannot_be_split(tmp_path):
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5", HOPPER, [30])
    with pytest.raises(UserError, match="too little data"):
        load_data(HOPPER_MEDIUM, DataOptions(data_path=tmp_path), size=10)


def test_our_own_files_are_read(tmp_path):
    """The writer's layout, as generate_dataset.py uses it."""
    made = episodes(HALFCHEETAH)
    with TrajectoryWriter(
        tmp_path / "halfcheetah_medium-own.hdf5",
        observation_shape=(17,),
        observation_dtype="float32",
        action_shape=(6,),
        action_dtype="float32",
        attributes={},
    ) as writer:
        for episode in made:
            writer.add_episode(episode["observations"], episode["actions"], episode["rewards"], terminal=False)
    file = open_data(TASKS[0], tmp_path)
    assert tuple(file.lengths) == LENGTHS and file.whole.all()


@pytest.mark.parametrize("mode", ["RATE", "DT"])
def test_model_ignores_padding(file, mode):
    """Right: the actions of an episode's first steps are those of the unpadded window. Left: they are not."""
    model = small_model(mode, spec=EnvironmentSpec(observation_shape=(11,), num_actions=3, continuous=True))
    size = model.memory.config.context_length * (1 if model.memory.config.sliding else 3)
    windows = windows_at_every_step(0, file, size)
    rows = np.flatnonzero(windows[:, 2] == size // 2 + 1)
    predictions = {}
    for pad in ("right", "left"):
        batch = WindowDataset([file], windows, size=size, pad=pad).__getitems__(rows)
        with torch.no_grad():
            outputs, _ = model(batch.observations, batch.actions, batch.rtg, batch.valid)
            real = (batch.observations, batch.actions, batch.rtg, batch.valid)
            shape = (len(rows), size // 2 + 1)
            whole = [tensor[batch.valid].view(*shape, *tensor.shape[2:]) for tensor in real]
            alone, _ = model(*whole)
        predictions[pad] = (outputs[batch.valid].view(*shape, 3) - alone).abs().max().item()
    assert predictions["right"] < 1e-5 and predictions["left"] > 1e-3
