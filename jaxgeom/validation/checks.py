"""One model in PyTorch and here: logits, log-probs, loss, gradients, one AdamW step, greedy generation, diagnostics."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgeom import diagnostics
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3, hf_tensors, leaf_slice, load_model, to_hf
from jaxgeom.models.qwen3 import unembedding
from jaxgeom.objectives import token_log_probs
from jaxgeom.optimizers import AdamWSettings, adamw
from jaxgeom.rollout import SamplingSettings, sample
from jaxgeom.validation import torch_side
from jaxgeom.validation.tolerances import TOLERANCES

ADAMW: dict[str, Any] = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


@dataclasses.dataclass(frozen=True)
class Check:
    """One row of the table: an error beside its tolerance.

    Attributes:
        name: what was compared.
        error: how far apart the two sides are, in the unit of the tolerance (see `tolerances`).
        tolerance: how far they may be.
        detail: where the error was largest.
        null: the error that rounding alone makes; None where it was not measured.
    """

    name: str
    error: float
    tolerance: float
    detail: str = ""
    null: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the error is a number within the tolerance."""
        return math.isfinite(self.error) and self.error <= self.tolerance


def first_failure(checks: list[Check]) -> Check | None:
    """The first row that did not hold, or None.

    Args:
        checks: rows in the order in which they were made.

    Returns:
        The row, or None.
    """
    return next((check for check in checks if not check.ok), None)


def validate_model(
    path: str | Path,
    *,
    dtype: str = "float32",
    length: int = 24,
    new_tokens: int = 8,
    seed: int = 0,
    gradients: bool = True,
    progress: Callable[[str], Any] | None = None,
) -> list[Check]:
    """Compare a Hugging Face directory in PyTorch with the same directory here, on random tokens.

    Three batches: rows whole, padded on the left, and ragged (padded on the right), the shortest of one token.

    Args:
        path: the directory.
        dtype: of parameters and activations on both sides, `float32` or `bfloat16`.
        length: longest row, tokens.
        new_tokens: greedy tokens per row.
        seed: of the random tokens.
        gradients: also compare gradients, an AdamW step and diagnostics; needs about 8 times the model in memory.
        progress: called with the name of each part as it begins.
    Returns:
        The table, one `Check` per comparison.
    Raises:
        UserError: the model cannot be read, PyTorch is not installed, or an argument is out of range.
    """
    if dtype not in TOLERANCES:
        raise UserError(f"validate: dtype={dtype!r} must be one of {', '.join(TOLERANCES)}")
    if length < 4 or new_tokens < 1:
        raise UserError(f"validate: length={length} must be at least 4 and new_tokens={new_tokens} at least 1")
    say = progress or (lambda _: None)
    limits = TOLERANCES[dtype]
    torch_side.require_torch()
    say("loading the model here")
    model, params = load_model(path, dtype=dtype)
    say("loading the model in PyTorch")
    reference = torch_side.load_torch(path, dtype)
    batches = _batches(model.config.vocab_size, length, seed)
    checks = []
    for layout, (tokens, valid) in batches.items():
        say(f"logits, {layout}")
        theirs = torch_side.torch_logits(reference, tokens, valid)
        ours = np.asarray(_logits(model, params, tokens, valid))
        checks.append(_largest("logits", layout, np.abs(ours - theirs)[valid], limits["logits"]))
    say("greedy generation")
    checks += _check_greedy(model, params, reference, batches["left-padded"], new_tokens, limits)
    if gradients:
        say("loss and gradients")
        checks += _check_training(model, params, reference, batches["left-padded"], limits, say)
    return checks


def _batches(vocab: int, length: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random tokens in three layouts, `[4, length]` each."""
    tokens = np.random.default_rng(seed).integers(0, vocab, (4, length), dtype=np.int32)
    lengths = np.array([length, max(1, 2 * length // 3), max(1, length // 3), 1])[:, None]
    columns = np.arange(length)[None]
    return {
        "whole": (tokens, np.ones_like(tokens, bool)),
        "left-padded": (tokens, columns >= length - lengths),
        "ragged": (tokens, columns < lengths),
    }


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Qwen3, params: Any, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    return model.apply({"params": params}, tokens, valid=valid)  # pyright: ignore[reportReturnType]


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_gradients(model: Qwen3, params: Any, tokens: jax.Array, valid: jax.Array) -> Any:
    def loss(params):
        hidden = model.apply({"params": params}, tokens, valid=valid, method="hidden_states")
        kernel = unembedding(model.config, params)
        log_probs = token_log_probs(hidden, kernel, tokens)  # pyright: ignore[reportArgumentType]
        mask = valid[:, 1:] & valid[:, :-1]
        return -jnp.sum(jnp.where(mask, log_probs[:, 1:], 0.0)) / jnp.sum(mask).astype(jnp.float32), log_probs

    return jax.value_and_grad(loss, has_aux=True)(params)


def _largest(name: str, where: str, errors: np.ndarray, tolerance: float) -> Check:
    # A NaN anywhere must show, and max() of numpy passes it on.
    return Check(f"{name}, {where}" if where else name, float(np.max(errors)), tolerance)


def _check_greedy(
    model: Qwen3, params: Any, reference: Any, batch: tuple[np.ndarray, np.ndarray], new: int, limits: dict[str, float]
) -> list[Check]:
    tokens, valid = batch
    theirs = torch_side.torch_greedy(reference, tokens, valid, new)
    prompts = [row[mask].tolist() for row, mask in zip(tokens, valid, strict=True)]
    settings = SamplingSettings(max_new_tokens=new, greedy=True)
    # A stated cache, so that the model's own context length, which changes no number, does not bound what is compared.
    room = tokens.shape[1] + new
    ours = sample(model, params, prompts, range(len(prompts)), settings, pad_id=0, cache_length=room)
    drawn = np.asarray(ours.responses())
    whole = np.concatenate([tokens, theirs.astype(np.int32)], axis=1)
    logits = np.asarray(_logits(model, params, whole, np.concatenate([valid, np.ones_like(theirs, bool)], axis=1)))
    logits = logits[:, tokens.shape[1] - 1 : -1]
    regret = logits.max(-1) - np.take_along_axis(logits, theirs[..., None].astype(np.int64), -1)[..., 0]
    return [
        Check("greedy tokens that differ", float(np.mean(drawn != theirs)), limits["greedy_tokens"]),
        _largest("greedy regret", "", regret, limits["greedy_regret"]),
    ]


def _check_training(
    model: Qwen3,
    params: Any,
    reference: Any,
    batch: tuple[np.ndarray, np.ndarray],
    limits: dict[str, float],
    say: Callable[[str], Any],
) -> list[Check]:
    tokens, valid = batch
    tensors = hf_tensors(model.config)
    names = [tensor.name for tensor in tensors]
    loss, gradients, picked = torch_side.torch_loss_and_gradients(reference, tokens, valid, names)
    (our_loss, our_log_probs), our_gradients = _loss_and_gradients(model, params, tokens, valid)
    mask = valid[:, 1:] & valid[:, :-1]
    log_prob_errors = np.abs(np.asarray(our_log_probs)[:, 1:] - picked)[mask]
    ours = by_name(model, our_gradients)
    scale = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients.values()))
    worst, where = worst_tensor(ours, gradients, floor=1e-6 * scale)
    checks = [
        _largest("log-probs", "", log_prob_errors, limits["log_probs"]),
        Check("loss", abs(float(our_loss) - loss) / abs(loss), limits["loss"]),
        Check("gradients, worst tensor", worst, limits["gradients"], where),
    ]
    say("one AdamW step")
    # Adam's first step is nearly the gradient's sign, so rounding would decide entries near 0: both get one gradient.
    before = torch_side.torch_weights(reference, names)
    after = torch_side.torch_adamw(before, gradients, ADAMW)
    stepped = _adamw(before, gradients)
    updates = {name: after[name] - before[name] for name in names}
    worst, where = worst_tensor({name: stepped[name] - before[name] for name in names}, updates, floor=1e-12)
    checks.append(Check("AdamW step, worst tensor", worst, limits["adamw"], where))
    say("diagnostics")
    return checks + _check_diagnostics(before, after, limits["diagnostics"])


def by_name(model: Qwen3, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a parameter-shaped tree under Hugging Face names, float32, in the shapes of the files.

    Args:
        model: whose parameters they are like.
        tree: parameters, gradients.
    """
    host = jax.device_get(tree)
    named = {}
    for tensor in hf_tensors(model.config):
        leaf = host
        for key in tensor.path:
            leaf = leaf[key]
        named[tensor.name] = to_hf(model.config, tensor, np.asarray(leaf_slice(leaf, tensor), np.float32))
    return named


def worst_tensor(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], floor: float) -> tuple[float, str]:
    """The largest `‖a − b‖ / max(‖b‖, floor)` and the tensor that has it; NaN counts as largest.

    Args:
        ours: a, by name.
        theirs: b, by the same names.
        floor: of what is divided by.
    """

    def error(name: str) -> float:
        difference = np.linalg.norm((ours[name].astype(np.float64) - theirs[name]).ravel())
        return float(difference / max(np.linalg.norm(theirs[name].astype(np.float64).ravel()), floor))

    errors = {name: error(name) for name in theirs}
    where = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return errors[where], where


def _adamw(weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # The optimizer that training uses.
    optimizer = adamw(AdamWSettings(**ADAMW), steps=1)

    @jax.jit
    def step(weights, gradients):
        updates, _ = optimizer.update(gradients, optimizer.init(weights), weights)
        return optax.apply_updates(weights, updates)

    return {name: np.asarray(step(jnp.asarray(weights[name]), jnp.asarray(gradients[name]))) for name in weights}


def _check_diagnostics(before: dict[str, np.ndarray], after: dict[str, np.ndarray], tolerance: float) -> list[Check]:
    """Each diagnostic on the first layer's query and output projections after the step."""
    worst: dict[str, tuple[float, str]] = {}
    for kind in ("q_proj", "o_proj"):
        name = f"model.layers.0.self_attn.{kind}.weight"
        # float64 on the host, as `jaxgeom compare` does where a spectrum is needed.
        w0, w1 = before[name].astype(np.float64), after[name].astype(np.float64)
        with jax.enable_x64(True):
            ours = {
                "visible_sparsity": float(diagnostics.visible_sparsity(before[name], after[name], eta=1e-3)),
                "frobenius_norm": float(diagnostics.frobenius_norm(w1 - w0)),
                "stable_rank": float(diagnostics.stable_rank(w1 - w0)),
                "entropy_rank": float(diagnostics.entropy_rank(w1 - w0)),
                "normalized_spectral_shift": float(diagnostics.normalized_spectral_shift(w0, w1)),
            }
        for statistic, value in torch_side.torch_diagnostics(before[name], after[name]).items():
            error = abs(ours[statistic] - value) / max(abs(value), 1e-12)
            if statistic not in worst or not error <= worst[statistic][0]:
                worst[statistic] = (error, name)
    return [Check(f"diagnostics, {statistic}", *_with(tolerance, found)) for statistic, found in worst.items()]


def _with(tolerance: float, found: tuple[float, str]) -> tuple[float, float, str]:
    return found[0], tolerance, found[1]
