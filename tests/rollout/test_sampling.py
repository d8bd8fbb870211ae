"""The sampler: the log-probabilities of the scorer, independent requests, exact distributions, few compilations."""

import dataclasses
import functools
import importlib
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgeom.rollout
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.rollout import SamplingSettings, cpu_parts, sample, sampling
from jaxgeom.rollout.choose import choose_tokens
from jaxgeom.rollout.sampling import _decode, _prefill, _uniforms, bucket_length
from tests.tiny import tiny_params

CONFIG = Qwen3Config(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
)  # fmt: skip


# Nats; float32, weights 8 times the usual.
SCORER = 1e-4


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, tiny_params(CONFIG))


@pytest.fixture(scope="module", params=[None, "cpu", "gpu"], ids=["general", "cpu", "gpu"])
def actor(request, params):
    """All forms of the decode loop, with the same parameters; that for GPUs runs in float32 on any device."""
    return Qwen3(CONFIG, platform=request.param), params


@pytest.fixture(scope="module")
def general(params):
    return Qwen3(CONFIG), params


def prompts(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 61, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, valid):
    return model.apply({"params": params}, tokens, valid=valid)


def scored(actor, rollout, temperature=1.0):
    logits = forward(*actor, rollout.tokens, rollout.valid)
    log_probs = np.asarray(jax.nn.log_softmax(logits / temperature))
    following = np.take_along_axis(log_probs[:, :-1], rollout.tokens[:, 1:, None], -1)[..., 0]
    return np.where(rollout.response_mask, np.pad(following, ((0, 0), (1, 0))), 0)


def test_log_probs_are_the_scorers(actor):
    settings = SamplingSettings(10, temperature=0.7, stop_tokens=(3, 5))
    rollout = sample(*actor, prompts(8), range(8), settings, pad_id=0)
    assert rollout.tokens.shape == rollout.log_probs.shape == (8, rollout.prompt_length + 10)
    np.testing.assert_allclose(rollout.log_probs, scored(actor, rollout, 0.7), atol=SCORER)
    assert (rollout.log_probs[rollout.response_mask] < 0).all()


KINDS = {
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("kind", "rows"), [("tied", 1), ("bias", 3), ("experts", 4)])
def test_every_kind_decodes_as_the_scorer_with_its_layers_apart(kind, rows, platform):
    model = Qwen3(dataclasses.replace(CONFIG, **KINDS[kind]), platform=platform)
    params = tiny_params(model.config, seed=1)
    rng = np.random.default_rng(6)
    # Every parameter off its start: a scale or bias that decoding forgets would show.
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), params)
    rollout = sample(model, params, prompts(rows), range(rows), SamplingSettings(4), pad_id=0)
    assert rollout.response_mask.sum() == 4 * rows
    np.testing.assert_allclose(rollout.log_probs, scored((model, params), rollout), atol=SCORER)


def test_a_vocabulary_of_many_blocks_is_sampled_exactly():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(64, 151_937)).astype(np.float32) * 3
    logits[:, rng.choice(151_937, 60_000, replace=False)] = -np.inf
    uniforms = rng.random(64, np.float32)
    tokens, log_probs = jax.jit(lambda x, u: choose_tokens(x, u, SamplingSettings(1)))(logits, uniforms)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    below = np.cumsum(probabilities, -1) - probabilities
    rows = np.arange(64)
    # The token's own interval of the cumulative distribution holds the draw, up to float32 sums of 2^-24 · √n.
    assert (below[rows, tokens] <= uniforms + 2e-6).all()
    assert (uniforms <= below[rows, tokens] + probabilities[rows, tokens] + 2e-6).all()
    np.testing.assert_allclose(log_probs, np.log(probabilities[rows, tokens]), atol=2e-5)


def test_answers_end_with_their_stop_token(actor):
    free = sample(*actor, prompts(8), range(8), SamplingSettings(12), pad_id=0).responses()
    stop = free[0][4]
    stopped = sample(*actor, prompts(8), range(8), SamplingSettings(12, stop_tokens=(stop, 60)), pad_id=7)
    for before, after in zip(free, stopped.responses(), strict=True):
        ends = [i for i, token in enumerate(before) if token in (stop, 60)]
        assert after == (before[: ends[0] + 1] if ends else before)
    tail = ~stopped.response_mask[:, stopped.prompt_length :]
    assert tail.any() and (stopped.tokens[:, stopped.prompt_length :][tail] == 7).all()
    assert (stopped.valid[:, stopped.prompt_length :] == ~tail).all()


def test_a_request_has_the_same_answer_in_any_batch(actor):
    requests = prompts(9)
    settings = SamplingSettings(9, top_p=0.9)
    together = sample(*actor, requests, range(9), settings, pad_id=0).responses()
    longer = sample(*actor, [requests[4], list(range(40)), requests[2]], [4, 99, 2], settings, pad_id=1).responses()
    assert (longer[0], longer[2]) == (together[4], together[2])
    alone = sample(*actor, requests[4:5], [4], settings, pad_id=0).responses()
    assert alone[0] == together[4]
    other = sample(*actor, requests[4:5], [5], settings, pad_id=0).responses()
    assert other[0] != together[4]


def test_greedy_takes_the_most_likely_token(actor):
    rollout = sample(*actor, prompts(4), [0] * 4, SamplingSettings(6, greedy=True), pad_id=0)
    logits = forward(*actor, rollout.tokens, rollout.valid)
    best = np.asarray(jnp.argmax(logits, -1))[:, rollout.prompt_length - 1 : -1]
    assert (best == rollout.tokens[:, rollout.prompt_length :]).all()
    np.testing.assert_allclose(rollout.log_probs, scored(actor, rollout), atol=SCORER)


def expected(logits, settings):
    """The sampling distribution in numpy float64."""
    scaled = np.asarray(logits, np.float64) / settings.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = order[: settings.top_k or len(p)]
    within = p[keep] / p[keep].sum()
    keep = keep[np.concatenate([[True], np.cumsum(within)[:-1] < settings.top_p])]
    out = np.zeros_like(p)
    out[keep] = p[keep] / p[keep].sum()
    return out


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(1),
        SamplingSettings(1, temperature=0.5),
        SamplingSettings(1, top_p=0.7),
        SamplingSettings(1, top_k=4, top_p=0.9),
        SamplingSettings(1, top_k=99),
        SamplingSettings(1, top_p=1e-6),
    ],
)
def test_draws_follow_the_distribution_exactly(settings):
    logits = np.random.default_rng(0).normal(size=11).astype(np.float32) * 2
    logits[3] = logits[7]  # a tie is broken by the index
    # Evenly spaced numbers in place of random ones: the counts are the probabilities, up to one draw each.
    draws = 20_000
    uniforms = jnp.asarray((np.arange(draws) + 0.5) / draws, jnp.float32)
    tokens, log_probs = jax.jit(choose_tokens, static_argnums=2)(
        jnp.broadcast_to(jnp.asarray(logits), (draws, 11)), uniforms, settings
    )
    want = expected(logits, settings)
    counts = np.bincount(np.asarray(tokens), minlength=11) / draws
    np.testing.assert_allclose(counts, want, atol=2 / draws)
    assert (counts[want == 0] == 0).all()
    np.testing.assert_allclose(log_probs, np.log(want[np.asarray(tokens)]), atol=1e-5)


def test_uniforms_of_a_request_are_uniform():
    values = np.asarray(_uniforms(jnp.arange(200, dtype=jnp.uint32), 50, False))
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.var() - 1 / 12) < 0.003
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.03
    assert len(np.unique(values)) > 9_900


@pytest.mark.parametrize(("count", "parts"), [(3, 2), (64, 4)])
def test_parts_of_a_large_batch_are_sampled_as_the_whole(params, monkeypatch, count, parts):
    actor, sampled = (Qwen3(CONFIG, platform="cpu"), params), []
    requests, settings = prompts(14), SamplingSettings(6, stop_tokens=(3, 5))

    def watched(*arguments):
        sampled.append((threading.get_ident(), arguments[4].shape[0]))
        return _prefill(*arguments)

    monkeypatch.setattr(cpu_parts, "usable_cores", lambda: count)
    monkeypatch.setattr(cpu_parts, "_ROWS_OF_A_PART", 4)  # as if these few rows were many
    monkeypatch.setattr(sampling, "_prefill", watched)
    rollout = sample(*actor, requests, range(14), settings, pad_id=0)
    threads, rows = zip(*sampled, strict=True)
    # A thread that is done may take another part.
    assert rows == (16 // parts,) * parts and 2 <= len(set(threads)) <= parts
    np.testing.assert_allclose(rollout.log_probs, scored(actor, rollout), atol=SCORER)
    size = 16 // parts
    alone = sample(*actor, requests[5 : 5 + size], range(5, 5 + size), settings, pad_id=0).responses()
    assert rollout.responses()[5 : 5 + size] == alone


def test_parts_are_for_a_single_cpu_device():
    assert cpu_parts.count_parts(31, "cpu", None) == 1
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    for platform, where in (("gpu", None), ("tpu", None), (None, None), ("cpu", mesh)):
        assert cpu_parts.count_parts(4096, platform, where) == 1


def test_the_function_does_not_hide_its_module():
    assert importlib.import_module("jaxgeom.rollout.sampling").sample is jaxgeom.rollout.sample is sample


def test_few_compilations_for_any_mix_of_lengths(general):
    settings = SamplingSettings(3)
    _prefill.clear_cache(), _decode.clear_cache()
    for rows in (5, 8):
        for longest in (1, 7, 12, 13, 16, 17, 24):
            sample(*general, [[1] * longest] * rows, range(rows), settings, pad_id=0)
    # Rows share one bucket; lengths up to 24 fall into 12, 16 and 24.
    assert _prefill._cache_size() == _decode._cache_size() == 3
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(lambda x: x, n=5))
    for length in range(1, 49):
        traced(jnp.zeros(bucket_length(length)))


def test_a_fixed_cache_compiles_once_and_gives_the_same_answers(general):
    settings = SamplingSettings(4)
    _decode.clear_cache()
    short = sample(*general, prompts(4), range(4), settings, pad_id=0, cache_length=52)
    sample(*general, prompts(4, longest=40), range(4), settings, pad_id=0, cache_length=52)
    assert _decode._cache_size() == 1 and short.prompt_length == 48
    assert short.responses() == sample(*general, prompts(4), range(4), settings, pad_id=0).responses()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ([[1] * 30], [0], SamplingSettings(8), {"cache_length": 32}),
            r"prompts\[0\] has 30 tokens.*cache_length is 32",
        ),
        (([[1], [1] * 125], [0, 1], SamplingSettings(8), {}), r"prompts\[1\] has 125.*max_position_embeddings is 128"),
        (([], [], SamplingSettings(8), {}), "prompts is empty"),
        (([[]], [0], SamplingSettings(8), {}), r"prompts\[0\] has no tokens"),
        (([[61]], [0], SamplingSettings(8), {}), "vocab_size=61"),
        (([[1]], [0, 1], SamplingSettings(8), {}), "2 seeds for 1 prompts"),
        (([[1]], [-1], SamplingSettings(8), {}), "seeds"),
    ],
)
def test_requests_that_cannot_be_served_are_named(general, arguments, named):
    requests, seeds, settings, options = arguments
    with pytest.raises(ValueError, match=named):
        sample(*general, requests, seeds, settings, pad_id=0, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"temperature": 1e-40},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_settings_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingSettings(**({"max_new_tokens": 1} | options))


def test_settings_take_any_sequence_of_stop_tokens():
    assert hash(SamplingSettings(1, stop_tokens=[2, 3])) == hash(SamplingSettings(1, stop_tokens=(2, 3)))
