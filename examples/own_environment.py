"""Your own environment, from collecting data to a picture: CartPole without velocities.

python3 examples/own_environment.py [OUTPUT_DIR [EPOCHS]]
"""

import sys
from pathlib import Path

import gymnasium
import numpy as np

from RATE_model import Dataset, evaluate, train
from RATE_model.plots import plot_bars

OUTPUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_environment")
EPOCHS = int(sys.argv[2]) if len(sys.argv) > 2 else 6


class Positions(gymnasium.ObservationWrapper):
    """The positions of cart and pole, without their velocities."""

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


def make(**options) -> gymnasium.Env:
    return Positions(gymnasium.make("CartPole-v1", max_episode_steps=200, **options))


# The expert sees the whole state of the environment; the data contains what the agent will see.
scene, rng = make(), np.random.default_rng(0)


def expert(observation: np.ndarray) -> int:
    if rng.random() < 0.2:
        return int(rng.integers(2))
    return int(np.dot(scene.get_wrapper_attr("state"), [0.02, 0.1, 1.0, 0.5]) > 0)


data = Dataset.collect(lambda **_: scene, expert, episodes=150)
print(data)
returns = {}
for memory in ("RATE", "MLP"):  # MLP sees a single step
    run = train(data, memory=memory, environment=make, output_dir=OUTPUT / memory, seed=1, overwrite=True,
                context_length=10, segments=3, epochs=EPOCHS)  # fmt: skip
    result = evaluate(run.agent(), make, episodes=20, target_return=200)
    print(f"{memory}: {result}")
    returns[memory] = {"return": (result.mean_return, result.standard_error)}
returns["data"] = {"return": (float(data.returns.mean()), float(data.returns.std() / len(data) ** 0.5))}
print(
    plot_bars(returns, OUTPUT / "returns.png", ylabel="steps until the pole falls", title="CartPole without velocities")
)
