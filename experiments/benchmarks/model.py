"""Train step and sampling beside `transformers` + PyTorch: same shapes, precision, machine, in turn in one run.

    python experiments/benchmarks/model.py --shape tiny
    python experiments/benchmarks/model.py --shape 31m
    python experiments/benchmarks/model.py --shape qwen3-0.6b --dtype bfloat16 --no-torch      # on an accelerator

Prints seconds (best and median of the rounds), the ratio of PyTorch's to jaxgeom's (above 1: jaxgeom is faster), the
train step's share of the matmul rate, a decoded token's share of the memory bandwidth (what a token must read, weights
in the compute dtype and the whole cache, over the time of all tokens behind the first), and the time of decoding's
products with the weights alone, all measured in the same run. jaxgeom's parameters are float32 masters, as in training.
On a CPU also what its own forms are worth, as the ratio of the
time without them: `general`, the form that accelerators run (no `models/cpu_layers.py`, one part); `one part`, large
batches not cut for the cores (no `rollout/cpu_parts.py`). What is kept with the process (`cpu_memory.py`) shows by
`--default-memory`, in a run of its own. A form that gains less than a tenth at every shape here is not worth its file.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgeom.cpu_memory import keep_freed_memory
from jaxgeom.data.buckets import bucket_length
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.cpu_layers import multiply_columns, turn_weights
from jaxgeom.models.qwen3 import unembedding
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.rollout import SamplingSettings, sample
from jaxgeom.rollout.cpu_parts import count_parts
from jaxgeom.sharding import platform_of
from jaxgeom.training import Batch, initial_state, make_train_step, objective_of
from jaxgeom.training.settings import SFTSettings


def _config(
    vocab: int, dim: int, inner: int, layers: int, heads: int, kv: int, hd: int, tied: bool = True
) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocab, hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=hd, tie_word_embeddings=tied,
    )  # fmt: skip


class Shape(NamedTuple):
    """A model and what is measured of it.

    Attributes:
        config: architecture.
        training: batches of a step, rows and columns.
        sampling: rows, tokens of each prompt, new tokens.
    """

    config: Qwen3Config
    training: list[tuple[int, int]]
    sampling: list[tuple[int, int, int]]


SHAPES = {
    "tiny": Shape(_config(64, 128, 256, 3, 4, 2, 32), [(64, 19)], [(64, 12, 9), (512, 12, 9)]),
    "31m": Shape(
        _config(4096, 512, 1536, 8, 8, 8, 64, tied=False), [(8, 256)], [(8, 12, 244), (16, 12, 64), (64, 12, 64)]
    ),
    "qwen3-0.6b": Shape(
        _config(151_936, 1024, 3072, 28, 16, 8, 128), [(8, 1024), (1, 8192)], [(64, 256, 64), (64, 960, 64)]
    ),
}


def measure(rounds: int, **candidates: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds per call; the candidates take turns, so a busy machine is busy for all. Two rounds warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 2):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def train_step(model: Qwen3, params: Any, tokens: np.ndarray) -> Callable[[], Any]:
    """The SFT step that `jaxgeom train sft` runs, with AdamW and its metrics; the state is donated."""
    rows, length = tokens.shape
    settings = SFTSettings(steps=1, batch_size=rows, optimizer=AdamWSettings(learning_rate=1e-4))
    optimizer = optax.adamw(1e-4)
    state = initial_state(jax.tree.map(jnp.copy, params), optimizer)
    step = make_train_step(objective_of(settings, model), optimizer, state)
    learned = np.broadcast_to(np.arange(length) > 0, tokens.shape)
    batch = Batch(jnp.asarray(tokens), jnp.ones(tokens.shape, bool), jnp.asarray(learned))
    held = [state]

    def run() -> None:
        held[0], metrics = step(held[0], batch)
        metrics["loss"].block_until_ready()

    return run


def sampler(model: Qwen3, params: Any, prompts: np.ndarray, new: int) -> Callable[[], Any]:
    """Sampling from the whole distribution, nothing stops early."""
    requests = prompts.tolist()
    return lambda: sample(model, params, requests, range(len(requests)), SamplingSettings(new), pad_id=0)


def torch_model(config: Qwen3Config, dtype: str) -> Any:
    import torch
    import transformers

    fields = config.to_hf()
    built = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return transformers.AutoModelForCausalLM.from_config(built).to(device, getattr(torch, dtype))


def torch_train_step(model: Any, tokens: np.ndarray) -> Callable[[], Any]:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    on_device = torch.tensor(tokens).long().to(model.device)

    def run() -> None:
        logits = model(on_device[:, :-1], use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), on_device[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return run


def torch_sampler(model: Any, prompts: np.ndarray, new: int) -> Callable[[], Any]:
    import torch
    import transformers

    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None)
    on_device = torch.tensor(prompts).long().to(model.device)
    mask = torch.ones_like(on_device)

    def run() -> None:
        with torch.no_grad():
            model.generate(on_device, attention_mask=mask, max_new_tokens=new, do_sample=True, top_k=0).cpu()

    return run


def matmul_rate(dtype: Any, size: int) -> float:
    """FLOP/s of a square matmul of random numbers, several behind one another, best of several."""
    x, repeats = jax.random.normal(jax.random.key(0), (size, size), dtype) * jnp.asarray(size**-0.5, dtype), 8
    run = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, y: y @ x, x))
    seconds = min(measure(5, matmul=lambda: run(x).block_until_ready())["matmul"])
    return repeats * 2 * size**3 / seconds


def bandwidth(bytes_: int) -> float:
    """Bytes per second read and written by an elementwise pass, several behind one another, best of several."""
    x, repeats = jnp.ones(bytes_ // 4, jnp.float32), 8
    run = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, y: y + 1.0, x))
    seconds = min(measure(5, copy=lambda: run(x).block_until_ready())["copy"])
    return repeats * 2 * bytes_ / seconds


def products_alone(model: Qwen3, params: Any, rows: int, steps: int) -> Callable[[], Any]:
    """What decoding cannot do without: `rows` vectors times each kernel of layers and head, `steps` times."""
    head = unembedding(model.config, params)
    turned = jax.jit(lambda *parts: turn_weights(model.config, *parts))(params["layers"], params["norm"], head)
    layers, head = turned["layers"], turned["head"]

    def step(x: jax.Array, layers: Any, head: jax.Array) -> jax.Array:
        for layer in layers:
            attention, mlp = layer["attention"], layer["mlp"]
            q, kv = jnp.split(multiply_columns(attention["qkv"], x), [attention["o"]["kernel"].shape[1]])
            mixed = multiply_columns(attention["o"], q)
            gate, up = jnp.split(multiply_columns(mlp["gate_up"], mixed), 2)
            x = 0.1 * (multiply_columns(mlp["down"], gate * up) + jnp.sum(kv, axis=0))
        return x + jnp.max(multiply_columns({"kernel": head}, x), axis=0)

    run = jax.jit(lambda x, *kernels: jax.lax.fori_loop(0, steps, lambda _, x: step(x, *kernels), x))
    x = jnp.ones((model.config.hidden_size, rows), head.dtype)
    return lambda: run(x, layers, head).block_until_ready()


def report(title: str, seconds: dict[str, list[float]]) -> None:
    cells = [f"{name} {min(times):.4f} s (median {statistics.median(times):.4f})" for name, times in seconds.items()]
    cells += [
        f"ratio of {name} {min(times) / min(seconds['jaxgeom']):.2f}"
        for name, times in seconds.items()
        if name != "jaxgeom"
    ]
    print(f"{title}: " + ", ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true", help="measure jaxgeom alone")
    parser.add_argument("--default-memory", action="store_true", help="leave the C library's allocator as it is")
    options = parser.parse_args()
    if not options.default_memory:
        keep_freed_memory()  # as the commands that train do; PyTorch, in this process too, gains by it as well
    config, training, sampling = SHAPES[options.shape]
    dtype = jnp.dtype(options.dtype)
    platform = platform_of(None)
    model = Qwen3(config, dtype=dtype, platform=platform)
    general = model.clone(platform=None)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"{options.shape}: {count / 1e6:.2f} M parameters, {options.dtype}, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    rng = np.random.default_rng(0)
    theirs = None if options.no_torch else torch_model(config, options.dtype)
    heads = config.num_attention_heads * config.head_dim
    rate = matmul_rate(dtype, 8192 if platform != "cpu" else 1024)
    for rows, length in training:
        tokens = rng.integers(0, config.vocab_size, (rows, length), dtype=np.int32)
        candidates = {"jaxgeom": train_step(model, params, tokens)}
        if platform == "cpu":
            candidates["general"] = train_step(general, params, tokens)
        if theirs is not None:
            candidates["pytorch"] = torch_train_step(theirs, tokens)
        seconds = measure(options.rounds, **candidates)
        report(f"train step, {rows}x{length}", seconds)
        # Forward and backward: 6 per parameter and token, and the causal half of 12·T per layer and head dimension.
        flops = 6 * count * tokens.size + 6 * config.num_hidden_layers * heads * length * tokens.size
        taken = min(seconds["jaxgeom"])
        print(
            f"  {flops / taken / 1e12:.3f} TFLOP/s, {flops / taken / rate:.1%} of the measured matmul rate, "
            f"{rate / 1e12:.3f} TFLOP/s"
        )
    limit = bandwidth(2**32 if platform != "cpu" else 2**27)
    for batch, prompt, new in sampling:
        prompts = rng.integers(0, config.vocab_size, (batch, prompt), dtype=np.int32)
        candidates = {"jaxgeom": sampler(model, params, prompts, new)}
        if platform == "cpu":
            candidates["general"] = sampler(general, params, prompts, new)
            if count_parts(batch, platform, None) > 1:
                one_core = mock.patch("jaxgeom.rollout.cpu_parts.usable_cores", lambda: 1)
                candidates["one part"] = one_core(candidates["jaxgeom"])
        if theirs is not None:
            candidates["pytorch"] = torch_sampler(theirs, prompts, new)
        seconds = measure(options.rounds, **candidates)
        report(f"sampling, {batch}x{new} new tokens after {prompt}", seconds)
        first = min(measure(options.rounds, one=sampler(model, params, prompts, 1))["one"])
        token = (min(seconds["jaxgeom"]) - first) / (new - 1)
        if model.is_unrolled and not config.is_moe:
            alone = min(measure(options.rounds, products=products_alone(model, params, batch, new - 1))["products"])
            print(
                f"  {alone:.4f} s for its products with the weights alone, {alone / min(seconds['jaxgeom']):.0%} of it"
            )
        slots = bucket_length(prompt) + new
        cache = 2 * config.num_hidden_layers * batch * slots * config.num_key_value_heads * config.head_dim
        moved = (count + cache) * dtype.itemsize
        print(
            f"  {token * 1e3:.3f} ms a token behind the first, {moved / token / limit:.1%} of the measured bandwidth, "
            f"{limit / 1e9:.1f} GB/s"
        )


if __name__ == "__main__":
    main()
