"""Act in your own loop, with a run of examples/own_environment.py.

    python3 examples/own_loop.py [RUN_DIR]

The actor keeps the memory: give it one observation and one reward per step, from one environment or several.
"""

import sys

import gymnasium
import numpy as np

from RATE_model import load_agent

agent = load_agent(sys.argv[1] if len(sys.argv) > 1 else "runs/own_environment/RATE")
actor = agent.actor(batch_size=1, target_return=200)
environment = gymnasium.make("CartPole-v1", max_episode_steps=200)

for episode in range(3):
    observation, _ = environment.reset(seed=episode)
    actor.reset()
    reward, total, over = np.zeros(1), 0.0, False
    while not over:
        action = actor.act(observation[None, [0, 2]], reward)[0]  # the agent only sees positions
        observation, reward[0], terminated, truncated, _ = environment.step(int(action))
        total, over = total + reward[0], terminated or truncated
    print(f"episode {episode}: return {total:g}")
