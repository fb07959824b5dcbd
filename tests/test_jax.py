"""`npkernels.jax` under JAX's transformations, against JAX's own functions and against `npkernels`."""

import functools
import pathlib
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import npkernels

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from npkernels import jax as nkj  # noqa: E402

RNG = np.random.default_rng(0)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiling is most of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def normal(*shape, dtype=np.float32):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def heads(B=2, Hq=4, Hkv=2, S=7, K=7, D=8, Dv=8, dtype=np.float32):
    return (
        normal(B, Hq, S, D, dtype=dtype),
        normal(B, Hkv, K, D, dtype=dtype),
        normal(B, Hkv, K, Dv, dtype=dtype),
    )


def theirs(q, k, v, **options):
    """JAX's own attention, with the heads before the sequence."""
    q, k, v = (x.swapaxes(-3, -2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, **options).swapaxes(-3, -2)


def leaves_of(f, primals, tangents):
    y, dy = jax.jvp(f, primals, tangents)
    return jax.tree.leaves((y, dy, jax.vjp(f, *primals)[1](y)))


def everything_of(f, primals, tangents):
    """The value, the derivative along the tangents and the cotangents, compiled at once."""
    return jax.jit(functools.partial(leaves_of, f))(primals, tangents)


# --- rows

ROWS = {
    "softmax": (nkj.softmax, jax.nn.softmax),
    "log_softmax": (nkj.log_softmax, jax.nn.log_softmax),
    "logsumexp": (nkj.logsumexp, lambda x, axis=-1: jax.nn.logsumexp(x, axis)),
}


@pytest.mark.parametrize(("name", "axis"), [("softmax", -1), ("log_softmax", 0), ("logsumexp", 1)])
def test_rows(name, axis):
    ours, other = ROWS[name]
    x, dx = normal(3, 5, 9), normal(3, 5, 9)
    f, g = functools.partial(ours, axis=axis), functools.partial(other, axis=axis)
    for got, expected in zip(*(everything_of(h, (x,), (dx,)) for h in (f, g)), strict=True):
        close(got, expected)
    close(f(x), g(x))  # without jit


@pytest.mark.parametrize("name", ROWS)
def test_rows_with_a_mask_and_a_temperature(name):
    ours, other = ROWS[name]
    x, mask = normal(4, 9), jnp.asarray(RNG.random(9) < 0.7)

    def f(x, mask):
        return ours(x, temperature=0.5, mask=mask)

    def g(x, mask):
        allowed = np.flatnonzero(mask)
        y = other(x[:, allowed] / 0.5)
        rest = 0 if name == "softmax" else -jnp.inf
        return y if name == "logsumexp" else jnp.full_like(x, rest).at[:, allowed].set(y)

    def loss(h, x):
        y = h(x, mask)
        return ((y if y.ndim == 1 else y[:, np.flatnonzero(mask)]) ** 2).sum()

    close(jax.jit(f)(x, mask), g(x, mask))
    grads = [jax.jit(jax.grad(functools.partial(loss, h)))(x) for h in (f, g)]
    close(*grads, rtol=1e-4, atol=1e-5)
    close(nkj.logsumexp(x, keepdims=True), jax.nn.logsumexp(x, axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("name", "in_axis", "out_axis"),
    [("softmax", 0, 0), ("softmax", -1, 1), ("log_softmax", 1, 0), ("logsumexp", 1, 0), ("logsumexp", -1, 1)],
)
def test_rows_under_vmap(name, in_axis, out_axis):
    ours, other = ROWS[name]
    x = normal(3, 4, 5)
    of = functools.partial(jax.vmap, in_axes=in_axis, out_axes=out_axis)
    close(of(ours)(x), of(other)(x))
    grads = [jax.jit(of(jax.grad(lambda x, f=f: (f(x) ** 2).sum())))(x) for f in (ours, other)]
    close(*grads)


def test_a_mask_of_each_or_of_all_under_vmap():
    x, masks = normal(3, 4, 5), jnp.asarray(RNG.random((3, 5)) < 0.7)
    got = jax.vmap(lambda x, m: nkj.softmax(x, mask=m))(x, masks)
    close(got, npkernels.softmax(np.asarray(x), mask=np.asarray(masks)[:, None]))
    close(
        jax.vmap(lambda x: nkj.softmax(x, mask=masks[0]))(x),
        npkernels.softmax(np.asarray(x), mask=np.asarray(masks[0])),
    )
    each = jax.vmap(lambda m: nkj.softmax(x[0], mask=m))(masks)
    same = np.broadcast_to(x[0], (3, 4, 5))
    close(each, npkernels.softmax(same, mask=np.asarray(masks)[:, None]))
    grads = jax.vmap(jax.grad(lambda x, m: nkj.softmax(x, mask=m)[0, 0]), in_axes=(None, 0))(x[0], masks)
    for grad, m in zip(grads, masks, strict=True):
        close(grad, jax.grad(lambda x, m=m: nkj.softmax(x, mask=m)[0, 0])(x[0]))


def test_gradients_of_what_an_axis_of_vmap_shares():
    x, masks = normal(4, 5), jnp.asarray(RNG.random((3, 5)) < 0.7)
    w = normal(3, 4, 5)
    q, k, v = normal(3, 2, 7, 4), normal(2, 7, 4), normal(2, 7, 4)
    ids = jnp.asarray(RNG.integers(0, 5, (3, 4)))

    def both(f, shared, each):
        """The gradient of a sum over vmap, and that of a sum over a loop."""
        together = jax.jit(jax.grad(lambda shared: jax.vmap(lambda e: f(shared, e))(each).sum()))(shared)
        parts = [jax.tree.map(lambda e, i=i: e[i], each) for i in range(3)]
        apart = jax.jit(jax.grad(lambda shared: sum(f(shared, e) for e in parts)))(shared)
        for got, expected in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
            close(got, expected, rtol=1e-4, atol=1e-5)

    both(lambda x, e: (e[1] * nkj.softmax(x, mask=e[0])).sum(), x, (masks, w))
    both(lambda kv, q: (nkj.attention(q, *kv, causal=True) ** 2).sum(), (k, v), q)
    both(lambda x, ids: nkj.token_log_probs(x, ids, stats=()).log_prob.sum(), x, ids)


# --- attention

OPTIONS = [
    {},
    {"causal": True},
    {"causal": "bottom_right", "window": (3, -1)},
    {"softcap": 2.0, "scale": 0.3},
]


@pytest.mark.parametrize("options", [{}, {"causal": True, "scale": 0.3}])
def test_attention_is_jaxs(options):
    q, k, v = heads()
    named = {{"causal": "is_causal"}.get(name, name): value for name, value in options.items()}

    f, g = functools.partial(nkj.attention, **options), functools.partial(theirs, **named)
    tangents = heads()
    for got, expected in zip(*(everything_of(h, (q, k, v), tangents) for h in (f, g)), strict=True):
        close(got, expected, rtol=1e-4, atol=1e-5)


def test_attention_with_mask_and_bias_is_jaxs():
    q, k, v = heads(K=9)
    mask, bias = jnp.asarray(RNG.random((2, 1, 7, 9)) < 0.8).at[..., 0].set(True), normal(1, 4, 7, 9)

    def loss(f, q, k, v, bias):
        return (f(q, k, v, mask=mask, bias=bias) ** 2).sum()

    args = (q, k, v, bias)
    ours = jax.jit(jax.value_and_grad(functools.partial(loss, nkj.attention), argnums=(0, 1, 2, 3)))(*args)
    other = jax.jit(jax.value_and_grad(functools.partial(loss, theirs), argnums=(0, 1, 2, 3)))(*args)
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(other), strict=True):
        close(got, expected, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_gradients_by_differences(options):
    f = functools.partial(nkj.attention, **options)
    check_grads(f, heads(), order=1, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2)


def test_attention_gradients_of_lse_bias_and_sinks_by_differences():
    q, k, v = heads(S=5)
    bias, sinks = normal(1, 4, 1, 7), normal(4)
    f = functools.partial(nkj.attention, causal="bottom_right", alibi_slopes=np.float32([1, 0.5, 0.2, 0.1]))

    def everything(q, k, v, bias, sinks):
        return f(q, k, v, bias=bias, sinks=sinks, return_lse=True)

    check_grads(everything, (q, k, v, bias, sinks), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
    check_grads(lambda s: f(q, k, v, sinks=s), (sinks,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("base", [(), (4,), (2, 4)], ids=str)
def test_attention_of_any_rank_under_nested_vmap(base):
    q, k, v = (normal(3, 2, *base, 7, 8) for _ in range(3))
    f = functools.partial(nkj.attention, causal=True)
    each = jnp.array([[f(q[i, j], k[i, j], v[i, j]) for j in range(2)] for i in range(3)])
    close(jax.jit(jax.vmap(jax.vmap(f)))(q, k, v), each)
    swapped = jax.vmap(jax.vmap(f), in_axes=1, out_axes=-1)(q, k, v)
    close(jnp.moveaxis(swapped, -1, 1), each)
    shared = jax.vmap(jax.vmap(f, in_axes=(0, None, None)), in_axes=(0, None, 0))(q, k[0, 0], v[:, 0])
    close(shared[1, 1], f(q[1, 1], k[0, 0], v[1, 0]))


def test_jacobians():
    q, k, v = normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 4)
    back, ahead = (jax.jit(of(nkj.attention, argnums=1))(q, k, v) for of in (jax.jacrev, jax.jacfwd))
    expected = jax.jit(jax.jacrev(theirs, argnums=1))(q, k, v)
    close(back, expected)
    close(ahead, expected)


def extras(n, B=2, Hq=4, S=7, K=9):
    """For each entry of an axis of length n: every argument that may be traced."""
    return {
        "mask": jnp.asarray(RNG.random((n, B, 1, S, K)) < 0.7),
        "bias": normal(n, 1, Hq, S, K),
        "alibi_slopes": jnp.asarray(RNG.random((n, Hq)), jnp.float32),
        "sinks": normal(n, Hq),
        "q_offset": jnp.asarray(RNG.integers(0, 3, (n, B))),
        "kv_lengths": jnp.asarray(RNG.integers(1, K, (n, B))),
    }


@pytest.mark.parametrize(
    "batched", ["mask", "bias", "alibi_slopes", "sinks", "q_offset", "kv_lengths", "all"]
)
def test_every_traced_argument_under_vmap_and_grad(batched):
    n = 3
    q, k, v = (x.reshape(n, 2, *x.shape[1:]) for x in heads(B=2 * n, K=9))
    given = extras(n)
    axes = {name: 0 if batched in (name, "all") else None for name in given}
    given = {name: x if axes[name] == 0 else x[0] for name, x in given.items()}
    if batched not in ("sinks", "all"):
        del given["sinks"]
    differentiable = {name: given[name] for name in ("bias", "sinks") if name in given}
    rest = {name: x for name, x in given.items() if name not in differentiable}

    def loss(q, k, v, moving, rest):
        out, lse = nkj.attention(q, k, v, **moving, **rest, causal=True, return_lse=True)
        return (out**2).sum() + jnp.sin(lse).sum()

    def take(tree, names, i):
        return {name: tree[name] if axes[name] is None else tree[name][i] for name in names}

    f = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
    in_axes = (0, None, 0, {name: axes[name] for name in differentiable}, {name: axes[name] for name in rest})
    together = jax.jit(jax.vmap(f, in_axes=in_axes))(q, k[0], v, differentiable, rest)
    single = jax.jit(f)
    for i in range(n):
        alone = single(q[i], k[0], v[i], take(differentiable, differentiable, i), take(rest, rest, i))
        for got, expected in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            close(got[i], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "seed", [5, -3, 2**63 + 11, jnp.uint32(2**32 - 2), jnp.int32(-7), np.int64(-(2**40))]
)
def test_dropout_drops_what_npkernels_drops(seed):
    q, k, v = heads(K=9)
    arrays = [np.asarray(x) for x in (q, k, v)]
    options = {"dropout_p": 0.3, "causal": "bottom_right"}
    chosen = {**options, "dropout_seed": int(seed)}
    expected, lse = npkernels.attention(*arrays, **chosen, return_lse=True)
    f = functools.partial(nkj.attention, **options)
    if isinstance(seed, int | np.integer):
        got, pull = jax.vjp(lambda *x: f(*x, dropout_seed=seed), q, k, v)
    else:
        got, pull = jax.vjp(jax.jit(lambda *x: f(*x, dropout_seed=seed)), q, k, v)
        assert np.array_equal(jax.jit(lambda s: f(q, k, v, dropout_seed=s))(seed), expected)
    assert np.array_equal(got, expected)
    grads = npkernels.attention_vjp(expected, *arrays, expected, lse, **chosen)
    for one, other in zip(pull(got), (grads.dq, grads.dk, grads.dv), strict=True):
        assert np.array_equal(one, other)


def test_seeds_of_64_bits():
    with jax.enable_x64(True):
        q, k, v = heads()
        for seed in (jnp.uint64(2**63 + 11), jnp.int64(-(2**40))):
            got = jax.jit(lambda s: nkj.attention(q, k, v, dropout_p=0.3, dropout_seed=s))(seed)
            options = {"dropout_p": 0.3, "dropout_seed": int(seed)}
            assert np.array_equal(got, npkernels.attention(*map(np.asarray, (q, k, v)), **options))


@pytest.mark.parametrize("shared", [False, True])
def test_dropout_under_vmap_is_that_of_each_entry(shared):
    n = 3
    q, k, v = (x.reshape(n, 2, *x.shape[1:]) for x in heads(B=2 * n))
    seeds = jax.random.bits(jax.random.key(0), (n,))

    def loss(q, k, v, seed):
        out, lse = nkj.attention(q, k, v, dropout_p=0.4, dropout_seed=seed, return_lse=True)
        return (out**2).sum() + lse.sum()

    f = jax.value_and_grad(loss, argnums=(0, 1, 2))
    given, axis = (seeds[0], None) if shared else (seeds, 0)
    together = jax.jit(jax.vmap(f, in_axes=(0, None, 0, axis)))(q, k[0], v, given)
    for i in range(n):
        alone = f(q[i], k[0], v[i], seeds[0] if shared else seeds[i])
        for got, expected in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            close(got[i], expected, rtol=1e-4, atol=1e-5)


def test_a_seed_alone_drops_nothing():
    q, k, v = heads()
    assert np.array_equal(nkj.attention(q, k, v, dropout_seed=3), nkj.attention(q, k, v))


# --- tokens


def test_tokens():
    x, ids = normal(4, 3, 11), RNG.integers(0, 11, (4, 3))
    mask = jnp.asarray(RNG.random(11) < 0.8) | (jnp.arange(11) == 0)
    f = functools.partial(nkj.token_log_probs, temperature=0.7, mask=mask)
    t = jax.jit(f)(x, ids)
    expected = npkernels.token_log_probs(np.asarray(x), ids, temperature=0.7, mask=np.asarray(mask))
    for name in ("log_prob", "entropy", "lse", "sum_p2", "top1", "rank"):
        close(getattr(t, name), getattr(expected, name))
    assert t.top1.dtype == t.rank.dtype == jnp.int32
    rows = jax.vmap(f, in_axes=(1, 1), out_axes=1)(x, ids)
    close(rows.entropy, t.entropy)
    close(jax.vmap(f, in_axes=(None, 0))(x[0], ids).log_prob[2], f(x[0], ids[2]).log_prob)


def plain_tokens(x, ids):
    logp = jax.nn.log_softmax(x / 0.7)
    return jnp.take_along_axis(logp, ids[..., None], -1)[..., 0], -(jnp.exp(logp) * logp).sum(-1)


@pytest.mark.parametrize("stats", [(), ("entropy",), ("rank", "entropy", "lse", "top1", "sum_p2")])
def test_gradients_of_tokens(stats):
    x, ids, w = normal(4, 3, 11), jnp.asarray(RNG.integers(0, 11, (4, 3))), normal(4, 3)

    def ours(x):
        t = nkj.token_log_probs(x, ids, temperature=0.7, stats=stats)
        return (w * t.log_prob).sum() + (0 if t.entropy is None else (t.entropy**2).sum())

    def other(x):
        logp, entropy = plain_tokens(x, ids)
        return (w * logp).sum() + ((entropy**2).sum() if "entropy" in stats else 0)

    close(jax.jit(jax.grad(ours))(x), jax.grad(other)(x), atol=1e-5)
    dx = normal(4, 3, 11)
    if stats == ():
        close(jax.jvp(ours, (x,), (dx,))[1], jax.jvp(other, (x,), (dx,))[1], rtol=1e-4)

    def per_row(x, ids):
        t = nkj.token_log_probs(x, ids, stats=stats)
        return t.log_prob.sum() + (0 if t.entropy is None else t.entropy.sum())

    rows = jax.vmap(jax.grad(per_row), in_axes=(0, 0))(x, ids)
    close(rows, jax.grad(lambda x: jax.vmap(per_row)(x, ids).sum())(x))


# --- numbers


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_numbers(dtype):
    q, k, v = heads(dtype=dtype)
    out, lse = jax.jit(functools.partial(nkj.attention, causal=True, return_lse=True))(q, k, v)
    expected, norm = npkernels.attention(*map(np.asarray, (q, k, v)), causal=True, return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == jnp.float32
    assert np.array_equal(out, expected)
    assert np.array_equal(lse, norm)
    dq = jax.jit(jax.grad(lambda q: nkj.attention(q, k, v, causal=True).astype(jnp.float32).sum()))(q)
    ones = np.ones(expected.shape, expected.dtype)
    exact = npkernels.attention_vjp(ones, *map(np.asarray, (q, k, v)), expected, norm, causal=True).dq
    assert dq.dtype == dtype
    assert np.array_equal(dq, exact)
    x = normal(3, 40, dtype=dtype)
    assert np.array_equal(nkj.softmax(x), npkernels.softmax(np.asarray(x)))
    assert nkj.logsumexp(x).dtype == jnp.float32
    assert jax.grad(lambda x: nkj.log_softmax(x)[0, 0].astype(jnp.float32))(x).dtype == dtype
    assert np.dtype(jnp.bfloat16) == ml_dtypes.bfloat16


def test_double():
    """In 64 bits: what the functions of npkernels give, whose own tests take differences of them."""
    with jax.enable_x64(True):
        (q, k, v), moved = heads(dtype=np.float64), heads(dtype=np.float64)
        arrays, along = ([np.asarray(x) for x in some] for some in ((q, k, v), moved))
        for options in ({}, {"causal": True, "softcap": 3.0}):
            got = everything_of(functools.partial(nkj.attention, **options), (q, k, v), moved)
            out, lse = npkernels.attention(*arrays, **options, return_lse=True)
            grads = npkernels.attention_vjp(out, *arrays, out, lse, **options)
            dout = npkernels.attention_jvp(*arrays, *along, **options)[1]
            for one, other in zip(got, (out, dout, grads.dq, grads.dk, grads.dv), strict=True):
                assert one.dtype == jnp.float64
                close(one, other, rtol=1e-12, atol=1e-13)
        x, dx = normal(3, 9, dtype=np.float64), normal(3, 9, dtype=np.float64)
        for ours, other in ROWS.values():
            for one, expected in zip(*(everything_of(f, (x,), (dx,)) for f in (ours, other)), strict=True):
                assert one.dtype == jnp.float64
                close(one, expected, rtol=1e-12, atol=1e-13)
        assert nkj.softmax([1, 2]).dtype == jnp.float64
        assert nkj.token_log_probs(x, [0, 1, 2]).top1.dtype == jnp.int64
    assert nkj.softmax([1, 2]).dtype == jnp.float32


def test_empty_arrays():
    assert nkj.softmax(jnp.zeros((0, 4))).shape == (0, 4)
    assert nkj.attention(jnp.zeros((2, 0, 4)), jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 5))).shape == (2, 0, 5)
    nothing = nkj.attention(jnp.zeros((2, 4)), jnp.zeros((0, 4)), jnp.ones((0, 5)), return_lse=True)
    each = jax.vmap(nkj.attention)(jnp.zeros((3, 2, 4)), jnp.zeros((3, 0, 4)), jnp.ones((3, 0, 5)))
    assert np.array_equal(each, np.zeros((3, 2, 5)))
    assert np.array_equal(nothing[0], np.zeros((2, 5)))
    assert np.array_equal(nothing[1], [-np.inf] * 2)


def test_a_bias_of_integers_is_one_of_floats():
    q, k, v = heads()
    steps = jnp.arange(7)
    assert np.array_equal(
        nkj.attention(q, k, v, bias=steps), nkj.attention(q, k, v, bias=steps.astype(jnp.float32))
    )


# --- inside JAX's control flow


def test_scan_and_checkpoint():
    xs, w = normal(5, 6), normal(6)

    def chain(f):
        step = jax.checkpoint(lambda c, x: (f(c * x), f(c + x).sum()))
        return lambda w: jax.lax.scan(step, w, xs)[1].sum() + jax.lax.scan(step, w, xs)[0][0]

    close(
        jax.jit(jax.grad(chain(nkj.log_softmax)))(w),
        jax.grad(chain(jax.nn.log_softmax))(w),
        rtol=1e-3,
        atol=1e-5,
    )


def test_large_arrays_do_not_wait_for_one_another():
    """The host functions need no thread of JAX's pool, of which a small machine has few."""
    code = (
        "import jax, jax.numpy as jnp, npkernels.jax as nkj\n"
        "x = jnp.ones((1024, 1024))\n"
        "f = jax.jit(lambda x: nkj.softmax(nkj.softmax(x + 1) * x).sum() + nkj.logsumexp(x).sum())\n"
        "print([float(jax.jit(jax.grad(f))(x)[0, 0]) for _ in range(3)][0])\n"
        "q = jnp.ones((2, 4, 512, 64))\n"
        "g = jax.jit(jax.vmap(lambda q: nkj.attention(q, q, q) + nkj.attention(q, q, 2 * q)))\n"
        "print([float(g(q).max()) for _ in range(3)])\n"
    )
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "OMP_NUM_THREADS": "2",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=true",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout.split("\n")[1] == "[3.0, 3.0, 3.0]", done.stderr


# --- refusals


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: nkj.softmax(x, axis=3), ValueError, "softmax: axis"),
        (lambda x: nkj.softmax(x + 1j), TypeError, "softmax: x has dtype complex64; expected float32"),
        (
            lambda x: nkj.attention(x, x, x.astype(jnp.float8_e4m3fn)),
            TypeError,
            "attention: v has dtype float8_e4m3fn; expected float32",
        ),
        (
            lambda x: nkj.token_log_probs(x + 1j, [0, 1, 2]),
            TypeError,
            "token_log_probs: logits has dtype compl",
        ),
        (
            lambda x: nkj.attention(x, x, x, sinks=x[0, :1] + 1j),
            TypeError,
            "attention: sinks has dtype compl",
        ),
        (lambda x: nkj.softmax(x, temperature=0.0), ValueError, "softmax: temperature"),
        (lambda x: nkj.softmax(x, mask=x), TypeError, "softmax: mask has dtype float32; expected bool"),
        (lambda x: nkj.softmax(x, mask=x[0, :2] > 0), ValueError, r"softmax: mask has shape \(2,\)"),
        (lambda x: nkj.attention(x, x[:, :2], x), ValueError, "attention: k has head size 2, q has 4"),
        (lambda x: nkj.attention(x, x, x[0]), ValueError, r"attention: v has shape \(4,\)"),
        (
            lambda x: nkj.attention(x, x[:2], x[:2], causal=True),
            ValueError,
            "causal=True with 3 queries and 2",
        ),
        (
            lambda x: nkj.attention(x, x, x, mask=x[:2, :2] > 0),
            ValueError,
            r"attention: mask has shape \(2, 2\)",
        ),
        (lambda x: nkj.attention(x, x, x, mask=x @ x.T), TypeError, "attention: mask has dtype float32"),
        (lambda x: nkj.attention(x, x, x, bias=x @ x.T > 0), TypeError, "pass booleans as mask"),
        (lambda x: nkj.attention(x, x, x, window=3), TypeError, "attention: window is 3"),
        (lambda x: nkj.attention(x, x, x, dropout_p=0.5), ValueError, "dropout_p is 0.5, which needs"),
        (
            lambda x: nkj.attention(x, x, x, dropout_p=1.0, dropout_seed=1),
            ValueError,
            "dropout_p is 1.0; expected a share",
        ),
        (
            lambda x: nkj.attention(x, x, x, dropout_p=0.5, dropout_seed=x[0]),
            TypeError,
            r"dropout_seed has shape \(4,\) and dtype float32; expected one integer",
        ),
        (lambda x: nkj.token_log_probs(x, x[:, 0]), TypeError, "token_log_probs: ids has dtype float32"),
        (lambda x: nkj.token_log_probs(x, [0, 1]), ValueError, r"token_log_probs: ids has shape \(2,\)"),
        (lambda x: nkj.token_log_probs(x, [0, 1, 2], stats=("mode",)), ValueError, "stats holds 'mode'"),
    ],
)
def test_refusals_come_when_the_call_is_traced(call, error, message):
    x = normal(3, 4)
    for f in (call, jax.jit(call)):
        with pytest.raises(error, match=message):
            f(x)


def test_refusals_of_derivatives():
    x, q = normal(3, 4), normal(2, 3, 4)
    second = "npkernels.jax has first derivatives only; jax.nn"
    with pytest.raises(
        NotImplementedError, match=f"softmax: its derivative was differentiated. {second}.softmax"
    ):
        jax.hessian(lambda x: nkj.softmax(x).sum())(x)
    with pytest.raises(NotImplementedError, match=f"attention: .*{second}.dot_product_attention"):
        jax.hessian(lambda q: nkj.attention(q, q, q).sum())(q)
    with pytest.raises(NotImplementedError, match=f"token_log_probs: .*{second}.log_softmax"):
        jax.hessian(lambda x: nkj.token_log_probs(x, [0, 1, 2]).entropy.sum())(x)
    with pytest.raises(NotImplementedError, match="with dropout in forward mode"):
        jax.jvp(lambda q: nkj.attention(q, q, q, dropout_p=0.5, dropout_seed=1), (q,), (q,))
    with pytest.raises(NotImplementedError, match="attention: alibi_slopes was differentiated"):
        jax.grad(lambda a: nkj.attention(q, q, q, alibi_slopes=a).sum())(normal(2))
    with pytest.raises(NotImplementedError, match="along sinks in forward mode"):
        jax.jvp(lambda s: nkj.attention(q, q, q, sinks=s), (normal(2),), (normal(2),))
    with pytest.raises(NotImplementedError, match=r"of lse .* in forward mode"):
        jax.jvp(lambda q: nkj.attention(q, q, q, return_lse=True)[1], (q,), (q,))
    with pytest.raises(NotImplementedError, match="entropy was differentiated in forward mode"):
        jax.jvp(lambda x: nkj.token_log_probs(x, [0, 1, 2]).entropy, (x,), (x,))


def test_what_only_the_numbers_tell_is_said_when_the_call_runs():
    q = normal(1, 2, 3, 4)
    with pytest.raises(jax.errors.JaxRuntimeError, match="kv_lengths holds 9; expected lengths from 0 to 3"):
        jax.block_until_ready(jax.jit(lambda n: nkj.attention(q, q, q, kv_lengths=n))(jnp.array([9])))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"token_log_probs: .*7"):
        jax.block_until_ready(nkj.token_log_probs(normal(1, 4), [7]).log_prob)


def test_npkernels_alone_imports_no_jax():
    code = "import sys, npkernels; print('jax' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "False", done.stderr


def test_the_page_runs():
    page = pathlib.Path(__file__).parents[1] / "docs" / "jax.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
