"""Updates that share W0's rounding error, against sampling; and what is known of sides that are stored unlike."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxgeom as jg
from jaxgeom import diagnostics as jd
from jaxgeom.comparison.one_matrix.along_run import MatrixTrajectory
from jaxgeom.comparison.one_matrix.entries import put_entries
from jaxgeom.comparison.one_matrix.scan import EntrySums
from jaxgeom.comparison.one_matrix.two_runs import measure_pair
from jaxgeom.diagnostics.entry_numbers import isotropic_null
from jaxgeom.diagnostics.shared_rounding import shared_error

BF16 = ml_dtypes.bfloat16
DTYPES = {"fp32": np.float32, "bf16": BF16, "fp16": np.float16}
UNLIKE = [("fp32", "bf16"), ("fp16", "bf16"), ("fp32", "fp16"), ("bf16", "fp16")]
SPECS = {"w": jg.MatrixSpec((0,), (1,))}


def weights(dtype, shape=(40, 32), seed=0) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32).astype(dtype)


def moved(start: np.ndarray, dtype, scale: float, seed: int) -> np.ndarray:
    return (start.astype(np.float64) + scale * np.random.default_rng(seed).standard_normal(start.shape)).astype(dtype)


def test_two_errors_of_values_a_normal_distance_apart():
    rng = np.random.default_rng(0)
    place, apart = rng.uniform(-0.5, 0.5, 400_000), rng.standard_normal(400_000)
    for deviation in (0.0, 0.03, 0.15, 0.199, 0.201, 0.4):
        other = place + deviation * apart
        sampled = np.mean((np.round(place) - place) * (np.round(other) - other))
        assert shared_error(np.float64(deviation**2)) == pytest.approx(sampled, abs=4e-4)
    assert shared_error(np.float64(0.0)) == pytest.approx(1 / 12)
    np.testing.assert_allclose(shared_error(jnp.array([0.01, 0.3])), shared_error(np.array([0.01, 0.3])), rtol=1e-5)


def test_spacings_of_either_grid_around_weights_of_either_format():
    w = np.abs(weights(np.float32, (60, 50)).astype(np.float16)) + np.float16(1e-6)
    histogram = np.bincount(w.view(np.uint16).reshape(-1), minlength=1 << 15)
    for grid, dtype in (("float16", np.float16), ("bfloat16", BF16)):
        spacings, counts = jd.spacing_counts(histogram, "float16", grid)
        bits = np.sort(w.astype(dtype).reshape(-1)).view(np.uint16)
        above = (bits + np.uint16(1)).view(dtype).astype(np.float64) - bits.view(dtype).astype(np.float64)
        # A weight that rounds up to a power of two has the next spacing in the coarser grid.
        assert (counts * spacings).sum() == pytest.approx(above.sum(), rel=0.01 if grid == "bfloat16" else 1e-12)


@pytest.mark.parametrize("scale", [2e-6, 3e-5, 2e-4])
@pytest.mark.parametrize("after", ["bf16", "fp16"])
def test_a_walk_from_finer_weights_has_the_covariance_of_its_samples(after, scale):
    start, rng = weights(np.float32, (200, 160)).astype(np.float64), np.random.default_rng(1)
    start32, found = start.astype(np.float32), np.zeros((3, 3))
    norms, x = np.zeros((6, 3)), None
    for draw in range(6):
        x, path = start32.astype(np.float64), []
        for _ in range(3):
            x = x + scale * rng.standard_normal(x.shape)
            path.append(x.astype(np.float32).astype(DTYPES[after]).astype(np.float64))
        deltas = np.array([(one - start32).reshape(-1) for one in path])
        found += deltas @ deltas.T / 6
        norms[draw] = np.linalg.norm(np.diff(np.array([start32, *path]), axis=0).reshape(3, -1), axis=1)
    counts = jd.entry_counts(start32, start32)
    spacings = jd.spacing_counts(
        np.asarray(counts.histogram), "bfloat16", {"bf16": "bfloat16", "fp16": "float16"}[after]
    )
    expected = jd.walk_covariance(np.sqrt(np.mean(norms**2, 0)), *spacings, is_open=True)
    np.testing.assert_allclose(expected, found, rtol=0.02)


@pytest.mark.parametrize("after", ["bf16", "fp16"])
def test_two_runs_from_finer_weights_are_as_alike_as_their_rounding_makes_them(after):
    start, settings = weights(np.float32, (64, 48)), jg.CompareSettings(subspace_k=3)
    dtype, scale = {"bf16": (BF16, 2e-5), "fp16": (np.float16, 3e-6)}[after]
    ends = [[moved(start, dtype, scale, 2 * draw + run) for run in (1, 2)] for draw in range(12)]
    rows = [measure_pair(start, *pair, settings) for pair in ends]
    share, null = (np.mean([row[key] for row in rows]) for key in ("orthogonal_share", "orthogonal_share_null"))
    assert share < 0.97 and share == pytest.approx(null, abs=0.02)
    similarity, null = (np.mean([row[f"subspace_similarity{end}"] for row in rows]) for end in ("", "_null"))
    assert similarity == pytest.approx(null, abs=0.03)
    assert all(row["orthogonal_share_z"] is None and row["subspace_similarity_z"] is None for row in rows)
    assert all("share that error" in row["orthogonal_note"] for row in rows)


def test_two_runs_whose_noise_is_lost_in_the_rounding_have_no_null():
    start = weights(np.float32)
    row = measure_pair(start, *(moved(start, BF16, 1e-7, seed) for seed in (1, 2)), jg.CompareSettings(subspace_k=3))
    assert (
        row["orthogonal_share"] < 0.5 and row["orthogonal_share_null"] is None and "no null" in row["orthogonal_note"]
    )


def test_bfloat16_numbers_in_a_float16_file_walk_as_bfloat16_numbers():
    start = weights(np.float32)
    start = np.where(np.abs(start) < 2e-3, 2e-3, start).astype(BF16)
    run, x = [], start.astype(np.float32)
    for seed in range(1, 4):
        x = moved(x, np.float32, 3e-5, seed)
        run.append(x.astype(BF16))
    rows = []
    for dtype in (BF16, np.float16):
        stored = [one.astype(np.float32).astype(dtype) for one in (*run, start)]
        settings = jg.CompareSettings(subspace_k=3, suite="fast")
        rows.append(MatrixTrajectory(stored.__getitem__, 3, settings).measure())
    for key in ("path_cosine", "cosine_to_rest", "drift_ratio", "sim_to_final", "sim_disjoint"):
        for end in ("_null", "_z"):
            ours, theirs = (np.array(row[key + end], float) for row in rows)
            np.testing.assert_allclose(theirs, ours, rtol=1e-9)
    assert rows[0]["path_cosine_null"][1] < -0.1


def test_a_run_of_checkpoints_that_are_stored_unlike_has_no_null_and_says_so():
    start = weights(np.float32)
    run = [moved(start, BF16, 3e-5, 1), moved(start, np.float32, 5e-5, 2), start]
    row = MatrixTrajectory(run.__getitem__, 2, jg.CompareSettings(subspace_k=3, suite="fast")).measure()
    assert row["path_cosine"][0] is not None and row["path_cosine_null"][0] is None and row["path_cosine_z"][0] is None
    assert row["sim_to_final_null"] == [None, None] and "stored unlike" in row["path_note"]


def reported(before: str, after: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """A pair and its row of a report."""
    w0 = weights(DTYPES[before])
    w1 = moved(w0, DTYPES[after], 3e-5, 1)
    return w0, w1, jg.compare({"w": w0}, {"w": w1}, SPECS, jg.CompareSettings(mask_rank=4)).matrices[0]


@pytest.mark.parametrize("before, after", UNLIKE)
def test_what_a_report_has_of_sides_stored_unlike(before, after):
    """Means and deviations where their law is known, notes elsewhere."""
    row = reported(before, after)[-1]
    assert row["sparsity_bf16_z"] is None and row["decay_z"] is None and row["sparsity_bf16_profile_null"] is None
    assert (row["sparsity_bf16_null"] is not None) == ((before, after) == ("fp32", "bf16"))
    assert (row["overlap_low_z"] is not None) == (after == "bf16")
    assert "another grid" in row["sparsity_note"] and row["overlap_note"].startswith("no ")


@pytest.mark.parametrize(("scale", "told"), [(1e-6, False), (6e-6, False), (3e-5, True)])
def test_finer_weights_have_a_sparsity_null_only_where_the_noise_is_told_from_their_rounding(scale, told):
    """At scales that the rounding of W0's own places hides, what is left of ‖ΔW‖² is chance, of either sign."""
    found = []
    for seed in range(12):
        w0 = weights(np.float32, (64, 48))
        row: dict = {}
        sums = EntrySums()
        sums.add(w0, moved(w0, BF16, scale, seed), eta=1e-3, rms=0.02)
        put_entries(row, sums, 1e-3)
        assert row["sparsity_note"].startswith("no z" if told else "no null")
        assert ("hides its noise" in row["sparsity_note"]) != told and row["sparsity_bf16_z"] is None
        found.append((row["sparsity_bf16"], row["sparsity_bf16_null"]))
    if told:
        value, null = np.mean(found, 0)
        assert null == pytest.approx(value, abs=0.01)
    else:
        assert all(null is None for _, null in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after",
    UNLIKE,
)
def test_measure_has_the_numbers_of_sides_stored_unlike(before, after):
    w0, w1, row = reported(before, after)
    keys = [
        key for key in row if key.startswith(("sparsity_bf16", "density", "decay", "overlap")) and "note" not in key
    ]
    with jax.enable_x64(True):
        found = jax.jit(lambda a, b: jd.measure({"w": a}, {"w": b}, SPECS, statistics=keys, mask_rank=4))(w0, w1)
    for key in keys:
        np.testing.assert_allclose(float(found[key]["w"]), np.array(row[key], float), rtol=1e-9, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("before", DTYPES)
@pytest.mark.parametrize("after", DTYPES)
def test_an_update_of_zero_is_stored_alike(before, after):
    w0, sums = np.full((6, 4), 0.5, np.float32), EntrySums()
    sums.add(w0.astype(DTYPES[before]), w0.astype(DTYPES[after]), eta=1e-3, rms=0.5)
    null = isotropic_null(sums.counts, eta=1e-3).sparsity
    assert null.mean == 1 and null.std == 0
