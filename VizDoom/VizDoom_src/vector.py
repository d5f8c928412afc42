"""Many ViZDoom-Two-Colors games side by side."""

from functools import partial

from RATE_model.acting.vector import FrozenVectorEnv
from RATE_model.errors import UserError
from RATE_model.system.processes import available_cores
from VizDoom.VizDoom_src.env import PUBLISHED_CAP, SEED_LIMIT, VizDoomTwoColorsEnv
from VizDoom.VizDoom_src.scenario import Scenario


class VizDoomTwoColorsVectorEnv(FrozenVectorEnv):
    """B games, each of them a `VizDoomTwoColorsEnv`.

    The engines are processes of their own; threads here wait for them and scale their pictures, both of which leave
    Python to the others.

    Args:
        num_envs: B.
        scenario: what all of them play; None: the published scenario.
        max_steps: steps until truncation.
        threads: how many games take their step at once; None: one more than there are cores.
        privileged: see `VizDoomTwoColorsEnv`.
        render_mode: None, or "rgb_array" for `render`.

    Raises:
        UserError: a value is out of range, or (by the first reset) the package vizdoom is missing.
    """

    metadata = VizDoomTwoColorsEnv.metadata | FrozenVectorEnv.metadata

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | None = None,
        *,
        max_steps: int = PUBLISHED_CAP,
        threads: int | None = None,
        privileged: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"ViZDoom-Two-Colors: num_envs is {num_envs}; it must be at least 1.")
        make = partial(
            VizDoomTwoColorsEnv, scenario, max_steps=max_steps, privileged=privileged, render_mode=render_mode
        )
        super().__init__(
            [make] * num_envs,
            threads=min(num_envs, threads or available_cores() + 1),
            render_mode=render_mode,
            seeds_below=SEED_LIMIT,
            name="ViZDoom-Two-Colors",
        )
