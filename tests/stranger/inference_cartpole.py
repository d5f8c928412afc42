"""Evaluate a checkpoint on CartPole without velocities."""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from tests.stranger.environment import ENVIRONMENT

main = ENVIRONMENT.infer

if __name__ == "__main__":
    main()
