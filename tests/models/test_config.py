"""config.json in: every supported spelling is read, everything else is refused by its name."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, RopeScaling, load_model
from jaxgeom.models.rope import apply_rope, rope_frequencies

QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_published_config_is_read_and_written_back():
    config = Qwen3Config.from_hf(QWEN3_0_6B)
    assert (config.hidden_size, config.head_dim, config.rope_theta, config.stop_tokens) == (1024, 128, 1e6, (151645,))
    assert Qwen3Config.from_hf(config.to_hf()) == config


def test_both_spellings_of_rope_are_one():
    old = Qwen3Config.from_hf(QWEN3_0_6B | {"rope_scaling": YARN})
    new = {name: value for name, value in QWEN3_0_6B.items() if name not in ("rope_theta", "rope_scaling")}
    assert Qwen3Config.from_hf(new | {"rope_parameters": {"rope_theta": 1e6, **YARN}}) == old
    legacy = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert Qwen3Config.from_hf(QWEN3_0_6B | {"rope_scaling": legacy}) == old
    assert Qwen3Config.from_hf(old.to_hf()) == old


def test_mixture_of_experts_config():
    moe = QWEN3_0_6B | {
        "model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }  # fmt: skip
    config = Qwen3Config.from_hf(moe)
    assert config.is_moe and config.num_experts_per_tok == 8
    assert Qwen3Config.from_hf(config.to_hf()) == config
    with pytest.raises(UserError, match="mlp_only_layers"):
        Qwen3Config.from_hf(moe | {"mlp_only_layers": [3]})
    with pytest.raises(UserError, match="num_experts_per_tok"):
        Qwen3Config.from_hf(moe | {"num_experts_per_tok": 200})
    local = {name: value for name, value in moe.items() if name != "num_experts"} | {"num_local_experts": 128}
    assert Qwen3Config.from_hf(local) == config
    for change in ({"num_experts": 0}, {"num_experts": None}, {"num_local_experts": 64}, {"norm_topk_prob": "yes"}):
        with pytest.raises(UserError, match=next(iter(change))):
            Qwen3Config.from_hf(moe | change)


@pytest.mark.parametrize(
    ("hidden", "inner", "layers", "heads", "kv", "tied"),
    [
        (1024, 3072, 28, 16, 8, True), (2048, 6144, 28, 16, 8, True), (2560, 9728, 36, 32, 8, True),
        (4096, 12288, 36, 32, 8, False), (5120, 17408, 40, 40, 8, False), (5120, 25600, 64, 64, 8, False),
    ],
)  # fmt: skip
def test_every_released_size_is_read(hidden, inner, layers, heads, kv, tied):
    published = QWEN3_0_6B | {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "max_window_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": tied,
    }  # fmt: skip
    config = Qwen3Config.from_hf(published)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (heads, kv, 128)
    assert config.tie_word_embeddings is tied and not config.is_moe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"attn_output_gate": True}, "attn_output_gate"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "high_freq_factor"),
        ({"num_key_value_heads": 7}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_size": "1024"}, "hidden_size"),
        ({"hidden_size": 1024.5}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"dtype": ["bfloat16"]}, "dtype"),
        ({"torch_dtype": 5}, "torch_dtype"),
        ({"rms_norm_eps": 1e-60}, "rms_norm_eps"),
        ({"rms_norm_eps": 1e300}, "rms_norm_eps"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id"),
        ({"layer_types": 3}, "layer_types"),
        ({"num_experts": 8}, "num_experts"),
        ({"logit_scale": 0}, "logit_scale"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"original_max_position_embeddings": 4096}, "original_max_position_embeddings"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": -4.0}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e308}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": 1}}, "truncate"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "factor"),
        ({"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 2.0}}, r"rope_scaling\.factor=4\.0"),
    ],
)
def test_unsupported_fields_are_refused_by_name(change, named):
    with pytest.raises(UserError, match=named):
        Qwen3Config.from_hf(QWEN3_0_6B | change)


def test_missing_field_is_named():
    config = dict(QWEN3_0_6B)
    del config["hidden_size"]
    with pytest.raises(UserError, match="hidden_size"):
        Qwen3Config.from_hf(config)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        YARN,
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3},
        YARN | {"mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192},
    ],
)  # fmt: skip
def test_frequencies_equal_transformers(scaling):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    from transformers import Qwen3Config as TheirConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = {**(scaling or {"rope_type": "default"}), "rope_theta": 1e6}
    theirs = TheirConfig(head_dim=128, rope_parameters=fields, max_position_embeddings=131072)
    if scaling is None:
        want, factor = 1.0 / 1e6 ** (torch.arange(0, 128, 2).float() / 128), 1.0
    else:
        want, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, "cpu")
    got, got_factor = rope_frequencies(128, 1e6, RopeScaling.from_hf(scaling or {}), 131072)
    assert got == pytest.approx(want.numpy(), rel=2e-6)
    assert got_factor == pytest.approx(factor, rel=1e-7)


def test_unreadable_directories_are_named(tmp_path):
    with pytest.raises(UserError, match="config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_0_6B))
    with pytest.raises(UserError, match="safetensors"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    wrong = "no file of tensors" if importlib.util.find_spec("torch") else "a file of PyTorch's, which is not installed"
    with pytest.raises(UserError, match=f"pytorch_model.bin: {wrong}"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="model.safetensors"):
        load_model(tmp_path)


def test_the_rotation_turns_pairs_as_complex_numbers():
    rng = np.random.default_rng(0)
    x, angles = rng.normal(size=(2, 5, 3, 16)), rng.normal(size=(2, 5, 1, 8))
    turned = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * angles)
    want = np.concatenate([turned.real, turned.imag], axis=-1)
    x, cos, sin = (jnp.asarray(array, jnp.float32) for array in (x, np.cos(angles), np.sin(angles)))
    np.testing.assert_allclose(apply_rope(x, cos, sin), want, atol=1e-6)
    other = jnp.moveaxis(apply_rope(*(jnp.moveaxis(array, -1, 1) for array in (x, cos, sin)), axis=-3), 1, -1)
    np.testing.assert_allclose(other, want, atol=1e-6)
