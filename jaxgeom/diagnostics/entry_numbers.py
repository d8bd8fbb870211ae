"""The statistics that are counted entry by entry, each beside its null, by the keys of a report.

Functions of what is counted (`EntryCounts`, `MaskCounts`): the engine calls them with NumPy, `measure` inside jit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ._namespace import as_real, divide, namespace
from .counting import RMS_TOLERANCES, EntryCounts
from .moments import NullMoments, triple
from .rounding_cells import (  # fmt: skip
    cells_of,
    changed_law,
    decay_law,
    moments_of_share,
    overlap_law,
    scale_for_density,
    scale_for_norm,
    select,
)
from .shared_rounding import noise_share, spacing_counts
from .stored_noise import sum_by_class

OVERLAPS = ("overlap_principal", "overlap_low")
"""Overlaps of the changed entries with a mask of W0, by the keys of a report."""

DECILES = 10


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskCounts:
    """A mask of W0: its entries per magnitude `[..., 2¹⁵]`, and how many of its entries changed `[...]`."""

    histogram: Any
    changed: Any


def scale_of_update(counts: EntryCounts, plain: Any) -> Any:
    """The scale of the isotropic noise whose norm is the update's, `[...]`.

    Where W+ was rounded to bfloat16 and W0 is stored finer, anywhere in its cells, the twelfth of the squared cells
    that this alone adds is taken off; NaN where what is left is no noise that can be told (`noise_share`), and of other
    pairs that are stored unlike (`EntryCounts.is_coarser`): what their storage adds depends on the noise.

    Args:
      counts: of the pair, with histograms.
      plain: `scale_for_norm` of them.
    """
    xp = namespace(plain, counts.delta_norm)

    def unlike() -> Any:
        known = xp.logical_and(counts.is_open, xp.logical_not(counts.is_half_alone))
        share = noise_share(counts.delta_norm, *spacing_counts(counts.histogram, counts.storage))
        return xp.where(known, plain * xp.sqrt(share), xp.full_like(plain, np.nan))

    return select(counts.is_coarser, unlike, lambda: plain)


class IsotropicNull(NamedTuple):
    """Visible sparsity and decay component of an isotropic Gaussian update of equal Frobenius norm, after storage."""

    sparsity: NullMoments
    decay: NullMoments


def isotropic_null(counts: EntryCounts, *, eta: float) -> IsotropicNull:
    """Both moments at the scale that the update's norm gives.

    Args:
      counts: of the pair, with histograms.
      eta: relative tolerance η of the unchanged test.

    Returns:
      `IsotropicNull` of `[...]`. Deviations are those of the excess over the expectation at the fitted norm. That of
      the sparsity is NaN where less than one entry is at stake; both are where W+ is stored on a grid that W0 is not
      on (`EntryCounts.is_coarser`), and then the sparsity has a mean only if W0 is stored finer than bfloat16. The
      decay is NaN where W0 is zero.
    """
    cells = cells_of(counts, eta)
    xp = namespace(counts.delta_norm, cells.counts)
    plain = scale_for_norm(cells, xp.asarray(counts.delta_norm))
    scale = scale_of_update(counts, plain)
    expected, variance = changed_law(cells, xp.where(xp.isnan(scale), xp.zeros_like(scale), scale))
    size = cells.counts.sum(-1)
    moments = moments_of_share(1 - expected / size, variance, size)
    lost = xp.full_like(size, np.nan)
    mean = xp.where(xp.isnan(scale), lost, moments.mean)
    decay = NullMoments(*decay_law(cells, plain, counts.initial_norm))
    deviations = select(counts.is_coarser, lambda: (lost, lost), lambda: (moments.std, decay.std))
    return IsotropicNull(NullMoments(mean, deviations[0]), decay._replace(std=deviations[1]))


def entry_statistics(counts: EntryCounts, *, eta: float, nulls: bool = True) -> dict[str, Any]:
    """Sparsities, norms of the update and its decay component.

    Args:
      counts: of the pair.
      eta: relative tolerance η of the unchanged test.
      nulls: whether their nulls are taken, for which the counts must hold histograms.

    Returns:
      `{report key: [...]}`. NaN where W0 is zero and the statistic is relative to it.
    """
    xp = namespace(counts.delta_norm, counts.changed)
    size = as_real(counts.count, xp)

    def unchanged(count: Any) -> Any:
        return (size - count) / size

    sparsity, density = unchanged(counts.changed), counts.changed / size
    found: dict[str, Any] = {"sparsity_bf16": sparsity, "density_bf16": density}
    decay = None
    if nulls:
        null, decay = isotropic_null(counts, eta=eta)
        found = triple("sparsity_bf16", sparsity, null)
        found |= triple("density_bf16", density, NullMoments(1 - null.mean, null.std))
    found["sparsity_stored"] = unchanged(counts.differs)
    found["sparsity_abs_1e-5"] = unchanged(counts.beyond_absolute)
    defined = xp.where(xp.asarray(counts.initial_norm) > 0, size, xp.zeros_like(size))
    for place, tolerance in enumerate(RMS_TOLERANCES):
        beyond = as_real(counts.beyond_rms[..., place], xp)
        found[f"sparsity_rms_{tolerance:g}"] = divide(size - beyond, defined)
    found["share_beyond_half_ulp"] = counts.beyond_half_ulp / size
    relative = divide(counts.delta_norm, counts.initial_norm)
    found |= {"fro_norm": xp.asarray(counts.delta_norm), "relative_norm": relative}
    return found | (triple("decay", counts.decay, decay) if decay is not None else {"decay": xp.asarray(counts.decay)})


def decile_of_bins(histogram: Any) -> Any:
    """The decile of `|W0|` that each magnitude lies in, 0 for the smallest; cut between magnitudes.

    Args:
      histogram: entries per magnitude, `[..., 2¹⁵]`.

    Returns:
      `[..., 2¹⁵]`, 0 … 9, floating.
    """
    xp = namespace(histogram)
    counts = as_real(histogram, xp)
    total = counts.cumsum(-1)
    return xp.clip(xp.floor((total - counts) * DECILES / xp.maximum(total[..., -1:], 1.0)), 0, DECILES - 1)


def _by_decile(histogram: Any, part_of: Any, whole: Any) -> Any:
    xp = namespace(histogram)
    decile, shares = decile_of_bins(histogram), []
    for place in range(DECILES):
        inside = as_real(decile == place, xp)
        shares.append(divide(*((inside * as_real(one, xp)).sum(-1) for one in (part_of, whole))))
    return xp.stack(shares, axis=-1)


def hidden_by_decile(counts: EntryCounts) -> Any:
    """Of the visibly changed entries, the share that the absolute tolerance hides, by decile of `|W0|`.

    Args:
      counts: of the pair, with histograms.

    Returns:
      `[..., 10]`, smallest weights first; NaN where nothing of a decile changed.

    Reference:
      *Dense Supervision, Sparse Updates*, https://arxiv.org/abs/2606.13657
    """
    return _by_decile(counts.histogram, counts.hidden_histogram, counts.changed_histogram)


def density_by_decile(counts: EntryCounts) -> Any:
    """The share of entries that changed visibly, by decile of `|W0|`: the observed side of `rounding_null_by_decile`.

    Args:
      counts: of the pair, with histograms.

    Returns:
      `[..., 10]`, smallest weights first; NaN for a decile without entries.
    """
    return _by_decile(counts.histogram, counts.changed_histogram, counts.histogram)


def overlap_statistics(counts: EntryCounts, masks: Mapping[str, MaskCounts | None], *, eta: float) -> dict[str, Any]:
    """Overlap of the changed entries with masks of W0, beside the rounding null at the observed density.

    Args:
      counts: of the pair, with histograms.
      masks: by the key of the overlap; None for a mask that is not determined.
      eta: relative tolerance η of the unchanged test.

    Returns:
      `{report key: [...]}`, for every overlap its triple and `_enrichment`, and `rounding_scale`. NaN where nothing
      changed, or W0 is zero; without a null where a density of 1 fixes no scale, or W+ is float16 and W0 is not.
    """
    cells = cells_of(counts, eta)
    xp = namespace(counts.changed, cells.counts)
    defined = (xp.asarray(counts.changed) > 0) & (xp.asarray(counts.initial_norm) > 0)
    changed = xp.where(defined, as_real(counts.changed, xp), xp.full_like(cells.counts[..., 0], np.nan))
    scale = scale_for_density(cells, changed / cells.counts.sum(-1))
    scale = select(counts.is_half_alone, lambda: xp.full_like(scale, np.nan), lambda: scale)
    usable = xp.where(xp.isnan(scale), xp.ones_like(scale), scale)
    found: dict[str, Any] = {"rounding_scale": scale}
    for name, mask in masks.items():
        if mask is None:
            lost = xp.full_like(scale, np.nan)
            found |= triple(name, lost, NullMoments(lost, lost)) | {f"{name}_enrichment": lost}
            continue
        inside = sum_by_class(mask.histogram, cells.storage, eta)[..., cells.kept]
        mean, variance = overlap_law(cells, inside, usable)
        null = moments_of_share(mean, variance, changed)
        null = NullMoments(*(xp.where(xp.isnan(scale), xp.full_like(scale, np.nan), part) for part in null))
        overlap = mask.changed / changed
        found |= triple(name, overlap, null)
        uniform = inside.sum(-1) / cells.counts.sum(-1)
        baseline = xp.where(null.mean > 0, null.mean, uniform)
        found[f"{name}_enrichment"] = divide(overlap, baseline)
    return found
