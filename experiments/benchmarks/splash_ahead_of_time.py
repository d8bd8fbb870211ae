"""Does the TPU compiler take the splash kernel in the sharded model? On a host without a TPU, with the extra `tpu`:

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost \\
        python experiments/benchmarks/splash_ahead_of_time.py --topology v5e:2x4

Compiles hidden states and their gradient at the widths of Qwen3-0.6B and prints what the compiler says of the program.
Nothing is run.
"""

import argparse
import dataclasses
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from model import SHAPES

from jaxgeom.models import Qwen3
from jaxgeom.models.load import abstract_parameters
from jaxgeom.sharding import batch_sharding, make_mesh, parameter_shardings, platform_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    options = parser.parse_args()
    devices: Any = topologies.get_topology_desc(options.topology, "tpu").devices
    mesh = make_mesh(data=1, fsdp=-1, tensor=2, devices=devices)
    config = dataclasses.replace(SHAPES["qwen3-0.6b"][0], num_hidden_layers=options.layers)
    model = Qwen3(config, dtype=jnp.bfloat16, remat=True, platform=platform_of(mesh), mesh=mesh)
    shapes = abstract_parameters(model)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_shardings(shapes, mesh),
    )
    rows = batch_sharding(mesh)
    tokens, valid = (
        jax.ShapeDtypeStruct((options.rows, options.length), dtype, sharding=rows) for dtype in (jnp.int32, jnp.bool_)
    )

    def squares(params: dict[str, Any], tokens: jax.Array, valid: jax.Array) -> jax.Array:
        hidden = cast(Any, model).apply({"params": params}, tokens, valid=valid, method="hidden_states")
        return jnp.sum(jnp.square(hidden.astype(jnp.float32)))

    start = time.perf_counter()
    compiled: Any = jax.jit(jax.value_and_grad(squares)).lower(params, tokens, valid).compile()
    memory = compiled.memory_analysis()
    print(
        f"{options.topology}, {options.layers} layers, {options.rows}x{options.length}: compiled in "
        f"{time.perf_counter() - start:.0f} s, {compiled.as_text().count('tpu_custom_call')} calls of the kernel; per "
        f"device {memory.argument_size_in_bytes / 2**20:.0f} MiB of arguments, "
        f"{memory.temp_size_in_bytes / 2**20:.0f} MiB of scratch"
    )


if __name__ == "__main__":
    main()
