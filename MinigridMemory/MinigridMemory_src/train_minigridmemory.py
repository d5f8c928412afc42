"""Train RATE or a relative on Minigrid-Memory.

    python3 MinigridMemory/MinigridMemory_src/train_minigridmemory.py --nmt 15 --mem_len 180 --skip_dec_ffn

Data that is missing is collected first. Each seed is a separate run in MinigridMemory/MinigridMemory_checkpoints/.
What is particular to Minigrid-Memory stands in environment.py; the flow, from flags to pictures, in
RATE_model/cli/training.py.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT

main = ENVIRONMENT.train

if __name__ == "__main__":
    sys.exit(main())
