"""Train RATE or a relative on CartPole without velocities."""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from RATE_model.cli import training
from tests.stranger.environment import ENVIRONMENT

main = partial(training.main, ENVIRONMENT)

if __name__ == "__main__":
    sys.exit(main())
