"""The PyTorch half of the comparison. Imports torch and transformers inside functions: they are an extra."""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.checkpoints.adapters import is_adapter_directory
from jaxgeom.checkpoints.anatomy import by_key
from jaxgeom.checkpoints.names import key_of
from jaxgeom.checkpoints.runs import named_run
from jaxgeom.errors import UserError, listed


def require_torch() -> None:
    """Raises the UserError that says what to install, where PyTorch or transformers is missing."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        needed = " ".join(missing)
        raise UserError(
            f"validate needs PyTorch and transformers; {listed(missing)} {verb} missing: python -m pip install {needed}"
        )


def load_torch(path: str | Path, dtype: str) -> Any:
    """The model by `transformers`, eager attention, evaluation mode, parameters in `dtype`.

    Where weights are stored under a wrapper's names (`module.`), which `transformers` does not know, they are put in by
    the names of the model's parameters.

    Raises:
        UserError: PyTorch is not installed, a LoRA adapter, a run of ours, `transformers` refuses the directory, or a
            parameter is not in it, so that it would be drawn at random.
    """
    require_torch()
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if is_adapter_directory(Path(path)):
        raise UserError(f"{path}: a LoRA adapter; validate compares whole models: merge it, or validate its base")
    if named_run(path) is not None:
        raise UserError(
            f"{path}: a run of ours, which PyTorch does not read; validate what jaxgeom export writes of it"
        )
    new = tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (4, 56)
    kind = {("dtype" if new else "torch_dtype"): getattr(torch, dtype)}
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(path), attn_implementation="eager", trust_remote_code=False, local_files_only=True,
            output_loading_info=True, **kind,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: transformers cannot load it: {error}") from error
    model, found = loaded
    if found["missing_keys"]:
        _put_in(model, path, found["missing_keys"])
    return model.eval()


def _put_in(model: Any, path: str | Path, missing: Iterable[str]) -> None:
    """Parameters that `transformers` has not found, by what their names are without wrappers."""
    import torch

    stored = open_checkpoint(path)
    keys = by_key(stored, stored.name)
    parameters, missing = model.state_dict(), set(missing)
    present = [name for name in parameters if name not in missing or key_of(name) in keys]
    held = {parameters[name].data_ptr() for name in present}  # of a tied head too
    absent = [name for name in missing if parameters[name].data_ptr() not in held]
    if absent:
        raise UserError(f"{path}: transformers finds no weights for {listed(sorted(absent))}, and draws them at random")
    with torch.no_grad():
        for name in missing.intersection(present):
            parameters[name].copy_(torch.tensor(stored[keys[key_of(name)]].read().astype(np.float32)))


def torch_forward(model: Any, tokens: np.ndarray, valid: np.ndarray) -> Any:
    """Logits as a float32 torch tensor, with the positions of the real tokens counted from 0."""
    import torch

    mask = torch.tensor(valid.astype(np.int64))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(
        torch.tensor(tokens).long(), attention_mask=mask, position_ids=positions, use_cache=False
    ).logits.float()


def torch_logits(model: Any, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`torch_forward` without gradients, as numpy."""
    import torch

    with torch.no_grad():
        return torch_forward(model, tokens, valid).numpy()


def torch_loss_and_gradients(
    model: Any, tokens: np.ndarray, valid: np.ndarray, names: list[str]
) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """Mean cross-entropy over real targets, its float32 gradients by file name, the targets' log-probabilities."""
    import torch

    model.zero_grad()
    log_probs = torch.log_softmax(torch_forward(model, tokens, valid)[:, :-1], dim=-1)
    picked = log_probs.gather(-1, torch.tensor(tokens[:, 1:]).long()[..., None])[..., 0]
    mask = torch.tensor(valid[:, 1:] & valid[:, :-1])
    loss = -(picked * mask).sum() / mask.sum()
    loss.backward()
    return float(loss.detach()), torch_gradients(model, names), picked.detach().numpy()


def torch_adamw(weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray], settings: dict[str, float]) -> Any:
    """Weights after one step of `torch.optim.AdamW`, float32."""
    import torch

    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in weights.items()}
    for name, parameter in parameters.items():
        parameter.grad = torch.tensor(gradients[name])
    torch.optim.AdamW(
        parameters.values(),
        lr=settings["learning_rate"],
        betas=(settings["b1"], settings["b2"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    ).step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def torch_greedy(model: Any, tokens: np.ndarray, valid: np.ndarray, new_tokens: int) -> np.ndarray:
    """`transformers`' own greedy `generate`, no stop tokens: the new tokens `[batch, new_tokens]`."""
    import torch
    import transformers

    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None, bos_token_id=None)
    with torch.no_grad():
        out = model.generate(
            torch.tensor(tokens).long(),
            attention_mask=torch.tensor(valid.astype(np.int64)),
            max_new_tokens=new_tokens,
            do_sample=False,
        )
    return out[:, tokens.shape[1] :].numpy()


def torch_diagnostics(w0: np.ndarray, w1: np.ndarray) -> dict[str, float]:
    """The diagnostics of one matrix `[out, in]` by PyTorch in float64 (sparsity by its own bfloat16)."""
    import torch

    before, after = torch.tensor(w0), torch.tensor(w1)
    narrow_before, narrow_after = before.bfloat16().double(), after.bfloat16().double()
    before, after = before.double(), after.double()
    update = torch.linalg.svdvals(after - before)
    sigma0, sigma1 = torch.linalg.svdvals(before), torch.linalg.svdvals(after)
    share = update / update.sum()
    larger = torch.maximum(narrow_before.abs(), narrow_after.abs())
    return {
        "visible_sparsity": float(((narrow_before - narrow_after).abs() <= 1e-3 * larger).double().mean()),
        "frobenius_norm": float(torch.linalg.norm(after - before)),
        "stable_rank": float((update**2).sum() / update[0] ** 2),
        "entropy_rank": float(torch.exp(-torch.special.xlogy(share, share).sum())),
        "normalized_spectral_shift": float(torch.linalg.norm(sigma1 - sigma0) / torch.linalg.norm(sigma0)),
    }


def torch_weights(model: Any, names: list[str]) -> dict[str, np.ndarray]:
    """The parameters by Hugging Face file name, float32."""
    return {name: _named(model, name, gradient=False) for name in names}


def torch_gradients(model: Any, names: list[str]) -> dict[str, np.ndarray]:
    """The gradients of the last backward pass by Hugging Face file name, float32."""
    return {name: _named(model, name, gradient=True) for name in names}


def _named(model: Any, name: str, *, gradient: bool) -> np.ndarray:
    """A parameter (or its gradient) by its name in the file; newer `transformers` keep all experts in two tensors."""

    def get(key: str) -> Any:
        parameter = model.get_parameter(key)
        return parameter.grad if gradient else parameter.detach()

    found = re.fullmatch(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", name)
    if found is None or not hasattr(model.get_submodule(found.group(1)), "down_proj"):
        return get(name).float().numpy().copy()
    experts, expert, kind = found.group(1), int(found.group(2)), found.group(3)
    if kind == "down":
        return get(f"{experts}.down_proj")[expert].float().numpy().copy()
    gate, up = get(f"{experts}.gate_up_proj")[expert].chunk(2, dim=0)
    return (gate if kind == "gate" else up).float().numpy().copy()
