"""Which files of a directory are its weights: what `transformers` would load, each weight once, the rest said."""

import json
import os
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxgeom.checkpoints import open_checkpoint, saved_steps
from jaxgeom.checkpoints.runs import named_run, step_folders
from jaxgeom.commands.trajectory import model_above, numbered
from jaxgeom.errors import UserError
from tests.comparison import disk

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(tmp_path):
    return disk.write(tmp_path / "model", disk.weights())


def assert_holds(checkpoint, tensors):
    assert set(checkpoint) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint[name].read(), array)


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_stale_index_beside_one_file_is_said_and_not_believed(tmp_path):
    old, new = disk.weights(), disk.moved(disk.weights(), 1e-2)
    directory = disk.write(tmp_path / "model", old, shards=2)
    disk.write(directory, new)
    checkpoint = open_checkpoint(directory)
    assert_holds(checkpoint, new)
    assert any(f"{INDEX}: not used" in note for note in checkpoint.notes)


def test_an_index_of_the_one_file_says_nothing(model):
    index = {"weight_map": dict.fromkeys(disk.weights(), "model.safetensors")}
    (model / INDEX).write_text(json.dumps(index))
    assert open_checkpoint(model).notes == ()


@pytest.mark.parametrize("name", ["consolidated.safetensors", "mtp.safetensors", "adapter_model.safetensors"])
def test_side_files_are_not_read_and_said(model, name):
    other = {"other.weight": np.ones((3, 4), np.float32), **disk.weights(seed=5)}
    save_file(other, model / name)
    checkpoint = open_checkpoint(model)
    assert_holds(checkpoint, disk.weights())
    assert any(name in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/hostname", "sub/model.safetensors", "", 3, None, "a\0b"]
)
def test_a_weight_map_leads_to_files_of_its_own_directory_alone(tmp_path, file):
    directory = disk.write(tmp_path / "model", disk.weights(), shards=2)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = file
    (directory / INDEX).write_text(json.dumps(index))
    refused(directory, "no file of this directory")


def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path):
    directory = disk.write(tmp_path / "model", disk.weights(), shards=2)
    index = json.loads((directory / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    held = index["weight_map"]["lm_head.weight"]
    index["weight_map"]["lm_head.weight"] = next(file for file in files if file != held)
    (directory / INDEX).write_text(json.dumps(index))
    refused(directory, f"lists tensor 'lm_head.weight' in .*, but {held} holds it")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", INDEX])
def test_a_pipe_is_no_file(tmp_path, name):
    directory = disk.write(tmp_path / "model", disk.weights())
    for file in ("model.safetensors",) if name == INDEX else ():
        (directory / file).unlink()
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)
    refused(directory, f"{name}: is no regular file")


def test_links_and_read_only_files_work(model, tmp_path):
    """As a hub's cache has them: a snapshot of links into a folder of blobs."""
    snapshot = tmp_path / "models--Toy--Toy" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        file.chmod(0o444)
        (snapshot / file.name).symlink_to(file)
    assert_holds(open_checkpoint(snapshot), disk.weights())
    refused(snapshot.parents[1], "root of a hub cache; give the snapshot in it: .*snapshots/abc")
    (model / "model.safetensors").unlink()
    refused(snapshot, "model.safetensors: cannot be read")


def test_weights_by_another_name_are_named(model):
    (model / "model.safetensors").rename(model / "weights.safetensors")
    refused(model, "no model.safetensors .*there are weights.safetensors")


def test_trailing_bytes_are_refused(model):
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 5)
    refused(model, "5 bytes after its last tensor")


def test_a_model_above_a_folder_of_checkpoints_is_the_model(model):
    (model / "checkpoints" / "epoch1").mkdir(parents=True)
    assert named_run(model) is None and saved_steps(model) == []
    assert_holds(open_checkpoint(model), disk.weights())


def test_steps_of_a_folder(tmp_path):
    for step in (100, 20, 40):
        disk.write(tmp_path / "run" / f"global_step_{step}" / "actor" / "huggingface", disk.weights())
    found = step_folders(tmp_path / "run")
    assert [step for step, _ in found] == [20, 40, 100]
    assert_holds(open_checkpoint(found[0][1]), disk.weights())
    (tmp_path / "run" / "checkpoint-40").mkdir()
    with pytest.raises(UserError, match="both of step 40"):
        step_folders(tmp_path / "run")


def test_a_final_model_above_its_steps_hides_none_of_them(model):
    for step in (10, 9):
        disk.write(model / f"checkpoint-{step}", disk.weights())
    (model / "checkpoint-9" / "global_step9").mkdir()  # the state of a trainer
    (model / "checkpoint-11").mkdir()
    steps = [(step, str(model / f"checkpoint-{step}")) for step in (9, 10)]
    assert numbered([str(model)]) == steps and step_folders(model / "checkpoint-9") == []
    assert "its 2 steps are taken, not the model beside them" in (model_above([str(model)]) or "")
    assert model_above([str(model / "checkpoint-9")]) is None


def eight_bits(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    return tensors | {name: tensors[name].astype(ml_dtypes.float8_e4m3fn), name + "_scale_inv": np.ones((1, 1), "f4")}


def packed(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    return tensors | {name: np.zeros((tensors[name].size // 2, 1), np.uint8)}


def packed_aside(tensors):
    tensors.pop(name := "model.layers.0.mlp.up_proj.weight")
    return tensors | {name.replace("weight", "qweight"): np.zeros((4, 4), np.int32)}


def more(name, dtype, shape=(4,)):
    """The weights with one more tensor."""
    return lambda tensors: tensors | {f"model.layers.0.mlp.up_proj.{name}": np.ones(shape, dtype)}


@pytest.mark.parametrize(
    "change",
    [
        eight_bits, packed, packed_aside, more("blob", np.uint8), more("packed", np.int16, (2, 2)),
        more("codes", np.int16, (2, 2, 2)), more("weight_global_scale", np.float32),
    ],
)  # fmt: skip
def test_quantised_weights_are_called_so(tmp_path, change):
    refused(disk.write(tmp_path / "model", change(disk.weights())), "quantized weights")


@pytest.mark.parametrize("field", ["quantization_config", "quantization"])
def test_a_quantised_configuration_is_called_so(tmp_path, field):
    config = disk.CONFIG | {field: {"quant_method": "awq", "bits": 4}}
    refused(disk.write(tmp_path / "model", disk.weights(), config), "quantized weights .*quant_method awq")


@pytest.mark.parametrize("said", [{"quantization_config": {}}, {"compression_config": {"format": "pack-quantized"}}])
def test_a_configuration_that_speaks_of_quantisation_at_all_is_called_so(tmp_path, said):
    refused(
        disk.write(tmp_path / "model", disk.weights(), disk.CONFIG | said), f"quantized weights .*{next(iter(said))}"
    )


def as_pytorch(model, shards=1):
    torch = pytest.importorskip("torch", reason="PyTorch's own files")
    tensors = {name: torch.tensor(value).bfloat16() for name, value in load_file(model / "model.safetensors").items()}
    (model / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, model / "pytorch_model.bin")
        return tensors
    index = {name: f"pytorch_model-{place % shards}.bin" for place, name in enumerate(tensors)}
    for file in set(index.values()):
        torch.save({name: tensors[name] for name in tensors if index[name] == file}, model / file)
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return tensors


@pytest.mark.parametrize("shards", [1, 2])
def test_files_of_pytorch_are_read(model, shards):
    tensors = as_pytorch(model, shards)
    checkpoint = open_checkpoint(model)
    assert set(checkpoint) == set(tensors) and checkpoint.dtype == "bfloat16"
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(checkpoint[name].read().astype(np.float32), tensor.float().numpy())
    rows = checkpoint["lm_head.weight"].read_rows(3, 9).astype(np.float32)
    np.testing.assert_array_equal(rows, tensors["lm_head.weight"][3:9].float().numpy())


def test_tensors_of_pytorch_that_have_no_numbers_are_refused(model):
    torch = pytest.importorskip("torch", reason="PyTorch's own files")
    torch.save({"model.norm.weight": torch.ones(3, device="meta")}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin: .* tensors without their numbers"):
        open_checkpoint(model)


def test_without_pytorch_its_files_are_one_line(model, monkeypatch):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(model, "pytorch_model.bin: a file of PyTorch's, which is not installed: .*or save the model as safetensors")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x02}q\x00.", "code", "numbers"])
def test_a_pickle_that_is_more_than_tensors_runs_nothing(model, content, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch's own files")
    monkeypatch.chdir(tmp_path)
    (model / "model.safetensors").unlink()
    file = model / "pytorch_model.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save({"a": Harmful() if content == "code" else 3}, file)
    refused(model, "pytorch_model.bin: (no file of tensors|holds more than named tensors)|hold no tensor")
    assert not (tmp_path / "harmed").exists()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Shards of two ranks as verl's FSDP writes them, of seven rows, so that they are uneven."""
    torch = pytest.importorskip("torch", reason="PyTorch's own files")
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    actor = tmp_path_factory.mktemp("verl") / "global_step_20" / "actor"
    disk.write(actor / "huggingface", disk.weights())
    (actor / "huggingface" / "model.safetensors").unlink()
    weights = {name: torch.tensor(value) for name, value in disk.weights().items()}
    for rank in range(2):
        init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
        shard = {}
        for name, tensor in weights.items():
            how = Replicate() if "norm" in name else Shard(1 if "down" in name else 0)
            part = tensor if "norm" in name else tensor.chunk(2, how.dim)[rank].clone()
            shard[name] = DTensor.from_local(
                part, mesh, [how], run_check=False, shape=tensor.shape, stride=tensor.stride()
            )
        torch.save(shard, actor / f"model_world_size_2_rank_{rank}.pt")
        destroy_process_group()
    return actor.parent


@pytest.mark.parametrize("inner", ["", "actor", "actor/huggingface"])
def test_shards_of_fsdp_make_the_model(sharded, inner):
    checkpoint = open_checkpoint(sharded / inner)
    assert_holds(checkpoint, disk.weights())
    rows = checkpoint["model.layers.0.self_attn.k_proj.weight"].read_rows(10, 15)
    np.testing.assert_array_equal(rows, disk.weights()["model.layers.0.self_attn.k_proj.weight"][10:15])


def test_a_missing_shard_is_named(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "step")
    (tmp_path / "step" / "actor" / "model_world_size_2_rank_1.pt").unlink()
    refused(tmp_path / "step", "of 2 shards those of rank 1 are missing")
