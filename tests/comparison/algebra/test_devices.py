"""The algebra on devices (XLA's CPU devices here) against float64 NumPy and against the host."""

import json

import jax
import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, Report, between_runs, compare_checkpoints, trajectory_checkpoints
from jaxgeom.comparison.algebra.devices import HOST, Algebra, DevicePool, choose_algebra
from jaxgeom.comparison.algebra.integer_matrix import IntegerMatrix
from jaxgeom.comparison.algebra.krylov import leading_directions, leading_square
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.algebra.spectrum import decompose, exact_values, values_only
from jaxgeom.comparison.one_matrix.masks import reconstruction_mask
from jaxgeom.comparison.one_matrix.rotation import angles_from_bases
from jaxgeom.errors import UserError
from tests.comparison import disk
from tests.comparison.test_compare import EXACT, SPECTRAL, _updates, check_row

ARITHMETICS = ("float64", "integer")
SETTINGS = CompareSettings(angle_k=8, mask_rank=5, hill_k=6)
VALUES = 1e-11
"""Bound on singular values, relative to the largest."""


def algebra(arithmetic: str, devices: int = 1) -> Algebra:
    return Algebra(arithmetic, tuple(jax.devices()[:devices]))


def form(arithmetic: str):
    return algebra(arithmetic).on(jax.devices()[3])


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("shape", [(60, 30), (30, 60), (1, 7)])
def test_algebra_equals_numpy(arithmetic, shape):
    rng = np.random.default_rng(0)
    a = rng.standard_normal(shape).astype(np.float32)
    b = a * np.float32(0.999) + np.float32(1e-5) * rng.standard_normal(shape).astype(np.float32)
    for arguments in ((a,), (b, a, 0.999)):
        matrix, dense = form(arithmetic)(*arguments), Matrix(*arguments).dense()
        u, s, vt = np.linalg.svd(dense, full_matrices=False)
        k = max(1, s.size // 3)
        spectrum = decompose(matrix, k, long=True)
        np.testing.assert_allclose(spectrum.values, s, atol=VALUES * s[0])
        left, right = (spectrum.short, spectrum.long) if matrix.is_wide else (spectrum.long, spectrum.short)
        np.testing.assert_allclose(
            (left * spectrum.values[:k]) @ right.T, (u[:, :k] * s[:k]) @ vt[:k], atol=1e-9 * s[0]
        )
        np.testing.assert_allclose(values_only(matrix).values, s, atol=VALUES * s[0])
        np.testing.assert_allclose(exact_values(matrix).values, s, atol=1e-13 * s[0])
        oriented = dense.T if matrix.is_wide else dense
        gram = matrix.gram()
        np.testing.assert_allclose(gram, np.triu(oriented.T @ oriented), atol=1e-14 * s[0] ** 2)
        assert matrix.gram(np.float32).dtype == np.float32
        for dtype, bound in ((np.float64, 1e-14), (np.float32, 1e-6)):
            short, long = (rng.standard_normal((size, 2)).astype(dtype) for size in (matrix.short, matrix.long))
            for product, truth in (
                (matrix.times_short(short), oriented @ short),
                (matrix.times_long(long), oriented.T @ long),
            ):
                assert product.dtype == dtype
                np.testing.assert_allclose(product, truth, atol=bound * s[0] * np.sqrt(matrix.long))
        assert leading_square(matrix) == pytest.approx(s[0] ** 2, rel=1e-6)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_block_krylov_agrees_with_svd(arithmetic):
    rng = np.random.default_rng(2)
    w = (rng.standard_normal((160, 140)) * np.linspace(0.2, 3, 140)).astype(np.float32)
    s, vt = np.linalg.svd(w.astype(np.float64))[1:]
    short, _, values = leading_directions(form(arithmetic)(w), 4)
    np.testing.assert_allclose(values, s[:4], rtol=1e-4)
    assert np.linalg.norm(short.T @ vt[:4].T) ** 2 / 4 > 0.999


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_spectrum_below_the_gram_matrixs_reach_takes_the_bidiagonal_route(arithmetic):
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((40, 40)))[0] for _ in range(2))
    matrix = form(arithmetic)(((u * np.logspace(0, -7, 40)) @ v).astype(np.float32))
    spectrum = decompose(matrix, 30, long=True)
    truth = np.linalg.svd(matrix.dense(), compute_uv=False)
    assert spectrum.is_exact
    np.testing.assert_allclose(spectrum.values, truth, atol=1e-14)
    assert np.linalg.norm(values_only(matrix).values - truth) <= 3 * values_only(matrix).error


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_tiny_rotations_keep_their_digits(arithmetic):
    rng = np.random.default_rng(5)
    q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    turn, angle = np.eye(40), np.radians(1e-4)
    turn[np.ix_([2, 30], [2, 30])] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    multiply = form(arithmetic)(np.eye(2, dtype=np.float32)).multiply
    angles = np.degrees(angles_from_bases(q[:, :8], (q @ turn)[:, :8], product=multiply))
    assert angles[-1] == pytest.approx(1e-4, rel=1e-6) and angles[:-1].max() < 1e-9


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("shape", [(150, 90), (90, 150)])
def test_principal_masks_equal_the_hosts_entry_for_entry(arithmetic, shape):
    w = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
    masks = []
    for make in (Matrix, form(arithmetic)):
        matrix = make(w)
        found = decompose(matrix, 12, long=True)
        left, right = (found.short, found.long) if matrix.is_wide else (found.long, found.short)
        masks.append(reconstruction_mask(left * found.values[:12], right, round(0.3 * w.size)))
    np.testing.assert_array_equal(masks[0], masks[1])


def test_integer_products_are_exact_and_blocks_change_no_bit(monkeypatch):
    rng = np.random.default_rng(8)
    w = rng.integers(-9, 10, (70, 50)).astype(np.float32)
    device = jax.devices()[0]
    whole = IntegerMatrix(w, device=device).gram()
    np.testing.assert_array_equal(whole, np.triu(w.astype(np.float64).T @ w))
    w = rng.standard_normal((70, 50)).astype(np.float32)
    once = IntegerMatrix(w, device=device).gram()
    monkeypatch.setattr("jaxgeom.comparison.algebra.integer_matrix._INNER", 64)
    np.testing.assert_allclose(IntegerMatrix(w, device=device).gram(), once, rtol=0, atol=1e-15 * once.max())
    # The rows in another order are the same integers in another order of summation.
    shuffled = IntegerMatrix(w[rng.permutation(64)], device=device).gram()
    np.testing.assert_array_equal(shuffled, IntegerMatrix(w[:64], device=device).gram())


@pytest.mark.parametrize("peak", [1e-30, 1e30])
def test_integer_products_of_extreme_scales(peak):
    w = (np.random.default_rng(0).standard_normal((9, 6)) * peak).astype(np.float32)
    truth = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    matrix = form("integer")(w)
    np.testing.assert_allclose(values_only(matrix).values, truth, rtol=1e-11)
    assert not form("integer")(np.zeros((4, 3), np.float32)).gram().any()


def _disk_pair(tmp_path, initial, final):
    return [open_checkpoint(disk.write(tmp_path / name, side)) for name, side in (("a", initial), ("b", final))]


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_special_updates_equal_the_float64_oracle_and_the_host(tmp_path, arithmetic):
    name = "model.layers.{}.mlp.gate_proj.weight"
    initial, final = {}, {}
    for index, (_, w0, w1) in enumerate(_updates((disk.HIDDEN, 56), np.random.default_rng(3))):
        initial[name.format(index)], final[name.format(index)] = w0.astype(np.float32), w1.astype(np.float32)
    rng = np.random.default_rng(4)
    w0 = rng.standard_normal((disk.HIDDEN, 56)) * 0.02
    initial[name.format(7)] = w0.astype(np.float32)
    final[name.format(7)] = (w0 + 3e-6 * rng.standard_normal(w0.shape)).astype(np.float32)
    pair = _disk_pair(tmp_path, initial, final)
    report = compare_checkpoints(*pair, SETTINGS, algebra=algebra(arithmetic))
    assert len(report.matrices) == 5
    for row in report.matrices:
        check_row(row, initial[row["name"]], final[row["name"]])
    _agree(compare_checkpoints(*pair, SETTINGS), report)


@pytest.mark.parametrize("suite", ["full", "fast"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_host_and_device_give_the_same_report(tmp_path, arithmetic, suite):
    initial = {name: w for name, w in disk.weights(layers=1).items() if "self_attn" in name or "norm" in name}
    pair = _disk_pair(tmp_path, initial, disk.moved(initial, 1e-3))
    settings = CompareSettings(suite=suite, angle_k=8, mask_rank=5, hill_k=6)
    _agree(
        compare_checkpoints(*pair, settings), compare_checkpoints(*pair, settings, algebra=algebra(arithmetic)), suite
    )


def _agree(host: Report, device: Report, suite: str = "full") -> None:
    """Every number of every row: counts equal, spectra within 1e-5, degrees within 1e-4."""
    assert "lapack" in host.settings["device_used"].lower() and "1e-5 relative" in device.settings["device_used"]
    assert host.coverage == device.coverage
    for one, other in zip(host.matrices, device.matrices, strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            if name in EXACT or not isinstance(value, float):
                assert other[name] == value or name == "angle_note", name
            elif name.endswith(("_excess", "_z")):
                continue  # differences of the others
            elif name.startswith("angle") and "deg" in name:
                assert other[name] == pytest.approx(value, rel=1e-6, abs=1e-4), name
            else:
                assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-12), name
    assert suite == "fast" or set(SPECTRAL) <= set(device.matrices[0])


@pytest.mark.parametrize("suite", ["full", "fast"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_trajectories_and_two_runs_are_measured_on_a_device_as_on_the_host(tmp_path, arithmetic, suite):
    initial = {name: w for name, w in disk.weights(layers=1).items() if "self_attn" in name or "norm" in name}
    start, middle = _disk_pair(tmp_path, initial, disk.moved(initial, 1e-3))
    end = open_checkpoint(disk.write(tmp_path / "c", disk.moved(initial, 2e-3, seed=7)))
    settings = CompareSettings(suite=suite, angle_k=8, subspace_k=4)
    found = []
    for where in (HOST, algebra(arithmetic, 3)):
        cache = tmp_path / f"cache {where.arithmetic}"
        steps = [(3, middle), (8, end)]
        run = trajectory_checkpoints(
            start, steps, settings, spectra=suite == "full", cache=cache if suite == "full" else None, algebra=where
        )
        pair = between_runs(start, middle, end, settings, algebra=where)
        assert run["settings"]["device_used"] == pair["settings"]["device_used"] == where.description
        found.append([run["matrices"], run["similarity"], pair["matrices"]])
    _close(*found)
    if suite == "full":  # each kind of arithmetic has its own entries in a cache
        assert not {file.name for file in (tmp_path / "cache lapack").iterdir()} & {
            file.name for file in (tmp_path / f"cache {arithmetic}").iterdir()
        }


def _close(host: object, device: object, key: str = "") -> None:
    """Every number within the stated bound: 1e-5 of spectra, 1e-4 degrees, and of leading directions 1e-4."""
    if isinstance(host, dict):
        assert isinstance(device, dict) and list(host) == list(device)
        for name, value in host.items():
            _close(value, device[name], name)
    elif isinstance(host, list):
        assert isinstance(device, list) and len(host) == len(device)
        for one, other in zip(host, device, strict=True):
            _close(one, other, key)
    elif isinstance(host, float) and not key.endswith(("_excess", "_z")):  # differences of the others
        directions = key.startswith(("sim", "subspace", "full", "disjoint"))
        assert device == pytest.approx(host, rel=1e-5, abs=1e-4 if directions or "deg" in key else 1e-12), key
    elif not isinstance(host, float):
        assert device == host, key


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_the_number_of_devices_changes_no_bit(tmp_path, arithmetic):
    initial = {name: w for name, w in disk.weights().items() if "_proj" in name and w.shape[0] != disk.INNER}
    pair = _disk_pair(tmp_path, initial, disk.moved(initial, 1e-3))
    one, all_of_them = (
        compare_checkpoints(*pair, SETTINGS, algebra=algebra(arithmetic, count), cache=tmp_path / f"cache{count}")
        for count in (1, 8)
    )
    assert json.dumps(one.to_json()) == json.dumps(all_of_them.to_json())
    compare_checkpoints(*pair, SETTINGS, cache=tmp_path / "cache8")
    assert len(list((tmp_path / "cache8").iterdir())) == 2 * len(initial)


def test_matrices_go_to_the_device_with_the_least_to_do():
    pool = DevicePool(algebra("integer", 3))
    w = np.eye(3, dtype=np.float32)
    with pool.borrow() as first, pool.borrow() as second:
        with pool.borrow() as third:
            assert {make(w).device for make in (first, second, third)} == set(jax.devices()[:3])
        with pool.borrow() as again:
            assert again(w).device == third(w).device
    with DevicePool(HOST).borrow() as make:
        assert make is Matrix


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_a_device_that_is_not_there_is_a_clear_line(tmp_path, device):
    initial = disk.weights()
    pair = _disk_pair(tmp_path, initial, initial)
    with pytest.raises(UserError, match=f"device = '{device}': JAX sees no {device} here \\(it sees cpu\\)"):
        compare_checkpoints(*pair, CompareSettings(device=device), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=f"JAX sees no {device} here"):
        trajectory_checkpoints(pair[0], [(1, pair[1])], CompareSettings(device=device), out=tmp_path / "out")
    with pytest.raises(UserError, match=f"JAX sees no {device} here"):
        between_runs(pair[0], pair[1], pair[1], CompareSettings(device=device), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_choice_of_the_algebra():
    assert choose_algebra("cpu") is HOST and choose_algebra("auto") is HOST and HOST.key == ""
    assert algebra("float64").key != algebra("integer").key
    with pytest.raises(ValueError, match="does not go with"):
        Algebra("float64")
