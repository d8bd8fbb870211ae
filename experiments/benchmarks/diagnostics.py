"""Time, ratio and peak memory of the comparison beside float64 SVDs by PyTorch, on the shapes of a model given by name.

    python experiments/benchmarks/diagnostics.py qwen3-0.6b --layers 3
    python experiments/benchmarks/diagnostics.py qwen3-8b --layers 2 --suites fast

The baseline is what *On the Geometry of On-Policy Distillation* describes: per matrix a full float64 SVD of W0 and of
W+ and the singular values of ΔW. Weights are random, made on the spot, stored as bfloat16; every variant reads the same
files in a process of its own, so that its peak memory is its own. Ratios are of wall time within one run; on a machine
that does other work too, the CPU seconds beside them are the fairer figure.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

SHAPES = {
    "qwen3-0.6b": {"hidden": 1024, "query": 2048, "kv": 1024, "inner": 3072, "layers": 28},
    "qwen3-1.7b": {"hidden": 2048, "query": 2048, "kv": 1024, "inner": 6144, "layers": 28},
    "qwen3-4b": {"hidden": 2560, "query": 4096, "kv": 1024, "inner": 9728, "layers": 36},
    "qwen3-8b": {"hidden": 4096, "query": 4096, "kv": 1024, "inner": 12288, "layers": 36},
}


VOCABULARY = 151_936


def write_pair(model: str, layers: int, folder: pathlib.Path, update: float, *, embedding: bool = False) -> None:
    """Two directories with the matrices of `layers` layers, or with the embedding alone.

    W0 ~ N(0, 0.02²) and W0 plus isotropic noise, in bfloat16.
    """
    import ml_dtypes
    import numpy as np

    sizes, rng = SHAPES[model], np.random.default_rng(0)
    d, q, kv, f = (sizes[key] for key in ("hidden", "query", "kv", "inner"))
    per_layer = {
        "self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in per_layer.items()}
    if embedding:
        shapes = {"model.embed_tokens.weight": (VOCABULARY, d)}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    for side in ("initial", "final"):
        (folder / side).mkdir()
        (folder / side / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": d}))
    with (
        (folder / "initial/model.safetensors").open("wb") as first,
        (folder / "final/model.safetensors").open("wb") as second,
    ):
        for file in (first, second):
            file.write(len(text).to_bytes(8, "little") + text)
        for rows, columns in shapes.values():
            for done in range(0, rows, 4096):
                shape = (min(4096, rows - done), columns)
                start = (rng.standard_normal(shape, np.float32) * np.float32(0.02)).astype(ml_dtypes.bfloat16)
                noise = rng.standard_normal(shape, np.float32) * np.float32(0.02 * update)
                first.write(start.tobytes())
                second.write((start.astype(np.float32) + noise).astype(ml_dtypes.bfloat16).tobytes())


def run_baseline(folder: pathlib.Path) -> None:
    """Full float64 SVDs of W0 and W+ and the singular values of ΔW, by PyTorch."""
    import torch
    from safetensors.torch import safe_open

    with (
        safe_open(folder / "initial/model.safetensors", "pt") as first,
        safe_open(folder / "final/model.safetensors", "pt") as second,
    ):
        for name in first.keys():  # noqa: SIM118 (a file handle, no dict)
            a, b = first.get_tensor(name).double(), second.get_tensor(name).double()
            torch.linalg.svd(a, full_matrices=False)
            torch.linalg.svd(b, full_matrices=False)
            torch.linalg.svdvals(b - a)


def run_suite(folder: pathlib.Path, suite: str, cache: pathlib.Path | None, device: str) -> None:
    """One comparison, nulls included."""
    from jaxgeom.checkpoints import open_checkpoint
    from jaxgeom.comparison import CompareSettings, compare_checkpoints
    from jaxgeom.cpu_memory import keep_freed_memory

    keep_freed_memory()  # as `jaxgeom compare` does
    settings = CompareSettings(suite=suite, device=device)
    compare_checkpoints(open_checkpoint(folder / "initial"), open_checkpoint(folder / "final"), settings, cache=cache)


def child(variant: str, folder: pathlib.Path, device: str) -> None:
    """Runs one variant and prints its figures as JSON; imports are not timed."""
    if variant == "baseline":
        import safetensors.torch  # noqa: F401 (imported before the clock starts)
    else:
        from jaxgeom.comparison import compare_checkpoints  # noqa: F401 (a package alone imports nothing)
    wall, cpu = time.perf_counter(), time.process_time()
    if variant == "baseline":
        run_baseline(folder)
    else:
        suite, _, state = variant.partition("-")
        run_suite(folder, suite, folder / "cache" if state else None, device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--suites", nargs="+", default=["full", "fast"], choices=["full", "fast"])
    parser.add_argument("--update", type=float, default=1e-2, help="scale of the update relative to the weights")
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "gpu", "tpu"])
    parser.add_argument("--embedding", action="store_true", help="time and memory of the model's embedding too")
    parser.add_argument("--without-baseline", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], pathlib.Path(arguments.child[1]), arguments.device)
        return
    variants = [] if arguments.without_baseline else ["baseline"]
    for suite in arguments.suites:
        variants += ["full", "full-filling", "full-cached"] if suite == "full" else ["fast"]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_pair(arguments.model, arguments.layers, folder, arguments.update)
        print(
            f"{arguments.model}, {arguments.layers} layers, {7 * arguments.layers} matrices, {os.cpu_count()} cores",
            flush=True,
        )
        print(f"{'variant':14s} {'wall s':>8s} {'ratio':>6s} {'cpu s':>8s} {'ratio':>6s} {'peak GiB':>9s}")
        base = None
        for variant in variants:
            figures = run_child(arguments, variant, folder)
            base = base or figures
            show(variant, figures, base if "baseline" in variants else None)
    if arguments.embedding:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_pair(arguments.model, 0, folder, arguments.update, embedding=True)
            show("embedding", run_child(arguments, "fast", folder), None)


def run_child(arguments: argparse.Namespace, variant: str, folder: pathlib.Path) -> dict[str, float]:
    """Runs one variant in a process of its own."""
    command = [sys.executable, __file__, arguments.model, "--device", arguments.device, "--child", variant, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(variant: str, figures: dict[str, float], base: dict[str, float] | None) -> None:
    """One line of the table."""
    wall, cpu = (f"{base[key] / figures[key]:.1f}" if base else "" for key in ("wall", "cpu"))
    line = f"{variant:14s} {figures['wall']:8.2f} {wall:>6s} {figures['cpu']:8.2f} {cpu:>6s} {figures['peak']:9.2f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
