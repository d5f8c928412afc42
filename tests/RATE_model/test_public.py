"""The public names of the package."""

import subprocess
import sys
from pathlib import Path

import pytest

import RATE_model

ROOT = Path(__file__).parents[2]


def test_every_public_name_exists():
    assert set(RATE_model.__all__) == set(RATE_model._MODULE_OF)
    for name in RATE_model.__all__:
        assert getattr(RATE_model, name) is not None and name in dir(RATE_model)


def test_an_unknown_name_raises():
    with pytest.raises(AttributeError, match="no attribute 'Remember'"):
        _ = RATE_model.Remember


def test_importing_the_package_is_light():
    code = "import sys, RATE_model; sys.exit('torch' in sys.modules or 'h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "api.md").read_text()
    assert not [name for name in RATE_model.__all__ if f".{name}\n" not in page]
