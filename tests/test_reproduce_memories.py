"""The page that compares all memories."""

import json
from dataclasses import replace

from RATE_model.cli.reproduce import Study
from RATE_model.errors import UserError
from RATE_model.memories import MEMORIES, MODES
from tests.small_models import small_model
from tools import reproduce_memories
from tools.reproduce_memories import LABELS, SECTIONS, Options, acting_ms, write


def entry(seeds=(1, 2, 3)) -> dict:
    return {
        "d_model": 64, "parameters": 110, "memory_parameters": 100, "state_numbers": 5, "acting_ms": 1.25,
        "train_seconds": [10.0] * len(seeds), "optimizer_steps": [400] * len(seeds), "solved": [True] * len(seeds),
        "seeds": list(seeds), "commit": ["0123456789abcdef"], "date": "2026-01-01",
    }  # fmt: skip


def test_page_has_every_memory():
    assert {MODES[label].memory for label in LABELS} == MEMORIES.keys()
    assert all(list(section.study.models) == list(LABELS) for section in SECTIONS.values())


def test_what_is_measured_is_shown_with_its_commands(tmp_path):
    document, shown = {}, {name: SECTIONS[name] for name in ("tmaze", "minigrid")}
    for section in shown.values():
        for label in LABELS[:7]:
            rates = {str(case): [1.0, 0.5, 0.75] for case in section.cases}
            document[f"{section.title}: {label}"] = entry() | {"success_rate": rates}
    write(document, Options(results_dir=tmp_path))
    page = (tmp_path / "memories.md").read_text()
    for name, section in shown.items():
        assert f"## {section.title}\n" in page and (tmp_path / f"memories_{name}.png").stat().st_size > 0
    assert page.count("| RATE | 0.75 ± 0.14 |") == len(shown) and page.count("--budget 0.1M") == 7 * len(shown)
    assert f"--model_mode {LABELS[7]} " not in page
    assert json.loads((tmp_path / "memories.json").read_text()) == document


def test_first_seeds_run_first_and_page_is_updated(tmp_path, monkeypatch):
    asked, pages = [], []

    def run(study, label, seed, options, stop=None):
        asked.append((label, seed))
        if (label, seed) == ("LSTM", 1):
            raise UserError("LSTM, seed 1: exit code 1")
        return tmp_path / f"{label}_{seed}"

    def collect(section, runs):
        seeds = [int(path.name[-1]) for path in runs]
        return entry(seeds) | {"success_rate": {str(case): [1.0] * len(seeds) for case in section.cases}}

    def write(document, options):
        pages.append({label: found["seeds"] for label, found in document.items()})

    monkeypatch.setattr(Study, "run", run)
    for name, replacement in {"collect": collect, "write": write}.items():
        monkeypatch.setattr(reproduce_memories, name, replacement)
    for name, section in SECTIONS.items():
        monkeypatch.setitem(SECTIONS, name, replace(section, make_data=lambda config: None))
    words = ["--models", "RATE", "LSTM", "GRU", "--seeds", "1", "2", "--environments", "tmaze", "--jobs", "1"]
    assert reproduce_memories.main([*words, "--results_dir", str(tmp_path)]) == 1
    assert asked == [("RATE", 1), ("LSTM", 1), ("GRU", 1), ("RATE", 2), ("GRU", 2)]
    assert pages[-1] == {"T-Maze: RATE": [1, 2], "T-Maze: GRU": [1, 2]}
    assert [len(page) for page in pages] == [1, 2, 2, 2]


def test_acting_is_timed():
    assert 0 < acting_ms(small_model(), episodes=2, steps=3) < 1000
