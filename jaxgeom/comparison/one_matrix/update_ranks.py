"""Ranks, tail and leading energy of the update of one matrix: which decomposition each of them is read from."""

import math

import numpy as np

from jaxgeom.comparison.algebra.krylov import leading_and_fourth, leading_square
from jaxgeom.comparison.algebra.matrix import Matrix
from jaxgeom.comparison.algebra.spectrum import Spectrum, exact_values, values_only
from jaxgeom.comparison.one_matrix.rows import Row, put_numbers
from jaxgeom.comparison.one_matrix.scan import EntrySums
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics import update_numbers as families
from jaxgeom.diagnostics.null_isotropic import carried

ENTROPY_ERROR = 2e-6
"""Error of log(entropy rank) beyond which the bidiagonal route takes the spectrum again: a fifth of the 1e-5 to which
ranks are stated."""

SPARSE = "the spectrum of so sparse a matrix follows no law of that; --permutation-draws samples it"

RANK_KEYS = ("", "_null", "_excess", "_z")


def full(row: Row, update: Matrix, totals: EntrySums, settings: CompareSettings) -> None:
    """Everything that the full spectrum of ΔW tells.

    Args:
        row: receives the numbers.
        update: ΔW `[out, in]`.
        totals: scan of the pair.
        settings: parameters.
    """
    shape = update.array.shape
    order = settings.hill_order(min(shape))
    values = update_spectrum(update, order).values if totals.delta_squares > 0 else np.zeros(min(shape))
    numbers = families.update_statistics(
        values, shape=shape, kurtosis=np.float64(totals.kurtosis), hill_k=order, subspace_k=settings.subspace_k
    )
    put_numbers(row, numbers)
    row["hill_k"] = order
    put_rank_note(row, shape, totals.kurtosis)


def fast(row: Row, update: Matrix, totals: EntrySums) -> None:
    """Ranks from one float32 Gram matrix of ΔW; arguments as in `full`."""
    top, fourth = leading_and_fourth(update) if totals.delta_squares > 0 else (0.0, 0.0)
    squares, shape = np.float64(totals.delta_squares), update.array.shape
    kurtosis = np.float64(totals.kurtosis)
    put_numbers(
        row, families.leading_statistics(squares, np.float64(top), np.float64(fourth), shape=shape, kurtosis=kurtosis)
    )
    put_rank_note(row, shape, totals.kurtosis)


def put_rank_note(row: Row, shape: tuple[int, ...], kurtosis: float, view: str = "") -> None:
    """Says why ranks, tail and leading energy have no z, or no null, where few entries carry the update.

    Args:
        row: receives `rank_note`, unless it holds one or there is nothing to say.
        shape: of the matrix.
        kurtosis: of the entries, NaN for an update of zero.
        view: which of them, where it is not what is stored.
    """
    near, known = carried(shape, np.float64(kurtosis))
    if not known:
        what = "z" if near else "null"
        note = f"no {what}{view}: few entries carry the update (kurtosis {kurtosis:.3g}), and {SPARSE}"
        row.setdefault("rank_note", note)


def bf16(row: Row, difference: Matrix, totals: EntrySums) -> None:
    """Stable rank of the update that a bfloat16 reader sees.

    Args:
        row: receives it.
        difference: difference of the bfloat16 views `[out, in]`.
        totals: scan of the pair.
    """
    squares = totals.bf16_delta_squares
    top = leading_square(difference) if squares > 0 else 0.0
    numbers = families.stable_rank_statistics(
        np.float64(squares), np.float64(top), shape=difference.array.shape,
        kurtosis=np.float64(totals.bf16_kurtosis), key="stable_rank_bf16",
    )  # fmt: skip
    put_numbers(row, numbers)
    put_rank_note(row, difference.array.shape, totals.bf16_kurtosis, " in the bfloat16 view")


def copy_as_bf16(row: Row) -> None:
    """What is stored is what a bfloat16 reader sees: the stable rank under both names."""
    row |= {f"stable_rank_bf16{kind}": row[f"stable_rank{kind}"] for kind in RANK_KEYS}


def entropy_error(values: np.ndarray, errors: np.ndarray) -> float:
    """First-order bound on the error of the entropy H of `σ/Σσ` that errors of the singular values bring.

    `|dH| ≤ Σ |dσ_i|·(|log(σ_i/Σσ)| + H)/Σσ`, with 12 ≥ log p for H.

    Args:
        values: singular values `[p]`, not all zero.
        errors: bound on the error of each `[p]`.
    """
    total = float(values.sum())
    share = np.maximum(values, errors) / total
    return float((errors / total * (np.abs(np.log(share)) + 12)).sum())


def update_spectrum(update: Matrix, order: int) -> Spectrum:
    """Spectrum of ΔW, by the bidiagonal route where small values would spoil the entropy rank or the Hill estimate.

    Args:
        update: ΔW `[out, in]`.
        order: k of the Hill estimate.
    """
    spectrum = values_only(update)
    if spectrum.values[0] == 0:
        return spectrum
    spoilt = entropy_error(spectrum.values, spectrum.errors) > ENTROPY_ERROR or not order_is_resolved(spectrum, order)
    return exact_values(update) if spoilt else spectrum


def order_is_resolved(spectrum: Spectrum, order: int) -> bool:
    """Whether σ_order stands clear of the errors of the values: else a Hill estimate would read noise.

    At 1e-4·σ₁ the Gram matrix holds a value to `eps·σ₁²/σ² = 4e-8` of it; a value of zero is known to be that.

    Args:
        spectrum: singular values of ΔW.
        order: k of the Hill estimate.
    """
    value = float(spectrum.values[order - 1])
    return spectrum.is_exact or value > 1e-4 * float(spectrum.values[0]) or math.isclose(value, 0.0, abs_tol=0.0)
