"""wandb_config.yaml, the settings of this machine: the wandb account (see `tracking`), and the folders of data.

wandb_api: ...            wandb account
<section>:                an environment's section; the environment defines its name and keys
  <key>: FOLDER
"""

from pathlib import Path
from typing import Any

from RATE_model.cli.options import close_matches, load_yaml
from RATE_model.errors import UserError

NAME = "wandb_config.yaml"
_REPOSITORY = Path(__file__).resolve().parents[2]


def settings_file() -> Path | None:
    """The file in the current directory, else the repository's; None if neither exists."""
    return next((path for path in (Path(NAME), _REPOSITORY / NAME) if path.exists()), None)


def configured_folder(section: str, key: str) -> Path | None:
    """The folder of an environment's data according to the file; None if it names none.

    Args:
        section, key: its place in the file, `section: {key: FOLDER}`.

    Raises:
        UserError: the section is malformed, or an unreadable file might set the folder. Other problems with the
            file are ignored here.
    """
    path = settings_file()
    if path is None:
        return None
    try:
        content = load_yaml(path, texts=True)
    except UserError:
        if path.is_file() and section in path.read_text(errors="replace"):
            raise
        return None
    if section not in content:
        for other, value in content.items():
            if isinstance(value, dict) and (hint := close_matches(other, [section])):
                raise UserError(f"{path}: unknown key '{other}'{hint}")
    return _folder(content.get(section), f"{path}: {section}: expected '{key}: FOLDER' below it", key)


def _folder(section: Any, problem: str, key: str) -> Path | None:
    if section is None:
        return None
    if not isinstance(section, dict) or not set(section) <= {key} or isinstance(section.get(key), dict | list):
        raise UserError(problem)
    return Path(str(section[key])).expanduser() if section.get(key) else None
