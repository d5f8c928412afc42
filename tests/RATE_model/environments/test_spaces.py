"""Spaces: conversion to and from a model's observations and actions, and refusals."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from RATE_model.environments.spaces import Actions, Encoded, Observations, spec_of
from RATE_model.errors import UserError

VECTORS = {
    "box": (spaces.Box(-1, 1, (3,), np.float32), (3,)),
    "matrix": (spaces.Box(-1, 1, (2, 3), np.float64), (6,)),
    "discrete": (spaces.Discrete(5, start=2), (5,)),
    "multi-discrete": (spaces.MultiDiscrete([2, 3]), (5,)),
    "multi-binary": (spaces.MultiBinary(4), (4,)),
    "dict": (spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.Dict(c=spaces.Discrete(3))), (5,)),
    "tuple": (spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.Discrete(3)]), (5,)),
}
ACTIONS = [
    spaces.Discrete(4, start=-1),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiBinary(3),
    spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32)),
]


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_are_encoded_completely(name):
    space, shape = VECTORS[name]
    space.seed(0)
    observations = Observations.of(space)
    assert observations.shape == shape and not observations.is_image
    samples = [space.sample() for _ in range(4)]
    for sample in samples:
        seen = observations.encode(sample)
        assert seen.shape == shape and seen.dtype == np.float32
        np.testing.assert_array_equal(seen, spaces.flatten(space, sample).astype(np.float32))


def test_columns_of_a_dict_are_its_rows():
    space = VECTORS["dict"][0]
    samples = [space.sample() for _ in range(6)]
    columns = {"a": np.stack([s["a"] for s in samples]), "b": {"c": np.array([s["b"]["c"] for s in samples])}}
    observations = Observations.of(space)
    expected = np.stack([observations.encode(sample) for sample in samples])
    np.testing.assert_array_equal(observations.encode_many(columns), expected)


@pytest.mark.parametrize("shape", [(40, 48, 3), (3, 40, 48), (40, 48, 1)])
def test_images_have_their_channels_first(shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    observations = Observations.of(space)
    sample = space.sample()
    channels = sample if shape[0] == 3 else np.moveaxis(sample, -1, 0)
    np.testing.assert_array_equal(observations.encode(sample), channels)
    np.testing.assert_array_equal(observations.encode_many(sample[None])[0], channels)
    spec = spec_of(observations, Actions.of(spaces.Discrete(2)))
    assert spec.observation_shape == channels.shape and spec.observation_scale == 1 / 255


def test_images_of_a_dict_come_first_in_its_vector():
    image = spaces.Box(0, 255, (40, 48, 3), np.uint8)
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), inner=spaces.Tuple([spaces.Discrete(3), image]), z=image)
    space.seed(0)
    observations, samples = Observations.of(space), [space.sample() for _ in range(3)]
    assert observations.shape == (2 * 3 * 40 * 48 + 5,) and observations.images == ((3, 40, 48),) * 2
    columns = {
        "a": np.stack([sample["a"] for sample in samples]),
        "inner": {str(part): np.stack([sample["inner"][part] for sample in samples]) for part in (0, 1)},
        "z": np.stack([sample["z"] for sample in samples]),
    }
    seen = observations.encode_many(columns)
    for sample, vector in zip(samples, seen, strict=True):
        images = [picture.transpose(2, 0, 1).reshape(-1) for picture in (sample["inner"][1], sample["z"])]
        one_hot = np.eye(3)[sample["inner"][0]]
        np.testing.assert_array_equal(vector, np.concatenate([*images, sample["a"], one_hot]).astype(np.float32))
        np.testing.assert_array_equal(observations.encode(sample), vector)
    assert observations.encode_many(seen) is not None and observations.is_encoded(seen), "files hold such vectors"
    spec = spec_of(observations, Actions.of(spaces.Discrete(2)), mean=np.zeros(5), std=np.ones(5))
    assert spec.images == observations.images and spec.numbers == 5 and spec.observation_scale == 1


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_actions_round_trip(space):
    space.seed(1)
    actions = Actions.of(space)
    samples = [space.sample() for _ in range(20)]
    encoded = actions.encode(np.array(samples))
    assert len(encoded) == 20 and actions.continuous == (encoded.ndim == 2)
    for sample, code in zip(samples, encoded, strict=True):
        back = actions.decode(code)
        np.testing.assert_allclose(back, sample, atol=1e-6)
        assert space.contains(back)


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Text(5), "Text"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Text(5)), "Text"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "36 x 36"),
        (spaces.Dict(a=spaces.Box(0, 255, (8, 8, 3), np.uint8), b=spaces.Discrete(2)), "36 x 36"),
    ],
)
def test_unsupported_observations_are_refused(space, named):
    with pytest.raises(UserError, match="observation space") as error:
        Observations.of(space)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Dict(a=spaces.Discrete(2)), "supported are Discrete"),
        (spaces.Box(-np.inf, np.inf, (2,)), "not finite"),
        (spaces.MultiDiscrete([100, 100, 100]), "1000000 combinations; at most 4096"),
    ],
)
def test_unsupported_actions_are_refused(space, named):
    with pytest.raises(UserError, match="action space") as error:
        Actions.of(space)
    assert named in str(error.value)


def test_an_encoded_environment_is_a_valid_environment():
    check_env(Encoded(gymnasium.make("CartPole-v1")).unwrapped, skip_render_check=True)
    pendulum = Encoded(gymnasium.make("Pendulum-v1"))
    assert pendulum.action_space == spaces.Box(-1, 1, (1,), np.float32)
    pendulum.reset(seed=0)
    _, half, *_ = pendulum.step(np.array([0.5], np.float32))
    plain = gymnasium.make("Pendulum-v1")
    plain.reset(seed=0)
    assert half == plain.step(np.array([1.0], np.float32))[1], "half of the bounds, which are 2"
