"""Training data, windows, and observations."""

import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("ale_py")

import torch

from Atari import dataset, generate_dataset
from Atari.dataset import DataOptions, ensure_dataset, load_data, open_dataset
from Atari.experts import EXPERT_VERSION
from Atari.games import GAMES
from RATE_model.data.dopamine import Selection, export_replay
from RATE_model.data.selection import strided_or_whole
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError

LENGTHS = (25, 9, 40, 12, 33)
BREAKOUT = GAMES["Breakout"]
SIZE = 12


def make_file(path, lengths=LENGTHS, *, game="Breakout", rewards=(0, 1), actions=4):
    """Frames of noise, never black."""
    rng = np.random.default_rng(0)
    with TrajectoryWriter(
        path,
        observation_shape=(1, 84, 84),
        observation_dtype="uint8",
        attributes={"game": game, "expert_version": EXPERT_VERSION} if game else {},
    ) as writer:
        for length in lengths:
            frames = rng.integers(1, 255, (length, 1, 84, 84)).astype(np.uint8)
            writer.add_episode(frames, rng.integers(actions, size=length), rng.choice(rewards, length), terminal=True)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_file(tmp_path_factory.mktemp("atari") / "a.h5")


def test_windows_begin_at_every_step_and_cross_no_end(path):
    file = open_dataset(path, BREAKOUT)
    windows = strided_or_whole(0, file, SIZE, 1)
    found = {(start, length) for _, start, length in windows.tolist()}
    expected = set()
    for start, length in zip(file.starts.tolist(), file.lengths.tolist(), strict=True):
        if length < SIZE:
            expected.add((start, length))
        expected |= {(start + step, SIZE) for step in range(length - SIZE + 1)}
    assert found == expected and len(windows) == len(expected)
    tiles = strided_or_whole(0, file, SIZE, SIZE)
    assert len(tiles) == sum(max(1, length // SIZE) for length in LENGTHS)


def test_unfinished_tail_and_short_episodes(path, tmp_path, monkeypatch):
    file = open_dataset(path, BREAKOUT)
    file.whole[-1] = False
    assert strided_or_whole(0, file, SIZE, 1)[:, 1].max() < file.starts[-1]
    assert len(strided_or_whole(0, file, 100, 1)) == 4, "all are shorter, and the last has no end"


def test_split_by_episode_with_single_frames_in_batches(path):
    data = load_data(DataOptions(data_path=path), size=SIZE, fraction=0.6)
    sides = [
        set(np.searchsorted(data.file.starts, side.windows[:, 1], side="right") - 1)
        for side in (data.training, data.validation)
    ]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(range(5))
    batch = data.training.__getitems__([0, 7, 20])
    assert (
        batch.observations.frames.shape == (3, SIZE + 3, 1, 84, 84) and batch.observations.frames.dtype == torch.uint8
    )
    frames, returns = data.file.load()[0], data.file.returns_to_go()
    stacks = batch.observations.dense()
    assert stacks.shape == (3, SIZE, 4, 84, 84)
    for row, number in enumerate(batch.indices.tolist()):
        start = int(data.training.windows[number, 1])
        begin = max(first for first in data.file.starts if first <= start)
        for step in (0, 1, SIZE - 1):
            shown = [
                frames[s, 0] if s >= begin else np.zeros((84, 84), np.uint8)
                for s in range(start + step - 3, start + step + 1)
            ]
            np.testing.assert_array_equal(stacks[row, step], shown)
        np.testing.assert_array_equal(batch.rtg[row], returns[start : start + SIZE])


@pytest.mark.parametrize("gib", [0, 1])
def test_frames_are_loaded_up_to_the_memory_limit(path, gib):
    data = load_data(DataOptions(data_path=path, memory_gib=gib), size=SIZE, fraction=0.6)
    assert (data.training._observations is None) == (gib == 0)
    other = load_data(DataOptions(data_path=path, memory_gib=1 - gib), size=SIZE, fraction=0.6)
    one, two = (d.training.__getitems__([3, 9]).observations.dense() for d in (data, other))
    assert torch.equal(one, two) and data.training.fingerprint == other.training.fingerprint


def test_replay_files_give_the_same_windows(path, tmp_path, capsys):
    export_replay(path, tmp_path / "replay", game="Breakout")
    options = DataOptions(data_path=tmp_path / "replay", data_dir=tmp_path / "made")
    data = load_data(options, size=SIZE, fraction=0.6)
    assert "dropped 15 padding transitions" in capsys.readouterr().out
    direct = load_data(DataOptions(data_path=path), size=SIZE, fraction=0.6)
    assert data.training.fingerprint == direct.training.fingerprint
    batches = [d.training.__getitems__([0, 11]).observations.frames for d in (data, direct)]
    assert torch.equal(*batches)
    load_data(options, size=SIZE, fraction=0.6)
    assert "converted" not in capsys.readouterr().out
    small = ensure_dataset(replace(options, replay=Selection(transitions=30, trajectories_per_buffer=1)))
    assert TrajectoryFile(small).num_episodes < 5 and small.parent == tmp_path / "made"


@pytest.mark.parametrize(
    ("game", "rewards", "clipped", "expected"),
    [
        ("Breakout", (0, 1), True, "look clipped to [-1, 1]: give --target_return in clipped points"),
        ("Breakout", (0, 4), False, "are not clipped"),
        ("Pong", (-1, 0, 1), True, "lie within [-1, 1], as Pong's always do: clipping does not change them"),
    ],
)
def test_clipped_rewards_are_reported_at_every_start(game, rewards, clipped, expected, tmp_path, capsys):
    made = make_file(tmp_path / "a.h5", game=game, rewards=rewards)
    export_replay(made, tmp_path / "replay", game=game)
    options = DataOptions(game=game, data_path=tmp_path / "replay", data_dir=tmp_path)
    for _ in range(2):
        assert load_data(options, size=SIZE, fraction=0.6).clipped == clipped
        assert expected in capsys.readouterr().out
    assert not load_data(DataOptions(game=game, data_path=made), size=SIZE, fraction=0.6).clipped
    assert "rewards" not in capsys.readouterr().out, "of our own data nothing is to be said"


def test_where_data_is_looked_for(path, tmp_path, monkeypatch):
    configured, made = [None], []
    monkeypatch.setattr(dataset, "configured_folder", lambda section, key: configured[-1])
    monkeypatch.setattr(generate_dataset, "generate", lambda recipe, steps, path, **_: made.append(steps) or path)
    for steps, expected in ((None, 100_000), (150_000, 150_000)):
        own = ensure_dataset(DataOptions(data_dir=tmp_path, replay=Selection(transitions=steps)))
        assert own == tmp_path / f"Breakout_n{expected}.h5" and made.pop() == expected
    shutil.copy(path, own)
    assert ensure_dataset(DataOptions(data_dir=tmp_path, replay=Selection(transitions=150_000))) == own and not made
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="by version 1 of the expert; this is version 2"),
    ):
        patch.setattr(generate_dataset, "EXPERT_VERSION", EXPERT_VERSION + 1)
        ensure_dataset(DataOptions(data_dir=tmp_path, replay=Selection(transitions=150_000)))
    configured.append(path)
    assert ensure_dataset(DataOptions(data_dir=tmp_path)) == path
    assert ensure_dataset(DataOptions(data_dir=tmp_path, data_path=own)) == own
    configured.append(tmp_path / "none")
    with pytest.raises(UserError, match="'atari: data: .*none' of wandb_config.yaml: does not exist") as caught:
        ensure_dataset(DataOptions(data_dir=tmp_path, replay=Selection(transitions=70)))
    assert "--game Breakout --transitions 70`" in str(caught.value)
    assert f"name the file with --data_path '{tmp_path / 'Breakout_n70.h5'}'" in str(caught.value)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("missing", "--data_path .*missing: does not exist. Make your own with .*--game Breakout"),
        ("empty", "no DQN-replay files there .Breakout/1/replay_logs.*generate_dataset.py --game Breakout"),
        ("own", "To train on 'b.h5' in it, name that file"),
        ("logs/$store$_action_ckpt.0.gz", "this is one file of a replay buffer; give its folder, '.*logs'"),
        ("Pong/1/replay_logs", "replay_logs' contains Pong; give --game Pong, or the folder of Breakout"),
        ("Pong", "replay_logs' contains Pong; give --game Pong, or the folder of Breakout"),
    ],
)
def test_folder_without_data_is_reported(place, expected, path, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "own").mkdir()
    shutil.copy(path, tmp_path / "own" / "b.h5")
    for folder in (tmp_path / "Pong" / "1" / "replay_logs", tmp_path / "logs"):
        folder.mkdir(parents=True)
        (folder / "$store$_action_ckpt.0.gz").touch()
    with pytest.raises(UserError, match=expected):
        ensure_dataset(DataOptions(data_path=tmp_path / place, data_dir=tmp_path / "made"))
    assert not (tmp_path / "made").exists()


def test_data_of_another_game_is_refused(path, tmp_path):
    with pytest.raises(UserError, match="contains Breakout, not Pong"):
        load_data(DataOptions(game="Pong", data_path=path), size=SIZE)
    unnamed = make_file(tmp_path / "b.h5", game=None, actions=6)
    with pytest.raises(UserError, match=r"action [45] in 'actions' at step \d+ .*0 to 3.*read as Breakout"):
        load_data(DataOptions(data_path=unnamed), size=SIZE)
    with pytest.raises(UserError, match="too little data"):
        load_data(DataOptions(data_path=make_file(tmp_path / "c.h5", [20])), size=SIZE)


def test_truncated_replay_file_leaves_no_files(path, tmp_path):
    logs = export_replay(path, tmp_path / "replay", game="Breakout")
    frames = logs / "$store$_observation_ckpt.0.gz"
    with gzip.open(frames) as stream:
        content = gzip.compress(stream.read()[: -84 * 84])
    frames.write_bytes(content)
    with pytest.raises(UserError, match="observation_ckpt.0.gz' is truncated"):
        ensure_dataset(DataOptions(data_path=tmp_path / "replay", data_dir=tmp_path / "made"))
    assert not list(tmp_path.glob("made/*"))


def test_options_are_checked():
    for options, expected in (
        (DataOptions(game="Chess"), "Breakout, Qbert, Seaquest, Pong .*any ALE game"),
        (DataOptions(memory_gib=-1), "--memory_gib -1"),
    ):
        with pytest.raises(UserError, match=expected):
            options.validate()
