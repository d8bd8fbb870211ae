"""Batches: padded to buckets, shuffled by the seed, restored where they were."""

import numpy as np
import pytest

from jaxgeom.data import arithmetic, chat, pipelines
from jaxgeom.data.buckets import bucket_length
from jaxgeom.data.character_tokenizer import write_character_tokenizer
from tests.tiny import tiny_demonstrations


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(directory)
    return chat.load_tokenizer(directory)


def _demonstrations(tokenizer, rows, **options):
    settings = {"max_length": 128, "seed": 5, "batch_size": 8} | options
    prepared = tiny_demonstrations(rows, tokenizer, max_length=settings.pop("max_length"))
    return pipelines.demonstration_batches(prepared, **settings)


def test_a_restored_iterator_goes_on_where_it_was(tokenizer):
    rows = arithmetic.demonstrations(arithmetic.ArithmeticTask(), 40, seed=0)
    iterator = _demonstrations(tokenizer, rows)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator)["tokens"] for _ in range(7)]  # over the end of the 40 rows
    fresh = _demonstrations(tokenizer, rows)
    fresh.set_state(state)
    for wanted in expected:
        np.testing.assert_array_equal(next(fresh)["tokens"], wanted)


def test_an_epoch_shows_every_row_once_in_the_seeds_order(tokenizer):
    rows = arithmetic.demonstrations(arithmetic.ArithmeticTask(), 32, seed=0)

    def epoch(seed):
        iterator = _demonstrations(tokenizer, rows, seed=seed)
        return [tokenizer.decode(row[row != 0]) for _ in range(4) for row in next(iterator)["tokens"]]

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert first == again != other
    assert sorted(first) == sorted(other) and len(set(first)) == len({str(row) for row in rows})


def test_long_rows_are_cut_and_padding_is_no_target(tokenizer):
    rows = arithmetic.demonstrations(arithmetic.ArithmeticTask(terms=5, digits=4), 16, seed=0)
    batch = next(_demonstrations(tokenizer, rows, max_length=40))
    assert batch["tokens"].shape == (8, 48)
    assert batch["valid"].sum(axis=1).max() <= 40
    assert not (batch["loss_mask"] & ~batch["valid"]).any()


@pytest.mark.parametrize(
    ("length", "bucket"), [(1, 12), (12, 12), (13, 16), (17, 24), (49, 64), (65, 96), (1_000, 1_024)]
)
def test_buckets(length, bucket):
    assert bucket_length(length) == bucket


def test_batches_of_one_row_are_those_of_the_endless_order(tokenizer):
    """Grain's length of an endless data set, in batches of one, is beyond what an index holds."""
    rows = arithmetic.demonstrations(arithmetic.ArithmeticTask(), 5, seed=0)
    several, single = (_demonstrations(tokenizer, rows, batch_size=size) for size in (4, 1))
    batch, ones = next(several), [next(single) for _ in range(4)]
    state = single.get_state()
    for place, one in enumerate(ones):
        assert one["tokens"].shape[0] == 1
        kept = batch["tokens"][place][batch["valid"][place]]
        np.testing.assert_array_equal(one["tokens"][0][one["valid"][0]], kept)
    after = next(single)
    single.set_state(state)
    np.testing.assert_array_equal(next(single)["tokens"], after["tokens"])


def _packed(tokenizer, rows, **options):
    prepared = tiny_demonstrations(rows, tokenizer, max_length=96)
    return prepared, pipelines.packed_batches(prepared, **({"batch_size": 3, "length": 96, "seed": 5} | options))


def test_packed_rows_hold_every_demonstration_whole_and_once_an_epoch(tokenizer):
    rows = arithmetic.demonstrations(arithmetic.ArithmeticTask(), 40, seed=0)
    prepared, iterator = _packed(tokenizer, rows)
    wanted = sorted(tuple(prepared.row(place).tokens.tolist()) for place in range(40))
    seen, targets = [], 0
    while len(seen) < 40:
        batch = next(iterator)
        assert batch["tokens"].shape == batch["segments"].shape == (3, 96)
        np.testing.assert_array_equal(batch["valid"], batch["segments"] > 0)
        for tokens, segments, mask in zip(batch["tokens"], batch["segments"], batch["loss_mask"], strict=True):
            assert segments.max() > 1 and np.all(np.diff(segments[segments > 0]) >= 0)
            for number in range(1, segments.max() + 1):
                own = segments == number
                seen.append(tuple(tokens[own].tolist()))
                assert not mask[own][0]
                targets += mask[own].sum()
            assert not mask[segments == 0].any()
    assert sorted(seen[:40]) == wanted  # what was packed ahead is of the next epoch
    assert targets > 0


def test_a_restored_packing_goes_on_where_it_was(tokenizer):
    rows = arithmetic.demonstrations(arithmetic.ArithmeticTask(), 25, seed=0)
    iterator = _packed(tokenizer, rows)[1]
    for taken in range(6):
        state = iterator.get_state()
        wanted = next(iterator)
        fresh = _packed(tokenizer, rows)[1]
        fresh.set_state(state)
        found = next(fresh)
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=f"{taken} {name}")
