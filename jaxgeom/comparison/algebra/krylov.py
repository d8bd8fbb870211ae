"""Leading singular values and directions without a full spectrum, from a float32 Gram matrix."""

import numpy as np

from jaxgeom.comparison.algebra import lapack
from jaxgeom.comparison.algebra.matrix import Matrix

_SEED = 314159
"""Of the random start: fixed, so that a matrix has the same directions in every run."""

_ROOM = (1e-25, 1e35)
"""Range of squared column norms within which float32 holds a Gram matrix with all its digits."""

_LANCZOS_STEPS = 300
"""The most steps for one value. The error of a Ritz value falls as exp(−4·steps·√gap): 40 steps give 1e-7 where the
next value is 1 % below, 300 where it is 0.02 % below; nearer ones count as one value, whose error is that gap."""

_SPARE = 16
"""Columns of the block beyond those that are asked for: the last ones of a Krylov space are its worst. Halko,
Martinsson and Tropp (2011, doi:10.1137/090771806) take 5 to 10."""

_DIRECT_SIZE = 1536
"""Up to this size the tridiagonal form, which separates all directions, costs at most 1.4 times the Krylov space; at
twice the size 3 times: `experiments/benchmarks/algebra_thresholds.py`."""


def _unit_gram(matrix: Matrix) -> tuple[np.ndarray, float]:
    """The float32 Gram matrix `[short, short]` (upper triangle) over its largest entry, and that entry; 0 for zeros.

    Where squares of the entries leave the range of float32 it is summed in float64 first.
    """
    gram = matrix.gram(np.float32)
    peak = float(np.diagonal(gram).max())
    if not _ROOM[0] < peak < _ROOM[1]:
        gram = matrix.gram()
        peak = float(np.diagonal(gram).max())
    return (gram / gram.dtype.type(peak or 1)).astype(np.float32, copy=False), peak


def leading_square(matrix: Matrix, *, tolerance: float = 1e-7) -> float:
    """Largest squared singular value: Lanczos on the float32 Gram matrix, then a Rayleigh quotient of the matrix.

    Args:
        matrix: the matrix `[out, in]`.
        tolerance: relative error of the Ritz value at which the iteration stops, where the next one is 1 % below.
    """
    gram, peak = _unit_gram(matrix)
    return _leading_square(matrix, gram, peak, tolerance) if peak > 0 else 0.0


def _leading_square(matrix: Matrix, gram: np.ndarray, peak: float, tolerance: float) -> float:
    size = gram.shape[0]
    times = matrix.operator(gram)
    vector = np.random.default_rng(_SEED).standard_normal(size).astype(np.float32)
    vector /= np.linalg.norm(vector)
    steps = min(size, _LANCZOS_STEPS)
    basis = np.empty((steps, size), np.float32)
    diagonal, off = np.zeros(steps), np.zeros(steps)
    ritz = np.ones(1)
    count = 0
    for step in range(steps):
        basis[step] = vector
        image = times(vector)
        diagonal[step] = float(vector @ image)
        for _ in range(2):
            image -= basis[: step + 1].T @ (basis[: step + 1] @ image)
        off[step] = float(np.linalg.norm(image))
        count = step + 1
        if count % 8 == 0 or count == steps or off[step] < 1e-6:
            small = np.diag(diagonal[:count]) + np.diag(off[: count - 1], 1) + np.diag(off[: count - 1], -1)
            values, vectors = np.linalg.eigh(small)
            ritz = vectors[:, -1]
            # The error of a Ritz value is at most its residual squared over the gap above it, here taken to be 1 % or
            # more of the value; a step that is zero in float32 has found the whole space.
            if abs(off[step] * ritz[-1]) ** 2 < tolerance * values[-1] ** 2 * 1e-2 or off[step] < 1e-6:
                break
        vector = image / np.float32(off[step])
    top = basis[:count].T @ ritz[:count].astype(np.float32)
    if not _ROOM[0] < peak < _ROOM[1]:
        top = top.astype(np.float64)
    image = matrix.times_short(np.asfortranarray(top[:, None]))
    return _squares(image) / _squares(top)


def _squares(vector: np.ndarray) -> float:
    """Sum of squares in float64."""
    wide = vector.astype(np.float64)
    return float(np.vdot(wide, wide))


def leading_and_fourth(matrix: Matrix, *, tolerance: float = 1e-7) -> tuple[float, float]:
    """Largest squared singular value and Σσ⁴, from one float32 Gram matrix; `tolerance` as in `leading_square`."""
    gram, peak = _unit_gram(matrix)
    if peak == 0:
        return 0.0, 0.0
    diagonal, flat = np.diagonal(gram), gram.reshape(-1, order="F")  # a view: the product of entries needs no order
    fourth = 2 * float(flat @ flat) - float(diagonal @ diagonal)
    return _leading_square(matrix, gram, peak, tolerance), fourth * peak * peak


def leading_directions(matrix: Matrix, count: int, *, passes: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading singular triplets of the float32 Gram matrix, in float64.

    Small ones by their tridiagonal form. Larger ones by block Krylov iteration: the Rayleigh quotient in the space over
    a random block of `count + _SPARE` columns and `passes` powers; directions whose values lie close together at the
    cut are not separated fully there.

    Args:
        matrix: the matrix `[out, in]`.
        count: how many, k.
        passes: powers of the Gram matrix that span the Krylov space.

    Returns:
        vectors of the short side `[short, k]`, those of the long side `[long, k]`, and the values, descending `[k]`.
    """
    size = matrix.short
    width = min(size, count + _SPARE)
    gram, _ = _unit_gram(matrix)
    if size <= _DIRECT_SIZE or width * passes >= size:
        diagonal, off, tau = lapack.tridiagonalize(gram)
        _, vectors = lapack.tridiagonal_few_vectors(diagonal.astype(np.float64), off.astype(np.float64), count)
        space = lapack.back_transform(gram, tau, vectors[:, ::-1])
    else:
        times, rng = matrix.operator(gram), np.random.default_rng(_SEED)
        block = np.linalg.qr(rng.standard_normal((size, width), np.float32))[0]
        blocks = []
        for _ in range(passes):
            block = np.linalg.qr(times(block))[0]
            blocks.append(block)
        krylov = np.linalg.qr(np.concatenate(blocks, 1))[0]
        reduced = krylov.T @ times(krylov)
        values, vectors = np.linalg.eigh((reduced + reduced.T) / np.float32(2))
        space = np.asfortranarray(krylov @ vectors[:, ::-1][:, :count])
    image = matrix.times_short(np.asfortranarray(space.astype(np.float32)))
    lengths = np.linalg.norm(image.astype(np.float64), axis=0)
    long = image / np.maximum(lengths, 1e-300)
    return space.astype(np.float64), long.astype(np.float64), lengths
