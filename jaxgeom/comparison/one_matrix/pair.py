"""Every statistic of one matrix, as one flat row of the report."""

import dataclasses
import hashlib

import numpy as np

from jaxgeom.comparison.algebra.krylov import leading_directions
from jaxgeom.comparison.algebra.matrix import Matrix, MatrixMaker
from jaxgeom.comparison.one_matrix import update_ranks, weight_changes
from jaxgeom.comparison.one_matrix.base_spectra import Base, BaseCache, measure_base, vector_count
from jaxgeom.comparison.one_matrix.entries import put_entries, put_overlaps
from jaxgeom.comparison.one_matrix.masks import magnitude_mask, reconstruction_mask
from jaxgeom.comparison.one_matrix.rows import Row, put_null
from jaxgeom.comparison.one_matrix.scan import (  # fmt: skip
    EntrySums,
    bf16_view,
    histogram_of,
    low_magnitude_mask,
    root_mean_square,
    widen,
)
from jaxgeom.comparison.one_matrix.update_nulls import permuted_ranks, put_update_nulls
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.weight_numbers import GRAM_FLOOR, is_open


@dataclasses.dataclass
class MatrixMeasurement:
    """Measures one matrix; holds what several statistics share.

    Attributes:
        name: name in the report, from which the seed of sampled nulls is made.
        initial, final: stored arrays `[out, in]`.
        settings: parameters.
        cache: where base spectra are kept.
        digest: content digest of `initial`, its key there.
        make_matrix: `Matrix`, or what makes one on an accelerator.
    """

    name: str
    initial: np.ndarray
    final: np.ndarray
    settings: CompareSettings
    cache: BaseCache
    digest: str
    make_matrix: MatrixMaker = Matrix

    def measure(self) -> Row:
        """The row: sparsities, norms, ranks, drift, rotation, overlaps, projections, each with its null."""
        settings, shape = self.settings, self.initial.shape
        self.a, self.b = widen(self.initial), widen(self.final)
        self.changed = np.empty(self.a.size, bool)
        self.totals = EntrySums()
        rms = root_mean_square([self.a])
        self.totals.add(self.initial, self.final, eta=settings.eta, rms=rms, changed_out=self.changed)
        self.row: Row = {}
        put_entries(self.row, self.totals, settings.eta)
        self.on_grid = bool(self.totals.counts.is_bf16)
        base = self._base()
        if settings.suite == "full":
            self._full(base)
        else:
            self._fast()
        masks = self._overlaps(base)
        if settings.suite == "full":
            put_update_nulls(self.row, self.initial, self.a, self.b, totals=self.totals, masks=masks, eta=settings.eta)
            if settings.permutation_draws:
                ranks = permuted_ranks(self.a, self.b, settings.permutation_draws, self._generator("permutation"))
                for statistic in ("stable_rank", "participation_ratio"):
                    put_null(self.row, statistic, ranks.get(statistic), "_permutation")
        self.row["shape"] = list(shape)
        return self.row

    def drift_and_rotation(self, totals: EntrySums) -> Row:
        """NSS and principal angles alone, with their nulls and notes: what a trajectory takes of each of its steps.

        Args:
            totals: scan of the same two arrays.
        """
        self.a, self.b, self.totals, self.row = widen(self.initial), widen(self.final), totals, {}
        self.on_grid = bool(totals.counts.is_bf16)
        base = self._base()
        if base is not None:
            self._changes(base, self.make_matrix(self.b, self.a)).measure(plain=True)
        return self.row

    def _base(self) -> Base | None:
        if self.settings.suite == "fast" or self.totals.initial_squares == 0:
            return None
        count = vector_count(self.settings, self.initial.shape)
        base = self.cache.load(self.digest, count)
        needs_view = not self.totals.on_grid
        if base is None or (needs_view and base.bf16 is None):
            base = measure_base(
                self.a, count, view=bf16_view(self.initial) if needs_view else None, make_matrix=self.make_matrix
            )
            self.cache.save(self.digest, count, base)
        return base

    def _full(self, base: Base | None) -> None:
        update = self.make_matrix(self.b, self.a)
        update_ranks.full(self.row, update, self.totals, self.settings)
        self._bf16_rank()
        if base is None:
            weight_changes.put_undefined_changes(self.row, self.settings, self.initial.shape)
        else:
            self._changes(base, update).measure()

    def _fast(self) -> None:
        """What needs no full spectrum: ranks of the update from one float32 Gram matrix."""
        update_ranks.fast(self.row, self.make_matrix(self.b, self.a), self.totals)
        self._bf16_rank()

    def _bf16_rank(self) -> None:
        if self.on_grid or self.totals.delta_squares == 0:
            update_ranks.copy_as_bf16(self.row)
        else:
            difference = self.make_matrix(bf16_view(self.final), bf16_view(self.initial))
            update_ranks.bf16(self.row, difference, self.totals)

    def _changes(self, base: Base, update: Matrix) -> weight_changes.WeightChanges:
        count = vector_count(self.settings, self.initial.shape)
        return weight_changes.WeightChanges(
            row=self.row,
            initial=self.initial,
            final=self.final,
            a=self.a,
            b=self.b,
            on_grid=self.on_grid,
            totals=self.totals,
            base=base,
            update=update,
            settings=self.settings,
            make_matrix=self.make_matrix,
            rng=self._generator(""),
            save=lambda: self.cache.save(self.digest, count, base),
        )

    def _overlaps(self, base: Base | None) -> dict[str, np.ndarray]:
        """Overlap of the changed entries with the masks of W0, beside the rounding null at the observed density.

        Returns:
            The flat masks by statistic; none where the overlaps are not defined.
        """
        settings, totals = self.settings, self.totals
        self.row["mask_rank"] = min(settings.mask_rank, min(self.initial.shape))
        masks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if totals.changed and totals.initial_squares:
            masks["overlap_low"] = low_magnitude_mask(self.initial, totals, settings.mask_fraction)
            principal = self._principal_mask(base)
            if principal is not None:
                masks["overlap_principal"] = principal, histogram_of(self.initial, principal)
        put_overlaps(self.row, totals, masks, self.changed, settings.eta)
        return {name: mask for name, (mask, _) in masks.items()}

    def _generator(self, purpose: str) -> np.random.Generator:
        """Source of the draws of one sampled null, the same in every run of the same settings and name."""
        digest = hashlib.sha256((self.name + purpose).encode()).digest()
        return np.random.default_rng([self.settings.seed, *digest[:8]])

    def _principal_mask(self, base: Base | None) -> np.ndarray | None:
        """Flat mask of the largest entries of W0's reconstruction; None where its rank leaves that open."""
        settings, shape = self.settings, self.initial.shape
        take = int(np.floor(settings.mask_fraction * self.totals.count + 0.5))
        rank, matrix = min(settings.mask_rank, min(shape)), self.make_matrix(self.a)
        stored = base.stored if base is not None else None
        if rank == min(shape) or (stored is not None and stored.values[rank] <= stored.errors[rank]):
            return magnitude_mask(self.a, take)  # nothing is left out: W0 itself, with its ties
        if stored is None:
            short, long, values = leading_directions(matrix, rank + 1)
            # Values below what a float32 Gram matrix resolves are no ties: W0 may end there.
            undetermined = bool(values[rank] > GRAM_FLOOR * values[0] and is_open(values.astype(np.float32), rank))
        else:
            short, long, values = stored.short, stored.long, stored.values
            undetermined = bool(is_open(values, rank))
        if undetermined:
            self.row["overlap_note"] = f"ill-posed for the principal mask: no gap after singular value {rank}"
            return None
        short, long, values = short[:, :rank], long[:, :rank], values[:rank]
        left, right = (short, long) if matrix.is_wide else (long, short)
        return reconstruction_mask(left * values, right, take)
