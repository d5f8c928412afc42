"""Your own data: every source gives the same steps, errors name the problem, and Minari is read and written."""

import io
import json
import re
import zipfile
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces

from RATE_model.data.arrays import info_rows
from RATE_model.data.minari import read_minari
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError
from RATE_model.own.dataset import FIRST_SEED, Dataset
from tests.RATE_model.own.toys import STEPS, Recall, episodes

RECALL = "tests.RATE_model.own.toys:Recall"


def arrays(dataset: Dataset) -> list[np.ndarray]:
    data = dataset.trajectories
    return [*data.load(), data.rewards, data.lengths]


def assert_same(one: Dataset, other: Dataset) -> None:
    for mine, theirs in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert one.actions.count == other.actions.count and one.observations.shape == other.observations.shape


def test_every_source_gives_the_same_steps(tmp_path):
    made = episodes()
    dataset = Dataset.from_episodes(made)
    assert len(dataset) == 12 and dataset.trajectories.num_steps == 12 * STEPS
    assert_same(Dataset.from_hdf5(dataset.to_hdf5(tmp_path / "data.h5")), dataset)
    assert_same(Dataset.from_minari(dataset.to_minari(tmp_path / "minari")), dataset)
    for number, episode in enumerate(made):
        np.savez(tmp_path / f"episode_{number:02d}.npz", **episode)
    assert_same(Dataset.from_npz(tmp_path), dataset)
    flat = {
        name: np.concatenate([episode[name] for episode in made]) for name in ("observations", "actions", "rewards")
    }
    (tmp_path / "flat").mkdir()
    np.savez(tmp_path / "flat" / "all.npz", **flat, dones=np.arange(12 * STEPS) % STEPS == STEPS - 1)
    assert_same(Dataset.from_npz(tmp_path / "flat"), dataset)
    for source in ("data.h5", "minari", "flat"):
        assert_same(Dataset.open(tmp_path / source), dataset)


def test_npz_files_may_hold_the_parts_of_dicts(tmp_path):
    """One episode a file, or several with marked ends."""
    made = episodes()
    parts = [
        episode | {"observations": dict(zip("ab", episode["observations"].T[..., None], strict=True))}
        for episode in made
    ]
    dataset = Dataset.from_episodes(parts)
    named = [{f"observations/{name}": part for name, part in one["observations"].items()} for one in parts]
    columns = [{name: one[name] for name in ("actions", "rewards")} for one in made]
    (tmp_path / "flat").mkdir()
    for number, (observations, rest) in enumerate(zip(named, columns, strict=True)):
        np.savez(tmp_path / f"episode_{number:02d}.npz", **observations, **rest)
    assert_same(Dataset.from_npz(tmp_path), dataset)
    flat = {name: np.concatenate([one[name] for one in named]) for name in named[0]}
    flat |= {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    np.savez(tmp_path / "flat" / "all.npz", **flat, dones=np.arange(12 * STEPS) % STEPS == STEPS - 1)
    assert_same(Dataset.from_npz(tmp_path / "flat"), dataset)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"observations": np.zeros((4, 1))}, "observations several times (observations/a, observations)"),
        ({"observations/a": np.zeros((7, 1))}, "'observations/a' have 7 steps, 'rewards' 4"),
        ({"observations/a": np.zeros(())}, "'observations/a' have no steps"),
        ({"actions": np.zeros(6, dtype=int)}, "'actions' have 6 steps"),
        ({"infos/goal": np.zeros(6)}, "'infos/goal' have 6 steps"),
        ({"rewards": np.zeros(())}, "'rewards' have no steps"),
        ({"rewards": np.zeros(0)}, "'rewards' have no steps"),
    ],
)
def test_npz_files_of_several_episodes_need_equally_many_steps(tmp_path, changed, message):
    """Rows after the last reward would be dropped where episodes are cut."""
    good = {"observations/a": np.zeros((4, 1)), "actions": np.zeros(4, dtype=int), "rewards": np.zeros(4)}
    np.savez(tmp_path / "all.npz", **(good | {"dones": np.array([0, 1, 0, 1])} | changed))
    with pytest.raises(UserError, match=re.escape(message)):
        Dataset.from_npz(tmp_path)


def _npz_bytes(save=np.savez, **arrays: object) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **(_episode_of() | arrays))
    return buffer.getvalue()


def _unclosed_header() -> bytes:
    """An .npy file whose header ends within a bracket."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    with zipfile.ZipFile(whole := io.BytesIO(), "w") as archive:
        archive.writestr("actions.npy", buffer.getvalue().replace(b"(3,)", b"(3, "))
    return whole.getvalue()


def _broken_compression() -> bytes:
    whole = bytearray(_npz_bytes(np.savez_compressed, observations=np.arange(3000.0).reshape(3, 1000)))
    whole[200:240] = bytes(40)
    return bytes(whole)


def _single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [bytes, _single_array, _unclosed_header, _broken_compression])
def test_damaged_npz_files_are_named_in_one_line(tmp_path, damage):
    (tmp_path / "all.npz").write_bytes(damage())
    with pytest.raises(UserError, match="all.npz' is damaged or not an .npz file") as error:
        Dataset.from_npz(tmp_path)
    assert "\n" not in str(error.value)


_LENGTHS = (3, 2, 4)
_STEPS = sum(_LENGTHS)
_LAST = np.isin(np.arange(_STEPS), np.cumsum(_LENGTHS) - 1)
_FIRST = np.append(True, _LAST[:-1])


def _flat(**marks: object) -> dict[str, object]:
    """Episodes of these lengths in flat arrays."""
    observations = np.arange(_STEPS, dtype=np.float32)[:, None]
    return {"observations": observations, "actions": np.arange(_STEPS) % 2, "rewards": np.ones(_STEPS)} | marks


def _hdf5(path: Path, **arrays: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


@pytest.mark.parametrize(
    ("marks", "lengths"),
    [
        ({"is_last": _LAST}, _LENGTHS),
        ({"dones_float": _LAST.astype(float)}, _LENGTHS),
        ({"episode_ends": np.cumsum(_LENGTHS)}, _LENGTHS),
        ({"infos/Dones": _LAST}, _LENGTHS),
        ({"is_first": _FIRST}, (3, 2)),
        ({"episode_id": np.cumsum(_FIRST)}, (3, 2)),
        ({"dones": _LAST & (np.arange(_STEPS) < 5)}, (3, 2)),
        (
            {
                "is_first": _FIRST,
                "dones": _LAST,
                "next_observations": np.arange(1.0, _STEPS + 1)[:, None] - 9 * _LAST[:, None],
            },
            _LENGTHS,
        ),
        (
            {"terminals": _LAST & False, "next_observations": np.arange(1.0, _STEPS + 1)[:, None] - 9 * _LAST[:, None]},
            (3, 2),
        ),
    ],
)
def test_npz_files_end_episodes_as_hdf5_files_do(tmp_path, marks, lengths, capsys):
    """By any mark; an unfinished last episode is left out, with a note."""
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "all.npz", **_flat(**marks))
    read = Dataset.from_npz(tmp_path / "npz").trajectories
    assert tuple(read.lengths) == lengths
    assert ("all.npz' ends within an episode, which is left out" in capsys.readouterr().out) == (lengths != _LENGTHS)
    stored = Dataset.from_hdf5(_hdf5(tmp_path / "all.h5", **_flat(**marks))).trajectories
    assert tuple(stored.lengths[stored.whole]) == lengths
    assert read.terminals.tolist() == stored.terminals[stored.whole].tolist()


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"dones": _LAST, "is_last": np.roll(_LAST, 1)}, "contradicts itself: by 'dones' an episode ends with step 2"),
        ({"episode_ends": [3, 5]}, "has 'episode_ends', which does not divide 9 steps"),
        ({"is_last": np.array(["no"] * _STEPS)}, "has 'is_last' of type <U2; expected numbers"),
        ({"next_obs": np.zeros((9, 2))}, "has 'next_obs' of shape (9, 2); expected (9, 1)"),
    ],
)
def test_contradictory_marks_in_npz_files_are_refused(tmp_path, marks, message):
    np.savez(tmp_path / "all.npz", **_flat(**marks))
    with pytest.raises(UserError, match=re.escape(f"all.npz' {message}")):
        Dataset.from_npz(tmp_path)


def test_unknown_marks_in_npz_files_are_noted_once(tmp_path, capsys):
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", **_flat(my_ends=_LAST, terminals=False, title="terminals"))
    assert tuple(Dataset.from_npz(tmp_path).trajectories.lengths) == (_STEPS,) * 3
    (note,) = capsys.readouterr().out.splitlines()
    assert "0.npz' (and 2 more) has 'my_ends', which may mark ends" in note


def test_an_npz_file_whose_only_episode_goes_on_is_left_out(tmp_path):
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", **_flat(is_last=_LAST & False if number == 1 else np.arange(_STEPS) == 8))
    assert len(Dataset.from_npz(tmp_path)) == 2


@pytest.mark.parametrize(
    ("marks", "terminal"),
    [
        ({"dones": _LAST}, [True, True, True]),
        (
            {"terminations": _LAST & (np.arange(_STEPS) < 3), "truncations": _LAST & (np.arange(_STEPS) > 3)},
            [True, False, False],
        ),
        ({"terminals": _LAST[:, None]}, [True, True, True]),
    ],
)
def test_hdf5_marks_under_any_name_are_copied(tmp_path, marks, terminal):
    path = _hdf5(tmp_path / "a.h5", **_flat(**marks))
    space = (gymnasium.spaces.Box(-9, 9, (1,)), gymnasium.spaces.Discrete(2))
    played = type("Played", (gymnasium.Env,), {"observation_space": space[0], "action_space": space[1]})
    for dataset in (Dataset.from_hdf5(path), Dataset.from_hdf5(path, environment=played)):
        assert dataset.trajectories.terminals.tolist() == terminal
        copy = TrajectoryFile(dataset.to_hdf5(tmp_path / "copy.h5"))
        assert tuple(copy.lengths) == _LENGTHS and copy.terminals.tolist() == terminal


def test_an_unfinished_episode_stays_unfinished(tmp_path):
    """Its return is unknown: it does not count, and Minari, which has no such episodes, does not get it."""
    path = _hdf5(tmp_path / "a.h5", **_flat(dones=_LAST & (np.arange(_STEPS) < 8)) | {"rewards": np.arange(9.0)})
    dataset = Dataset.from_hdf5(path)
    copy = Dataset.from_hdf5(dataset.to_hdf5(tmp_path / "copy.h5"))
    for each in (dataset, copy):
        assert each.trajectories.whole.tolist() == [True, True, False]
        assert len(each) == 2 and each.returns.tolist() == [3, 7] and "2 episodes of 2 to 3 steps" in repr(each)
    minari = Dataset.from_minari(dataset.to_minari(tmp_path / "minari"))
    assert minari.trajectories.lengths.tolist() == [3, 2] and minari.trajectories.terminals.all()
    path = _hdf5(tmp_path / "b.h5", **_flat(dones=_LAST & (np.arange(_STEPS) < 3)))
    with pytest.raises(UserError, match="b.h5.* has 1 finished episode; at least 2"):
        Dataset.from_hdf5(path)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((), "f4"), ((2, 2), "f4"), ((40, 48, 3), "f4"), ((2, 1, 2, 1), "f4"), ((2, 2), "u1"), ((40, 48, 3), "u1")],
)
def test_observations_of_any_shape_are_read_from_hdf5_files(tmp_path, shape, kind):
    seen = (100 * np.random.default_rng(0).random((_STEPS, *shape))).astype(kind)
    flat = _flat(is_last=_LAST) | {"observations": seen}
    stops = np.cumsum(_LENGTHS)
    made = [
        {name: flat[name][stop - length : stop] for name in ("observations", "actions", "rewards")}
        for stop, length in zip(stops, _LENGTHS, strict=True)
    ]
    dataset = Dataset.from_hdf5(_hdf5(tmp_path / "a.h5", **flat))
    assert_same(dataset, Dataset.from_episodes(made))
    assert dataset.spec().observation_shape == dataset.trajectories.load()[0].shape[1:]


def test_empty_observations_are_refused(tmp_path):
    empty = np.zeros((_STEPS, 0), np.float32)
    for read in (
        lambda: Dataset.from_hdf5(_hdf5(tmp_path / "a.h5", **_flat(is_last=_LAST) | {"observations": empty})),
        lambda: Dataset.from_episodes([_episode_of(observations=empty[:3])] * 2),
    ):
        with pytest.raises(UserError, match="its observations are empty; give at least one number"):
            read()


@pytest.mark.parametrize(("lengths", "steps"), [([200] * 10 + [15], 60), ([15] * 10 + [200], 60)])
def test_an_unfinished_episode_is_in_no_window(tmp_path, lengths, steps):
    """Even if it is the only one that fits, or the only one that does not."""
    total = sum(lengths)
    arrays = {"observations": np.zeros((total, 1), np.float32), "actions": np.zeros(total, int)}
    arrays |= {"rewards": np.ones(total), "is_last": np.isin(np.arange(total), np.cumsum(lengths)[:-1] - 1)}
    sides = Dataset.from_hdf5(_hdf5(tmp_path / "a.h5", **arrays)).windows(steps)
    windows = np.concatenate([side.windows for side in sides])
    assert (windows[:, 1] + windows[:, 2]).max() == total - lengths[-1]
    assert set(windows[:, 2]) == {min(lengths[0], steps)}


def test_other_names_and_one_observation_more_are_understood():
    other = [
        {
            "obs": np.concatenate([episode["observations"], np.ones((1, 2))]),
            "action": episode["actions"][:, None],
            "reward": episode["rewards"][:, None],
            "terminated": [False] * (STEPS - 1) + [True],
        }
        for episode in episodes()
    ]
    assert_same(Dataset.from_episodes(other), Dataset.from_episodes(episodes()))


def test_the_spec_follows_from_data_and_environment():
    plain, of_environment = (Dataset.from_episodes(episodes(), environment=made) for made in (None, Recall))
    for dataset in (plain, of_environment):
        spec = dataset.spec()
        assert spec.observation_shape == (2,) and spec.num_actions == 2 and not spec.continuous
        observations = dataset.trajectories.load()[0]
        np.testing.assert_allclose(spec.observation_mean, observations.mean(0), atol=1e-6)
        assert spec.observation_std[1] == 1, "a feature that never changes is left as it is"
        assert spec.return_scale == 1
    continuous = [episode | {"actions": np.linspace(-3, 2, STEPS)[:, None]} for episode in episodes()]
    dataset = Dataset.from_episodes(continuous)
    assert dataset.spec().continuous and np.abs(dataset.trajectories.actions).max() == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda e: e.pop("actions"), ("episode 1", "no 'actions'", "observations")),
        (lambda e: e.update(actions=e["actions"][:2]), ("episode 1", "'actions' have 2 steps", "'rewards' 4")),
        (lambda e: e.update(observations=np.zeros((9, 2))), ("episode 1", "'observations' have 9 steps", "4")),
        (lambda e: e.update(observations=np.zeros((4, 3))), ("episode 1", "(3,)", "(2,)")),
        (lambda e: e.update(actions=np.full(4, 7)), ("episode 1", "action 7 at step 0", "between 0 and 1")),
        (lambda e: e.update(actions=np.full(4, 0.5)), ("episode 1", "not integers")),
        (lambda e: e.update(rewards=np.full(4, np.nan)), ("episode 1", "'rewards' are not finite")),
        (lambda e: e.update(observations=np.full((4, 2), np.inf)), ("episode 1", "'observations'", "not finite")),
        (lambda e: e.update(observations={"a": np.zeros((4, 2))}), ("episode 1", "Box")),
    ],
)
def test_inconsistent_episodes_are_reported(change, named):
    made = episodes()
    change(made[1])
    with pytest.raises(UserError) as error:
        Dataset.from_episodes(made, environment=Recall, name="mine")
    assert [word for word in (*named, "mine") if word not in str(error.value)] == [], error.value


def test_too_few_episodes_are_refused():
    with pytest.raises(UserError, match="has no episodes"):
        Dataset.from_episodes([])
    with pytest.raises(UserError, match="has 1 finished episode; at least 2"):
        Dataset.from_episodes(episodes(1))
    with pytest.raises(UserError, match="episode 0 of the dataset is int; give a dict"):
        Dataset.from_episodes([3, 4])


def test_collected_seeds_are_not_evaluation_seeds():
    seen = []

    def policy(observation):
        seen.append(observation)
        return 1

    dataset = Dataset.collect(RECALL, policy, 5)
    assert len(dataset) == 5 and (dataset.trajectories.actions == 1).all() and len(seen) == 5 * STEPS
    scene = Recall()
    assert seen[0][0] == scene.reset(seed=FIRST_SEED)[0][0]
    assert_same(Dataset.collect(RECALL, None, 5, seed=3), Dataset.collect(RECALL, None, 5, seed=3))


def test_long_episodes_are_cut_without_losing_steps():
    rng = np.random.default_rng(0)
    made = [{"observations": rng.normal(size=(n, 1)), "actions": np.zeros(n, dtype=int), "rewards": np.ones(n)}
            for n in (3, 7, 10, 25, 26, 4, 5, 6, 8, 9)]  # fmt: skip
    dataset = Dataset.from_episodes(made)
    sides = dataset.windows(10)
    windows = np.concatenate([side.windows for side in sides])
    assert windows[:, 2].max() == 10
    covered = np.zeros(dataset.trajectories.num_steps, dtype=bool)
    for _, start, length in windows:
        covered[start : start + length] = True
    assert covered.all()
    batch = sides[0].__getitems__(range(len(sides[0])))
    assert batch.rtg.shape == (len(sides[0]), 10) and batch.valid.sum(1).tolist() == batch.lengths.tolist()


class Pictures(gymnasium.Env):
    observation_space = spaces.Box(0, 255, (40, 48, 3), np.uint8)
    action_space = spaces.MultiDiscrete([2, 3])


def test_minari_keeps_images_and_metadata(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    made = [
        {"observations": rng.integers(256, size=(n, 40, 48, 3), dtype="uint8"), "actions": rng.integers(2, size=(n, 2)),
         "rewards": np.ones(n)}
        for n in (3, 5)
    ]  # fmt: skip
    dataset = Dataset.from_episodes(made, environment=Pictures)
    assert dataset.observations.shape == (3, 40, 48) and dataset.actions.count == 6
    folder = dataset.to_minari(
        "mine/pictures-v0", author=["someone"], algorithm_name="random", environment="CartPole-v1"
    )
    assert folder == tmp_path / "mine/pictures-v0"
    read, metadata = read_minari(folder)
    assert metadata["dataset_id"] == "mine/pictures-v0" and metadata["environment"] == "CartPole-v1"
    assert metadata["author"] == ["someone"] and metadata["total_steps"] == 8 and metadata["jpeg_encoding"] is False
    assert read[0]["observations"].shape == (4, 3, 40, 48), "as many as actions, and the last one again"
    again = Dataset.from_minari("mine/pictures-v0")
    np.testing.assert_array_equal(again.trajectories.load()[0], dataset.trajectories.load()[0])
    assert again.metadata["algorithm_name"] == "random"
    with pytest.raises(UserError, match="already contains a Minari dataset"):
        dataset.to_minari("mine/pictures-v0")


def test_minari_may_hold_dicts_of_images(tmp_path):
    """As others write them: a group for the dict, and one observation more than actions."""
    rng = np.random.default_rng(0)
    made = [
        {"observations": {"camera": rng.integers(256, size=(4, 40, 48, 3), dtype="uint8"), "place": rng.random((4, 2))},
         "actions": rng.integers(2, size=4), "rewards": np.ones(4)}
        for _ in range(3)
    ]  # fmt: skip
    dataset = Dataset.from_episodes(made)
    assert dataset.observations.images == ((3, 40, 48),)
    folder = dataset.to_minari(tmp_path / "minari")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for number, episode in enumerate(made):
            del file[f"episode_{number}/observations"]
            for name, values in episode["observations"].items():
                file[f"episode_{number}/observations/{name}"] = np.concatenate([values, values[-1:]])
    described = json.loads((folder / "data" / "metadata.json").read_text())
    described.pop("observation_space")  # the spaces follow from the data
    (folder / "data" / "metadata.json").write_text(json.dumps(described))
    again = Dataset.from_minari(folder)
    assert again.observations.images == dataset.observations.images
    np.testing.assert_array_equal(again.trajectories.load()[0], dataset.trajectories.load()[0])


def test_a_damaged_minari_dataset_is_named(tmp_path):
    folder = Dataset.from_episodes(episodes()).to_minari(tmp_path / "minari")
    document = json.loads((folder / "data/metadata.json").read_text())
    (folder / "data/metadata.json").write_text(json.dumps(document | {"total_episodes": 13}))
    with pytest.raises(UserError, match="states 13 episodes but contains 12"):
        Dataset.from_minari(folder)
    (folder / "data/metadata.json").write_text(json.dumps(document))
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        del file["episode_3"]["rewards"]
    with pytest.raises(UserError, match="cannot be read"):
        Dataset.from_minari(folder)
    with pytest.raises(UserError, match="is not a Minari dataset"):
        Dataset.from_minari(tmp_path / "nowhere")


def test_invalid_npz_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="has no files"):
        Dataset.from_npz(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="a.npz' is damaged or not an .npz file"):
        Dataset.from_npz(tmp_path)
    np.savez(tmp_path / "a.npz", observations=np.zeros(3))
    with pytest.raises(UserError, match="a.npz' has no actions, rewards"):
        Dataset.from_npz(tmp_path)


def _episode_of(**changes: object) -> dict[str, object]:
    return {"observations": np.zeros((3, 1)), "actions": np.zeros(3, int), "rewards": np.zeros(3)} | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"terminals": [0, 1, 0]}, " has an end at step 1 of 3: expected one episode"),
        ({"terminals": [0, 1]}, " has 'terminals' of shape (2,); expected (3,)"),
        ({"is_last": [0, 1, 0]}, " has an end at step 1 of 3: expected one episode"),
        ({"episode_id": [1, 1, 2]}, " has an end at step 1 of 3: expected one episode"),
        ({"terminals": "x"}, " has 'terminals' of type <U1; expected numbers"),
        ({"actions": ["a", "b", "c"]}, ": 'actions' are of type <U1"),
        ({"actions": 1}, ": 'actions' have no steps"),
        ({"observations": [[1], [1, 2], [1]]}, ": 'observations' are not an array"),
        ({"observations": np.full((3, 1), 1e300)}, ": 'observations' of type float64 are not finite"),
        ({"rewards": np.full(3, 1e300)}, ": 'rewards' are not finite at step 0"),
    ],
)
def test_invalid_episodes_are_refused(changes, said):
    with pytest.raises(UserError, match=re.escape(f"episode 1 of the dataset{said}")):
        Dataset.from_episodes([_episode_of(), _episode_of(**changes)])


@pytest.mark.parametrize("changes", [{}, {"actions": np.array([[0, 1]] * 3)}])
def test_an_action_with_a_far_larger_number_than_the_others_is_refused(changes):
    """Each number up to the largest would have its own output."""
    largest = _episode_of(**changes)
    largest["actions"] = largest["actions"] + 10**9
    said = "go up to 100000000., but .*; number the actions from 0, below"
    with pytest.raises(UserError, match=said):
        Dataset.from_episodes([_episode_of(**changes), largest])


def test_returns_beyond_float32_are_refused(tmp_path):
    """Although each reward is within it."""
    said = "the rewards of episode 1 sum to 9e[+]38 from its step 0 on; at most 3.4e[+]38"
    with pytest.raises(UserError, match=said):
        Dataset.from_episodes([_episode_of(), _episode_of(rewards=np.full(3, 3e38))]).spec()
    flat = _flat(is_last=_LAST) | {"rewards": np.where(np.arange(_STEPS) < 3, 0, 4.5e38 * (np.arange(_STEPS) < 5) / 2)}
    with pytest.raises(UserError, match="a.h5': the rewards of episode 1 sum to 4.5e[+]38"):
        Dataset.from_hdf5(_hdf5(tmp_path / "a.h5", **flat)).spec()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((3, 0)), "'infos/goal' has shape (6, 0): give at least one number per step"),
        (np.array([[0, 0], [0, 1e300], [0, 0]]), "'infos/goal' has 1e+300 at step 1; at most 3.4e+38 (float32)"),
    ],
)
def test_unusable_privileged_arrays_are_refused(values, said):
    dataset = Dataset.from_episodes([_episode_of(infos={"goal": values})] * 2)
    with pytest.raises(UserError, match=re.escape(said)):
        dataset.trajectories.info("goal")


@pytest.mark.parametrize(
    ("marks", "terminal"),
    [
        ({}, True),
        ({"timeouts": [0, 0, 0]}, True),
        ({"truncated": True}, False),
        ({"dones": [0, 0, 1]}, True),
        ({"is_last": [0, 0, 1]}, False),
        ({"is_last": [0, 0, 1], "is_terminal": True}, True),
        ({"discount": [1, 1, 0]}, True),
        ({"episode_id": "a name"}, True),
    ],
)
def test_marks_of_an_episode_tell_how_it_ended(marks, terminal):
    dataset = Dataset.from_episodes([_episode_of(), _episode_of(**marks)])
    assert dataset.trajectories.terminals.tolist() == [True, terminal]


def test_an_episode_may_have_a_single_step():
    one = {"observations": [[1.0]], "actions": [0], "rewards": [1.0]}
    dataset = Dataset.from_episodes([one | {"terminated": True}, one | {"truncated": [True]}, one | {"is_first": [1]}])
    assert dataset.trajectories.terminals.tolist() == [True, False, False]


@pytest.mark.parametrize("shown", [-1, 4, 0.5])
def test_an_observation_outside_a_discrete_space_is_refused(shown):
    observed = (gymnasium.spaces.Discrete(4), None)
    with pytest.raises(UserError, match=re.escape(f"contain {shown}, which is not in Discrete(4)")):
        Dataset.from_episodes([_episode_of(observations=np.full(3, shown))] * 2, spaces=observed)


def test_nan_action_is_refused_in_a_box():
    acted = (gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Box(-2, 2, (1,)))
    with pytest.raises(UserError, match="nan.*between -2 and 2"):
        Dataset.from_episodes([_episode_of(actions=np.full((3, 1), np.nan))] * 2, spaces=acted)


def test_tuples_of_observations_are_vectors():
    class Pair(gymnasium.Env):
        observation_space = gymnasium.spaces.Tuple((gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(3)))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return (np.float32([0.5]), 1), {}

        def step(self, action):
            return (np.float32([0.5]), 1), 0.0, True, False, {}

    observations, _ = Dataset.collect(Pair, episodes=2).trajectories.load()
    assert observations.tolist() == [[0.5, 0, 1, 0]] * 2


def test_actions_of_any_range_survive_a_file(tmp_path):
    """Files have actions of the environment's space, and are read with and without the environment."""
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observations": rng.uniform(-1, 1, (5, 3)).astype(np.float32),
            "actions": rng.uniform(-2, 2, (5, 1)).astype(np.float32),
            "rewards": np.ones(5),
        }
        for _ in range(3)
    ]
    dataset = Dataset.from_episodes(episodes, environment="Pendulum-v1")
    file, folder = dataset.to_hdf5(tmp_path / "data.h5"), dataset.to_minari(tmp_path / "minari")
    for again in (
        Dataset.from_hdf5(file, environment="Pendulum-v1"),
        Dataset.from_minari(folder, environment="Pendulum-v1"),
        Dataset.from_minari(folder),
    ):
        np.testing.assert_allclose(again.trajectories.actions, dataset.trajectories.actions, atol=1e-6)


def test_unmarked_truncations_end_at_the_limit_of_the_environment(tmp_path, capsys):
    """As in D4RL's first Hopper files. Without the environment the limit is unknown, which a note says."""
    steps, path = 600, tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["rewards"] = np.zeros((steps, 3), np.float32), np.ones(steps)
        file["actions"] = np.zeros((steps, 1), np.float32)
        file["terminals"], file["timeouts"] = np.isin(np.arange(steps), (249, 449)), np.zeros(steps, bool)
    known = Dataset.from_hdf5(path, environment="Pendulum-v1")
    assert known.trajectories.lengths.tolist() == [200, 50, 200]
    assert "3 episodes" in repr(known) and "end after 200 steps" in capsys.readouterr().out
    Dataset.from_hdf5(path)
    assert "'timeouts', which are never set" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "a/b", "x y", ".", "..", "a\r", 3])
def test_names_of_infos_are_those_of_files(name):
    episode = {"observations": np.zeros((2, 3)), "actions": np.zeros(2, dtype=np.int64), "rewards": np.zeros(2)}
    with pytest.raises(UserError, match="'infos' has the name .*; names are letters, digits"):
        Dataset.from_episodes([episode | {"infos": {name: np.zeros(2)}}])


def test_whole_numbers_beyond_int64_are_refused():
    with pytest.raises(UserError, match="'infos/x' has 9223372036854775808; whole numbers must be int64"):
        info_rows(np.array([2**63], dtype=np.uint64), "x", 1, "the data")
