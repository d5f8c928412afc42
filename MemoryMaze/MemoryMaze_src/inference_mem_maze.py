"""Evaluate a checkpoint on Memory Maze.

    python3 MemoryMaze/MemoryMaze_src/inference_mem_maze.py --checkpoint RUN_DIR --episodes 10
    python3 MemoryMaze/MemoryMaze_src/inference_mem_maze.py --checkpoint RUN_DIR --episodes 100 --knock_out true
    python3 MemoryMaze/MemoryMaze_src/inference_mem_maze.py --checkpoint RUN_DIR --video 2 --pictures pictures

Prints the balls found per episode; with --players true, also by players without a model in the same mazes. Mazes,
target return and the choice of actions are those of the run, unless flags say otherwise.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT

main = ENVIRONMENT.infer

if __name__ == "__main__":
    main()
