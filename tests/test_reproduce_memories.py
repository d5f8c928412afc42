"""The page that compares all memories."""

import json
from dataclasses import replace

import pytest

from RATE_model.errors import UserError
from RATE_model.memories import MEMORIES, MODES
from RATE_model.pages.study import Study, _here
from tests.small_models import small_model
from tools import reproduce_memories
from tools.reproduce_memories import LABELS, SECTIONS, TMAZE_TRIES, Options, acting_ms, chosen, run, write


def entry(seeds=(1, 2, 3)) -> dict:
    return {
        "d_model": 64, "parameters": 110, "memory_parameters": 100, "state_numbers": 5, "acting_ms": 1.25,
        "train_seconds": [10.0] * len(seeds), "optimizer_steps": [400] * len(seeds), "solved": [True] * len(seeds),
        "seeds": list(seeds), "commit": ["0123456789abcdef"], "date": "2026-01-01",
    }  # fmt: skip


def test_page_has_every_memory():
    assert {MODES[label].memory for label in LABELS} == MEMORIES.keys()
    sections = [section for name, section in SECTIONS.items() if "second_tries" not in name]
    assert all(list(section.study.models) == list(LABELS) for section in sections)


def test_second_tries_are_chosen_by_their_memory():
    tries = SECTIONS["tmaze_second_tries"]
    of_ffm = chosen(tries, ["FFM", "RATE"])
    assert of_ffm and all(label.startswith("FFM, ") for label in of_ffm)
    assert chosen(tries, of_ffm) == of_ffm and chosen(SECTIONS["tmaze"], of_ffm) == []
    assert chosen(tries, []) == list(TMAZE_TRIES) and chosen(SECTIONS["tmaze"], ["FFM"]) == ["FFM"]
    with pytest.raises(UserError, match="--models FF: "):
        chosen(tries, ["FF"])
    with pytest.raises(UserError, match=r"must be one of .*did you mean GRU, forget bias 4"):
        chosen(tries, ["GRU, forget bias 5"])


def test_model_of_another_section_is_refused(tmp_path):
    with pytest.raises(UserError, match="--models 'GRU, forget bias 4' is not in --environments tmaze, but in tmaze_s"):
        run(Options(results_dir=tmp_path, environments=("tmaze",), models=("GRU, forget bias 4",)))


TRIES = [
    (name, label) for name in ("tmaze_second_tries", "minigrid_second_tries") for label in SECTIONS[name].study.models
]


@pytest.mark.parametrize(("section", "label"), TRIES)
def test_second_tries_have_valid_flags(section, label):
    study = SECTIONS[section].study
    assert study.read_config(_here(study.command(label, [1])[1:])).model.model_mode


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


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    """Replaces training by a list of (label, seed); LSTM's first seed fails."""
    asked = []

    def run(study, label, seed, options, stop=None):
        asked.append((label, seed))
        if (label, seed) == ("LSTM", 1):
            raise UserError("LSTM, seed 1: exit code 1")
        return tmp_path / f"{label}_{seed}"

    def collect(section, label, runs):
        seeds = [int(path.name[-1]) for path in runs]
        rates = {str(case): [1.0] * len(seeds) for case in section.cases}
        return entry(seeds) | {"success_rate": rates, "command": section.study.key(label)}

    monkeypatch.setattr(Study, "run", run)
    monkeypatch.setattr(reproduce_memories, "collect", collect)
    for name, section in SECTIONS.items():
        monkeypatch.setitem(SECTIONS, name, replace(section, make_data=lambda config: None))
    return asked


def make_page(folder, *words) -> int:
    tmaze = ["--environments", "tmaze", "--jobs", "1", "--results_dir", str(folder)]
    return reproduce_memories.main([*tmaze, *words])


def seeds_on_page(folder) -> dict[str, list[int]]:
    return {label: found["seeds"] for label, found in json.loads((folder / "memories.json").read_text()).items()}


def test_first_seeds_run_first_and_page_is_updated(tmp_path, monkeypatch, trainings):
    pages, write_page = [], reproduce_memories.write

    def write(document, options):
        write_page(document, options)
        pages.append(list(document))

    monkeypatch.setattr(reproduce_memories, "write", write)
    assert make_page(tmp_path, "--models", "RATE", "LSTM", "GRU", "--seeds", "1", "2") == 1
    assert trainings == [("RATE", 1), ("LSTM", 1), ("GRU", 1), ("RATE", 2), ("GRU", 2)]
    assert seeds_on_page(tmp_path) == {"T-Maze: RATE": [1, 2], "T-Maze: GRU": [1, 2]}
    assert [len(page) for page in pages] == [1, 2, 2, 2, 2]


def test_seeds_on_the_page_are_not_trained_again(tmp_path, trainings, capsys):
    assert make_page(tmp_path, "--models", "RATE", "GRU", "--seeds", "2") == 0
    assert make_page(tmp_path, "--models", "RATE", "GRU", "--seeds", "1", "2", "3") == 0
    assert trainings == [("RATE", 2), ("GRU", 2), ("RATE", 1), ("GRU", 1), ("RATE", 3), ("GRU", 3)]
    assert seeds_on_page(tmp_path) == {"T-Maze: RATE": [1, 2, 3], "T-Maze: GRU": [1, 2, 3]}
    trainings.clear()
    assert make_page(tmp_path, "--models", "RATE", "--seeds", "2", "--again", "true") == 0
    assert trainings == [("RATE", 2)] and seeds_on_page(tmp_path)["T-Maze: RATE"] == [1, 2, 3]

    page = tmp_path / "memories.json"
    document = json.loads(page.read_text())
    document["T-Maze: RATE"]["command"] = "train.py --other flags"
    del document["T-Maze: GRU"]["command"]  # as written before commands were kept
    page.write_text(json.dumps(document))
    trainings.clear()
    with pytest.raises(SystemExit, match="^2$"):
        make_page(tmp_path, "--models", "RATE", "GRU", "--seeds", "1")
    assert "seeds 1 2 3 of T-Maze: RATE, made by another command, and they would be lost" in capsys.readouterr().err
    assert make_page(tmp_path, "--models", "RATE", "GRU", "--seeds", "1", "2", "3", "4") == 0
    assert trainings == [("RATE", 1), ("RATE", 2), ("RATE", 3), ("RATE", 4), ("GRU", 4)]
    assert seeds_on_page(tmp_path) == {"T-Maze: RATE": [1, 2, 3, 4], "T-Maze: GRU": [1, 2, 3, 4]}


def test_pages_of_several_machines_are_joined(tmp_path, trainings, capsys):
    parts = [tmp_path / name for name in ("here", "there")]
    make_page(parts[0], "--models", "RATE", "--seeds", "1")
    make_page(parts[1], "--models", "RATE", "GRU", "--seeds", "2", "3")
    trainings.clear()
    other = parts[1] / "memories.json"
    assert make_page(parts[0], "--join", str(other)) == 0 and not trainings
    assert seeds_on_page(parts[0]) == {"T-Maze: RATE": [1, 2, 3], "T-Maze: GRU": [2, 3]}
    assert "| RATE | 1.00 ± 0.00 |" in (parts[0] / "memories.md").read_text()
    other.write_text(other.read_text().replace("--model_mode GRU", "--model_mode GRU --lr 1"))
    for file, words in ((other, "'T-Maze: GRU' was made by another command"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(SystemExit, match="^2$"):
            make_page(parts[0], "--join", str(file))
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"T-Maze: RATE": ', "is damaged, or not JSON"),
        ("[]", "holds list; it must be the JSON file"),
        ('{"T-Maze: RATE": 3}', "'T-Maze: RATE' is not an entry"),
        ('{"T-Maze: RATE": {"seeds": [1]}}', "'T-Maze: RATE' has no 'success_rate'"),
    ],
)
def test_a_damaged_page_is_named(text, words, tmp_path, trainings, capsys):
    """Whether it is another machine's or this one's, which stays as it was."""
    damaged, page = tmp_path / "there.json", tmp_path / "page"
    damaged.write_text(text)
    with pytest.raises(SystemExit, match="^2$"):
        make_page(page, "--join", str(damaged))
    assert words in capsys.readouterr().err and not page.exists()
    page.mkdir()
    (page / "memories.json").write_text(text)
    with pytest.raises(SystemExit, match="^2$"):
        make_page(page, "--models", "RATE", "--seeds", "1")
    assert words in capsys.readouterr().err and not trainings
    assert (page / "memories.json").read_text() == text


def test_joined_seeds_need_a_value_in_every_list(tmp_path, trainings, capsys):
    make_page(tmp_path / "there", "--models", "RATE", "--seeds", "1", "2")
    other = tmp_path / "there" / "memories.json"
    document = json.loads(other.read_text())
    del document["T-Maze: RATE"]["success_rate"]["9600"][0]
    other.write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="^2$"):
        make_page(tmp_path / "here", "--join", str(other))
    assert "has 2 seeds, but 1 values of 'success_rate 9600'" in capsys.readouterr().err


def test_acting_is_timed():
    assert 0 < acting_ms(small_model(), episodes=2, steps=3) < 1000
