"""Train RATE or a relative on an Atari game.

    python3 Atari/train_rate_atari.py --game Breakout --num_mem_tokens 15 --mem_len 360 --n_head_ca 1 --skip_dec_ffn

Missing data is made first (see Atari/README.md). Each seed is a separate run in Atari/Atari_checkpoints/.
environment.py has what is specific to Atari; RATE_model/cli/training.py has the flow, from flags to pictures.
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
