"""One matrix along a run: ranks, norms, leading subspaces and path, each with its null."""

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxgeom.comparison import lapack, shape_nulls
from jaxgeom.comparison.krylov import leading_directions, leading_square
from jaxgeom.comparison.matrix import hill
from jaxgeom.comparison.rounding import RoundingNull
from jaxgeom.comparison.scan import ElementTotals, bf16_view, widen
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.comparison.spectrum import Matrix, decompose
from jaxgeom.diagnostics.null_trajectory import similarity_curve

_curve_lock = threading.Lock()
_BLOCK = 1 << 18

STATISTICS = (
    "stable_rank", "stable_rank_bf16", "fro_norm", "relative_norm", "op_norm", "hill", "sim_to_final",
    "sim_to_final_bf16", "sim_disjoint", "sparsity_bf16", "drift_ratio", "path_cosine", "cosine_to_rest",
)  # fmt: skip
"""Statistics per step. `drift_ratio = ‖ΔW_t‖/√Σ‖increments‖²`: 1 in pure diffusion, √t in pure drift."""


@functools.lru_cache(maxsize=64)
def _curve(rows: int, columns: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    curve = similarity_curve(jax.random.key(seed), shape=(rows, columns), k=k, size_limit=256)
    return np.asarray(curve.decorrelation, np.float64), np.asarray(curve.mean, np.float64)


def random_walk_similarity(shape: tuple[int, int], k: int, seed: int, increments: np.ndarray) -> np.ndarray:
    """Sim_K between the cumulative updates of independent increments of the given norms, `[t, t]`.

    NaN before any moved.
    """
    with _curve_lock:
        decorrelation, mean = _curve(*shape, k, seed)
    energy = np.cumsum(np.square(increments))
    early, late = np.minimum.outer(energy, energy), np.maximum.outer(energy, energy)
    share = np.where(early > 0, early / np.where(late > 0, late, 1), np.nan)
    return np.interp(np.sqrt(np.clip(1 - share, 0, 1)), decorrelation, mean)


def similarity(first: np.ndarray | None, second: np.ndarray | None) -> float | None:
    """`‖V_K(s)ᵀ V_K(t)‖_F²/K`; None where one of the two updates has no such subspace."""
    if first is None or second is None:
        return None
    cosines = lapack.multiply(np.asfortranarray(first).T, np.asfortranarray(second))
    return float(np.vdot(cosines, cosines)) / first.shape[1]


def right_subspace(update: Matrix, k: int) -> np.ndarray | None:
    """Leading right singular vectors of an update by block Krylov iteration.

    None where it has fewer than k directions.
    """
    short, long, values = leading_directions(update, k, passes=8)
    if values[0] == 0 or values[-1] <= 1e-6 * values[0]:
        return None
    return long if update.is_wide else short


def inner(first: Matrix, second: Matrix) -> float:
    """`⟨A, B⟩` in float64."""
    total = 0.0
    for where in first.blocks():
        total += float(np.vdot(first.block(where), second.block(where)))
    return total


@dataclasses.dataclass(frozen=True)
class _Step:
    square: float
    totals: ElementTotals
    right: np.ndarray | None
    rest: np.ndarray | None
    right_bf16: np.ndarray | None


class MatrixTrajectory:
    """Measures one matrix at every step; holds W0, the final and two neighbouring checkpoints at a time.

    Args:
        read: reads the stored array of a step, −1 for the initial one.
        count: number of steps.
        settings: parameters; `subspace_k` is the K of the similarities.
    """

    def __init__(self, read: Callable[[int], np.ndarray], count: int, settings: CompareSettings) -> None:
        self.read, self.count, self.settings = read, count, settings

    def measure(self) -> dict[str, Any]:
        """Lists per statistic, `<name>_null` beside those that have one, and the two similarity matrices."""
        settings = self.settings
        origin = self.read(-1)
        last = self.read(self.count - 1)
        self.origin, self.last = origin, last
        self.a, self.z = widen(origin), widen(last)
        self.k = min(settings.subspace_k, max(1, min(origin.shape) - 1))
        self.row: dict[str, Any] = {name: [None] * self.count for name in STATISTICS}
        for name in STATISTICS:
            if name not in ("fro_norm", "relative_norm", "op_norm"):
                self.row[f"{name}_null"] = [None] * self.count
        self.final_square = inner(Matrix(self.z, self.a), Matrix(self.z, self.a))
        self.final_bf16 = None
        steps, increments = [], []
        before, older = self.a, None
        for index in range(self.count):
            stored = last if index == self.count - 1 else self.read(index)
            now = widen(stored)
            steps.append(self._step(index, stored, now))
            increment = Matrix(now, before)
            increments.append(math.sqrt(inner(increment, increment)))
            if older is not None and increments[-1] and increments[-2]:
                cosine = inner(Matrix(before, older), increment) / (increments[-1] * increments[-2])
                self._put("path_cosine", index - 1, cosine, 0.0)
            older, before = before, now
        self._path(steps, np.array(increments))
        self._similarities(steps, np.array(increments))
        self.row["subspace_k"] = self.k
        return self.row

    def _put(self, name: str, index: int, value: float | None, null: float | None = None) -> None:
        self.row[name][index] = value
        if null is not None and math.isfinite(null):
            self.row[f"{name}_null"][index] = null

    def _step(self, index: int, stored: np.ndarray, now: np.ndarray) -> _Step:
        totals = ElementTotals()
        rms = float(np.sqrt(np.vdot(self.a, self.a) / np.float32(self.a.size)))
        totals.add(self.origin, stored, eta=self.settings.eta, rms=rms)
        square = totals.delta_squares
        self._put("fro_norm", index, math.sqrt(square))
        if totals.initial_squares:
            self._put("relative_norm", index, math.sqrt(square / totals.initial_squares))
        on_grid = totals.is_rounded
        null = None
        if square:
            rounding = RoundingNull(totals.histogram, self.settings.eta, totals.on_grid)
            null = rounding.sparsity(rounding.scale_for_squares(square, stored_in_bf16=on_grid))[0]
        self._put("sparsity_bf16", index, 1 - totals.density, null)
        if square == 0:
            return _Step(0.0, totals, None, None, None)
        update = Matrix(now, self.a)
        right = self._update_statistics(index, update, square)
        right_bf16 = self._bf16(index, stored, totals, on_grid)
        rest = None
        if index < self.count - 1 and bool(np.any(self.z != now)):
            rest = right_subspace(Matrix(self.z, now), self.k)
        return _Step(square, totals, right, rest, right_bf16)

    def _update_statistics(self, index: int, update: Matrix, square: float) -> np.ndarray | None:
        shape = (self.origin.shape[0], self.origin.shape[1])
        rank_null = shape_nulls.stable_rank_null(*shape)[0]
        if self.settings.suite == "fast":
            top = leading_square(update)
            self._put("op_norm", index, math.sqrt(top))
            self._put("stable_rank", index, square / top, rank_null)
            return right_subspace(update, self.k)
        spectrum = decompose(update, self.k, long=update.is_wide)
        values, order = spectrum.values, self.settings.hill_order
        self._put("op_norm", index, float(values[0]))
        self._put("stable_rank", index, float(values @ values) / float(values[0]) ** 2, rank_null)
        tail = shape_nulls.spectral_null(*shape, lambda v, j: hill(v, j) or math.nan, order)[0]
        self._put("hill", index, hill(values, order(min(shape))), tail)
        if values[self.k - 1] <= 1e-6 * values[0]:
            return None
        return spectrum.long if update.is_wide else spectrum.short

    def _bf16(self, index: int, stored: np.ndarray, totals: ElementTotals, on_grid: bool) -> np.ndarray | None:
        """The view of a bfloat16 reader, beside the precision null.

        The final update's direction at this step's norm.
        """
        if on_grid:
            self.row["stable_rank_bf16"][index] = self.row["stable_rank"][index]
            return None
        if totals.bf16_delta_squares == 0:
            return None
        start = bf16_view(self.origin)
        update = Matrix(bf16_view(stored), start)
        self._put("stable_rank_bf16", index, totals.bf16_delta_squares / leading_square(update))
        if self.final_square:
            share = np.float32(math.sqrt(totals.delta_squares / self.final_square))
            fixed = Matrix(bf16_view(self.a + share * (self.z - self.a)), start)
            square = inner(fixed, fixed)
            if square:
                self._put(
                    "stable_rank_bf16", index, self.row["stable_rank_bf16"][index], square / leading_square(fixed)
                )
            if self.final_bf16 is None:
                self.final_bf16 = right_subspace(Matrix(bf16_view(self.z), start), self.k)
            null = similarity(right_subspace(fixed, self.k), self.final_bf16) if square else None
            self._put("sim_to_final_bf16", index, None, null)
        return right_subspace(update, self.k)

    def _path(self, steps: Sequence[_Step], increments: np.ndarray) -> None:
        walked = np.sqrt(np.cumsum(np.square(increments)))
        for index, step in enumerate(steps):
            if walked[index]:
                self._put("drift_ratio", index, math.sqrt(step.square) / float(walked[index]), 1.0)
        update, final = None, Matrix(self.z, self.a)
        for index, step in enumerate(steps[:-1]):
            if not step.square:
                continue
            now = widen(self.read(index))
            update, rest = Matrix(now, self.a), Matrix(self.z, now)
            rest_square = inner(rest, rest)
            if rest_square:
                cross = inner(update, final) - step.square
                self._put("cosine_to_rest", index, cross / math.sqrt(step.square * rest_square), 0.0)

    def _similarities(self, steps: Sequence[_Step], increments: np.ndarray) -> None:
        count, shape = self.count, self.origin.shape
        full, disjoint = [[None] * count for _ in range(count)], [[None] * count for _ in range(count)]
        null = random_walk_similarity((shape[0], shape[1]), self.k, self.settings.seed, increments)
        chance = min(1.0, self.k / shape[1])
        for s in range(count):
            for t in range(s, count):
                full[s][t] = full[t][s] = similarity(steps[s].right, steps[t].right)  # type: ignore[call-overload]
                disjoint[s][t] = similarity(steps[s].right, steps[t].rest)  # type: ignore[call-overload]
            self._put("sim_to_final", s, full[s][-1], float(null[s, -1]))
            self._put("sim_disjoint", s, disjoint[s][s], chance)
            if steps[s].right_bf16 is not None:
                self.row["sim_to_final_bf16"][s] = similarity(steps[s].right_bf16, self.final_bf16)
        self.row["similarity"] = {
            "full": full,
            "full_null": [[float(value) if math.isfinite(value) else None for value in line] for line in null],
            "disjoint": disjoint,
            "disjoint_null": [[chance if t >= s else None for t in range(count)] for s in range(count)],
        }
