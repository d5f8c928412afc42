"""Train RATE or a relative on HalfCheetah, Hopper or Walker2d.

    python3 MuJoCo/train_rate_mujoco_ca.py --env_id 0 --skip_dec_ffn --seed 123

Needs data (see MuJoCo/README.md). Each seed is a separate run in MuJoCo/MuJoCo_checkpoints/.
environment.py holds what is specific to MuJoCo; RATE_model/cli/training.py holds the flow, from flags to pictures.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from MuJoCo.environment import ENVIRONMENT

main = ENVIRONMENT.train

if __name__ == "__main__":
    sys.exit(main())
