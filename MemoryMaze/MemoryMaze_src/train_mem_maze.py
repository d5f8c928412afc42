"""Train RATE or a relative on Memory Maze.

    python3 -W ignore MemoryMaze/MemoryMaze_src/train_mem_maze.py --nmt 5 --mem_len 300 --skip_dec_ffn

Data that is missing is made first, which takes a while. Every seed is a run of its own in
MemoryMaze/MemoryMaze_checkpoints/. What is particular to Memory Maze stands in environment.py; the flow, from flags to
pictures, in RATE_model/cli/training.py.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT
from RATE_model.cli import training

main = partial(training.main, ENVIRONMENT)

if __name__ == "__main__":
    sys.exit(main())
