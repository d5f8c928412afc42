"""Evaluate a checkpoint on ViZDoom-Two-Colors.

    python3 VizDoom/VizDoom_src/inference_vizdoom.py --checkpoint RUN_DIR --episodes 100 --video 4

Prints returns by colour, with those of players without a model, and records episodes as MP4 files.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from VizDoom.VizDoom_src.environment import ENVIRONMENT

main = ENVIRONMENT.infer

if __name__ == "__main__":
    main()
