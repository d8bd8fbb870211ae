"""Random orthonormal bases of a tiny model, without a checkpoint that they would be of."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.models.names import spectral_specs
from jaxgeom.training.confine_settings import ConfineSettings
from jaxgeom.training.confinement import Confinement


def random_confinement(config, params, form):
    """What confines a model's matrices to four random right directions each."""
    specs, rng = spectral_specs(config), np.random.default_rng(0)

    def basis(spec, leaf):
        if spec is None:
            return None
        in_ = int(np.prod([leaf.shape[axis] for axis in spec.in_]))
        return jnp.asarray(np.linalg.qr(rng.normal(size=(leaf.shape[0], in_, 4)))[0], jnp.float32)

    bases = jax.tree.map(basis, specs, params, is_leaf=lambda node: node is None or hasattr(node, "in_"))
    return Confinement(ConfineSettings(confine=form, basis_rank=4, basis="random"), bases, specs)
