"""T-Maze data: the episodes, their seeds, the files, the loading and the command."""

import pickle

import h5py
import numpy as np
import pytest

from RATE_model.errors import UserError
from TMaze_new.TMaze_new_src.dataset import (
    DATA,
    FIRST_SEED,
    MAX_TRAJECTORIES,
    DataOptions,
    balanced_seeds,
    ensure_datasets,
    load_windows,
    main,
)
from TMaze_new.TMaze_new_src.env import EVALUATION_SEEDS, RIGHT, TMazeEnv, goals_of_seeds


def generate(options, segments, *, overwrite=False):
    """A newly made file of episodes of this many segments."""
    one = options.only(segments)
    DATA.make(one, DATA.path(one), overwrite=overwrite)
    return DATA.path(one)


@pytest.fixture
def options(tmp_path):
    return DataOptions(context_length=6, trajectories=40, data_dir=tmp_path / "data")


@pytest.mark.parametrize("win_only", [True, False])
def test_recorded_episodes_match_the_environment(options, win_only):
    """Played again in the single environment, every stored action gives the stored observations and rewards."""
    options = DataOptions(**vars(options) | {"win_only": win_only, "hint_steps": 2})
    file = DATA.open(generate(options, 2))
    assert file.num_episodes == 40 and (file.lengths == 11).all()
    observations, actions = file.load()
    with h5py.File(file.path) as raw:
        seeds = raw["infos/seed"][:]
        assert raw["terminals"][:].sum() == 40 and raw["timeouts"][:].sum() == 0
    env = TMazeEnv(10, hint_steps=2)
    for start in file.starts:
        observation, _ = env.reset(seed=int(seeds[start]))
        for step in range(start, start + 11):
            np.testing.assert_array_equal(observations[step], observation)
            observation, reward, terminated, _, _ = env.step(int(actions[step]))
            assert file.rewards[step] == reward
        assert terminated
    wins = file.returns_to_go()[file.starts]
    assert wins.tolist() == [1.0] * 20 + [float(win_only)] * 20
    assert (actions.reshape(40, 11)[:, :10] == RIGHT).all()
    hints = observations[file.starts, 1]
    assert (hints == 1).sum() == (hints == -1).sum() == 20
    assert (hints[:20] == 1).sum() == 10  # balanced among winners and losers


def test_seeds_are_distinct_balanced_and_not_evaluation_seeds(options):
    options = DataOptions(**vars(options) | {"trajectories": 500})
    seeds = []
    for path in ensure_datasets(options):
        with h5py.File(path) as raw:
            seeds.append(np.unique(raw["infos/seed"]))
        assert goals_of_seeds(seeds[-1]).sum() == 0
    assert len(np.unique(np.concatenate(seeds))) == 1500
    assert np.min(seeds) >= 1_000_000 > 10_000 > max(EVALUATION_SEEDS)
    # The next file's seeds start at twice the first. How many are used depends on chance.
    assert balanced_seeds(FIRST_SEED, 9000).max() - FIRST_SEED < 9000 * FIRST_SEED / MAX_TRAJECTORIES
    assert goals_of_seeds(balanced_seeds(1_000_000, 5)).tolist() == [1, -1, 1, -1, 1]


def test_attributes_and_names(options):
    path = generate(options, 3)
    assert path.name == "tmaze_S3_K6_hint1_n40_win.h5"
    attributes = DATA.open(path).attributes
    assert attributes["environment"] == "TMaze-v0" and attributes["segments"] == 3
    assert attributes["num_episodes"] == 40 and attributes["return_mean"] == 1.0 and attributes["length_max"] == 17
    for change in ({"context_length": 7}, {"trajectories": 41}, {"hint_steps": 2}, {"win_only": False}):
        assert DATA.path(DataOptions(**vars(options) | change).only(3)) != path


def test_ensure_makes_only_what_is_missing(options, capsys):
    first = generate(options, 1)
    with pytest.raises(UserError, match="exists; add --overwrite true"):
        generate(options, 1)
    before = first.stat().st_mtime_ns
    paths = ensure_datasets(options)
    assert paths == [DATA.path(options.only(segments)) for segments in (1, 2, 3)] and all(p.is_file() for p in paths)
    assert first.stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("Making 40 T-Maze episodes") == 2
    assert ensure_datasets(options.only(2)) == paths[1:2] and capsys.readouterr().out == ""


def test_data_files_are_shared_between_tasks(tmp_path, capsys):
    """Their observations differ in size from those of the passive T-Maze."""
    options = DataOptions(
        task="multi-cue", bits=2, context_length=10, min_n_final=2, max_n_final=2, trajectories=6, data_dir=tmp_path
    )
    paths = ensure_datasets(options)
    assert capsys.readouterr().out.count("Making") == 1
    assert ensure_datasets(options) == paths and capsys.readouterr().out == ""


def test_windows_of_a_stage(options):
    paths = ensure_datasets(options)
    training, validation = load_windows(paths[:2], size=12)
    assert (len(training), len(validation)) == (64, 16)
    batch = training.__getitems__(range(64))
    assert batch.observations.shape == (64, 12, 4) and batch.actions.max() <= 3
    assert sorted(set(batch.lengths.tolist())) == [5, 11] and not batch.valid[:, -1].any()
    assert ((batch.rtg == 1) == batch.valid).all()  # reward comes with the last action
    # Padding repeats the last observation.
    short = batch.lengths == 5
    assert (batch.observations[short][:, 5:] == batch.observations[short][:, 4:5]).all()


def test_split_is_the_same_in_every_stage(options):
    paths = ensure_datasets(options)

    def validation_rows(count):
        rows = load_windows(paths[:count], size=6 * count)[1].windows.tolist()
        return {tuple(row) for row in rows}

    stages = [validation_rows(count) for count in (1, 2, 3)]
    assert stages[0] < stages[1] < stages[2] and [len(rows) for rows in stages] == [8, 16, 24]


def test_loading_reports_damaged_files(options):
    with pytest.raises(UserError, match="does not exist.*training makes its data"):
        load_windows([DATA.path(options.only(1))], size=6)
    path = generate(options, 2)
    (path.parent / "damaged.h5").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged.h5' cannot be read.* Delete it, or name another"):
        load_windows([path.parent / "damaged.h5"], size=6)
    with pytest.raises(UserError, match="no episode of 1 to 6 steps"):
        load_windows([path], size=6)


def test_command(tmp_path, capsys):
    flags = ["--context_length", "5", "--trajectories", "10", "--max_n_final", "2", "--output_dir", str(tmp_path)]
    main(flags)
    names = ["tmaze_S1_K5_hint1_n10_win.h5", "tmaze_S2_K5_hint1_n10_win.h5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    out = capsys.readouterr().out
    assert all(name in out for name in names) and "10 episodes of 4 steps, mean return 1.00" in out
    content = (tmp_path / names[0]).read_bytes()
    (tmp_path / names[0]).write_bytes(b"mine")
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert "add --overwrite true" in capsys.readouterr().err
    assert (tmp_path / names[0]).read_bytes() == b"mine"
    main([*flags, "--overwrite", "true"])
    assert (tmp_path / names[0]).read_bytes() == content


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trajectories", "0"], "--trajectories 0: must be at least 3"),
        (["--min_n_final", "-1"], "--min_n_final -1: must"),
        (["--max_n_final", "0"], "--max_n_final 0: must be at least --min_n_final, which is 1"),
        (["--trajectories", "10000000000"], "--trajectories 10000000000: must be at most 900000"),
        (["--context_length", "2"], "--context_length 2: must be at least 3"),
        (["--hint_steps", "0"], "--hint_steps 0: must be at least 1"),
        (["--win_only", "maybe"], "--win_only"),
        (["--episodes", "5"], "--episodes"),
    ],
)
def test_bad_flags_are_named(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--data_dir", str(tmp_path / "data")])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") <= 2
    assert not (tmp_path / "data").exists()


def test_junctions_occur_at_any_step_of_last_segment(options):
    """With `corridors="any"`: every length that needs exactly S segments, the same lengths for up and down."""
    drawn = DataOptions(**vars(options) | {"corridors": "any", "trajectories": 400})
    for segments in (1, 2, 3):
        path = generate(drawn, segments)
        assert path != DATA.path(DataOptions(**vars(drawn) | {"corridors": "full"}).only(segments))
        file = DATA.open(path)
        steps = file.lengths + 1  # a step of padding closes the last segment
        assert (-(-steps // 6) == segments).all()
        shortest = 3 if segments == 1 else 6 * segments - 5  # a corridor has at least one cell
        assert set(steps) == set(range(shortest, 6 * segments + 1))
        observations, actions = file.load()
        hints = observations[file.starts, 1]
        assert sorted(file.lengths[hints == 1]) == sorted(file.lengths[hints == -1])
        ends = file.starts + file.lengths - 1
        assert (observations[ends, 2] == 1).all() and observations[:, 2].sum() == 400  # each ends at its junction
        assert (file.rewards[ends] == 1).all() and file.num_episodes == 400
        assert (actions[ends] != RIGHT).all()
    training, validation = load_windows([DATA.path(drawn.only(segments)) for segments in (1, 2, 3)], size=18)
    assert len(training) == 960 and len(validation) == 240
    lengths = DATA.open(DATA.path(drawn.only(3))).lengths
    np.testing.assert_array_equal(DATA.open(generate(drawn, 3, overwrite=True)).lengths, lengths)


def test_full_corridors_fill_their_segments(options):
    """The published data: one length per number of segments, in a file whose name does not mention corridors."""
    for segments in (1, 2):
        path = generate(options, segments)
        assert path.name == f"tmaze_S{segments}_K6_hint1_n40_win.h5"
        assert (DATA.open(path).lengths == 6 * segments - 1).all()


def write_published(path, segments: int, steps: int, *, episodes: int = 12, **changes) -> None:
    """Episodes as the authors' script pickles them."""
    rng = np.random.default_rng(segments)
    made = {
        number: {
            "obs": rng.normal(size=(segments * steps, 4)),
            "action": rng.integers(0, 4, segments * steps - 1),
            "rtg": np.r_[np.ones(segments * steps - 1), 0.0],
            "done": np.r_[np.zeros(segments * steps - 2, int), 1],
        }
        | changes
        for number in range(episodes)
    }
    path.write_bytes(pickle.dumps(made))


def test_published_pickles_are_read(tmp_path, capsys):
    """Pairs as in the published loader: the last observation has no action; returns-to-go are the file's."""
    for segments in (1, 2):
        name = f"new_tmaze_data_segment_{segments}_multiplier_6_hint_steps_1_desired_reward_1.0_win_only_True"
        write_published(tmp_path / f"{name}_segment_length_5.pickle", segments, 5)
    options = DataOptions(max_n_final=2, context_length=5, data_path=tmp_path, data_dir=tmp_path / "converted")
    paths = ensure_datasets(options)
    assert capsys.readouterr().out.count("Converting") == 2 and ensure_datasets(options) == paths
    assert "Converting" not in capsys.readouterr().out
    source = pickle.loads((tmp_path / f"{name}_segment_length_5.pickle").read_bytes())
    with DATA.open(paths[1]) as file:
        assert file.lengths.tolist() == [9] * 12
        observations, actions = file.read(9, 18)
        np.testing.assert_array_equal(observations, source[1]["obs"][:-1].astype(np.float32))
        assert actions.tolist() == source[1]["action"].tolist()
        assert file.returns_to_go()[9:18].tolist() == source[1]["rtg"][:-1].tolist()
    training, validation = load_windows(paths, size=10)
    assert len(training) + len(validation) == 24


def test_unusable_published_pickles_are_reported(tmp_path):
    options = DataOptions(max_n_final=1, context_length=5, data_path=tmp_path, data_dir=tmp_path / "converted")
    with pytest.raises(UserError, match=r"has no published data of 1 segments of 5 steps; .*data_T_5.pickle"):
        ensure_datasets(options)
    for wrong, message in (({"rtg": np.ones(3)}, "do not match"), ({"action": np.full(4, 7)}, "outside 0 to 3")):
        write_published(tmp_path / "data_T_5.pickle", 1, 5, **wrong)
        with pytest.raises(UserError, match=f"episode 0 .*{message}"):
            ensure_datasets(options)
    assert not [*tmp_path.glob("converted/*.h5")]
