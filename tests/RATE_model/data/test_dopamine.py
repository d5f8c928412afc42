"""DQN-replay files: written files, third-party files, and errors for damaged ones."""

import contextlib
import gzip
import multiprocessing
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from RATE_model.data import dopamine
from RATE_model.data.dopamine import Selection, convert, export_replay, find_replay_logs, read_buffer, select
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from tests.commands import contents

LENGTHS = (5, 9, 1, 12, 7)
ACTIONS = 4


def make_file(path: Path, lengths=LENGTHS, *, seed=0, tail=0) -> TrajectoryFile:
    """Single frames of noise; an episode's first frames may have action and reward 0."""
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
    """Save in the documented format: gzip around numpy.save."""
    with gzip.open(folder / f"{name}_ckpt.{number}.gz") as stream:
        return np.load(stream, allow_pickle=False)


def store(folder: Path, name: str, values: np.ndarray, number: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{name}_ckpt.{number}.gz", "wb") as stream:
        np.save(stream, values)


def write_buffer(folder: Path, number: int, lengths, *, seed: int, tail: int = 0, padded: bool = True) -> list:
    """Fill a buffer like dopamine, transition by transition; returns its episodes' frames and actions."""
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
        actions[:2] = rewards[:2] = 0  # like padding, except for the frame
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


def test_an_independent_reader_finds_every_transition(tmp_path):
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


def test_an_unfinished_episode_has_no_terminal_and_is_dropped(tmp_path):
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


def test_nothing_is_replaced_or_left_half_written(tmp_path, monkeypatch):
    file = make_file(tmp_path / "a.h5")
    folder = export_replay(file.path, tmp_path / "out", game="Breakout")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="exists; add --overwrite"):
        export_replay(file.path, tmp_path / "out", game="Breakout")
    assert contents(tmp_path) == before
    one = make_file(tmp_path / "b.h5", (6,))
    assert export_replay(one.path, tmp_path / "out", game="Breakout", overwrite=True) == folder
    assert len(stored(folder, "$store$_action")) == 9 and [*folder.parent.iterdir()] == [folder]
    shutil.rmtree(folder)
    monkeypatch.setattr(dopamine, "sync_directory", lambda path: (_ for _ in ()).throw(OSError(28, "disk full")))
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
    assert not back.attributes[dopamine.CLIPPED] and back.attributes["game"] == "Breakout"
    printed = capsys.readouterr().out
    assert "34 transitions of 5 episodes from 2 buffers" in printed and "15 padding transitions" in printed


@pytest.mark.parametrize("padded", [True, False])
def test_padding_and_unfinished_episodes_are_dropped(tmp_path, padded, capsys):
    episodes = write_buffer(tmp_path / "logs", 3, [6, 4], seed=1, tail=9, padded=padded)
    path = convert(tmp_path / "logs", tmp_path / "b.h5", Selection(), game="Pong", num_actions=ACTIONS)
    file = TrajectoryFile(path)
    assert file.lengths.tolist() == [6, 4]
    np.testing.assert_array_equal(file.load()[0][:, 0], np.concatenate([frames for frames, _, _ in episodes]))
    np.testing.assert_array_equal(file.actions, np.concatenate([actions for _, actions, _ in episodes]))
    assert file.attributes[dopamine.CLIPPED]
    printed = capsys.readouterr().out
    assert f"{6 if padded else 0} padding transitions" in printed


# --- the ring ---


def ring(folder: Path, lengths, *, capacity: int, drop: int = 0, number: int = 0, cut=(), horizon: int = 1) -> int:
    """A buffer filled by dopamine with episodes of these lengths, except for the last ``drop`` transitions.

    Every frame, every reward and, modulo 4, every action of episode e is e = 1, 2, ...; slots that were never written
    hold garbage. Episodes in ``cut`` have no terminal. Returns how many transitions were added.
    """
    who = np.concatenate([[0] * 3 + [e] * n for e, n in enumerate(lengths, 1)])
    last = np.append(np.diff(who) < 0, True) & ~np.isin(who, cut)
    who, last = who[: len(who) - drop], last[: len(who) - drop]
    slots = np.full((2, capacity), 99)
    for step, values in enumerate(zip(who, last, strict=True)):
        slots[:, step % capacity] = values
    numbers, terminals = slots
    frames = np.repeat(numbers.astype(np.uint8), 84 * 84).reshape(-1, 84, 84)
    values = {"observation": frames, "action": (numbers % 4).astype(np.int32), "reward": numbers.astype(np.float32)}
    for name, column in (values | {"terminal": terminals.astype(np.uint8)}).items():
        store(folder, f"$store$_{name}", column, number)
    store(folder, "add_count", np.array(len(who)), number)
    around = (len(who) - horizon + np.arange(4 + horizon)) % capacity
    store(folder, "invalid_range", around, number)
    return len(who)


def converted(folder: Path, **selection) -> TrajectoryFile:
    path = folder.parent / "b.h5"
    convert(folder, path, Selection(**selection), game="Breakout", num_actions=ACTIONS)
    return TrajectoryFile(path)


def assert_played(file: TrajectoryFile, expected: list[tuple[int, int]]) -> None:
    """Assert that the episodes are these (number, steps), unmixed, with their own returns-to-go."""
    numbers = np.concatenate([[number] * steps for number, steps in expected])
    assert file.lengths.tolist() == [steps for _, steps in expected] and file.whole.all()
    np.testing.assert_array_equal(file.load()[0][:, 0, 40, 40], numbers)
    np.testing.assert_array_equal(file.rewards, numbers)
    np.testing.assert_array_equal(file.actions, numbers % 4)
    assert file.returns_to_go()[file.starts].tolist() == [number * steps for number, steps in expected]


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_wrapped_buffer_is_read_in_chronological_order(tmp_path, horizon):
    """Saved in the middle of episode 7; the newest transitions have overwritten the first steps of episode 3."""
    assert ring(tmp_path / "logs", [9, 8, 12, 7, 11, 6, 10], capacity=50, drop=4, horizon=horizon) == 80
    assert_played(converted(tmp_path / "logs"), [(3, 8), (4, 7), (5, 11), (6, 6)])


def test_only_the_requested_part_of_a_wrapped_buffer_is_read(tmp_path):
    """The oldest transitions, which lie in the middle of the files."""
    ring(tmp_path / "logs", [9, 8, 12, 7, 11, 6, 10], capacity=50, drop=4)
    assert_played(converted(tmp_path / "logs", buffer_transitions=20), [(3, 8), (4, 7)])


def test_unwritten_slots_are_ignored(tmp_path):
    ring(tmp_path / "logs", [9, 8, 12], capacity=60, drop=2)
    assert_played(converted(tmp_path / "logs"), [(1, 9), (2, 8)])


def test_public_buffers_miss_their_last_transition(tmp_path):
    """The last slot is from the previous round, where episode 2 ended: its terminal does not belong to episode 4."""
    added = ring(tmp_path / "logs", [9, 8, 12, 17], capacity=23, drop=13)
    assert added == 45 and stored(tmp_path / "logs", "$store$_terminal")[-1] == 1
    assert_played(converted(tmp_path / "logs"), [(3, 12)])


def test_padding_marks_the_end_of_an_unmarked_episode(tmp_path, capsys):
    ring(tmp_path / "logs", [9, 8, 12], capacity=38, cut=(2,))
    file = converted(tmp_path / "logs")
    assert_played(file, [(1, 9), (2, 8), (3, 12)])
    with h5py.File(file.path) as raw:
        assert np.flatnonzero(raw["terminals"]).tolist() == [8, 28] and np.flatnonzero(raw["timeouts"]).tolist() == [16]
    assert "1 of them have no end mark" in capsys.readouterr().out


def test_ends_listed_by_newer_versions(tmp_path, capsys):
    """A pickled set of slots; episode 3 is the last one and was cut off, so that no padding follows."""
    ring(tmp_path / "logs", [9, 8, 12], capacity=38, cut=(2, 3))
    with gzip.open(tmp_path / "logs" / "episode_end_indices_ckpt.0.gz", "wb") as stream:
        pickle.dump({np.int64(11), np.int64(22), 37}, stream)
    file = converted(tmp_path / "logs")
    assert_played(file, [(1, 9), (2, 8), (3, 12)])
    with h5py.File(file.path) as raw:
        assert np.flatnonzero(raw["timeouts"]).tolist() == [16, 28]
    assert "no end mark" not in capsys.readouterr().out


def test_a_buffer_without_add_count_needs_a_known_order(tmp_path, capsys):
    ring(tmp_path / "logs", [9, 8, 12], capacity=38)
    (tmp_path / "logs" / "add_count_ckpt.0.gz").unlink()
    assert_played(converted(tmp_path / "logs"), [(1, 9), (2, 8), (3, 12)])
    assert "note" not in capsys.readouterr().out, "invalid_range says that the first slot is next"
    (tmp_path / "logs" / "invalid_range_ckpt.0.gz").unlink()
    assert_played(converted(tmp_path / "logs"), [(1, 9), (2, 8), (3, 12)])
    assert "has no add_count: assuming that it is full and its first slot is the oldest" in capsys.readouterr().out


def test_columns_are_accepted(tmp_path):
    ring(tmp_path / "logs", [9, 8, 12], capacity=38)
    for column in ("action", "reward", "terminal"):
        store(tmp_path / "logs", f"$store$_{column}", stored(tmp_path / "logs", f"$store$_{column}")[:, None])
    assert_played(converted(tmp_path / "logs"), [(1, 9), (2, 8), (3, 12)])


def test_a_black_frame_with_a_reward_is_not_padding(tmp_path):
    zeros = {"observation": np.zeros((4, 84, 84), np.uint8), "action": np.zeros(4, np.int32)}
    zeros |= {"reward": np.array([0, 0, 1, 0], np.float32), "terminal": np.array([0, 0, 0, 1], np.uint8)}
    for name, values in zeros.items():
        store(tmp_path / "logs", f"$store$_{name}", values)
    path = convert(tmp_path / "logs", tmp_path / "b.h5", Selection(), game="Pong", num_actions=ACTIONS)
    assert TrajectoryFile(path).rewards.tolist() == [1, 0]


def test_a_selection_draws_whole_episodes_in_order(tmp_path):
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
    """The rest of the frames is damaged without effect."""
    write_buffer(tmp_path, 0, [4] * 40, seed=0)
    path = dopamine.store_path(tmp_path, "observation", 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    selection = Selection(transitions=20, trajectories_per_buffer=1)
    file = TrajectoryFile(convert(tmp_path, tmp_path / "b.h5", selection, game="Pong", num_actions=ACTIONS))
    assert file.num_episodes == 3
    with pytest.raises(UserError, match=r"observation_ckpt.0.gz' is truncated or damaged"):
        convert(tmp_path, tmp_path / "c.h5", Selection(), game="Pong", num_actions=ACTIONS)
    assert not (tmp_path / "c.h5").exists() and not list(tmp_path.glob(".*"))


def test_a_truncated_file_is_refused(tmp_path):
    write_buffer(tmp_path, 0, [4] * 40, seed=0)
    cut(dopamine.store_path(tmp_path, "observation", 0))
    with pytest.raises(UserError, match=r"observation_ckpt.0.gz' is truncated"):
        convert(tmp_path, tmp_path / "b.h5", Selection(transitions=20), game="Pong", num_actions=ACTIONS)


def test_a_conversion_is_redone_only_when_a_file_changes(tmp_path, monkeypatch):
    write_buffer(tmp_path / "logs", 0, [4, 5], seed=0)
    made = []
    monkeypatch.setattr(dopamine, "select", lambda *a, **k: made.append(1) or select(*a, **k))
    arguments = dict(game="Pong", num_actions=ACTIONS)
    target = dopamine.conversion_path(tmp_path / "logs", Selection(), "Pong", tmp_path)
    for _ in range(2):
        assert convert(tmp_path / "logs", target, Selection(), **arguments) == target
    assert made == [1]
    write_buffer(tmp_path / "logs", 0, [4, 6], seed=0)
    assert TrajectoryFile(convert(tmp_path / "logs", target, Selection(), **arguments)).lengths.tolist() == [4, 6]
    other = Selection(buffers=2)
    assert dopamine.conversion_path(tmp_path / "logs", other, "Pong", tmp_path) != target


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
    assert log.read_text().count("converted") == 1


def test_a_folder_is_found_from_its_parent_or_directly(tmp_path):
    logs = tmp_path / "data" / "Pong" / "1" / "replay_logs"
    write_buffer(logs, 0, [3], seed=0)
    for place in (tmp_path / "data", logs.parents[1], logs.parent, logs):
        assert find_replay_logs(place, "Pong") == logs
    assert find_replay_logs(tmp_path / "data", "Qbert") is None and find_replay_logs(tmp_path, "Pong") is None


# --- damage ---


def name(folder: Path, store: str) -> Path:
    return folder / f"$store$_{store}_ckpt.0.gz"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def replaced(column: str, values: np.ndarray):
    return lambda folder: store(folder, f"$store$_{column}", values)


def no_count(folder: Path) -> None:
    (folder / "add_count_ckpt.0.gz").unlink()
    store(folder, "invalid_range", np.arange(4, 9))


DAMAGES = {
    "no rewards": (lambda f: name(f, "reward").unlink(), "$store$_reward_ckpt.0.gz missing"),
    "no frames": (lambda f: name(f, "observation").unlink(), "$store$_observation_ckpt.0.gz missing"),
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
    "rewards in rows": (replaced("reward", np.zeros((13, 2), np.float32)), "a floating-point number per transition"),
    "other terminals": (replaced("terminal", np.full(13, 7, np.uint8)), "has 7 at transition 0; expected 0 or 1"),
    "another count": (lambda f: store(f, "add_count", np.array(9)), "add_count 9 and invalid_range [0, 1, 2, 3, 4] do"),
    "another capacity": (lambda f: store(f, "invalid_range", np.arange(12, 17)), "do not match stores of 13"),
    "no count": (no_count, "has no add_count, which gives the order"),
    "a damaged count": (lambda f: (f / "add_count_ckpt.0.gz").write_bytes(b"1"), "add_count_ckpt.0.gz' is truncated"),
    "rewards of integers": (replaced("reward", np.zeros(13, np.int64)), "int64 and shape (13,); expected a floating"),
    "objects": (replaced("reward", np.array([None] * 13)), "reward_ckpt.0.gz"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_nothing_half_converted_stays(damage, tmp_path):
    write_buffer(tmp_path, 0, [4, 3], seed=0)
    spoil, expected = DAMAGES[damage]
    spoil(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError) as caught:
        convert(tmp_path, tmp_path / "b.h5", Selection(), game="Pong", num_actions=ACTIONS)
    assert expected in str(caught.value) and contents(tmp_path) == before


def test_an_unreadable_file_is_not_called_damaged(tmp_path, monkeypatch):
    write_buffer(tmp_path, 0, [4, 3], seed=0)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dopamine.gzip, "open", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read_buffer(tmp_path, 0, num_actions=ACTIONS)


def test_episodes_are_found_from_the_small_stores(tmp_path):
    write_buffer(tmp_path, 7, [4, 3], seed=0, tail=5)
    buffer = read_buffer(tmp_path, 7, num_actions=ACTIONS)
    assert buffer.starts.tolist() == [0, 7] and buffer.lengths.tolist() == [7, 6] and len(buffer.actions) == 21
