"""The forward pass of the SmolLM2 example on a small random Llama, against the formulas in float64."""

import dataclasses

import numpy as np
import pytest

import npkernels
from smollm2.generate import SAMPLING, Sampling, generate
from smollm2.model import KERNELS, PRODUCTS, Config, Layer, Llama, Weights

CONFIG = Config(
    layers=3,
    width=48,
    hidden=80,
    heads=6,
    kv_heads=2,
    head_dim=8,
    context=40,
    rope_base=100.0,
    norm_eps=1e-5,
)
V = 50


def small_model():
    rng, c = np.random.default_rng(0), CONFIG

    def matrix(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def norm():
        return rng.uniform(0.5, 1.5, c.width).astype(np.float32)

    layers = tuple(
        Layer(
            attention_norm=norm(),
            qkv=matrix((c.heads + 2 * c.kv_heads) * c.head_dim, c.width),
            output=matrix(c.width, c.heads * c.head_dim),
            ffn_norm=norm(),
            gate_up=matrix(2 * c.hidden, c.width),
            down=matrix(c.width, c.hidden),
        )
        for _ in range(c.layers)
    )
    embedding = matrix(V, c.width) * 5
    return Llama(Weights(c, embedding, layers, norm(), embedding))


@pytest.fixture
def model():
    return small_model()


def formulas(weights, tokens):
    """The logits by the textbook, in float64: a loop over heads, complex rotation, a full mask."""
    c, S = weights.config, len(tokens)

    def norm(x, w):
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + c.norm_eps) * w

    def rotate(x):  # neighbours as real and imaginary part, turned by position * base ** (-2 i / D)
        angle = np.outer(np.arange(S), c.rope_base ** (-np.arange(0, c.head_dim, 2) / c.head_dim))
        turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], axis=2).reshape(S, c.head_dim)

    x = weights.embedding[tokens].astype(np.float64)
    future = np.triu(np.ones((S, S), dtype=bool), 1)
    for layer in weights.layers:
        q, k, v = np.split(
            norm(x, layer.attention_norm) @ layer.qkv.T.astype(np.float64),
            [c.heads * c.head_dim, (c.heads + c.kv_heads) * c.head_dim],
            axis=1,
        )
        mixed = []
        for h in range(c.heads):
            at, kv_at = (
                slice(i * c.head_dim, (i + 1) * c.head_dim) for i in (h, h // (c.heads // c.kv_heads))
            )
            scores = rotate(q[:, at]) @ rotate(k[:, kv_at]).T / np.sqrt(c.head_dim)
            scores[future] = -np.inf
            mixed.append(npkernels.reference.softmax(scores) @ v[:, kv_at])
        x = x + np.concatenate(mixed, axis=1) @ layer.output.T
        gate, up = np.split(norm(x, layer.ffn_norm) @ layer.gate_up.T.astype(np.float64), 2, axis=1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer.down.T
    return norm(x, weights.norm) @ weights.head.T


def relative(found, expected):
    """Largest difference over largest entry."""
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("length", [1, 2, 17, CONFIG.context])
def test_logits_are_those_of_the_formulas(model, length):
    tokens = np.random.default_rng(length).integers(0, V, length)
    logits = model(tokens)
    assert logits.shape == (length, V)
    assert logits.dtype == np.float32
    assert relative(logits, formulas(model.weights, tokens)) < 2e-6


def test_the_formulas_tell_an_error(model):
    """The bound above is far below what a wrong base or epsilon would change."""
    tokens = np.arange(12)
    for wrong in ({"rope_base": 110.0}, {"norm_eps": 1e-3}):
        weights = dataclasses.replace(model.weights, config=dataclasses.replace(CONFIG, **wrong))
        assert relative(model(tokens), formulas(weights, tokens)) > 1e-4, wrong


@pytest.mark.parametrize("cuts", [[1] * 20, [7, 13], [19, 1], [3, 1, 1, 10, 5]])
def test_pieces_through_the_cache_give_the_logits_of_the_whole(model, cuts):
    tokens = np.random.default_rng(1).integers(0, V, 20)
    cache = model.new_cache(25)
    for layer in cache.layers:
        layer.k[:] = layer.v[:] = np.nan  # what was never written must not be read
    pieces = [model(piece, cache) for piece in np.split(tokens, np.cumsum(cuts)[:-1])]
    assert cache.length == 20
    assert relative(np.concatenate(pieces), model(tokens)) < 2e-6


def test_only_the_last_logits(model):
    tokens = np.arange(9)
    last = model(tokens, last=True)
    assert last.shape == (1, V)
    assert relative(last[0], model(tokens)[-1]) < 2e-6


def test_log_probs_of_a_text(model):
    tokens = np.random.default_rng(2).integers(0, V, 15)
    logits = formulas(model.weights, tokens)[:-1]
    expected = npkernels.reference.log_softmax(logits)[np.arange(14), tokens[1:]]
    np.testing.assert_allclose(model.log_probs(tokens), expected, atol=1e-5)


def test_too_many_tokens_are_refused_before_the_cache_changes(model):
    cache = model.new_cache(4)
    model([1, 2, 3], cache)
    before = [x.copy() for layer in cache.layers for x in (layer.k, layer.v)]
    with pytest.raises(ValueError, match="5 tokens do not fit: the cache holds 4, the model's context 40"):
        model([4, 5], cache)
    assert cache.length == 3
    after = [x for layer in cache.layers for x in (layer.k, layer.v)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(ValueError, match="41 tokens do not fit"):
        model(np.zeros(41, dtype=int), model.new_cache(100))
    with pytest.raises(ValueError, match="empty"):
        model([])


def test_a_generated_token_is_the_choice_after_all_before_it(model):
    prompt = [3, 1, 4]
    written = list(generate(model, prompt, max_tokens=10))
    assert len(written) == 10
    for i, token in enumerate(written):
        assert token == formulas(model.weights, [*prompt, *written[:i]])[-1].argmax()


def test_generation_ends_at_the_stop_token_and_leaves_it_out(model):
    free = list(generate(model, [3, 1, 4], max_tokens=10))
    assert list(generate(model, [3, 1, 4], max_tokens=10, stop=free[5])) == free[: free.index(free[5])]


def test_generation_ends_where_the_context_is_full(model):
    prompt = list(range(CONFIG.context - 4))
    assert len(list(generate(model, prompt, max_tokens=100))) == 5  # the fifth is never read
    with pytest.raises(ValueError, match="the prompt has 41 tokens; the model's context holds 40"):
        next(generate(model, [0] * 41, max_tokens=1))


def test_generation_is_fixed_by_its_seed(model):
    def written(seed):
        return list(generate(model, [1, 2], max_tokens=30, sampling=Sampling(1.0, seed=seed)))

    assert written(0) == written(0)
    assert written(0) != written(1)


def test_the_timer_knows_where_the_time_went(model):
    before = dict(model.timer.seconds)
    list(generate(model, [1, 2], max_tokens=3))
    spent = model.timer.since(before)
    assert set(spent) == {PRODUCTS, KERNELS, SAMPLING}
    assert all(seconds > 0 for seconds in spent.values())
    assert model.tokens == 4  # two of the prompt, two that were written; the third is not read


def test_a_tied_head_counts_once(model):
    w = model.weights
    tied = w.parameters
    assert tied == w.embedding.size + w.norm.size + sum(
        a.size for layer in w.layers for a in vars(layer).values()
    )
    assert dataclasses.replace(w, head=w.embedding.copy()).parameters == tied + w.embedding.size
