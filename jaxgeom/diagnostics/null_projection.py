"""The null of projection energies: an update of independent entries in subspaces that know nothing of it."""

from typing import Any

from ._namespace import namespace
from .subspaces import ProjectionEnergy


def norm_matched_projection(
    shape: tuple[int, ...], *, k: int, kurtosis: Any = None
) -> tuple[ProjectionEnergy, ProjectionEnergy]:
    """Projection energies of an update of independent entries in uniformly random k-dimensional subspaces: exact.

    Means are `k²/(mn)`, `k/m`, `k/n`. The variances follow from the moments of a random projection P of R^m,
    `E P_ab P_cd = ((k/m)² − 2y/m)·δ_ab δ_cd + y·(δ_ac δ_bd + δ_ad δ_bc)`, `y = k(m − k)/(m(m − 1)(m + 2))`, and from
    `r = Σσ⁴/(Σσ²)²` of the update, expected at `κ/N + (1 − κ/N)(m + n − 2)/(N − 1)`, N = mn: `2y·(r − 1/m)` on the
    left. For normal entries each energy is a Beta variable of `a·N/2` and `(1 − a)·N/2`, a the share of entries inside.

    Args:
      shape: `[..., m, n]`.
      k: dimension of both subspaces.
      kurtosis: κ of the entries, `mn·Σδ⁴/(Σδ²)²`, one number or `[...]`; that of normal ones of a given norm,
        `3N/(N + 2)`, where it is None.

    Returns:
      Means and standard deviations, each as `ProjectionEnergy(joint, left, right)`: Python numbers, deviations in the
      namespace of the kurtosis.

    Reference:
      Collins and Śniady, *Integration with Respect to the Haar Measure on Unitary, Orthogonal and Symplectic Group*,
      2006.

    >>> mean, std = norm_matched_projection((20, 10), k=2)
    >>> [round(x, 3) for x in mean]
    [0.02, 0.1, 0.2]
    """
    m, n = (float(side) for side in shape[-2:])
    size = m * n
    share = 3 / (size + 2) if kurtosis is None else kurtosis / size
    xp, rest = namespace(share), max(size - 1, 1.0)
    beyond_rows, beyond_columns = (  # r − 1/m and r − 1/n
        (one - 1) / rest * ((other - 1) * share + (one - 1) / one) for one, other in ((m, n), (n, m))
    )
    rows, columns = (k * (side - k) / (side * (side - 1) * (side + 2)) if k < side else 0.0 for side in (m, n))  # y
    r, inside = beyond_rows + 1 / m, float(k) * k / size
    left, right = 2 * rows * beyond_rows, 2 * columns * beyond_columns
    turned = rows * (r * (1 - 2 / m - 2 / n) + 1 + 2 / size)
    joint = (k / n) ** 2 * left + 2 * columns * ((k / m) ** 2 * beyond_columns + turned)
    deviations = [xp.sqrt(variance) for variance in (joint, left, right)]
    if kurtosis is None:
        deviations = [float(deviation) for deviation in deviations]
    return ProjectionEnergy(min(1.0, inside), min(1.0, k / m), min(1.0, k / n)), ProjectionEnergy(*deviations)
