"""Bases and masks of a confined run, made from checkpoints matrix by matrix; its optimizer; what leaks out of it."""

import functools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxgeom import processes
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.checkpoints.runs import named_run
from jaxgeom.checkpoints.tensors import Checkpoint, Tensor
from jaxgeom.diagnostics import (
    as_matrix,
    changed_mask,
    low_magnitude_mask,
    principal_mask,
    subspace_leakage,
    top_subspaces,
)
from jaxgeom.diagnostics.matrix_spec import is_spec
from jaxgeom.errors import UserError, listed
from jaxgeom.models import Qwen3Config, checked_config
from jaxgeom.models.load import qwen3_tensors
from jaxgeom.models.names import HFTensor, from_hf, hf_tensors, spectral_specs
from jaxgeom.optimizers import confined, masked_training, subspace_coordinates
from jaxgeom.optimizers.confinement import project
from jaxgeom.optimizers.masking import within_masks
from jaxgeom.sharding import parameter_shardings
from jaxgeom.training.confine_settings import ConfineSettings

_EXACT = 1024
"""Matrices whose shorter side is longer get their leading directions from Krylov products: no whole decomposition."""


class Confinement(NamedTuple):
    """What confines a run.

    Attributes:
        settings: how.
        trees: bases `[*batch, in or out, K]` float32, or masks in the leaves' own layout; None at other leaves.
        specs: `MatrixSpec` at the leaves that are confined, None at the others.
        notes: sentences on what is not as asked for.
    """

    settings: ConfineSettings
    trees: PyTree
    specs: PyTree
    notes: tuple[str, ...] = ()

    def wrap(self, inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        """The optimizer, confined; its update takes `start`, the parameters of the run's start."""
        settings = self.settings
        if settings.confine == "mask":
            masks = self.trees
            if settings.unconfined == "frozen":
                masks = jax.tree.map(
                    lambda spec, mask: jnp.zeros((), bool) if spec is None else mask, self.specs, masks,
                    is_leaf=is_spec,
                )  # fmt: skip
            return masked_training(inner, masks)
        assert settings.confine is not None
        return confined(
            inner, self.trees, settings.confine, side=settings.basis_side, specs=self.specs,
            others=settings.unconfined, gradients_in_coordinates=True,
        )  # fmt: skip

    @property
    def sums_coordinates(self) -> bool:
        """Whether gradients are had in the subspace's coordinates, and summed over parts and devices there."""
        return self.settings.confine == "coordinates"

    def gradients(self, gradients: PyTree, opt_state: Any) -> PyTree:
        """Gradients as the optimizer takes them: in coordinates where `sums_coordinates`, 0 `[]` at frozen leaves."""
        if not self.sums_coordinates:
            return gradients
        found = subspace_coordinates(gradients, opt_state.bases, specs=self.specs, side=self.settings.basis_side)
        return self._without_frozen(found, opt_state)

    def inside(self, gradients: PyTree, opt_state: Any) -> PyTree:
        """The part of gradients that lies in the subspace or mask, in any form: its norm is that of its coordinates.

        Args:
            gradients: what `gradients` returned.
            opt_state: of the optimizer that `wrap` made.

        Returns:
            A tree of the same layout; 0 `[]` at frozen leaves.
        """
        if self.sums_coordinates:
            return gradients
        if self.settings.confine == "mask":
            return within_masks(gradients, opt_state.masks)
        return self._without_frozen(
            project(gradients, opt_state.bases, self.settings.basis_side, self.specs), opt_state
        )

    def _without_frozen(self, tree: PyTree, opt_state: Any) -> PyTree:
        if self.settings.unconfined == "free":
            return tree
        return jax.tree.map(
            lambda basis, leaf: jnp.zeros((), leaf.dtype) if basis is None else leaf, opt_state.bases, tree,
            is_leaf=lambda node: node is None,
        )  # fmt: skip

    def leakage(self, params: PyTree, start: PyTree, opt_state: Any) -> dict[str, Float[Array, ""]]:
        """Share of the update's energy outside of the subspace or mask, over the matrices that moved.

        Args:
            params: now.
            start: of the run.
            opt_state: of the optimizer that `wrap` made; it holds the bases or masks.

        Returns:
            `leakage`, the mean over matrices, and `leakage_max`, the largest; NaN where none moved.
        """
        shares = []
        held_trees = opt_state.masks if self.settings.confine == "mask" else opt_state.bases
        for now, first, held, spec in zip(
            jax.tree.leaves(params), jax.tree.leaves(start),
            jax.tree.leaves(held_trees, is_leaf=lambda node: node is None),
            jax.tree.leaves(self.specs, is_leaf=is_spec), strict=True,
        ):  # fmt: skip
            if spec is None:
                continue
            delta = as_matrix(now - first, spec)
            if self.settings.confine == "mask":
                outside = jnp.where(as_matrix(held, spec), 0.0, delta)
                share = jnp.sum(outside**2, axis=(-2, -1)) / jnp.sum(delta**2, axis=(-2, -1))
            else:
                share = subspace_leakage(delta if self.settings.basis_side == "right" else delta.mT, held)
            shares.append(share.astype(jnp.float32).reshape(-1))
        every = jnp.concatenate(shares)
        return {"leakage": jnp.nanmean(every), "leakage_max": jnp.nanmax(every)}


def make_confinement(
    settings: ConfineSettings,
    config: Qwen3Config,
    *,
    model: str | Path,
    base: str | Path | None = None,
    basis_from: str | Path | None = None,
    mask_from: str | Path | None = None,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
) -> Confinement | None:
    """The bases or masks of a run, read and computed one matrix at a time; None where nothing confines it.

    Args:
        settings: what to confine to.
        config: architecture of the model.
        model: the run's start.
        base: of an adapter.
        basis_from: `RUN@STEP` that "delta" is the update of.
        mask_from: `RUN@STEP` that "changed" is the change of.
        seed: of "random".
        mesh: devices of the parameters.

    Raises:
        UserError: a source that is missing, no checkpoint of a run, of another architecture, or without any change.
    """
    settings.require_sources(basis_from, mask_from)
    if settings.confine is None:
        return None
    is_mask = settings.confine == "mask"
    source = mask_from if is_mask else basis_from
    sides = _sides_of_run(source, config) if source is not None else (_tensors(model, config, base),)
    kind = settings.mask if is_mask else settings.basis
    specs, notes = spectral_specs(config), _Notes()
    trees = jax.tree.map(lambda _: None, specs, is_leaf=is_spec)
    for path, group in _leaves(config):
        made = []
        for tensor in group:
            read = () if kind == "random" else sides  # that takes the shape alone
            matrices = [jnp.asarray(side[tensor.name].read().astype(np.float32)) for side in read]
            generator = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
            if is_mask:
                found = from_hf(config, tensor, np.asarray(_mask(kind, settings, matrices, generator, tensor)))
            else:
                found = _basis(kind, settings, matrices, generator, tensor, notes)
            made.append(processes.as_first_has(found))
        batch = (config.num_hidden_layers,) + ((config.num_experts,) if group[0].expert is not None else ())
        leaf = np.stack(made).reshape(*batch, *made[0].shape)
        functools.reduce(lambda node, key: node[key], path[:-1], trees)[path[-1]] = leaf
    notes = processes.from_first(lambda: notes)  # what is refused for them is refused by all
    if is_mask and not any(leaf.any() for leaf in jax.tree.leaves(trees)):
        if settings.mask == "changed":
            raise UserError(f"mask_from={mask_from}: nothing changed visibly since that run's start")
        raise UserError(
            f"mask_fraction={settings.mask_fraction}: less than half an entry of every matrix; none is left"
        )
    if len(notes.unmoved) == sum(len(group) for _, group in _leaves(config)):
        if kind == "delta":
            raise UserError(f"basis_from={basis_from}: no confined matrix changed since that run's start")
        raise UserError(f"basis={kind}: {model}: every confined matrix is 0 and has no directions")
    trees = _placed({"masks" if is_mask else "bases": trees}, mesh)["masks" if is_mask else "bases"]
    what = f"mask {settings.mask}" if is_mask else f"{settings.basis} basis, rank {settings.basis_rank}"
    if source is not None and (run := named_run(source)) is not None:
        what += f", of {run.run}@{run.saved_step()}"
    said = f"confined by {settings.confine} ({what}); embeddings, head, norms, biases, routers: {settings.unconfined}"
    return Confinement(settings, trees, specs, (said, *notes.sentences(settings.basis_rank, kind)))


def require_source(source: str | Path, config: Qwen3Config) -> None:
    """Refuses a checkpoint that no basis or mask of a model can be made from; reads no array.

    Args:
        source: `RUN@STEP`.
        config: architecture of the model that is confined.

    Raises:
        UserError: no checkpoint of a run, its start, or matrices of other shapes.
    """
    _sides_of_run(source, config)


def require_alike(source: Qwen3Config, config: Qwen3Config, where: str) -> None:
    """Refuses an architecture whose confined matrices are not those of another one.

    Args:
        source: what a basis or mask is made from.
        config: of the model that is confined.
        where: names the source in the message.

    Raises:
        UserError: the first matrix of another shape is named.
    """
    shapes = {tensor.name: tuple(tensor.shape) for _, group in _leaves(source) for tensor in group}
    if source.num_hidden_layers != config.num_hidden_layers:
        raise UserError(f"{where}: {source.num_hidden_layers} layers, the model has {config.num_hidden_layers} layers")
    for tensor in (one for _, group in _leaves(config) for one in group):
        there = shapes.get(tensor.name)
        if there != tuple(tensor.shape):
            what = "has no" if there is None else f"{there} is the shape of"
            raise UserError(f"{where}: {what} {tensor.name}, the model's is {tuple(tensor.shape)}")


class _Notes:
    """What is found while bases are made."""

    def __init__(self) -> None:
        self.unmoved: list[str] = []
        self.small: dict[str, int] = {}
        self.poor: dict[str, int] = {}

    def sentences(self, rank: int, kind: str) -> tuple[str, ...]:
        found = []
        if self.unmoved:
            why = "did not change since that run's start" if kind == "delta" else "0 in the model"
            found.append(f"{listed(self.unmoved)}: {why}, so without directions: they have no gradient")
        for ranks, reason in ((self.small, "the matrix has no more"), (self.poor, "the update has no more")):
            if ranks:
                few = f"{min(ranks.values())} to {max(ranks.values())} directions in place of {rank}"
                found.append(f"{listed(list(ranks))}: {few}, {reason}")
        return tuple(found)


def _basis(
    kind: str, settings: ConfineSettings, matrices: list[Array], generator: np.random.Generator, tensor: HFTensor,
    notes: _Notes,
) -> np.ndarray:  # fmt: skip
    """Orthonormal columns `[in or out, K]`, float32; columns of zeros for directions that the update does not have."""
    out, in_ = tensor.shape
    rank = min(settings.basis_rank, out, in_)
    if rank < settings.basis_rank:
        notes.small[tensor.name] = rank
    if kind == "random":
        rows = in_ if settings.basis_side == "right" else out
        return np.linalg.qr(generator.normal(size=(rows, rank)))[0].astype(np.float32)
    matrix = matrices[1] - matrices[0] if kind == "delta" else matrices[0]
    left, values, right = (np.asarray(part) for part in _top(matrix, rank, _method(tensor)))
    basis = right if settings.basis_side == "right" else left
    if values[0] == 0:
        notes.unmoved.append(tensor.name)
        return np.zeros_like(basis)
    # The norm of what rounding W to float32 adds to a difference: a direction below it means nothing.
    rounding = np.finfo(np.float32).eps / 2 * float(jnp.sqrt(jnp.mean(matrices[0] ** 2))) * (out**0.5 + in_**0.5)
    has = values[:rank] > (rounding if kind == "delta" else 0.0)
    if not has.all():
        notes.poor[tensor.name] = int(has.sum())
    return np.where(has, basis, 0).astype(np.float32)


def _method(tensor: HFTensor) -> str:
    """How the leading directions of a matrix are had."""
    return "krylov" if min(tensor.shape) > _EXACT else "svd"


@functools.partial(jax.jit, static_argnums=(1, 2))
def _top(matrix: Array, rank: int, method: str) -> tuple[Array, Array, Array]:
    left, values, right = top_subspaces(matrix, k=rank, method=method)
    return left, values, right


def _mask(
    kind: str, settings: ConfineSettings, matrices: list[Array], generator: np.random.Generator, tensor: HFTensor
) -> Any:
    """The trained entries of a matrix, bool `[out, in]`."""
    if kind == "changed":
        return changed_mask(matrices[0], matrices[1])
    fraction = settings.mask_fraction
    if kind == "low-magnitude":
        return low_magnitude_mask(matrices[0], fraction=fraction)
    if kind == "principal":
        method = _method(tensor)
        return principal_mask(matrices[0], rank=settings.mask_rank, fraction=fraction, method=method)
    size = math.prod(tensor.shape)
    mask = np.zeros(size, bool)
    mask[generator.choice(size, int(np.floor(fraction * size + 0.5)), replace=False)] = True
    return mask.reshape(tensor.shape)


def _leaves(config: Qwen3Config) -> Iterator[tuple[tuple[str, ...], list[HFTensor]]]:
    """The confined leaves: their paths, and the tensors that they are stacked of, in order."""
    specs, groups = spectral_specs(config), {}
    for tensor in hf_tensors(config):
        if functools.reduce(lambda node, key: node[key], tensor.path, specs) is not None:
            groups.setdefault(tensor.path, []).append(tensor)
    yield from groups.items()


def _tensors(path: str | Path, config: Qwen3Config, base: str | Path | None = None) -> dict[str, Tensor]:
    checkpoint: Checkpoint = open_checkpoint(path, base=base)
    return qwen3_tensors(checkpoint, config)


def _sides_of_run(source: str | Path, config: Qwen3Config) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The start of a run and one of its steps."""
    found = named_run(source)
    if found is None:
        raise UserError(f"{source}: no checkpoint of a run, RUN@STEP, whose start is known")
    step = found.saved_step()
    if step == 0:
        raise UserError(f"{source}: step 0 is that run's start; nothing has changed there")
    start, end = f"{found.run}@0", f"{found.run}@{step}"
    own = checked_config(open_checkpoint(end))  # its head may be tied or not: that is not read
    require_alike(own, config, str(source))
    return _tensors(start, own), _tensors(end, own)


def _placed(trees: PyTree, mesh: jax.sharding.Mesh | None) -> PyTree:
    if mesh is None:
        return jax.tree.map(jnp.asarray, trees)
    return jax.tree.map(processes.placed, trees, parameter_shardings(trees, mesh))
