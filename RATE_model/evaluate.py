"""Evaluate a checkpoint of `python3 -m RATE_model.train`, or of `RATE_model.train`.

    python3 -m RATE_model.evaluate --checkpoint RUN_DIR --episodes 100 --target_return 100 200 --pictures pictures

The environment is the run's unless --env names another. In Python, use the function `RATE_model.evaluate`: this module
is for the shell and is not imported.
"""

if __name__ == "__main__":
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below
    from RATE_model.cli import evaluation
    from RATE_model.own.environment import OwnEnvironment

    evaluation.main(OwnEnvironment())
