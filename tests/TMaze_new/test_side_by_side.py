"""quickstart.py and reproduce.py distinguish their runs from those of other settings in the same folder."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from RATE_model.cli.options import to_flat_dict
from RATE_model.cli.training import check, run_directory
from RATE_model.pages import study as study_of_pages
from RATE_model.pages.study import ROOT, StudyOptions
from RATE_model.training.checkpoints import save_checkpoint
from RATE_model.training.runs import open_run
from TMaze_new.TMaze_new_src import quickstart, reproduce
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT


@pytest.mark.parametrize("max_n_final", [3, 5])
def test_quickstart_reuses_its_runs(tmp_path, monkeypatch, max_n_final):
    fast = tmp_path / "fast.yaml"
    fast.write_text(yaml.safe_dump(yaml.safe_load(quickstart.FAST.read_text()) | {"max_n_final": max_n_final}))
    monkeypatch.setattr(quickstart, "FAST", fast)
    monkeypatch.setattr(quickstart, "start", lambda name, options: SimpleNamespace(wait=lambda: 0, poll=lambda: 0))
    options = quickstart.Options(output_dir=tmp_path / "quickstart")
    for name in quickstart.MODELS:
        for other in (2, 3, 4, 5):
            config = ENVIRONMENT.read_config([*quickstart.arguments(name, options), "--max_n_final", str(other)])
            run_directory(ENVIRONMENT, config, options.seed).mkdir(parents=True)
    runs = quickstart.train_all(options)
    assert [path.is_dir() for path in runs.values()] == [True, True]
    assert all(f"_max_{max_n_final}_" in path.name for path in runs.values())


def test_quickstart_ignores_runs_of_other_settings(tmp_path, monkeypatch):
    commands = []

    def train(command, environment, stop):
        commands.append(command)
        return 0, ""

    monkeypatch.setattr(study_of_pages, "_finish", train)
    study, options = reproduce.STUDY, StudyOptions(runs_dir=tmp_path)

    def finish(*flags: str) -> Path:
        fast = str(ROOT / reproduce.FAST)
        places = ["--output_dir", str(tmp_path), "--ckpt_folder", study.folder("RATE")]
        config = ENVIRONMENT.read_config(["--config", fast, *places, *flags])
        with open_run(check(ENVIRONMENT, config, 1), config=config.run.recorded(to_flat_dict(config))) as run:
            run.write_evaluation("final", {})
            save_checkpoint(run.checkpoints, 1, model_state={"w": torch.ones(1)}, training_state={})
        return run.directory

    other = finish("--max_n_final", "5")
    path = study.run("RATE", 1, options)
    assert len(commands) == 1 and path != other
    assert finish() == path
    assert study.run("RATE", 1, options) == path and len(commands) == 1  # it is finished
