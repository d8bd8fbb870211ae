"""Principal angles between the leading subspaces of W0 and W+ at float64 grade: which vectors they are taken from."""

import numpy as np

from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.algebra.spectrum import Spectrum
from jaxgeom.diagnostics.angles import angles_from_bases, angles_from_cosines

_TINY = 1e-5
"""Mean angle in radians below which it is taken from sines, of the bases themselves: cosines in float64 tell an angle θ
to about 1e-16/θ, here to a millionth of it."""

_WEAK = 1e-2
"""Share of σ₁ below which the long side's vectors are formed instead of dividing by σ_k: the Gram route holds the short
ones to about `eps·(σ₁/σ_k)²`, and the division costs a factor σ₁/σ_k more."""


def principal_angles(
    base: Spectrum, final: Spectrum, final_matrix: Matrix, pulled: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Angles of the short and of the long side (see `Matrix`), radians ascending `[k]` each.

    The long side needs no vectors of W+: with `W+ᵀU0 = V0Σ0 + ΔWᵀU0` its cosines are
    `U0ᵀU+ = (Σ0·V0ᵀV+ + (ΔWᵀU0)ᵀV+)·Σ+⁻¹`, all of it on the short side.

    Args:
        base: spectrum and vectors of W0.
        final: spectrum and short-side vectors of W+.
        final_matrix: W+, for the rotations so small that its own long vectors are formed; products run where it is.
        pulled: `ΔWᵀU0`, of a wide matrix `ΔW·V0`: `[short, ≥ k]`, good to single precision.
        k: dimension of the subspaces.
    """
    short0, short1 = base.short[:, :k], final.short[:, :k]
    product = final_matrix.multiply
    cosines = product(short0.T, short1)
    short = angles_from_cosines(cosines)
    if short.mean() < _TINY:
        short = angles_from_bases(short0, short1, product=product)
    if final.long.shape[1] >= k:
        return short, angles_from_bases(base.long[:, :k], final.long[:, :k], product=product)
    if min(base.values[k - 1] / base.values[0], final.values[k - 1] / final.values[0]) >= _WEAK:
        other = base.values[:k, None] * cosines + product(pulled[:, :k].T, short1)
        other /= final.values[:k]
        long = angles_from_cosines(other)
        # An error of eps·‖ΔWᵀU0‖/σ_k in the cosines moves an angle θ by that over θ.
        reach = float(np.sqrt(np.einsum("ij,ij->j", pulled[:, :k], pulled[:, :k]).max())) / final.values[k - 1]
        if long.mean() >= max(_TINY, reach):
            return short, long
    vectors = final_matrix.times_short(np.asfortranarray(short1)) / final.values[:k]
    return short, angles_from_bases(base.long[:, :k], vectors, product=product)
