"""Evaluate a checkpoint on Minigrid-Memory in mazes of any size.

    python3 MinigridMemory/MinigridMemory_src/inference_minigridmemory.py --checkpoint RUN_DIR --sizes 41 91 501

Prints success within the published 96 steps (`--episode_timeout`) and under a cap that always suffices for the expert,
and the expert's own success within the 96 steps.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT

main = ENVIRONMENT.infer

if __name__ == "__main__":
    main()
