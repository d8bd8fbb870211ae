"""Files of rows: what is read, and what is refused with its row."""

import gzip
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.checkpoints.safetensors_files import tensors_of
from jaxgeom.checkpoints.torch_files import torch_tensors_of
from jaxgeom.data import arithmetic
from jaxgeom.data.chat import declared_stop_tokens, load_tokenizer
from jaxgeom.data.rows import read_row_file, read_rows, write_jsonl
from jaxgeom.data.templates import RowError
from jaxgeom.errors import UserError

ROWS = arithmetic.prompts(arithmetic.ArithmeticTask(), 3, seed=0)
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_rows_survive_the_disk(tmp_path):
    odd = [{"text": "a\u2028b\u2029c\x85d\x0be\x1cf\rg"}, *ROWS]
    write_jsonl(tmp_path / "rows.jsonl", odd)
    assert read_rows(tmp_path / "rows.jsonl") == odd


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + TEXT.encode()),
        ("crlf.jsonl", TEXT.replace("\n", "\r\n").encode()),
        ("blank.jsonl", ("\n" + TEXT.replace("\n", "\n  \n") + "\n").encode()),
        ("no-newline.jsonl", TEXT.rstrip("\n").encode()),
        ("array.json", json.dumps(ROWS).encode()),
        ("pretty.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode()),
        ("rows.jsonl.gz", gzip.compress(TEXT.encode(), mtime=0)),
        ("array.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("misnamed.jsonl", gzip.compress(TEXT.encode(), mtime=0)),
    ],
)
def test_the_same_rows_in_other_clothes(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert read_rows(tmp_path / name) == ROWS


def test_parquet_rows_are_the_jsonl_rows(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == ROWS


def test_the_nulls_of_a_parquet_table_are_no_fields(tmp_path):
    message = {"role": "user", "content": "1+1", "name": None, "tool_calls": None}
    kind = pyarrow.struct([("role", "string"), ("content", "string"), ("name", "string"), ("tool_calls", "string")])
    schema = pyarrow.schema([("messages", pyarrow.list_(kind)), ("text", "string")])
    rows = [{"messages": [message], "text": None}, {"messages": None, "text": "plain"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == [
        {"messages": [{"role": "user", "content": "1+1"}]},
        {"text": "plain"},
    ]


def test_narrow_numbers_of_a_parquet_table_are_the_decimals_that_they_stand_for(tmp_path):
    inner = pyarrow.struct([("ground_truth", pyarrow.list_(pyarrow.float32())), ("other", pyarrow.float64())])
    schema = pyarrow.schema([("answer", pyarrow.float32()), ("half", pyarrow.float16()), ("reward_model", inner)])
    rows = [
        {"answer": 0.1, "half": np.float16(0.1), "reward_model": {"ground_truth": [2.7, None, 1e-7], "other": 0.1}},
        {"answer": None, "half": np.float16(3), "reward_model": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == [
        {"answer": 0.1, "half": 0.1, "reward_model": {"ground_truth": [2.7, None, 1e-7], "other": 0.1}},
        {"half": 3.0},
    ]


def test_a_parquet_row_that_is_no_text_is_named(tmp_path):
    raw = pyarrow.array([b"good", b"\xff\xfe", b"good"], pyarrow.binary())
    texts = pyarrow.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "rows.parquet")
    contents = [row.content for row in read_row_file(tmp_path / "rows.parquet")]
    assert contents[0] == contents[2] == {"text": "good"} and isinstance(contents[1], RowError)
    assert str(contents[1]).startswith("column 'text': not readable: ")


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (None, "rows.jsonl", "no such file"),
        (b"", "rows.jsonl", "no rows"),
        (b"\n \n", "rows.jsonl", "no rows"),
        (b"[]", "rows.json", "no rows"),
        (b'{"a": 1}\n{"a": \n', "rows.jsonl", r"row 1 \(line 2\): not JSON"),
        (b'\n{"a": 1}\n"text"\n', "rows.jsonl", r"row 1 \(line 3\): not a JSON object but text"),
        (b"[1]\n", "rows.jsonl", r"line 1\): not a JSON object but an array"),
        (b'[{"a": 1}, null]', "rows.json", "row 1: not a JSON object but null"),
        (b'{"a": "Qu\xe9"}\n', "rows.jsonl", r"row 0 \(line 1\): not UTF-8"),
        (b'{"a": ' + b"[" * 200_000 + b"\n", "rows.jsonl", r"row 0 \(line 1\): (nested too deeply|not JSON)"),
        (b'{"a": ' + b"7" * 5_000 + b"}\n", "rows.jsonl", r"row 0 \(line 1\): not readable: .*digits"),
        (b'{\n"a": 1,\n"b": 2\n}\n', "rows.json", "a JSON object over several lines"),
        (b'{\n"a": 1\n}\n{\n"a": 2\n}\n', "rows.json", "a JSON object over several lines"),
        (b'[\n{"a": 1},\n{"a": 2}\n', "rows.json", "an array that is cut off or broken: .* at line 4"),
        (b'[{"a": 1},]', "rows.json", "an array that is cut off or broken"),
        ('{"a": 1}\n'.encode("utf-16"), "rows.jsonl", "rows.jsonl: UTF-16; save it as UTF-8"),
        ('{"a": 1}\n'.encode("utf-16-le"), "rows.jsonl", "UTF-16;"),
        (b"\xfe\xff" + '{"a": 1}\n'.encode("utf-16-be"), "rows.jsonl", "UTF-16;"),
        ("[1]".encode("utf-16-be"), "rows.json", "UTF-16;"),
        ('{"a": 1}\n'.encode("utf-32"), "rows.jsonl", "UTF-32;"),
        ('\n{"a": 1}\n'.encode("utf-32-le"), "rows.jsonl", "UTF-32;"),
        (b"\x00\x00\xfe\xff" + '{"a": 1}\n'.encode("utf-32-be"), "rows.jsonl", "UTF-32;"),
        ('[{"a": 1}]'.encode("utf-32-be"), "rows.json", "UTF-32;"),
        (gzip.compress('{"a": 1}\n'.encode("utf-32"), mtime=0), "rows.jsonl.gz", "UTF-32;"),
        ('[\n{"a": "é"}\n]'.encode("latin-1"), "rows.json", r"not UTF-8 text \(byte 0xe9 at 9: Latin-1"),
        (b'{"a": 1, "b": 2, "a": 3}\n', "rows.jsonl", r"row 0 \(line 1\): 'a' stands twice in one object, with diff"),
        (b'[{"a": 1}, {"a": [[{"b": 1, "b": true}]]}]', "rows.json", "row 1: 'b' stands twice"),
        (b'[{"a": 1, "a": 2}]', "rows.json", "row 0: 'a' stands twice"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-30], "rows.jsonl.gz", "damaged gzip"),
        (b"PAR1 no more", "broken.parquet", "broken.parquet: not a readable parquet file"),
        (b"a,b\n", "rows.csv", "expected a .jsonl or .parquet"),
    ],
)
def test_bad_files_are_named_with_the_row(tmp_path, content, name, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        read_rows(path)
    assert "\n" not in str(refused.value)


def test_a_pointer_of_git_lfs_is_called_so(tmp_path):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"
    reads = {
        "rows.jsonl": read_rows,
        "tokenizer.json": lambda path: load_tokenizer(path.parent),
        "model.safetensors": tensors_of,
        "pytorch_model.bin": torch_tensors_of,
        "config.json": read_json,
    }
    for name, read in reads.items():
        (tmp_path / name).write_text(pointer)
        with pytest.raises(UserError, match=rf"{name}: a pointer of Git LFS .*git lfs pull"):
            read(tmp_path / name)


def test_a_directory_in_place_of_rows_is_called_so(tmp_path):
    with pytest.raises(UserError, match="is a directory; give a file of rows in it"):
        read_row_file(tmp_path)


def test_a_name_twice_in_a_table_is_refused_where_its_values_differ(tmp_path):
    """A tensor in two shards, a field of a configuration with two values, a token with two ids."""
    config = '{"rope_theta": 1.0, "layers": 2, "rope_theta": %s}'
    index = '{"weight_map": {"a": "1.st", "b": "1.st", "a": "%s"}}'
    stops = '{"eos_token_id": 1, "eos_token_id": %s}'
    vocabulary = '{"model": {"vocab": {"a": 1, "b": 0, "a": %s}}}'
    tables = {
        "config.json": (read_json, config, ("1.0", "2.0")),
        "model.safetensors.index.json": (read_json, index, ("1.st", "2.st")),
        "generation_config.json": (lambda path: declared_stop_tokens(path.parent), stops, "12"),
        "tokenizer.json": (lambda path: load_tokenizer(path.parent), vocabulary, "12"),
    }
    for place, (name, (read, text, (same, other))) in enumerate(tables.items()):
        path = tmp_path / str(place) / name
        path.parent.mkdir()
        path.write_text(text % other)
        with pytest.raises(UserError, match=rf"{name}: '[a-z_]+' stands twice in one object, with different values"):
            read(path)
        path.write_text(text % same)
        if name == "tokenizer.json":
            with pytest.raises(UserError, match="cannot be read"):
                read(path)
        else:
            read(path)


def test_json_in_another_encoding_is_called_so(tmp_path):
    path = tmp_path / "config.json"
    for encoding, said in (("utf-16", "UTF-16"), ("utf-32-be", "UTF-32"), ("latin-1", "Latin-1 or Windows-1252")):
        path.write_bytes('{"é": 1}'.encode(encoding))
        with pytest.raises(UserError, match=f"config.json: not JSON: .*{said}.*save it as UTF-8"):
            read_json(path)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="no regular file"):
        read_rows(tmp_path / "rows.jsonl")
