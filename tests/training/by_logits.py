"""A model's logits and the way back from them: losses by other libraries are of logits, gradients of parameters."""

import functools

import jax


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens, valid):
    return model.apply({"params": params}, tokens, valid=valid)


@functools.partial(jax.jit, static_argnums=0)
def pulled_back(model, params, tokens, valid, cotangent):
    """The gradient by the parameters, from the one by the logits."""
    return jax.vjp(lambda tree: logits_of(model, tree, tokens, valid), params)[1](cotangent)[0]
