"""Pictures of a whole maze, for people.

They show the seven rows around the corridor, as nothing happens elsewhere. Of a long maze, its room, a stretch around
the agent and the fork stay, and a grey bar replaces the rest. All pictures of a size have the same shape, with sides
that are multiples of 16 pixels, as video encoders prefer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from RATE_model.plots.corridors import BEYOND, GAP, OMITTED, visible_columns

ROWS = 7  # the corridor, three rows above it and three below
LARGE, SMALL = 32, 16  # pixels per cell in mazes of up to LARGE_COLUMNS columns, and in larger ones
LARGE_COLUMNS = 31
OUTSIDE = (40, 44, 52)


def render_maze(maze: Any) -> np.ndarray:
    """A picture of Minigrid's `MemoryEnv` after a reset: (H, W, 3) uint8, with the agent's view lit."""
    from minigrid.core.grid import Grid

    x, y = (int(value) for value in maze.agent_pos)
    top = maze.height // 2 - ROWS // 2
    columns = visible_columns(maze.width, int(maze.success_pos[0]) + 2, x)
    grid = Grid(len(columns), ROWS)
    for place, column in enumerate(columns):
        for row in range(ROWS if column >= 0 else 0):
            grid.set(place, row, maze.grid.get(int(column), top + row))
    _, visible = maze.gen_obs_grid()
    lit = np.zeros((len(columns), ROWS), dtype=bool)
    for place, row in np.ndindex(lit.shape):
        seen = maze.relative_coords(columns[place], top + row)
        lit[place, row] = seen is not None and visible[seen]
    tile = LARGE if maze.width <= LARGE_COLUMNS else SMALL
    place = int(np.flatnonzero(columns == x)[0])
    image = grid.render(tile, agent_pos=(place, y - top), agent_dir=maze.agent_dir, highlight_mask=lit)
    for value, colour in ((GAP, OMITTED), (BEYOND, OUTSIDE)):
        image[:, np.repeat(columns == value, tile)] = colour
    return image
