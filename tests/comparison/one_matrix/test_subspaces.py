"""Leading subspaces of updates against float64 NumPy, down to directions that float32 products cannot tell."""

import numpy as np
import pytest

from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.one_matrix.subspaces import right_subspace, similarity

K = 3


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize("weak", [0.5, 3e-3, 1e-4, 1e-5])
def test_directions_far_below_the_first_are_found(shape, weak):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, 6)))[0] for side in shape)
    update = (left * [1.0, 0.9, weak, weak / 2, weak / 4, weak / 8] @ right.T).astype(np.float32)
    truth = np.linalg.svd(update.astype(np.float64))[2][:K].T
    found = right_subspace(Matrix(update), K)
    assert found is not None and similarity(found, truth) == pytest.approx(1, abs=2e-7)


def test_an_update_of_too_few_directions_has_none():
    assert right_subspace(Matrix(np.outer(np.arange(1, 9), np.arange(1, 7)).astype(np.float32)), K) is None
    assert right_subspace(Matrix(np.zeros((8, 6), np.float32)), K) is None
