"""Train RATE or a relative on T-Maze.

    python3 TMaze_new/TMaze_new_src/train_tmaze.py --model_mode RATE --curr adaptive --max_n_final 3 --skip_dec_ffn

Data that is missing is generated first. Every seed is a run of its own in TMaze_new/TMaze_new_checkpoints/. What is
particular to T-Maze stands in environment.py; the flow, from flags to pictures, in RATE_model/cli/training.py.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from RATE_model.cli import training
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT

main = partial(training.main, ENVIRONMENT)

if __name__ == "__main__":
    sys.exit(main())
