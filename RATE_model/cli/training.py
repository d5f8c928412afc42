"""The main function of every train script: flags, checks, data, curriculum, training, evaluation, pictures."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from RATE_model.agent import Agent
from RATE_model.cli import experiment
from RATE_model.cli.evaluation import evaluation_of
from RATE_model.cli.options import exit_on_user_error, to_flat_dict
from RATE_model.cli.settings import CurriculumOptions
from RATE_model.environments.contract import Environment, TrainingData
from RATE_model.system import distributed
from RATE_model.training.runs import Run, run_seeds


def main(environment: Environment, argv: Sequence[str] | None = None) -> int:
    """Train every seed of the flags. The exit code is 0 if all finished.

    All seeds are checked before the first is trained.
    """
    with exit_on_user_error():
        config = environment.read_config(argv)
        with experiment.together(config):
            runs = [check(environment, config, seed) for seed in config.run.seeds]
            command = sys.orig_argv if argv is None else ["python3", *environment.train_script.split(), *argv]
            return run_seeds(runs, lambda run: train(environment, config, run), command=command)


def check(environment: Environment, config: Any, seed: int) -> Run:
    """The new or resumed run of a seed. Creates nothing; raises UserError if there is a problem."""
    environment.check(config)
    spec = environment.spec(to_flat_dict(config))
    experiment.check_calibration(config.train, spec)
    directory = run_directory(environment, config, seed)
    run = experiment.check(config, directory, seed, before=environment.before)
    experiment.check_initial(config, run, config.agent_config(), spec)
    return run


def run_directory(environment: Environment, config: Any, seed: int) -> Path:
    """The directory of a seed's run; see `experiment.run_directory`."""
    name, named = environment.name_parts(config)
    return experiment.run_directory(
        config,
        seed,
        usual=_usual(environment),
        checkpoints=environment.checkpoints,
        name=name,
        named=named,
        before=environment.before,
    )


@lru_cache
def _usual(environment: Environment) -> Any:
    """The default configuration."""
    return environment.read_config([])


def train(environment: Environment, config: Any, run: Run, data: TrainingData | None = None) -> dict[str, Any]:
    """Train one checked run, from its data to its final evaluation.

    Args:
        environment, config, run: the environment, its flags, and the run that `check` returned.
        data: the training data; None: what the environment loads.

    Returns:
        The content of eval/final.json.
    """
    if data is None:
        data = distributed.run_first_then_rest(lambda: environment.load(config))
    model = config.agent_config()
    tokens = data.final_tokens if config.train.final_tokens is None else config.train.final_tokens
    curriculum, schedule = experiment.plan(
        replace(config.train, final_tokens=tokens),
        getattr(config, "curriculum", CurriculumOptions()),
        model,
        data.windows,
        data.stages,
        config.context_length,
        metric=environment.solved_metric,
        before=data.before,
    )
    return experiment.train_run(
        config,
        run,
        model=model,
        spec=data.spec,
        data=data.windows,
        curriculum=curriculum,
        schedule=schedule,
        metrics=None if data.spec.continuous else environment.batch_metrics,
        evaluate=lambda agent, final: evaluate(environment, agent, config, run, final=final),
        finish=lambda agent, result: finish(environment, agent, config, run, result),
        prepare=data.prepare,
        transform=data.transform,
    )


def evaluate(environment: Environment, agent: Agent, config: Any, run: Run, *, final: bool) -> dict[str, float]:
    """The agent's results in the environment, by name; empty without evaluation, and for an oracle."""
    task = config.task
    if config.train.oracle or not (task.last_inference if final else task.online_inference):
        return {}
    flags = to_flat_dict(config)
    evaluation = evaluation_of(
        environment,
        agent,
        flags,
        cases=environment.training_cases(config, final=final),
        seed=run.seed,
        run=run.directory,
    )
    (played,) = evaluation.play().values()
    return environment.metrics(played, evaluation, config, final=final)


def finish(environment: Environment, agent: Agent, config: Any, run: Run, result: Mapping[str, Any]) -> None:
    """Draw pictures, and print the run's main results under their names in eval/final.json."""
    if config.train.oracle:  # an oracle cannot act, because environments do not provide its inputs
        Environment.draw_run(environment, run.directory, agent, config, result)
    else:
        environment.draw_run(run.directory, agent, config, result)
    shown = {**environment.headlines(config), "validation_loss": ""}
    found = "".join(
        f"{name} {_rounded(result[name])}{said and f' ({said})'}, " for name, said in shown.items() if name in result
    )
    if result.get("all_stages_solved") is False:
        found += "not all stages of the curriculum solved, "
    print(
        f"{run.directory}: {found}trained in {result['train_seconds']:.0f} s; all results in eval/final.json, "
        "pictures in plots/"
    )


def _rounded(value: float) -> str:
    """Three significant digits, or more if the integer part is longer."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
