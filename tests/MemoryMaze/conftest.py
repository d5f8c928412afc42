"""Shared by the tests of Memory Maze: the package, if it is installed and can draw."""

import pytest

from MemoryMaze.MemoryMaze_src.graphics import maze_tasks
from RATE_model.errors import UserError


@pytest.fixture(scope="session")
def tasks():
    """The package's tasks. Tests that use it are skipped if packages or graphics are missing."""
    try:
        return maze_tasks()
    except UserError as error:
        pytest.skip(str(error))
