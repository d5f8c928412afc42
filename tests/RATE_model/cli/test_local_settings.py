"""The folders that wandb_config.yaml names for the data of environments."""

from pathlib import Path

import pytest

from RATE_model.cli.local_settings import configured_folder
from RATE_model.errors import UserError


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "wandb_config.yaml"


@pytest.mark.parametrize(
    ("content", "folder"),
    [
        ("maze:\n  data: /d\nother: {data: /e}", "/d"),
        ("maze:\n  data: ~/d", str(Path.home() / "d")),
        ("maze:\n  data: 007", "007"),
        ("maze:\n  data:", None),
        ("maze:", None),
        ("", None),
        ("wandb_apy: x", None),
        ("other:\n  data: [", None),
    ],
)
def test_folder_is_that_of_the_section(file, content, folder):
    file.write_text(content)
    assert configured_folder("maze", "data") == (folder and Path(folder))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("maze: /data", "maze: expected 'data: FOLDER' below it"),
        ("maze:\n  dat: /data", "maze: expected 'data: FOLDER' below it"),
        ("maze:\n  data: [a]", "maze: expected 'data: FOLDER' below it"),
        ("maze:\n  data: [", "line 2"),
        ("mase:\n  data: /d", r"unknown key 'mase' \(did you mean maze\?\)"),
    ],
)
def test_malformed_section_is_a_user_error(file, content, said):
    file.write_text(content)
    with pytest.raises(UserError, match=f"wandb_config.yaml: {said}"):
        configured_folder("maze", "data")
