"""Reading real safetensors directories, and every way in which one can be broken."""

import json

import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.errors import UserError
from tests.comparison import disk


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_read_as_written(tmp_path, shards):
    tensors = disk.weights()
    checkpoint = open_checkpoint(disk.write(tmp_path / "model", tensors, shards=shards))
    assert set(checkpoint) == set(tensors) and checkpoint.config == disk.CONFIG and checkpoint.dtype == "float32"
    for name, array in tensors.items():
        assert checkpoint[name].shape == array.shape
        np.testing.assert_array_equal(checkpoint[name].read(), array)
    rows = checkpoint["lm_head.weight"].read_rows(7, 19)
    np.testing.assert_array_equal(rows, tensors["lm_head.weight"][7:19])
    blocks = list(checkpoint["lm_head.weight"].row_blocks(3 * disk.HIDDEN))
    assert len(blocks) == disk.VOCAB // 3
    np.testing.assert_array_equal(np.concatenate(blocks), tensors["lm_head.weight"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_directories_written_by_transformers(tmp_path, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    checkpoint = open_checkpoint(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    state = model.state_dict()
    assert set(checkpoint) <= set(state) and checkpoint.dtype == dtype
    for name, tensor in checkpoint.items():
        np.testing.assert_array_equal(tensor.read().astype(np.float64), state[name].double().numpy())


def test_hash_depends_on_content_alone(tmp_path):
    tensors = disk.weights()
    one = open_checkpoint(disk.write(tmp_path / "one", tensors))
    many = open_checkpoint(disk.write(tmp_path / "many", dict(reversed(tensors.items())), shards=4))
    assert one.sha256() == many.sha256() and one.fingerprint != many.fingerprint
    known = {name: tensor.sha256() for name, tensor in one.items()}
    assert one.sha256(known) == one.sha256()
    tensors["model.norm.weight"][0] += 1
    assert open_checkpoint(disk.write(tmp_path / "other", tensors)).sha256() != one.sha256()


def break_missing_config(directory):
    (directory / "config.json").unlink()
    return "no config.json"


def break_config(directory):
    (directory / "config.json").write_text("{")
    return "config.json: not JSON"


def break_truncated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    return "model.safetensors: truncated"


def break_header(directory):
    (directory / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all.")
    return "not a safetensors file"


def break_other_file(directory):
    (directory / "model.safetensors").write_bytes(b"PK\x03\x04 some zip file that is no safetensors")
    return "not a safetensors file"


def break_empty(directory):
    (directory / "model.safetensors").write_bytes(b"")
    return "not a safetensors file"


def break_no_weights(directory):
    (directory / "model.safetensors").unlink()
    return r"holds no \*.safetensors"


def break_shape(directory):
    path = directory / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["lm_head.weight"]["shape"] = [1, 2]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return "lm_head.weight.*does not fit"


def break_index(directory):
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00009.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model-00009.safetensors: missing"


def break_nesting(directory):
    (directory / "config.json").write_text("[" * 100_000)
    return "config.json: not JSON"


BREAKS = [value for name, value in list(globals().items()) if name.startswith("break_")]


@pytest.mark.parametrize("damage", BREAKS, ids=lambda f: f.__name__)
def test_a_broken_directory_is_named_in_one_line(tmp_path, damage):
    directory = disk.write(tmp_path / "model", disk.weights())
    expected = damage(directory)
    with pytest.raises(UserError, match=expected) as error:
        open_checkpoint(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)


def test_paths_that_are_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint directory"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        open_checkpoint(tmp_path / "file")
    with pytest.raises(UserError, match="no such run"):
        open_checkpoint(tmp_path / "run@5")
    with pytest.raises(UserError, match="is no number"):
        open_checkpoint(f"{tmp_path}@last")


def test_a_file_that_shrinks_after_opening_is_noticed(tmp_path):
    directory = disk.write(tmp_path / "model", disk.weights())
    checkpoint = open_checkpoint(directory)
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(UserError, match="ends within tensor"):
        [tensor.read() for tensor in checkpoint.values()]


@pytest.mark.parametrize(
    "entry, expected",
    [
        ({"data_offsets": [-8, 8]}, "tensor 'a' is malformed"),
        ({"data_offsets": [0, float("inf")]}, "tensor 'a' is malformed"),
        ({"data_offsets": [0, 16, 32]}, "tensor 'a' is malformed"),
        ({"shape": [-2, -2]}, "tensor 'a' is malformed"),
        ({"shape": [2, float("nan")]}, "tensor 'a' is malformed"),
        ({"dtype": ["F32"]}, "tensor 'a' is malformed"),
        ({"shape": [10**30]}, "does not fit its 16 bytes"),
        ({"shape": [2**32, 2**32], "data_offsets": [0, 0]}, "does not fit its 0 bytes"),
        ({"data_offsets": [0, 17]}, "does not fit its 17 bytes"),
        ({"shape": [6], "data_offsets": [0, 24]}, "tensors 'a' and 'b' overlap"),
        ({"shape": [2], "data_offsets": [8, 16]}, "8 bytes before tensor 'a' are no tensor's"),
        ({"shape": [2], "data_offsets": [0, 8]}, "8 bytes before tensor 'b' are no tensor's"),
        ({"data_offsets": [2**40, 2**40 + 16]}, "truncated"),
        (3, "tensor 'a' is malformed"),
        ("[" * 100_000, "header is no JSON table"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_read(tmp_path, entry, expected):
    """Numbers that no file can have: each would overflow, wrap around or read bytes of the header as weights."""
    good = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    header = {"a": good | entry if isinstance(entry, dict) else entry, "b": good | {"data_offsets": [16, 32]}}
    text = (entry if isinstance(entry, str) else json.dumps(header)).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    with pytest.raises(UserError, match=expected) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value) and "model.safetensors" in str(error.value)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """JSON can spell half of a surrogate pair; no report could hold it."""
    text = json.dumps({"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(UserError, match="header is no JSON table"):
        open_checkpoint(tmp_path)
