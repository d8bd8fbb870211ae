"""One matrix along a run: ranks, norms, leading subspaces and path, each with its null."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxgeom.checkpoints.tensors import array_digest
from jaxgeom.comparison.algebra.krylov import leading_square
from jaxgeom.comparison.algebra.matrix import Matrix, MatrixForm
from jaxgeom.comparison.algebra.spectrum import decompose
from jaxgeom.comparison.one_matrix import shape_nulls
from jaxgeom.comparison.one_matrix.base_spectra import BaseCache, HeldBase
from jaxgeom.comparison.one_matrix.pair import MatrixMeasurement, hill
from jaxgeom.comparison.one_matrix.rows import Null, Row, put, put_numbers
from jaxgeom.comparison.one_matrix.scan import EntrySums, bf16_view, widen
from jaxgeom.comparison.one_matrix.subspaces import inner, right_subspace, similarity
from jaxgeom.comparison.one_matrix.walk_nulls import cosine_deviation, random_walk_similarity, walked_distance
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.entry_statistics import entry_statistics
from jaxgeom.diagnostics.null_trajectory import disjoint_similarity, disjoint_similarity_std

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
        form: makes matrices where their algebra is to run.
    """

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        count: int,
        settings: CompareSettings,
        *,
        rates: Sequence[tuple[float, float]] | None = None,
        spectra: tuple[str, BaseCache] | None = None,
        form: MatrixForm = Matrix,
    ) -> None:
        self.read, self.count, self.settings, self.rates, self.form = read, count, settings, rates, form
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
        self.k = min(settings.subspace_k, max(1, min(origin.shape) - 1))
        names = STATISTICS + (RATE_STATISTICS if self.rates else ()) + (SPECTRAL_STATISTICS if self.bases else ())
        self.row: dict[str, Any] = {name: [None] * self.count for name in names}
        for name in names:
            for kind in ("null", "excess", "z") if name not in _WITHOUT_NULL else ():
                self.row[f"{name}_{kind}"] = [None] * self.count
        self.digests = [array_digest(origin)]
        self.final_square = inner(Matrix(self.z, self.a), Matrix(self.z, self.a))
        self.final_bf16 = None
        steps, increments = [], []
        before, older = self.a, None
        for index in range(self.count):
            stored = last if index == self.count - 1 else self.read(index)
            now = widen(stored)
            self.digests.append(array_digest(stored))
            steps.append(self._step(index, stored, now))
            increment = Matrix(now, before)
            increments.append(math.sqrt(inner(increment, increment)))
            if older is not None and increments[-1] and increments[-2]:
                cosine = inner(Matrix(before, older), increment) / (increments[-1] * increments[-2])
                self._put("path_cosine", index - 1, cosine, (0.0, cosine_deviation(origin.size)))
            older, before = before, now
        self._path(steps, np.array(increments))
        self._similarities(steps, np.array(increments))
        self.row |= {"subspace_k": self.k, "digests": self.digests}
        return self.row

    def _put(self, name: str, index: int, value: float | None, null: Null | None = None) -> None:
        cells: Row = {}
        put(cells, name, value, null)
        for key, found in cells.items():
            self.row[key][index] = found

    def _step(self, index: int, stored: np.ndarray, now: np.ndarray) -> _Step:
        totals = EntrySums()
        totals.add(self.origin, stored, eta=self.settings.eta, rms=0.0)
        square, on_grid = totals.delta_squares, totals.is_rounded
        cells: Row = {}
        put_numbers(cells, entry_statistics(totals.counts, eta=self.settings.eta))
        for key in ENTRY_KEYS:
            self.row[key][index] = cells[key]
        self._rates(index, math.sqrt(square / totals.count))
        self._spectra(index, stored, totals)
        if square == 0:
            return _Step(0.0, totals, None, None, None)
        update = self.form(now, self.a)
        right = self._update_statistics(index, update, square)
        right_bf16 = right if on_grid else self._bf16(index, stored, totals)
        if on_grid:  # a bfloat16 reader sees what is stored
            self.row["stable_rank_bf16"][index] = self.row["stable_rank"][index]
        rest = None
        if index < self.count - 1 and bool(np.any(self.z != now)):
            rest = right_subspace(self.form(self.z, now), self.k)
        return _Step(square, totals, right, rest, right_bf16)

    def _rates(self, index: int, rms: float) -> None:
        """Size of the update in units of what steps of size lr give: adding up at random, and all one way."""
        if self.rates is not None:
            for name, expected in zip(RATE_STATISTICS, reversed(self.rates[index]), strict=True):
                if expected > 0:
                    self._put(name, index, rms / expected, (1.0, None))

    def _spectra(self, index: int, stored: np.ndarray, totals: EntrySums) -> None:
        """Spectral drift and rotation against W0, whose own spectrum is taken once for all steps."""
        if self.bases is None:
            return
        pair = MatrixMeasurement(self.name, self.origin, stored, self.settings, self.bases, self.digests[0], self.form)
        found = pair.drift_and_rotation(totals)
        for name in SPECTRAL_STATISTICS:
            for key in (name, *(f"{name}_{kind}" for kind in ("null", "excess", "z"))):
                self.row[key][index] = found.get(key)
        self.row |= {key: found[key] for key in ("angle_k", "angle_gap") if key in found}
        for key in ("angle_note", "nss_note", "angle_null_form"):
            if key in found:
                self.row.setdefault(key, [None] * self.count)[index] = found[key]

    def _update_statistics(self, index: int, update: Matrix, square: float) -> np.ndarray | None:
        shape = (self.origin.shape[0], self.origin.shape[1])
        rank_null = shape_nulls.stable_rank_null(*shape)
        if self.settings.suite == "fast":
            top = leading_square(update)
            self._put("op_norm", index, math.sqrt(top))
            self._put("stable_rank", index, square / top, rank_null)
            return right_subspace(update, self.k)
        spectrum = decompose(update, self.k, long=update.is_wide)
        values, order = spectrum.values, self.settings.hill_order
        self._put("op_norm", index, float(values[0]))
        self._put("stable_rank", index, float(values @ values) / float(values[0]) ** 2, rank_null)
        tail = shape_nulls.spectral_null(*shape, lambda v, j: hill(v, j) or math.nan, order)
        self._put("hill", index, hill(values, order(min(shape))), tail)
        if values[self.k - 1] <= 1e-6 * values[0]:
            return None
        return spectrum.long if update.is_wide else spectrum.short

    def _bf16(self, index: int, stored: np.ndarray, totals: EntrySums) -> np.ndarray | None:
        """The view of a bfloat16 reader, beside the precision null.

        The final update's direction at this step's norm.
        """
        if totals.bf16_delta_squares == 0:
            return None
        start = bf16_view(self.origin)
        update = self.form(bf16_view(stored), start)
        self._put("stable_rank_bf16", index, totals.bf16_delta_squares / leading_square(update))
        if self.final_square:
            share = np.float32(math.sqrt(totals.delta_squares / self.final_square))
            fixed = self.form(bf16_view(self.a + share * (self.z - self.a)), start)
            square = inner(fixed, fixed)
            if square:
                value = self.row["stable_rank_bf16"][index]
                self._put("stable_rank_bf16", index, value, (square / leading_square(fixed), None))
            if self.final_bf16 is None:
                self.final_bf16 = right_subspace(self.form(bf16_view(self.z), start), self.k)
            null = similarity(right_subspace(fixed, self.k), self.final_bf16) if square else None
            self._put("sim_to_final_bf16", index, None, None if null is None else (null, None))
        return right_subspace(update, self.k)

    def _path(self, steps: Sequence[_Step], increments: np.ndarray) -> None:
        walked, deviations = walked_distance(increments, self.a.size)
        for index, step in enumerate(steps):
            if walked[index]:
                ratio = math.sqrt(step.square) / float(walked[index])
                self._put("drift_ratio", index, ratio, (1.0, float(deviations[index])))
        update, final = None, Matrix(self.z, self.a)
        for index, step in enumerate(steps[:-1]):
            if not step.square:
                continue
            now = widen(self.read(index))
            update, rest = Matrix(now, self.a), Matrix(self.z, now)
            rest_square = inner(rest, rest)
            if rest_square:
                cross = inner(update, final) - step.square
                cosine = cross / math.sqrt(step.square * rest_square)
                self._put("cosine_to_rest", index, cosine, (0.0, cosine_deviation(self.a.size)))

    def _similarities(self, steps: Sequence[_Step], increments: np.ndarray) -> None:
        count, shape = self.count, self.origin.shape
        full: list[list[float | None]] = [[None] * count for _ in range(count)]
        disjoint: list[list[float | None]] = [[None] * count for _ in range(count)]
        null, deviation = random_walk_similarity((shape[0], shape[1]), self.k, self.settings.seed, increments)
        if self.final_bf16 is None:
            self.final_bf16 = steps[-1].right_bf16
        chance = disjoint_similarity(shape, k=self.k), disjoint_similarity_std(shape, k=self.k)
        for s in range(count):
            for t in range(s, count):
                full[s][t] = full[t][s] = similarity(steps[s].right, steps[t].right)
                disjoint[s][t] = similarity(steps[s].right, steps[t].rest)
            self._put("sim_to_final", s, full[s][-1], (float(null[s, -1]), float(deviation[s, -1])))
            self._put("sim_disjoint", s, disjoint[s][s], chance)
            if steps[s].right_bf16 is not None:
                expected = self.row["sim_to_final_bf16_null"][s]
                value = similarity(steps[s].right_bf16, self.final_bf16)
                self._put("sim_to_final_bf16", s, value, None if expected is None else (expected, None))
        self.row["similarity"] = {
            "full": full,
            "full_null": [[float(value) if math.isfinite(value) else None for value in line] for line in null],
            "disjoint": disjoint,
            "disjoint_null": [[chance[0] if t >= s else None for t in range(count)] for s in range(count)],
        }
