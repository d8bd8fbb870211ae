"""The PyTorch half of a recipe: a plain loop over `transformers`' model, `torch.optim.AdamW` and its own schedule."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxgeom.optimizers.settings import AdamWSettings
from jaxgeom.progress import Task
from jaxgeom.validation.torch_side import torch_forward


class TorchOptimizer:
    """`torch.optim.AdamW` with the recipe's schedule and clipping; all parameters are decayed.

    Args:
        model: whose parameters it changes.
        settings: of the recipe.
        steps: of the whole run.
    """

    def __init__(self, model: Any, settings: AdamWSettings, steps: int):
        import torch

        self._parameters, self._settings, self._steps, self._taken = list(model.parameters()), settings, steps, 0
        self._adamw = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            betas=(settings.b1, settings.b2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )

    def step(self, loss: Any) -> dict[str, float]:
        """One step down a loss: `loss`, `grad_norm` before clipping, `learning_rate`."""
        import torch

        rate = _rate(self._settings, self._taken, self._steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.zero_grad()
        loss.backward()
        limit = math.inf if self._settings.clip_norm is None else self._settings.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        self._adamw.step()
        self._taken += 1
        return {"loss": float(loss.detach()), "grad_norm": float(norm), "learning_rate": rate}


def train_sft(
    model: Any, batches: Iterable[Mapping[str, np.ndarray]], optimizer: AdamWSettings, *, task: Task | None = None
) -> list[dict[str, float]]:
    """Trains a model in place by the mean cross-entropy on the tokens of `loss_mask`.

    Args:
        model: of `load_torch`, float32.
        batches: one a step: `tokens` int32, `valid` and `loss_mask` bool, `[batch, time]` each, padded on the right.
        optimizer: of the recipe; decays all parameters.
        task: advanced by every step.

    Returns:
        A row a step: `loss` (nats a token), `grad_norm` before clipping, `target_tokens`, `learning_rate`.
    """
    import torch

    batches = list(batches)
    stepper = TorchOptimizer(model, optimizer, len(batches))
    rows = []
    for batch in batches:
        log_probs = torch.log_softmax(torch_forward(model, batch["tokens"], batch["valid"])[:, :-1], dim=-1)
        targets = torch.tensor(batch["tokens"][:, 1:]).long()
        mask = torch.tensor(batch["loss_mask"][:, 1:])
        picked = log_probs.gather(-1, targets[..., None])[..., 0]
        row = stepper.step(-picked[mask].mean())
        rows.append(row | {"target_tokens": float(mask.sum())})
        if task is not None:
            task.advance(1, f"loss {row['loss']:.3g}")
    return rows


def _rate(optimizer: AdamWSettings, number: int, steps: int) -> float:
    """The learning rate of step `number`, counted from 0, in the host's float64."""
    warmup = min(round(optimizer.warmup_fraction * steps), steps)
    if number < warmup:
        return optimizer.learning_rate * (number + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    share = (number - warmup) / max(steps - warmup, 1)
    low, high = optimizer.learning_rate_end, optimizer.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2
