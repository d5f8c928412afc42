"""Pictures of runs, curves by size, and videos of episodes as they are played."""

import numpy as np
import pytest

pytest.importorskip("minigrid")

from MinigridMemory.MinigridMemory_src import environment
from MinigridMemory.MinigridMemory_src.env import SPEC, MinigridMemoryEnv
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT
from MinigridMemory.MinigridMemory_src.evaluate import expert_play
from RATE_model import plots
from RATE_model.acting import evaluation as acting
from RATE_model.acting import video
from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import knock_out_memory
from tests.minigrid_runs import evaluation, play
from tests.small_models import K, small_model


def test_success_is_reported_under_both_caps(tmp_path, monkeypatch):
    drawn = {}

    def draw(lines, path, **rest):
        drawn.update(rest, lines=lines, path=path)

    monkeypatch.setattr(plots, "plot_success_by_length", draw)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 0.5, "train_accuracy": 0.1}\n')
    config = environment.Config()
    ENVIRONMENT.draw_run(tmp_path, None, config, {"validation_loss": 0.1, "Success_rate_l_31": 1.0})
    assert not drawn
    result = {f"FINAL_{name}_l_11": -1.0 for name in ("Expert_success_rate", "LifeTimeMean_r_0.96")}
    for size in (11, 91):
        result |= {f"FINAL_Success_rate_l_{size}": size / 100, f"FINAL_Success_rate_l_{size}_expert_cap": 1.0}
    ENVIRONMENT.draw_run(tmp_path, None, config, result)
    wide, capped = {11: 1.0, 91: 1.0}, {11: 0.11, 91: 0.91}
    cap = config.task.episode_timeout
    assert drawn.pop("lines") == {"success, expert's cap": wide, f"success, {cap} steps": capped}
    assert drawn == {
        "path": tmp_path / "plots" / "success_by_size.png", "title": tmp_path.name, "xlabel": "size of the maze",
        "trained": None, "chance": 0.5,
    }  # fmt: skip


def test_pictures_match_the_evaluation(tmp_path, monkeypatch):
    """Played episodes are reused."""
    asked, drawn = [], {}

    def fake(environment, evaluation, acting, twins=False):
        asked.append(acting.transform_memory)
        return {size: expert_play(size, evaluation.episodes) for size in evaluation.cases}

    def draw(lines, path, **rest):
        drawn.update(rest, lines=lines)
        return path

    monkeypatch.setattr(type(ENVIRONMENT), "play", fake)
    monkeypatch.setattr(plots, "plot_success_by_length", draw)
    of_model = evaluation(small_model("TrXL", spec=SPEC), [9, 91], episodes=5, random_length=False)
    of_model.play()
    assert ENVIRONMENT.draw(tmp_path, of_model) == [tmp_path / "success_by_size.png"]
    wide, capped = {9: 1.0, 91: 1.0}, {9: 1.0, 91: 0.4}
    assert drawn["lines"] == {
        f"memory {state}, {cap}": rate
        for state in ("intact", "knocked out")
        for cap, rate in (("expert's cap", wide), ("96 steps", capped))
    }
    assert asked == [None, knock_out_memory]
    assert drawn["xlabel"] == "size of the maze"
    assert drawn["published"] == {"expert, 96 steps": {9: 1.0, 91: 0.0}}, "no fixed corridor of 91 is met"
    ENVIRONMENT.draw(tmp_path, evaluation(small_model("DT", spec=SPEC), [9], episodes=5))
    assert [*drawn["lines"]] == ["no memory, expert's cap", "no memory, 96 steps"]


@pytest.mark.parametrize("mode", ["RATE", "DT"])
def test_video_shows_the_played_episode(mode, tmp_path, monkeypatch):
    """Frame by frame: the maze after each played action, and the caption below it."""
    written, said = {}, []
    monkeypatch.setattr(video, "write_video", lambda frames, path, *, fps: written.update({path: [*frames]}) or path)
    monkeypatch.setattr(environment, "with_caption", lambda frame, *lines: said.append(lines) or frame)
    model = small_model(mode, spec=SPEC, seed=3)
    paths = video.record_videos(evaluation(model, [9], slide=100), tmp_path, 2)
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
    assert of_first[0] == (f"remember the {maze.cue}", "step 0, segment 1, return 0")
    assert of_first[K] == (f"remember the {maze.cue}", f"step {K}, segment {K // segment + 1}, return 0")
    assert of_first[-1][1] == f"step {lengths[0]}, segment {lengths[0] // segment + 1}, return 0, over"


def test_agent_in_a_video_acts_as_in_evaluation(tmp_path, monkeypatch):
    made = []

    class Recorded(Actor):
        def __init__(self, model, *arguments, **options) -> None:
            made.append((*arguments, options))
            super().__init__(model, *arguments, **options)

    monkeypatch.setattr(acting, "Actor", Recorded)
    monkeypatch.setattr(video, "write_video", lambda frames, path, *, fps: [*frames] and path)
    for slide in (2, 100):
        of_model = evaluation(small_model("DT", spec=SPEC), [7], episodes=1, greedy=False, slide=slide, seed=5)
        video.record_videos(of_model, tmp_path, 1)
        of_model.play()
        assert made.pop() == made.pop() and not made


def test_a_run_is_drawn_with_curves(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 0.5, "train_accuracy": 0.1}\n')
    ENVIRONMENT.draw_run(tmp_path, None, environment.Config(), {})
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curves.png"]
