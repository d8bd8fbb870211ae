"""One source for two array libraries: the same formula on NumPy arrays in float64 and on JAX arrays, traced or not.

A function of sufficient statistics asks `namespace` which library its arguments belong to and is written against that.
NumPy in gives NumPy out; JAX arrays in give JAX arrays out, so that the function may be traced by `jit` and `vmap`.
What the two libraries spell differently is here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import lax


def namespace(*arrays: Any) -> Any:
    """`jax.numpy` where one of the arguments is a JAX array (or a tracer), else `numpy`; trees are looked into."""
    return jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arrays)) else np


def real(xp: Any) -> Any:
    """The floating dtype in which a namespace computes: float64 of NumPy, and of JAX under x64; else float32."""
    return np.dtype(np.float64) if xp is np else jnp.result_type(float)


def as_real(x: Any, xp: Any) -> Any:
    """Numbers of any shape (counts, a constant table) as an array of `real(xp)`, of that shape."""
    if not isinstance(x, jax.Array):  # JAX remembers a NumPy array with the width that it had first: give it a new one.
        return xp.asarray(np.asarray(x).astype(real(xp)))
    return x.astype(real(xp))


def ndtr(x: Any) -> Any:
    """The normal distribution function `Φ(x)` of floats of any shape, with full relative accuracy in the lower tail."""
    # JAX's own ndtr computes three functions and chooses: this one compiles in a third of the time.
    return 0.5 * lax.erfc(x * -(0.5**0.5)) if isinstance(x, jax.Array) else scipy.special.ndtr(x)


def bitcast(x: Any, dtype: Any) -> Any:
    """The bits of an array of any shape read as another dtype of the same width, in that shape."""
    if isinstance(x, jax.Array):
        return lax.bitcast_convert_type(x, dtype)
    return np.asarray(x).view(dtype)


def divide(numerator: Any, denominator: Any) -> Any:
    """`numerator / denominator` of shapes that broadcast, NaN where the denominator is zero, with clean gradients."""
    xp = namespace(numerator, denominator)
    numerator, denominator = xp.asarray(numerator), xp.asarray(denominator)
    defined = denominator != 0
    quotient = numerator / xp.where(defined, denominator, xp.ones_like(denominator))
    return xp.where(defined, quotient, xp.full_like(quotient, np.nan))


def repeat(
    times: int, step: Callable[[Any], Any], state: Any, *, settled: Callable[[Any, Any], Any] = lambda old, new: False
) -> Any:
    """A step taken so many times from a tree of arrays, or until `settled(old, new)` holds of two states in a row.

    By a Python loop or, for JAX arrays, by one compiled body.
    """
    if namespace(state) is np:
        for _ in range(times):
            old, state = state, step(state)
            if settled(old, state):
                break
        return state

    def goes_on(held: Any) -> Any:
        return (held[0] < times) & ~held[1]

    def body(held: Any) -> Any:
        new = step(held[2])
        return held[0] + 1, held[1] | settled(held[2], new), new

    # Of the state itself, so that it varies over the mesh axes over which the state does.
    never = jax.tree.leaves(state)[0].reshape(-1)[0] * 0 != 0
    return lax.while_loop(goes_on, body, (0, never, state))[2]


def along(step: Callable[[Any, Any], Any], state: Any, inputs: Any) -> Any:
    """What a state becomes by each step along the first axis of the inputs, `[T, ...]`: one compiled body in JAX.

    Args:
      step: takes the state and one slice of every input, and gives the next state.
      state: a tree of arrays.
      inputs: a tree of arrays `[T, ...]`.
    """
    if namespace(state, inputs) is not np:
        return lax.scan(lambda held, one: (step(held, one),) * 2, state, inputs)[1]
    states = []
    for place in range(len(jax.tree.leaves(inputs)[0])):
        state = step(state, jax.tree.map(lambda x, place=place: x[place], inputs))
        states.append(state)
    return jax.tree.map(lambda *parts: np.stack(parts), *states)


def increasing_root(function: Callable[[Any], Any], low: Any, high: Any, *, steps: int = 200) -> Any:
    """Where increasing functions cross zero between two bounds, one root per element.

    Chandrupatla's method: inverse quadratic interpolation where it is safe, bisection elsewhere, down to the rounding
    of the numbers. The same steps are taken in both namespaces, by a Python loop and by `lax.while_loop`.

    Args:
      function: takes an array of the bounds' shape and gives one of the same shape, each element from its own.
      low, high: lower and upper bounds, arrays of one shape and floating dtype. Inside `shard_map` they must vary over
        the mesh axes over which the function's values do.
      steps: the most that are taken; bisection alone needs about 60 in float64.

    Returns:
      Array of that shape; the nearer bound where the function crosses zero outside them, NaN where it is NaN.

    Reference:
      Chandrupatla, *A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without
      using derivatives* (1997), https://doi.org/10.1016/s0965-9978(96)00051-8
    """
    xp = namespace(low, high)
    low, high = xp.asarray(low), xp.asarray(high)
    eps = 2 * float(xp.finfo(low.dtype).eps)

    def goes_on(state: Any) -> Any:
        return (state[-1] < steps) & xp.any(~state[-2])

    def step(state: Any) -> Any:
        a, b, _, fa, fb, _, t, done, count = state
        # The ends are looked at by the same step as the rest: the function is traced, and compiled, once.
        x = xp.where(count == 0, low, xp.where(count == 1, high, a + t * (b - a)))
        fx = function(x)
        same = (xp.sign(fx) == xp.sign(fa)) & (count > 1)
        c, fc = xp.where(same, a, b), xp.where(same, fa, fb)
        b, fb = xp.where(same, b, a), xp.where(same, fb, fa)
        a, fa = x, fx
        width = xp.abs(b - a)
        slack = eps * xp.maximum(xp.abs(xp.where(xp.abs(fa) < xp.abs(fb), a, b)), 1.0)
        t = _interpolation(xp, a, b, c, fa, fb, fc)
        least = xp.minimum(0.5 * slack / xp.where(width > 0, width, slack), 0.5)
        t = xp.where(count == 1, 0.5, xp.clip(t, least, 1 - least))
        outside = ((count == 0) & ~(fa < 0)) | ((count == 1) & ~(fa > 0))
        now = done | outside | ((count > 1) & ((width <= slack) | (fa == 0)))
        held = tuple(xp.where(done, old, new) for old, new in zip(state[:6], (a, b, c, fa, fb, fc), strict=True))
        return (*held, t, now, count + 1)

    zero = xp.zeros_like(low)
    state = (low, low, low, zero, zero, zero, zero, zero > 0, 0)
    if xp is np:
        while goes_on(state):
            state = step(state)
    else:
        state = lax.while_loop(goes_on, step, state)
    a, b, _, fa, fb = state[:5]
    a = xp.where(fa == fa, a, xp.full_like(a, np.nan))
    return xp.where(xp.abs(fb) < xp.abs(fa), b, a)


def newton_root(
    function: Callable[[Any], tuple[Any, Any]], start: Any, low: Any, high: Any, *, steps: int = 100
) -> Any:
    """Where smooth increasing functions cross zero between two bounds, from a guess, one root per element.

    Newton's steps, bisection where one would leave what is left of the interval: a third of the evaluations of
    `increasing_root` where the guess is near and the slope costs nothing more.

    Args:
      function: takes an array of the guess's shape and gives values and slopes of the same shape.
      start: the guess, within the bounds; array of a floating dtype.
      low, high: lower and upper bounds, arrays of its shape and dtype.
      steps: the most that are taken.

    Returns:
      Array of that shape; a bound where the function crosses zero outside them, NaN where it is NaN.
    """
    xp = namespace(start, low, high)
    eps = 8 * float(xp.finfo(start.dtype).eps)

    def step(state: Any) -> Any:
        low, high, x, done = state
        value, slope = function(x)
        low, high = xp.where(value < 0, x, low), xp.where(value > 0, x, high)
        newton = x - value / xp.where(slope > 0, slope, xp.ones_like(slope))
        slack = eps * xp.maximum(xp.abs(x), 1.0)
        near = (xp.abs(newton - x) <= slack) & (slope > 0)
        moved = xp.where(near | (slope > 0) & (newton > low) & (newton < high), newton, 0.5 * (low + high))
        new = xp.where(value == 0, x, xp.where(value == value, moved, xp.full_like(x, np.nan)))
        ended = done | near | (value == 0) | ~(value == value) | (high - low <= slack)
        return low, high, xp.where(done, x, new), ended

    state = (low, high, start, xp.zeros_like(start) > 0)
    return repeat(steps, step, state, settled=lambda _, new: xp.all(new[3]))[2]


def _interpolation(xp: Any, a: Any, b: Any, c: Any, fa: Any, fb: Any, fc: Any) -> Any:
    """Where between a (0) and b (1) to look next: at the inverse parabola's zero if that is safe, else half-way."""

    def ratio(x: Any, y: Any) -> Any:
        return x / xp.where(y != 0, y, xp.ones_like(y))

    xi, phi = ratio(a - b, c - b), ratio(fa - fb, fc - fb)
    inside = (xi > 0) & (xi < 1)
    root, other = xp.sqrt(xp.where(inside, xi, 0.5)), xp.sqrt(xp.where(inside, 1 - xi, 0.5))
    safe = inside & (1 - other < phi) & (phi < root) & (fa != fb) & (fb != fc) & (fc != fa)
    bend = ratio(fa, fa - fb) * ratio(fc, fc - fb) - ratio(c - a, b - a) * ratio(fa, fc - fa) * ratio(fb, fb - fc)
    return xp.where(safe, bend, xp.full_like(a, 0.5))
