"""wandb_config.yaml, the settings of a machine: its account (see `tracking`), and where the data of environments lies.

wandb_api: ...            of the account
<section>:                of an environment, which says what the section is called and what it holds
  <key>: FOLDER
"""

from pathlib import Path
from typing import Any

from RATE_model.cli.options import close_matches, load_yaml
from RATE_model.errors import UserError

NAME = "wandb_config.yaml"
_REPOSITORY = Path(__file__).resolve().parents[2]


def settings_file() -> Path | None:
    """The one in the current directory, else the repository's; None: there is none."""
    return next((path for path in (Path(NAME), _REPOSITORY / NAME) if path.exists()), None)


def configured_folder(section: str, key: str) -> Path | None:
    """The folder that the file names for an environment's data; None: it names none.

    Args:
        section, key: where it stands, `section: {key: FOLDER}`.

    Raises:
        UserError: the section is malformed, or the file cannot be read and may name the folder. What else is wrong
            with the file does not concern the data's.
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
