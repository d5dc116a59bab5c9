"""The order of rows in training: decided by seed and epoch, every row once, also where the last batch is not full."""

import numpy as np
import pytest

from pipeline.errors import GateRefused
from train import loop


def epoch_of(rows: int, global_batch: int, seed: int = 7, epoch: int = 1) -> list[loop.Batch]:
    return list(loop.batches(np.arange(rows) * 10, np.arange(rows), global_batch, seed, epoch))


@pytest.mark.parametrize(("rows", "global_batch"), [(100, 10), (101, 10), (7, 8), (9, 8), (1, 4)])
def test_every_row_weighs_once_and_every_batch_is_full(rows, global_batch):
    batches = epoch_of(rows, global_batch)
    assert {len(batch.labels) for batch in batches} == {global_batch}
    counted = np.concatenate([batch.labels[batch.weights > 0] for batch in batches])
    assert sorted(counted) == list(range(rows))
    for batch in batches:
        assert batch.weights.sum() == pytest.approx(1)
        assert (batch.features == batch.labels * 10).all()


def test_seed_and_epoch_decide_the_order_and_nothing_else():
    def order(**named):
        return np.concatenate([batch.labels for batch in epoch_of(50, 10, **named)]).tolist()

    assert order() == order()
    assert order() != order(epoch=2)
    assert order() != order(seed=8)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_a_number_is_refused_with_its_epoch_and_step(wrong):
    fine = np.array([0.5, 1e30, 0])
    with pytest.raises(GateRefused, match=rf"the loss is {wrong} .* in epoch 3, step 52 of 90"):
        loop._refuse_nan(np.array([0.5, wrong, np.nan]), fine, 3, 50, 90)
    with pytest.raises(GateRefused, match=rf"gradients' norm {wrong} in epoch 3, step 53 of 90"):
        loop._refuse_nan(fine, np.array([0.5, 1, wrong]), 3, 50, 90)
    loop._refuse_nan(fine, fine, 3, 50, 90)
