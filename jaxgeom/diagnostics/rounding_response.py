"""How an entry answers noise `s·g`, g standard normal: does its bfloat16 view change?

As a function of the scale s, with derivatives in `log s`, in closed form, elementwise, in the namespace of the
arguments.

- `change_at_place`: probability of a visible change of a weight whose place in its rounding cell is known.
- `change_in_cell`: the same averaged over the place, uniform in the cell: for weights that are stored finer.

For noise that is not rounded itself, `Cov(changed, g²) = dp/d log s`, because `g² − 1` is the score of log s.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ._namespace import namespace, ndtr, real


class Change(NamedTuple):
    """Probability of a visible change and its first two derivatives in log s."""

    probability: Any
    slope: Any
    bend: Any


def density(z: Any) -> Any:
    xp = namespace(z)
    return xp.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))


def times_density(z: Any) -> Any:
    """`z·φ(z)`, 0 at infinity."""
    xp = namespace(z)
    z = xp.clip(z, -60.0, 60.0)
    return z * density(z)


def change_at_place(low: Any, high: Any, scale: Any) -> Change:
    """Response of a weight at a known place.

    Args:
      low, high: ends of its unchanged interval, relative to it, low ≤ 0 ≤ high.
      scale: s > 0, broadcast against the ends.

    Returns:
      `Change`, elementwise.
    """
    xp = namespace(low, scale)
    ends = xp.clip(xp.stack(xp.broadcast_arrays(high / scale, -low / scale)), 0.0, 60.0)
    slopes = times_density(ends)
    parts = ndtr(-ends), slopes, slopes * (ends * ends - 1)
    return Change(*(part[0] + part[1] for part in parts))


def change_in_cell(low: Any, high: Any, cell_low: Any, cell_high: Any, scale: Any) -> Change:
    """Response of a weight anywhere in a cell, averaged uniformly.

    The mass that stays within [low, high] is `s/w·[R((h−a)/s) − R((h−b)/s) − R((l−a)/s) + R((l−b)/s)]` for the cell
    [a, b] of width w, `R(z) = z·Φ(z) + φ(z)`.

    Args:
      low, high: ends of the unchanged interval, relative to the cell's magnitude.
      cell_low, cell_high: ends of the cell.
      scale: s > 0, broadcast against the ends.

    Returns:
      `Change`, elementwise.
    """
    xp = namespace(low, scale)
    width = cell_high - cell_low
    share = scale / width
    with np.errstate(invalid="ignore"):  # a cell without an end
        ends = [end - side + 0 * scale for end in (high, low) for side in (cell_low, cell_high)]
    reach = xp.stack(xp.broadcast_arrays(*ends))
    z = xp.clip(reach / scale, -60.0, 60.0)
    phi, below = density(z), ndtr(-xp.abs(z))
    # R(z) is max(z, 0) and a rest; the former over w/s is taken from the distances, whose quotient with s may overflow.
    with np.errstate(invalid="ignore"):
        straight = xp.where(reach > 0, reach / width, xp.zeros_like(reach))
    rests = share * (phi - xp.abs(z) * below)
    stay, slope, bend = (part[0] - part[1] - part[2] + part[3] for part in (rests + straight, -phi, -phi * (1 + z * z)))
    averaged = Change(xp.clip(1 - stay, 0.0, 1.0), share * slope, share * bend)
    known = change_at_place(low, high, scale)
    # Far wider noise makes the place irrelevant, and the ramps cancel; a cell without an end has no average. Against
    # quadrature the place's middle is off by at most 0.09/share², the ramps by a few times share·eps: 9e-8 and 3e-13 at
    # 1e3 in float64, 1e-4 and 1e-5 at 30 in float32.
    smooth = (share > (1e3 if real(xp) == np.float64 else 30.0)) | ~xp.isfinite(width)
    return Change(*(xp.where(smooth, one, other) for one, other in zip(known, averaged, strict=True)))
