import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxgeom import diagnostics as jd

from . import tolerances as tol
from .matrices import orthogonal


def sampled_walk(shape, norms, k, draws):
    rng = np.random.default_rng(3)
    total = np.zeros((len(norms), len(norms)))
    for _ in range(draws):
        steps = rng.standard_normal((len(norms), *shape)) * np.asarray(norms)[:, None, None]
        v = [np.linalg.svd(w, full_matrices=False)[2][:k].T for w in np.cumsum(steps, axis=0)]
        total += [[np.sum((a.T @ b) ** 2) / k for b in v] for a in v]
    return total / draws


@pytest.mark.parametrize("shape", [(48, 32), (24, 48)])
def test_random_walk_against_a_sampled_walk(shape):
    norms = [1.0, 2.0, 0.5, 1.0, 1.0]
    curve = jd.similarity_curve(shape, k=4, draws=16)
    null = jd.random_walk_similarity(curve, np.array(norms))
    np.testing.assert_allclose(null.mean, sampled_walk(shape, norms, 4, 40), atol=0.05)
    np.testing.assert_allclose(np.diag(null.mean), 1.0, rtol=1e-12)
    np.testing.assert_allclose(null.mean, null.mean.T)
    assert np.isnan(np.diag(null.std)).all() and (null.std[0, 1:] > 0).all()
    # A constant inside a jitted program, batched over matrices.
    traced = jax.jit(lambda n: jd.random_walk_similarity(curve, n))(jnp.asarray([norms, norms], jnp.float32))
    np.testing.assert_allclose(traced.mean[1], null.mean, rtol=1e-5)
    np.testing.assert_allclose(traced.std[0], null.std, rtol=1e-4)


def sampled_pairs(shape, k, decorrelation, draws):
    """Sim_K of pairs of Gaussian matrices `[draws, points]`."""
    rng, found = np.random.default_rng(1), []
    for _ in range(draws):
        first, second = rng.standard_normal((2, *shape))
        pairs = [first] + [np.sqrt(1 - d**2) * first + d * second for d in decorrelation]
        v = [np.linalg.svd(w, full_matrices=False)[2][:k].T for w in pairs]
        found.append([np.sum((v[0].T @ other) ** 2) / k for other in v[1:]])
    return np.array(found)


@pytest.mark.parametrize(
    ("shape", "k", "draws"),
    [((24, 16), 3, 200), ((16, 30), 4, 200), ((48, 48), 1, 120), ((12, 10), 9, 200), ((200, 100), 16, 16)],
)
def test_the_similarity_of_correlated_updates_against_sampled_pairs(shape, k, draws):
    decorrelation = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    values = sampled_pairs(shape, k, decorrelation, draws)
    std = values.std(0, ddof=1)
    mean = jd.expected_similarity(shape, decorrelation, k=k)
    assert np.all(np.abs(mean - values.mean(0)) < (tol.SIGMAS / np.sqrt(draws) + 0.1) * std), mean - values.mean(0)
    null = jd.similarity_at(jd.similarity_curve(shape, k=k), np.sqrt(1 - decorrelation**2))
    np.testing.assert_allclose(null.mean, mean, atol=2e-3)
    np.testing.assert_allclose(null.std[1:], std[1:], rtol=0.3 if draws > 100 else 0.6)


def test_the_similarity_of_large_shapes_has_the_deviation_of_small_ones():
    direct = jd.similarity_curve((96, 64), k=8, draws=24, size_limit=96)
    scaled = jd.similarity_curve((96, 64), k=8, draws=24, size_limit=60)
    np.testing.assert_array_equal(scaled.mean, direct.mean)
    inside = (direct.mean < 0.95) & (direct.mean > 0.2)
    np.testing.assert_allclose(scaled.std[inside], direct.std[inside], rtol=0.3)
    large = jd.similarity_curve((4096, 1024), k=16)
    assert large.mean[0] == 1 and large.mean[-1] == pytest.approx(16 / 1024)
    assert large.std[-1] == pytest.approx(jd.disjoint_similarity_std((4096, 1024), k=16))
    assert np.all(np.diff(large.mean) < 0) and np.all(large.std[1:] > 0)


def test_steps_before_anything_moved_are_undefined():
    curve = jd.SimilarityCurve(np.array([0.0, 1.0]), np.array([1.0, 0.1]), np.zeros(2))
    null = jd.random_walk_similarity(curve, np.array([0.0, 1.0, 1.0])).mean
    assert np.isnan(null[0]).all() and np.isfinite(null[1:, 1:]).all()


def test_disjoint_similarity_of_random_subspaces():
    values = [np.sum((orthogonal(20, 4, s).T @ orthogonal(20, 4, s + 1000)) ** 2) / 4 for s in range(600)]
    assert jd.disjoint_similarity((30, 20), k=4) == pytest.approx(np.mean(values), rel=0.03)
    assert jd.disjoint_similarity_std((30, 20), k=4) == pytest.approx(np.std(values), rel=0.12)
    assert jd.disjoint_similarity_std((30, 4), k=4) == 0.0


def test_the_deviation_of_the_walked_distance_is_that_of_sampled_walks():
    rng, norms = np.random.default_rng(0), np.array([1.0, 2.0, 1.5])
    steps = rng.standard_normal((4000, 3, 24)) * (norms / np.sqrt(24))[:, None]
    steps *= (norms / np.linalg.norm(steps, axis=-1))[..., None]
    ratio = np.linalg.norm(steps.cumsum(1), axis=-1) / np.sqrt(np.square(norms).cumsum())
    walked, std = jd.walked_distance(norms, jd.cosine_std((4, 6)))
    np.testing.assert_allclose(walked, np.sqrt(np.square(norms).cumsum()))
    assert np.isnan(std[0])
    np.testing.assert_allclose(std[1:], ratio.std(0)[1:], rtol=0.05)


def test_steps_of_independent_signs_have_standard_directions():
    """Entries of very unequal sizes in the same places: cosines spread by more than 1/√(mn), and the z's know."""
    rng, shape, count = np.random.default_rng(1), (12, 10), 4
    found = {"path_cosine_z": [], "cosine_to_rest_z": [], "drift_ratio_z": []}
    for _ in range(300):
        scale = np.exp(1.5 * rng.standard_normal(shape))
        steps = scale * rng.standard_normal((count, *shape))
        path = steps.cumsum(0)
        after = np.concatenate([steps[1:], np.full((1, *shape), np.nan)])
        rest = path[-1] - path

        def inner(a, b):
            return (a * b).sum((1, 2))

        numbers = jd.path_statistics(
            inner(path, path),
            np.sqrt(inner(steps, steps)),
            step_products=inner(steps, after),
            step_alignments=inner(steps**2, after**2),
            rest_products=inner(path, rest),
            rest_alignments=inner(path**2, rest**2),
            rest_squares=inner(rest, rest),
            shape=shape,
        )
        for key, values in found.items():
            values.append(numbers[key][1])
    for key, values in found.items():
        z = np.array(values)
        assert np.mean(np.abs(z) > 3) <= 0.01 and 0.8 < z.std() < 1.2 and abs(z.mean()) < 0.25, (key, z.mean(), z.std())


def test_the_orthogonal_share_has_a_normal_z():
    rng, shape = np.random.default_rng(2), (8, 9)
    z = []
    for _ in range(1000):
        scale = np.exp(0.5 * rng.standard_normal(shape))
        a, b = scale * rng.standard_normal((2, *shape))
        cross, squares = (a * b).sum(), ((a * a).sum(), (b * b).sum())
        share = 1 - cross**2 / squares[0] / squares[1]
        found = jd.orthogonal_statistics(share, cross, *squares, alignment=(a * a * b * b).sum(), shape=shape)
        z.append(found["orthogonal_share_z"])
        assert found["orthogonal_share_excess"] == share - found["orthogonal_share_null"]
    assert np.mean(np.abs(z) > 3) <= 0.01 and 0.9 < np.std(z) < 1.1 and abs(np.mean(z)) < 0.1
    parallel = jd.orthogonal_statistics(1e-9, 1.0, 1.0, 1.0, alignment=1e-4, shape=(100, 100))["orthogonal_share_z"]
    assert parallel == pytest.approx(-100, rel=1e-3)


def test_products_of_rounded_walks_equal_sampling():
    x, y = np.random.default_rng(3).standard_normal((2, 200_000))
    for a in (0.15, 0.28, 0.31, 1.0, 3.0):
        for c in (0.0, 0.05, 0.2, 1.0):
            products = np.round(a * x) * np.round(a * x + c * y)
            value = jd.rounded_product(np.array([a]), np.array([np.hypot(a, c)]))
            assert abs(value[0] - products.mean()) < tol.SIGMAS * products.std() / np.sqrt(x.size) + 1e-12, (a, c)


@pytest.mark.parametrize(("storage", "step"), [("bfloat16", 4e-5), ("float16", 5e-6)])
def test_checkpoints_rounded_to_16_bits_have_standard_directions(storage, step):
    """Increments below the spacing: stored ones turn against each other, and the nulls know by how much."""
    rng, shape, z = np.random.default_rng(4), (40, 30), []
    stored_as = np.float16 if storage == "float16" else ml_dtypes.bfloat16
    for _ in range(30):
        w0 = (rng.standard_normal(shape) * 0.02).astype(stored_as)
        w = w0.astype(np.float64)
        path = w + np.cumsum(step * rng.standard_normal((3, *shape)), axis=0)
        stored = np.stack([w, *(x.astype(stored_as).astype(np.float64) for x in path)])
        steps, total = np.diff(stored, axis=0), stored[1:] - w
        after, rest = np.concatenate([steps[1:], np.full((1, *shape), np.nan)]), stored[-1] - stored[1:]

        def inner(a, b):
            return (a * b).sum((1, 2))

        histogram = np.bincount(w0.view(np.uint16).ravel() & 0x7FFF, minlength=1 << 15)
        norms = np.sqrt(inner(steps, steps))
        covariance = jd.walk_covariance(norms, *jd.spacing_counts(histogram, storage))
        assert covariance[0, 0] == pytest.approx(norms[0] ** 2, rel=1e-9)
        found = jd.path_statistics(
            inner(total, total), norms, step_products=inner(steps, after), step_alignments=inner(steps**2, after**2),
            rest_products=inner(total, rest), rest_alignments=inner(total**2, rest**2),
            rest_squares=inner(rest, rest), covariance=covariance, shape=shape,
        )  # fmt: skip
        assert found["path_cosine_null"][0] < -0.1
        z.append([found["path_cosine_z"][0], found["cosine_to_rest_z"][1], found["drift_ratio_z"][1]])
    z = np.array(z)
    assert np.mean(np.abs(z) > 3) <= 0.01
    assert np.all(np.abs(z.mean(0)) < 0.5) and np.all((z.std(0) > 0.7) & (z.std(0) < 1.3)), (z.mean(0), z.std(0))
