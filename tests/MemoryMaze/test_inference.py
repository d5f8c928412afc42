"""Evaluating a checkpoint from the command line, pictures, videos, and the page of results."""

import json
import shutil

import imageio.v2 as imageio
import numpy as np
import pytest
import yaml

from MemoryMaze.MemoryMaze_src import inference_mem_maze, pictures, reproduce, train_mem_maze
from MemoryMaze.MemoryMaze_src.spec import SPEC
from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import Episodes
from RATE_model.cli.options import to_yaml
from tests import commands
from tests.memory_maze_runs import TINY, only_run, train, write_data
from tests.small_models import VECTOR, save_small_model, small_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, not evaluated."""
    folder = tmp_path_factory.mktemp("inference")
    flags = "--epochs 1 --online_inference false --last_inference false".split()
    assert train(folder, write_data(folder / "data.h5"), *flags) == 0
    return only_run(folder)


@pytest.fixture
def played(monkeypatch):
    """What would have been played: options. The model finds 3 and more balls, less without memory, others 9."""
    asked = []

    def play(model, **options):
        asked.append(options)
        returns = np.arange(3.0, 3 + options["episodes"]) - 2 * (options["transform_memory"] is not None)
        return Episodes(returns, np.full(len(returns), 1000), returns)

    def player_returns(player, **options):
        asked.append({"player": player} | options)
        return np.full(options["episodes"], 9.0)

    for module in (inference_mem_maze.protocol, reproduce):
        monkeypatch.setattr(module, "play", play)
        monkeypatch.setattr(module, "player_returns", player_returns)
    return asked


def infer(*flags: object) -> None:
    inference_mem_maze.main([*map(str, flags), "--device", "cpu"])


# --- the command ---


def test_flags_reach_the_evaluation(run, played):
    infer("--checkpoint", run)
    infer(
        *("--checkpoint", run, "--size", 11, "--episodes", 20, "--knock_out", "--slide", 3, "--seed", 4),
        *("--episode_timeout", 50, "--target_return", 0.5, "--use_argmax", "--precision", "bf16"),
        *("--rtg_floor", "none", "--workers", 2),
    )
    assert played[0] == dict(
        size=9, episodes=5, steps=None, target_return=18.1, rtg_floor=0.0, greedy=False, seed=0, slide=1,
        transform_memory=None, precision="32", workers=None,
    )  # fmt: skip
    assert played[1] == dict(
        size=11, episodes=20, steps=50, target_return=0.5, rtg_floor=None, greedy=True, seed=4, slide=3,
        transform_memory=knock_out_memory, precision="bf16", workers=2,
    )  # fmt: skip


def test_what_no_flag_says_is_as_the_run_recorded_it(run, played, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    flags = yaml.safe_load((copy / "config.yaml").read_text())
    flags |= {"size": 11, "target_return": 30.0, "rtg_floor": None, "use_argmax": True}
    (copy / "config.yaml").write_text(yaml.safe_dump(flags))
    infer("--checkpoint", copy)
    assert "in mazes of 11x11 cells, asked for 30, the most probable actions" in capsys.readouterr().out
    flags = "--size 13 --target_return 9 --rtg_floor 1 --use_argmax false".split()
    infer("--checkpoint", copy, *flags)
    monkeypatch.chdir(copy / "checkpoints")
    infer("--checkpoint", next(path.name for path in (copy / "checkpoints").glob("step_*")))
    (copy / "config.yaml").unlink()  # its checkpoint holds what it was trained with
    infer("--checkpoint", copy)
    names = ("size", "target_return", "rtg_floor", "greedy")
    recorded = (11, 30, None, True)
    expected = [recorded, (13, 9, 1, False), recorded, (9, 18.1, 0.0, False)]
    assert [tuple(options[name] for name in names) for options in played] == expected


def test_results_are_printed_and_kept(run, played, tmp_path, capsys):
    infer("--checkpoint", run, "--episodes", 3, "--players", "--output", tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["episodes"] == 3 and [*document["results"]] == ["model", "random", "explorer", "planner"]
    error = np.std([3, 4, 5], ddof=1) / np.sqrt(3)
    assert document["results"]["model"] == {
        "mean_return": 4, "returns": [3, 4, 5], "standard_error": pytest.approx(error),
    }  # fmt: skip
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model", "4.00", f"{error:.2f}", "3", "5"] in rows and ["random", "9.00", "0.00", "9", "9"] in rows
    assert played[1] == dict(player="random", size=9, episodes=3, steps=None, workers=None)


def test_pictures_show_the_model_without_its_memory_too(run, played, tmp_path, capsys):
    infer("--checkpoint", run, "--episodes", 2, "--pictures", tmp_path / "pictures")
    assert [options["transform_memory"] for options in played] == [None, knock_out_memory]
    assert imageio.imread(tmp_path / "pictures" / "returns.png").std() > 5
    printed = capsys.readouterr().out
    assert "memory intact" in printed and "memory knocked out" in printed


def test_a_video_is_made(run, played, tmp_path, monkeypatch):
    """Two views of a maze side by side and two lines of text; a second of the last picture."""

    class Maze:
        def __init__(self, size, *, max_steps, render_mode):
            assert (size, max_steps, render_mode) == (9, 7, "rgb_array")
            self.steps = 0

        def reset(self, *, seed):
            self.seed, self.steps = seed, 0
            return np.zeros((3, 64, 64), np.uint8), {}

        def step(self, action):
            self.steps += 1
            return np.zeros((3, 64, 64), np.uint8), 1.0, False, self.steps == 7, {}

        def render(self, view):
            return np.full((64, 64, 3), {"agent": 50, "top": 200}[view], np.uint8)

        def close(self):
            pass

    class Recorded(Actor):
        def __init__(self, *arguments, **options):
            acted.append(options)
            super().__init__(*arguments, **options)

    said, acted = [], []
    monkeypatch.setattr(pictures, "MemoryMazeEnv", Maze)
    monkeypatch.setattr(pictures, "Actor", Recorded)
    monkeypatch.setattr(pictures, "with_caption", lambda views, *lines: said.append(lines) or views)
    flags = "--episodes 5 --episode_timeout 7 --video 2 --seed 3 --knock_out".split()
    infer("--checkpoint", run, *flags, "--pictures", tmp_path)
    assert [(options["seed"], options["transform_memory"]) for options in acted] == 2 * [(3, knock_out_memory)]
    frames = imageio.mimread(tmp_path / "seed_20.mp4")
    assert (tmp_path / "seed_0.mp4").exists() and len(frames) == 7 + 1 + pictures.FRAMES_PER_SECOND
    assert frames[0].shape == (64, 128, 3)
    assert frames[0][:, :60].mean() < 60 < 190 < frames[0][:, 68:].mean()
    assert said[0] == ("balls found: 0", "step 0, segment 1") and said[7] == ("balls found: 7", "step 7, segment 3")


MISTAKES = {
    "no checkpoint": ("", ("--checkpoint is missing",)),
    "no such checkpoint": ("--checkpoint nowhere", ("nowhere", "does not exist")),
    "size": ("--checkpoint RUN --size 8", ("--size 8", "9, 11, 13, 15")),
    "episodes": ("--checkpoint RUN --episodes 0", ("--episodes 0", "at least 1")),
    "more videos than episodes": ("--checkpoint RUN --video 6", ("--video 6", "at most 5")),
    "no steps": ("--checkpoint RUN --episode_timeout 0", ("--episode_timeout 0", "at least 1")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_and_create_nothing(mistake, run, tmp_path, capsys):
    flags, named = MISTAKES[mistake]
    flags = [word.replace("RUN", str(run)) for word in flags.split()]
    message = commands.error_of(capsys, tmp_path, inference_mem_maze.main, flags)
    assert [word for word in named if word not in message] == []


def test_a_model_of_another_environment_is_refused(tmp_path, capsys):
    save_small_model(small_model(spec=VECTOR), tmp_path / "run")
    message = commands.error_of(
        capsys, tmp_path, inference_mem_maze.main, ["--checkpoint", str(tmp_path / "run"), "--device", "cpu"]
    )
    assert "was trained in another environment" in message and SPEC.is_image


# --- the page of results ---


def test_the_page_has_every_run_and_plays_none_twice(played, tmp_path, monkeypatch, capsys):
    data = write_data(tmp_path / "data.h5")

    setting = tmp_path / "tiny.yaml"
    setting.write_text(to_yaml(train_mem_maze.read_config([*TINY, "--data_path", str(data)])))

    def tiny(argv):
        """With the tiny setting in place of the shipped one."""
        return [str(setting) if word.endswith("config_fast.yaml") else word for word in argv]

    def read_config(argv):
        return train_mem_maze.read_config(tiny(argv))

    class Tiny(type(reproduce.STUDY)):
        def run(self, label, seed, options, stop):
            flags = [*tiny(self.command(label, [seed])[1:]), "--output_dir", str(tmp_path / "runs")]
            path = self.check(read_config([*flags, "--resume", "auto"]), seed).directory
            if not (path / "eval" / "final.json").exists():
                assert train_mem_maze.main(flags) == 0
            return path

    study = reproduce.STUDY
    of_tiny = Tiny(study.script, study.settings, study.models, read_config, study.check)
    monkeypatch.setattr(reproduce, "STUDY", of_tiny)
    monkeypatch.setattr(reproduce, "read_config", read_config)
    flags = ["--seeds", "1", "2", "--jobs", "1", "--episodes", "4", "--results_dir", str(tmp_path / "results")]
    reproduce.main(flags)
    models = [options for options in played if "player" not in options]
    conditions = [(options["transform_memory"], options["greedy"]) for options in models]
    of_a_seed = [(control.transform, control.greedy) for control in reproduce.CONTROLS]
    assert of_a_seed.count((knock_out_memory, True)) == 2, "of RATE and of LSTM"
    of_a_seed += [(None, True)] * 3
    assert len(conditions) == 2 * 8 and all(conditions.count(one) == 2 * of_a_seed.count(one) for one in of_a_seed)
    page = (tmp_path / "results" / "memory_maze.md").read_text()
    assert "| RATE | 4.50 ± 0.42 | 3 to 6 | 8 | 7.64 |" in page
    assert "| RATE, memory knocked out | 2.50 ± 0.42 | 1 to 4 | 8 |  |" in page
    for part in ("memory", "memory tokens", "cache"):
        assert f"| RATE | RATE, {part} knocked out | 2.00 ± 0.00 |" in page
    assert "| LSTM | LSTM, memory knocked out | 2.00 ± 0.00 |" in page and "| RATE | MLP | 0.00 ± 0.00 |" in page
    order = ["RATE", "RATE, actions drawn", "LSTM", "LSTM, memory knocked out", "MLP", "random", "explorer"]
    places = [page.index(f"\n| {label} | ") for label in order]
    assert places == sorted(places) and "| MLP | 2 | " in page
    assert "| human |  |  |  | 26.4 |" in page and "the episodes of seeds 1, 2 in 4 mazes" in page
    assert "    python3 MemoryMaze/MemoryMaze_src/reproduce.py --seeds 1 2 --episodes 4\n" in page
    assert "--ckpt_folder reproduce_rate --start_seed 1 --end_seed 2" in page
    assert str(tmp_path) not in page, "no machine's path"
    assert (tmp_path / "results" / "memory_maze.png").exists()
    count = len(played)
    reproduce.main([*flags, "--models", "LSTM"])
    assert len(played) == count, "nothing is played again"
    assert (tmp_path / "results" / "memory_maze.md").read_text().count("\n| RATE |") == page.count("\n| RATE |")
    with pytest.raises(SystemExit, match="2"):
        reproduce.main([*flags, "--models", "LSTM", "--episodes", "3"])
    assert "error: --episodes 3: the page has 4 of RATE" in capsys.readouterr().err
    reproduce.main(["--seeds", "1", *flags[3:]])
    assert "the episodes of seed 1 in 4 mazes" in (tmp_path / "results" / "memory_maze.md").read_text()
