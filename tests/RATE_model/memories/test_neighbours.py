"""The index, its keys, and what kNN and Retrieval do with them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from RATE_model.acting.actor import Actor
from RATE_model.errors import UserError
from RATE_model.memories import neighbours
from RATE_model.memories.knn import KNNConfig
from RATE_model.memories.neighbours import History, Index
from RATE_model.memories.retrieval import RetrievalConfig
from tests.RATE_model.memories.test_contract import Case, inputs_of
from tests.small_models import VECTOR, everywhere, logits_of


def test_keys_are_averages_over_the_history():
    history = History(6, projected=3, horizons=2)
    x = torch.randn(1, 5, 6)
    keys, after = history(x, history.initial(1, torch.device("cpu")), None)
    projected = x[0].numpy() @ history.projection.numpy().T
    fast = slow = np.zeros(3)
    for step in range(5):
        fast, slow = fast / 2 + projected[step] / 2, 7 / 8 * slow + projected[step] / 8
        np.testing.assert_allclose(keys[0, step].numpy(), np.concatenate([projected[step], fast, slow]), atol=1e-6)
    np.testing.assert_allclose(after[0].numpy(), [fast, slow], atol=1e-6)


def test_the_nearest_are_found_in_standard_deviations():
    """The second number varies ten times as much, and counts a tenth; the third never varies, and counts nothing."""
    index = Index(4, 3, (1,))
    keys = torch.tensor([[0.0, 0, 5], [2, 0, 5], [0, 20, 5], [2, 20, 5]])
    index.store(keys, torch.arange(4.0)[:, None], newest=True)
    places, distances = index.nearest(torch.tensor([[0.0, 6, 9]]), 9)
    assert places.tolist() == [[0, 2, 1, 3]]
    # Standard deviations 1 and 10: the first is 0.6 away, divided by the root of the size of a key.
    torch.testing.assert_close(distances[0, 0], torch.tensor(0.6 / 3**0.5))


class WrittenOut:
    """What is used of `faiss.IndexFlatL2`: squared distances, the nearest first."""

    def __init__(self, size: int) -> None:
        self.keys = np.zeros((0, size), dtype=np.float32)

    def add(self, keys: np.ndarray) -> None:
        self.keys = np.concatenate([self.keys, keys])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        squares = ((queries[:, None] - self.keys) ** 2).sum(-1)
        places = squares.argsort(axis=1)[:, :k]
        return np.take_along_axis(squares, places, axis=1), places


@pytest.mark.parametrize("package", ["faiss", "written out"])
def test_faiss_finds_the_same_neighbours(package, monkeypatch):
    found = pytest.importorskip("faiss") if package == "faiss" else SimpleNamespace(IndexFlatL2=WrittenOut)
    torch.manual_seed(0)
    index = Index(50, 6, (1,))
    index.store(torch.randn(40, 6), torch.zeros(40, 1), newest=True)
    queries = torch.cat([torch.randn(7, 6), index.keys[:1]])
    monkeypatch.setattr(neighbours, "_faiss", lambda: None)
    expected = index.nearest(queries, 5)
    monkeypatch.setattr(neighbours, "_faiss", lambda: found)
    places, distances = index.nearest(queries, 5)
    assert torch.equal(places, expected[0])
    torch.testing.assert_close(distances, expected[1], rtol=1e-4, atol=1e-3)


def test_the_newest_replace_the_oldest():
    index = Index(3, 1, (1,))
    for number in range(5):
        index.store(torch.full((1, 1), float(number)), torch.full((1, 1), float(number)), newest=True)
    index.store(torch.arange(5.0, 12.0)[:, None], torch.arange(5.0, 12.0)[:, None], newest=True)
    assert sorted(index.values.flatten().tolist()) == [9, 10, 11] and torch.equal(index.keys, index.values)


def test_a_sample_is_even_over_all_that_was_offered():
    torch.manual_seed(0)
    index, numbers = Index(500, 1, (1,)), torch.arange(5000.0)[:, None]
    for part in numbers.split(123):
        index.store(part, part, newest=False)
    kept = index.values.flatten()
    assert len(kept.unique()) == 500 and int(index.offered) == 5000
    quarters = torch.histc(kept, 4, 0, 5000)
    assert (quarters > 90).all() and (quarters < 160).all()


def test_knn_does_what_the_data_did():
    """Shown trajectories in training mode, it takes the embedded actions that they took there."""
    case = Case.of("kNN", "none", knn_neighbours=1, knn_temperature=0.01)
    agent, inputs = case.agent(), inputs_of(VECTOR, 4)
    agent.memory.index.offered.zero_()
    assert not logits_of(agent, inputs).diff(dim=1).any(), "without data every step looks the same"
    logits_of(agent.train(), inputs)
    agent.memory.store_shown()
    agent.eval()
    with torch.no_grad():
        expected = agent.head(agent.encoder.encode_actions(inputs[1]))
        torch.testing.assert_close(logits_of(agent, inputs), expected)
    distances = agent.inspect(*inputs)["neighbours"]
    assert distances.shape == (4, 12, 1) and distances.max() < 1e-3


@torch.no_grad()
def test_retrieval_reads_the_pieces_that_began_alike():
    case = Case.of("Retrieval", "none", retrieval_neighbours=1, retrieval_entries=12)
    agent, inputs = case.agent().train(), inputs_of(VECTOR, 4)
    cell = agent.memory.cells[0]
    cell.index.offered.zero_()
    before = logits_of(agent, inputs)
    agent.memory.store_shown()
    assert cell.index.count == 12, "three segments of four trajectories"
    agent.eval()
    _, state = agent(*inputs, everywhere(inputs))
    assert state.memory.distances[0].max() < 1e-3, "the last segments find themselves"
    assert (logits_of(agent, inputs) - before).abs().max() > 1e-3, "and they are read"
    read = agent.inspect(*inputs)["gates"]["layer 1: neighbours read"]
    assert read.shape == (4, 12, 1) and (read > 0).all() and (read < 1).all()
    agent.train()
    _, state = agent(*inputs, everywhere(inputs))
    assert state.memory.distances[0].min() > 0.01, "in training a piece that may be of the same episode is not read"


@torch.no_grad()
def test_padding_is_not_stored():
    """Of four rows of three segments, the last ends within its last segment."""
    agent, inputs = Case.of("Retrieval", "none").agent().train(), inputs_of(VECTOR, 4)
    index, valid = agent.memory.cells[0].index, everywhere(inputs)
    index.offered.zero_()
    valid[3, -1] = False
    agent(*inputs, valid)
    agent.memory.store_shown()
    assert index.count == 11


def test_knn_does_not_act_without_data():
    agent, inputs = Case.of("kNN", "none").agent(), inputs_of(VECTOR, 2)
    agent.memory.index.offered.zero_()
    with pytest.raises(UserError, match="--model_mode kNN: its index is empty"):
        Actor(agent, 2, inputs[2][:, 0])


@torch.no_grad()
def test_retrieval_acts_before_a_whole_segment_was_shown():
    """A curriculum may begin with episodes shorter than a segment, and evaluate after them."""
    agent, inputs = Case.of("Retrieval", "none").agent(), inputs_of(VECTOR, 2)
    agent.memory.index.offered.zero_()
    actor = Actor(agent, 2, inputs[2][:, 0])
    for step in range(2 * agent.config.sizes.context_length):
        actions = actor.act(inputs[0][:, step % inputs[0].shape[1]].numpy(), np.zeros(2))
    assert np.isfinite(actions).all()


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (KNNConfig, {"entries": 4, "neighbours": 5}, "--knn_neighbours 5: must be at most --knn_entries, which is 4"),
        (KNNConfig, {"entries": 0}, "--knn_entries 0"),
        (KNNConfig, {"temperature": 0.0}, "--knn_temperature 0.0"),
        (RetrievalConfig, {"entries": 4, "neighbours": 5}, "--retrieval_neighbours 5.*4"),
        (RetrievalConfig, {"cutoff": -1.0}, "--retrieval_cutoff -1.0"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(config, changes, words):
    with pytest.raises(UserError, match=words):
        config(d_model=8, context_length=4, **changes).validate()
