"""Evaluate a checkpoint on T-Maze at any length.

    python3 TMaze_new/TMaze_new_src/inference_tmaze.py --checkpoint RUN_DIR --lengths 90 900 9600 1000000 --episodes 100

Acting stores only the current segment, so memory use does not grow with the length.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from TMaze_new.TMaze_new_src.environment import ENVIRONMENT

main = ENVIRONMENT.infer

if __name__ == "__main__":
    main()
