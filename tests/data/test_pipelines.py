"""Batches: padded to buckets, shuffled by the seed, restored where they were."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxgeom.data import arithmetic, chat, pipelines
from jaxgeom.data.buckets import bucket_length
from jaxgeom.data.character_tokenizer import write_character_tokenizer
from jaxgeom.data.rows import check_demonstrations, check_prompts, read_rows, write_jsonl
from jaxgeom.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(directory)
    return chat.load_tokenizer(directory)


def _demonstrations(tokenizer, rows, **options):
    settings = {"batch_size": 8, "max_length": 128, "seed": 5} | options
    return pipelines.demonstration_batches(rows, tokenizer, **settings)


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


def test_rows_survive_the_disk(tmp_path):
    rows = arithmetic.prompts(arithmetic.ArithmeticTask(), 3, seed=0)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_parquet_rows_are_the_jsonl_rows(tmp_path):
    rows = arithmetic.prompts(arithmetic.ArithmeticTask(), 3, seed=0)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == rows
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="broken.parquet"):
        read_rows(tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (None, "rows.jsonl", "no such file"),
        ("", "rows.jsonl", "no rows"),
        ('{"a": 1}\n{"a": \n', "rows.jsonl", "line 2"),
        ("[1]\n", "rows.jsonl", "line 1"),
        ("a,b\n", "rows.csv", "expected a .jsonl or .parquet"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, content, name, words):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_rows(path)


@pytest.mark.parametrize(
    "row", [{}, {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": "text"}, {"messages": [3]}]
)
def test_rows_that_are_no_demonstrations_are_numbered(row):
    good = arithmetic.demonstrations(arithmetic.ArithmeticTask(), 1, seed=0)
    with pytest.raises(UserError, match="row 1"):
        check_demonstrations([*good, row], "file")


def test_prompts_without_an_answer_are_numbered():
    row = {"prompt": [{"role": "user", "content": "1+1"}]}
    with pytest.raises(UserError, match="row 0.*ground_truth"):
        check_prompts([row], "file")


def test_batches_of_one_row_are_those_of_the_endless_order(tokenizer):
    """Grain's length of an endless data set, in batches of one, is beyond what an index holds."""
    rows = [{"text": str(number) * (number + 1)} for number in range(5)]
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
