"""A toy task: the first observation shows a bit, which the last action should repeat."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

STEPS = 4


class Recall(gymnasium.Env):
    """Episodes of four steps; reward 1 for the right last action."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, size: int = 2, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1, 1, (size,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.size, self.render_mode, self.max_steps = size, render_mode, STEPS + 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.bit, self.step_number = int(self.np_random.integers(2)), 0
        return self._see(), {"bit": self.bit}

    def step(self, action: int):
        assert self.action_space.contains(action)
        self.step_number += 1
        over = self.step_number == STEPS
        return self._see(), float(over and action == self.bit), over, False, {"bit": self.bit}

    def _see(self) -> np.ndarray:
        shown = np.zeros(self.size, dtype=np.float32)
        shown[0] = 2 * self.bit - 1 if self.step_number == 0 else 0
        return shown

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), 50 * self.step_number, dtype=np.uint8)


class Watched(Recall):
    """The same with a picture beside the numbers: it is bright where the bit is 1."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        picture = spaces.Box(0, 255, (40, 40, 1), np.uint8)
        self.observation_space = spaces.Dict(camera=picture, numbers=self.observation_space)

    def _see(self) -> dict[str, np.ndarray]:
        numbers = super()._see()
        return {"camera": np.full((40, 40, 1), 200 * max(0, numbers[0]), np.uint8), "numbers": 10 + 3 * numbers}


class Broken(gymnasium.Env):
    """An environment that cannot be created."""

    def __init__(self) -> None:
        raise RuntimeError("the licence\nhas expired")


def episodes(count: int = 12, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Episodes of an agent that remembers."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        bit = int(rng.integers(2))
        observations = np.zeros((STEPS, 2), dtype=np.float32)
        observations[0, 0] = 2 * bit - 1
        actions = rng.integers(2, size=STEPS)
        actions[-1] = bit if rng.random() < 0.8 else 1 - bit
        rewards = np.zeros(STEPS, dtype=np.float32)
        rewards[-1] = actions[-1] == bit
        made.append({"observations": observations, "actions": actions, "rewards": rewards, "terminals": True})
    return made
