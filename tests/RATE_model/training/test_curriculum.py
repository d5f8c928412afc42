"""When stages end."""

import json

import pytest
import torch

from RATE_model.errors import UserError
from RATE_model.training.curriculum import AdaptiveStages, FixedStages, parse_stages


def adaptive(stages=(1, 2), **changes) -> AdaptiveStages:
    return AdaptiveStages(stages, **(dict(metric="right", streak=3, anneal_batches=4, max_batches=100) | changes))


def batches(curriculum, *values: float) -> None:
    for value in values:
        curriculum.after_batch({"right": torch.tensor(value), "other": torch.tensor(0.0)})


def test_fixed_stages_last_their_epochs():
    curriculum = FixedStages([1, 2, 4], epochs=[3, 1, 2])
    seen = []
    while not curriculum.finished:
        seen.append(curriculum.segments)
        batches(curriculum, 1.0, 1.0, 1.0)
        assert not curriculum.annealing
        curriculum.after_epoch()
    assert seen == [1, 1, 1, 2, 4, 4]
    assert curriculum.segments == 4  # of the last validation


def test_a_stage_is_solved_by_a_streak_of_perfect_batches():
    curriculum = adaptive()
    batches(curriculum, 1, 1, 0.99, 1, 1)
    assert curriculum.segments == 1
    batches(curriculum, 1)
    assert curriculum.segments == 2 and not curriculum.annealing
    batches(curriculum, 1, 1)
    assert not curriculum.annealing  # the streak restarts in every stage
    batches(curriculum, 1)
    assert curriculum.annealing and not curriculum.finished and curriculum.segments == 2


def test_annealing_lasts_a_fixed_number_of_batches():
    curriculum = adaptive(stages=[3])
    batches(curriculum, 1, 1, 1)
    for left in (3, 2, 1, 0):
        assert not curriculum.finished
        batches(curriculum, 0.0)
        curriculum.after_epoch()
        assert curriculum.anneal_left == left and curriculum.segments == 3
    assert curriculum.finished and curriculum.solved


def test_too_many_batches_end_a_stage_unsolved():
    curriculum = adaptive(max_batches=5)
    batches(curriculum, 0, 1, 1, 0)
    assert curriculum.segments == 1 and curriculum.solved
    batches(curriculum, 1)
    assert curriculum.segments == 2 and not curriculum.solved
    batches(curriculum, 0, 0, 0, 0)
    assert not curriculum.annealing
    batches(curriculum, 0)
    assert curriculum.annealing
    batches(curriculum, 1, 1, 1, 1)
    assert curriculum.finished and not curriculum.solved


def test_a_stage_solved_by_its_last_batch():
    curriculum = adaptive(max_batches=4)
    batches(curriculum, 0, 1, 1, 1)
    assert curriculum.segments == 2 and curriculum.solved
    batches(curriculum, 0, 1, 1)
    assert not curriculum.annealing
    batches(curriculum, 1)
    assert curriculum.annealing and curriculum.solved


def test_a_limit_on_all_batches_skips_to_annealing():
    curriculum = adaptive(stages=(1, 2, 5), total_limit=6)
    batches(curriculum, 1, 1, 1, 0, 0)
    assert curriculum.segments == 2 and curriculum.solved
    batches(curriculum, 1)
    assert curriculum.annealing and curriculum.segments == 5 and not curriculum.solved
    batches(curriculum, 1, 1, 1, 1)
    assert curriculum.finished and not curriculum.solved


def test_the_last_batch_of_all_may_solve_the_last_stage():
    curriculum = adaptive(total_limit=6)
    batches(curriculum, *[1] * 6)
    assert curriculum.annealing and curriculum.solved


def play(curriculum, values: list[float]) -> list[tuple]:
    """The curriculum's course over epochs of three batches."""
    course = []
    for number, value in enumerate(values, start=1):
        batches(curriculum, value)
        if number % 3 == 0:
            curriculum.after_epoch()
        course.append((curriculum.segments, curriculum.annealing, curriculum.finished))
        if curriculum.finished:
            break
    return course


VALUES = [0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedStages([1, 2, 3], epochs=[2, 1, 2]),
        lambda: adaptive(stages=[1, 2, 3], max_batches=5),
        lambda: adaptive(stages=[1, 2]),
        lambda: adaptive(stages=[1, 2, 3], total_limit=8),
    ],
)
def test_a_curriculum_continues_from_its_state_after_any_batch(make):
    whole = play(make(), VALUES)
    assert len({segments for segments, _, _ in whole}) > 1 and whole[-1][2]
    for cut in range(3, len(whole), 3):  # at the edges of epochs, so that `play` counts them alike
        first = make()
        play(first, VALUES[:cut])
        state = json.loads(json.dumps(first.state_dict()))
        second = make()
        second.load_state_dict(state)
        assert play(second, VALUES[cut:]) == whole[cut:]
        assert second.state_dict() != make().state_dict()


def test_stages_are_parsed():
    assert (
        parse_stages(["1:40", "5:12"], 9, flag="stages") == [(1, 40), (5, 12)] and parse_stages([], 1, flag="x") == []
    )


@pytest.mark.parametrize("texts", [["1"], ["1:"], ["0:4"], ["2:0"], ["-1:3"], ["1:2:3"], ["4:1", "4:1"], ["9:1"]])
def test_invalid_stages_are_an_error(texts):
    with pytest.raises(UserError, match=f"--stages .*{texts[0]}"):
        parse_stages(texts, 9, flag="stages")
