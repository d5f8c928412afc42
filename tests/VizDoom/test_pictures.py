"""Pictures of runs, returns by colour with and without memory, and frames of videos."""

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from RATE_model import plots
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import Episodes
from RATE_model.environments.contract import Evaluation
from tests.small_models import small_model
from VizDoom.VizDoom_src import pictures
from VizDoom.VizDoom_src.env import SPEC
from VizDoom.VizDoom_src.environment import ENVIRONMENT, Config, Games, Task
from VizDoom.VizDoom_src.evaluate import Played
from VizDoom.VizDoom_src.pictures import returns_by_colour
from VizDoom.VizDoom_src.scenario import Scenario

PLAYED = Played(
    Episodes(np.array([1.0, 3.0, 5.0, 5.0]), np.full(4, 9), np.zeros(4)), np.array([True, True, False, False])
)


def test_run_has_curves_and_returns_by_colour(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "plot_bars", lambda groups, path, **rest: drawn.update(groups, path=path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 0.5, "train_accuracy": 0.1}\n')
    ENVIRONMENT.draw_run(tmp_path, None, Config(), {"validation_loss": 0.1})
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curves.png"] and not drawn
    result = {"ReturnsMean_56.5": 9.0}
    for colour, mean in (("red", 3.0), ("green", 15.0)):
        result |= {f"ReturnsMean_{colour}_56.5": mean, f"ReturnsSEM_{colour}_56.5": mean / 10}
    ENVIRONMENT.draw_run(tmp_path, None, Config(), result)
    assert drawn.pop("path") == tmp_path / "plots" / "returns_by_colour.png"
    assert drawn == {"RATE": {"red": (3.0, 0.3), "green": (15.0, 1.5)}}
    drawn.clear()
    ENVIRONMENT.draw_run(tmp_path, None, Config(task=Task(target_return=10)), result)
    assert not drawn, "nothing was asked for this return"


def test_curves_show_both_colours(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(plots, "plot_curves", lambda files, path, shown: names.extend(shown) or path)
    ENVIRONMENT.draw_run(tmp_path, None, Config(), {})
    assert names == ["train_loss", "train_accuracy", "ReturnsMean_red_56.5", "ReturnsMean_green_56.5"]


def test_bars_are_means_with_their_errors(tmp_path):
    assert pictures.bars_of(PLAYED) == {"red": (2.0, 1.0), "green": (5.0, 0.0)}
    path = returns_by_colour({"model": pictures.bars_of(PLAYED)}, tmp_path / "bars.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_memory_controls_are_drawn_if_possible(tmp_path, monkeypatch):
    """Episodes that the evaluation has played are not played again."""
    asked, drawn = [], []

    def play(self, evaluation, acting, *, twins=False):
        asked.append((acting.transform_memory, twins))
        count = 8 if twins else 4
        return {None: Episodes(np.arange(1.0, count + 1), np.full(count, 9), np.zeros(count))}

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    monkeypatch.setattr(pictures, "plot_bars", lambda groups, path, **rest: drawn.append(groups) or path)

    def draw(mode: str, variant: str):
        del asked[:]
        options = Games(variant=variant, baselines=False)
        evaluation = Evaluation(ENVIRONMENT, small_model(mode, spec=SPEC), options, (20.0,), episodes=4)
        evaluation.play()
        ENVIRONMENT.draw(tmp_path, evaluation)
        return drawn.pop()

    assert list(draw("TrXL", "published")) == ["memory intact", "memory knocked out"]
    assert asked == [(None, False), (knock_out_memory, False)]
    bars = draw("TrXL", "clear")
    assert list(bars) == ["memory intact", "memory knocked out", "memories of twins exchanged"]
    assert asked[:2] == [(None, False), (knock_out_memory, False)] and asked[2][1] and len(asked) == 3
    assert bars["memory intact"]["red"][0] == 1.5, "red ones first"
    assert bars["memories of twins exchanged"]["red"][0] == 4, "of twins the first"
    assert list(draw("DT", "clear")) == ["no memory"]


@pytest.mark.parametrize("variant", ["published", "clear"])
def test_video_caption_names_the_colour(variant, monkeypatch, game):
    """The player's view, its health, the colour; at its death no picture and no health."""
    said = []
    monkeypatch.setattr(pictures, "with_caption", lambda frame, *lines: said.append(lines) or frame)
    options = Games(variant=variant, episode_timeout=300)
    env = game(Scenario(variant), max_steps=300, render_mode="rgb_array")
    for seed, colour, drawn in ((2, "red", [235, 30, 30]), (0, "green", [40, 220, 60])):
        given = ENVIRONMENT.reset_options(np.array([seed]), options)
        observation, info = env.reset(
            seed=seed, options={name: bool(value[0]) for name, value in given.items()} or None
        )
        picture = ENVIRONMENT.frame(env, observation, ["step 0"])
        assert picture.shape == (180 + 24, 320, 3) and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture[:180], env.render())
        bar = (picture[192, 36:316] == drawn).all(axis=1)
        assert bar.mean() == pytest.approx(info["health"] / 100, abs=0.01) and bar[: int(bar.sum())].all()
        assert said.pop() == (f"remember {colour}; health 92", "step 0") and picture[190, 10].tolist() == drawn
    dead = False
    while not dead:
        observation, _, dead, truncated, _ = env.step(0)
        assert not truncated
    picture = ENVIRONMENT.frame(env, observation, ["over"])
    assert said.pop() == ("remember green; health 0", "over") and not picture[:180].any() and picture[190, 10].any()
