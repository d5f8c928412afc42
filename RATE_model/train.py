"""Train RATE or another memory on data of your own.

    python3 -m RATE_model.train --data my.h5 --env CartPole-v1 --model_mode RATE --context_length 20 --segments 3

Without --env nothing is played, and everything follows from the data. Every seed is a run of its own in runs/. In
Python, use the function `RATE_model.train`: this module is for the shell and is not imported.
"""

import sys

if __name__ == "__main__":
    import RATE_model.system.script  # noqa: F401  a signal ends it at once while the imports below take their seconds
    from RATE_model.cli import training
    from RATE_model.own.environment import OwnEnvironment

    sys.exit(training.main(OwnEnvironment()))
