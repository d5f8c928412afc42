"""Pictures of runs, curves by size, and videos of episodes as they are played."""

import numpy as np
import pytest

pytest.importorskip("minigrid")

from MinigridMemory.MinigridMemory_src import pictures
from MinigridMemory.MinigridMemory_src.env import MinigridMemoryEnv
from MinigridMemory.MinigridMemory_src.evaluate import evaluation_seeds, expert_play, play
from MinigridMemory.MinigridMemory_src.pictures import draw_run, knock_out, record_videos, success_curve
from MinigridMemory.MinigridMemory_src.spec import SPEC
from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import knock_out_memory
from tests.small_models import K, small_model


def test_a_run_gets_its_curves_and_its_success_under_either_cap(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "plot_success_by_length", lambda lines, path, **rest: drawn.update(lines) or path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 0.5, "train_accuracy": 0.1}\n')
    assert [path.name for path in draw_run(tmp_path, {"validation_loss": 0.1, "Success_rate_l_31": 1.0})] == [
        "curves.png"
    ]
    result = {f"FINAL_{name}_l_11": -1.0 for name in ("Expert_success_rate", "LifeTimeMean_r_0.96")}
    for size in (11, 91):
        result |= {f"FINAL_Success_rate_l_{size}": size / 100, f"FINAL_Success_rate_l_{size}_expert_cap": 1.0}
    paths = draw_run(tmp_path, result)
    assert paths == [tmp_path / "plots" / name for name in ("curves.png", "success_by_size.png")]
    assert drawn == {"success, expert's cap": {11: 1.0, 91: 1.0}, "success, 96 steps": {11: 0.11, 91: 0.91}}


def test_what_is_drawn_is_what_the_evaluation_gives(tmp_path, monkeypatch):
    """Episodes that were played already are not played again."""
    asked = []

    def fake(model, sizes, *, transform_memory, episodes):
        assert not model.training
        asked.append(transform_memory)
        return {size: expert_play(size, episodes) for size in sizes}

    monkeypatch.setattr(pictures, "play", fake)
    model = small_model("TrXL", spec=SPEC).train()
    rates = knock_out(model, [9, 91], episodes=5)
    wide, capped = {9: 1.0, 91: 1.0}, {9: 1.0, 91: 0.4}
    assert rates == {
        f"memory {state}, {cap}": rate
        for state in ("intact", "knocked out")
        for cap, rate in (("expert's cap", wide), ("96 steps", capped))
    }
    assert asked == [None, knock_out_memory] and model.training
    asked.clear()
    assert knock_out(model, [9], intact=fake(model.eval(), [9], transform_memory=None, episodes=5), episodes=5)
    assert asked == [None, knock_out_memory]
    assert [*knock_out(small_model("DT", spec=SPEC), [9], episodes=5)] == [
        "no memory, expert's cap",
        "no memory, 96 steps",
    ]
    drawn = {}
    monkeypatch.setattr(pictures, "plot_success_by_length", lambda lines, path, **rest: drawn.update(rest) or path)
    assert success_curve(rates, tmp_path / "curve.png", episodes=5, random_length=False) == tmp_path / "curve.png"
    assert drawn["xlabel"] == "size of the maze"
    assert drawn["published"] == {"expert, 96 steps": {9: 1.0, 91: 0.0}}, "no fixed corridor of 91 is met"


@pytest.mark.parametrize("mode", ["RATE", "DT"])
def test_a_video_shows_the_episode_that_is_played(mode, tmp_path, monkeypatch):
    """Frame by frame: the maze as the played actions leave it, and what is said below it."""
    written, said = {}, []
    monkeypatch.setattr(pictures, "write_video", lambda frames, path, *, fps: written.update({path: [*frames]}) or path)
    monkeypatch.setattr(pictures, "with_caption", lambda frame, *lines: said.append(lines) or frame)
    model = small_model(mode, spec=SPEC, seed=3)
    paths = record_videos(model, 9, evaluation_seeds(2).tolist(), tmp_path, target_return=0.96, slide=100)
    assert paths == [tmp_path / f"size_9_seed_{seed}.mp4" for seed in (0, 1)] == [*written]
    lengths = play(model, [9], episodes=2, slide=100)[9].lengths
    assert [len(frames) - 1 - 8 for frames in written.values()] == lengths.tolist(), (
        "the first view, a second at the end"
    )
    maze = MinigridMemoryEnv(9, render_mode="rgb_array")
    maze.reset(seed=0)
    first = written[paths[0]][0]
    shown = maze.render()
    np.testing.assert_array_equal(first[: shown.shape[0], : shown.shape[1]], shown)
    assert all(frame.shape == first.shape and frame.dtype == np.uint8 for frame in written[paths[0]])
    segment = model.memory.config.context_length
    of_first = said[: lengths[0] + 1]
    assert of_first[0] == (f"remember the {maze.cue}", "step 0, segment 1")
    assert of_first[K] == (f"remember the {maze.cue}", f"step {K}, segment {K // segment + 1}")
    assert of_first[-1][1].startswith(f"step {lengths[0]}, ") and of_first[-1][1].endswith(": failure")


def test_who_acts_in_a_video_is_told_what_acts_in_play(tmp_path, monkeypatch):
    made = []

    class Recorded(Actor):
        def __init__(self, model, *arguments, **options) -> None:
            made.append((*arguments, options))
            super().__init__(model, *arguments, **options)

    monkeypatch.setattr(pictures, "Actor", Recorded)
    monkeypatch.setattr(pictures, "write_video", lambda frames, path, *, fps: path)
    options = dict(greedy=False, transform_memory=knock_out_memory, precision="bf16")
    for slide in (2, 100):
        model = small_model("DT", spec=SPEC)
        record_videos(model, 7, [5], tmp_path, target_return=0.5, slide=slide, **options)
        expected = options | {"seed": 5, "slide": slide}
        assert made.pop() == (1, 0.5, expected)
