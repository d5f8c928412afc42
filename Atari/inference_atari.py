"""Evaluate a checkpoint on an Atari game.

    python3 Atari/inference_atari.py --checkpoint RUN_DIR --target_return 90 180

Prints points, length and, for games with a measured human player, the gamer-normalised score for every target return.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from Atari.environment import ENVIRONMENT

main = ENVIRONMENT.infer

if __name__ == "__main__":
    main()
