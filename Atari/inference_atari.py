"""Evaluate a checkpoint on an Atari game.

    python3 Atari/inference_atari.py --checkpoint RUN_DIR --target_return 90 180

Prints points, length and, where a human player was measured, the gamer-normalised score for every return asked for.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from Atari.environment import ENVIRONMENT
from RATE_model.cli import evaluation

main = partial(evaluation.main, ENVIRONMENT)

if __name__ == "__main__":
    main()
