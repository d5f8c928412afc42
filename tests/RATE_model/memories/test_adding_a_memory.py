"""The memory of docs/adding_a_memory.md meets the contract and is trained, as the page says."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from RATE_model import memories
from RATE_model.loading import load_model
from RATE_model.training.checkpoints import resolve_checkpoint
from tests import tmaze_runs
from tests.RATE_model.memories.test_contract import Case, MemoryContract

PAGE = Path(__file__).resolve().parents[3] / "docs" / "adding_a_memory.md"
CODE, MEMORY = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def ema(tmp_path_factory) -> Iterator[ModuleType]:
    """The page's module, and its lines in the tables."""
    path = tmp_path_factory.mktemp("memories") / "ema.py"
    path.write_text(CODE)
    spec = importlib.util.spec_from_file_location("RATE_model.memories.ema", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        names = {**vars(memories), **vars(module)}
        for name, entry in eval(f"{{{MEMORY}}}", names).items():
            patch.setitem(memories.MEMORIES, name, entry)
            patch.setitem(memories.MODES, name, memories.modes_of(memories.MEMORIES)[name])
        yield module


class TestExample(MemoryContract):
    """The whole suite."""

    @pytest.fixture(params=["rtg", "none"])
    def case(self, request) -> Case:
        return Case.of("EMA", request.param)


def with_its_flags(monkeypatch) -> ModuleType:
    """T-Maze's train script as it is when the tables have the lines: what reads them is imported again."""
    environment = ("TMaze_new.TMaze_new_src.environment", "TMaze_new.TMaze_new_src.train_tmaze")
    for name in ("RATE_model.cli.settings", "RATE_model.environments.contract", *environment):
        package, _, child = name.rpartition(".")
        monkeypatch.setattr(sys.modules[package], child, importlib.import_module(name))
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("TMaze_new.TMaze_new_src.train_tmaze")


def test_it_is_trained_by_a_script(monkeypatch, tmp_path, ema):
    script = with_its_flags(monkeypatch)
    flags = "--model_mode EMA --ema_averages 8 --d_model 16 --epochs 1 --batch_size 16".split()
    places = tmaze_runs.places(tmp_path)
    assert script.main([*tmaze_runs.DATA, *tmaze_runs.EVALUATION, *tmaze_runs.HERE, *flags, *places]) == 0
    agent = load_model(resolve_checkpoint(tmaze_runs.only_run(tmp_path)))
    assert isinstance(agent.memory, ema.EMA) and agent.memory.config.averages == 8


def test_its_flags_are_shown_and_others_refused(monkeypatch, capsys):
    script = with_its_flags(monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        script.main(["--help"])
    shown = capsys.readouterr().out
    assert "EMA options" in shown and re.search(r"--ema_averages INT +Averages that are kept", shown)
    for wrong in ("--model_mode EMA --nmt 5", "--model_mode LSTM --ema_averages 5"):
        with pytest.raises(SystemExit):
            script.main(wrong.split())
        assert re.match(r"error: --(nmt|ema_averages) is a flag of (RATE|EMA);", capsys.readouterr().err)
