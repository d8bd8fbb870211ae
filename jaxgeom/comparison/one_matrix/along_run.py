"""One matrix along a run: ranks, norms, leading subspaces and path, each with its null."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxgeom.checkpoints.tensors import array_digest
from jaxgeom.comparison.algebra.krylov import leading_square
from jaxgeom.comparison.algebra.matrix import Matrix, MatrixMaker
from jaxgeom.comparison.algebra.spectrum import decompose, exact_values
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache, HeldBase
from jaxgeom.comparison.one_matrix.pair import MatrixMeasurement
from jaxgeom.comparison.one_matrix.rows import Null, Row, put, put_numbers
from jaxgeom.comparison.one_matrix.scan import EntrySums, bf16_view, widen
from jaxgeom.comparison.one_matrix.subspaces import inner, inner_and_alignment, right_subspace, similarity
from jaxgeom.comparison.one_matrix.update_ranks import order_is_resolved, put_rank_note
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.entry_numbers import entry_statistics
from jaxgeom.diagnostics.null_isotropic import Carried
from jaxgeom.diagnostics.null_similarity import similarity_curve
from jaxgeom.diagnostics.null_trajectory import carried_directions, random_walk_similarity
from jaxgeom.diagnostics.path_numbers import few_left, path_statistics, rate_statistics
from jaxgeom.diagnostics.precision import along_update
from jaxgeom.diagnostics.shared_rounding import grid_of_run, spacing_counts
from jaxgeom.diagnostics.similarity_numbers import disjoint_walk_similarity, similarity_statistics
from jaxgeom.diagnostics.spectral_numbers import capped_rank
from jaxgeom.diagnostics.stored_walk import walk_covariance
from jaxgeom.diagnostics.subspaces import has_directions
from jaxgeom.diagnostics.update_numbers import (  # fmt: skip
    hill_statistics,
    kurtosis_from_sums,
    stable_rank_of_sums,
    stable_rank_statistics,
)

STATISTICS = (
    "stable_rank", "stable_rank_bf16", "fro_norm", "relative_norm", "op_norm", "hill", "sim_to_final",
    "sim_to_final_bf16", "sim_disjoint", "sparsity_bf16", "drift_ratio", "path_cosine", "cosine_to_rest",
)  # fmt: skip
"""Statistics per step. `drift_ratio = ‖ΔW_t‖/√Σ‖increments‖²`: 1 in pure diffusion, √t in pure drift."""

RATE_STATISTICS = ("lr_diffusion_ratio", "lr_drift_ratio")
"""`‖ΔW‖_rms/√Σlr²` and `‖ΔW‖_rms/Σlr`: about 1 in pure diffusion and in pure drift, where steps have size lr."""

SPECTRAL_STATISTICS = ("nss", "angle_left_mean_deg", "angle_right_mean_deg")
"""W_t against W0, at the price of one decomposition per step."""

ENTRY_KEYS = ("fro_norm", "relative_norm", *(f"sparsity_bf16{end}" for end in ("", "_null", "_excess", "_z")))
"""What a trajectory takes of the statistics that are counted entry by entry."""

UNLIKE = "no null: what rounding does to a walk between checkpoints that are stored unlike is not known"

FEW = "few entries carry an update, and its directions lean towards their columns"
LEFT_FEW = "rounding leaves few entries of a stretch"

_WITHOUT_NULL = ("fro_norm", "relative_norm", "op_norm")


@dataclasses.dataclass(frozen=True)
class _Step:
    square: float
    totals: EntrySums
    right: np.ndarray | None
    rest: np.ndarray | None
    right_bf16: np.ndarray | None


class MatrixTrajectory:
    """Measures one matrix at every step; holds W0, the final and two neighbouring checkpoints at a time.

    Args:
        read: reads the stored array of a step, −1 for the initial one.
        count: number of steps.
        settings: parameters; `subspace_k` is the K of the similarities.
        rates: `Σ lr` and `√Σ lr²` up to each step, None where no learning rate is known.
        spectra: name of the matrix and where base spectra are kept, if `SPECTRAL_STATISTICS` are wanted.
        make_matrix: `Matrix`, or what makes one on an accelerator.
    """

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        count: int,
        settings: CompareSettings,
        *,
        rates: Sequence[tuple[float, float]] | None = None,
        spectra: tuple[str, BaseCache] | None = None,
        make_matrix: MatrixMaker = Matrix,
    ) -> None:
        self.read, self.count, self.settings, self.rates, self.make_matrix = read, count, settings, rates, make_matrix
        self.name, self.bases = (spectra[0], HeldBase(spectra[1])) if spectra is not None else ("", None)

    def measure(self) -> dict[str, Any]:
        """Lists per statistic, `_null`, `_excess` and `_z` beside those that have them, and the similarity matrices.

        `digests` are those of the arrays, the initial one first.
        """
        settings = self.settings
        origin = self.read(-1)
        last = self.read(self.count - 1)
        self.origin, self.last = origin, last
        self.a, self.z = widen(origin), widen(last)
        self.k = capped_rank(settings.subspace_k, origin.shape)
        names = STATISTICS + (RATE_STATISTICS if self.rates else ()) + (SPECTRAL_STATISTICS if self.bases else ())
        self.row: dict[str, Any] = {name: [None] * self.count for name in names}
        for name in names:
            for kind in ("null", "excess", "z") if name not in _WITHOUT_NULL else ():
                self.row[f"{name}_{kind}"] = [None] * self.count
        self.digests = [array_digest(origin)]
        self.final_square = inner(Matrix(self.z, self.a), Matrix(self.z, self.a))
        self.final_bf16 = None
        steps, increments = [], np.zeros(self.count)
        self.kurtoses = np.full((3, self.count), math.nan)  # of the updates, of the increments, of what follows
        products = np.full((2, self.count), math.nan)
        before, older = self.a, None
        for index in range(self.count):
            stored = last if index == self.count - 1 else self.read(index)
            now = widen(stored)
            self.digests.append(array_digest(stored))
            steps.append(self._step(index, stored, now))
            increment = Matrix(now, before)
            square, fourth = inner_and_alignment(increment, increment)
            increments[index] = math.sqrt(square)
            self.kurtoses[:2, index] = steps[-1].totals.kurtosis, self._kurtosis(square, fourth)
            if older is not None:
                products[:, index - 1] = inner_and_alignment(Matrix(before, older), increment)
            older, before = before, now
        covariance = None
        first = steps[0].totals
        run_grid = grid_of_run([step.totals.counts for step in steps])
        if run_grid is None:
            covariance = np.full((self.count, self.count), math.nan)
            self.row |= dict.fromkeys(("path_note", "cosine_note", "drift_note", "sim_note"), UNLIKE)
        elif run_grid[0] is not None:  # rounding turns stored increments against each other
            spacings = spacing_counts(first.histogram, first.storage, run_grid[0])
            covariance = walk_covariance(increments, *spacings, is_open=run_grid[1])
        self._path(steps, increments, products, covariance)
        self._similarities(steps, increments, covariance)
        self.row |= {"subspace_k": self.k, "digests": self.digests}
        return self.row

    def _kurtosis(self, squares: float, fourths: float) -> float:
        """Of entries with these sums; NaN where all are zero."""
        return float(kurtosis_from_sums(self.origin.size, np.float64(squares), np.float64(fourths)))

    def _put(self, name: str, index: int, value: float | None, null: Null | None = None) -> None:
        cells: Row = {}
        put(cells, name, value, null)
        self._place(index, cells)

    def _place(self, index: int, cells: Row) -> None:
        for key, found in cells.items():
            self.row[key][index] = found

    def _put_family(self, index: int, numbers: dict[str, Any]) -> None:
        cells: Row = {}
        put_numbers(cells, numbers)
        self._place(index, cells)

    def _put_along(self, numbers: dict[str, Any]) -> None:
        """Writes what a family gives for all steps at once, `[t]` each."""
        for index in range(self.count):
            self._put_family(index, {key: values[index] for key, values in numbers.items()})

    def _step(self, index: int, stored: np.ndarray, now: np.ndarray) -> _Step:
        totals = EntrySums()
        totals.add(self.origin, stored, eta=self.settings.eta, rms=0.0)
        square, on_grid = totals.delta_squares, bool(totals.counts.is_bf16)
        cells: Row = {}
        put_numbers(cells, entry_statistics(totals.counts, eta=self.settings.eta))
        for key in ENTRY_KEYS:
            self.row[key][index] = cells[key]
        self._spectra(index, stored, totals)
        if square == 0:
            self._put("op_norm", index, 0.0)
            return _Step(0.0, totals, None, None, None)
        update = self.make_matrix(now, self.a)
        right = self._update_statistics(index, update, totals)
        right_bf16 = right if on_grid else self._bf16(index, stored, totals)
        if on_grid:  # a bfloat16 reader sees what is stored
            self.row["stable_rank_bf16"][index] = self.row["stable_rank"][index]
        rest = None
        if index < self.count - 1 and bool(np.any(self.z != now)):
            rest = right_subspace(self.make_matrix(self.z, now), self.k)
        return _Step(square, totals, right, rest, right_bf16)

    def _spectra(self, index: int, stored: np.ndarray, totals: EntrySums) -> None:
        """Spectral drift and rotation against W0, whose own spectrum is taken once for all steps."""
        if self.bases is None:
            return
        pair = MatrixMeasurement(
            self.name, self.origin, stored, self.settings, self.bases, self.digests[0], self.make_matrix
        )
        found = pair.drift_and_rotation(totals)
        for name in SPECTRAL_STATISTICS:
            for key in (name, *(f"{name}_{kind}" for kind in ("null", "excess", "z"))):
                self.row[key][index] = found.get(key)
        self.row |= {key: found[key] for key in ("angle_k", "angle_gap") if key in found}
        self._say(index, {key: found[key] for key in ("angle_note", "nss_note", "angle_null_form") if key in found})

    def _say(self, index: int, notes: Row) -> None:
        """Writes notes of one step; the lists of those that no step has are not there."""
        for key, note in notes.items():
            self.row.setdefault(key, [None] * self.count)[index] = note

    def _update_statistics(self, index: int, update: Matrix, totals: EntrySums) -> np.ndarray | None:
        shape, kurtosis = self.origin.shape, np.float64(totals.kurtosis)
        square = np.float64(totals.delta_squares)
        note: Row = {}
        put_rank_note(note, shape, totals.kurtosis)
        self._say(index, note)
        if self.settings.suite == "fast":
            top = np.float64(leading_square(update))
            numbers = stable_rank_statistics(square, top, shape=shape, kurtosis=kurtosis)
            self._put_family(index, {"op_norm": np.sqrt(top)} | numbers)
            return right_subspace(update, self.k)
        spectrum = decompose(update, self.k, long=update.is_wide)
        order = self.row["hill_k"] = self.settings.hill_order(min(shape))
        values = spectrum.values
        tail = spectrum if order_is_resolved(spectrum, order) else exact_values(update)
        numbers = stable_rank_statistics(values @ values, np.square(values[0]), shape=shape, kurtosis=kurtosis)
        numbers |= hill_statistics(tail.values, shape=shape, kurtosis=kurtosis, k=order)
        self._put_family(index, {"op_norm": values[0]} | numbers)
        if not has_directions(values, self.k):
            return None
        return spectrum.long if update.is_wide else spectrum.short

    def _bf16(self, index: int, stored: np.ndarray, totals: EntrySums) -> np.ndarray | None:
        """The view of a bfloat16 reader, beside the precision null.

        The final update's direction at this step's norm.
        """
        if totals.bf16_delta_squares == 0:
            return None
        start = bf16_view(self.origin)
        update = self.make_matrix(bf16_view(stored), start)
        self._put("stable_rank_bf16", index, _stable_rank(totals.bf16_delta_squares, update))
        if self.final_square:
            share = math.sqrt(totals.delta_squares / self.final_square)
            fixed = self.make_matrix(bf16_view(along_update(self.a, self.z, share)), start)
            square = inner(fixed, fixed)
            if square:
                value = self.row["stable_rank_bf16"][index]
                self._put("stable_rank_bf16", index, value, (_stable_rank(square, fixed), None))
            if self.final_bf16 is None:
                self.final_bf16 = right_subspace(self.make_matrix(bf16_view(self.z), start), self.k)
            null = similarity(right_subspace(fixed, self.k), self.final_bf16) if square else math.nan
            self._put("sim_to_final_bf16", index, None, (null, None))
        return right_subspace(update, self.k)

    def _path(
        self, steps: Sequence[_Step], increments: np.ndarray, products: np.ndarray, covariance: np.ndarray | None
    ) -> None:
        """Distance and direction, from the products of each increment with the next and of each update with the rest.

        Args:
            steps: what each step left.
            increments: norms of the increments `[t]`.
            products: `⟨A, B⟩` and `Σ(ab)²` of an increment and the next `[2, t]`.
            covariance: of a random walk whose checkpoints are rounded `[t, t]`, None where they are not.
        """
        squares = np.array([step.square for step in steps])
        rest, rest_squares = np.full((2, self.count), math.nan), np.full(self.count, math.nan)
        for index, step in enumerate(steps[:-1]):
            if step.square:
                now = widen(self.read(index))
                after = Matrix(self.z, now)
                rest[:, index] = inner_and_alignment(Matrix(now, self.a), after)
                rest_squares[index], fourth = inner_and_alignment(after, after)
                self.kurtoses[2, index] = self._kurtosis(rest_squares[index], fourth)
        numbers = path_statistics(
            squares, increments, step_products=products[0], step_alignments=products[1], rest_products=rest[0],
            rest_alignments=rest[1], rest_squares=rest_squares, covariance=covariance,
            kurtoses=tuple(self.kurtoses), shape=self.origin.shape,
        )  # fmt: skip
        if self.rates is not None:
            sums, roots = np.array(self.rates, np.float64).T
            numbers |= rate_statistics(squares, sums, roots, shape=self.origin.shape)
        self._put_along(numbers)
        if covariance is not None:
            for name, few in zip(
                ("path", "cosine", "drift"), few_left(tuple(self.kurtoses), self.origin.shape), strict=True
            ):
                if few.any():
                    self.row.setdefault(f"{name}_note", f"no z at some steps: {LEFT_FEW}")

    def _say_few(self, updates: Carried, rest: Carried) -> None:
        """Notes of steps at which few entries carry what is compared: a sentence for all of them."""
        if not (updates.known.all() and rest.known.all()):
            self.row.setdefault("sim_note", f"no z, or no null, at some steps: {FEW}")

    def _similarities(self, steps: Sequence[_Step], increments: np.ndarray, covariance: np.ndarray | None) -> None:
        count, shape = self.count, (self.origin.shape[0], self.origin.shape[1])
        full, disjoint = np.full((count, count), math.nan), np.full((count, count), math.nan)
        for s in range(count):
            for t in range(s, count):
                full[s, t] = full[t, s] = similarity(steps[s].right, steps[t].right)
                disjoint[s, t] = similarity(steps[s].right, steps[t].rest)
        curve = similarity_curve(shape, k=self.k, seed=self.settings.seed)
        kurtoses = self.kurtoses[0], self.kurtoses[2]
        numbers = similarity_statistics(
            full[:, -1], np.diagonal(disjoint), increments, curve, shape=shape, k=self.k, covariance=covariance,
            kurtoses=kurtoses,
        )  # fmt: skip
        self._put_along(numbers)
        updates, rest = (carried_directions(shape, one) for one in kurtoses)
        self._say_few(updates, rest)
        if self.final_bf16 is None:
            self.final_bf16 = steps[-1].right_bf16
        for s, step in enumerate(steps):
            if step.right_bf16 is not None:
                expected = self.row["sim_to_final_bf16_null"][s]
                value = similarity(step.right_bf16, self.final_bf16)
                self._put("sim_to_final_bf16", s, value, None if expected is None else (expected, None))
        apart = disjoint_walk_similarity(
            curve, increments, covariance, shape=shape, k=self.k, updates=updates, rest=rest
        )
        self.row["similarity"] = {
            "full": _lines(full),
            "full_null": _lines(random_walk_similarity(curve, increments, covariance, updates=updates).mean),
            "disjoint": _lines(disjoint),
            "disjoint_null": _lines(apart.mean),
        }


def _stable_rank(square: float, matrix: Matrix) -> float:
    """Of a matrix whose squared norm is known and not 0."""
    return float(stable_rank_of_sums(np.float64(square), np.float64(leading_square(matrix))))


def _lines(matrix: np.ndarray) -> list[list[float | None]]:
    """Rows of a matrix as plain numbers, None where one is not finite."""
    return [[float(value) if math.isfinite(value) else None for value in line] for line in matrix]
