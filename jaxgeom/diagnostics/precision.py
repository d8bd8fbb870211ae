"""Precision views of a weight: what is stored, what a bfloat16 reader sees, and differences formed after widening.

The bfloat16 view uses `lax.reduce_precision`, because XLA may drop a float32 -> bfloat16 -> float32 pair of casts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._namespace import bitcast, namespace


def widen(x: ArrayLike, name: str = "array") -> jax.Array:
    """The same numbers in the precision in which JAX computes: float64 under x64, else at least float32.

    Args:
      x: floating-point array.
      name: what an error message calls it.

    Returns:
      Array of the same shape, of the default float dtype of JAX or a wider one.

    Raises:
      ValueError: where `x` holds no floating-point numbers.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {x.dtype}; a floating-point array is needed")
    default = jnp.result_type(float)
    return x.astype(default) if x.dtype.itemsize < default.itemsize else x


def widen_pair(a: ArrayLike, b: ArrayLike, names: tuple[str, str] = ("w0", "w1")) -> tuple[jax.Array, jax.Array]:
    """Two arrays of one shape, widened to a common dtype.

    Args:
      a: floating-point array.
      b: floating-point array of the same shape.
      names: what an error message calls them.

    Returns:
      Both in the default float dtype of JAX, or in float64 where one of them is.

    Raises:
      ValueError: where the shapes differ or an array is not floating-point.
    """
    a, b = widen(a, names[0]), widen(b, names[1])
    if a.shape != b.shape:
        raise ValueError(f"{names[0]} has shape {a.shape} and {names[1]} has shape {b.shape}; they must be equal")
    dtype = a.dtype if a.dtype.itemsize >= b.dtype.itemsize else b.dtype
    return a.astype(dtype), b.astype(dtype)


def require_matrix(x: Any, name: str = "array") -> None:
    """Refuses an array with fewer than two axes, or with an empty matrix.

    Raises:
      ValueError: naming the array and its shape.
    """
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; a non-empty matrix [..., out, in] is needed")


def update(w0: Float[ArrayLike, "..."], w1: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The update `ΔW = W+ − W0` as stored, formed after widening.

    Args:
      w0: initial weights, any floating dtype.
      w1: final weights, same shape.

    Returns:
      Difference, float64 under x64, else float32.

    Raises:
      ValueError: where the shapes differ or an array is not floating-point.
    """
    a, b = widen_pair(w0, w1)
    return b - a


def bf16_view(w: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """What a bfloat16 reader sees: rounded to nearest even on the bfloat16 grid, then widened.

    A float64 input goes through float32 first.

    Args:
      w: weights, any floating dtype.

    Returns:
      Array of the default float dtype of JAX, every entry exactly representable in bfloat16.
    """
    w = jnp.asarray(w)
    if w.dtype == jnp.bfloat16:
        return widen(w)
    return widen(lax.reduce_precision(widen(w).astype(jnp.float32), exponent_bits=8, mantissa_bits=7))


def bf16_update(w0: Float[ArrayLike, "..."], w1: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The update in the bfloat16 view: both sides rounded, widened, then subtracted.

    Args:
      w0: initial weights.
      w1: final weights, same shape.

    Returns:
      Difference of the two bfloat16 views, of the default float dtype of JAX.
    """
    a, b = widen_pair(w0, w1)
    return bf16_view(b) - bf16_view(a)


def along_update(w0: Any, w1: Any, share: Any) -> Any:
    """The weights a share of the way along the update, `W0 + share·(W+ − W0)`, in float32.

    What a bfloat16 reader sees of them is the precision null of a run: the final update's direction at the norm that an
    earlier one has, which rounding makes sparser and spreads over more directions.

    Args:
      w0: initial weights, any floating dtype, numpy or JAX.
      w1: final weights, same shape.
      share: a number, or an array that broadcasts against the weights.

    Returns:
      float32 array of the same shape and namespace. Each operation is rounded; a compiler that fuses a product with a
      sum rounds once less.
    """
    xp = namespace(w0, w1)
    a, b = (xp.asarray(w).astype(np.float32) for w in (w0, w1))
    return a + xp.asarray(share).astype(np.float32) * (b - a)


def bf16_bits(w: Any) -> Any:
    """The 16 bits of the bfloat16 view: sign, 8 of exponent, 7 of mantissa.

    Args:
      w: weights, any floating dtype. NumPy arrays must be finite and are answered in NumPy.

    Returns:
      uint16 array of the same shape, of the namespace of `w`.
    """
    if isinstance(w, np.ndarray):
        if w.dtype.name == "bfloat16":
            return w.view(np.uint16)
        bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        return rounded.astype(np.uint16)
    w = jnp.asarray(w)
    if w.dtype == jnp.bfloat16:
        return lax.bitcast_convert_type(w, jnp.uint16)
    # `reduce_precision` keeps NaN, and XLA may drop a pair of casts.
    rounded = lax.reduce_precision(w.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    return (lax.bitcast_convert_type(rounded, jnp.uint32) >> 16).astype(jnp.uint16)


def grid_bits(w: Any) -> Any:
    """The 16 bits by which weights are counted: those of float16 where they are stored so, else of the bfloat16 view.

    Args:
      w: weights, any floating dtype.

    Returns:
      uint16 array of the same shape, of the namespace of `w`.
    """
    if w.dtype.name == "float16":
        return bitcast(w, np.uint16)
    return bf16_bits(w)


def ulp_distance(w0: Float[ArrayLike, "..."], w1: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The update in units of the bfloat16 spacing at the initial weight.

    `|ΔW| / ULP_bf16(W0)`, with `ULP = 2^(e−7)` for `|W0|` rounded to bfloat16 in `[2^e, 2^(e+1))`. Zero and subnormal
    weights have the smallest spacing, 2⁻¹³³: a moved zero is infinitely far for any practical purpose.

    Args:
      w0: initial weights.
      w1: final weights, same shape.

    Returns:
      Distances in ULPs, float64 under x64, else float32.

    Reference:
      *The Path Not Taken*, Gate III, https://arxiv.org/abs/2511.08567
    """
    delta = jnp.abs(update(w0, w1))
    exponent = jnp.maximum(((bf16_bits(w0) >> 7) & 0xFF).astype(jnp.int32), 1)
    shift = 134 - exponent  # ULP = 2^(exponent − 134); 2^133 overflows float32, so it is applied in two factors
    first = shift // 2
    for part in (first, shift - first):
        factor = lax.bitcast_convert_type((part + 127).astype(jnp.uint32) << 23, jnp.float32)
        delta = delta * factor.astype(delta.dtype)
    return delta
