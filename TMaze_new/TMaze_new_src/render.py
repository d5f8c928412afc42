"""Pictures of a T-Maze, as text and as an RGB array.

Both show the corridor from the start (left) to the junction and its two goals (right). Of a long corridor, its start,
a stretch around the agent and its end stay, and a gap replaces the rest.
"""

from __future__ import annotations

import numpy as np

from RATE_model.plots.corridors import GAP, OMITTED, visible_columns

CELL = 12  # pixels

WALL, FLOOR, START = (40, 44, 52), (225, 225, 220), (190, 205, 225)
RIGHT_GOAL, WRONG_GOAL, HINT, AGENT = (80, 170, 90), (200, 85, 80), (235, 180, 60), (45, 85, 160)


def render_text(*, corridor_length: int, x: int, y: int, goal: int, hint: int, step: int) -> str:
    """Three lines of maze, one of state; ``A`` agent, ``*`` goal, ``x`` wrong end, ``S`` start, ``~`` omitted."""
    columns = visible_columns(corridor_length + 1, corridor_length + 1, x)
    rows = {
        1: [" "] * (len(columns) - 1) + ["*" if goal == 1 else "x"],
        0: ["~" if column == GAP else "." for column in columns],
        -1: [" "] * (len(columns) - 1) + ["*" if goal == -1 else "x"],
    }
    rows[0][0] = "S"
    rows[y][int(np.flatnonzero(columns == x)[0])] = "A"
    shown = {1: "up", -1: "down", 0: "none"}[hint]
    maze = "\n".join("".join(rows[row]).rstrip() for row in (1, 0, -1))
    return f"{maze}\nstep {step}, x {x} of {corridor_length}, hint {shown}"


def render_rgb(*, corridor_length: int, x: int, y: int, goal: int, hint: int) -> np.ndarray:
    """The maze as an image, (5 * CELL, (columns + 2) * CELL, 3) uint8.

    While the hint shows, the start cell is yellow on the hinted side; the rewarded goal is green.
    """
    columns = visible_columns(corridor_length + 1, corridor_length + 1, x)
    cells = np.full((5, len(columns) + 2, 3), WALL, dtype=np.uint8)  # a border of wall all around
    cells[2, 1:-1] = np.where((columns == GAP)[:, None], OMITTED, FLOOR)
    cells[2, 1] = START
    cells[2 - goal, -2], cells[2 + goal, -2] = RIGHT_GOAL, WRONG_GOAL
    image = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
    top, left = (2 - y) * CELL, (1 + int(np.flatnonzero(columns == x)[0])) * CELL
    if hint:
        half = slice(2 * CELL, 2 * CELL + CELL // 2) if hint == 1 else slice(3 * CELL - CELL // 2, 3 * CELL)
        image[half, CELL : 2 * CELL] = HINT
    margin = CELL // 4
    image[top + margin : top + CELL - margin, left + margin : left + CELL - margin] = AGENT
    return image
