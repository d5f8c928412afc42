"""Train RATE or a relative on Minigrid-Memory.

    python3 MinigridMemory/MinigridMemory_src/train_minigridmemory.py --nmt 15 --mem_len 180 --skip_dec_ffn

Missing data is collected first. Each seed is a separate run in MinigridMemory/MinigridMemory_checkpoints/.
environment.py holds what is specific to Minigrid-Memory; RATE_model/cli/training.py holds the flow, from flags to
pictures.
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
