"""The functions of train and inference scripts for tests."""

from argparse import Namespace
from functools import partial
from types import ModuleType
from typing import Any

from RATE_model.cli import evaluation, training


def train_script(module: ModuleType) -> Any:
    """`read_config`, `run_directory`, `check` and `PUBLISHED` of a train script."""
    environment = module.ENVIRONMENT
    return Namespace(
        __name__=module.__name__,
        PUBLISHED=environment.published_values(),
        read_config=environment.read_config,
        run_directory=partial(training.run_directory, environment),
        check=partial(training.check, environment),
    )


def inference_options(module: ModuleType) -> type[Any]:
    """The flags of an inference script."""
    return evaluation.options_class(module.ENVIRONMENT.play_options)
