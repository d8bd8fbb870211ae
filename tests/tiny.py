"""Small real inputs for tests: Hugging Face directories with random weights and a tokenizer, rows of the task."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.data.character_tokenizer import write_character_tokenizer
from jaxgeom.models import Qwen3, Qwen3Config, save_model


def tiny_config(**changes) -> Qwen3Config:
    """A Qwen3 of some 20 thousand parameters."""
    fields = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 112,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    return Qwen3Config.from_hf(fields | changes)


def tiny_params(config: Qwen3Config, *, seed: int = 0) -> dict:
    """Weights as `Qwen3.init` distributes them, drawn by NumPy: no program is compiled for a draw."""
    model, generator = Qwen3(config), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])

    def draw(path, leaf):
        constant = {"scale": 1.0, "bias": 0.0}.get(path[-1].key)
        if constant is not None:
            return jnp.asarray(np.full(leaf.shape, constant, leaf.dtype))
        return jnp.asarray((config.initializer_range * generator.standard_normal(leaf.shape)).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_tiny_model(directory: Path, *, seed: int = 0, dtype: str = "float32", **changes) -> Path:
    """Writes a model with random weights and the character tokenizer; returns its directory."""
    config = tiny_config(**changes)
    params = tiny_params(config, seed=seed)
    directory.mkdir(parents=True, exist_ok=True)
    write_character_tokenizer(directory)
    save_model(directory, config, params, dtype=dtype)
    return directory
