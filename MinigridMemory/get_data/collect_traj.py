"""Collect Minigrid-Memory trajectories with the scripted expert.

    python3 MinigridMemory/get_data/collect_traj.py
    python3 MinigridMemory/get_data/collect_traj.py --preset published_31 --workers 4
    python3 MinigridMemory/get_data/collect_traj.py --preset clean_41 --corridor fixed --noise 0.05 --output fixed.h5

The file goes to MinigridMemory/MinigridMemory_data, where training with the same flags finds it. --output writes it
elsewhere; then pass it to training as --data_path. --data_path FOLDER converts a folder of the published collector's
train_data_*.npz.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from MinigridMemory.MinigridMemory_src.dataset import DATA

main = DATA.main

if __name__ == "__main__":
    main()
