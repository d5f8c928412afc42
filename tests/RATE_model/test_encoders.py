"""Preprocessing of observations in the encoders."""

from dataclasses import replace

import torch

from tests.small_models import VECTOR, logits_of, random_inputs, small_model


def test_vectors_are_normalised_by_the_specs_statistics():
    mean, std = torch.tensor([1.0, -2.0, 0.5, 30.0]), torch.tensor([2.0, 0.5, 1.0, 10.0])
    normalised = replace(VECTOR, observation_mean=tuple(mean.tolist()), observation_std=tuple(std.tolist()))
    observations, *others = random_inputs()
    expected = logits_of(small_model(), (observations, *others))
    found = logits_of(small_model(spec=normalised), (observations * std + mean, *others))
    torch.testing.assert_close(found, expected)
