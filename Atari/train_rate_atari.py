"""Train RATE or a relative on an Atari game.

    python3 Atari/train_rate_atari.py --game Breakout --num_mem_tokens 15 --mem_len 360 --n_head_ca 1 --skip_dec_ffn

Data is made where there is none (see Atari/README.md). Each seed is a separate run in Atari/Atari_checkpoints/.
What is particular to Atari stands in environment.py; the flow, from flags to pictures, in RATE_model/cli/training.py.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from Atari.environment import ENVIRONMENT

main = ENVIRONMENT.train

if __name__ == "__main__":
    sys.exit(main())
