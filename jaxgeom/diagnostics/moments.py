"""A statistic beside its null: mean and deviation there, the excess over the mean, the excess in deviations."""

from typing import Any, NamedTuple

import numpy as np

from ._namespace import namespace


class NullMoments(NamedTuple):
    """A statistic under its null.

    Attributes:
      mean: expectation.
      std: standard deviation; NaN where it is not known.
    """

    mean: Any
    std: Any


def moments_of_draws(values: Any) -> NullMoments:
    """Mean and deviation of a statistic over draws of its null.

    Args:
      values: the statistic by draw, `[draws, ...]`, at least two.

    Returns:
      `NullMoments` of `[...]`.
    """
    xp = namespace(values)
    return NullMoments(xp.mean(values, axis=0), xp.std(values, axis=0, ddof=1))


def excess(value: Any, null: NullMoments) -> Any:
    """Observed value minus its expectation under the null.

    Args:
      value: the statistic, any shape.
      null: its moments, same shape.

    Returns:
      Array of that shape, of the namespace of the arguments.
    """
    xp = namespace(value, null)
    return xp.asarray(value) - xp.asarray(null.mean)


def z_score(value: Any, null: NullMoments) -> Any:
    """Excess in standard deviations of the null.

    Args:
      value: the statistic, any shape.
      null: its moments, same shape.

    Returns:
      Array of that shape, NaN where the deviation is not known and where the null is a point: its deviation 0, or what
      rounding leaves of 0. Nothing is so many deviations off then, not the point itself either.

    >>> z_score(np.array([0.7, 0.5, 0.7]), NullMoments(np.array([0.5, 0.5, 0.5]), np.array([0.1, 0.0, 0.0]))).round(9)
    array([ 2., nan, nan])
    """
    xp = namespace(value, null)
    beyond, std = excess(value, null), xp.asarray(null.std)
    # The two are sums taken in different orders: at the point is what rounding does not tell from it.
    rounding = 8 * float(xp.finfo(beyond.dtype).eps) * xp.maximum(xp.abs(xp.asarray(null.mean)), xp.abs(value))
    # A deviation is told to fewer digits than the mean: one of a few roundings is none.
    wide = std > rounding
    return xp.where(wide & (std < np.inf), beyond / xp.where(wide, std, xp.ones_like(std)), np.nan)


def triple(key: str, value: Any, null: NullMoments, kind: str = "") -> dict[str, Any]:
    """A statistic with what is reported beside it.

    Args:
      key: name of the statistic.
      value: the statistic, any shape; NaN where it is undefined.
      null: its moments, same shape; NaN where there are none.
      kind: tells further nulls of one statistic apart from its first, such as `_profile`.

    Returns:
      `{key, key + kind + "_null", key + kind + "_excess", key + kind + "_z"}`; the excess is value − null exactly.

    >>> triple("x", 3.0, NullMoments(1.0, 2.0), "_profile")["x_profile_z"].item()
    1.0
    """
    xp = namespace(value, null)
    return {
        key: xp.asarray(value),
        f"{key}{kind}_null": xp.asarray(null.mean),
        f"{key}{kind}_excess": excess(value, null),
        f"{key}{kind}_z": z_score(value, null),
    }
