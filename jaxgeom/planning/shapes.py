"""Models by name: the published shapes of Qwen3, for plans that need no weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3Config, checked_config
from jaxgeom.models.load import read_config


def _published(
    dim: int,
    inner: int,
    layers: int,
    heads: int,
    kv: int,
    *,
    tied: bool = False,
    experts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "model_type": "qwen3" if experts is None else "qwen3_moe", "hidden_size": dim, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": 128,
        "vocab_size": 151_936, "max_position_embeddings": 40_960, "rope_theta": 1_000_000, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied, "bos_token_id": 151_643, "eos_token_id": 151_645, **(experts or {}),
    }  # fmt: skip


_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1}

# From `config.json` of the repositories Qwen/Qwen3-… on the Hugging Face hub.
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _published(1024, 3072, 28, 16, 8, tied=True),
    "qwen3-1.7b": _published(2048, 6144, 28, 16, 8, tied=True),
    "qwen3-4b": _published(2560, 9728, 36, 32, 8, tied=True),
    "qwen3-8b": _published(4096, 12_288, 36, 32, 8),
    "qwen3-14b": _published(5120, 17_408, 40, 40, 8),
    "qwen3-32b": _published(5120, 25_600, 64, 64, 8),
    "qwen3-30b-a3b": _published(2048, 6144, 48, 32, 4, experts={**_EXPERTS, "moe_intermediate_size": 768}),
    "qwen3-235b-a22b": _published(4096, 12_288, 94, 64, 4, experts={**_EXPERTS, "moe_intermediate_size": 1536}),
}


def model_config(option: str, name: str) -> Qwen3Config:
    """The architecture of a model that is named on the command line.

    Args:
        option: by which it was given, for the error.
        name: one of `PUBLISHED`, in any case; a directory with a `config.json`; `RUN@STEP`.

    Raises:
        UserError: none of these, or an architecture that is not supported.
    """
    known = PUBLISHED.get(name.lower().removeprefix("qwen/"))
    if known is not None:
        return Qwen3Config.from_hf(known)
    if (Path(name) / "config.json").exists():
        try:
            return Qwen3Config.from_hf(read_config(name))
        except UserError as error:
            raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None
    if "@" in name:
        return checked_config(open_checkpoint(name))
    raise UserError(f"{option} {name}: neither a directory with a config.json nor one of {', '.join(PUBLISHED)}")


def products(config: Qwen3Config) -> tuple[int, int]:
    """Parameters whose product one token takes part in: those of the layers (of experts the chosen), of the head.

    Args:
        config: the model's.

    Returns:
        Two counts; their sum is the N of 6·N operations a token.
    """
    dim, hd = config.hidden_size, config.head_dim
    attention = dim * hd * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    if config.is_moe:
        mlp = config.num_experts_per_tok * 3 * dim * config.moe_intermediate_size + dim * config.num_experts
    else:
        mlp = 3 * dim * config.intermediate_size
    return config.num_hidden_layers * (attention + mlp), dim * config.vocab_size
