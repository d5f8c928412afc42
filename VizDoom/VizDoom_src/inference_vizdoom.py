"""Evaluate a checkpoint on ViZDoom-Two-Colors.

    python3 VizDoom/VizDoom_src/inference_vizdoom.py --checkpoint RUN_DIR --episodes 100 --video 4

Prints returns by colour, beside those of players without a model, and records episodes as MP4 files.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from RATE_model.cli import evaluation
from VizDoom.VizDoom_src.environment import ENVIRONMENT

main = partial(evaluation.main, ENVIRONMENT)

if __name__ == "__main__":
    main()
