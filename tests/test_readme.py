"""Every command of README and docs is accepted, and every link resolves."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import download_d4rl_datasets
from Atari import generate_dataset as atari_dataset
from Atari import inference_atari, train_rate_atari
from MemoryMaze.MemoryMaze_src import dataset as memory_maze_dataset
from MemoryMaze.MemoryMaze_src import inference_mem_maze, train_mem_maze
from MemoryMaze.MemoryMaze_src import reproduce as memory_maze_study
from MinigridMemory.get_data import collect_traj
from MinigridMemory.MinigridMemory_src import inference_minigridmemory, train_minigridmemory
from MuJoCo import generate_dataset, inference_mujoco, train_rate_mujoco_ca
from RATE_model.cli import evaluation
from RATE_model.cli.options import option_names, parse_options
from RATE_model.diagnose import __main__ as diagnose
from RATE_model.diagnose import retention
from RATE_model.original.__main__ import parser as original_parser
from RATE_model.own.environment import OwnEnvironment
from RATE_model.pages.study import PageOptions, StudyOptions
from RATE_model.plots.__main__ import parser as plots_parser
from RATE_model.protocol import __main__ as protocol
from RATE_model.report import __main__ as report
from RATE_model.sweep import __main__ as sweep
from tests.scripts import inference_options, train_script
from TMaze_new.TMaze_new_src import dataset, inference_tmaze, train_tmaze
from tools import explain_memories, reproduce_capacity, reproduce_leaderboard, reproduce_memories
from VizDoom.VizDoom_src import dataset as vizdoom_dataset
from VizDoom.VizDoom_src import graphics, inference_vizdoom, train_vizdoom
from VizDoom.VizDoom_src import reproduce as vizdoom_study

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *(path for path in sorted(ROOT.glob("*/README.md")) if path.parent.name != "benchmarks"),
    *sorted((ROOT / "results").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "CONTRIBUTING.md",
]
OPTIONS = {
    "inference_tmaze.py": inference_options(inference_tmaze),
    "TMaze_new/TMaze_new_src/dataset.py": dataset.Options,
    "VizDoom/VizDoom_src/dataset.py": vizdoom_dataset.DATA.flags,
    "MemoryMaze/MemoryMaze_src/dataset.py": memory_maze_dataset.DATA.flags,
    "VizDoom/VizDoom_src/graphics.py": graphics.Options,
    "TMaze_new/TMaze_new_src/reproduce.py": PageOptions,
    "MinigridMemory/MinigridMemory_src/reproduce.py": PageOptions,
    "VizDoom/VizDoom_src/reproduce.py": vizdoom_study.Options,
    "MemoryMaze/MemoryMaze_src/reproduce.py": memory_maze_study.Options,
    "Atari/generate_dataset.py": atari_dataset.DATA.flags,
    "Atari/reproduce.py": StudyOptions,
    "reproduce.py": StudyOptions,
    "tools/reproduce_memories.py": reproduce_memories.Options,
    "tools/reproduce_leaderboard.py": reproduce_leaderboard.Options,
    "reproduce_leaderboard.py": reproduce_leaderboard.Options,
    "tools/explain_memories.py": explain_memories.Options,
    "tools/reproduce_capacity.py": reproduce_capacity.Options,
    "collect_traj.py": collect_traj.DATA.flags,
    "inference_minigridmemory.py": inference_options(inference_minigridmemory),
    "download_d4rl_datasets.py": download_d4rl_datasets.Options,
    "MuJoCo/generate_dataset.py": generate_dataset.GenerateOptions,
    "inference_mujoco.py": inference_options(inference_mujoco),
    "inference_vizdoom.py": inference_options(inference_vizdoom),
    "inference_mem_maze.py": inference_options(inference_mem_maze),
    "inference_atari.py": inference_options(inference_atari),
}
# Modules started with -m, and their parsers.
MODULES = {
    "RATE_model.original": lambda words: original_parser().parse_args(words),
    "RATE_model.train": lambda words: OwnEnvironment().read_config([w for w in words if w not in ("--data", "my.h5")]),
    "RATE_model.evaluate": lambda words: parse_options(
        evaluation.options_class(OwnEnvironment.play_options), argv=words
    ),
    "RATE_model.plots": lambda words: plots_parser().parse_args(words),
    "RATE_model.diagnose": diagnose.read_options,
    "RATE_model.diagnose.retention": retention.read_options,
    "RATE_model.protocol": protocol.read_options,
    "RATE_model.report": report.read_options,
    "RATE_model.sweep": lambda words: sweep.parser().parse_args(words),
}
TRAIN_SCRIPTS = {
    "train_tmaze.py": train_tmaze,
    "train_minigridmemory.py": train_minigridmemory,
    "train_rate_mujoco_ca.py": train_rate_mujoco_ca,
    "train_vizdoom.py": train_vizdoom,
    "train_mem_maze.py": train_mem_maze,
    "train_rate_atari.py": train_rate_atari,
}


def commands() -> list[str]:
    """Every command of the pages, on its own line or in backticks, from the script or ``-m`` on.

    Leaves out pytest, and the example memory, which has its own test.
    """
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(
            r"^ *(?:[A-Z_]+=\S+ |exec |srun |\.venv/bin/)*((?:python3?|torchrun) .*)$", text, re.MULTILINE
        )
        for command in lines + re.findall(r"`((?:python3?|torchrun) [^`]*)`", text):
            start = re.search(r"(-m RATE_model|-W ignore|[\w/]+\.py\b).*", command)
            if start and "pytest" not in command and "--model_mode EMA" not in command:
                found[start[0]] = None
    return list(found)


def words_of(command: str) -> list[str]:
    """The words of a command, without a comment, an end of a surrounding quote, ``&`` and ``...``."""
    if command.count("'") % 2:
        command = command.removesuffix("'")
    words = shlex.split(command.replace("$SLURM_ARRAY_TASK_ID", "1").replace("CHECKOUT", str(ROOT)), comments=True)
    return [word for word in words if word not in ("&", "...")]


def test_the_pages_show_commands():
    found = commands()
    assert len(found) >= 100 and any(command.startswith("benchmarks/") for command in found)


def training_options() -> set[str]:
    """What all train scripts call their options; data scripts read their config files."""
    return set().union(*(option_names(script.ENVIRONMENT.config) for script in TRAIN_SCRIPTS.values()))


@pytest.mark.parametrize("command", commands())
def test_a_command_is_understood(command):
    words = words_of(command)
    if words[:2] == ["-W", "ignore"]:
        del words[:2]
    script, *arguments = words
    if script == "-m":
        module = arguments.pop(0)
        if arguments:  # a name alone is a mention
            MODULES[module](arguments)
        return
    path = ROOT / script
    assert path.is_file()
    if path.name in TRAIN_SCRIPTS:
        train_script(TRAIN_SCRIPTS[path.name]).read_config(
            [a if not a.endswith(".yaml") else str(ROOT / a) for a in arguments]
        )
    elif options := OPTIONS.get(script) or OPTIONS.get(path.name):
        arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in arguments]
        parse_options(options, argv=arguments, also=training_options)
    elif path.parent.name == "benchmarks":
        parse_options(importlib.import_module(f"benchmarks.{path.stem}").Options, argv=arguments)
    else:
        assert path.name in ("check_parity.py", "quickstart.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not missing
