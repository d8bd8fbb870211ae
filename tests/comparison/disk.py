"""Small Hugging Face directories of real files, and the float64 oracle of a comparison."""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

HIDDEN, QUERY, KV, INNER, VOCAB = 40, 48, 24, 72, 90

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": INNER, "num_hidden_layers": 2, "vocab_size": VOCAB,
}  # fmt: skip


def shapes(layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Tensors of a small decoder in Llama's names, untied."""
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        table |= {
            f"{prefix}self_attn.q_proj.weight": (QUERY, HIDDEN),
            f"{prefix}self_attn.k_proj.weight": (KV, HIDDEN),
            f"{prefix}self_attn.v_proj.weight": (KV, HIDDEN),
            f"{prefix}self_attn.o_proj.weight": (HIDDEN, QUERY),
            f"{prefix}mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{prefix}mlp.up_proj.weight": (INNER, HIDDEN),
            f"{prefix}mlp.down_proj.weight": (HIDDEN, INNER),
            f"{prefix}input_layernorm.weight": (HIDDEN,),
        }
    return table | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def weights(seed: int = 0, layers: int = 2) -> dict[str, np.ndarray]:
    """Random float32 weights of a realistic scale."""
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * 0.02).astype(np.float32) for name, shape in shapes(layers).items()}


def moved(initial: dict[str, np.ndarray], scale: float, seed: int = 1) -> dict[str, np.ndarray]:
    """The same after an isotropic update."""
    rng = np.random.default_rng(seed)
    return {name: (w + scale * rng.standard_normal(w.shape)).astype(np.float32) for name, w in initial.items()}


def write(
    directory: pathlib.Path, tensors: dict[str, np.ndarray], config: dict | None = None, shards: int = 1
) -> pathlib.Path:
    """A Hugging Face directory; with several shards an index file too."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or CONFIG))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    names = list(tensors)
    index = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return directory


def bf16(array: np.ndarray) -> np.ndarray:
    """The bfloat16 view, widened to float64."""
    return array.astype(ml_dtypes.bfloat16).astype(np.float64)


def oracle(
    w0: np.ndarray, w1: np.ndarray, *, angle_k: int, rank: int, fraction: float, hill_k: int, share: float
) -> dict:
    """Statistics of one matrix from their definitions, in float64 by NumPy's full SVD, with no code of the engine."""
    a, b = w0.astype(np.float64), w1.astype(np.float64)
    delta = b - a
    u0, s0, v0 = np.linalg.svd(a, full_matrices=False)
    u1, s1, v1 = np.linalg.svd(b, full_matrices=False)
    sigma = np.linalg.svd(delta, compute_uv=False)
    a16, b16 = bf16(w0), bf16(w1)
    changed = np.abs(a16 - b16) > 1e-3 * np.maximum(np.abs(a16), np.abs(b16))
    p, n = sigma / sigma.sum(), w0.size
    count = int(np.floor(fraction * n + 0.5))

    def first(keys: np.ndarray) -> np.ndarray:
        mask = np.zeros(n, bool)
        mask[np.argsort(keys.ravel(), kind="stable")[:count]] = True
        return mask.reshape(w0.shape)

    reconstruction = (u0[:, :rank] * s0[:rank]) @ v0[:rank]
    k = max(1, round(share * min(w0.shape)))

    def sines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.degrees(np.arcsin(np.clip(np.linalg.svd(y - x @ (x.T @ y), compute_uv=False), 0, 1)))

    left, right = sines(u0[:, :angle_k], u1[:, :angle_k]), sines(v0[:angle_k].T, v1[:angle_k].T)
    c = float((delta * a).sum() / (a * a).sum())
    without = np.linalg.svd(b - c * a, compute_uv=False)
    norm = np.linalg.norm(s0)
    sigma16 = np.linalg.svd(b16 - a16, compute_uv=False)
    energy = (sigma**2).sum()
    return {
        "sparsity_bf16": 1 - changed.mean(),
        "density_bf16": changed.mean(),
        "sparsity_stored": (w0 == w1).mean(),
        "sparsity_abs_1e-5": (np.abs(delta) <= 1e-5).mean(),
        "fro_norm": np.linalg.norm(delta),
        "relative_norm": np.linalg.norm(delta) / norm,
        "op_norm": sigma[0],
        "stable_rank": energy / sigma[0] ** 2,
        "stable_rank_bf16": (sigma16**2).sum() / sigma16[0] ** 2,
        "entropy_rank": np.exp(-(p * np.log(p)).sum()),
        "participation_ratio": energy**2 / (sigma**4).sum(),
        "hill": 1 / np.mean(np.log(sigma[: hill_k - 1] / sigma[hill_k - 1])),
        "nss": np.linalg.norm(s1 - s0) / norm,
        "nss_bf16": np.linalg.norm(np.linalg.svd(b16, compute_uv=False) - np.linalg.svd(a16, compute_uv=False))
        / np.linalg.norm(a16),
        "nss_without_decay": np.linalg.norm(without - s0) / norm,
        "decay": c,
        "angle_left_mean_deg": left.mean(),
        "angle_left_max_deg": left.max(),
        "angle_right_mean_deg": right.mean(),
        "angle_right_max_deg": right.max(),
        "angle_gap": s0[angle_k - 1] - s0[angle_k],
        "overlap_principal": changed[first(-np.abs(reconstruction))].sum() / changed.sum(),
        "overlap_low": changed[first(np.abs(a))].sum() / changed.sum(),
        "projection_joint": ((u0[:, :k].T @ delta @ v0[:k].T) ** 2).sum() / energy,
        "projection_left": ((u0[:, :k].T @ delta) ** 2).sum() / energy,
        "projection_right": ((delta @ v0[:k].T) ** 2).sum() / energy,
    }
