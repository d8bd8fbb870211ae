"""Rotary position embedding and the scalings of it that Qwen3 configs use."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgeom.errors import UserError

_KINDS = ("linear", "yarn", "llama3")
_FIELDS = {
    "linear": {"factor"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """One kind of frequency scaling, with the names of `rope_scaling` in `config.json`."""

    kind: str
    factor: float
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None

    @classmethod
    def from_hf(cls, scaling: Mapping[str, Any]) -> "RopeScaling | None":
        """Read `rope_scaling`; None where it asks for the default embedding. Fields of no use are passed over.

        Raises:
            UserError: the kind or the value of a field is not supported, or a needed one is missing.
        """
        fields = {name: value for name, value in scaling.items() if value is not None}
        kind = fields.pop("rope_type", None)
        legacy = fields.pop("type", None)
        kind = kind or legacy or "default"
        if kind not in ("default", *_KINDS):
            raise UserError(
                f"config.json: rope_scaling.rope_type={kind!r} is not supported; it must be one of {', '.join(_KINDS)}"
            )
        partial = fields.get("partial_rotary_factor", 1)
        if partial != 1:
            raise UserError(
                f"config.json: rope_scaling.partial_rotary_factor={partial!r} is not supported; it must be 1"
            )
        if kind == "default":
            # Whoever gives a factor means a kind of scaling, and does not say which.
            if fields.get("factor", 1) != 1:
                raise UserError("config.json: rope_scaling.factor is not supported for rope_type 'default'")
            return None
        fields = {name: value for name, value in fields.items() if name in _FIELDS[kind]}
        needed = {"factor"} if kind != "llama3" else _FIELDS[kind]
        for name in sorted(needed - set(fields)):
            raise UserError(f"config.json: rope_scaling.{name} is missing for rope_type {kind!r}")
        fields = {name: _checked(name, value) for name, value in fields.items()}
        if kind == "llama3" and not fields["low_freq_factor"] < fields["high_freq_factor"]:
            raise UserError(
                f"config.json: rope_scaling.low_freq_factor={fields['low_freq_factor']!r} must be below "
                f"high_freq_factor={fields['high_freq_factor']!r}"
            )
        return cls(kind=kind, **fields)

    def to_hf(self) -> dict[str, Any]:
        """The `rope_scaling` dict of `config.json`."""
        fields = {
            name: value for name, value in dataclasses.asdict(self).items() if name != "kind" and value is not None
        }
        return {"rope_type": self.kind, **fields}


def unused_fields(scaling: Mapping[str, Any]) -> list[str]:
    """The fields of `rope_scaling` that its kind has no use for, as `transformers` has none; sorted.

    Args:
        scaling: one that `RopeScaling.from_hf` takes.
    """
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    used = {"rope_type", "type", "rope_theta", "partial_rotary_factor"} | _FIELDS.get(kind, set())
    return sorted(name for name, value in scaling.items() if value is not None and name not in used)


def is_number(value: Any) -> bool:
    """Whether a field of a configuration is a number that float32 can hold, in which the model computes."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return abs(float(value)) < 2.0**127
    except OverflowError:
        return False


def _checked(name: str, value: Any) -> Any:
    number = is_number(value)
    if name == "truncate":
        good, right = isinstance(value, bool), "true or false"
    elif name == "original_max_position_embeddings":
        good, right = number and isinstance(value, int) and value > 0, "a positive integer"
    elif name in ("mscale", "mscale_all_dim"):
        good, right = number, "a finite number"
    else:
        good, right = number and value > 0, "a positive number"
    if not good:
        raise UserError(f"config.json: rope_scaling.{name}={value!r} is not supported; it must be {right}")
    return value if isinstance(value, bool) or name == "original_max_position_embeddings" else float(value)


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None, max_positions: int
) -> tuple[np.ndarray, float]:
    """Inverse frequencies and the factor on cos and sin.

    `f_i = theta^(−2i/d)`; linear scaling divides by `factor`; YaRN and Llama 3 blend `f_i` and `f_i / factor`.

    Args:
        head_dim: d, even.
        theta: base of the geometric progression.
        scaling: kind and constants, or None.
        max_positions: `max_position_embeddings`, used by YaRN where the original length is not given.
    Returns:
        Frequencies, float32 `[head_dim / 2]` in radians per position, and the attention factor (1 but for YaRN).
    Reference:
        RoFormer: Enhanced Transformer with Rotary Position Embedding (arXiv 2104.09864);
        YaRN: Efficient Context Window Extension of Large Language Models (arXiv 2309.00071).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / np.float32(scaling.factor), 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    return _yarn(plain, head_dim, theta, scaling, max_positions)


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    original, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    assert original is not None and low is not None and high is not None
    wavelength = 2 * math.pi / plain
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * plain / scaling.factor + blend * plain).astype(np.float32)


def _yarn(
    plain: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling, max_positions: int
) -> tuple[np.ndarray, float]:
    original = scaling.original_max_position_embeddings or max_positions
    factor = scaling.factor

    def boundary(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = boundary(scaling.beta_fast or 32.0), boundary(scaling.beta_slow or 1.0)
    if scaling.truncate is None or scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    blended = (plain / factor * ramp + plain * (1 - ramp)).astype(np.float32)

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if scaling.attention_factor is not None:
        return blended, float(scaling.attention_factor)
    if scaling.mscale and scaling.mscale_all_dim:
        return blended, magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return blended, magnitude(1.0)


def rope_tables(
    positions: Int[Array, "batch time"], frequencies: np.ndarray, factor: float
) -> tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]:
    """Cosines and sines of `position · frequency`, times the attention factor, in float32."""
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def apply_rope(x: Float[Array, "*shape"], cos: Array, sin: Array, *, axis: int = -1) -> Float[Array, "*shape"]:
    """Rotate the pairs `(x_i, x_{i+d/2})` along `axis` by their angles (the half-split layout of Hugging Face).

    Args:
        x: queries or keys, `head_dim` along `axis`.
        cos, sin: tables that broadcast against either half of `x`.
        axis: counted from the last.
    Returns:
        The rotated array, in the dtype of `x`.
    """
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    cos, sin = jnp.concatenate([cos, cos], axis=axis), jnp.concatenate([-sin, sin], axis=axis)
    # Of whole rows: with the two halves computed apart, and then joined, XLA on CPU takes a tenth more of a step.
    return x * cos + jnp.roll(x, x.shape[axis] // 2, axis=axis) * sin
