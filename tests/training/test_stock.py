"""What is in hand for the next steps: the order in which rollouts are drawn and learned from, and checkpoints of it."""

import numpy as np
import pytest

from jaxgeom.training.objectives import Prepared
from jaxgeom.training.state import Batch
from jaxgeom.training.stock import Stock


def batch(drawn_at, number, place):
    mark = np.array([[drawn_at, number, place]], np.int32)
    return Batch(tokens=mark, valid=mark > -1, loss_mask=mark > -1)


def followed(lag, updates, steps, empty=(), stop=None):
    """(step when drawn, rollout, place) of each step's batch; taken to a checkpoint and back before step `stop`."""
    stock, seen, now = Stock(), [], 0

    def draw(number):
        batches = [] if number in empty else [batch(now, number, place) for place in range(updates)]
        return Prepared(batches, {"reward": float(number), "sampler_mismatch": float(number)}, None)

    for now in range(steps):
        if now == stop:
            stock = Stock.unpacked([*stock.packed()], lambda held: held)
        stock, drawn = stock.for_step(now, lag, draw)
        seen.append(tuple(stock.batches[0].tokens[0].tolist()) if stock.batches else None)
        if now == 0:
            assert drawn.metrics == {"reward": lag / 2, "sampler_mismatch": lag}  # a mean, and the largest
        stock = stock.after_step()
    return seen


def test_without_lag_every_rollout_is_learned_from_at_once():
    assert followed(0, 1, 3) == [(0, 0, 0), (1, 1, 0), (2, 2, 0)]
    assert followed(0, 2, 5) == [(0, 0, 0), (0, 0, 1), (2, 2, 0), (2, 2, 1), (4, 4, 0)]
    assert followed(0, 2, 4, empty={0}) == [None, (1, 1, 0), (1, 1, 1), (3, 3, 0)]


@pytest.mark.parametrize("lag", [1, 3])
def test_with_lag_a_step_learns_from_a_rollout_drawn_so_many_steps_before(lag):
    found = followed(lag, 1, 8)
    assert [rollout for _, rollout, _ in found] == list(range(8))
    assert [drawn for drawn, _, _ in found] == [max(0, step - lag) for step in range(8)]


def test_an_empty_rollout_keeps_its_place_in_the_queue():
    assert followed(2, 1, 6, empty={1, 4}) == [(0, 0, 0), None, (0, 2, 0), (1, 3, 0), None, (3, 5, 0)]


@pytest.mark.parametrize("stop", range(7))
def test_a_checkpoint_holds_all_of_it(stop):
    for lag, updates, empty in ((0, 2, ()), (2, 1, {1, 3}), (1, 3, ()), (2, 2, {0})):
        assert followed(lag, updates, 9, empty, stop) == followed(lag, updates, 9, empty)
