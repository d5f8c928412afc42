"""Evaluate a checkpoint on HalfCheetah, Hopper or Walker2d.

    python3 MuJoCo/inference_mujoco.py --checkpoint RUN_DIR --target_return 1800 3600

Prints return, length and D4RL's normalised score for every target return, with prompt 1 and with prompt K.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from MuJoCo.environment import ENVIRONMENT

main = ENVIRONMENT.infer

if __name__ == "__main__":
    main()
