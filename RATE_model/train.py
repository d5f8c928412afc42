"""Train RATE or another memory on your own data.

    python3 -m RATE_model.train --data my.h5 --env CartPole-v1 --model_mode RATE --context_length 20 --segments 3

Without --env nothing is played, and all sizes follow from the data. Each seed is a separate run in runs/. In
Python, use the function `RATE_model.train`: this module is for the shell and is not imported.
"""

import sys

if __name__ == "__main__":
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below
    from RATE_model.cli import training
    from RATE_model.own.environment import OwnEnvironment

    sys.exit(training.main(OwnEnvironment()))
