"""Calibration of every z that is made of singular values, subspaces and paths, over draws from its own null.

    python experiments/calibration_spectral.py [--draws 100] [--shapes 24x16 64x48 300x200] [--only compare]

W0 is Gaussian (0.02) on the bfloat16 grid. Updates are isotropic noise of a given relative norm, stored in float32 or
rounded to bfloat16 with the weights; runs are random walks of four such increments; pairs of runs are two independent
updates. Every z comes from the engine of `compare`, `trajectory` and `between`, which estimates all parameters of a
null from the draw itself. Printed per shape, storage and relative norm: mean and deviation of each z over the draws,
and the share beyond 3.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from jaxgeom.comparison.one_matrix.along_run import MatrixTrajectory
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache
from jaxgeom.comparison.one_matrix.pair import MatrixMeasurement
from jaxgeom.comparison.one_matrix.two_runs import measure_pair
from jaxgeom.comparison.settings import CompareSettings

BF16 = ml_dtypes.bfloat16
SIGMA = 0.02
KEYS = {
    "compare": (
        "stable_rank", "stable_rank_bf16", "entropy_rank", "participation_ratio", "hill", "energy_top_6", "nss",
        "nss_bf16", "nss_without_decay", "angle_left_mean_deg", "angle_left_max_deg", "angle_right_mean_deg",
        "angle_right_max_deg", "projection_joint", "projection_left", "projection_right", "projection_joint_20pct",
        "projection_left_20pct", "projection_right_20pct",
    ),
    "trajectory": (
        "stable_rank", "hill", "sim_to_final", "sim_disjoint", "drift_ratio", "path_cosine", "cosine_to_rest",
    ),
    "between": ("orthogonal_share", "subspace_similarity"),
}  # fmt: skip
"""Statistics by the command that reports them."""


def weights(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """W0 in bfloat16."""
    return (rng.standard_normal(shape) * SIGMA).astype(BF16)


def moved(start: np.ndarray, relative: float, rng: np.random.Generator) -> np.ndarray:
    """float32 weights after one isotropic update."""
    return start.astype(np.float32) + rng.standard_normal(start.shape, np.float32) * np.float32(SIGMA * relative)


def compare(
    shape: tuple[int, int], store: Callable[[np.ndarray], np.ndarray], relative: float, rng: np.random.Generator
) -> dict[str, Any]:
    """The row of one matrix."""
    start = weights(shape, rng)
    settings = CompareSettings(angle_k=max(2, min(shape) // 3), subspace_k=6, mask_rank=4)
    name = str(rng.integers(1 << 60))  # the seed of the sampled nulls
    end = store(moved(start, relative, rng))
    return MatrixMeasurement(name, store(start.astype(np.float32)), end, settings, BaseCache(None), "").measure()


def trajectory(
    shape: tuple[int, int], store: Callable[[np.ndarray], np.ndarray], relative: float, rng: np.random.Generator
) -> dict[str, Any]:
    """The row of one matrix along a random walk."""
    path = [weights(shape, rng).astype(np.float32)]
    for size in (1, 2, 1.5, 1):
        path.append(moved(path[-1], size * relative, rng))
    stored = [store(one) for one in path]
    settings = CompareSettings(subspace_k=max(2, min(shape) // 8))
    return MatrixTrajectory(lambda index: stored[index + 1], len(path) - 1, settings).measure()


def between(
    shape: tuple[int, int], store: Callable[[np.ndarray], np.ndarray], relative: float, rng: np.random.Generator
) -> dict[str, Any]:
    """The row of one matrix of two independent runs."""
    start = weights(shape, rng)
    ends = [store(moved(start, relative, rng)) for _ in range(2)]
    settings = CompareSettings(subspace_k=max(2, min(shape) // 8))
    return measure_pair(store(start.astype(np.float32)), *ends, settings)


COMMANDS = {"compare": compare, "trajectory": trajectory, "between": between}
STORES = {"float32": lambda x: x.astype(np.float32), "bfloat16": lambda x: x.astype(BF16)}


def rows(
    only: list[str], shapes: list[tuple[int, int]], norms: list[float], draws: int
) -> Iterator[tuple[str, tuple[int, int], str, float, str, np.ndarray]]:
    """Command, shape, storage, relative norm, statistic and its z's that are defined."""
    for command in only:
        for shape in shapes:
            for storage, store in STORES.items():
                for relative in norms:
                    rng = np.random.default_rng([*shape, int(relative * 1e6)])
                    found = [COMMANDS[command](shape, store, relative, rng) for _ in range(draws)]
                    for key in KEYS[command]:
                        z = np.array([np.atleast_1d(row[f"{key}_z"]) for row in found], dtype=float)
                        yield command, shape, storage, relative, key, z[np.isfinite(z)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--shapes", nargs="+", default=["24x16", "64x48", "300x200"])
    parser.add_argument("--relative-norms", nargs="+", type=float, default=[1e-2, 1e-3])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    shapes = [(int(rows), int(columns)) for rows, columns in (shape.split("x") for shape in arguments.shapes)]
    print(
        f"{'statistic':24s} {'shape':>9s} {'stored':>8s} {'norm':>7s} {'n':>5s} {'mean':>6s} {'std':>5s} {'|z|>3':>6s}"
    )
    for _, shape, storage, relative, key, z in rows(arguments.only, shapes, arguments.relative_norms, arguments.draws):
        if z.size > 1:
            beyond = f"{100 * np.mean(np.abs(z) > 3):5.1f}%"
            line = f"{z.size:5d} {z.mean():6.2f} {z.std(ddof=1):5.2f} {beyond}"
            print(f"{key:24s} {shape[0]:4d}x{shape[1]:<4d} {storage:>8s} {relative:7.0e} {line}", flush=True)


if __name__ == "__main__":
    main()
