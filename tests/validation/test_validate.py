"""`validate_model` on random Hugging Face models of every supported kind: all agree, and a wrong model is caught."""

import dataclasses
import functools
import sys

import jax
import pytest
from safetensors.numpy import load_file, save_file

from jaxgeom.cli import main
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, load_model, save_model
from jaxgeom.validation import TOLERANCES, first_failure, validate_model
from jaxgeom.validation.checks import Check
from jaxgeom.validation.torch_side import load_torch

torch = pytest.importorskip("torch", reason="PyTorch oracle")

SMALL = Qwen3Config(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)  # fmt: skip
KINDS = {
    "tied": {"tie_word_embeddings": True},
    "untied-bias": {"attention_bias": True},
    "moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    # PyTorch's embedding starts at 0 for this token and gives it no gradient.
    "padding-token": {"pad_token_id": 0, "vocab_size": 23},
}


def write(directory, **changes):
    """A random model written by transformers; weights large enough that attention is not uniform."""
    import transformers

    fields = dataclasses.replace(SMALL, **changes).to_hf()
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(4)
    model.save_pretrained(directory)
    return directory


COMMON = ("tied", "moe")
"""What every run checks; the other kinds take the same path through other fields, once in CI."""


@pytest.mark.parametrize(
    "kind", [kind if kind in COMMON else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_every_kind_agrees_in_float32(tmp_path, kind):
    told = []
    checks = validate_model(write(tmp_path / "model", **KINDS[kind]), length=17, new_tokens=6, progress=told.append)
    assert first_failure(checks) is None, checks
    names = [check.name for check in checks]
    for part in (
        *(f"logits, {layout}" for layout in ("whole", "left-padded", "ragged")),
        *("log-probs", "loss", "gradients, worst tensor", "AdamW step, worst tensor", "greedy tokens that differ"),
        "diagnostics, stable_rank",
    ):
        assert part in names
    assert len(told) >= 7


@pytest.mark.slow
def test_bfloat16_agrees_within_its_stated_tolerance(tmp_path):
    checks = validate_model(write(tmp_path / "model", **KINDS["tied"]), dtype="bfloat16", length=17, new_tokens=6)
    assert first_failure(checks) is None, checks


def test_a_changed_constant_is_caught(tmp_path, monkeypatch):
    path = write(tmp_path / "model", **KINDS["tied"])

    def wrong(path, **options):
        model, params = load_model(path, **options)
        return model.clone(config=dataclasses.replace(model.config, rope_theta=11_000.0)), params

    monkeypatch.setattr("jaxgeom.validation.checks.load_model", wrong)
    failed = first_failure(validate_model(path, length=17, new_tokens=2, gradients=False))
    assert failed is not None and failed.name.startswith("logits")


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod."])
def test_weights_under_a_wrappers_names_are_the_same_model(tmp_path, prefix):
    """`transformers` knows no such name and would draw every weight at random, which no check may take for ours."""
    path = write(tmp_path / "model", **KINDS["tied"])
    held = load_file(path / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in held.items()}, path / "model.safetensors", {"format": "pt"})
    checks = validate_model(path, length=9, new_tokens=2, gradients=False)
    assert first_failure(checks) is None, checks
    with pytest.raises(UserError, match=r"transformers finds no weights for .*norm\.weight.*, and draws"):
        save_file({prefix + "lm_head.weight": held["model.embed_tokens.weight"]}, path / "model.safetensors")
        load_torch(path, "float32")


def test_nan_never_passes():
    assert not Check("logits", float("nan"), 1.0).ok
    assert TOLERANCES["float32"]["logits"] == 1e-4


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"length": 1}, {"new_tokens": 0}])
def test_bad_arguments_are_named(tmp_path, options):
    with pytest.raises(UserError, match=next(iter(options))):
        validate_model(tmp_path, **options)


def test_a_run_of_ours_is_said_to_be_one(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path / "run", f"{tmp_path / 'run'}@3"):
        with pytest.raises(UserError, match=f"^{path}: a run of ours, .*jaxgeom export"):
            load_torch(path, "float32")


def test_saved_model_gives_identical_logits_in_transformers(tmp_path):
    import transformers

    source = write(tmp_path / "model", **KINDS["moe"])
    model, params = load_model(source)
    save_model(tmp_path / "saved", model.config, params, max_shard_bytes=40_000)
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        first, second = (
            transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(tokens).logits
            for path in (source, tmp_path / "saved")
        )
    assert torch.equal(first, second)
    again, params_again = load_model(tmp_path / "saved")
    assert again == model
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, params_again)))


def test_the_command_says_which_check_failed_and_exits_1(tmp_path, monkeypatch, capsys):
    # A context shorter than what is compared bounds nothing: it changes no number.
    path = write(tmp_path / "model", max_position_embeddings=8)
    monkeypatch.setattr("jaxgeom.validation.validate_model", functools.partial(validate_model, gradients=False))
    assert main(["validate", str(path), "--length", "8"]) == 0
    assert "greedy regret" in capsys.readouterr().out

    def wrong(path, **options):
        model, params = load_model(path, **options)
        return model.clone(config=dataclasses.replace(model.config, rms_norm_eps=1e-2)), params

    monkeypatch.setattr("jaxgeom.validation.checks.load_model", wrong)
    assert main(["validate", str(path), "--length", "8"]) == 1
    assert "does not hold: logits, whole: error" in capsys.readouterr().out


def test_the_table_cuts_no_name_short_on_a_narrow_screen(tmp_path, monkeypatch, capsys):
    name = "model.layers.12.mlp.experts.127.down_proj.weight"
    checks = [Check("diagnostics, normalized_spectral_shift", 0.0, 1e-6, name)]
    monkeypatch.setattr("jaxgeom.validation.validate_model", lambda *_, **__: checks)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["validate", str(tmp_path)]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    first, *_, last = ("".join(cell.strip() for cell in column) for column in zip(*rows, strict=True))
    assert last == name and first.replace(" ", "") == checks[0].name.replace(" ", "")


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "torch", None)
    capsys.readouterr()
    assert main(["validate", str(path)]) == 2
    said = capsys.readouterr().err
    assert "pip install torch" in said and said.count("\n") == 1
