"""`jaxgeom export` of a real run: `transformers` computes the run's own logits, and nothing is overwritten unasked."""

import errno
import json
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxgeom.cli import main
from jaxgeom.models import save
from jaxgeom.training import load_start
from tests.tiny import write_tiny_model

torch = pytest.importorskip("torch", reason="PyTorch oracle")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps of supervised fine-tuning of a tied model with attention biases."""
    directory = tmp_path_factory.mktemp("export")
    model = write_tiny_model(directory / "model", attention_bias=True, eos_token_id=1)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.6}))
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    (directory / "data.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 16)
    given = {"--model": model, "--data": directory / "data.jsonl", "--out": directory / "run", "--steps": 2}
    given |= {"--batch-size": 8, "--lr": 1e-3, "--seed": 0, "--save-every": 1}
    assert main(["train", "sft", *(str(word) for pair in given.items() for word in pair)]) == 0
    return directory / "run"


def logits(directory, tokens):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy(), model


@pytest.mark.parametrize("step", [0, 2])
def test_transformers_computes_the_runs_logits(run, tmp_path, step):
    to = tmp_path / "exported"
    assert main(["export", str(run), "--step", str(step), "--to", str(to)]) == 0
    tokens = np.arange(3, 43).reshape(2, 20)
    theirs, reference = logits(to, tokens)
    model, params = load_start(f"{run}@{step}", mesh=None, compute_dtype="float32")
    np.testing.assert_allclose(model.apply({"params": params}, jnp.asarray(tokens)), theirs, atol=1e-4)
    assert reference.generation_config.eos_token_id == [1, 2]
    import transformers

    assert transformers.AutoTokenizer.from_pretrained(to).chat_template
    assert {array.dtype for array in load_file(to / "model.safetensors").values()} == {np.dtype("float32")}
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_bfloat16_rounds_the_masters_once(run, tmp_path):
    to = tmp_path / "exported"
    assert main(["export", str(run), "--to", str(to), "--dtype", "bfloat16"]) == 0
    _, reference = logits(to, np.arange(4)[None])
    _, params = load_start(f"{run}@2", mesh=None, compute_dtype="float32")
    want = torch.tensor(np.asarray(params["embed"]["embedding"])).bfloat16().float()
    assert torch.equal(reference.get_input_embeddings().weight, want)
    assert json.loads((to / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_nothing_is_overwritten_without_force_and_nothing_else_with_it(run, tmp_path, capsys):
    to, mine = tmp_path / "exported", tmp_path / "mine"
    mine.mkdir()
    (mine / "mine.txt").write_text("mine")
    for force in ([], ["--force"]):
        assert main(["export", str(run), "--to", str(mine), *force]) == 2
        said = capsys.readouterr().err
        assert str(mine) in said and "--force" in said and said.count("\n") == 1
        assert [path.name for path in mine.iterdir()] == ["mine.txt"]
    assert main(["export", str(run), "--to", str(to), "--step", "0"]) == 0
    first = (to / "model.safetensors").read_bytes()
    assert main(["export", str(run), "--to", str(to)]) == 2
    capsys.readouterr()
    assert main(["export", str(run), "--to", str(to), "--force"]) == 0
    assert "deletes an export" in capsys.readouterr().out and (to / "model.safetensors").read_bytes() != first


@pytest.mark.parametrize("refused", ["weights", "tokenizer", "folder"])
def test_a_full_disk_is_one_line_and_the_earlier_export_stays(run, tmp_path, monkeypatch, capsys, refused):
    to = tmp_path / "exported"
    assert main(["export", str(run), "--to", str(to), "--step", "0"]) == 0
    held = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*given, **_):
        if refused == "weights":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device", *map(str, given[:1]))

    place = {"weights": (save, "save_file"), "tokenizer": (save.shutil, "copyfile"), "folder": (tempfile, "mkdtemp")}
    monkeypatch.setattr(*place[refused], full)
    capsys.readouterr()
    assert main(["export", str(run), "--to", str(to), "--force"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"jaxgeom: {to}: the disk is full; ") and said.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == held


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_comes_into_the_folder_meanwhile_stays(run, tmp_path, monkeypatch, capsys, force):
    to = tmp_path / "exported"
    real = save.save_file

    def meanwhile(*given, **options):
        to.mkdir()
        (to / "model.safetensors").write_text("mine")
        real(*given, **options)

    monkeypatch.setattr(save, "save_file", meanwhile)
    assert main(["export", str(run), "--to", str(to), *force]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("no export of ours" if force else "is not empty") in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert (to / "model.safetensors").read_text() == "mine"


def test_what_is_called_like_an_unfinished_export_is_named_and_stays(run, tmp_path, capsys):
    mine = tmp_path / ".model.partial.ab_01xyz" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    assert main(["export", str(run), "--to", str(tmp_path / "model")]) == 0
    assert mine.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.parent.name, "model"]
    assert f"{mine.parent}: left by an export that was killed" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("change", ["added", "changed", "input"])
def test_an_export_that_has_become_the_users_own_is_left_alone(run, tmp_path, capsys, change):
    to = tmp_path / "exported"
    assert main(["export", str(run), "--to", str(to)]) == 0
    source = run
    if change == "added":
        (to / "notes.txt").write_text("mine")
    elif change == "changed":
        (to / "model.safetensors").write_bytes((to / "model.safetensors").read_bytes()[::-1])
    else:
        source = to / "run"
        shutil.copytree(run, source)
    held = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["export", str(source), "--to", str(to), "--force"]) == 2
    words = {"added": "notes.txt", "changed": "model.safetensors is not what was written", "input": "the run itself"}
    assert words[change] in capsys.readouterr().err
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == held


def test_a_run_is_never_exported_over_itself(run, capsys):
    for target in (run, run.parent, run / "checkpoints", run / "checkpoints" / "2"):
        assert main(["export", str(run), "--to", str(target), "--force"]) == 2
        assert "run itself" in capsys.readouterr().err
    assert (run / "checkpoints" / "2").is_dir() and (run / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--step", "7"], "step=7 was not saved; the run has 0, 1, 2"), (["--step", "x"], "step")]
)
def test_a_step_that_is_not_there_is_named(run, tmp_path, capsys, arguments, words):
    assert main(["export", str(run), "--to", str(tmp_path / "to"), *arguments]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "to").exists()


def test_a_step_behind_the_run_is_that_step(run, tmp_path, capsys):
    assert main(["export", f"{run}@0", "--to", str(tmp_path / "to")]) == 0
    assert json.loads((tmp_path / "to" / "checksums.json").read_text())["step"] == 0
    assert main(["export", f"{run}@0", "--step", "1", "--to", str(tmp_path / "other")]) == 2
    assert "names step 0, and --step says 1" in capsys.readouterr().err


def test_what_is_no_run_is_named(tmp_path, capsys):
    assert main(["export", str(tmp_path / "absent"), "--to", str(tmp_path / "to")]) == 2
    assert "absent: no checkpoints there" in capsys.readouterr().err
