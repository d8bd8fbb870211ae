"""The one rule by which numbers per matrix become one number: over which matrices, and with which weights.

Value, null and excess of a statistic are over the same matrices: those where value and null are both defined, which is
where the excess is; where no matrix has a null, those where the value is. Of a statistic that is weighted by parameters
(what is counted entry by entry) those where the value is also where the others are less than half of the parameters: a
null of a few small tensors is none of the whole, and their value alone would be taken for that of all. The mean excess
is the mean value less the mean null. The mean z is over those of them that have one, which may be fewer (a null without
a deviation), and has a count of its own. All are weighted alike: by parameters, or plainly, as the table of statistics
has it.
"""

from collections.abc import Mapping
from typing import Any

from ._namespace import namespace


def population_mask(
    columns: Mapping[str, Any], *, further: bool = False, members: Any = True, parameters: Any = None
) -> Any:
    """The matrices that a statistic's value, null and excess are over.

    Args:
      columns: `value`, `null`, `excess`, `z`, as many as there are: `[matrices]` each, NaN where undefined.
      further: whether the null is one beside the first; a matrix without it is then never taken.
      members: of groups of matrices which belong to them, booleans `[*groups, matrices]`; all of them to one.
      parameters: of each matrix `[matrices]`, for a statistic that is weighted by them.

    Returns:
      Booleans `[*groups, matrices]`.
    """
    parts = [columns[what] for what in ("value", "null", "excess", "z") if what in columns]
    known = [columns[what] for what in ("value", "null", "excess") if what in columns] or parts
    xp = namespace(*known)
    both = ~xp.isnan(xp.stack(known)).any(0) & members
    if further or "value" not in columns:
        return both
    valued = ~xp.isnan(columns["value"]) & members
    if parameters is None:
        enough = both.any(-1, keepdims=True)
    else:
        held, whole = (xp.where(over, parameters, 0 * parameters).sum(-1, keepdims=True) for over in (both, valued))
        enough = (held > 0) & (2 * held >= whole)
    return xp.where(enough, both, valued)


def population_means(
    columns: Mapping[str, Any], weights: Any, *, further: bool = False, members: Any = True, parameters: Any = None
) -> dict[str, Any]:
    """Means of what is there of value, null, excess and z, by the rule of this module.

    Args:
      columns: as `population_mask` takes them.
      weights: `[matrices]`, numpy or JAX.
      further, members, parameters: as `population_mask` takes them.

    Returns:
      Under the keys of `columns` the means `[*groups]`, NaN over no matrices; `count`; and `z_count` where there is
      a z.
    """
    over = population_mask(columns, further=further, members=members, parameters=parameters)
    return means_over(columns, weights, over)


def means_over(columns: Mapping[str, Any], weights: Any, over: Any) -> dict[str, Any]:
    """What `population_means` gives, over matrices `[*groups, matrices]` that `population_mask` has chosen."""
    xp = namespace(over)
    found = {what: weighted_mean(numbers, weights, over) for what, numbers in columns.items() if what != "z"}
    if {"value", "null", "excess"} <= found.keys():
        found["excess"] = found["value"] - found["null"]
    found["count"] = xp.sum(over, axis=-1)
    if "z" in columns:
        judged = over & ~xp.isnan(columns["z"])
        if "null" in found:
            judged = judged & ~xp.isnan(found["null"])[..., None]
        found |= {"z": weighted_mean(columns["z"], weights, judged), "z_count": xp.sum(judged, axis=-1)}
    return found


def weighted_mean(numbers: Any, weights: Any, over: Any) -> Any:
    """The mean of numbers `[matrices]` over the chosen ones `[*groups, matrices]`; NaN over none, or where one of them
    is undefined."""
    xp = namespace(numbers, weights)
    total = xp.sum(xp.where(over, weights, xp.zeros_like(weights)), axis=-1)
    value = xp.sum(xp.where(over, numbers * weights, xp.zeros_like(weights)), axis=-1)
    return xp.where(total > 0, value / xp.where(total > 0, total, xp.ones_like(total)), xp.nan)
