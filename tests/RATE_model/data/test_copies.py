"""Copies of batches to a GPU, with substitutes for its streams."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from RATE_model.data import batch as batches
from RATE_model.data.batch import Batch, DeviceCopies
from RATE_model.data.frames import Frames, FrameStack

OBSERVATIONS = {
    "vectors": torch.randn(2, 3, 4),
    "images": Frames(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64)),
    "stacks": FrameStack(torch.zeros(2, 4, 1, 2, 2, dtype=torch.uint8), 2),
}


def make_batch(observations) -> Batch:
    steps, rows = torch.zeros(2, 3), torch.tensor([3, 1])
    return Batch(observations, steps.long(), steps, steps.bool(), rows, rows, infos={"infos/a": steps[..., None]})


class FakeStreams:
    """Says what happens on which stream."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.name = "current"

    def make(self, _):
        return "copies"

    @contextmanager
    def use(self, name):
        before, self.name = self.name, name
        yield
        self.name = before

    def current(self, _):
        return mock.Mock(wait_stream=lambda other: self.order.append(f"{self.name} waits for {other}"))


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_batches_are_copied_on_a_stream_of_their_own(kind, monkeypatch):
    streams = FakeStreams()
    monkeypatch.setattr(batches.torch.cuda, "Stream", streams.make)
    monkeypatch.setattr(batches.torch.cuda, "stream", streams.use)
    monkeypatch.setattr(batches.torch.cuda, "current_stream", streams.current)
    kept: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, _: kept.append(tensor.shape))

    def moved(value, *_, **options):
        streams.order.append(f"copy on {streams.name}")
        assert options["non_blocking"]
        return value

    monkeypatch.setattr(torch.Tensor, "to", moved)
    batch = DeviceCopies(torch.device("cuda"))(make_batch(OBSERVATIONS[kind]))
    tensors = 5 + (kind == "images")  # observations, actions, rtg, valid, infos
    assert streams.order == ["copy on copies"] * tensors + ["current waits for copies"]
    assert len(kept) == tensors and batch.lengths.tolist() == [3, 1]
