"""The path of a run through weight space: decay, straightness, and diffusion against drift."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .counting import decay_in_units, norm_and_unit
from .precision import require_matrix, widen, widen_pair
from .spectrum import frobenius_norm, normalized_spectral_shift


def inner_product(a: Float[ArrayLike, "*batch out in"], b: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch"]:
    """Frobenius inner product `⟨A, B⟩ = Σ a_ij b_ij`, without flattening sharded axes.

    Args:
      a: `[..., out, in]`.
      b: same shape.

    Returns:
      One number per matrix, float32 or float64.
    """
    a, b = widen_pair(a, b, ("a", "b"))
    require_matrix(a, "a")
    return jnp.sum(a * b, axis=(-2, -1))


def cosine(a: Float[ArrayLike, "*batch out in"], b: Float[ArrayLike, "*batch out in"]) -> Float[Array, "*batch"]:
    """Cosine of the angle between two matrices read as vectors.

    Args:
      a: `[..., out, in]`.
      b: same shape.

    Returns:
      In [−1, 1], one per pair; NaN where one is zero.
    """
    a, b = widen_pair(a, b, ("a", "b"))
    norm_a, norm_b = frobenius_norm(a), frobenius_norm(b)
    unit_a = a / jnp.where(norm_a > 0, norm_a, jnp.ones_like(norm_a))[..., None, None]
    unit_b = b / jnp.where(norm_b > 0, norm_b, jnp.ones_like(norm_b))[..., None, None]
    value = jnp.clip(inner_product(unit_a, unit_b), -1.0, 1.0)
    return jnp.where((norm_a > 0) & (norm_b > 0), value, jnp.full_like(value, jnp.nan))


def path_cosine(
    w_s: Float[ArrayLike, "*batch out in"],
    w_t: Float[ArrayLike, "*batch out in"],
    w_u: Float[ArrayLike, "*batch out in"],
) -> Float[Array, "*batch"]:
    """Straightness of a path at t: `cos(W_t − W_s, W_u − W_t)`. A random walk gives 0, a straight line 1.

    Args:
      w_s: weights at an earlier step `[..., out, in]`.
      w_t: weights at the middle step.
      w_u: weights at a later step.

    Returns:
      In [−1, 1], one per matrix; NaN where a stretch is zero.
    """
    s, t = widen_pair(w_s, w_t, ("w_s", "w_t"))
    t2, u = widen_pair(w_t, w_u, ("w_t", "w_u"))
    return cosine(t - s, u - t2)


def _rms(delta: ArrayLike) -> Array:
    delta = widen(delta, "delta")
    return frobenius_norm(delta) / (float(delta.shape[-2]) * float(delta.shape[-1])) ** 0.5


def lr_diffusion_ratio(
    delta: Float[ArrayLike, "*batch out in"], *, learning_rate: float, steps: float | int
) -> Float[Array, "*batch"]:
    """`‖ΔW‖_rms / (lr·√T)`: about 1 for pure diffusion under Adam, whose steps have size lr per entry.

    Args:
      delta: update after T steps `[..., out, in]`.
      learning_rate: lr; with a schedule, its root mean square over the steps.
      steps: T.

    Returns:
      One ratio per matrix.
    """
    return _rms(delta) / (learning_rate * steps**0.5)


def lr_drift_ratio(
    delta: Float[ArrayLike, "*batch out in"], *, learning_rate: float, steps: float | int
) -> Float[Array, "*batch"]:
    """`‖ΔW‖_rms / (lr·T)`: about 1 for pure drift under Adam, whose steps have size lr per entry.

    Args:
      delta: update after T steps `[..., out, in]`.
      learning_rate: lr; with a schedule, its mean over the steps.
      steps: T.

    Returns:
      One ratio per matrix.
    """
    return _rms(delta) / (learning_rate * steps)


def decay_component(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"]
) -> Float[Array, "*batch"]:
    """The component of the update along the initial weights, `c = ⟨ΔW, W0⟩ / ‖W0‖²`.

    Decoupled weight decay alone gives `c ≈ −Σ lr·wd`.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.

    Returns:
      One coefficient per matrix; NaN where W0 is zero.
    """
    a, b = widen_pair(w0, w1)
    (norm, unit), (_, delta_unit) = norm_and_unit(a), norm_and_unit(b - a)
    return decay_in_units(a, b - a, norm, unit, delta_unit)


def without_decay(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"]
) -> Float[Array, "*batch out in"]:
    """The final weights with the decay component taken out, `W+ − c·W0`.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.

    Returns:
      `[..., out, in]`, widened; W+ itself where W0 is zero.
    """
    a, b = widen_pair(w0, w1)
    c = decay_component(a, b)
    return b - jnp.where(jnp.isnan(c), jnp.zeros_like(c), c)[..., None, None] * a


def nss_without_decay(
    w0: Float[ArrayLike, "*batch out in"], w1: Float[ArrayLike, "*batch out in"]
) -> Float[Array, "*batch"]:
    """Normalized spectral shift between W0 and `W+ − c·W0`: what is left when uniform shrinkage is taken out.

    Args:
      w0: initial weights `[..., out, in]`.
      w1: final weights, same shape.

    Returns:
      One shift per matrix; NaN where W0 is zero.
    """
    a, b = widen_pair(w0, w1)
    return normalized_spectral_shift(a, without_decay(a, b))
