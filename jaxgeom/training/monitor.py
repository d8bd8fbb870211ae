"""When a run is measured, and what it is measured against: its start, an earlier step, the step before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxgeom.models import Qwen3
from jaxgeom.models.names import spectral_specs
from jaxgeom.optimizers.leaves import own_copy
from jaxgeom.processes import whole
from jaxgeom.training.checkpointing import load_start
from jaxgeom.training.geometry import geometry_of
from jaxgeom.training.geometry_settings import GeometrySettings


class Monitor:
    """Measures a run's geometry where its settings ask for it.

    Args:
        settings: what is asked for.
        model: that is trained.
        start: the run's first parameters; they stay as they are.
        out: the run directory.
        done: the step that the run goes on from.
        mesh: of the parameters.
        say: told what is kept in memory.
    """

    def __init__(
        self, settings: GeometrySettings, model: Qwen3, start: PyTree, out: Path, done: int, mesh: Any,
        say: Callable[[str], Any],
    ):  # fmt: skip
        self._settings = settings
        self._geometry = geometry_of(spectral_specs(model.config), settings.geometry_rank)
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, start)
        self._on_host = settings.geometry_reference == "host"
        self._start = jax.tree.map(_own_shards, start) if self._on_host else start
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(start))
        say(f"geometry: the start's {size:,} bytes stay {'in host memory' if self._on_host else 'on the devices'}")
        self._bases: PyTree = None
        self._before: PyTree = None
        reference = settings.geometry_step
        if reference is not None and done >= reference:
            held = load_start(f"{out}@{reference}", mesh=mesh, compute_dtype="float32")[1]
            self._bases = self._geometry.subspaces(held, self._reference())

    def is_due(self, step: int) -> bool:
        """Whether the parameters after `step` steps are measured."""
        return step > 0 and step % self._settings.geometry_every == 0

    def before(self, step: int, params: PyTree) -> None:
        """Takes the parameters that step number `step` is about to change, where it is measured."""
        if self.is_due(step):
            self._before = own_copy(params)

    def after(self, step: int, params: PyTree) -> dict[str, float]:
        """What is measured after a step: nothing where it is not due.

        Args:
            step: steps taken.
            params: after them.

        Returns:
            By `geometry/…` the update since the start, by `step_geometry/…` the last step; of what is defined.
        """
        found: dict[str, Any] = {}
        if step == self._settings.geometry_step:
            self._bases = self._geometry.subspaces(params, self._reference())
        if self.is_due(step):
            beside = None if step == self._settings.geometry_step else self._bases
            found |= self._geometry.of_update(params, self._reference(), beside)
            if self._before is not None:
                found |= self._geometry.of_step(self._before, params)
        self._before = None
        numbers = {name: float(value) for name, value in whole(found).items()}
        return {name: value for name, value in numbers.items() if np.isfinite(value)}

    def _reference(self) -> PyTree:
        if not self._on_host:
            return self._start
        return jax.tree.map(_on_devices, self._start, self._shardings, is_leaf=lambda node: isinstance(node, _Shards))


class _Shards(NamedTuple):
    """What of an array lies on this process's devices, in host memory."""

    shape: tuple[int, ...]
    held: tuple[tuple[Any, np.ndarray], ...]


def _own_shards(array: jax.Array) -> _Shards:
    return _Shards(array.shape, tuple((shard.device, np.asarray(shard.data)) for shard in array.addressable_shards))


def _on_devices(shards: _Shards, sharding: jax.sharding.Sharding) -> jax.Array:
    parts = [jax.device_put(part, device) for device, part in shards.held]
    return jax.make_array_from_single_device_arrays(shards.shape, sharding, parts)
