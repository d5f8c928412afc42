"""Memories other than RATE, from the command line: runs, evaluations and incompatible flags."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from MinigridMemory.MinigridMemory_src import inference_minigridmemory
from RATE_model.cli.aliases import canonical_flags
from RATE_model.cli.options import parse_options
from RATE_model.cli.settings import ModelOptions
from tests import minigrid_runs, tmaze_runs
from TMaze_new.TMaze_new_src import inference_tmaze

TMAZE = "--d_model 16 --trajectories 16 --context_length 6 --max_n_final 2 --epochs 1 --batch_size 16".split()
TMAZE += "--eval_episodes 4 --eval_lengths 9 --end_seed 1 --device cpu --wandb_mode disabled".split()
MINIGRID = "--d_model 16 --size 9 --trajectories 12 --context_length 5 --segments 3 --epochs 1 --batch_size 12".split()
MINIGRID += "--eval_episodes 2 --eval_sizes 7 --final_sizes 7 --end_seed 1 --device cpu --wandb_mode disabled".split()
SCRIPTS = {
    "tmaze": (tmaze_runs, tmaze_runs.train_tmaze, TMAZE, inference_tmaze, ("--lengths", "9", "--episodes", "4")),
    "minigrid": (
        *(minigrid_runs, minigrid_runs.train_minigridmemory, MINIGRID),
        *(inference_minigridmemory, ("--sizes", "7", "--episodes", "2", "--seed", "1")),
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(environment, mode) -> the directory of a tiny run, made once."""
    made: dict[tuple[str, str], Path] = {}
    folders = {name: tmp_path_factory.mktemp(name) for name in SCRIPTS}

    def run(environment: str, mode: str) -> Path:
        if (environment, mode) not in made:
            tools, script, tiny, *_ = SCRIPTS[environment]
            there = [*tools.places(folders[environment]), "--ckpt_folder", mode, "--model_mode", mode]
            assert script.main([*tiny, *there]) == 0
            (made[environment, mode],) = (
                path.parent for path in folders[environment].glob(f"runs/{mode}/*/config.yaml")
            )
        return made[environment, mode]

    return run


def fails(capsys, main, arguments) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="^2$"):
        main(list(map(str, arguments)))
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "MLP"])
@pytest.mark.parametrize("environment", SCRIPTS)
def test_inference_reproduces_final_evaluation(runs, tmp_path, environment, mode):
    run, (*_, script, case) = runs(environment, mode), SCRIPTS[environment]
    written = []
    for knock_out in ("false", "true"):
        output = tmp_path / f"{knock_out}.json"
        script.main(["--checkpoint", str(run), *case, "--knock_out", knock_out, "--output", str(output)])
        written.append(json.loads(output.read_text())["results"])
    final = json.loads((run / "eval" / "final.json").read_text())
    (found,) = written[0].values()
    (expected,) = (final[name] for name in ("Success_rate_T_9", "FINAL_Success_rate_l_7") if name in final)
    assert found["success_rate"] == expected
    if mode == "MLP":
        assert written[0] == written[1], "there is nothing to knock out"


@pytest.mark.parametrize("other", ["GRU", "MLP", "RATE"])
def test_a_checkpoint_of_another_memory_is_not_resumed(runs, tmp_path, capsys, other):
    run, (_, script, tiny, *_) = runs("tmaze", "LSTM"), SCRIPTS["tmaze"]
    data = ["--data_dir", str(run.parents[2] / "data")]
    flags = [*tiny, *data, "--output_dir", tmp_path / "runs", "--model_mode", other, "--resume", run]
    said = fails(capsys, script.main, flags)
    assert "cannot be resumed with a different configuration: model_mode was LSTM" in said and other in said
    assert not (tmp_path / "runs").exists(), "nothing is created"


@pytest.mark.parametrize(
    ("mode", "flags", "named"),
    [
        ("LSTM", "--slide 3", "--slide"),
        ("MLP", "--slide 3", "--slide"),
        ("BC-LSTM", "--target_return 1", "--target_return"),
    ],
)
def test_flag_unused_by_a_checkpoint_is_refused(runs, capsys, mode, flags, named):
    run = runs("tmaze", mode)
    said = fails(capsys, inference_tmaze.main, ["--checkpoint", run, "--lengths", "9", *flags.split()])
    assert f"error: {named}: the agent of {run} ({mode.removeprefix('BC-')}) " in said


def a_file(path: Path, rewards: np.ndarray | None) -> None:
    """A file in another format, with these rewards in each of 12 episodes of 12 steps."""
    count = 12
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((count * count, 3, 84, 84), dtype=np.uint8)
        file["actions"] = np.zeros(count * count, dtype=np.uint8)
        file["terminals"] = np.tile(np.arange(count) == count - 1, count)
        if rewards is not None:
            file["rewards"] = np.tile(rewards, count).astype(np.float32)


@pytest.mark.parametrize(
    ("rewards", "named"),
    [(None, "has no rewards (available: actions, observations, terminals)"), (np.full(12, np.nan), "in 'rewards'")],
)
def test_data_that_cannot_give_returns_is_refused(tmp_path, capsys, rewards, named):
    a_file(tmp_path / "own.h5", rewards)
    flags = [*MINIGRID, "--data_path", tmp_path / "own.h5", "--output_dir", tmp_path / "runs", "--model_mode", "LSTM"]
    assert named in fails(capsys, minigrid_runs.train_minigridmemory.main, flags)
    assert not (tmp_path / "runs").exists(), "nothing is created"


@pytest.mark.parametrize("condition", ["rtg", "none"])
def test_equal_rewards_are_noted(tmp_path, capsys, condition):
    a_file(tmp_path / "own.h5", np.zeros(12))
    flags = [*MINIGRID, "--data_path", tmp_path / "own.h5", "--output_dir", tmp_path / "runs", "--model_mode", "LSTM"]
    flags += ["--condition", condition, "--online_inference", "false", "--last_inference", "false"]
    assert minigrid_runs.train_minigridmemory.main(list(map(str, flags))) == 0
    said = "all rewards are 0: returns only depend on the length of a trajectory"
    assert (said in capsys.readouterr().out) == (condition == "rtg")


def test_old_config_sets_the_condition(tmp_path):
    """`--condition_on_returns false` is an alias of `--condition none`."""
    (tmp_path / "old.yaml").write_text("condition_on_returns: false\n")
    for flags in (["--config", str(tmp_path / "old.yaml")], ["--condition_on_returns", "false"]):
        assert not parse_options(ModelOptions, argv=flags).conditioned
    assert parse_options(ModelOptions, argv=["--condition_on_returns"]).conditioned
    assert canonical_flags({"condition": "auto", "condition_on_returns": False, "d_model": 3}) == {
        "condition": "none",
        "d_model": 3,
    }
