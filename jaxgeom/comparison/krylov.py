"""Leading singular values and directions without a full spectrum, from a float32 Gram matrix."""

import numpy as np

from jaxgeom.comparison import lapack
from jaxgeom.comparison.spectrum import Matrix

_SEED = 314159
_DIRECT_SIZE = 1536
"""Up to this size a tridiagonal form costs less than the Krylov space, and separates all directions."""


def leading_square(matrix: Matrix, gram: np.ndarray | None = None, *, tolerance: float = 1e-7) -> float:
    """Largest squared singular value: Lanczos on the float32 Gram matrix, then a Rayleigh quotient in float64.

    Args:
        matrix: the matrix.
        gram: its float32 Gram matrix (upper triangle) where the caller has it.
        tolerance: relative residual of the Ritz value at which the iteration stops.
    """
    gram = matrix.gram(np.float32) if gram is None else gram
    size = gram.shape[0]
    peak = float(np.abs(np.diagonal(gram)).max())
    if peak == 0:
        return _small_square(matrix)
    times = matrix.operator(gram / np.float32(peak))
    vector = np.random.default_rng(_SEED).standard_normal(size).astype(np.float32)
    vector /= np.linalg.norm(vector)
    steps = min(size, 300)
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
            if abs(off[step] * ritz[-1]) ** 2 < tolerance * values[-1] ** 2 * 1e-2 or off[step] < 1e-6:
                break
        vector = image / np.float32(off[step])
    top = (basis[:count].T @ ritz[:count].astype(np.float32)).astype(np.float64)[:, None]
    top /= np.linalg.norm(top)
    image = matrix.times_short(np.asfortranarray(top))
    return float(np.vdot(image, image))


def leading_and_fourth(matrix: Matrix) -> tuple[float, float]:
    """Largest squared singular value and Σσ⁴, from one float32 Gram matrix."""
    gram = matrix.gram(np.float32)
    diagonal, flat = np.diagonal(gram), gram.reshape(-1, order="F")  # a view: the product of entries needs no order
    return leading_square(matrix, gram), 2 * float(flat @ flat) - float(diagonal @ diagonal)


def _small_square(matrix: Matrix) -> float:
    """The same for entries whose squares vanish in float32."""
    return float(max(matrix.eigenvalues()[-1], 0.0))


def leading_directions(matrix: Matrix, count: int, *, passes: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading singular triplets of the float32 Gram matrix: short-side vectors, long-side vectors, values (float64).

    Small ones by their tridiagonal form. Larger ones by block Krylov iteration: the Rayleigh quotient in the space over
    a random block of `count + 16` columns and `passes` powers; directions whose values lie close together at the cut
    are not separated fully there.
    """
    size = matrix.short
    width = min(size, count + 16)
    gram = matrix.gram(np.float32)
    peak = np.float32(max(float(np.abs(np.diagonal(gram)).max()), 1e-30))
    gram = gram / peak
    if size <= _DIRECT_SIZE or width * passes >= size:
        diagonal, off, tau = lapack.tridiagonalize(gram)
        _, vectors = lapack.tridiagonal_top_vectors(diagonal.astype(np.float64), off.astype(np.float64), count)
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
    lengths = np.linalg.norm(image, axis=0).astype(np.float64)
    long = image / np.maximum(lengths, 1e-300)
    return space.astype(np.float64), long.astype(np.float64), lengths
