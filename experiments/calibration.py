"""Is every z a z? Draws from each null itself, their parameters estimated as a report estimates them.

    python experiments/calibration.py
    python experiments/calibration.py --families counted --draws 400 --shapes 24x16 64x48 --storage bf16 --sigma 0 2

Prints, per family, shape, storage and spread of the row and column scales, for every z of a report: over how many draws
it is defined, its mean and its standard deviation there, and the share of draws with |z| > 3. A null that holds has
mean 0, deviation 1 and |z| > 3 in at most one draw of a hundred.
"""

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxgeom.comparison import CompareSettings
from jaxgeom.comparison.one_matrix.along_run import MatrixTrajectory
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.entries import put_entries, put_overlaps
from jaxgeom.comparison.one_matrix.pair import MatrixMeasurement
from jaxgeom.comparison.one_matrix.scan import EntrySums, histogram_of, low_magnitude_mask, root_mean_square, widen
from jaxgeom.comparison.one_matrix.two_runs import measure_pair
from jaxgeom.comparison.one_matrix.update_nulls import put_update_nulls

BF16 = ml_dtypes.bfloat16
STORAGE = {
    "fp32": (np.float32, np.float32), "bf16": (BF16, BF16), "bf16-fp32": (BF16, np.float32),
    "fp16": (np.float16, np.float16), "fp32-bf16": (np.float32, BF16), "fp16-bf16": (np.float16, BF16),
    "fp32-fp16": (np.float32, np.float16), "bf16-fp16": (BF16, np.float16),
}  # fmt: skip
"""Dtypes of W0 and of W+."""

Row = dict[str, Any]
Draw = Callable[[np.random.Generator, tuple[int, int], str, float], Row]
"""Draws a pair from a null and gives its row of a report, of which the keys `_z` are looked at."""


def noisy(
    rng: np.random.Generator, shape: tuple[int, int], storage: str, sigma: float, scale: float = 2e-5
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian weights and their sum with Gaussian noise of log-normal row and column scales, stored.

    Args:
        rng: source of the draws.
        shape: (out, in).
        storage: key of `STORAGE`.
        sigma: spread of the logarithm of the scales.
        scale: their median.
    """
    before, after = STORAGE[storage]
    start = (0.02 * rng.standard_normal(shape)).astype(before)
    rows, columns = (np.exp(sigma * rng.standard_normal(side)) for side in ((shape[0], 1), (1, shape[1])))
    return start, (start.astype(np.float64) + scale * rows * columns * rng.standard_normal(shape)).astype(after)


def counted_row(start: np.ndarray, end: np.ndarray, *, further: bool, eta: float = 1e-3) -> Row:
    """What a report counts of a pair entry by entry; the principal mask is a quarter of the rows, the worst case.

    Args:
        start, end: W0 and W+ as stored `[out, in]`.
        further: with the nulls that keep something of the update.
        eta: relative tolerance of the unchanged test.
    """
    a, b = widen(start), widen(end)
    sums, changed = EntrySums(), np.empty(start.size, bool)
    sums.add(start, end, eta=eta, rms=root_mean_square([a]), changed_out=changed)
    row: Row = {}
    put_entries(row, sums, eta)
    rows = np.zeros(start.shape, bool)
    rows[: math.ceil(start.shape[0] / 4)] = True
    masks = {"overlap_low": low_magnitude_mask(start, sums, 0.3)}
    masks["overlap_principal"] = rows.reshape(-1), histogram_of(start, rows.reshape(-1))
    if not sums.changed:
        masks = {}
    put_overlaps(row, sums, masks, changed, eta)
    if further:
        flat = {name: mask for name, (mask, _) in masks.items()}
        put_update_nulls(row, start, a, b, totals=sums, masks=flat, eta=eta)
    return row


def isotropic(rng: np.random.Generator, shape: tuple[int, int], storage: str, sigma: float) -> Row:
    """Isotropic noise, stored: the rounding nulls. Scales are equal, whatever sigma says."""
    return counted_row(*noisy(rng, shape, storage, 0.0), further=False)


def profile(rng: np.random.Generator, shape: tuple[int, int], storage: str, sigma: float) -> Row:
    """Noise of unequal scales, stored: the scale-profile null."""
    row = counted_row(*noisy(rng, shape, storage, sigma), further=True)
    return {key: row[key] for key in row if "_profile" in key}


def permuted(rng: np.random.Generator, shape: tuple[int, int], storage: str, sigma: float) -> Row:
    """An update's own entries in random places: the permutation null. The places are stored in float32."""
    start, end = noisy(rng, shape, storage, sigma)
    delta = rng.permutation((widen(end) - widen(start)).reshape(-1)).reshape(shape)
    row = counted_row(start, widen(start) + delta, further=True)
    return {key: row[key] for key in row if "_permutation" in key}


def measured(rng: np.random.Generator, shape: tuple[int, int], storage: str, sigma: float, scale: float = 2e-5) -> Row:
    """Isotropic noise, stored: ranks, tail, shifts, angles and projections, the whole row."""
    settings = CompareSettings(angle_k=max(2, min(shape) // 3), subspace_k=6, mask_rank=4)
    name = str(rng.integers(1 << 60))  # the seed of the sampled nulls
    return MatrixMeasurement(name, *noisy(rng, shape, storage, 0.0, scale), settings, BaseCache(None), "").measure()


def between(rng: np.random.Generator, shape: tuple[int, int], storage: str, sigma: float, scale: float = 2e-5) -> Row:
    """Two independent isotropic updates of one origin: the rounding null of their masks, and what chance shares."""
    start, first = noisy(rng, shape, storage, 0.0, scale)
    second = (start.astype(np.float64) + 2.5 * scale * rng.standard_normal(shape)).astype(first.dtype)
    row = measure_pair(start, first, second, CompareSettings(subspace_k=3))
    return {key: row[key] for key in row if "_rounding" in key or key.startswith(("orthogonal", "subspace"))}


def laid_at_random(rng: np.random.Generator, shape: tuple[int, int], storage: str, sigma: float) -> Row:
    """Two masks laid at random: independence."""
    start = np.ones(shape, STORAGE[storage][0])
    ends = [(start.astype(np.float32) * np.where(rng.random(shape) < p, 2, 1)).astype(start.dtype) for p in (0.3, 0.5)]
    row = measure_pair(start, ends[0], ends[1], CompareSettings(subspace_k=3))
    return {key: row[key] for key in row if key.startswith(("jaccard", "overlap")) and "_rounding" not in key}


def walk(rng: np.random.Generator, shape: tuple[int, int], storage: str, sigma: float, scale: float = 3e-5) -> Row:
    """A random walk of which checkpoints are stored: the path and the subspaces along a run, a z for every step."""
    before, after = STORAGE[storage]
    start = (0.02 * rng.standard_normal(shape)).astype(before)
    weights, checkpoints = start.astype(np.float64), []
    for _ in range(3):
        weights = weights + scale * rng.standard_normal(shape)
        checkpoints.append(weights.astype(after))
    run = [*checkpoints, start]
    row = MatrixTrajectory(run.__getitem__, 3, CompareSettings(subspace_k=3, suite="fast")).measure()
    names = [f"{name}_z" for name in ("path_cosine", "cosine_to_rest", "drift_ratio", "sim_to_final", "sim_disjoint")]
    return {f"{name.removesuffix('_z')}_{step}_z": row[name][step] for name in names for step in range(3)}


FAMILIES: dict[str, tuple[Draw, ...]] = {
    "counted": (isotropic, profile, permuted),
    "measured": (measured,),
    "between": (between, laid_at_random),
    "walk": (walk,),
}


SCALED: tuple[Callable[..., Row], ...] = (measured, walk, between)
"""Draws that take the scale of the noise: how few entries rounding leaves of it matters to their nulls."""


def scores(draw: Draw, shape: tuple[int, int], storage: str, sigma: float, draws: int, seed: int) -> dict[str, Any]:
    """The z of every draw by key, `[draws]`, NaN where it is not defined."""
    rng = np.random.default_rng([seed, *shape, *storage.encode()])
    rows = [draw(rng, shape, storage, sigma) for _ in range(draws)]
    keys = [key for key in rows[0] if key.endswith("_z")]
    return {key: np.array([np.nan if row[key] is None else row[key] for row in rows], float) for key in keys}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--shapes", nargs="+", default=["24x16", "64x48", "300x200", "1024x512"])
    parser.add_argument("--storage", nargs="+", choices=STORAGE, default=["fp32", "bf16"])
    parser.add_argument("--sigma", nargs="+", type=float, default=[0.0, 0.5, 1.0, 2.0])
    parser.add_argument("--scales", nargs="+", type=float, default=[1e-6, 1e-5, 1e-4], help="noise on weights of 0.02")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    print(
        f"{'draws from':16}{'shape':>10}{'stored':>11}{'noise':>8}{'sigma':>6}  {'z':36}{'n':>5}{'mean':>7}{'std':>6}"
        f"{'|z|>3':>7}"
    )
    for family, shape, storage in itertools.product(chosen.families, chosen.shapes, chosen.storage):
        rows, columns = map(int, shape.split("x"))
        for draw in FAMILIES[family]:
            sigmas = chosen.sigma if draw in (profile, permuted) else [0.0]
            for scale, sigma in itertools.product(chosen.scales if draw in SCALED else [None], sigmas):
                drawn = draw if scale is None else functools.partial(draw, scale=scale)
                found = scores(drawn, (rows, columns), storage, sigma, chosen.draws, chosen.seed)
                for key, z in found.items():
                    z = z[np.isfinite(z)]
                    told = f"{z.mean():7.2f}{z.std():6.2f}{np.mean(np.abs(z) > 3):7.3f}" if z.size > 1 else ""
                    name = draw.__name__.replace("_", " ")
                    noise = "" if scale is None else f"{scale:g}"
                    print(
                        f"{name:16}{shape:>10}{storage:>11}{noise:>8}{sigma:6.1f}  {key:36}{z.size:5}{told}", flush=True
                    )


if __name__ == "__main__":
    main()
