"""What the tests of Memory Maze share: the package, where it is there and can draw."""

import pytest

from MemoryMaze.MemoryMaze_src.graphics import maze_tasks
from RATE_model.errors import UserError


@pytest.fixture(scope="session")
def tasks():
    """The package's tasks. Tests that want it are skipped where packages are missing or nothing can draw."""
    try:
        return maze_tasks()
    except UserError as error:
        pytest.skip(str(error))
