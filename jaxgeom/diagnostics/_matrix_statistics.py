"""Statistics that need a matrix whole: its spectrum, its singular subspaces, masks of its entries. One at a time."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._decompose import matmul, transpose
from ._layout import count_true
from ._leaf_statistics import Numbers
from ._namespace import as_real, real
from ._sequential import svd, svd_values
from .angles import angles_from_bases
from .counting import EntryCounts, entry_counts, magnitude_histogram
from .entry_numbers import OVERLAPS, MaskCounts, overlap_statistics
from .masks import low_magnitude_mask, mask_of_reconstruction
from .moments import moments_of_draws, triple
from .null_rotation import (
    RotationDraws,
    SampledAngles,
    decomposed_noise,
    noise_window,
    norm_matched_angles,
    rotation_draws,
    rotation_is_large,
)
from .null_shift import norm_matched_shift
from .null_update import update_null_statistics
from .precision import bf16_view, grid_bits
from .selection import largest_mask
from .sparsity import changed_mask
from .spectral_numbers import (
    capped_rank,
    default_hill_k,
    numerical_zero,
    participation_ratio_from_singular_values,
    shifts_linearly,
    stable_rank_from_singular_values,
)
from .update_numbers import kurtosis_from_sums, update_statistics
from .weight_numbers import (
    PROJECTION_SHARES,
    angle_flags,
    is_open,
    projection_rank,
    projection_statistics,
    put_angles,
    shift_statistics,
)


class Svd(NamedTuple):
    """Reduced decomposition: `left [m, r]`, `values [r]`, `right [n, r]`."""

    left: jax.Array
    values: jax.Array
    right: jax.Array


class Source(NamedTuple):
    """Where the draws of a matrix's sampled nulls come from.

    Attributes:
      names: name of every matrix of the leaf in a report, whose draws are taken where there is no key.
      index: which of them this one is, traced.
      key: random key of this matrix, None for the report's own draws.
    """

    names: Sequence[str]
    index: jax.Array
    key: jax.Array | None


def report_generator(seed: int, name: str, purpose: str = "") -> np.random.Generator:
    """Source of a report's draws of one sampled null, the same in every run of the same seed and name."""
    digest = hashlib.sha256((name + purpose).encode()).digest()
    return np.random.default_rng([seed, *digest[:8]])


class MatrixPair:
    """W0 and W+ `[out, in]`; what several statistics need is computed once.

    Args:
      w0, w1: as stored, any floating dtype.
      source: of the draws.
      options: parameters of the statistics by name.
    """

    def __init__(self, w0: jax.Array, w1: jax.Array, source: Source, options: Mapping[str, Any]) -> None:
        self.w0, self.w1, self.source, self.options = w0, w1, source, options
        self.a, self.b = w0.astype(real(jnp)), w1.astype(real(jnp))
        self.shape: tuple[int, int] = (w0.shape[0], w0.shape[1])

    @functools.cached_property
    def counts(self) -> EntryCounts:
        """Counts of entries with histograms."""
        return entry_counts(self.w0, self.w1, eta=self.options["eta"])

    @functools.cached_property
    def delta(self) -> jax.Array:
        """`ΔW`, widened."""
        return self.b - self.a

    @functools.cached_property
    def kurtosis(self) -> jax.Array:
        """Kurtosis of the entries of ΔW about zero."""
        scale = jnp.max(jnp.abs(self.delta))
        squares = jnp.square(self.delta / jnp.where(scale > 0, scale, 1.0))
        return kurtosis_from_sums(float(squares.size), jnp.sum(squares), jnp.sum(jnp.square(squares)))

    @functools.cached_property
    def initial(self) -> Svd:
        """Decomposition of W0."""
        left, values, right = svd(self.a)
        return Svd(left, values, transpose(right))

    @functools.cached_property
    def final(self) -> Svd:
        """Decomposition of W+."""
        left, values, right = svd(self.b)
        return Svd(left, values, transpose(right))

    @functools.cached_property
    def masks(self) -> dict[str, jax.Array]:
        """Masks of W0 by the key of their overlap."""
        found = self._principal_mask(), low_magnitude_mask(self.w0, fraction=self._share)
        return dict(zip(OVERLAPS, found, strict=True))

    @functools.cached_property
    def principal_is_open(self) -> jax.Array:
        """Whether the rank of the reconstruction leaves its directions open."""
        rank = min(self.options["mask_rank"], *self.shape)
        if rank == min(self.shape):
            return jnp.zeros((), bool)
        return is_open(self.initial.values, rank) & ~self._ends(rank)

    @property
    def _share(self) -> float:
        return self.options["mask_fraction"]

    def _ends(self, rank: int) -> jax.Array:
        """Whether W0 has no direction beyond the rank."""
        values = self.initial.values
        return values[rank] <= numerical_zero(values, self.shape)

    def _principal_mask(self) -> jax.Array:
        rank = min(self.options["mask_rank"], *self.shape)
        if rank == min(self.shape):
            return largest_mask(self.a, self._share)
        return mask_of_reconstruction(self.a, *self.initial, rank=rank, fraction=self._share)


def update(pair: MatrixPair) -> Numbers:
    """What the full spectrum of ΔW tells."""
    hill_k = pair.options["hill_k"]
    order = min(hill_k, *pair.shape) if hill_k is not None else default_hill_k(pair.shape)
    return update_statistics(
        svd_values(pair.delta), shape=pair.shape, kurtosis=pair.kurtosis, hill_k=order,
        subspace_k=pair.options["subspace_k"],
    )  # fmt: skip


def shifts(pair: MatrixPair) -> Numbers:
    """Spectral shifts as stored, without decay, and of the bfloat16 views."""
    counts, sigma0, sigma1 = pair.counts, pair.initial.values, pair.final.values
    null = norm_matched_shift(sigma0, counts.delta_norm, shape=pair.shape)
    found = shift_statistics(sigma0, sigma1, null)
    # A report takes the spectrum of W+ again where decay is so small that it serves.
    linear = shifts_linearly(counts.decay, counts.delta_norm / counts.initial_norm)
    rest = jnp.where(linear, sigma1, svd_values(pair.b - counts.decay * pair.a))
    decay = jnp.where(linear, counts.decay, jnp.zeros_like(counts.decay))
    found |= shift_statistics(sigma0, rest, null, key="nss_without_decay", decay=decay)
    views = [svd_values(bf16_view(w).astype(sigma0.dtype)) for w in (pair.w0, pair.w1)]
    null = norm_matched_shift(views[0], counts.bf16_delta_norm, shape=pair.shape)
    return _where_initial(pair, found | shift_statistics(views[0], views[1], null, key="nss_bf16"))


def angles(pair: MatrixPair) -> Numbers:
    """Principal angles of both sides; the sampled null has the report's own draws where no key is given."""
    counts, shape = pair.counts, pair.shape
    k, norm = capped_rank(pair.options["angle_k"], shape), counts.delta_norm
    sigma0 = pair.initial.values
    flags = angle_flags(sigma0, pair.final.values, norm=norm, decay=counts.decay, k=k)
    sides = [
        angles_from_bases(before[:, :k], after[:, :k])
        for before, after in ((pair.initial.left, pair.final.left), (pair.initial.right, pair.final.right))
    ]
    large = rotation_is_large(sigma0, norm, k=k, shape=shape)
    draws, sampled = _rotation(pair, large, k)
    null = norm_matched_angles(sigma0, norm, draws, k=k, shape=shape, sampled=sampled)
    found = put_angles(sides[0], sides[1], null, flags, still=norm == 0)
    return _where_initial(pair, found) | {"angle_k": jnp.full_like(norm, k)}


def _rotation(pair: MatrixPair, large: jax.Array, k: int) -> tuple[RotationDraws, SampledAngles]:
    """Draws of the rotation null, and the angles of decomposed noise where the update is large."""
    shape, count = pair.shape, pair.options["null_draws"]
    scale = pair.counts.delta_norm / float(shape[0] * shape[1]) ** 0.5
    cut, sigma = noise_window(k, shape), pair.initial.values

    def draw(source: Any, with_noise: bool) -> tuple[Any, RotationDraws]:
        """Noise comes first where a report draws any."""
        if isinstance(source, np.random.Generator):
            noise = source.standard_normal((count, *shape), np.float32) if with_noise else None
            return noise, rotation_draws(source, shape=shape, k=k, draws=count)
        drawn = rotation_draws(source, shape=shape, k=k, draws=count, noise=with_noise)
        return drawn.noise, drawn._replace(noise=None)

    def drawn(with_noise: bool) -> tuple[Any, RotationDraws]:
        if pair.source.key is not None:
            return draw(pair.source.key, with_noise)

        def host(index: Any) -> Any:
            name = pair.source.names[int(index)]
            return draw(report_generator(pair.options["seed"], name), with_noise)

        generator = np.random.default_rng(0)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), draw(generator, with_noise))
        return jax.pure_callback(host, like, pair.source.index, vmap_method="sequential")

    def of_large() -> tuple[RotationDraws, SampledAngles]:
        noise, draws = drawn(True)
        left, right = decomposed_noise(jnp, sigma, scale, noise, k)
        return draws, SampledAngles(left, right, noise[:, cut, cut].astype(sigma.dtype))

    def of_small() -> tuple[RotationDraws, SampledAngles]:
        none, wide = jnp.zeros((count, k), sigma.dtype), cut.stop - cut.start
        return drawn(False)[1], SampledAngles(none, none, jnp.zeros((count, wide, wide), sigma.dtype))

    return jax.lax.cond(large, of_large, of_small)


def projections(pair: MatrixPair) -> Numbers:
    """Shares of ΔW's energy in the leading subspaces of W0."""
    top = pair.initial
    shares = {"": pair.options["projection_fraction"]} | {f"_{100 * share:g}pct": share for share in PROJECTION_SHARES}
    sizes = {suffix: projection_rank(share, pair.shape) for suffix, share in shares.items()}
    most, squares = max(sizes.values()), jnp.square(pair.counts.delta_norm)
    unit = pair.delta / jnp.where(squares > 0, jnp.sqrt(squares), 1.0)
    rows, columns = matmul(transpose(top.left[:, :most]), unit), matmul(unit, top.right[:, :most])
    corner = jnp.cumsum(jnp.cumsum(jnp.square(matmul(rows, top.right[:, :most])), 0), 1)
    left, right = jnp.cumsum(jnp.sum(jnp.square(rows), 1)), jnp.cumsum(jnp.sum(jnp.square(columns), 0))
    found: Numbers = {}
    for suffix, k in sizes.items():
        energies = (corner[k - 1, k - 1], left[k - 1], right[k - 1])
        defined = (jnp.where(squares > 0, energy, jnp.nan) for energy in energies)
        unresolved = is_open(top.values, k)
        found |= projection_statistics(
            *defined, shape=pair.shape, k=k, kurtosis=pair.kurtosis, open=unresolved, suffix=suffix
        )
    return _where_initial(pair, found) | {"projection_k": jnp.full_like(squares, sizes[""])}


def overlaps(pair: MatrixPair) -> Numbers:
    """Overlap of the changed entries with masks of W0, beside the rounding null."""
    bits, changed = grid_bits(pair.w0), changed_mask(pair.w0, pair.w1, eta=pair.options["eta"])
    masks = {
        name: MaskCounts(magnitude_histogram(bits, mask), count_true(mask & changed))
        for name, mask in pair.masks.items()
    }
    found = overlap_statistics(pair.counts, masks, eta=pair.options["eta"])
    hidden = {name: pair.principal_is_open & name.startswith("overlap_principal") for name in found}
    found = {name: jnp.where(hidden[name], jnp.nan, number) for name, number in found.items()}
    return found | {"mask_rank": jnp.full_like(found["rounding_scale"], min(pair.options["mask_rank"], *pair.shape))}


def _where_initial(pair: MatrixPair, found: Numbers) -> Numbers:
    """Undefined where W0 is zero."""
    nothing = pair.counts.initial_norm == 0
    return {name: jnp.where(nothing, jnp.nan, as_real(number, jnp)) for name, number in found.items()}


def update_nulls(pair: MatrixPair, *, kind: str) -> Numbers:
    """The null of visible sparsity and of the overlaps that keeps the update's scales, or its entries."""
    found = update_null_statistics(pair.w0, pair.w1, pair.masks, eta=pair.options["eta"], kinds=(kind,))
    hidden = {name: pair.principal_is_open & name.startswith("overlap_principal") for name in found}
    return {name: jnp.where(hidden[name], jnp.nan, number) for name, number in found.items()}


def permuted_ranks(pair: MatrixPair) -> Numbers:
    """Stable rank and participation ratio of ΔW beside those of its entries in random places.

    Raises:
      ValueError: where there are no draws.
    """
    count, size = pair.options["permutation_draws"], pair.delta.size
    if count < 2:
        raise ValueError(f"permutation_draws is {count}; the permutation null of ranks needs at least 2")

    def host(index: Any) -> np.ndarray:
        rng = report_generator(pair.options["seed"], pair.source.names[int(index)], "permutation")
        order = np.arange(size)
        found = np.empty((count, size), np.int32)
        for one in found:
            rng.shuffle(order)
            one[:] = order
        return found

    if pair.source.key is None:
        like = jax.ShapeDtypeStruct((count, size), np.int32)
        orders = jax.pure_callback(host, like, pair.source.index, vmap_method="sequential")
    else:
        keys = jax.random.split(jax.random.fold_in(pair.source.key, 1), count)
        orders = jax.lax.map(lambda key: jax.random.permutation(key, size), keys)
    flat = pair.delta.reshape(-1)
    found: Numbers = {}
    drawn = jax.lax.map(lambda order: svd_values(flat[order].reshape(pair.shape)), orders)
    own = svd_values(pair.delta)
    for name, measure in (
        ("stable_rank", stable_rank_from_singular_values),
        ("participation_ratio", participation_ratio_from_singular_values),
    ):
        values = measure(drawn)
        found |= triple(name, measure(own), moments_of_draws(values), "_permutation")
    return found
