"""The report: recording an episode, building the page, and rendering it in a browser."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.settings import ModelOptions
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.report import episode as episodes
from RATE_model.report.__main__ import main
from RATE_model.report.episode import control, player_data, record
from RATE_model.report.page import RunRecord, build, read_run
from tests.tmaze_runs import only_run, train
from TMaze_new.TMaze_new_src.env import SPEC, TMazeVectorEnv
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT
from TMaze_new.TMaze_new_src.render import render_rgb

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
K, STEPS = 5, 14


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    sizes = RATEConfig(d_model=16, n_layer=2, n_head=2, d_head=8, d_inner=16, context_length=K, num_mem_tokens=3)
    return Agent(AgentConfig("RATE", sizes), SPEC).eval()


def played(agent, *, transform=None, rows=2):
    mazes = TMazeVectorEnv(rows, 40, max_steps=STEPS)
    return record(
        agent,
        mazes,
        seeds=np.zeros(rows, dtype=int),
        target_return=1.0,
        max_steps=STEPS,
        options={"goal": np.array([1, -1])[:rows]},
        transform=transform,
        picture=lambda environments, row: render_rgb(**environments.scene(row)),
    )


@pytest.fixture(scope="module")
def episode(agent):
    return player_data(
        agent, played(agent), played(agent, transform=control(agent), rows=1), actions=["right", "up", "left", "down"],
        title="T-Maze",
    )  # fmt: skip


def test_a_recording_holds_every_step(agent, episode):
    trace = played(agent)
    assert trace.observations.shape == (STEPS, 4) and trace.actions.shape == (STEPS,) and len(trace.pictures) == STEPS
    assert np.array_equal(trace.probabilities.argmax(1), trace.actions)
    assert trace.handed_on.tolist() == [5, 10] and trace.slots.shape == (2, 2, 3, 16)
    assert np.all(np.linalg.norm(trace.slots[0, 0] - trace.slots[0, 1], axis=-1) > 0)  # twins saw different hints
    assert episode["memory"]["steps"] == [5, 10] and np.shape(episode["memory"]["distances"]) == (2, 3)


def test_attention_shares_sum_to_one(episode):
    assert len(episode["attention"]) == STEPS
    for step, entry in enumerate(episode["attention"]):
        assert sum(entry["shares"].values()) == pytest.approx(1, abs=0.01)
        assert len(entry["steps"]) == step % K + 1 and sum(entry["steps"]) <= 1.01


@pytest.fixture(scope="module")
def gated():
    """A memory with gates and without attention."""
    torch.manual_seed(0)
    config = ModelOptions(model_mode="FFM", d_model=16).agent_config(context_length=K, segments=3)
    return Agent(config, SPEC).eval()


def test_gates_are_those_of_the_memory(gated):
    """With many units: their mean and the eight that change most."""
    trace = played(gated, rows=1)
    data = player_data(gated, trace, None, actions=None, title="")
    assert data["attention"] is None and len(data["gates"]) == 2
    look = [torch.as_tensor(array)[None] for array in (trace.observations, trace.actions, trace.rtg)]
    for gate in data["gates"]:
        expected = gated.inspect(*look)["gates"][gate["name"]][0].detach().numpy()
        assert len(gate["units"]) == 9 and gate["units"][0] == f"mean of {expected.shape[1]}"
        np.testing.assert_allclose(np.array(gate["values"])[:, 0], expected.mean(1), atol=1e-3)
        unit = int(gate["units"][1].removeprefix("unit ")) - 1
        np.testing.assert_allclose(np.array(gate["values"])[:, 1], expected[:, unit], atol=1e-3)


def test_logits_of_the_recording_are_those_of_the_forward_pass(agent):
    trace = played(agent)
    tensors = [torch.as_tensor(array)[None] for array in (trace.observations, trace.actions, trace.rtg)]
    logits, _ = agent(*tensors, torch.ones(1, STEPS, dtype=torch.bool))
    np.testing.assert_allclose(logits.softmax(-1)[0].detach().numpy(), trace.probabilities, atol=1e-4)


def test_many_pictures_stay_within_the_limit(monkeypatch):
    """Noise is incompressible: pictures get coarser first, then fewer."""
    monkeypatch.setattr(episodes, "_PICTURE_BYTES", 20_000)
    pictures = list(np.random.default_rng(0).integers(256, size=(40, 16, 28, 3), dtype=np.uint8))
    encoded, numbers = episodes._encoded(pictures)
    assert sum(map(len, encoded)) <= 20_000 and encoded[0].startswith("data:image/jpeg")
    assert len(numbers) == 40 and numbers[0] == 0 and set(numbers) == set(range(len(encoded))) and len(encoded) < 40
    assert episodes._encoded([pictures[0]] * 3)[1] == [0, 0, 0]


RUN = RunRecord(
    name="RATE_RUN_1",
    flags={"model_mode": "RATE", "nmt": 3, "seed": 1},
    command="train.py --text '</script><!--<script>'",
    commit="0" * 40,
    curves={"train_loss": [[1, 2.0], [2, 0.5]], "lr": [[1, 0.1]]},
    final={"Success_rate": 0.75, "validation_loss": None},
    protocol={
        "verdict": {"sentence": "remembers over xi = 89 (lower bound .96 > .50)", "missing": ["a control"]},
        "cases": [
            {"case": "90", "horizons": [89, 89], "chance": 0.5,
             "conditions": {"intact": {"success": 1.0, "interval": [0.96, 1.0]}}},
            {"case": "900", "horizons": [899, 899], "chance": 0.5,
             "conditions": {"intact": {"success": 0.5, "interval": [0.4, 0.6]}}},
        ],
    },
)  # fmt: skip


def test_page_is_self_contained(episode):
    page = build([RUN, RUN], [episode], title="T-Maze & more")
    assert "T-Maze &amp; more" in page and len(page) < 10_000_000
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page.replace("http-equiv", "")
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])
    assert [run["name"] for run in data["runs"]] == ["RATE_RUN_1 (1)", "RATE_RUN_1 (2)"]
    assert ["Success_rate", 0.75, 0.75] in data["results"]
    assert data["facts"][-1][1] == RUN.command and "<!--" not in page


@pytest.mark.parametrize("horizons", [[], [2, 2056]])
def test_the_page_of_returns(horizons):
    intact = {"return": 20.5, "interval": [19.0, 22.0]}
    case = {"case": "x", "outcome": "return", "horizons": horizons, "chance": None, "conditions": {"intact": intact}}
    page = build([replace(RUN, protocol={**RUN.protocol, "cases": [case]})], [], title="ViZDoom")
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])
    lines = {"intact": [[2056, 20.5, 19.0, 22.0]]}
    expected = {"name": "RATE_RUN_1", "conditions": lines, "chance": None, "outcome": "return"}
    assert data["horizons"] == [expected] * bool(horizons) and len(data["verdicts"]) == 1


def test_numbers_that_are_not_finite_are_left_empty(gated):
    trace = played(gated, rows=1)
    trace.rewards[3], trace.probabilities[3, 0] = float("inf"), float("nan")
    with torch.no_grad():
        next(iter(gated.memory.parameters())).fill_(float("nan"))
    shown = player_data(gated, trace, None, actions=None, title="")
    diverged = replace(RUN, curves={"train_loss": [[1, 2.0], [2, float("nan")]]}, final={"return": float("-inf")})
    page = build([diverged], [shown], title="T-Maze")
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1]
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["runs"][0]["curves"]["train_loss"] == [[1, 2.0], [2, None]] and data["results"] == [["return", None]]
    (shown,) = data["episodes"]
    assert shown["intact"]["rewards"][3] is None and shown["intact"]["probabilities"][3][0] is None
    assert shown["gates"][0]["values"][0][0] is None


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
def test_a_browser_shows_it_and_the_slider_moves(tmp_path, episode, gated):
    script = """<script>
      window.addEventListener("load", () => {
        const image = document.getElementById("intact-0"), before = image.src;
        const slider = document.getElementById("slider-0");
        slider.value = 9; slider.dispatchEvent(new Event("input"));
        const seen = {changed: image.src !== before, label: document.getElementById("step-0").textContent};
        document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
        seen.key = document.getElementById("step-0").textContent;
        seen.results = document.getElementById("results").textContent;
        seen.verdict = document.getElementById("verdicts").textContent;
        seen.charts = document.querySelectorAll("svg").length;
        seen.memory = document.body.textContent.includes("after 2 segments: distance of each slot to the twin's");
        seen.gates = document.querySelectorAll("#players section")[1].textContent.includes("layer 1: write gate");
        const box = document.createElement("pre"); box.id = "seen"; box.textContent = JSON.stringify(seen);
        document.body.append(box);
      });
      window.onerror = message => document.body.setAttribute("data-error", message);
    </script></head>"""
    page = tmp_path / "report.html"
    other = player_data(gated, played(gated, rows=1), None, actions=None, title="gates")
    page.write_text(build([RUN], [episode, other], title="T-Maze").replace("</head>", script), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
    shown = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert "data-error" not in shown.partition("<pre")[0].rpartition("<body")[2].partition(">")[0]
    seen = json.loads(
        re.search(r'<pre id="seen">(.*?)</pre>', shown, re.S)[1].replace("&amp;", "&").replace("&gt;", ">")
    )
    assert seen["changed"] and seen["label"] == f"step 10 of {STEPS}" and seen["key"] == f"step 11 of {STEPS}"
    assert "Success_rate0.75" in seen["results"] and "remembers over xi = 89" in seen["verdict"]
    assert seen["charts"] == 2 and seen["memory"] and seen["gates"]


def test_long_curve_is_thinned_and_keeps_its_end(tmp_path):
    (tmp_path / "config.yaml").write_text("model_mode: RATE\n")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1}}\n' for step in range(1001)))
    steps = [step for step, _ in read_run(tmp_path).curves["loss"]]
    assert len(steps) == 334 and steps[-1] == 1000 and set(np.diff(steps)) == {3}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="config.yaml"):
        read_run(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run; the recorded command is that of a shell."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ENVIRONMENT), "draw_run", lambda *arguments: None)
        patch.setattr("sys.argv", [ENVIRONMENT.train_script])
        assert train(folder, "--task", "recall", "--epochs", "1") == 0
    return only_run(folder)


def test_page_contains_the_runs_figures(run, tmp_path, capsys):
    page = tmp_path / "report.html"
    main([str(run), "--output", str(page), "--case", "20", "--device", "cpu"])
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.S)[1])
    final = json.loads((run / "eval" / "final.json").read_text())
    assert dict(data["results"]) == final
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [[row["step"], row["train_loss"]] for row in metrics if "train_loss" in row]
    assert data["runs"][0]["curves"]["train_loss"] == losses
    (episode,) = data["episodes"]
    assert episode["actions"] == ["right", "up", "left", "down"] and episode["title"].endswith("length 20, episode 1")
    assert episode["intact"]["actions"][0] == 1  # the first turn of recall is taken for the agent
    assert len(episode["intact"]["pictures"]) >= 1 and episode["knocked_out"] is not None


def test_a_report_without_episodes(run, tmp_path):
    main([str(run), "--output", str(tmp_path / "page.html"), "--episodes", "0"])
    assert '"episodes":[]' in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [((), "the run is missing"), (("{run}", "--case", "long"), "--case long: T-Maze has cases such as"),
     (("{run}", "--case", "1"), "--case 1: T-Maze, recall: corridor_length is -2"),
     (("{run}", "--episodes", "4"), "--episodes 4: must be at most 3"),
     (("{run}", "--output", "/nowhere/page.html"), "--output /nowhere/page.html")],
)  # fmt: skip
def test_invalid_arguments_are_refused(run, flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(ENVIRONMENT), "episode_counts", range(2, 4))
    with pytest.raises(SystemExit, match="^2$"):
        main([flag.format(run=run) for flag in flags])
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and words in errors and not list(tmp_path.glob("*.html"))
