"""The tables of results, from existing runs."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ale_py")

from Atari import reproduce
from Atari.games import GAMES
from RATE_model.acting.rollout import Episodes
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.pages.study import ROOT
from tests import commands

SEEDS = (1, 2)


def fake_run(folder: Path, result: dict[str, float]) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "final.json").write_text(json.dumps(result))
    start = {"seed": int(folder.name), "started": "2026-01-02T00:00:00+00:00", "git": {"commit": "c" * 40}}
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    return folder


def test_tables_have_runs_and_baselines(tmp_path, monkeypatch, capsys):
    def run_all(study, options) -> dict[str, list[Path]]:
        command = study.command("RATE", SEEDS)
        config = reproduce.ENVIRONMENT.read_config([str(ROOT / w) if w.endswith(".yaml") else w for w in command[1:]])
        data.add((config.data.game, config.data.replay.transitions))
        result = {"target_return": 180.0, "train_seconds": 9.0, "optimizer_steps": 600, "validation_accuracy": 0.7}
        return {
            label: [
                fake_run(
                    tmp_path / study.folder(label) / str(seed),
                    result | {"eval_return": 30.0 * (number + 1) + seed, "eval_std": 1.0, "eval_length": 7.0},
                )
                for seed in SEEDS
            ]
            for number, label in enumerate(study.models)
        }

    data = set()
    configured = [None, Path("/data/atari")]
    monkeypatch.setattr(reproduce, "configured_folder", lambda section, key: configured[-1])
    flags = ["--seeds", "1", "2", "--results_dir", str(tmp_path / "results")]
    said = commands.error_of(capsys, tmp_path, reproduce.main, flags)
    assert "'atari: data: /data/atari' of wandb_config.yaml: this page is about our own data" in said
    configured.pop()
    monkeypatch.setattr(reproduce.Study, "run_all", run_all)
    entry = {"return": [20.0], "episodes": 7, "return_std": 3.0}
    labels = (reproduce.RANDOM, reproduce.EXPERT, reproduce.DATA)
    monkeypatch.setattr(reproduce, "of_players", lambda game: {label: entry for label in labels})
    reproduce.main(flags)
    assert data == {("Breakout", 150_000), ("Pong", 150_000)}, "training runs find or make the data of the table"
    page = (tmp_path / "results" / "atari.md").read_text()
    breakout, pong = page.split("Pong, asked for")
    assert "| data | 20.0 | 1.00 | 64 |" in breakout and "| random player | 20.0 | 1.00 | 64 |" in breakout
    assert "| random player | 20.0 | 115 |" in pong, "no multiples of a mean that may be negative"
    assert "| RATE | 31.5 ± 0.5 | 1.57 | 103 ± 2 |" in page and "| DT | 121.5 ± 0.5 | 6.08 | 416 ± 2 |" in page
    assert "at commit cccccccccccc on 2026-01-02" in page and "Breakout, asked for 180 points" in page
    assert "| Pong, DT | 2 | 600 | 9 | 0.700 | 122.0 | 1.0 | 7 |" in page
    assert page.count("    python3 Atari/train_rate_atari.py") == 8
    assert (
        page.count("    python3 Atari/generate_dataset.py --game") == 2 and "--game Pong --transitions 150000" in page
    )
    document = json.loads((tmp_path / "results" / "atari.json").read_text())
    assert document["Breakout, RATE"]["return"] == [31.0, 32.0] and document["Breakout, RATE"]["seeds"] == [1, 2]
    assert "| DT |" in capsys.readouterr().out
    said = commands.error_of(capsys, tmp_path, reproduce.main, ["--seeds", "1", *flags[3:]])
    assert "has seeds 1 2 of Breakout, RATE, and they would be lost; give --seeds 1 2, or another --results_dir" in said


def test_runs_of_two_games_do_not_share_a_folder():
    folders = [reproduce.study(GAMES[name]).folder(label) for name in reproduce.PLAYED for label in reproduce.MODELS]
    assert len(set(folders)) == len(folders) == 8


def test_settings_of_all_runs_are_valid():
    for name in reproduce.PLAYED:
        study = reproduce.study(GAMES[name])
        for label in study.models:
            flags = [str(ROOT / word) if word.endswith(".yaml") else word for word in study.command(label, SEEDS)]
            assert reproduce.ENVIRONMENT.read_config(flags[1:]).run.seeds == range(1, 3)


def test_the_mean_of_the_data_is_of_whole_episodes(tmp_path, monkeypatch):
    with TrajectoryWriter(
        tmp_path / "a.h5", observation_shape=(1, 84, 84), observation_dtype="uint8", attributes={}
    ) as writer:
        for unfinished, reward in ((False, 4), (False, 6), (True, 100)):
            frames = np.zeros((1, 1, 84, 84), np.uint8)
            writer.add_episode(frames, np.zeros(1, int), np.array([reward]), terminal=True, unfinished=unfinished)
    monkeypatch.setattr(type(reproduce.OWN_DATA), "ensure", lambda self, options: tmp_path / "a.h5")
    monkeypatch.setattr(type(reproduce.ENVIRONMENT), "play_as", lambda *_, **__: Episodes(*[np.ones(2)] * 3))
    monkeypatch.setattr(reproduce, "expert_returns", lambda game: np.ones(1))
    found = reproduce.of_players(GAMES["Breakout"])[reproduce.DATA]
    assert found == {"return": [5.0], "return_std": 1.0, "episodes": 2}


def test_the_scripted_player_plays_the_first_episodes_of_the_evaluation(monkeypatch):
    seeds, envs = [], reproduce.AtariEnv

    class Short(envs):
        def reset(self, *, seed):
            seeds.append(seed)
            return super().reset(seed=seed)

    monkeypatch.setattr(reproduce, "AtariEnv", lambda *a, **k: Short(*a, **k, max_steps=150))
    monkeypatch.setattr(reproduce, "EXPERT_EPISODES", 2)
    returns = reproduce.expert_returns(GAMES["Breakout"])
    assert seeds == reproduce.ENVIRONMENT.seeds(2).tolist() and np.all(returns > 0)
