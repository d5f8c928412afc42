"""The order in which windows are drawn, and the loader that assembles them into batches.

The order of batches depends only on (seed, key, epoch), not even on the number of workers, so training can resume at
any batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.workers import DatasetInWorker, TooFewResources, begin_worker, worker_batches
from RATE_model.system import distributed


class EpochSampler:
    """Decides which windows form which batch. Epoch e is a permutation that depends only on (seed, key, e).

    Args:
        num_items: windows in the dataset.
        batch_size: windows per batch; the last batch of an epoch may be smaller.
        seed: seed of the run.
        key: separates the samplers of one run, such as the stages of a curriculum.
        shuffle: False keeps the order of the dataset.
        max_batches: an epoch ends after this many; the next one draws from all windows again.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        *,
        key: int = 0,
        shuffle: bool = True,
        max_batches: int | None = None,
    ) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"num_items and batch_size must be positive, got {num_items} and {batch_size}")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.key = key
        self.shuffle = shuffle
        self.max_batches = max_batches

    def __len__(self) -> int:
        """Batches per epoch."""
        batches = -(-self.num_items // self.batch_size)
        return batches if self.max_batches is None else min(batches, self.max_batches)

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, lists of window numbers."""
        order = np.arange(self.num_items)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.key, epoch]).permutation(order)
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size].tolist() for start in starts]

    def iterate_from(self, epoch: int, batch: int) -> Iterator[tuple[int, int, list[int]]]:
        """Endless (epoch, batch, window numbers) from this position on; a batch past the end rolls over to the next
        epoch."""
        epoch, batch = epoch + batch // len(self), batch % len(self)
        for current in itertools.count(epoch):
            for number, indices in enumerate(self.batches(current)):
                if current > epoch or number >= batch:
                    yield current, number, indices


def make_loader(
    dataset: WindowDataset,
    sampler: EpochSampler,
    *,
    epoch: int = 0,
    batch: int = 0,
    end_epoch: int | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch: int = 2,
) -> Generator[tuple[int, int, Batch]]:
    """Yield (epoch, batch number, batch), starting exactly at the given position.

    With several training processes, each gets its share of every batch; if that is empty, one row of padding.

    The batches are the same for any number of workers, and torch's global random state is not touched. Close the
    iterator (``.close()``, or drop it) to stop the workers. If shared memory, file handles or processes run out, this
    process reports it and continues without workers; `workers.worker_failures` handles the death of a worker.

    Args:
        epoch, batch: the first batch to yield.
        end_epoch: stop before this epoch; None never stops.
        num_workers: loader processes, which live until the iterator ends; 0 assembles batches in this process.
        pin_memory: use page-locked memory; only possible with a GPU.
        prefetch: batches that each worker prepares ahead.
    """

    def positions() -> Iterator[tuple[int, int, list[int]]]:
        for current, number, indices in sampler.iterate_from(epoch, batch):
            if end_epoch is not None and current >= end_epoch:
                return
            yield current, number, indices[distributed.row_slice(len(indices))]

    done = 0
    if num_workers > 0:
        loader = DataLoader(
            DatasetInWorker(dataset),
            batch_sampler=_BatchIndices(positions),
            num_workers=num_workers,
            collate_fn=_whole_batch,
            pin_memory=pin_memory,
            prefetch_factor=prefetch,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # otherwise the loader would draw its base seed from the global generator
        )
        # The loader asks its sampler for batches ahead of time; the second, slower pass over the positions labels what
        # arrives.
        try:
            for (current, number, _), item in zip(positions(), worker_batches(loader), strict=False):
                done += 1
                yield current, number, item
            return
        except TooFewResources as error:
            print(f"--num_workers {num_workers}: {error}; assembling batches in the training process.", flush=True)
    for current, number, indices in itertools.islice(positions(), done, None):
        item = dataset.__getitems__(indices)
        yield current, number, item.pin_memory() if pin_memory else item


class _BatchIndices:
    """The window numbers of a stream of positions, as the batch sampler of a torch loader."""

    def __init__(self, positions) -> None:
        self._positions = positions

    def __iter__(self) -> Iterator[list[int]]:
        return (indices for _, _, indices in self._positions())


def _whole_batch(batch: Any) -> Batch:
    """The dataset returns whole batches, so there is nothing to collate."""
    return batch
