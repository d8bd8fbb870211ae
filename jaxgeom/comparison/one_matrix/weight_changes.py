"""What an update did to the weights of one matrix: spectral shift, rotation and projection on W0's subspaces.

Here the spectra are chosen and the products formed; the numbers, their nulls and what leaves them undefined are those
of `jaxgeom.diagnostics.weight_numbers`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxgeom.comparison.algebra import lapack
from jaxgeom.comparison.algebra.matrix import Matrix, MatrixMaker
from jaxgeom.comparison.algebra.spectrum import Spectrum, decompose, exact_values, values_only
from jaxgeom.comparison.one_matrix.base_spectra import Base, exact_base
from jaxgeom.comparison.one_matrix.rotation import principal_angles
from jaxgeom.comparison.one_matrix.rows import Row, put_numbers, put_undefined
from jaxgeom.comparison.one_matrix.scan import EntrySums, bf16_view
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics import weight_numbers as families
from jaxgeom.diagnostics.null_rotation import (
    SampledAngles,
    axis_angles,
    noise_window,
    norm_matched_angles,
    rotation_draws,
    rotation_is_large,
)
from jaxgeom.diagnostics.null_shift import ShiftNull, norm_matched_shift
from jaxgeom.diagnostics.spectral_numbers import capped_rank, nss_from_singular_values, shifts_linearly, spectral_gap

SHIFTS = ("nss", "nss_bf16", "nss_without_decay")
ANGLES = tuple(f"angle_{side}_{figure}_deg" for side in ("left", "right") for figure in ("mean", "max"))
KINDS = ("joint", "left", "right")
"""Projection energies: inside both subspaces, the left one, the right one."""

SHIFT_ERROR = 2e-6
"""Relative error of a spectral shift beyond which the bidiagonal route takes the spectra again: a fifth of the 1e-5 to
which shifts are stated."""


def projection_sizes(settings: CompareSettings, shape: tuple[int, ...]) -> dict[str, int]:
    """k of the projection energies by the suffix of their keys."""
    shares = {"": settings.projection_fraction} | {
        f"_{100 * share:g}pct": share for share in families.PROJECTION_SHARES
    }
    return {suffix: families.projection_rank(share, shape) for suffix, share in shares.items()}


def put_undefined_changes(row: Row, settings: CompareSettings, shape: tuple[int, ...]) -> None:
    """Writes the row's keys for an initial matrix that is zero."""
    sizes = projection_sizes(settings, shape)
    row |= {"angle_k": capped_rank(settings.angle_k, shape), "angle_gap": None, "projection_k": sizes[""]}
    put_undefined(row, *SHIFTS, *ANGLES, *(f"projection_{name}{suffix}" for suffix in sizes for name in KINDS))
    row["nss_note"] = row["angle_note"] = "undefined: the initial matrix is zero"


@dataclasses.dataclass
class WeightChanges:
    """Measures one matrix against the spectrum of its W0, which is not zero.

    Attributes:
        row: receives the numbers; holds the decay component and the relative norm, unless `plain`.
        initial, final: stored arrays `[out, in]`.
        a, b: the same widened to float32, `[out, in]`.
        on_grid: whether every entry of both is a bfloat16 number.
        totals: scan of the pair.
        base: spectra of W0.
        update: ΔW `[out, in]`.
        settings: parameters.
        make_matrix: `Matrix`, or what makes one on an accelerator.
        rng: source of the draws.
        save: keeps the base again when it has gained exact values.
    """

    row: Row
    initial: np.ndarray
    final: np.ndarray
    a: np.ndarray
    b: np.ndarray
    on_grid: bool
    totals: EntrySums
    base: Base
    update: Matrix
    settings: CompareSettings
    make_matrix: MatrixMaker
    rng: np.random.Generator
    save: Callable[[], None]

    def measure(self, *, plain: bool = False) -> None:
        """Shifts, angles and, unless `plain`, projections and the further shifts."""
        pulled = None
        if self.totals.delta_squares > 0:
            # ΔWᵀU0 (for a wide matrix ΔW·V0), formed in float32 and widened: small beside what it is added to.
            pulled = self.update.times_long(self.base.stored.long.astype(np.float32)).astype(np.float64)
        self.k = capped_rank(self.settings.angle_k, self.initial.shape)
        self.row["angle_k"] = self.k
        if pulled is None:
            self._still(plain)
        else:
            final_matrix = self.make_matrix(self.b)
            final = decompose(final_matrix, self.k, long=False)
            self._shifts(final, final_matrix, plain)
            self._angles(final, final_matrix, pulled)
        if not plain:
            self._projections(pulled)

    @property
    def _norm(self) -> float:
        return math.sqrt(self.totals.delta_squares)

    def _still(self, plain: bool) -> None:
        """An update of norm zero: at its null, which is a point, so that there is no z."""
        self.row["angle_gap"] = float(spectral_gap(self.base.stored.values, k=self.k))
        for name in (*(SHIFTS[:1] if plain else SHIFTS), *ANGLES):
            at_null = {f"{name}{kind}": 0.0 for kind in ("", "_null", "_excess")}
            put_numbers(self.row, at_null | {f"{name}_z": math.nan})

    def _shifts(self, final: Spectrum, final_matrix: Matrix, plain: bool) -> None:
        initial, ended = self.base.stored, final
        if self._is_spoiled(initial, ended):
            initial = self._exact_base()
            ended = ended if ended.is_exact else exact_values(final_matrix)
        null = self._shift_null(initial, self._norm)
        put_numbers(self.row, families.shift_statistics(initial.values, ended.values, null))
        if not null.holds:
            self.row["nss_note"] = "the update is too large for the null's expansion"
        if plain:
            return
        decay = self.row["decay"] or 0.0
        rest = ended
        if not shifts_linearly(decay, self.row["relative_norm"]):
            matrix, decay = self.make_matrix(self.b, self.a, decay), 0.0
            rest = exact_values(matrix) if initial.is_exact else values_only(matrix)
            if self._is_spoiled(initial, rest):
                initial, rest = self._exact_base(), exact_values(matrix)
        numbers = families.shift_statistics(initial.values, rest.values, null, key="nss_without_decay", decay=decay)
        put_numbers(self.row, numbers)
        self._bf16_shift(initial)

    def _is_spoiled(self, initial: Spectrum, final: Spectrum) -> bool:
        """Whether the errors of the two spectra show in their shift."""
        shift = float(np.linalg.norm(final.values - initial.values))
        return not (initial.is_exact and final.is_exact) and initial.error + final.error > SHIFT_ERROR * shift

    def _exact_base(self) -> Spectrum:
        exact = exact_base(self.base, self.a, self.make_matrix)
        self.save()
        return exact

    def _shift_null(self, spectrum: Spectrum, norm: float) -> ShiftNull:
        return norm_matched_shift(spectrum.values, np.float64(norm), shape=self.initial.shape)

    def _bf16_shift(self, initial: Spectrum) -> None:
        """The same between the bfloat16 views; the null is matched to the norm that the update has there."""
        if self.on_grid:
            self.row |= {f"nss_bf16{kind}": self.row[f"nss{kind}"] for kind in ("", "_null", "_excess", "_z")}
            return
        first, final = self.base.bf16 or initial, self.make_matrix(bf16_view(self.final))
        second = values_only(final)
        if nss_from_singular_values(first.values, second.values) > 0 and self._is_spoiled(first, second):
            first, second = exact_values(self.make_matrix(bf16_view(self.initial))), exact_values(final)
        null = self._shift_null(first, math.sqrt(self.totals.bf16_delta_squares))
        put_numbers(self.row, families.shift_statistics(first.values, second.values, null, key="nss_bf16"))

    def _angles(self, final: Spectrum, final_matrix: Matrix, pulled: np.ndarray) -> None:
        stored, k, shape = self.base.stored, self.k, (self.initial.shape[0], self.initial.shape[1])
        decay = self.totals.counts.decay
        flags = families.angle_flags(stored.values, final.values, norm=self._norm, decay=decay, k=k)
        if flags.open:
            self.row["angle_gap"] = float(flags.gap)
            put_undefined(self.row, *ANGLES)
            self.row["angle_note"] = f"ill-posed: the gap after singular value {k} is numerically zero"
            return
        short, long = principal_angles(stored, final, final_matrix, pulled, k)
        left, right = (short, long) if self.update.is_wide else (long, short)
        norm, sampled = np.float64(self._norm), None
        if rotation_is_large(stored.values, norm, k=k, shape=shape):
            self.row["angle_null_form"] = "sampled: SVD of W0 plus noise"
            sampled = self._samples(shape)
        draws = rotation_draws(self.rng, shape=shape, k=k, draws=self.settings.null_draws)
        null = norm_matched_angles(
            stored.values, norm, draws, k=k, shape=shape, sampled=sampled, single=lapack.symmetric_values
        )
        put_numbers(self.row, families.put_angles(left, right, null, flags, still=np.bool_(False)))
        if flags.crossed:
            extent = f", and {flags.near} singular values lie within that distance" if flags.blurred else ""
            self.row["angle_note"] = (
                f"ill-posed: singular value {k} moved by {flags.moved:.3g}, its gap is {flags.gap:.3g}{extent}"
            )

    def _samples(self, shape: tuple[int, int]) -> SampledAngles:
        """Angles of W0 plus isotropic noise by decomposing it in W0's singular bases: the noise is the same in any."""
        values, k = self.base.stored.values.astype(np.float32), self.k
        scale = np.float32(self._norm / math.sqrt(self.totals.count))
        cut, found = noise_window(k, shape), []
        for _ in range(self.settings.null_draws):
            noise = self.rng.standard_normal(shape, np.float32)
            window = noise[cut, cut].copy()
            noise *= scale
            noise[np.diag_indices(values.size)] += values
            matrix = self.make_matrix(noise)
            moved = decompose(matrix, k, long=True)
            short, long = axis_angles(moved.short, k), axis_angles(moved.long, k)
            found.append((short, long, window) if matrix.is_wide else (long, short, window))
        return SampledAngles(*(np.array(part) for part in zip(*found, strict=True)))

    def _projections(self, pulled: np.ndarray | None) -> None:
        stored, shape = self.base.stored, self.initial.shape
        sizes = projection_sizes(self.settings, shape)
        self.row["projection_k"] = sizes[""]
        if pulled is None:
            put_undefined(self.row, *(f"projection_{name}{suffix}" for suffix in sizes for name in KINDS))
            return
        most, squares = max(sizes.values()), self.totals.delta_squares
        pushed = self.update.times_short(np.asfortranarray(stored.short[:, :most].astype(np.float32)))
        by_short = np.einsum("ij,ij->j", pushed, pushed, dtype=np.float64)
        by_long = np.einsum("ij,ij->j", pulled[:, :most], pulled[:, :most])
        core = np.square(self.update.multiply(stored.short[:, :most].T, np.asfortranarray(pulled[:, :most])))
        corner = core.cumsum(0).cumsum(1)
        left, right = (by_short, by_long) if self.update.is_wide else (by_long, by_short)
        undetermined = set()
        for suffix, k in sizes.items():
            energies = corner[k - 1, k - 1], left[:k].sum(), right[:k].sum()
            unresolved = families.is_open(stored.values, k)
            shares = (np.float64(energy / squares) for energy in energies)
            numbers = families.projection_statistics(
                *shares, shape=shape, k=k, kurtosis=np.float64(self.totals.kurtosis), open=unresolved, suffix=suffix
            )
            put_numbers(self.row, numbers)
            if self.row[f"projection_left{suffix}"] is None:
                undetermined.add(k)
        if undetermined:
            named = ", ".join(map(str, sorted(undetermined)))
            self.row["projection_note"] = f"ill-posed: the gap after singular value {named} is numerically zero"
