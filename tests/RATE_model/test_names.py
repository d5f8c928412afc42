"""The shared package knows no environment: what is particular to one stands in its folder."""

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "RATE_model"
# A format that any data may have is not an environment: D4RL's files, Minari's.
NAMES = re.compile(
    r"t-?maze|viz-?doom|\bdoom\b|mini-?grid|memory[ _-]?maze|mem_maze|\batari\b|breakout|mujoco|half-?cheetah|hopper"
    r"|walker2d|two.colou?rs|pillar|\bale\b|ale_py|dm_control",
    re.IGNORECASE,
)
# The table of what the published checkpoints of each environment look like.
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
