"""Evaluate a checkpoint on HalfCheetah, Hopper or Walker2d.

    python3 MuJoCo/inference_mujoco.py --checkpoint RUN_DIR --target_return 1800 3600

Prints return, length and D4RL's normalised score for every return asked for, with prompt 1 and with prompt K.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from MuJoCo.environment import ENVIRONMENT
from RATE_model.cli import evaluation

main = partial(evaluation.main, ENVIRONMENT)

if __name__ == "__main__":
    main()
