"""What the thresholds of `jaxgeom/comparison/algebra/` rest on: errors and ratios of the routes on either side of them.

    python experiments/benchmarks/algebra_thresholds.py [--repeats 3]

1. Angle in degrees between leading directions by the Gram matrix and by a full SVD, over σ_k/σ₁. `decompose` takes the
   SVD below 1e-4.
2. Time of the tridiagonal form over that of the block Krylov space, over the size: `leading_directions` takes the
   former up to 1536.
3. Time of divide and conquer over that of relatively robust representations, over the share of the vectors that are
   wanted: `tridiagonal_top_vectors` takes the former from a sixth on.

Both sides of a ratio are run in turn in one process; the least of the repeats counts.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from jaxgeom.comparison.algebra import krylov, lapack
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.algebra.threads import one_blas_thread

VECTORS = 16


def ratio(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least seconds of the first, and over those of the second."""
    least = [np.inf, np.inf]
    for _ in range(repeats):
        for place, call in enumerate((first, second)):
            start = time.perf_counter()
            call()
            least[place] = min(least[place], time.perf_counter() - start)
    return least[0], least[0] / least[1]


def gram_directions() -> None:
    print("share of σ₁ | angle between leading directions by the Gram matrix and by SVD, degrees (gap 5 % of σ_k)")
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, 200)))[0] for size in (300, 200))
    for share in (1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6):
        values = np.concatenate([np.geomspace(1, share, VECTORS), share * np.geomspace(0.95, 0.5, 200 - VECTORS)])
        matrix = Matrix(((left * values) @ right.T).astype(np.float32))
        _, found = matrix.eigenvectors(VECTORS)
        _, _, exact = matrix.svd()
        rest = found - exact[:VECTORS].T @ (exact[:VECTORS] @ found)
        print(f"{share:10.0e}  | {np.degrees(np.linalg.norm(rest, 2)):.1e}")


def directions(repeats: int) -> None:
    print("size  | tridiagonal form, s | over the Krylov space")
    rng, held = np.random.default_rng(0), krylov._DIRECT_SIZE
    for size in (512, 1024, 1536, 2048, 3072):
        matrix = Matrix(rng.standard_normal((size, size), np.float32))

        def by(largest: int, matrix: Matrix = matrix) -> None:
            krylov._DIRECT_SIZE = largest
            krylov.leading_directions(matrix, VECTORS)

        seconds, over = ratio(lambda: by(1 << 20), lambda: by(0), repeats)
        print(f"{size:5d} | {seconds:19.3f} | {over:.2f}")
    krylov._DIRECT_SIZE = held


def tridiagonal(repeats: int, size: int = 1024) -> None:
    print("share | divide and conquer, s | over relatively robust representations")
    matrix = Matrix(np.random.default_rng(0).standard_normal((size, size), np.float32))
    diagonal, off, _ = lapack.tridiagonalize(matrix.gram())
    for share in (1 / 24, 1 / 12, 1 / 6, 1 / 3, 1 / 2):
        count = int(share * size)
        routes = [
            lambda route=route: lapack._top_vectors(diagonal, off, count, divide=route)  # noqa: B023 (called at once)
            for route in (True, False)
        ]
        seconds, over = ratio(*routes, repeats)
        print(f"{share:.3f} | {seconds:21.3f} | {over:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with one_blas_thread():
        gram_directions()
        directions(repeats)
        tridiagonal(repeats)
