"""Train RATE or a relative on Memory Maze.

    python3 -W ignore MemoryMaze/MemoryMaze_src/train_mem_maze.py --nmt 5 --mem_len 300 --skip_dec_ffn

Missing data is made first, which takes a while. Each seed is a separate run in MemoryMaze/MemoryMaze_checkpoints/.
environment.py has what is specific to Memory Maze; RATE_model/cli/training.py has the flow, from flags to pictures.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT

main = ENVIRONMENT.train

if __name__ == "__main__":
    sys.exit(main())
