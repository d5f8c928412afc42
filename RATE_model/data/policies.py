"""Data of policies from one training, in D4RL's kinds (Fu et al. 2020, arXiv 2004.07219).

medium          the first policy whose training episodes reach a goal, else the best within a budget of steps
medium-replay   every policy from the untrained to the medium one, each for the same number of steps
expert          the best policy of all of the budget
medium-expert   the policies of medium and expert, half of the steps each
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from RATE_model.data.collect import collect
from RATE_model.data.ppo import Policy, PPOTraining, train_policies
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.system.progress import progress_bar

if TYPE_CHECKING:
    import gymnasium

Kind = Literal["medium", "medium-replay", "expert", "medium-expert"]
PARALLEL_EPISODES = 16  # episodes side by side


@dataclass(frozen=True)
class PolicyData:
    """A file to make.

    Attributes:
        training: of the policies.
        folder: of the policies; those that are there are not trained again.
        kind: see the module.
        goal: mean training return at which a policy counts as medium.
        budget: maximum training steps.
        steps: minimum number of steps in the file; episodes are whole.
        seed: of the episodes.
    """

    training: PPOTraining
    folder: Path
    kind: Kind
    goal: float
    budget: int
    steps: int
    seed: int

    def policies(self) -> list[Policy]:
        """All policies to choose from, trained as far as needed. Raises UserError; see `train_policies`."""

        def enough(policies: list[Policy]) -> bool:
            reached = self.kind in ("medium", "medium-replay") and policies[-1:] and self._is_medium(policies[-1])
            return bool(reached) or (bool(policies) and policies[-1].steps >= self.budget)

        with progress_bar(total=self.budget, desc="training", unit="step") as bar:

            def report(policy: Policy) -> None:
                bar.n = policy.steps
                bar.refresh()
                if policy.steps:
                    name, reached = self.training.name, policy.training_return
                    bar.write(f"{name}, {policy.steps} steps of training: mean return {reached:.0f}")

            policies = train_policies(self.training, self.folder, enough=enough, report=report)
        if self.kind != "expert" and not any(map(self._is_medium, policies)):
            print(
                f"No policy reached a mean return of {self.goal:.0f} within {policies[-1].steps} steps of training; "
                "the best one is used as the medium policy. For more steps: --train_steps",
                file=sys.stderr,
            )
        return policies

    def chosen(self, policies: Sequence[Policy]) -> list[Policy]:
        """The policies that act, the same number of steps each; from one training, from the untrained one onward."""
        best = max(policies, key=lambda policy: np.nan_to_num(policy.training_return, nan=-np.inf))
        medium = next(filter(self._is_medium, policies), best)
        return {
            "medium": [medium],
            "medium-replay": list(policies[: policies.index(medium) + 1]),
            "expert": [best],
            "medium-expert": [medium, best],
        }[self.kind]

    def write(
        self,
        path: Path,
        *,
        attributes: Mapping[str, Any],
        state: Callable[[gymnasium.Env], Mapping[str, np.ndarray]],
        figures: Callable[[np.ndarray], Mapping[str, float]],
    ) -> None:
        """Train what is missing, let the policies act, and write the file.

        Args:
            path: the file.
            attributes: of the file; the attribute `policies` is added.
            state: arrays to record before each action, as ``infos``.
            figures: further figures of a policy, from its episodes' returns (E,).
        """
        environments = [self.training.make() for _ in range(min(PARALLEL_EPISODES, math.ceil(self.steps / 1000)))]
        space, actions = environments[0].observation_space, environments[0].action_space
        chosen = self.chosen(self.policies())
        notes: list[dict[str, Any]] = []  # filled below; the writer reads it at the end
        with TrajectoryWriter(
            path,
            observation_shape=space.shape or (),
            observation_dtype="float32",
            action_shape=actions.shape or (),
            action_dtype="float32",
            attributes={**attributes, "policies": notes},
        ) as writer:
            with progress_bar(total=self.steps, desc="episodes", unit="step") as bar:
                for policy in chosen:
                    drawn, steps = np.random.default_rng([self.seed, policy.steps]), math.ceil(self.steps / len(chosen))
                    returns = collect(
                        environments, policy, steps, generator=drawn, writer=writer, note=state, report=bar.update
                    )
                    statistics = {"return_mean": float(returns.mean()), "return_std": float(returns.std())}
                    made = {"training_steps": policy.steps, "episodes": len(returns)}
                    notes.append({**made, **statistics, **figures(returns)})
        for environment in environments:
            environment.close()

    def _is_medium(self, policy: Policy) -> bool:
        return policy.training_return >= self.goal
