"""`python -m RATE_model.protocol` on tiny runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from RATE_model.environments.find import common_environment, environment_of
from RATE_model.environments.table import environment
from RATE_model.errors import UserError
from RATE_model.own.environment import OwnEnvironment
from RATE_model.pages import study
from RATE_model.protocol.__main__ import Examined, Options, grouped, main, write
from RATE_model.protocol.verdict import INTACT, KNOCKED_OUT, AgentFacts, Case, judge
from tests.tmaze_runs import only_run, train
from TMaze_new.TMaze_new_src import train_tmaze
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A barely trained agent with two parts of memory; the recorded command is that of a shell."""
    folder = tmp_path_factory.mktemp("protocol")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)
        patch.setattr("sys.argv", [ENVIRONMENT.train_script])
        assert train(folder, "--mem_len", "6", "--nmt", "2", "--epochs", "1", "--last_inference", "false") == 0
    return only_run(folder)


def fails(capsys, *flags: object) -> str:
    with pytest.raises(SystemExit, match="^2$"):
        main([str(flag) for flag in flags])
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


def test_files_and_table_of_several_seeds(run, tmp_path, capsys):
    runs = [run, *(shutil.copytree(run, tmp_path / f"copy_RUN_{seed}") for seed in (2, 3))]
    main(["--checkpoint", *map(str, runs), "--cases", "9", "20", "--episodes", "10", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "3 seeds of 10 episodes" in printed and "verdict: " in printed and "K = 6" in printed
    for directory in runs:
        found = json.loads((directory / "eval" / "protocol.json").read_text())
        assert found["verdict"]["label"] != "long-term"
        assert found["verdict"]["missing"][0].startswith("3 seeds of 100 episodes each (got 3 of 10)")
        assert [case["horizons"] for case in found["cases"]] == [[8, 8], [19, 19]]
        conditions = found["cases"][0]["conditions"]
        assert set(conditions) == {"intact", "knocked out", "without tokens", "without cache", "twins exchanged"}
        assert all(len(condition["seeds"]) == 3 for condition in conditions.values())
        assert (directory / "plots" / "protocol.png").stat().st_size > 0
        assert found["verdict"]["sentence"] in (directory / "eval" / "protocol.md").read_text()


@pytest.mark.parametrize(("horizons", "chance"), [((), None), ((), 1.5), ((2, 2056), 1.5)])
def test_files_of_returns(tmp_path, horizons, chance):
    """Without declared horizons, the figure has bars."""
    outcomes = {INTACT: np.arange(12.0).reshape(3, 4), KNOCKED_OUT: np.ones((3, 4))}
    cases, facts = [Case("Atari", horizons, chance, outcomes, "return")], AgentFacts(30, None, 30)
    examined = Examined("RATE", [], facts, cases, judge(facts, cases))
    write(examined, {tmp_path: tmp_path}, "protocol")
    found = json.loads((tmp_path / "protocol.json").read_text())["cases"][0]
    assert found["conditions"]["intact"]["return"] == 5.5 and found["horizons"] == list(horizons)
    assert found["chance"] == chance and found["outcome"] == "return"
    text = (tmp_path / "protocol.md").read_text()
    assert ("none declared" in text) == (not horizons) and ("unknown" in text) == (chance is None)
    assert (tmp_path / "protocol.png").stat().st_size > 0


def test_runs_are_grouped_by_flags_in_any_order(monkeypatch):
    """Runs of the same name with two learning rates and alternating seeds."""
    rates = {Path(f"a_RUN_{number}"): number % 2 for number in range(5)}
    flags = lambda _, run: {"learning_rate": rates[run], "seed": run.name}  # noqa: E731
    monkeypatch.setattr("RATE_model.protocol.__main__.recorded_flags", flags)
    groups = grouped(ENVIRONMENT, list(rates))
    assert [[run.name[-1] for run in runs] for runs in groups.values()] == [["0", "2", "4"], ["1", "3"]]
    assert list(groups) == ["a", "a (2)"]


def test_untrained_settings_are_noted(run, tmp_path, capsys):
    flags = ["--cases", "9", "--episodes", "4", "--device", "cpu", "--output", str(tmp_path / "out")]
    main(["--checkpoint", str(run), *flags, "--play", "hint_steps=2"])
    assert "note: not trained with hint_steps 2" in capsys.readouterr().out
    (written,) = (tmp_path / "out").glob("*.json")
    assert json.loads(written.read_text())["cases"][0]["horizons"] == [7, 7]
    assert "observations or actions differ from those of" in fails(
        capsys, "--checkpoint", run, *flags, "--play", "task=multi-cue"
    )


def test_results_of_a_checkpoint_go_to_its_run(run, tmp_path, capsys):
    """Twins come in pairs: of five episodes, four are played."""
    copy = shutil.copytree(run, tmp_path / "copy_RUN_4")
    (checkpoint,) = (copy / "checkpoints").glob("step_*")
    main(["--checkpoint", str(checkpoint), "--cases", "9", "--episodes", "5", "--device", "cpu"])
    assert "copy: 1 seed of 4 episodes" in capsys.readouterr().out
    found = json.loads((copy / "eval" / "protocol.json").read_text())
    assert found["verdict"]["missing"][0].endswith("(got 1 of 4)") and (copy / "plots" / "protocol.png").exists()
    assert not (checkpoint / "eval").exists()


def test_unsuitable_runs_are_refused(run, tmp_path, capsys):
    assert "--checkpoint is missing" in fails(capsys)
    assert "--cases x: T-Maze has cases such as 9" in fails(capsys, "--checkpoint", run, "--cases", "x")
    assert "--cases 1: T-Maze: corridor_length is -1" in fails(capsys, "--checkpoint", run, "--cases", "9", "1")
    assert "--play hint_steps: write flag=value" in fails(capsys, "--checkpoint", run, "--play", "hint_steps")
    assert "has a memory; give a run" in fails(capsys, "--checkpoint", run, "--control", run, "--cases", "9")
    assert "environment.json is missing or damaged" in fails(capsys, "--checkpoint", tmp_path)
    assert "no environment 'Nowhere'" in fails(capsys, "--checkpoint", run, "--env", "Nowhere")


def test_environments_are_found_and_not_mixed(run, tmp_path):
    assert environment_of(run) is environment("tmaze") is ENVIRONMENT
    other = tmp_path / "other"
    other.mkdir()
    script = "/somewhere/MinigridMemory/MinigridMemory_src/train_minigridmemory.py"
    (other / "environment.json").write_text(json.dumps({"starts": [{"command": [script]}]}))
    with pytest.raises(UserError, match="compare runs of one environment"):
        common_environment([run, other])
    (other / "environment.json").write_text(json.dumps({"starts": [{"command": ["my_script.py"]}]}))
    (other / "config.yaml").write_text("env: CartPole-v1\nenv_args: []\nwrappers: []\n")
    assert isinstance(environment_of(other), OwnEnvironment)
    (other / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="is not an environment's train script"):
        environment_of(other)


def test_grid_trains_validates_and_continues(tmp_path, capsys, monkeypatch):
    """Tiny, in this process; repeated, it trains nothing."""
    monkeypatch.setattr(type(ENVIRONMENT), "grid_cases", (9, 12))
    monkeypatch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)
    trained = []

    def finish(command, environment, stop):
        trained.append(command)
        return train_tmaze.main(command[2:]), ""

    monkeypatch.setattr(study, "_finish", finish)
    tiny = "trajectories=20 epochs=1 batch_size=16 d_model=8 eval_episodes=2 eval_lengths=9".split()
    flags = ["--env", "tmaze", "--model_mode", "LSTM", "--grid", "--train", *tiny, f"data_dir={tmp_path / 'data'}"]
    flags += ["--seeds", "1", "--episodes", "4", "--runs_dir", str(tmp_path / "runs"), "--output", str(tmp_path)]
    main(flags)
    main(flags)
    assert len(trained) == 6
    found = json.loads((tmp_path / "grid_TMaze_new_src_LSTM.json").read_text())
    assert found["validated"] == ["9", "12", "24", "48"] and len(found["rows"]) == 6
    assert [cell["horizons"] for cell in found["rows"]["length 12 in 3 segments"]["cells"]][-1] == [47, 47]
    lines = (tmp_path / "grid_TMaze_new_src_LSTM.csv").read_text().splitlines()
    assert lines[0] == "trained on,9,12,24,48" and len(lines) == 7
    assert (tmp_path / "grid_TMaze_new_src_LSTM.png").stat().st_size > 0
    assert "--grid trains its own runs" in fails(capsys, "--grid")
    assert "--model_mode X: the value must be one of" in fails(capsys, "--grid", "--env", "tmaze", "--model_mode", "X")
    assert "declares no grid" in fails(capsys, "--grid", "--env", "minigrid_memory")
    assert "--episodes 0: must be at least" in fails(capsys, "--grid", "--env", "tmaze", "--episodes", "0")


def test_grid_refuses_flags_that_it_ignores():
    for name in ("checkpoint", "control", "cases", "play"):
        with pytest.raises(UserError, match=f"^--{name} a=b: .*; leave it out"):
            Options(grid=True, env="tmaze", **{name: ("a=b",)}).validate()


def test_grid_uses_the_typed_device(monkeypatch, capsys):
    used = []

    def evaluate(*_, device="cpu", **__):
        used.append(device)
        raise UserError("enough")

    def run_all(study, options):
        used.append(options.device)
        return {"a": [Path()]}

    monkeypatch.setattr(study.Study, "run_all", run_all)
    monkeypatch.setattr(study, "check_device", str)  # there is no such GPU here
    monkeypatch.setattr("RATE_model.protocol.grid.evaluation_of_run", evaluate)
    fails(capsys, "--grid", "--env", "tmaze", "--device", "cuda:1")
    assert used == ["cuda:1", "cuda:1"]
