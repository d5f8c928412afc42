"""DQN-replay files: what we write an independent reader reads, what others write we read, and damages are named."""

import contextlib
import gzip
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ale_py")

from Atari import replay
from Atari.replay import Selection, convert, export_replay, find_replay_logs, read_buffer, select
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from tests.commands import contents

LENGTHS = (5, 9, 1, 12, 7)
ACTIONS = 4


def make_file(path: Path, lengths=LENGTHS, *, seed=0, tail=0) -> TrajectoryFile:
    """Single frames of noise; an episode's first frames may well have action and reward 0."""
    rng = np.random.default_rng(seed)
    with TrajectoryWriter(
        path, observation_shape=(1, 84, 84), observation_dtype="uint8", attributes={"game": "Breakout"}
    ) as writer:
        for length in (*lengths, tail) if tail else lengths:
            frames = rng.integers(0, 255, (length, 1, 84, 84)).astype(np.uint8)
            earned = rng.choice([0, 1, 4, 7], length)
            actions, cut = rng.integers(ACTIONS, size=length), length == tail
            writer.add_episode(frames, actions, earned, terminal=length != 9, unfinished=cut)
    return TrajectoryFile(path)


def stored(folder: Path, name: str, number: int = 0) -> np.ndarray:
    """The format as it is described everywhere: gzip around numpy.save."""
    with gzip.open(folder / f"{name}_ckpt.{number}.gz") as stream:
        return np.load(stream, allow_pickle=False)


def store(folder: Path, name: str, values: np.ndarray, number: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{name}_ckpt.{number}.gz", "wb") as stream:
        np.save(stream, values)


def write_buffer(folder: Path, number: int, lengths, *, seed: int, tail: int = 0, padded: bool = True) -> list:
    """A buffer as dopamine's code fills one, transition by transition; returns its episodes' frames and actions."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {"observation": [], "action": [], "reward": [], "terminal": []}

    def add(*values):
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)

    episodes = []
    for episode, length in enumerate([*lengths, tail] if tail else lengths):
        for _ in range(3 if padded else 0):
            add(np.zeros((84, 84), np.uint8), 0, 0.0, 0)
        frames = rng.integers(1, 255, (length, 84, 84)).astype(np.uint8)
        actions, rewards = rng.integers(ACTIONS, size=length), rng.choice([0.0, 1.0], length)
        actions[:2] = rewards[:2] = 0  # as padding has, but for the frame
        for step in range(length):
            add(frames[step], actions[step], rewards[step], step == length - 1 and episode < len(lengths))
        episodes.append((frames, actions, rewards))
    types = {"observation": np.uint8, "action": np.int32, "reward": np.float32, "terminal": np.uint8}
    for name, column in columns.items():
        store(folder, f"$store$_{name}", np.array(column, types[name]), number)
    store(folder, "add_count", np.array(len(columns["action"])), number)
    store(folder, "invalid_range", np.arange(5), number)
    return episodes[: len(lengths)]


# --- writing ---


def test_an_independent_reader_finds_every_transition_behind_three_of_zeros(tmp_path):
    file = make_file(tmp_path / "a.h5")
    folder = export_replay(file.path, tmp_path / "out", game="Breakout")
    assert folder == tmp_path / "out" / "Breakout" / "1" / "replay_logs"
    observations, actions, rewards, terminals = (
        stored(folder, f"$store$_{name}") for name in ("observation", "action", "reward", "terminal")
    )
    total = sum(LENGTHS) + 3 * len(LENGTHS)
    assert observations.shape == (total, 84, 84) and observations.dtype == np.uint8
    assert [a.dtype for a in (actions, rewards, terminals)] == [np.int32, np.float32, np.uint8]
    assert len(actions) == len(rewards) == len(terminals) == total
    assert stored(folder, "add_count") == total and stored(folder, "add_count").shape == ()
    # cursor - 1 to cursor + 3, where the cursor is back at the beginning of a full buffer
    assert stored(folder, "invalid_range").tolist() == [total - 1, 0, 1, 2, 3]
    frames, position = file.load()[0], 0
    for start, length in zip(file.starts, file.lengths, strict=True):
        padding, steps = slice(position, position + 3), slice(position + 3, position + 3 + length)
        assert not any(column[padding].any() for column in (observations, actions, rewards, terminals))
        np.testing.assert_array_equal(observations[steps], frames[start : start + length, 0])
        np.testing.assert_array_equal(actions[steps], file.actions[start : start + length])
        np.testing.assert_array_equal(rewards[steps], file.rewards[start : start + length])
        assert terminals[steps].tolist() == [0] * (length - 1) + [1], "also of an episode that was cut off"
        position += 3 + length


def test_an_unfinished_episode_has_no_terminal_and_is_left_out_again(tmp_path):
    file = make_file(tmp_path / "a.h5", tail=4)
    folder = export_replay(file.path, tmp_path / "out", game="Breakout")
    terminals = stored(folder, "$store$_terminal")
    assert terminals.sum() == len(LENGTHS) and not terminals[-7:].any()
    path = convert(folder, tmp_path / "b.h5", Selection(), game="Breakout", num_actions=ACTIONS)
    assert TrajectoryFile(path).lengths.tolist() == list(LENGTHS)


def test_episodes_that_do_not_fit_go_into_the_next_buffer(tmp_path):
    file = make_file(tmp_path / "a.h5")
    folder = export_replay(file.path, tmp_path / "out", game="Breakout", capacity=20)
    assert [len(stored(folder, "$store$_action", number)) for number in range(3)] == [20, 19, 10]
    with pytest.raises(UserError, match="episode of 12 steps"):
        export_replay(file.path, tmp_path / "other", game="Breakout", capacity=14)
    assert not (tmp_path / "other").exists()


def test_nothing_that_is_there_is_replaced_and_nothing_half_written_stays(tmp_path, monkeypatch):
    file = make_file(tmp_path / "a.h5")
    folder = export_replay(file.path, tmp_path / "out", game="Breakout")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="is there already"):
        export_replay(file.path, tmp_path / "out", game="Breakout")
    assert contents(tmp_path) == before
    one = make_file(tmp_path / "b.h5", (6,))
    assert export_replay(one.path, tmp_path / "out", game="Breakout", overwrite=True) == folder
    assert len(stored(folder, "$store$_action")) == 9 and [*folder.parent.iterdir()] == [folder]
    shutil.rmtree(folder)
    monkeypatch.setattr(replay, "sync_directory", lambda path: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(UserError, match="cannot be written"):
        export_replay(file.path, tmp_path / "out", game="Breakout")
    assert not list((tmp_path / "out" / "Breakout" / "1").iterdir())


# --- reading ---


def test_what_was_written_is_read_back(tmp_path, capsys):
    file = make_file(tmp_path / "a.h5")
    folder = export_replay(file.path, tmp_path / "out", game="Breakout", capacity=30)
    path = convert(folder, tmp_path / "b.h5", Selection(), game="Breakout", num_actions=ACTIONS)
    back = TrajectoryFile(path)
    np.testing.assert_array_equal(back.load()[0], file.load()[0])
    for name in ("actions", "rewards", "starts", "lengths"):
        np.testing.assert_array_equal(getattr(back, name), getattr(file, name))
    assert not back.attributes[replay.CLIPPED] and back.attributes["game"] == "Breakout"
    printed = capsys.readouterr().out
    assert "34 transitions of 5 episodes from 2 buffers" in printed and "15 transitions of padding" in printed


@pytest.mark.parametrize("padded", [True, False])
def test_padding_is_what_is_all_zero_and_an_unfinished_episode_is_left_out(tmp_path, padded, capsys):
    episodes = write_buffer(tmp_path / "logs", 3, [6, 4], seed=1, tail=9, padded=padded)
    path = convert(tmp_path / "logs", tmp_path / "b.h5", Selection(), game="Pong", num_actions=ACTIONS)
    file = TrajectoryFile(path)
    assert file.lengths.tolist() == [6, 4]
    np.testing.assert_array_equal(file.load()[0][:, 0], np.concatenate([frames for frames, _, _ in episodes]))
    np.testing.assert_array_equal(file.actions, np.concatenate([actions for _, actions, _ in episodes]))
    assert file.attributes[replay.CLIPPED]
    printed = capsys.readouterr().out
    assert f"{6 if padded else 0} transitions of padding" in printed


def test_a_black_picture_that_earns_something_is_play(tmp_path):
    zeros = {"observation": np.zeros((4, 84, 84), np.uint8), "action": np.zeros(4, np.int32)}
    zeros |= {"reward": np.array([0, 0, 1, 0], np.float32), "terminal": np.array([0, 0, 0, 1], np.uint8)}
    for name, values in zeros.items():
        store(tmp_path / "logs", f"$store$_{name}", values)
    path = convert(tmp_path / "logs", tmp_path / "b.h5", Selection(), game="Pong", num_actions=ACTIONS)
    assert TrajectoryFile(path).rewards.tolist() == [1, 0]


def test_a_selection_takes_the_next_whole_episodes_of_drawn_buffers(tmp_path):
    for number in (0, 1, 4):
        write_buffer(tmp_path, number, [3] * 8, seed=number)
    chosen = select(tmp_path, Selection(transitions=30, trajectories_per_buffer=2), num_actions=ACTIONS)
    counts = {buffer.number: count for buffer, count in chosen}
    assert sum(counts.values()) == 5 and set(counts) <= {0, 1, 4}, "episodes of 3 + 3 transitions: 5 are enough"
    again = select(tmp_path, Selection(transitions=30, trajectories_per_buffer=2), num_actions=ACTIONS)
    assert [count for _, count in again] == [count for _, count in chosen]
    everything = select(tmp_path, Selection(), num_actions=ACTIONS)
    assert [(buffer.number, count) for buffer, count in everything] == [(0, 8), (1, 8), (4, 8)]
    ((only, _),) = select(tmp_path, Selection(buffers=1), num_actions=ACTIONS)
    assert only.number == 0
    few = select(tmp_path, Selection(buffer_transitions=20), num_actions=ACTIONS)
    assert [count for _, count in few] == [3, 3, 3], "whole episodes within the first 20 transitions"
    seeds = {tuple(b.number for b, _ in select(tmp_path, Selection(transitions=3, data_seed=s), num_actions=ACTIONS))
             for s in range(20)}  # fmt: skip
    assert seeds == {(0,), (1,), (4,)}
    for wrong, expected in ((Selection(buffers=0), "--buffers"), (Selection(data_seed=-1), "--data_seed")):
        with pytest.raises(UserError, match=expected):
            wrong.validate()
    with pytest.raises(UserError, match="--buffer_transitions"):
        select(tmp_path, Selection(buffer_transitions=2), num_actions=ACTIONS)


def test_only_what_is_selected_is_decompressed(tmp_path):
    """The rest of the frames is damaged, and nobody notices."""
    write_buffer(tmp_path, 0, [4] * 40, seed=0)
    path = replay.store_path(tmp_path, "observation", 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    selection = Selection(transitions=20, trajectories_per_buffer=1)
    file = TrajectoryFile(convert(tmp_path, tmp_path / "b.h5", selection, game="Pong", num_actions=ACTIONS))
    assert file.num_episodes == 3
    with pytest.raises(UserError, match=r"observation_ckpt.0.gz' is truncated or damaged"):
        convert(tmp_path, tmp_path / "c.h5", Selection(), game="Pong", num_actions=ACTIONS)
    assert not (tmp_path / "c.h5").exists() and not list(tmp_path.glob(".*"))


def test_a_file_that_was_cut_off_is_refused_even_where_nothing_of_the_rest_is_wanted(tmp_path):
    write_buffer(tmp_path, 0, [4] * 40, seed=0)
    cut(replay.store_path(tmp_path, "observation", 0))
    with pytest.raises(UserError, match=r"observation_ckpt.0.gz' is truncated"):
        convert(tmp_path, tmp_path / "b.h5", Selection(transitions=20), game="Pong", num_actions=ACTIONS)


def test_a_conversion_is_made_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    write_buffer(tmp_path / "logs", 0, [4, 5], seed=0)
    made = []
    monkeypatch.setattr(replay, "select", lambda *a, **k: made.append(1) or select(*a, **k))
    arguments = dict(game="Pong", num_actions=ACTIONS)
    target = replay.conversion_path(tmp_path / "logs", Selection(), "Pong", tmp_path)
    for _ in range(2):
        assert convert(tmp_path / "logs", target, Selection(), **arguments) == target
    assert made == [1]
    write_buffer(tmp_path / "logs", 0, [4, 6], seed=0)
    assert TrajectoryFile(convert(tmp_path / "logs", target, Selection(), **arguments)).lengths.tolist() == [4, 6]
    other = Selection(buffers=2)
    assert replay.conversion_path(tmp_path / "logs", other, "Pong", tmp_path) != target


def test_two_processes_convert_once(tmp_path):
    write_buffer(tmp_path / "logs", 0, [4] * 40, seed=0)
    fork = multiprocessing.get_context("fork")
    kinds = {"game": "Pong", "num_actions": ACTIONS}
    log = tmp_path / "log"

    def work():
        with log.open("a") as stream, contextlib.redirect_stdout(stream):
            convert(tmp_path / "logs", tmp_path / "b.h5", Selection(), **kinds)

    processes = [fork.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert log.read_text().count("converted into") == 1


def test_a_folder_is_found_from_above_and_from_within(tmp_path):
    logs = tmp_path / "data" / "Pong" / "1" / "replay_logs"
    write_buffer(logs, 0, [3], seed=0)
    for place in (tmp_path / "data", logs.parents[1], logs.parent, logs):
        assert find_replay_logs(place, "Pong") == logs
    assert find_replay_logs(tmp_path / "data", "Qbert") is None and find_replay_logs(tmp_path, "Pong") is None


# --- damages ---


def name(folder: Path, store: str) -> Path:
    return folder / f"$store$_{store}_ckpt.0.gz"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def replaced(column: str, values: np.ndarray):
    return lambda folder: store(folder, f"$store$_{column}", values)


DAMAGES = {
    "no rewards": (lambda f: name(f, "reward").unlink(), "there is no $store$_reward_ckpt.0.gz"),
    "no frames": (lambda f: name(f, "observation").unlink(), "no $store$_observation_ckpt.0.gz"),
    "frames cut": (lambda f: cut(name(f, "observation")), "observation_ckpt.0.gz' is truncated"),
    "actions cut": (lambda f: cut(name(f, "action")), "action_ckpt.0.gz' is truncated"),
    "no gzip": (lambda f: name(f, "reward").write_bytes(b"nothing"), "reward_ckpt.0.gz' is truncated or"),
    "empty": (lambda f: name(f, "terminal").write_bytes(b""), "terminal_ckpt.0.gz' is truncated or"),
    "other lengths": (replaced("action", np.zeros(12, np.int32)), "(observation 13, action 12, reward 13, "),
    "out of range": (replaced("action", np.full(13, 4, np.int32)), "action 4 at transition 0; allowed is 0 to 3"),
    "a NaN": (replaced("reward", np.array([0.0] * 12 + [np.nan], np.float32)), "infinite reward at transition 12"),
    "frames of floats": (replaced("observation", np.zeros((13, 84, 84), np.float32)), "expected frames (n, 84, 84)"),
    "stacked frames": (replaced("observation", np.zeros((13, 84, 84, 4), np.uint8)), "expected frames (n, 84, 84)"),
    "frames of wide integers": (replaced("observation", np.zeros((13, 84, 84), np.uint16)), "type uint16"),
    "rewards in rows": (replaced("reward", np.zeros((13, 1), np.float32)), "a floating-point number per transition"),
    "rewards of integers": (replaced("reward", np.zeros(13, np.int64)), "int64 and shape (13,); expected a floating"),
    "objects": (replaced("reward", np.array([None] * 13)), "reward_ckpt.0.gz"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_named_and_nothing_half_converted_stays(damage, tmp_path):
    write_buffer(tmp_path, 0, [4, 3], seed=0)
    spoil, expected = DAMAGES[damage]
    spoil(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError) as caught:
        convert(tmp_path, tmp_path / "b.h5", Selection(), game="Pong", num_actions=ACTIONS)
    assert expected in str(caught.value) and contents(tmp_path) == before


def test_a_file_that_must_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    write_buffer(tmp_path, 0, [4, 3], seed=0)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(replay.gzip, "open", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read_buffer(tmp_path, 0, num_actions=ACTIONS)


def test_the_small_stores_say_where_episodes_are(tmp_path):
    write_buffer(tmp_path, 7, [4, 3], seed=0, tail=5)
    buffer = read_buffer(tmp_path, 7, num_actions=ACTIONS)
    assert buffer.starts.tolist() == [0, 7] and buffer.lengths.tolist() == [7, 6] and len(buffer.actions) == 21
