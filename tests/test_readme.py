"""What README says to type is understood, and what it links to is there."""

import re
import shlex
from pathlib import Path

import pytest

from RATE_model.options import parse_options
from RATE_model.original import _parser as original_parser
from TMaze_new.TMaze_new_src import dataset, inference_tmaze, train_tmaze

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "TMaze_new/README.md", "results/tmaze.md", "benchmarks/README.md")]
OPTIONS = {
    "inference_tmaze.py": inference_tmaze.Options,
    "dataset.py": dataset.Options,
}


def commands() -> list[str]:
    """Every line of a page that starts with python3."""
    return [
        line.strip() for page in PAGES for line in page.read_text().splitlines() if line.strip().startswith("python3 ")
    ]


def test_the_pages_show_commands():
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", commands())
def test_a_command_is_understood(command):
    script, *arguments = shlex.split(command)[1:]
    if script == "-m":
        assert arguments.pop(0) == "RATE_model.original"
        original_parser().parse_args(arguments)
        return
    path = ROOT / script
    assert path.is_file()
    if path.name == "train_tmaze.py":
        train_tmaze.read_config([a if not a.endswith(".yaml") else str(ROOT / a) for a in arguments])
    elif path.name in OPTIONS:
        parse_options(OPTIONS[path.name], argv=arguments)
    else:
        assert path.name in ("check_parity.py", "reproduce.py", "quickstart.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not missing
