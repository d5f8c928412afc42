"""Evaluating a checkpoint from the command line, pictures, videos, and the page of results."""

import dataclasses
import json

import imageio.v2 as imageio
import numpy as np
import pytest

from MemoryMaze.MemoryMaze_src import environment, inference_mem_maze, reproduce, train_mem_maze
from MemoryMaze.MemoryMaze_src.env import SPEC
from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import Episodes
from RATE_model.acting.video import LINE
from RATE_model.cli.options import to_yaml
from RATE_model.pages.study import Study
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
    """Recorded options of evaluations. The model finds 3 or more balls, fewer without memory, other players 9."""
    asked = []

    def play(self, evaluation, acting, *, twins=False):
        options = dataclasses.asdict(evaluation.options)
        asked.append(options | {"episodes": evaluation.episodes} | vars(acting))
        returns = np.arange(3.0, 3 + evaluation.episodes) - 2 * (acting.transform_memory is not None)
        return {None: Episodes(returns, np.full(len(returns), 1000), returns)}

    def player_returns(player, **options):
        asked.append({"player": player} | options)
        return np.full(options["episodes"], 9.0)

    monkeypatch.setattr(type(ENVIRONMENT), "play", play)
    for module in (environment.protocol, reproduce):
        monkeypatch.setattr(module, "player_returns", player_returns)
    return asked


def infer(*flags: object) -> None:
    inference_mem_maze.main([*map(str, flags), "--device", "cpu"])


# --- the command ---


def test_results_are_printed_and_saved(run, played, tmp_path, capsys):
    infer("--checkpoint", run, "--episodes", 3, "--players", "--output", tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["episodes"] == 3 and [*document["results"]] == ["18.1", "random", "explorer", "planner"]
    error = np.std([3, 4, 5], ddof=1) / np.sqrt(3)
    assert document["results"]["18.1"] == pytest.approx(
        {"mean_return": 4, "standard_error": error, "min_return": 3, "max_return": 5}
    )
    printed = capsys.readouterr().out
    assert "3 episodes, in mazes of 9x9 cells, sampled actions, target return 18.1" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["18.1", "4.00", f"{error:.2f}", "3.00", "5.00"] in rows
    assert ["random", "9.00", "0.00", "9.00", "9.00"] in rows
    assert played[1] == dict(player="random", size=9, episodes=3, steps=7, workers=None)


def test_pictures_include_knocked_out_memory(run, played, tmp_path):
    infer("--checkpoint", run, "--episodes", 2, "--players", "--pictures", tmp_path / "pictures")
    assert [options["transform_memory"] for options in played if "player" not in options] == [None, knock_out_memory]
    assert imageio.imread(tmp_path / "pictures" / "returns.png").std() > 5


def test_a_picture_of_a_video_has_both_views(monkeypatch):
    """The agent's view beside the maze from above, with a caption below."""
    maze = environment.MemoryMazeEnv(render_mode="rgb_array")
    views = {"agent": 50, "top": 200}
    monkeypatch.setattr(maze, "render", lambda view: np.full((64, 64, 3), views[view], np.uint8))
    picture = ENVIRONMENT.frame(maze, np.zeros((3, 64, 64), np.uint8), ["said"])
    assert picture.shape == (64 + LINE, 128, 3)
    assert (picture[:64, :64] == 50).all() and (picture[:64, 64:] == 200).all() and picture[64:].max() > 200


MISTAKES = {
    "no checkpoint": ("", ("--checkpoint is missing",)),
    "no such checkpoint": ("--checkpoint nowhere", ("nowhere", "does not exist")),
    "size": ("--checkpoint RUN --size 8", ("--size 8", "9, 11, 13, 15")),
    "episodes": ("--checkpoint RUN --episodes 0", ("--episodes 0", "at least 1")),
    "no steps": ("--checkpoint RUN --episode_timeout 0", ("--episode_timeout 0", "at least 1")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, run, tmp_path, capsys):
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


def test_page_has_every_run_and_its_controls(played, tmp_path, monkeypatch, capsys):
    data = write_data(tmp_path / "data.h5")

    setting = tmp_path / "tiny.yaml"
    setting.write_text(to_yaml(ENVIRONMENT.read_config([*TINY, "--data_path", str(data)])))

    def tiny(argv):
        """With the tiny setting instead of the shipped one."""
        return [str(setting) if word.endswith("config_fast.yaml") else word for word in argv]

    class Tiny(Study):
        def setting(self):
            return self.read_config(tiny(self.settings))

        def run(self, label, seed, options, stop):
            flags = [*tiny(self.command(label, [seed])[1:]), "--output_dir", str(tmp_path / "runs")]
            path = self.check(self.read_config([*flags, "--resume", "auto"]), seed).directory
            if not (path / "eval" / "final.json").exists():
                assert train_mem_maze.main(flags) == 0
            return path

    study = reproduce.STUDIES["fast"]
    of_tiny = Tiny(study.script, study.settings, study.models, study.read_config, study.check)
    monkeypatch.setitem(reproduce.STUDIES, "fast", of_tiny)
    flags = ["--seeds", "1", "2", "--jobs", "1", "--episodes", "4", "--results_dir", str(tmp_path / "results")]
    reproduce.main(flags)
    models = [options for options in played if "player" not in options]
    conditions = [(options["transform_memory"], options["greedy"]) for options in models]
    of_a_seed = [
        (one.get("transform"), one.get("options", {}).get("use_argmax", True)) for one in reproduce.CONTROLS.values()
    ]
    assert of_a_seed.count((knock_out_memory, True)) == 2, "of RATE and of LSTM"
    of_a_seed += [(None, True)] * len(study.models)
    assert len(conditions) == 2 * len(of_a_seed) and all(
        conditions.count(one) == 2 * of_a_seed.count(one) for one in of_a_seed
    )
    page = (tmp_path / "results" / "memory_maze.md").read_text()
    assert "| RATE | 4.50 ± 0.65 | 3 to 6 | 8 | 7.64 |" in page
    assert "| RATE, memory knocked out | 2.50 ± 0.65 | 1 to 4 | 8 |  |" in page
    for part in ("memory", "memory tokens", "cache"):
        assert f"| RATE | RATE, {part} knocked out | 2.00 ± 0.00 | 8 |" in page
    assert "| LSTM | LSTM, memory knocked out | 2.00 ± 0.00 | 8 |" in page
    for other in ("MLP", "DT", "RATE, without memory"):
        assert f"| RATE | {other} | 0.00 ± 0.00 | 8 |" in page
    order = ["RATE", "RATE, actions drawn", "RATE, without memory", "LSTM", "LSTM, memory knocked out", "MLP", "DT"]
    order += ["random", "explorer"]
    places = [page.index(f"\n| {label} | ") for label in order]
    assert places == sorted(places) and "| MLP | 2 | " in page
    assert "| human |  |  |  | 26.4 |" in page and "standard error over seeds and mazes: 4 mazes" in page
    assert "    python3 MemoryMaze/MemoryMaze_src/reproduce.py --seeds 1 2 --episodes 4\n" in page
    assert "--ckpt_folder reproduce_rate --start_seed 1 --end_seed 2" in page
    assert str(tmp_path) not in page, "no machine's path"
    assert (tmp_path / "results" / "memory_maze.png").exists()
    count, table = len(played), tmp_path / "results" / "memory_maze.json"
    document = json.loads(table.read_text())
    table.write_text(json.dumps(document | {"LSTM, taken off the page": document["LSTM"]}))
    capsys.readouterr()
    reproduce.main([*flags, "--models", "LSTM"])
    assert "note: 'LSTM, taken off the page' is not on this page any more" in capsys.readouterr().out
    assert list(json.loads(table.read_text())) == list(document)
    assert len(played) == count + 4, "two seeds of LSTM, and with memory knocked out"
    assert (tmp_path / "results" / "memory_maze.md").read_text().count("\n| RATE |") == page.count("\n| RATE |")
    with pytest.raises(SystemExit, match="2"):
        reproduce.main([*flags, "--models", "LSTM", "--episodes", "3"])
    assert "error: --episodes 3: the page has 4 of RATE" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(["--seeds", "1", *flags[3:]])
    assert "has seeds 1 2 of RATE, and they would be lost" in capsys.readouterr().err
    assert (tmp_path / "results" / "memory_maze.md").read_text() == page


def test_settings_have_their_own_runs_and_pages():
    pages = [reproduce.Page(reproduce.Options(setting=setting)) for setting in reproduce.STUDIES]
    assert [page.name for page in pages] == ["memory_maze", "memory_maze_more_data"]
    folders = [page.study.folder(label) for page in pages for label in page.study.models]
    assert len(set(folders)) == len(folders)
    of_rate = [page.study.read_config(page.study.command("RATE", [1])[1:]) for page in pages]
    assert [config.data.episodes for config in of_rate] == [200, 600]


def test_commands_name_the_models_of_every_range_of_seeds():
    trained = {"RATE": [1, 2, 3], "LSTM": [3, 1], "DT": [1, 2, 3]}
    assert reproduce.by_seeds(trained) == {(1, 2, 3): ["RATE", "DT"], (1,): ["LSTM"], (3,): ["LSTM"]}


def test_differences_are_of_the_episodes_that_both_played():
    rate = {"seeds": [1, 2, 3], "returns": [[5.0, 6.0], [1.0, 1.0], [9.0, 8.0]]}
    other = {"seeds": [3, 1, 4], "returns": [[7.0, 7.0], [1.0, 2.0], [0.0, 0.0]]}
    assert reproduce.paired(rate, other).tolist() == [[4, 4], [2, 1]]
    assert reproduce.paired(rate, {"seeds": [4], "returns": [[1.0, 2.0]]}).size == 0
