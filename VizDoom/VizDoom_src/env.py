"""ViZDoom-Two-Colors for Gymnasium (Cherepanov et al. 2023, arXiv 2306.09459): single and vectorised.

The scenario is described in `scenario.py`. Actions: 0 turn left, 1 turn right, 2 forward, 3 left and forward, 4 right
and forward; each lasts 2 tics. The agent sees (3, 64, 112) uint8, RGB channels first, but not its health or the
pillar's colour. Rewards: 0.01 for every tic alive, and 1 for a step that ends with more health than the
previous one. An episode ends with the player's death, with a black observation; it is truncated after ``max_steps``
steps.

An episode depends only on its seed and the actions, in any process and after any history.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from RATE_model.acting.single import SeededEnv
from RATE_model.acting.vector import SeededVectorEnv, register_once
from RATE_model.data.resize import Bilinear
from RATE_model.errors import UserError
from RATE_model.spec import IMAGES, TANH, EnvironmentSpec
from VizDoom.VizDoom_src.engine import SCREEN, Engine, EngineDied, Surroundings
from VizDoom.VizDoom_src.scenario import TICS_PER_STEP, Scenario

NAME = "ViZDoom-Two-Colors"
ENV_ID = "VizDoomTwoColors-v0"
LEFT, RIGHT, FORWARD, LEFT_FORWARD, RIGHT_FORWARD = range(5)
NUM_ACTIONS = 5
# The mirror image of each action: the room is symmetric about the line from the start to the pillar.
MIRRORED = (RIGHT, LEFT, FORWARD, RIGHT_FORWARD, LEFT_FORWARD)
OBSERVATION_SHAPE = (3, 64, 112)
PUBLISHED_CAP = 4200  # step limit of evaluated episodes
HEAL_REWARD = 1.0
SEED_LIMIT = 2**32  # the engine's limit

# How the model sees it.
SPEC = EnvironmentSpec(observation_shape=OBSERVATION_SHAPE, num_actions=NUM_ACTIONS, **IMAGES, **TANH)

_COLOUR_STREAM = 1  # one of the random streams of a seed


class VizDoomTwoColorsEnv(SeededEnv):
    """One game; see the module for rules and observations. The seed determines layout and colour.

    The first reset starts the engine; `close`, or the end of the object, ends it. An engine that dies during an episode
    is replaced once, and the episode is replayed up to the same step; callers do not notice.

    At every step ``info`` holds ``is_red`` (bool), whether the pillar is red, and ``health`` (float); both are also
    attributes. The option ``is_red`` (bool) of ``reset`` overrides the seed's colour; outside the variant `clear` it is
    a ValueError.

    Args:
        scenario: the scenario; None: the published one.
        max_steps: steps until truncation.
        privileged: enable `surroundings`, for scripted players; steps then take longer.
        render_mode: None, or "rgb_array" for `render`.

    Raises:
        UserError: a value is out of range; from the first reset, if the package vizdoom is missing or the scenario's
            graphics cannot be obtained; later, if the engine died twice in an episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 35 / TICS_PER_STEP}
    seeds_below = drawn_below = SEED_LIMIT

    def __init__(
        self,
        scenario: Scenario | None = None,
        *,
        max_steps: int = PUBLISHED_CAP,
        privileged: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.scenario = (scenario or Scenario()).settled()
        super().__init__(NAME, OBSERVATION_SHAPE, NUM_ACTIONS, max_steps=max_steps, render_mode=render_mode)
        self._privileged = privileged
        self._engine: Engine | None = None
        self._seed, self._red = 0, None
        self._taken = bytearray()  # this episode's actions, for replay
        self._repeated = False
        self._screen: np.ndarray | None = None
        self.health, self.is_red = 0.0, False

    def render(self) -> np.ndarray | None:
        """What the engine drew, (180, 320, 3) uint8, black after death; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._screen is None:
            return np.zeros((*SCREEN, 3), dtype=np.uint8)
        return np.ascontiguousarray(self._screen.transpose(1, 2, 0))

    def surroundings(self) -> Surroundings:
        """The current positions, while the episode is not over; see `Surroundings`. Needs ``privileged``."""
        return self._running.surroundings()

    @property
    def _running(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def close(self) -> None:
        """End the engine. The next reset starts another one."""
        self._stop()
        self._truncated = not self._terminated

    def _start(self, seed: int, options: dict[str, Any]) -> None:
        """Begin the episode of a seed, with the seed's colour or the given one."""
        red = options.get("is_red")
        if self.scenario.variant == "clear":
            red = bool(np.random.default_rng([seed, _COLOUR_STREAM]).integers(2)) if red is None else bool(red)
        elif red is not None:
            raise ValueError("the seed sets the colour in the published scenario; is_red needs the variant 'clear'")
        self._seed, self._red, self._repeated = seed, red, False
        self._taken.clear()
        try:
            self._engine = self._engine or Engine(self.scenario, privileged=self._privileged)
            screen = self._engine.begin(seed, red)
        except EngineDied as error:
            screen, _ = self._repeat(error)
        self._see(screen)
        self.health, self.is_red = self._running.health, self._running.is_red

    def _advance(self, action: int) -> float:
        self._taken.append(action)
        try:
            screen, reward = self._running.act(action)
        except EngineDied as error:
            screen, reward = self._repeat(error)
        if self._running.health > self.health:
            reward += HEAL_REWARD
        self.health = self._running.health
        self._see(screen)
        self._terminated = screen is None
        return reward

    def _repeat(self, error: EngineDied) -> tuple[np.ndarray | None, float]:
        """Start another engine and replay the episode's actions; the last picture and reward."""
        self._stop()
        if self._repeated:
            raise self._died(error)
        self._repeated = True
        try:
            self._engine = Engine(self.scenario, privileged=self._privileged, replacement=True)
            screen, reward = self._engine.begin(self._seed, self._red), 0.0
            for action in self._taken:
                screen, reward = self._engine.act(action)
        except (EngineDied, UserError) as again:  # a UserError: no engine starts any more
            self._stop()
            raise self._died(again) from error
        return screen, reward

    def _stop(self) -> None:
        """End an engine that is no longer needed."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _died(self, error: Exception) -> UserError:
        self._truncated = True
        return UserError(
            f"the ViZDoom engine died twice in the episode of seed {self._seed}, at step {len(self._taken)} "
            f"({error}). Was it killed, or is there too little memory? Every engine takes some 20 MB."
        )

    def _see(self, screen: np.ndarray | None) -> None:
        self._screen = screen if self.render_mode is not None else None
        self._observation = np.zeros(OBSERVATION_SHAPE, np.uint8) if screen is None else _resize()(screen)

    def _info(self) -> dict[str, Any]:
        return {"is_red": self.is_red, "health": self.health}


@functools.cache
def _resize() -> Bilinear:
    """Resizes the engine's pictures to observations; its tables are computed once.

    The published code intends area averaging, but passes the constant as the output argument, so it is ignored.
    """
    return Bilinear(SCREEN, OBSERVATION_SHAPE[1:])


class VizDoomTwoColorsVectorEnv(SeededVectorEnv):
    """B games side by side, each a `VizDoomTwoColorsEnv`.

    Each engine is a separate process; threads wait for the engines and scale their pictures, both without holding the
    GIL.
    """

    name = NAME
    single = VizDoomTwoColorsEnv
    waits = True


register_once(ENV_ID, f"{__name__}:VizDoomTwoColorsEnv", f"{__name__}:VizDoomTwoColorsVectorEnv")
