"""Tables of results."""

import json
import math
import os
import re
import shlex
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from RATE_model.cli.options import exit_on_user_error, parse_options, to_yaml
from RATE_model.errors import UserError
from RATE_model.pages import study as studies
from RATE_model.pages.checks import check_figures
from RATE_model.pages.entries import (
    by_model,
    entry_of,
    join_pages,
    keep_outdated,
    keep_seeds,
    kept_entries,
    merged,
    missing_seeds,
    with_seeds,
)
from RATE_model.pages.page_file import BEGIN, END, read_results, write_results
from RATE_model.pages.run_results import final_results, provenance
from RATE_model.pages.study import PageOptions, Study, StudyOptions, of_modes
from RATE_model.pages.tables import cell, origin, training_table
from RATE_model.training.runs import FinishedRun
from tests.small_models import save_small_model, small_model
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT, Config


def test_unwritable_folders_are_reported_first(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for flag in ("results_dir", "runs_dir"):
        StudyOptions(**{flag: tmp_path / "new" / "folder"}).validate()
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(UserError, match=re.escape(f"--{flag} {folder}: {tmp_path / 'file'} is a file")):
                StudyOptions(**{flag: folder}).validate()
    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(os, "access", lambda path, mode: path != tmp_path)
        with pytest.raises(UserError, match=f"--results_dir .*: {tmp_path} is not writable"):
            StudyOptions(results_dir=tmp_path / "new" / "folder").validate()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_device_defaults_to_that_of_the_table(tmp_path, monkeypatch):
    asked = []

    def end(*arguments, **options):
        raise InterruptedError

    monkeypatch.setattr(studies.subprocess, "Popen", end)
    run = SimpleNamespace(directory=tmp_path)
    for made_on, flag in (("cpu", None), ("auto", None), ("cpu", "cuda:1")):
        study = Study("train.py", (), {"A": ()}, lambda flags: asked.append(flags), lambda *_: run, device=made_on)
        with pytest.raises(InterruptedError):
            study.run("A", 1, StudyOptions(device=flag))
    assert [flags[flags.index("--device") + 1] for flags in asked] == ["cpu", "auto", "cuda:1"]
    assert Study("train.py", (), {}, None, None).device == "cpu"


def test_unusable_run_is_reported():
    def check(*_):
        raise UserError("RUN holds eval/final.json but no checkpoint")

    study = Study("train.py", (), {"A": ()}, lambda flags: None, check)
    with pytest.raises(UserError, match="A, seed 1: RUN holds .*no checkpoint .here: give another --runs_dir"):
        study.run("A", 1, StudyOptions())


def test_a_finished_run_is_kept_without_its_checkpoints(tmp_path):
    def check(*_):
        raise FinishedRun("RUN holds eval/final.json but no checkpoint", tmp_path)

    finished(tmp_path)
    study = Study("train.py", (), {"A": ()}, lambda flags: Config(), check)
    assert study.run("A", 1, StudyOptions()) == tmp_path
    other = Config(task=replace(Config().task, eval_episodes=7))
    study = Study("train.py", (), {"A": ()}, lambda flags: other, check)
    with pytest.raises(UserError, match=f"{tmp_path} finished with another --eval_episodes, and has no checkpoint"):
        study.run("A", 1, StudyOptions())


# What may differ in a run that is continued, and in its evaluation.
CHANGES = ("--epochs 99", "--eval_episodes 7", "--slide 5", "--use_argmax false", "--eval_lengths 9")


@pytest.mark.parametrize("change", ["", "--device auto", "--num_workers 1", *CHANGES])
def test_results_of_other_flags_are_not_those_of_a_command(tmp_path, change):
    """The run directory is the same: it is continued, or evaluated again."""
    before, study = (
        Study.of(ENVIRONMENT, (), {"DT": ("--model_mode", "DT", *words)}) for words in ((), change.split())
    )
    config = ENVIRONMENT.read_config([*before.command("DT", [1])[1:], "--output_dir", str(tmp_path)])
    run = before.check(config, 1).directory
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(config))
    finished(run)
    save_small_model(small_model("DT"), run)
    assert (study.finished("DT", 1, StudyOptions(runs_dir=tmp_path)) is None) == (change in CHANGES)


def test_a_start_that_did_not_end_has_no_results(tmp_path):
    """Its config.yaml is new, and the results are of an earlier start."""
    run = finished(tmp_path)
    study = Study("train.py", (), {"A": ()}, lambda _: Config(), lambda *_: SimpleNamespace(directory=run))
    assert study.finished("A", 1, StudyOptions()) == run
    os.utime(run / "eval" / "final.json", (0, 0))
    assert study.finished("A", 1, StudyOptions()) is None


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("eval/final.json", '{"a"', "cannot be used .Expecting"),
        ("eval/final.json", "[]", "it holds list"),
        ("environment.json", "", "cannot be used"),
        ("environment.json", "{}", "it has no 'starts'"),
        ("environment.json", '{"starts": []}', "'starts' are not those of a run"),
        ("environment.json", '{"starts": 3}', "'starts' are not those of a run"),
        ("environment.json", '{"starts": [{}]}', "'starts' are not those of a run"),
        ("environment.json", '{"starts": [{"seed": 1, "git": null, "started": ["2026"]}]}', "'starts' are not those"),
    ],
)
def test_damaged_files_of_a_finished_run_are_reported_before_training(file, text, words, tmp_path):
    finished(tmp_path)
    (tmp_path / file).write_text(text)
    study = Study("train.py", (), {"A": ()}, lambda _: Config(), lambda *_: SimpleNamespace(directory=tmp_path))
    with pytest.raises(UserError, match=f"{file}: .*{words}.*; move it away and repeat this command"):
        study.run_all(StudyOptions(seeds=(0, 1)))


def test_a_figure_that_a_run_lacks_is_named(tmp_path):
    (found,) = final_results([finished(tmp_path)])
    with pytest.raises(UserError, match="eval/final.json: cannot be used .it has no 'eval_return'"):
        found["eval_return"]
    for value in ("x", None, [1]):
        (tmp_path / "eval" / "final.json").write_text(json.dumps({"eval_return": value}))
        (found,) = final_results([tmp_path])
        with pytest.raises(UserError, match="'eval_return' is .*, not a number"):
            found["eval_return"]


def finished(run: Path) -> Path:
    """A finished run without a checkpoint."""
    start = {"seed": 1, "started": "2026-01-01T00:00:00+00:00", "git": {"commit": "c" * 40}}
    (run / "eval").mkdir()
    if not (run / "config.yaml").exists():
        (run / "config.yaml").write_text(to_yaml(Config()))
    (run / "eval" / "final.json").write_text("{}")
    (run / "environment.json").write_text(json.dumps({"starts": [start]}))
    return run


def test_signal_stops_all_runs_of_a_table(tmp_path, monkeypatch):
    """Running ones save their state and stop; waiting ones do not start."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    pathlib.Path(f'{sys.argv[2]}.saved').touch()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path(f'{sys.argv[2]}.begun').touch()\n"
        "time.sleep(60)\n"
    )

    def begun(kind: str = "begun") -> int:
        return len(list(tmp_path.glob(f"*.{kind}")))

    def signal_when_begun() -> None:
        while begun() < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(studies, "ROOT", tmp_path)
    run = SimpleNamespace(directory=tmp_path)
    models = {name: (str(tmp_path / name),) for name in "ABC"}
    study = Study(str(script), ("--name",), models, lambda flags: flags, lambda *_: run)
    threading.Thread(target=signal_when_begun).start()
    started = time.monotonic()
    with pytest.raises(SystemExit, match="143"), exit_on_user_error():
        study.run_all(StudyOptions(seeds=(1,), jobs=2))
    assert time.monotonic() - started < 30 and begun() == begun("saved") == 2


def test_cell_shows_mean_and_error():
    assert cell([0.5, 1.0]) == "0.75 ± 0.25" and cell([12.0, 14.0], 0) == "13 ± 1"
    assert cell([0.681]) == "0.68" and cell([3.0], 0) == "3"
    assert cell(None) == cell([]) == ""


def test_a_document_names_its_commits_once():
    document = {"a": {"commit": ["b" * 40, "a" * 40]}, "b": {"commit": ["a" * 40]}, "c": {}}
    assert origin(document) == f"at commit {'a' * 12}, {'b' * 12} on an unrecorded date"
    assert "commit" not in origin({"c": {}})


def test_origin_lists_commits_by_date():
    document = {
        "a": {"commit": ["a" * 40], "date": "2026-02-02"},
        "b": {"commit": ["b" * 40], "date": "2026-01-01"},
        "c": {"commit": [], "date": "2026-01-01"},
    }
    dated = f"at commit {'b' * 12} on 2026-01-01 and at commit {'a' * 12} on 2026-02-02"
    assert origin(document) == dated
    spans = {"e": {"commit": ["e" * 40], "date": "2026-02-02 to 2026-02-03"}}
    assert origin(spans) == f"at commit {'e' * 12} from 2026-02-02 to 2026-02-03"
    old = {"d": {"commit": ["d" * 40]}}
    assert origin(document | old) == f"{dated} and at commit {'d' * 12} on an unrecorded date"


STUDY = Study("train.py", (), {"A": (), "A, changed": (), "B": ()}, lambda _: Config(), None)


def test_unmeasured_models_stay_on_the_page(tmp_path):
    page = {"A": {"seeds": [1, 2]}, "B": {"seeds": [1]}, "A, knocked out": {"seeds": [1, 2]}, "expert": {}}
    (tmp_path / "page.json").write_text(json.dumps(page))

    def kept(**changes):
        return kept_entries("page", STUDY, PageOptions(results_dir=tmp_path, **{"seeds": (1, 2)} | changes))

    assert kept() == {} == kept_entries("none", STUDY, PageOptions(results_dir=tmp_path, models=("B",)))
    assert kept(models=("B",)).keys() == {"A", "A, knocked out", "expert"}
    with pytest.raises(UserError, match="--seeds 1: .*page.json has seeds 1 2 of A;"):
        kept(models=("B",), seeds=(1,))
    assert kept(models=tuple(STUDY.models), seeds=(1, 2)).keys() == {"expert"}
    with pytest.raises(UserError, match="--models C: must be one of A, 'A, changed', B"):
        kept(models=("A", "C"))
    assert parse_options(PageOptions, argv=["--models", "A", "A, changed"]).models == ("A", "A, changed")


def test_measured_entries_replace_kept_ones():
    entries = merged({"B": 1, "old": 1, "C": 1}, {"A": 2, "C": 2}, ["A", "B", "C"])
    assert list(entries.items()) == [("A", 2), ("B", 1), ("C", 2), ("old", 1)]


def page_entry(seeds, score, **more):
    return {
        "size": 5,
        "scores": {"9": [score] * len(seeds)},
        "seeds": list(seeds),
        "commit": ["a"],
        "date": "2026-01-01",
    } | more


def test_seeds_join_an_entry_one_by_one():
    old = page_entry([2, 1], 0.5)
    new = page_entry([3, 2], 1.0, size=6, commit=["b"], date="2026-01-02", command="train.py")
    joined = {"size": 5, "seeds": [1, 2, 3], "commit": ["a", "b"], "command": "train.py"}
    joined["date"] = "2026-01-01 to 2026-01-02"
    assert with_seeds(old, new) == joined | {"scores": {"9": [0.5, 1.0, 1.0]}}
    assert with_seeds({}, new)["seeds"] == [2, 3] and with_seeds(old, {})["scores"] == {"9": [0.5, 0.5]}
    assert missing_seeds(old, [1, 2, 3]) == [3] and missing_seeds({}, [1, 2]) == [1, 2]
    del old["date"]  # of an older page
    assert with_seeds(old, new)["date"] == "2026-01-02" and "date" not in with_seeds({}, old)


def test_seeds_do_not_get_the_figures_of_others():
    """Of a list that an older entry lacks."""
    old, new = page_entry([1], 0.5), page_entry([2], 1.0, solved=[True])
    assert "solved" not in with_seeds(old, new) and "solved" not in with_seeds(new, old)
    assert with_seeds(page_entry([2], 0.5), new)["solved"] == [True]  # all seeds are the new entry's


def test_entries_of_other_commands_do_not_count():
    page = {"A": {"command": STUDY.key("A")}, "A, changed": {"command": "other.py"}, "B": {"seeds": [1]}}
    found = {label: entry_of(page, label, STUDY.key(label)) for label in STUDY.models}
    assert found == {"A": page["A"], "A, changed": {}, "B": page["B"]} and entry_of({}, "A", "train.py") == {}
    command, _, values = STUDY.key("A", "--size", "3").partition("  # flags ")
    assert command == "train.py --ckpt_folder reproduce_a --size 3" and len(values) == 8
    assert shlex.join(STUDY.command("A", [1, 2, 3])) == "train.py --ckpt_folder reproduce_a --start_seed 1 --end_seed 3"


def test_entries_of_other_values_do_not_count(monkeypatch):
    """A YAML file may change while the command stays. Entries of older pages have no values."""
    page = {"A": {"command": STUDY.key("A")}, "B": {"command": STUDY.key("B").partition("  # ")[0]}}
    other = Config(train=replace(Config().train, learning_rate=0.5))
    study = replace(STUDY, read_config=lambda _: other)
    assert entry_of(page, "A", study.key("A")) == {} and entry_of(page, "B", study.key("B")) == page["B"]
    moved = Config(run=replace(Config().run, output_dir=Path("elsewhere"), device="cuda"))
    assert replace(STUDY, read_config=lambda _: moved).key("A") == STUDY.key("A")
    new = replace(STUDY, before={"learning_rate": 0.5}, read_config=lambda _: other)
    without = replace(STUDY, before={"learning_rate": Config().train.learning_rate})
    assert new.key("A") == without.key("A"), "a flag that did not exist before has no part in its usual value"


def test_a_page_shows_no_entry_of_another_command(tmp_path):
    page = {"A": {"seeds": [1], "command": "other.py"}, "B": {"seeds": [1]}, "expert": {}}
    (tmp_path / "page.json").write_text(json.dumps(page))
    options = PageOptions(results_dir=tmp_path, seeds=(1,), models=("B",))
    with pytest.raises(UserError, match="page.json: 'A' was made by another command than today's; name A in --models"):
        kept_entries("page", STUDY, options)
    assert kept_entries("page", STUDY, replace(options, models=("A", "B"))) == {"expert": {}}


def test_commands_name_no_seed_that_was_not_measured():
    found = STUDY.commands([1, 2, 5, 7, 8], ["A"]).splitlines()
    ranges = [" ".join(line.split()[-4:]) for line in found]
    assert ranges == [f"--start_seed {first} --end_seed {last}" for first, last in ((1, 2), (5, 5), (7, 8))]


def test_models_are_called_like_their_modes():
    assert of_modes({"RATE": "", "RATE, slow": "--mrv FSQ --nmt 5"}) == {
        "RATE": ("--model_mode", "RATE"),
        "RATE, slow": ("--model_mode", "RATE", "--mrv", "FSQ", "--nmt", "5"),
    }


def figures(seeds: list[int], rates: list[float], command: str = "train") -> dict[str, Any]:
    """An entry of a page."""
    return {"seeds": seeds, "rate": rates, "size": 3, "command": command, "commit": ["c"], "date": "2026-01-01"}


def check_rates(name: str, entry: Any, place: str) -> None:
    check_figures(entry, place, of_seeds=(), rates={"rate": ()}, alone=("size",))


def test_pages_are_joined(tmp_path):
    """For a seed in several, the page's figures count, then those of the first file; entries of old commands go."""
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps({"B": figures([1, 2], [0.1, 0.2]), "A": figures([1, 2], [0.3, 0.4])}))
    second.write_text(json.dumps({"B": figures([2, 3], [0.8, 0.9])}))
    page = {"B": figures([1], [0.0]), "A": figures([1, 2], [1.0, 1.0], "train, as it was")}
    joined = join_pages(page, [first, second], {"A": "train", "B": "train"}, check_rates)
    assert list(joined) == ["A", "B"]
    assert (joined["A"]["seeds"], joined["A"]["rate"]) == ([1, 2], [0.3, 0.4])
    assert (joined["B"]["seeds"], joined["B"]["rate"]) == ([1, 2, 3], [0.0, 0.2, 0.9])
    assert page["B"]["seeds"] == [1]
    page["A"]["seeds"] = [1, 3]
    with pytest.raises(UserError, match="first.json: 'A' would replace seeds that another command made"):
        join_pages(page, [first], {"A": "train", "B": "train"}, check_rates)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "has no figures"),
        ({"A": figures([1], [0.1], "another")}, "'A' was made by another command"),
        ({"B": figures([1], [0.1])}, "'B' was made by another command"),
        ({"A": figures([], [])}, "'seeds' is .*; must be different seeds"),
        ({"A": figures([1, 1], [0.1, 0.2])}, "must be different seeds"),
        ({"A": figures([1, 2], [0.1])}, "has 2 seeds, but 1 values of 'rate'"),
        ({"A": figures([1], [1.1])}, "rates are from 0 to 1"),
        ({"A": figures([1], ["much"])}, "must be a list of numbers"),
        ({"A": figures([1], [0.1]) | {"size": None}}, "'size' is None; must be a number"),
    ],
)
def test_pages_that_cannot_be_joined_are_named(document, words, tmp_path):
    file = tmp_path / "page.json"
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match=words) as raised:
        join_pages({}, [file], {"A": "train"}, check_rates)
    assert str(file) in str(raised.value)


def test_controls_follow_their_model():
    changed = ["A, changed", "A, changed, knocked out"]
    labels = ["expert", "B", changed[1], changed[0], "B, knocked out", "A", "A, knocked out"]
    ordered = by_model(STUDY, labels)
    assert ordered == ["A", "A, knocked out", *reversed(changed), "B", "B, knocked out", "expert"]


def test_a_damaged_page_is_reported(tmp_path):
    (tmp_path / "page.json").write_text('{"A": {')
    for models in ((), ("B",)):
        with pytest.raises(UserError, match="page.json: is damaged, or not JSON"):
            kept_entries("page", STUDY, PageOptions(results_dir=tmp_path, models=models))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"seeds": 3}, "'seeds' is 3; must be different seeds"),
        ({"seeds": ["1", "2"]}, "'seeds' is "),
        ({"seeds": [1, 1]}, "'seeds' is "),
        ({"seeds": [1, 2, 3]}, "has 3 seeds, but 2 values of 'rate'"),
        ({"seeds": [True, 2]}, "'seeds' is "),
        ({"commit": "abc"}, "'commit' must be a list of texts"),
        ({"commit": [1]}, "'commit' must be"),
        ({"date": None}, "'date' a text"),
        ({"rate": []}, "'rate' is .*; must be a list of numbers"),
        ({"rate": [0.1, None]}, "'rate' is .*; must be a list of numbers"),
        ({"rate": [0.1, math.nan]}, "'rate' is .*; must be a list of numbers"),
        ({"rate": [[0.1], ["a"]]}, "'rate' is .*; must be a list of numbers"),
        ({"rate": {"90": [0.1]}}, "has 2 seeds, but 1 values of 'rate 90'"),
        ({"rate": "much"}, "'rate' is 'much'; must be a number"),
        ({"size": "x"}, "'size' is 'x'; must be a number"),
    ],
)
def test_a_damaged_entry_is_named_before_training(damage, words, tmp_path):
    (tmp_path / "page.json").write_text(json.dumps({"A": figures([1, 2], [0.1, 0.2]) | damage}))
    with pytest.raises(UserError, match=f"page.json: 'A'.* {words}|page.json: 'A' {words}"):
        read_results("page", StudyOptions(results_dir=tmp_path))


def test_whatever_pages_hold_is_read(tmp_path):
    page = {
        "A": figures([1, 2], [0.1, 0.2]) | {"by_case": {"9": [1, True]}, "returns": [[1.0, 2.0], [3.0]]},
        "expert": {"returns": [[1.0]], "size": 3.5},
    }
    (tmp_path / "page.json").write_text(json.dumps(page))
    assert read_results("page", StudyOptions(results_dir=tmp_path)) == page
    assert read_results("none", StudyOptions(results_dir=tmp_path)) == {}
    for path in sorted((studies.ROOT / "results").glob("*.md")):
        if path.with_suffix(".json").exists() and path.stem not in ("gpu", "memory_retention"):
            assert read_results(path.stem, StudyOptions())


def test_a_page_that_cannot_be_written_is_reported_before_training(tmp_path):
    (tmp_path / "page.png").mkdir()
    with pytest.raises(UserError, match="page.png is a folder, but a file of this page"):
        read_results("page", StudyOptions(results_dir=tmp_path))
    (tmp_path / "other.md").write_bytes(b"\xff\xfe mine")
    with pytest.raises(UserError, match="other.md: cannot be read"):
        read_results("other", StudyOptions(results_dir=tmp_path))


def test_seeds_are_not_lost(tmp_path):
    page = {"A": figures([1, 2], [0.1, 0.2], "another"), "B": figures([2], [0.1]), "expert": {"rate": [1.0]}}
    options = StudyOptions(results_dir=tmp_path, seeds=(2, 3))
    with pytest.raises(
        UserError, match="--seeds 2 3: .*page.json has seeds 1 2 of A, and they would be lost; give --seeds 1 2 3"
    ):
        keep_seeds("page", page, options)
    with pytest.raises(UserError, match="has seeds 1 2 of A, made by another command, and they would be lost"):
        keep_outdated("page", page, {"A": "train"}, options)
    keep_outdated("page", page, {"A": "another", "C": "train"}, options)
    keep_seeds("page", {"B": page["B"], "expert": page["expert"]}, options)


def test_only_selected_models_are_run(monkeypatch):
    monkeypatch.setattr(Study, "run", lambda self, label, seed, options, stop: (label, seed))
    monkeypatch.setattr(Study, "finished", lambda *_: None)
    options = StudyOptions(seeds=(1, 2))
    assert STUDY.run_all(options, ["B", "A"]) == {"A": [("A", 1), ("A", 2)], "B": [("B", 1), ("B", 2)]}
    assert STUDY.run_all(options).keys() == STUDY.models.keys()


def test_entries_record_their_origin(tmp_path):
    for seed, day in ((1, "2026-01-03"), (2, "2026-01-02")):
        start = {"seed": seed, "started": f"{day}T00:00:00+00:00", "git": {"commit": "c" * 40}}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "environment.json").write_text(json.dumps({"starts": [start, start]}))
    found = provenance([tmp_path / "1", tmp_path / "2"])
    assert found == {"seeds": [1, 2], "commit": ["c" * 40], "date": "2026-01-02 to 2026-01-03"}
    trained = {"parameters": 9, "optimizer_steps": [10, 20], "train_seconds": [1.0, 3.0]}
    assert f"| A | 9 | 15 ± 5 | 2 ± 1 | {'c' * 12} | 2026-01-02 to 2026-01-03 |" in training_table(
        {"A": trained | found, "B": found}
    )


@pytest.mark.parametrize(
    ("old", "words"),
    [
        (f"mine\n{BEGIN}\nfigures\n\nalso mine\n".encode(), f"has '{BEGIN}' 1 times and '{END}' 0 times; must have"),
        (f"mine\nfigures\n{END}\nalso mine\n".encode(), f"has '{BEGIN}' 0 times and '{END}' 1 times; must have"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n".encode(), "2 times; must have each once"),
        (f"{END}\nmine\n{BEGIN}\n".encode(), "must have each once"),
        (b"\xff\xfe mine", "cannot be read"),
    ],
    ids=["no end mark", "no begin mark", "two parts", "marks in the wrong order", "not UTF-8"],
)
def test_a_page_whose_text_cannot_be_kept_is_left_alone(tmp_path, old, words):
    page = tmp_path / "page.md"
    page.write_bytes(old)
    with pytest.raises(UserError, match=f"page.md: .*{words}"):
        write_results("page", "Page", {"figures": 1}, "new", StudyOptions(results_dir=tmp_path))
    assert page.read_bytes() == old and list(tmp_path.iterdir()) == [page]
