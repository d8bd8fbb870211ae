"""The architecture of a Qwen3 model, read from a Hugging Face `config.json` and refused where it is not supported."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgeom.errors import UserError, listed
from jaxgeom.models.rope import RopeScaling, is_number, rope_frequencies, unused_fields

# Fields of config.json that do not change the function computed here, whatever their value.
_IGNORED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _experts_implementation _name_or_path add_cross_attention
    architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder is_encoder_decoder label2id
    length_penalty max_length max_position_embeddings max_window_layers min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states
    output_router_logits output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate rope_parameters rope_scaling rope_theta router_aux_loss_coef
    sep_token_id sliding_window suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version
    use_bfloat16 use_cache
    """.split()
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MODEL_TYPES = ("qwen3", "qwen3_moe")

# Fields of other architectures that ask for another function, with the values that ask for nothing. They are refused:
# a directory that carries them was made for a model that is not this one.
_OTHER_FUNCTION: dict[str, tuple[Any, ...]] = {
    "attn_output_gate": (), "logit_scale": (1, 1.0), "logits_scaling": (1, 1.0), "final_logit_softcapping": (),
    "attn_logit_softcapping": (), "query_pre_attn_scalar": (), "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0), "attention_multiplier": (), "partial_rotary_factor": (1, 1.0), "mlp_bias": (),
    "clip_qkv": (), "original_max_position_embeddings": (), "use_mrope": (), "shared_expert_intermediate_size": (0,),
    "n_shared_experts": (0,), "first_k_dense_replace": (0,), "full_attention_interval": (1,),
    "num_nextn_predict_layers": (0,), "use_qk_norm": (True,),
}  # fmt: skip

_MOST = {"num_hidden_layers": 4096, "num_experts": 4096, "num_attention_heads": 1 << 16, "head_dim": 1 << 16}
_MOST_ELSE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Shape and constants of a Qwen3 model; names as in Hugging Face. `num_experts` 0 means dense."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    initializer_range: float = 0.02
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        ):
            _check(name, getattr(self, name), getattr(self, name) > 0, "a positive integer")
        for field in dataclasses.fields(self):
            value, most = getattr(self, field.name), _MOST.get(field.name, _MOST_ELSE)
            size = type(value) is int and field.name not in ("max_position_embeddings", *_TOKENS)
            _check(field.name, value, not size or value <= most, f"at most {most}")
        _check("head_dim", self.head_dim, self.head_dim % 2 == 0, "even, for the rotary embedding")
        _check(
            "num_key_value_heads",
            self.num_key_value_heads,
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"a divisor of num_attention_heads={self.num_attention_heads}",
        )
        eps = self.rms_norm_eps
        _check("rms_norm_eps", eps, 2.0**-126 <= eps < 2.0**127, "positive and finite, in float32 too")
        _check("rope_theta", self.rope_theta, math.isfinite(self.rope_theta) and self.rope_theta > 0, "positive")
        _check("max_position_embeddings", self.max_position_embeddings, self.max_position_embeddings > 0, "positive")
        if self.is_moe:
            _check(
                "num_experts_per_tok",
                self.num_experts_per_tok,
                0 < self.num_experts_per_tok <= self.num_experts,
                f"between 1 and num_experts={self.num_experts}",
            )
            _check("moe_intermediate_size", self.moe_intermediate_size, self.moe_intermediate_size > 0, "positive")
        else:
            _check("intermediate_size", self.intermediate_size, self.intermediate_size > 0, "positive")
        _check_frequencies(self)

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forward layers are mixtures of experts."""
        return self.num_experts > 0

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The token ids that end an answer: `eos_token_id` as a tuple, empty where the config has none."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Qwen3Config":
        """The config of a Hugging Face `config.json`, given as a dict.

        Raises:
            UserError: a field is missing, has an unsupported value, or is unknown; the message names it.
        """
        known = dict(config)
        model_type = known.get("model_type")
        _check("model_type", model_type, model_type in _MODEL_TYPES, f"one of {', '.join(_MODEL_TYPES)}")
        moe = model_type == "qwen3_moe"
        _refuse_unsupported(known, moe)
        sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
        if moe:
            # transformers writes either name for the one field.
            local, named = known.get("num_local_experts"), known.get("num_experts")
            _check("num_local_experts", local, local is None or named in (None, local), f"num_experts={named!r}")
            known["num_experts"] = local if named is None else named
            sizes += ["num_experts", "num_experts_per_tok", "moe_intermediate_size"]
        fields: dict[str, Any] = {name: _size(known, name) for name in sizes}
        heads = fields["num_attention_heads"]
        fields["num_key_value_heads"] = _size(known, "num_key_value_heads", heads)
        # The dense class defaults to 128; the MoE class falls back to hidden_size / heads.
        fields["head_dim"] = _size(known, "head_dim", fields["hidden_size"] // heads if moe else 128)
        if moe:
            fields["norm_topk_prob"] = _switch(known, "norm_topk_prob")
        for name in ("rms_norm_eps", "initializer_range"):
            if known.get(name) is not None:
                fields[name] = _number(name, known[name])
        for name in ("tie_word_embeddings", "attention_bias"):
            fields[name] = _switch(known, name)
        if known.get("max_position_embeddings") is not None:
            fields["max_position_embeddings"] = _size(known, "max_position_embeddings")
        for name in _TOKENS:
            fields[name] = _token_ids(name, known.get(name))
        fields["rope_theta"], fields["rope_scaling"] = _read_rope(known)
        return cls(**fields)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` dict that `transformers` reads back as the same model."""
        config: dict[str, Any] = {
            "architectures": ["Qwen3MoeForCausalLM" if self.is_moe else "Qwen3ForCausalLM"],
            "model_type": "qwen3_moe" if self.is_moe else "qwen3",
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": None,
            "use_cache": True,
        }
        for field in dataclasses.fields(self):
            if field.name in (
                "rope_scaling",
                "num_experts",
                "num_experts_per_tok",
                "moe_intermediate_size",
                "norm_topk_prob",
            ):
                continue
            value = getattr(self, field.name)
            config[field.name] = list(value) if isinstance(value, tuple) else value
        config["rope_scaling"] = None if self.rope_scaling is None else self.rope_scaling.to_hf()
        if self.is_moe:
            config |= {
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.num_experts_per_tok,
                "moe_intermediate_size": self.moe_intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }
        return config


_READ = {field.name for field in dataclasses.fields(Qwen3Config)} | {
    "hidden_act", "use_sliding_window", "attention_dropout", "quantization_config", "quantization", "layer_types",
    "decoder_sparse_step", "mlp_only_layers", "num_local_experts",
}  # fmt: skip


def ignored_fields(config: Mapping[str, Any]) -> list[str]:
    """What a config.json holds that has no effect on a Qwen3 model, there or in `transformers`; a sentence, or none.

    Args:
        config: one that `Qwen3Config.from_hf` takes.
    """
    unknown = sorted(
        name for name, value in config.items()
        if name not in _READ | _IGNORED | _OTHER_FUNCTION.keys() and value not in (None, False)
    )  # fmt: skip
    for spelling in ("rope_scaling", "rope_parameters"):
        unknown += [f"{spelling}.{name}" for name in unused_fields(config.get(spelling) or {})]
    return [f"fields of config.json without effect on a Qwen3 model are ignored: {listed(unknown)}"] if unknown else []


def _check(name: str, value: Any, good: bool, right: str) -> None:
    if not good:
        text = repr(value)
        text = text if len(text) <= 80 else text[:80] + "…"
        raise UserError(f"config.json: {name}={text} is not supported; it must be {right}")


def _check_frequencies(config: "Qwen3Config") -> None:
    """Refuses rotary constants whose frequencies are no numbers."""
    try:
        with np.errstate(all="ignore"):
            found, factor = rope_frequencies(
                config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings
            )
        good = bool(np.isfinite(found).all()) and math.isfinite(factor)
    except (ArithmeticError, ValueError):
        good = False
    if not good:
        raise UserError(f"config.json: rope_theta={config.rope_theta!r} with its scaling gives no finite frequencies")


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number above 0; the default where the field is absent or null."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise UserError(f"config.json: field {name!r} is missing")
    _check(name, value, isinstance(value, int) and not isinstance(value, bool) and value > 0, "a positive integer")
    return value


def _number(name: str, value: Any) -> float:
    _check(name, value, is_number(value), "a finite number")
    return float(value)


def _switch(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    _check(name, value, value is None or isinstance(value, bool), "true or false")
    return bool(value)


def _token_ids(name: str, value: Any) -> Any:
    """A token id, several as a tuple, or None."""
    several = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
    good = all(type(token) is int and -1 <= token < 2**31 for token in several)
    _check(name, value, good and (name == "eos_token_id" or not isinstance(value, list | tuple)), "a token id")
    return tuple(several) if isinstance(value, list | tuple) else value


def _refuse_unsupported(config: Mapping[str, Any], moe: bool) -> None:
    """Raise on every field that would change the function and that the model here does not implement."""
    for name in ("dtype", "torch_dtype"):
        value = config.get(name)
        _check(name, value, value is None or isinstance(value, str), "a text such as 'bfloat16'")
    _check(
        "hidden_act", config.get("hidden_act", "silu"), config.get("hidden_act", "silu") in ("silu", "swish"), "'silu'"
    )
    _check("use_sliding_window", config.get("use_sliding_window"), not config.get("use_sliding_window"), "false")
    _check("attention_dropout", config.get("attention_dropout"), not config.get("attention_dropout"), "0")
    for quantized in ("quantization_config", "quantization"):
        right = "absent: quantized weights are not read, dequantize the model first"
        _check(quantized, config.get(quantized), not config.get(quantized), right)
    layer_types = config.get("layer_types") or []
    full = isinstance(layer_types, list | tuple) and all(kind == "full_attention" for kind in layer_types)
    _check("layer_types", layer_types, full, "'full_attention' throughout")
    if moe:
        _check("decoder_sparse_step", config.get("decoder_sparse_step"), config.get("decoder_sparse_step", 1) == 1, "1")
        _check("mlp_only_layers", config.get("mlp_only_layers"), not config.get("mlp_only_layers"), "empty")
    else:
        for name in ("num_experts", "num_local_experts"):
            _check(name, config.get(name), not config.get(name), "absent for model_type 'qwen3' (not 'qwen3_moe')")
    for name, harmless in _OTHER_FUNCTION.items():
        value = config.get(name)
        # A null or false switch asks for nothing.
        asks = value is not None and value is not False and value not in harmless
        right = " or ".join(["absent", *map(repr, harmless[:1])])
        _check(name, value, not asks, right)


def _read_rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from either spelling: `rope_theta` + `rope_scaling`, or transformers 5's `rope_parameters`."""
    spellings = {name: config.get(name) or {} for name in ("rope_scaling", "rope_parameters")}
    for name, value in spellings.items():
        _check(name, value, isinstance(value, Mapping), "an object or null")
    old, new = (dict(value) for value in spellings.values())
    for name in sorted(old.keys() & new.keys()):
        # Versions of transformers differ in which of the two they follow.
        _check(f"rope_scaling.{name}", old[name], old[name] == new[name], f"rope_parameters.{name}={new[name]!r}")
    parameters = old | new
    theta = parameters.pop("rope_theta", None)
    theta = config.get("rope_theta") if theta is None else theta
    return 10_000.0 if theta is None else _number("rope_theta", theta), RopeScaling.from_hf(parameters)
