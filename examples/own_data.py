"""Train on your own arrays, and evaluate the agent without its memory.

    python3 examples/own_data.py [OUTPUT_DIR [EPOCHS]]

The task of this example: the first observation shows a bit, which the last action should repeat, 20 steps later.
"""

import sys

import gymnasium
import numpy as np

from RATE_model import Dataset, evaluate, knock_out_memory, load_agent, train

OUTPUT = sys.argv[1] if len(sys.argv) > 1 else "runs/own_data"
EPOCHS = int(sys.argv[2]) if len(sys.argv) > 2 else 30
STEPS = 20


class Recall(gymnasium.Env):
    """Remember a bit."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    max_steps = STEPS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bit, self.time = int(self.np_random.integers(2)), 0
        return np.float32([2 * self.bit - 1]), {}

    def step(self, action):
        self.time += 1
        over = self.time == STEPS
        return np.zeros(1, np.float32), float(over and action == self.bit), over, False, {}


rng = np.random.default_rng(0)
episodes = []
for bit in rng.integers(2, size=300):  # your recorded episodes; here, three of four are correct
    observations = np.zeros((STEPS, 1), np.float32)
    observations[0] = 2 * bit - 1
    actions = np.zeros(STEPS, int)
    actions[-1] = bit if rng.random() < 0.75 else 1 - bit
    rewards = np.zeros(STEPS)
    rewards[-1] = actions[-1] == bit
    episodes.append({"observations": observations, "actions": actions, "rewards": rewards})

data = Dataset.from_episodes(episodes, environment=Recall)
print(data)
train(data, memory="RATE", context_length=5, segments=4, epochs=EPOCHS, output_dir=OUTPUT, seed=1, overwrite=True)
agent = load_agent(OUTPUT)
print("with memory:   ", evaluate(agent, Recall, episodes=50, target_return=1))
print("without memory:", evaluate(agent, Recall, episodes=50, target_return=1, transform_memory=knock_out_memory))
