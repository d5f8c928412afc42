"""Limits that types of flags declare."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from RATE_model.cli.limits import Check, Count, Probability, Range, Ranged, Share
from RATE_model.errors import UserError


def check_odd(value: int, *, flag: str) -> None:
    if value % 2 == 0:
        raise UserError(f"--{flag} {value}: must be odd")


@dataclass(frozen=True)
class Options(Ranged):
    count: Count = 1
    noise: Probability = 0.5
    share: Share = 0.5
    scale: Annotated[float, Range(above=0)] | None = None
    sizes: Annotated[tuple[int, ...], Check(check_odd)] = (3, 5)
    either: Annotated[int, Range(2, 4)] = 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "--count 0: must be at least 1$"),
        ({"noise": 1.5}, "--noise 1.5: must be at most 1$"),
        ({"share": 1.0}, "--share 1.0: must be at least 0 and below 1$"),
        ({"share": float("nan")}, "--share nan: must be"),
        ({"scale": 0.0}, "--scale 0.0: must be above 0$"),
        ({"sizes": (3, 4)}, "--sizes 4: must be odd"),
        ({"either": 5}, "--either 5: must be at most 4$"),
    ],
)
def test_a_value_beyond_its_limit_is_named(changes, message):
    Options().validate()
    with pytest.raises(UserError, match=message):
        Options(**changes).validate()


def test_a_subclass_adds_flags_and_checks():
    @dataclass(frozen=True)
    class More(Options):
        steps: Count = 5

    More().validate()
    with pytest.raises(UserError, match="--steps 0"):
        More(steps=0).validate()
