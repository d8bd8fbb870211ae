"""Every statistic of one matrix, as one flat row of the report."""

import dataclasses
import hashlib
import math

import numpy as np

from jaxgeom.comparison.algebra.krylov import leading_and_fourth, leading_directions, leading_square
from jaxgeom.comparison.algebra.matrix import Matrix, MatrixForm
from jaxgeom.comparison.algebra.spectrum import Spectrum, exact_values, values_only
from jaxgeom.comparison.algebra.spectrum import decompose as decompose_matrix
from jaxgeom.comparison.one_matrix import norm_nulls, shape_nulls
from jaxgeom.comparison.one_matrix.base_spectra import Base, BaseCache, exact_base, measure_base, vector_count
from jaxgeom.comparison.one_matrix.entries import put_entries, put_overlaps
from jaxgeom.comparison.one_matrix.masks import magnitude_mask, reconstruction_mask
from jaxgeom.comparison.one_matrix.rotation import angles_from_bases, principal_angles
from jaxgeom.comparison.one_matrix.rows import Row, put, put_null, put_undefined, put_with_null
from jaxgeom.comparison.one_matrix.scan import (  # fmt: skip
    EntrySums,
    bf16_view,
    histogram_of,
    low_magnitude_mask,
    root_mean_square,
    widen,
)
from jaxgeom.comparison.one_matrix.update_nulls import permuted_ranks, put_update_nulls
from jaxgeom.comparison.settings import PROJECTION_SHARES, CompareSettings

SHIFTS = ("nss", "nss_bf16", "nss_without_decay")
ANGLES = tuple(f"angle_{side}_{figure}_deg" for side in ("left", "right") for figure in ("mean", "max"))
KINDS = ("joint", "left", "right")
"""Projection energies: inside both subspaces, the left one, the right one."""

RESOLUTION = 1e-9
"""Gap between neighbouring singular values of W0, over the largest, below which nothing tells their vectors apart."""

SINGLE_RESOLUTION = 1e-6
"""The same for directions that come from a float32 Gram matrix."""


def entropy_rank(values: np.ndarray, _: int = 0) -> float:
    """`exp H(σ/Σσ)`."""
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share @ np.log(share))))


def participation_ratio(values: np.ndarray, _: int = 0) -> float:
    """`(Σσ²)²/Σσ⁴`."""
    squares = np.square(values / values[0])
    return float(squares.sum() ** 2 / (squares @ squares))


def hill(values: np.ndarray, k: int) -> float | None:
    """`[1/(k−1) Σ_{i<k} log(σ_i/σ_k)]⁻¹`; None where σ_k is numerically zero or equals all above it."""
    if k < 2 or values[k - 1] <= 1e-12 * values[0]:
        return None
    slope = float(np.log(values[: k - 1] / values[k - 1]).mean())
    return 1 / slope if slope > 1e-12 else None


def entropy_error(values: np.ndarray, errors: np.ndarray) -> float:
    """First-order bound on the error of the entropy that errors of the singular values bring."""
    total = float(values.sum())
    share = np.maximum(values, errors) / total
    return float((errors / total * (np.abs(np.log(share)) + 12)).sum())


def update_spectrum(update: Matrix) -> Spectrum:
    """Spectrum of ΔW, by the bidiagonal route where its small values would spoil the entropy rank."""
    spectrum = values_only(update)
    if spectrum.values[0] > 0 and entropy_error(spectrum.values, spectrum.errors) > 2e-6:
        return exact_values(update)
    return spectrum


def spectrum_statistics(row: Row, shape: tuple[int, int], values: np.ndarray, settings: CompareSettings) -> None:
    """Ranks and tail of ΔW with their isotropic nulls."""
    order = settings.hill_order
    put(row, "op_norm", float(values[0]))
    put(row, "stable_rank", float(values @ values) / float(values[0]) ** 2, shape_nulls.stable_rank_null(*shape))
    put(row, "entropy_rank", entropy_rank(values), shape_nulls.spectral_null(*shape, entropy_rank, lambda p: p))
    participation = shape_nulls.spectral_null(*shape, participation_ratio, lambda p: p)
    put(row, "participation_ratio", participation_ratio(values), participation)
    k = order(min(shape))
    row["hill_k"] = k
    put(row, "hill", hill(values, k), shape_nulls.spectral_null(*shape, lambda v, j: hill(v, j) or math.nan, order))
    energy = np.square(values)
    row[f"energy_top_{settings.subspace_k}"] = float(energy[: settings.subspace_k].sum() / energy.sum())


def shift(initial: Spectrum, final: np.ndarray, decay: float = 0.0) -> float | None:
    """NSS, `‖σ(W+) − (1 + c)·σ(W0)‖/‖σ(W0)‖`; c = 0 is the plain one."""
    return float(np.linalg.norm(final - (1 + decay) * initial.values)) / initial.norm if initial.norm else None


def shifts_linearly(decay: float, relative_norm: float) -> bool:
    """Whether `σ(W+ − c·W0) − σ(W0)` is `σ(W+) − (1 + c)·σ(W0)` to 8e-6 of its norm.

    `W+ − c·W0 = (1 − c)·(W0 + ΔW/(1 − c))` lies on the line from W0 through W+, a little beyond it. The two are equal
    where values move in proportion to the distance; where they move like its power p, they differ by `|c|·(p − 1)`.
    Measured on isotropic, sparse, low-rank and aligned updates of W0 with Gaussian, heavy-tailed, stepped and clustered
    spectra, |p − 1| stays below 1 up to a relative norm of 0.03, and below 2.2 beyond.
    """
    return abs(decay) <= (8e-6 if relative_norm <= 0.03 else 3e-6)


@dataclasses.dataclass
class MatrixMeasurement:
    """Measures one matrix; holds what several statistics share.

    Attributes:
        name: name in the report, from which the seed of sampled nulls is made.
        initial, final: stored arrays `[out, in]`.
        settings: parameters.
        cache: where base spectra are kept.
        digest: content digest of `initial`, its key there.
        form: makes matrices where their algebra is to run.
    """

    name: str
    initial: np.ndarray
    final: np.ndarray
    settings: CompareSettings
    cache: BaseCache
    digest: str
    form: MatrixForm = Matrix

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
        self.on_grid = self.totals.is_rounded
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
        base = self._base()
        if base is not None:
            update, pulled = self.form(self.b, self.a), None
            if totals.delta_squares > 0:
                pulled = _pulled(update, base)
            self._shifts_and_angles(base, update, pulled, plain=True)
        return self.row

    def _base(self) -> Base | None:
        if self.settings.suite == "fast" or self.totals.initial_squares == 0:
            return None
        count = vector_count(self.settings, self.initial.shape)
        base = self.cache.load(self.digest, count)
        needs_view = not self.totals.on_grid
        if base is None or (needs_view and base.bf16 is None):
            base = measure_base(self.a, count, view=bf16_view(self.initial) if needs_view else None, form=self.form)
            self.cache.save(self.digest, count, base)
        return base

    def _full(self, base: Base | None) -> None:
        update = self.form(self.b, self.a)
        moved = self.totals.delta_squares > 0
        if moved:
            spectrum_statistics(self.row, self.initial.shape, update_spectrum(update).values, self.settings)
        else:
            put_undefined(self.row, "stable_rank", "entropy_rank", "participation_ratio", "hill")
            k = self.settings.hill_order(min(self.initial.shape))
            self.row |= {"op_norm": 0.0, "hill_k": k, f"energy_top_{self.settings.subspace_k}": None}
        self._bf16_rank(moved)
        if base is None:
            self.row |= {"angle_k": self._angle_k, "angle_gap": None}
            put_undefined(self.row, *SHIFTS, *ANGLES)
            self.row["nss_note"] = self.row["angle_note"] = "undefined: the initial matrix is zero"
            self._projections(None, update, None)
            return
        pulled = _pulled(update, base) if moved else None
        self._shifts_and_angles(base, update, pulled)
        self._projections(base.stored, update, pulled)

    def _bf16_rank(self, moved: bool) -> None:
        """Stable rank of the update that a bfloat16 reader sees; the null is the same as for the stored one."""
        null = shape_nulls.stable_rank_null(*self.initial.shape)
        if self.on_grid or not moved:
            put(self.row, "stable_rank_bf16", self.row["stable_rank"], null)
            return
        squares = self.totals.bf16_delta_squares
        if squares == 0:
            put(self.row, "stable_rank_bf16", None, null)
            return
        top = leading_square(self.form(bf16_view(self.final), bf16_view(self.initial)))
        put(self.row, "stable_rank_bf16", squares / top, null)

    @property
    def _angle_k(self) -> int:
        return max(1, min(self.settings.angle_k, min(self.initial.shape) - 1))

    def _shifts_and_angles(self, base: Base, update: Matrix, pulled: np.ndarray | None, *, plain: bool = False) -> None:
        stored, k = base.stored, self._angle_k
        self.row["angle_k"] = k
        gap = _gap(stored.values, k)
        self.row["angle_gap"] = gap
        if pulled is None:  # as under the null: an update of norm zero
            for name in (*(SHIFTS[:1] if plain else SHIFTS), *ANGLES):
                put(self.row, name, 0.0, (0.0, 0.0))
            return
        final_matrix = self.form(self.b)
        final = decompose_matrix(final_matrix, k, long=False)
        if plain:
            self._plain_shift(base, final, final_matrix)
        else:
            self._shifts(base, final, final_matrix)
        if _is_open(stored.values, k) or final.values[k - 1] <= RESOLUTION * float(stored.values[0]):
            put_undefined(self.row, *ANGLES)
            self.row["angle_note"] = f"ill-posed: the gap after singular value {k} is numerically zero"
            return
        short, long = principal_angles(stored, final, update, final_matrix, pulled, k)
        left, right = (short, long) if update.is_wide else (long, short)
        self._put_angles(stored, final, left, right, k, gap)

    def _put_angles(
        self, stored: Spectrum, final: Spectrum, left: np.ndarray, right: np.ndarray, k: int, gap: float
    ) -> None:
        rows, columns = self.initial.shape
        smaller, values = min(rows, columns), stored.values
        # Shrinking all of W0 moves every value and turns nothing.
        factor = abs(1 + self.totals.inner / self.totals.initial_squares) or 1.0
        edge = slice(k - 1, k + 1)
        moved = min(float(np.abs(final.values[edge] / by - values[edge]).max()) for by in (1.0, factor))
        near = int(np.count_nonzero(np.abs(values - values[k - 1]) <= moved))
        nulls: list[tuple[float, float] | None] = [None] * 4
        scale = math.sqrt(self.totals.delta_squares / self.totals.count)
        rng = self._generator("")
        extra = (rows - smaller, columns - smaller)
        if scale * (math.sqrt(rows) + math.sqrt(columns)) > 0.1 * values[k - 1]:
            self.row["angle_null_form"] = "sampled: SVD of W0 plus noise"
            draws = self._rotation_samples(stored, k, scale, rng)
        else:
            draws = norm_nulls.rotation_draws(values, k, extra, scale, self.settings.null_draws, rng)
        for side, sample in enumerate(draws):
            for place, figures in ((2 * side, sample.mean(1)), (2 * side + 1, sample.max(1))):
                degrees = np.degrees(figures)
                nulls[place] = (float(degrees.mean()), float(degrees.std(ddof=1)))
        crossed = moved >= gap
        blurred = crossed and near > max(2, 0.05 * k)
        if crossed:
            extent = "" if not blurred else f", and {near} singular values lie within that distance"
            self.row["angle_note"] = f"ill-posed: singular value {k} moved by {moved:.3g}, its gap is {gap:.3g}{extent}"
        for side, angles, place in (("left", left, 0), ("right", right, 2)):
            mean, largest = np.degrees(angles.mean()), np.degrees(angles[-1])
            put(self.row, f"angle_{side}_mean_deg", None if blurred else float(mean), nulls[place])
            put(self.row, f"angle_{side}_max_deg", None if crossed else float(largest), nulls[place + 1])

    def _rotation_samples(self, stored: Spectrum, k: int, scale: float, rng: np.random.Generator) -> list[np.ndarray]:
        """Angles (left, right) of W0 plus isotropic noise by decomposing it: no expansion holds for large updates."""
        shape, found = self.initial.shape, ([], [])
        for _ in range(self.settings.null_draws):
            noisy = self.form(self.a + np.float32(scale) * rng.standard_normal(shape, np.float32))
            moved = decompose_matrix(noisy, k, long=True)
            found[0].append(angles_from_bases(stored.short[:, :k], moved.short, noisy.multiply))
            found[1].append(angles_from_bases(stored.long[:, :k], moved.long, noisy.multiply))
        short, long = (np.array(side) for side in found)
        return [short, long] if noisy.is_wide else [long, short]

    def _plain_shift(
        self, base: Base, final: Spectrum, final_matrix: Matrix
    ) -> tuple[Spectrum, Spectrum, tuple[float, float] | None]:
        """NSS with its null; the spectra that it came from and the null are what the other shifts go on from."""
        rows, columns = self.initial.shape
        initial, ended = base.stored, final
        value = shift(initial, ended.values)
        if value is not None and (initial.error + ended.error) > 2e-6 * value * initial.norm:
            initial = exact_base(base, self.a, self.form)
            self.cache.save(self.digest, vector_count(self.settings, self.initial.shape), base)
            ended = ended if ended.is_exact else exact_values(final_matrix)
            value = shift(initial, ended.values)
        scale = math.sqrt(self.totals.delta_squares / self.totals.count)
        mean, deviation, holds = norm_nulls.shift_null(initial.values, rows, columns, scale)
        null = (mean, deviation) if holds else None
        put_with_null(self.row, "nss", value, null)
        if not holds:
            self.row["nss_note"] = "the update is too large for the null's expansion"
        return initial, ended, null

    def _shifts(self, base: Base, final: Spectrum, final_matrix: Matrix) -> None:
        initial, ended, null = self._plain_shift(base, final, final_matrix)
        decay = self.row["decay"] or 0.0
        if shifts_linearly(decay, self.row["relative_norm"]):
            without = shift(initial, ended.values, decay)
        else:
            rest = self.form(self.b, self.a, decay)
            plain = exact_values(rest) if initial.is_exact else values_only(rest)
            without = shift(initial, plain.values)
            if without is not None and (initial.error + plain.error) > 2e-6 * without * initial.norm:
                initial = exact_base(base, self.a, self.form)
                without = shift(initial, exact_values(rest).values)
        put_with_null(self.row, "nss_without_decay", without, null)
        self._bf16_shift(base, initial, null)

    def _bf16_shift(self, base: Base, initial: Spectrum, null: tuple[float, float] | None) -> None:
        """The same between the bfloat16 views; the null is matched to the norm that the update has there."""
        if self.on_grid:
            put_with_null(self.row, "nss_bf16", self.row["nss"], null)
            return
        first = base.bf16 or initial
        final = self.form(bf16_view(self.final))
        second = values_only(final)
        value = shift(first, second.values)
        if value is not None and value > 0 and (first.error + second.error) > 2e-6 * value * first.norm:
            first, second = exact_values(self.form(bf16_view(self.initial))), exact_values(final)
            value = shift(first, second.values)
        scale = math.sqrt(self.totals.bf16_delta_squares / self.totals.count)
        mean, deviation, holds = norm_nulls.shift_null(
            first.values, self.initial.shape[0], self.initial.shape[1], scale
        )
        put_with_null(self.row, "nss_bf16", value, (mean, deviation) if holds and scale > 0 else None)

    def _projections(self, stored: Spectrum | None, update: Matrix, pulled: np.ndarray | None) -> None:
        rows, columns = self.initial.shape
        smaller = min(rows, columns)
        shares = {"": self.settings.projection_fraction} | {
            f"_{100 * share:g}pct": share for share in PROJECTION_SHARES
        }
        sizes = {suffix: max(1, min(round(share * smaller), smaller)) for suffix, share in shares.items()}
        self.row["projection_k"] = sizes[""]
        if stored is None or pulled is None:
            put_undefined(self.row, *(f"projection_{name}{suffix}" for suffix in sizes for name in KINDS))
            return
        open_sizes = {k for k in sizes.values() if (k < smaller or rows != columns) and _is_open(stored.values, k)}
        if open_sizes:
            named = ", ".join(map(str, sorted(open_sizes)))
            self.row["projection_note"] = f"ill-posed: the gap after singular value {named} is numerically zero"
        most = max(sizes.values())
        squares = self.totals.delta_squares
        pushed = update.times_short(np.asfortranarray(stored.short[:, :most].astype(np.float32)))
        by_short = np.einsum("ij,ij->j", pushed, pushed, dtype=np.float64)
        by_long = np.einsum("ij,ij->j", pulled[:, :most], pulled[:, :most])
        core = np.square(update.multiply(stored.short[:, :most].T, np.asfortranarray(pulled[:, :most])))
        corner = core.cumsum(0).cumsum(1)
        left, right = (by_short, by_long) if update.is_wide else (by_long, by_short)
        for suffix, k in sizes.items():
            if k in open_sizes:
                put_undefined(self.row, *(f"projection_{name}{suffix}" for name in KINDS))
                continue
            energies = corner[k - 1, k - 1], left[:k].sum(), right[:k].sum()
            for name, energy, inside in zip(KINDS, energies, ((k, k), (k, None), (None, k)), strict=True):
                null = norm_nulls.projection_null(rows, columns, *inside)
                put(self.row, f"projection_{name}{suffix}", float(energy / squares), null)

    def _fast(self) -> None:
        """What needs no full spectrum: ranks of the update from one float32 Gram matrix."""
        shape, squares = (self.initial.shape[0], self.initial.shape[1]), self.totals.delta_squares
        if squares == 0:
            put_undefined(self.row, "stable_rank", "participation_ratio", "stable_rank_bf16")
            self.row["op_norm"] = 0.0
            return
        update = self.form(self.b, self.a)
        top, fourth = leading_and_fourth(update)
        put(self.row, "op_norm", math.sqrt(top))
        put(self.row, "stable_rank", squares / top, shape_nulls.stable_rank_null(*shape))
        null = shape_nulls.spectral_null(*shape, participation_ratio, lambda p: p)
        put(self.row, "participation_ratio", squares**2 / fourth, null)
        self._bf16_rank(True)

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
        rank, matrix = min(settings.mask_rank, min(shape)), self.form(self.a)
        stored = base.stored if base is not None else None
        if rank == min(shape) or (stored is not None and stored.values[rank] <= stored.errors[rank]):
            return magnitude_mask(self.a, take)  # nothing is left out: W0 itself, with its ties
        if stored is None:
            short, long, values = leading_directions(matrix, rank + 1)
            # Values below what a float32 Gram matrix resolves are no ties: W0 may end there.
            is_open = values[rank] > 1e-3 * values[0] and _gap(values, rank) <= SINGLE_RESOLUTION * values[0]
        else:
            short, long, values = stored.short, stored.long, stored.values
            is_open = _is_open(values, rank)
        if is_open:
            self.row["overlap_note"] = f"ill-posed for the principal mask: no gap after singular value {rank}"
            return None
        short, long, values = short[:, :rank], long[:, :rank], values[:rank]
        left, right = (short, long) if matrix.is_wide else (long, short)
        return reconstruction_mask(left * values, right, take)


def _pulled(update: Matrix, base: Base) -> np.ndarray:
    """`ΔWᵀU0` (for a wide matrix `ΔW·V0`), formed in float32 and widened: small beside what it is added to."""
    return update.times_long(base.stored.long.astype(np.float32)).astype(np.float64)


def _gap(values: np.ndarray, k: int) -> float:
    """`σ_k − σ_{k+1}`; beyond min(m, n) there are zeros."""
    return float(values[k - 1] - (values[k] if k < values.size else 0.0))


def _is_open(values: np.ndarray, k: int) -> bool:
    """Whether the leading k directions are not determined: the gap after them is numerically zero."""
    return _gap(values, k) <= RESOLUTION * float(values[0])
