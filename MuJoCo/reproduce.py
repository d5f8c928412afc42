"""Make results/mujoco.*: RATE and what it is compared with on our own medium data.

    python3 MuJoCo/reproduce.py --seeds 1 2 3

Makes missing data first. Finished runs are kept and interrupted ones continued, so the command can be repeated at any
time.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from MuJoCo.dataset import open_data
from MuJoCo.environment import ENVIRONMENT, Play
from MuJoCo.files import DATA_DIRECTORY, generated_name
from MuJoCo.generate_dataset import GenerateOptions, generate, training_of
from MuJoCo.tasks import TASKS, Task, task_of
from RATE_model.acting.rollout import Memoryless
from RATE_model.data.ppo import Policy, train_policies
from RATE_model.pages.returns_page import Part, ReturnsPage, of_returns
from RATE_model.pages.study import ROOT, Study, of_modes
from RATE_model.pages.tables import cell

FAST = "MuJoCo/config_fast.yaml"
ENV_IDS = (6, 0, 3)  # hopper-medium, halfcheetah-medium, walker2d-medium
STEPS = 300_000  # in the data
EPISODES = 30  # per evaluation
MODELS = {
    **of_modes(
        {
            "RATE": "",
            "RATE, without memory": "--nmt 0 --n_head_ca 0 --segments 1 --batch_size 192",  # as many steps in a batch
            "LSTM": "",
            "MLP": "",
            "DT": "--slide 10",
        }
    ),
    "BC (RATE without returns)": ("--model_mode", "RATE", "--condition", "none"),
}
DATA_POLICY = "policy of the data, in the data"
NOISELESS = "policy of the data, without its noise"


def data_file(task: Task) -> Path:
    """Our own data for a task, made if missing."""
    path = DATA_DIRECTORY / generated_name(task)
    if not path.exists():
        generate(GenerateOptions(env=task.robot.name, dataset=task.dataset, steps=STEPS, data_path=DATA_DIRECTORY))
    return path


def study(env_id: int) -> Study:
    """The runs of one task."""
    task = task_of(env_id)
    data = (DATA_DIRECTORY / generated_name(task)).relative_to(ROOT)
    settings = (
        f"--config {FAST} --env_id {env_id} --data_path {data} --eval_episodes {EPISODES} --online_inference false"
    )
    return Study.of(ENVIRONMENT, settings.split(), MODELS, prefix=f"reproduce_{task.robot.name}")


def noiseless(policy: Policy) -> Memoryless:
    """The policy that acted in the data, without its noise."""
    quiet, generator = replace(policy, action_std=np.zeros_like(policy.action_std)), np.random.default_rng()
    return Memoryless(lambda observations: quiet.act(observations, generator))


def of_data(task: Task) -> dict[str, dict[str, Any]]:
    """Returns and scores of the data's policy, in the data and when evaluated without its noise."""
    robot, path = task.robot, data_file(task)
    with open_data(task, path) as file:
        returns, attributes = file.returns, file.attributes
    (note,) = attributes["policies"]
    policies = train_policies(  # saved next to the data
        training_of(robot, int(attributes["seed"])),
        path.parent / "policies",
        enough=lambda trained: bool(trained) and trained[-1].steps >= note["training_steps"],
    )
    quiet = ENVIRONMENT.play_as(noiseless(policies[-1]), Play(env_id=TASKS.index(task)), episodes=EPISODES)
    return {
        name: of_returns(values) | {"normalised_score": [float(np.mean(robot.normalised_score(values)))]}
        for name, values in ((DATA_POLICY, returns), (NOISELESS, quiet.returns))
    }


def of_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns and scores of every seed with both prompts."""
    # Earlier runs called returns `episode`, the published name of normalised scores.
    episode = "return" if "normalised_score_MEAN" in results[0] else "normalised_score"
    return {
        name.removesuffix("_MEAN").replace("episode", episode): [result[name] for result in results]
        for name in results[0]
        if name.endswith("_MEAN")
    }


def prompt_k(entry: Mapping[str, Any], name: str) -> Any:
    """An entry's values under `{K}_{name}`; None if it has no prompt K."""
    return next((values for key, values in entry.items() if key[0].isdigit() and key.partition("_")[2] == name), None)


def page() -> ReturnsPage:
    """The page's runs, data and table."""
    tasks = {env_id: task_of(env_id) for env_id in ENV_IDS}
    return ReturnsPage(
        name="mujoco",
        title=ENVIRONMENT.name,
        seeds=(1, 2, 3),
        parts=[
            Part(name=task.name, study=study(env_id), others=partial(of_data, task)) for env_id, task in tasks.items()
        ],
        data=DATA_POLICY,
        text=f"Mean and standard error over seeds {{seeds}} of the mean of {EPISODES} episodes, measured {{origin}}.",
        asked="a return of {:.0f}",
        unit="return",
        digits=0,
        kept=of_results,
        columns={
            "normalised score": lambda task, entry: cell(entry["normalised_score"], 1),
            "return, prompt K": lambda task, entry: cell(prompt_k(entry, "return"), 0),
            "normalised score, prompt K": lambda task, entry: cell(prompt_k(entry, "normalised_score"), 1),
        },
        shown={"return": ("return", 0), "steps": ("length", 0), "normalised score": ("normalised_score", 1)},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Make the page."""
    page().main(argv)


if __name__ == "__main__":
    main()
