"""Small real inputs for tests: Hugging Face directories with random weights and a tokenizer, rows of the task."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.data.character_tokenizer import write_character_tokenizer
from jaxgeom.data.pipelines import Prompt, all_prompts
from jaxgeom.data.prepared import Limits, Prepared
from jaxgeom.data.preparing import prepare_demonstrations, prepare_prompts
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.data.rows import write_jsonl
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


def tiny_prompts(rows: Sequence[dict], tokenizer: Any) -> list[Prompt]:
    """Rows with `prompt` and `reward_model.ground_truth`, as a run would have them."""
    limits = Limits(vocabulary=112, context=256)
    return all_prompts(_through_a_file(prepare_prompts, rows, tokenizer, limits))


def tiny_demonstrations(rows: Sequence[dict], tokenizer: Any, *, max_length: int = 256) -> Prepared:
    """Rows with `messages`, as a run would have them."""
    return _through_a_file(prepare_demonstrations, rows, tokenizer, Limits(vocabulary=112, context=max_length))


def _through_a_file(prepare: Any, rows: Sequence[dict], tokenizer: Any, limits: Limits) -> Prepared:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_jsonl(path, rows)
        return prepare(path, tokenizer, settings=RowSettings(), limits=limits)
