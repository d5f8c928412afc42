"""Train RATE or a relative on T-Maze.

    python3 TMaze_new/TMaze_new_src/train_tmaze.py --model_mode RATE --curr adaptive --max_n_final 3 --skip_dec_ffn

Missing data is generated first. Each seed is a separate run in TMaze_new/TMaze_new_checkpoints/. environment.py holds
what is specific to T-Maze; RATE_model/cli/training.py holds the flow, from flags to pictures.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from TMaze_new.TMaze_new_src.environment import ENVIRONMENT

main = ENVIRONMENT.train

if __name__ == "__main__":
    sys.exit(main())
