"""What a step makes of a batch that no pass of its own has scored: its old log-probabilities, advantages, metrics."""

import jax


def credited(objective, params, frozen, batch):
    """The batch with what its step computes by the way, and the metrics of its whole."""

    @jax.jit
    def run(params, batch, inputs):
        _, told = objective.loss(params, batch, inputs, objective.denominator(batch))
        if told.log_probs is None:
            return batch.old_log_probs, batch.advantages, {}
        advantages = objective.advantages(batch, told.log_probs)
        return told.log_probs, advantages, objective.of_whole_batch(batch, told.log_probs)

    old, advantages, metrics = run(params, batch, objective.step_inputs(frozen))
    return batch.replace(old_log_probs=old, advantages=advantages), metrics
