"""Make results/mujoco.*: RATE, a Decision Transformer and behaviour cloning on our own medium data.

    python3 MuJoCo/reproduce.py --seeds 1 2 3

Data is made first where it is missing. Runs that are finished are kept, interrupted ones are continued, so the command
can be given again at any time.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

import numpy as np

from MuJoCo.dataset import open_data
from MuJoCo.evaluate import RobotVectorEnv, evaluation_seeds
from MuJoCo.files import DATA_DIRECTORY, generated_name
from MuJoCo.generate_dataset import GenerateOptions, generate
from MuJoCo.policies import Policy, train_policies
from MuJoCo.tasks import HALFCHEETAH, MAX_EPISODE_STEPS, Task, task_of
from MuJoCo.train_rate_mujoco_ca import check, read_config
from RATE_model.acting.rollout import rollout
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.cli.reproduce import ROOT, Study, StudyOptions, cell, commits, final_results, made, table, write_results

FAST = "MuJoCo/config_fast.yaml"
ENV_IDS = (6, 0)  # hopper-medium, halfcheetah-medium
STEPS = 300_000  # of data
EPISODES = 30  # of an evaluation
SHORT = ("--epochs", "6", "--ckpt_epoch", "2")  # a third of the setting's batches
MODELS = {
    "RATE": ("--model_mode", "RATE", *SHORT),
    "DT": ("--model_mode", "DT", "--slide", "10", *SHORT),
    "BC (RATE without returns)": ("--model_mode", "RATE", "--condition", "none", *SHORT),
}
# How HalfCheetah begins to run is learned last.
LONG = {"RATE, all batches": ("--model_mode", "RATE")}
DATA_POLICY = "policy of the data, in the data"
QUIET = "policy of the data, without its noise"


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which runs, and where they and the results go."""

    # Seeds of every model; consecutive
    seeds: tuple[int, ...] = (1, 2, 3)


def data_file(task: Task) -> Path:
    """Our own data of a task, made if it is not there."""
    path = DATA_DIRECTORY / generated_name(task)
    if not path.exists():
        generate(GenerateOptions(env=task.robot.name, dataset=task.dataset, steps=STEPS, data_path=DATA_DIRECTORY))
    return path


def study(env_id: int) -> Study:
    """The runs of one task."""
    task = task_of(env_id)
    data = (DATA_DIRECTORY / generated_name(task)).relative_to(ROOT)
    return Study(
        script="MuJoCo/train_rate_mujoco_ca.py",
        settings=(
            *("--config", FAST, "--env_id", str(env_id), "--data_path", str(data)),
            *("--eval_episodes", str(EPISODES), "--online_inference", "false"),
        ),
        models=MODELS | (LONG if task.robot is HALFCHEETAH else {}),
        read_config=read_config,
        check=check,
        prefix=f"reproduce_{task.robot.name}",
    )


class Quiet:
    """The policy that acted in the data, without its noise: an actor for `rollout`."""

    def __init__(self, policy: Policy) -> None:
        self.policy = replace(policy, action_std=np.zeros_like(policy.action_std))
        self.generator = np.random.default_rng()  # of the noise that is none

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Actions (B, act) float32."""
        return self.policy.act(observations, self.generator)

    def keep(self, rows: np.ndarray) -> None:
        """Nothing is remembered of rows."""


def of_data(task: Task) -> dict[str, dict[str, Any]]:
    """Returns and scores of the policy that acted in the data: in the data, and in the evaluation without its noise."""
    robot, path = task.robot, data_file(task)
    with open_data(task, path) as file:
        returns, attributes = file.returns, file.attributes
    (note,) = attributes["policies"]
    policies = train_policies(  # they are kept beside the data
        robot,
        seed=int(attributes["seed"]),
        folder=path.parent / "policies",
        enough=lambda trained: bool(trained) and trained[-1].steps >= note["training_steps"],
    )
    environments = RobotVectorEnv(robot, EPISODES)
    quiet = rollout(Quiet(policies[-1]), environments, seeds=evaluation_seeds(EPISODES), max_steps=MAX_EPISODE_STEPS)
    environments.close()
    return {
        name: {
            "return": [float(values.mean())],
            "normalised_score": [float(np.mean(robot.normalised_score(values)))],
            "episodes": len(values),
            "return_std": float(np.std(values)),
        }
        for name, values in ((DATA_POLICY, returns), (QUIET, quiet.returns))
    }


def of_runs(runs: Sequence[Path]) -> dict[str, Any]:
    """Returns and scores of every seed with both prompts, and seconds and steps of training."""
    results = final_results(runs)
    entry: dict[str, Any] = {}
    # Earlier runs called returns `episode`, which is the published name of normalised scores.
    episode = "return" if "normalised_score_MEAN" in results[0] else "normalised_score"
    for name in results[0]:
        if name.endswith("_MEAN"):
            entry[name.removesuffix("_MEAN").replace("episode", episode)] = [result[name] for result in results]
    entry |= {name: [result[name] for result in results] for name in ("train_seconds", "optimizer_steps")}
    return entry | {"target_return": results[0]["target_return"], "commit": commits(runs)}


def returns_table(document: Mapping[str, Mapping[str, Any]], task: Task) -> str:
    """One task: return and score with both prompts, mean and standard error over seeds, as Markdown."""
    entries = {label: entry for label, entry in document.items() if label.startswith(task.name)}
    (data_return,) = entries[f"{task.name}, {DATA_POLICY}"]["return"]
    rows = []
    for label, entry in entries.items():
        prompt_k = {name.partition("_")[2]: values for name, values in entry.items() if name[0].isdigit()}
        rows.append(
            [
                label.partition(", ")[2],
                cell(entry["return"], 0),
                f"{np.mean(entry['return']) / data_return:.2f}",
                cell(entry["normalised_score"], 1),
                cell(prompt_k.get("return"), 0),
                cell(prompt_k.get("normalised_score"), 1),
            ]
        )
    header = ["", "return", "times the data's", "normalised score", "return, prompt K", "normalised score, prompt K"]
    return table(header, rows)


def seed_table(document: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Every seed, as Markdown."""
    rows = []
    for label, entry in document.items():
        for index, seed in enumerate(seeds if "optimizer_steps" in entry else ()):
            figures = [f"{entry[name][index]:.0f}" for name in ("optimizer_steps", "train_seconds", "return", "length")]
            rows.append([label, seed, *figures, f"{entry['normalised_score'][index]:.1f}"])
    return table(["", "seed", "optimizer steps", "training, s", "return", "steps", "normalised score"], rows)


def write(document: dict[str, dict[str, Any]], options: Options) -> None:
    """results/mujoco.json and the generated part of .md."""
    seeds = ", ".join(map(str, options.seeds))
    parts = [
        f"Mean and standard error over seeds {seeds} of the mean of {EPISODES} episodes, made {made(document)}.",
    ]
    for env_id in ENV_IDS:
        task = task_of(env_id)
        data, asked = document[f"{task.name}, {DATA_POLICY}"], document[f"{task.name}, RATE"]["target_return"]
        parts += [
            f"{task.name}, asked for a return of {asked:.0f}; the data are {data['episodes']} episodes with returns of "
            f"{data['return'][0]:.0f} ± {data['return_std']:.0f} (standard deviation):",
            returns_table(document, task),
        ]
    commands = "\n".join(study(env_id).commands(options.seeds) for env_id in ENV_IDS)
    parts += ["Every seed:", seed_table(document, options.seeds), f"Commands:\n\n{commands}\n"]
    write_results("mujoco", "MuJoCo", document, "\n\n".join(parts), options)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data, train what is missing, collect everything, write the results."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog="reproduce.py", description="Make results/mujoco.*")
        document: dict[str, dict[str, Any]] = {}
        for env_id in ENV_IDS:
            task = task_of(env_id)
            document |= {f"{task.name}, {label}": entry for label, entry in of_data(task).items()}
            for label, runs in study(env_id).run_all(options).items():
                document[f"{task.name}, {label}"] = of_runs(runs)
        write(document, options)
        for env_id in ENV_IDS:
            task = task_of(env_id)
            print(f"{task.name}\n{returns_table(document, task)}")


if __name__ == "__main__":
    main()
