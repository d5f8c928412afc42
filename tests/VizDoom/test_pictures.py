"""Pictures of runs, returns by colour with and without memory, and videos of episodes as they are played."""

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import Episodes
from tests.small_models import K, small_model
from VizDoom.VizDoom_src import pictures
from VizDoom.VizDoom_src.evaluate import Played, evaluation_seeds, play
from VizDoom.VizDoom_src.pictures import draw_run, knock_out, record_videos, returns_by_colour
from VizDoom.VizDoom_src.scenario import Scenario
from VizDoom.VizDoom_src.spec import SPEC

PLAYED = Played(
    Episodes(np.array([1.0, 3.0, 5.0, 5.0]), np.full(4, 9), np.zeros(4)), np.array([True, True, False, False])
)


def test_a_run_gets_its_curves_and_its_returns_by_colour(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "plot_bars", lambda groups, path, **rest: drawn.update(groups) or path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 0.5, "train_accuracy": 0.1}\n')
    assert [path.name for path in draw_run(tmp_path, {"validation_loss": 0.1}, target_return=56.5)] == ["curves.png"]
    result = {"ReturnsMean_56.5": 9.0}
    for colour, mean in (("red", 3.0), ("green", 15.0)):
        result |= {f"ReturnsMean_{colour}_56.5": mean, f"ReturnsSEM_{colour}_56.5": mean / 10}
    paths = draw_run(tmp_path, result, target_return=56.5)
    assert paths == [tmp_path / "plots" / name for name in ("curves.png", "returns_by_colour.png")]
    assert drawn == {tmp_path.name: {"red": (3.0, 0.3), "green": (15.0, 1.5)}}
    assert draw_run(tmp_path, result, target_return=10)[1:] == [], "nothing was asked for this return"


def test_curves_show_both_colours(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(pictures, "plot_curves", lambda files, path, shown: names.extend(shown) or path)
    draw_run(tmp_path, {}, target_return=56.5)
    assert names == ["train_loss", "train_accuracy", "ReturnsMean_red_56.5", "ReturnsMean_green_56.5"]


def test_bars_are_means_with_their_errors(tmp_path):
    assert pictures.bars_of(PLAYED) == {"red": (2.0, 1.0), "green": (5.0, 0.0)}
    path = returns_by_colour({"model": pictures.bars_of(PLAYED)}, tmp_path / "bars.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_memory_is_knocked_out_and_exchanged_where_it_can_be(monkeypatch):
    """Episodes that were played already are not played again."""
    asked = []

    def fake(model, *, transform_memory, twins=False, **acting):
        assert not model.training
        asked.append((transform_memory, twins, acting))
        return PLAYED

    monkeypatch.setattr(pictures, "play", fake)
    model = small_model("TrXL", spec=SPEC).train()
    acting = {"episodes": 4, "scenario": Scenario()}
    assert list(knock_out(model, **acting)) == ["memory intact", "memory knocked out"] and model.training
    assert asked == [(None, False, acting), (knock_out_memory, False, acting)]
    del asked[:]
    known = Played(PLAYED.episodes, PLAYED.is_red)
    assert knock_out(model, known=known, **acting)["memory intact"] is known and len(asked) == 1
    del asked[:]
    found = knock_out(model, known=known, known_with=knock_out_memory, **acting)
    assert found["memory knocked out"] is known and asked == [(None, False, acting)]
    del asked[:]
    acting["scenario"] = Scenario("clear")
    found = knock_out(model, known=known, **acting)
    assert list(found) == ["memory intact", "memory knocked out", "memories of twins exchanged"]
    assert asked[0] == (knock_out_memory, False, acting) and asked[1][1:] == (True, acting)
    assert list(knock_out(small_model("DT", spec=SPEC), **acting)) == ["no memory"]


@pytest.mark.parametrize(("mode", "variant"), [("RATE", "published"), ("DT", "clear")])
def test_a_video_shows_the_episode_that_is_played(mode, variant, tmp_path, monkeypatch, game, engines):
    """Frame by frame: what the player sees, and what is drawn and said below it."""
    written, said = {}, []
    monkeypatch.setattr(
        pictures, "write_video", lambda frames, path, *, fps, quality: written.update({path: [*frames]}) or path
    )
    monkeypatch.setattr(pictures, "with_caption", lambda frame, *lines: said.append(lines) or frame)
    model, scenario = small_model(mode, spec=SPEC, seed=3), Scenario(variant)
    seeds, is_red = evaluation_seeds(2)
    options = dict(target_return=20.0, scenario=scenario, max_steps=7, slide=100)
    paths = record_videos(model, seeds.tolist(), is_red.tolist(), tmp_path, **options)
    assert paths == [tmp_path / "red_seed_2.mp4", tmp_path / "green_seed_0.mp4"] == [*written] and not engines()
    env = game(scenario, max_steps=7, render_mode="rgb_array")
    _, info = env.reset(seed=2, options={"is_red": True} if variant == "clear" else None)
    first = written[paths[0]][0]
    assert first.shape == (180 + 24, 320, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first[:180], env.render())
    assert first[190, 10].tolist() == [235, 30, 30] and written[paths[1]][0][190, 10].tolist() == [40, 220, 60]
    bar = (first[192, 36:316] == [235, 30, 30]).all(axis=1)
    assert bar.mean() == pytest.approx(info["health"] / 100, abs=0.01) and bar[: int(bar.sum())].all()
    returns = play(model, episodes=2, **options).episodes.returns
    assert len(written[paths[0]]) == 8 + pictures._OUTCOME_FRAMES
    of_first, of_second = said[:8], said[8:]
    assert of_first[0] == ("remember red; health 92, reward 0.00", "return 0.00, step 0, segment 1")
    segment = model.memory.config.context_length
    assert of_first[K][1].endswith(f"step {K}, segment {K // segment + 1}")
    assert of_first[-1][1] == f"return {returns[0]:.2f}, step 7, segment {7 // segment + 1}: still alive"
    assert (
        of_second[0][0] == "remember green; health 92, reward 0.00" and f"return {returns[1]:.2f}," in of_second[-1][1]
    )
    assert of_first[1][0].endswith(", reward 0.02")
    assert (written[paths[0]][-1] == written[paths[0]][7]).all()


def test_death_is_shown(tmp_path, monkeypatch):
    """A black picture, no health, and how it ended."""
    frames, said = [], []
    monkeypatch.setattr(pictures, "write_video", lambda shown, path, **rest: frames.extend(shown) or path)
    monkeypatch.setattr(pictures, "with_caption", lambda frame, *lines: said.append(lines) or frame)

    class Turning(Actor):
        def act(self, observations, rewards=None):
            return np.zeros(1, dtype=np.int64)

    monkeypatch.setattr(pictures, "Actor", Turning)
    record_videos(small_model("DT", spec=SPEC), [0], [False], tmp_path, target_return=1.0)
    assert said[-1] == ("remember green; health 0, reward 0.02", "return 3.84, step 192, segment 17: dead")
    assert not frames[-1][:180].any() and frames[-1][190, 10].any()


def test_who_acts_in_a_video_is_told_what_acts_in_play(tmp_path, monkeypatch):
    made = []

    class Recorded(Actor):
        def __init__(self, model, *arguments, **options) -> None:
            made.append((*arguments, options))
            super().__init__(model, *arguments, **options)

    monkeypatch.setattr(pictures, "Actor", Recorded)
    monkeypatch.setattr(pictures, "write_video", lambda frames, path, **rest: path)
    options = dict(reset_target=True, greedy=False, transform_memory=knock_out_memory, precision="bf16")
    for slide in (2, 100):
        model = small_model("DT", spec=SPEC)
        record_videos(model, [5], [False], tmp_path, target_return=0.5, slide=slide, **options)
        assert made.pop() == (1, 0.5, options | {"seed": 5, "slide": slide})
