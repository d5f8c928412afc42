"""The shared package names no environment; acting, training and environments name no memory."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from RATE_model.memories import MEMORIES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "RATE_model"
# Data formats are not environments: D4RL's files, Minari's.
NAMES = re.compile(
    r"t-?maze|viz-?doom|\bdoom\b|mini-?grid|memory[ _-]?maze|mem_maze|\batari\b|breakout|mujoco|half-?cheetah|hopper"
    r"|walker2d|two.colou?rs|pillar|\bale\b|ale_py|dm_control",
    re.IGNORECASE,
)
# The table of published checkpoints by environment.
EXCEPTION = PACKAGE / "original"


def test_no_environment_is_named_in_the_shared_package():
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*"))
        if path.suffix in (".py", ".yaml", ".md") and EXCEPTION not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if NAMES.search(line)
    ]
    assert not found, "\n".join(found)


FOLDERS = ["TMaze_new", "VizDoom", "MinigridMemory", "MemoryMaze", "Atari", "MuJoCo"]
WITHOUT_MEMORIES = [*FOLDERS, *(f"RATE_model/{name}" for name in ("acting", "training", "data", "cli", "pages"))]
CLASSES = {cls.__name__ for entry in MEMORIES.values() for cls in (entry.memory, entry.config, entry.options)}
CLASSES |= {
    "SegmentState",
    "RecurrentState",
    "AttentionValve",
    "GateValve",
    "CellValve",
    "RoundingValve",
    "SegmentStepper",
    "RelativeAttention",
}
# Modules of the folder that know memories only through the table.
OF_ALL_MEMORIES = ("RATE_model.memories.contract", "RATE_model.memories.budget")
# Attributes that would reach a memory's internals without an import.
INSIDES = {"memory_tokens", "valve", "roll_cache", "wrap_distances", "cache_lengths", "content_bias", "num_mem_tokens"}


def names_in(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and names that a module uses: identifiers, attributes, imports, and modules that it imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            yield from ((node.lineno, f"{module}.{name.name}" if module else name.name) for name in node.names)


@pytest.mark.parametrize("folder", WITHOUT_MEMORIES)
def test_no_memory_is_named_in_generic_code(folder):
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, name in names_in(path):
            last, module = name.rpartition(".")[2], name.rpartition(".")[0]
            table = name in ("RATE_model.memories.MEMORIES", "RATE_model.memories.MODES")
            inside = name.startswith("RATE_model.memories.") and module not in OF_ALL_MEMORIES and not table
            if last in CLASSES | INSIDES or inside:
                found.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not found, "\n".join(found)


def test_a_named_memory_would_be_found(tmp_path):
    """The test above detects every form in which a module can name one."""
    (tmp_path / "module.py").write_text(
        "from RATE_model.memories.recurrent import LSTM\nimport RATE_model.memories.rate.memory\nagent.memory.valve\n"
    )
    names = {name for _, name in names_in(tmp_path / "module.py")}
    assert {"RATE_model.memories.recurrent.LSTM", "RATE_model.memories.rate.memory", "valve", "agent"} <= names
