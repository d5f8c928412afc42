"""Learning curves over seeds: grouping, curves and the command."""

import json

import numpy as np
import pytest

from RATE_model.acting.rollout import Episodes
from RATE_model.errors import UserError
from RATE_model.plots.__main__ import main
from RATE_model.plots.returns import returns_figure, spaced
from RATE_model.plots.seeds import curves_of, find_runs, interval_of, seeds_figure


def write(folder, name: str, losses: dict[int, float]) -> None:
    run = folder / name
    run.mkdir(parents=True)
    lines = [json.dumps({"step": step, "validation_loss": loss}) for step, loss in losses.items()]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(tmp_path):
    for seed in (1, 2, 3):
        write(tmp_path / "runs", f"RATE_RUN_{seed}", {10: 1.0 + seed, 20: 0.5 * seed, 30 + seed: 0.1})
        write(tmp_path / "runs", f"GRU_RUN_{seed}", {10: 2.0, 20: 1.0})
    write(tmp_path / "other", "RATE_RUN_1", {5: 1.0})
    return tmp_path


def test_runs_that_differ_in_the_seed_are_a_group(runs):
    groups = find_runs([runs / "runs"])
    assert {label: len(members) for label, members in groups.items()} == {"GRU": 3, "RATE": 3}
    assert [*find_runs([runs / "runs", runs / "other"])] == ["GRU", "runs/RATE", "other/RATE"]
    assert find_runs([runs / "runs" / "RATE_RUN_2"] * 2) == {"RATE": [runs / "runs" / "RATE_RUN_2"]}


def test_the_mean_covers_only_steps_of_all_runs(runs):
    groups = find_runs([runs / "runs"])
    figure = seeds_figure(
        {
            label: {str(run): [json.loads(line) for line in (run / "metrics.jsonl").open()] for run in members}
            for label, members in groups.items()
        },
        ["validation_loss"],
    )
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["GRU (3 seeds)"] == [[10, 2], [20, 1]]
    assert drawn["RATE (3 seeds)"][:2] == [[10, 3], [20, 1]] and drawn["RATE (3 seeds)"][-1][0] == 31
    assert axes.get_yscale() == "linear", "less than a decade"


def test_steps_between_are_interpolated():
    runs = [
        [{"step": 0, "x": 0.0}, {"step": 10, "x": 10.0}],
        [{"step": 0, "x": 1.0}, {"step": 5, "x": None}, {"step": 10, "x": 3.0}],
        [{"step": 4, "y": 1.0}],
    ]
    steps, values = curves_of(runs, "x")
    assert steps.tolist() == [0, 10] and values.tolist() == [[0, 10], [1, 3]]
    low, high = interval_of(np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]]))
    assert low[0] < 2 < high[0] and low[1] == high[1] == 2


def test_the_command_draws_and_reports_mistakes(runs, tmp_path, capsys):
    output = tmp_path / "curves.png"
    main([str(runs / "runs"), "--output", str(output)])
    assert output.stat().st_size > 1000 and "RATE, 3 seeds" in capsys.readouterr().out
    for arguments, named in (
        ([str(runs / "runs"), "--metric", "reward"], "--metric reward: no run has it; available: validation_loss"),
        ([str(tmp_path / "nowhere")], "is not a directory"),
        ([str(runs / "runs"), "--output", str(tmp_path / "no" / "x.png")], "--output"),
        ([str(runs / "runs"), "--output", str(tmp_path / "x.xyz")], "x.xyz: figures are PNG"),
    ):
        with pytest.raises(SystemExit, match="^2$"):
            main(arguments)
        assert named in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no run"):
        find_runs([tmp_path / "empty"])


def test_overlapping_ticks_are_omitted():
    assert spaced([1, 2, 3, 50, 99, 100], 5) == [1, 50, 100]
    assert spaced([7], 5) == [7] and spaced([7, 8], 5) == [7, 8]


def test_line_labels_do_not_overlap():
    returns = np.array([1.0, 2.0])
    played = {"model": {10.0: Episodes(returns, returns, returns), 20.0: Episodes(returns, returns, returns)}}
    figure = returns_figure(played, title="", references={"data": 5.0, "random": 4.9, "expert": 20.0})
    (axes,) = figure.axes
    heights = sorted(text.xy[1] for text in axes.texts)
    low, high = axes.get_ylim()
    assert min(np.diff(heights)) >= 0.05 * (high - low) - 1e-9 and heights[-1] == 20
    assert {line.get_gid() for line in axes.lines} >= {"data", "random", "expert"}
