"""Train RATE or a relative on ViZDoom-Two-Colors.

    python3 VizDoom/VizDoom_src/train_vizdoom.py --nmt 5 --mem_len 300 --skip_dec_ffn

Data that is missing is made first. Every seed is a run of its own in VizDoom/VizDoom_checkpoints/.
What is particular to ViZDoom-Two-Colors stands in environment.py; the flow, from flags to pictures, in
RATE_model/cli/training.py.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from RATE_model.cli import training
from VizDoom.VizDoom_src.environment import ENVIRONMENT

main = partial(training.main, ENVIRONMENT)

if __name__ == "__main__":
    sys.exit(main())
