"""How far PyTorch and this package may lie apart, per dtype: the one place where that is said."""

TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {
        # Largest absolute difference.
        "logits": 1e-4,
        "log_probs": 1e-4,
        # Relative difference.
        "loss": 1e-5,
        # ‖g − g'‖ / ‖g'‖ of the worst tensor.
        "gradients": 1e-4,
        # ‖ΔW − ΔW'‖ / ‖ΔW'‖ of the worst tensor, the same gradients given to both optimizers. A weight near 1 is stored
        # to 6e-8, which is 6e-5 of a step of 1e-3.
        "adamw": 5e-4,
        # Share of greedy tokens that differ.
        "greedy_tokens": 0.0,
        # How far, in nats, PyTorch's greedy token may lie below our best.
        "greedy_regret": 1e-4,
        # Relative difference, both in float64.
        "diagnostics": 1e-6,
    },
    # bfloat16 keeps 8 bits: one rounding is up to 2⁻⁹ ≈ 0.2 % of a value, and the two sides round at different places
    # in every layer. Greedy tokens may differ where two are that close, so only their regret is held.
    "bfloat16": {
        "logits": 0.25,
        "log_probs": 0.25,
        "loss": 1e-2,
        "gradients": 5e-2,
        # The optimizers run in float32 on float32 copies.
        "adamw": 5e-4,
        "greedy_tokens": 1.0,
        "greedy_regret": 0.25,
        "diagnostics": 1e-6,
    },
}
"""Largest error allowed, by dtype and by check: `TOLERANCES["float32"]["logits"]`."""

RECIPE_TOLERANCES: dict[str, dict[str, float]] = {
    "sft": {
        # Largest relative difference of any step. Rounding grows along a run: a weight whose gradient is near 0 takes
        # Adam's whole step to the one side or the other. About ten times what 50 steps of the embedded model show; b2
        # of 0.96 in place of 0.95 moves the final weights by 7e-4 within 3 steps.
        "loss": 1e-5,
        "grad_norm": 2e-4,
        # The schedule in float32 here, in float64 there.
        "learning_rate": 2e-6,
        "target_tokens": 0.0,
        # ‖W − W'‖ / ‖W' − W0‖ over all parameters.
        "weights": 5e-4,
    },
    # Of both sampled recipes: what they make of the same answers, before chance parts them.
    "sampled": {
        # Largest absolute difference, nats.
        "log_probs": 1e-4,
        # Largest absolute difference: of GRPO in standard deviations, of distillation in nats.
        "advantages": 2e-4,
        # Difference over the mean size of an advantage: the loss itself is a mean of both signs, and may be 0.
        "loss": 1e-5,
        # Relative difference.
        "grad_norm": 2e-4,
        # ‖g − g'‖ / ‖g'‖ of the worst tensor.
        "gradients": 2e-4,
        # The schedule in float32 here, in float64 there.
        "learning_rate": 2e-6,
        # Share of greedy answers, from equal weights: two tokens that are equally likely to rounding.
        "accuracy": 0.01,
    },
}
"""Largest error allowed over a whole recipe in float32, by recipe and by what is compared; where rounding alone does
more, see `ROUNDINGS`."""

ROUNDINGS = 10.0
"""Both sides may differ by so many times what rounding alone has done up to that step of the same run: PyTorch against
itself, its sums taken in another order. A loss near 0 and a long run lie far apart, relatively, on any two machines."""

SAMPLED_CONFIDENCE = 0.95
"""Of the intervals of differences over seeds, all rows of a table together: each row's is 1 − 0.05 / rows."""

SAMPLED_FLOOR = 0.02
"""Means over seeds may differ by so much of PyTorch's mean however narrow the interval is: seeds that happen to agree,
as an accuracy of 1 on all of them, leave an interval of nothing."""
