"""Ends of episodes in third-party data: every known mark, combinations, and contradictions."""

import h5py
import numpy as np
import pytest

from RATE_model.data.ends import UnclearEnds, find_ends, kind_of, possible_marks, within_episode
from RATE_model.data.selection import strided_windows, whole_episodes
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError

LENGTHS = (4, 3, 6, 2)
STEPS = sum(LENGTHS)
STOPS = np.cumsum(LENGTHS)
LAST = np.isin(np.arange(STEPS), STOPS - 1)
TERMINAL = np.isin(np.arange(STEPS), (STOPS - 1)[[0, 2]])
FIRST = np.concatenate([[True], LAST[:-1]])
NUMBER = np.repeat(np.arange(4), LENGTHS)
STEP = np.concatenate([np.arange(length) for length in LENGTHS])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    ("terminals", "timeouts"),
    [("terminals", "timeouts"), ("terminations", "truncations"), ("is_terminal", "infos/TimeLimit.truncated")],
)
def test_terminals_and_cuts(terminals, timeouts, dtype, column):
    marks = {terminals: TERMINAL.astype(dtype), timeouts: (LAST & ~TERMINAL).astype(dtype)}
    ends = find_ends({name: v[:, None] if column else v for name, v in marks.items()}, STEPS)
    np.testing.assert_array_equal(ends.last, LAST)
    np.testing.assert_array_equal(ends.terminal, TERMINAL)


EVERY = {
    "is_last": LAST,
    "episode_terminals": LAST.astype(np.float32),
    "ends": LAST.astype(np.uint8),
    "is_first": FIRST,
    "reset": FIRST,
    "episode_starts": FIRST,
    "episode_id": NUMBER,
    "traj_id": 7 - NUMBER,
    "frame_index": STEP,
    "infos/timestep": STEP + 1,
    "episode_ends": STOPS,
    "meta/episode_ends": STOPS - 1,
    "traj_starts": STOPS - LENGTHS,
    "episode_lengths": np.array(LENGTHS),
}


@pytest.mark.parametrize("name", EVERY)
def test_marks_of_every_end(name):
    """Marks of terminal states give the kind of end; not every mark covers the last step."""
    known = kind_of(name) in ("last", "stops", "lengths") or name == "traj_starts"
    ends = find_ends({name: EVERY[name], "terminals": TERMINAL}, STEPS)
    np.testing.assert_array_equal(ends.last[:-1], LAST[:-1])
    np.testing.assert_array_equal(ends.terminal, TERMINAL)
    assert ends.last[-1] == known and not ends.open
    np.testing.assert_array_equal(ends.first[1:], FIRST[1:])


def test_all_marks_together_agree():
    ends = find_ends(EVERY | {"terminals": TERMINAL, "timeouts": LAST & ~TERMINAL, "dones": LAST}, STEPS)
    np.testing.assert_array_equal(ends.last, LAST)
    assert ends.begins is True


def test_discounts_and_step_counters():
    np.testing.assert_array_equal(find_ends({"dones": LAST}, STEPS).terminal, LAST)
    both = find_ends({"dones": TERMINAL, "truncateds": LAST & ~TERMINAL}, STEPS)
    np.testing.assert_array_equal(both.last, LAST)
    np.testing.assert_array_equal(both.terminal, TERMINAL)
    discounts = find_ends({"is_first": FIRST, "discount": np.where(TERMINAL, 0, 0.99)}, STEPS)
    np.testing.assert_array_equal(discounts.terminal, TERMINAL)
    np.testing.assert_array_equal(find_ends({"not_done": ~TERMINAL[:, None]}, STEPS).terminal, TERMINAL)
    counted = find_ends({"timesteps": np.arange(STEPS), "terminals": TERMINAL}, STEPS)  # of the whole data
    np.testing.assert_array_equal(counted.last, TERMINAL)


def test_one_number_for_all_steps():
    """For an end mark it concerns the last step; for an episode number, discount or length it is ignored."""
    assert find_ends({"done": np.array(True)}, 4).terminal.tolist() == [False, False, False, True]
    assert find_ends({"truncated": np.array([1]), "done": 0}, 4).last.tolist() == [False, False, False, True]
    single = find_ends({"done": np.arange(4) == 3, "episode_id": 7, "discount": 0.99, "episode_lengths": 4}, 4)
    assert np.flatnonzero(single.last).tolist() == [3]


def test_an_unmarked_last_step_is_open():
    tail = find_ends({"is_last": LAST & (np.arange(STEPS) < STEPS - 1)}, STEPS)
    assert tail.open and not tail.last[-1]
    assert find_ends({"is_first": np.roll(FIRST, 1)}, STEPS).begins is False


MOVED = np.roll(LAST, 1)
REFUSED = {
    "contradicts itself: by 'is_first' an episode ends with step 0 of 15, by 'is_last' it goes on": {
        "is_first": np.roll(FIRST, 1), "is_last": LAST},
    "by 'terminals' an episode ends with step 5 of 15, by 'episode_id' it goes on": {
        "terminals": np.arange(STEPS) == 5, "episode_id": NUMBER},
    "by 'terminals' an episode ends with step 3 of 15, by 'dones' it goes on": {
        "terminals": TERMINAL, "dones": LAST & (np.arange(STEPS) > 3)},
    "by 'dones' an episode ends with step 1 of 15, by 'terminals' it goes on": {
        "terminals": TERMINAL, "timeouts": LAST & ~TERMINAL, "dones": LAST | (np.arange(STEPS) == 1)},
    "by 'episode_ends' an episode ends with step 3 of 15, by 'episode_lengths' it goes on": {
        "episode_ends": STOPS, "episode_lengths": np.array([3, 4, 6, 2])},
    "has 'episode_ends', which does not divide 15 steps": {"episode_ends": STOPS - 2},
    "has 'episode_lengths', which does not divide 15 steps": {"episode_lengths": np.array([4, 3])},
    "has 2 in 'dones' at step 2 of 15; expected 0 or 1": {"dones": np.where(np.arange(STEPS) == 2, 2, LAST)},
    "has nan in 'terminals' at step 0": {"terminals": np.full(STEPS, np.nan)},
    "has 'terminals' of shape (14,); expected (15,)": {"terminals": LAST[1:]},
    "has 'rank/dones' of shape (15, 2); expected (15,)": {"rank/dones": np.stack([LAST, LAST], 1)},
    "has 'dones' of type <U1": {"dones": np.full(STEPS, "a")},
    "has an end at each of the steps 12 to 14 ('dones'): padding": {"dones": LAST | (np.arange(STEPS) > 11)},
    "has an end at each of the steps 0 to 2 ('discount')": {"discount": np.zeros(STEPS)},
    "has 'episode_id' return to 0 at step 7: steps are not in chronological order": {"episode_id": NUMBER % 2},
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_impossible_marks_are_refused_with_the_position(reason):
    with pytest.raises(UnclearEnds) as error:
        find_ends(REFUSED[reason], STEPS)
    assert reason in str(error.value)


# --- lengths and successors ---


def test_episodes_end_at_the_limit_without_truncation_marks():
    for cuts in ({}, {"timeouts": np.zeros(STEPS)}):
        ends = find_ends({"terminals": TERMINAL} | cuts, STEPS, max_steps=4)
        assert np.flatnonzero(ends.last).tolist() == [3, 7, 11, 12] and "2 episodes end after 4 steps" in ends.notes[0]
    full = find_ends({"terminals": np.zeros(8)}, 8, max_steps=4)
    assert np.flatnonzero(full.last).tolist() == [3, 7] and not full.terminal.any()


def test_truncation_marks_that_are_never_set_are_noted_without_a_limit():
    marks = {"terminals": TERMINAL, "timeouts": np.zeros(STEPS)}
    (note,) = find_ends(marks, STEPS).notes
    longest = np.diff(np.flatnonzero(np.concatenate([[True], TERMINAL[:-1], [True]]))).max()
    assert "'timeouts', which are never set" in note and f"the longest has {longest} steps" in note
    assert find_ends(marks | {"is_last": LAST}, STEPS).notes == () == find_ends({"terminals": TERMINAL}, STEPS).notes


@pytest.mark.parametrize("marks", [{"timeouts": LAST & ~TERMINAL}, {"is_last": LAST}, {"episode_id": NUMBER}])
def test_marked_episodes_may_not_exceed_the_limit(marks):
    with pytest.raises(UnclearEnds, match="has 6 steps in episode 2, 7 to 12; an episode has at most 5"):
        find_ends({"terminals": TERMINAL} | marks, STEPS, max_steps=5)


def test_an_episode_ends_where_its_successor_does_not_match():
    follows = ~LAST[:-1]
    ends = find_ends({"terminals": TERMINAL}, STEPS, follows=follows)
    assert np.flatnonzero(ends.last).tolist() == [3, 6, 12] and "at 1 steps" in ends.notes[0]
    np.testing.assert_array_equal(ends.terminal, TERMINAL)
    limited = find_ends({"terminals": np.zeros(15)}, 15, follows=np.arange(1, 15) % 5 != 0, max_steps=6)
    assert np.flatnonzero(limited.last).tolist() == [4, 9, 14], "each lacks the step at which it was cut off"
    assert find_ends({"terminals": LAST}, STEPS, follows=np.ones(STEPS - 1, bool)).notes == ()


@pytest.mark.parametrize(
    ("marks", "follows", "reason"),
    [
        ({"terminals": LAST}, np.zeros(STEPS - 1, bool), "not in chronological order: the successor of step 0"),
        ({"terminals": MOVED}, ~LAST[:-1], "the successor of step 3 .* an end is marked one step away"),
        (
            {"episode_id": NUMBER},
            np.arange(STEPS - 1) != 5,
            "successor of step 5 .* by 'episode_id' the episode continues",
        ),
    ],
)
def test_successors_that_contradict_the_marks_are_refused(marks, follows, reason):
    with pytest.raises(UnclearEnds, match=reason):
        find_ends(marks, STEPS, follows=follows)


def test_a_single_episode_may_contain_no_other_end():
    assert within_episode({"terminals": [0, 0, 1]}, 3).terminal.tolist() == [False, False, True]
    assert within_episode({"terminals": [0, 0, 0]}, 3).last.tolist() == [False, False, True]
    assert within_episode({"terminals": [0, 0, 0]}, 3, follows=np.array([False, True])).last.tolist() == [1, 0, 1]
    with pytest.raises(UnclearEnds, match="an end at step 1 of 3: expected one"):
        within_episode({"dones": [0, 1, 0]}, 3)
    with pytest.raises(UnclearEnds, match="has 3 steps; an episode has at most 2"):
        within_episode({"dones": [0, 0, 1]}, 3, max_steps=2)


def test_names():
    assert kind_of("infos/Truncated") == "timeout" and kind_of("observations") is None
    names = ["episode_return", "my_done", "rewards", "infos/goal", "end_flag", "terminals", "trajectory", "backend"]
    assert possible_marks(names) == ["episode_return", "my_done", "end_flag", "trajectory"]


# --- files ---


def write(path, **arrays):
    """A flat third-party file; observations and rewards are each episode's number."""
    held = {"observations": np.repeat(NUMBER, 3).reshape(STEPS, 3).astype(np.float32), "actions": np.zeros((STEPS, 2))}
    held |= {"rewards": NUMBER.astype(np.float32)} | arrays
    with h5py.File(path, "w") as file:
        for name, values in held.items():
            file[name] = values
    return path


@pytest.mark.parametrize("name", EVERY)
def test_a_file_with_any_mark(tmp_path, name, capsys):
    file = TrajectoryFile(write(tmp_path / "a.h5", **{name: EVERY[name]}))
    assert tuple(file.lengths) == LENGTHS
    np.testing.assert_array_equal(file.returns_to_go(), NUMBER * (np.repeat(LENGTHS, LENGTHS) - STEP))
    assert file.whole[:-1].all()
    assert ("has 2 steps after its last end" in capsys.readouterr().out) == (not file.whole[-1])


def test_columns_and_successors_of_a_file(tmp_path, capsys):
    values = np.arange(STEPS * 3, dtype=np.float64).reshape(STEPS, 3)
    after = np.where(LAST[:, None], -1, np.roll(values, -1, axis=0))
    columns = {"rewards": np.ones((STEPS, 1)), "terminals": TERMINAL[:, None], "actions": np.ones((STEPS, 1), int)}
    path = write(tmp_path / "a.h5", **columns, observations=values.astype(np.float32), next_observations=after)
    for _ in range(2):
        file = TrajectoryFile(path, num_actions=2)
        assert tuple(file.lengths) == LENGTHS and file.rewards.shape == file.actions.shape == (STEPS,)
    assert capsys.readouterr().out.count("marks no end at 1 steps whose successor does not match (first: step 6)") == 1


def test_an_episode_without_an_end_is_in_no_window(tmp_path):
    file = TrajectoryFile(write(tmp_path / "a.h5", terminals=LAST & (NUMBER < 3)))
    assert file.whole.tolist() == [True, True, True, False]
    assert whole_episodes(0, file)[:, 2].tolist() == [4, 3, 6]
    assert strided_windows(0, file, 2, 1)[:, 1].max() == 11
    with pytest.raises(UserError, match="The last one, of 2 steps, has no end"):
        whole_episodes(0, file, 2, min_steps=2)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, "has no terminals"),
        ({"timeouts": LAST}, "has no terminals"),
        ({"is_ended": LAST}, "has no terminals"),
        ({"infos/my_dones": LAST, "infos/is_first": FIRST[1:]}, "'infos/is_first' of shape"),
        ({"infos/timeouts": LAST, "terminals": LAST, "rewards": np.ones((STEPS, 2))}, r"'rewards' has shape \(15, 2\)"),
        ({"terminals": LAST, "next_observations": np.zeros((STEPS, 4))}, "'next_observations' of shape"),
        ({"terminals": LAST, "next_observations": np.zeros((STEPS, 3))}, "not in chronological order: the successor"),
    ],
)
def test_unclear_files_are_refused(tmp_path, arrays, reason):
    with pytest.raises(UserError, match=reason) as error:
        TrajectoryFile(write(tmp_path / "a.h5", **arrays), hint="Run `make data`.")
    assert "a.h5'" in str(error.value) and str(error.value).endswith("Run `make data`.")


def test_unknown_marks_are_named(tmp_path, capsys):
    TrajectoryFile(write(tmp_path / "a.h5", terminals=LAST, my_dones=LAST, episode_return=np.zeros(3)))
    assert "a.h5' has 'my_dones', which may mark ends of episodes but" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["data/demo_{}/{}", "traj_{}/{}", "{1}_{0}"])
def test_layouts_of_other_libraries_are_named(tmp_path, layout):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for episode in range(3):
            for name in ("observations", "actions", "rewards", "dones"):
                file[layout.format(episode, name)] = np.zeros(4)
    with pytest.raises(UserError, match="has no observations, actions, rewards, terminals .* for each episode"):
        TrajectoryFile(tmp_path / "a.h5")
