"""The functions of flash-attention, against the plain formula in PyTorch's float64."""

import inspect
import itertools
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import npkernels
from npkernels import flash_attn

torch = pytest.importorskip("torch")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def plain(q, k, v, *, scale=None, causal=False, window=(-1, -1), softcap=0.0, slopes=None):
    """(out, lse) of (B, S, H, D) tensors in float64: scores, masks, softmax and product, one after the other."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    (B, H, S, D), (K, Hk) = q.shape, (k.shape[2], k.shape[1])
    k, v = (x.repeat_interleave(H // Hk, dim=1) for x in (k, v))
    s = q @ k.transpose(2, 3) * (1 / math.sqrt(D) if scale is None else scale)
    if softcap > 0:
        s = softcap * torch.tanh(s / softcap)
    behind = (torch.arange(S) + K - S)[:, None] - torch.arange(K)
    if slopes is not None:
        s = s - torch.as_tensor(slopes).double().expand(B, H)[:, :, None, None] * behind.abs()
    seen = torch.ones(S, K, dtype=torch.bool)
    if causal:
        seen &= behind >= 0
    if window[0] >= 0:
        seen &= behind <= window[0]
    if window[1] >= 0:
        seen &= behind >= -window[1]
    empty = ~seen.any(dim=1)
    s = s.masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(s, dim=-1)
    weights = torch.where(empty[:, None], 0.0, torch.exp(s - torch.where(empty, 0.0, lse)[..., None]))
    return (weights @ v).transpose(1, 2), lse


def random(*shape, dtype=torch.float32, seed=0, grad=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.requires_grad_(grad)


def close(found, expected, dtype=torch.float32):
    found, expected = torch.as_tensor(found).detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (3, 1)},
    "causal window": {"causal": True, "window_size": (2, 5)},
    "open to the left": {"window_size": (-1, 2)},
    "softcap and scale": {"softcap": 1.5, "softmax_scale": 0.7, "causal": True},
    "slopes": {"alibi_slopes": torch.tensor([0.1, 0.2, 0.3, 0.4])},
    "slopes of each batch": {
        "alibi_slopes": torch.rand(2, 4, generator=torch.Generator().manual_seed(5)),
        "causal": True,
    },
}
RENAMED = {"softmax_scale": "scale", "window_size": "window", "alibi_slopes": "slopes"}


def of_plain(options):
    return {RENAMED.get(name, name): value for name, value in options.items()}


SIZES = [(5, 9), (9, 5), (7, 7), (1, 11)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("S", "K"), SIZES)
def test_output_lse_and_gradients(S, K, options):
    q, k, v = (
        random(2, S, 4, 8, grad=True),
        random(2, K, 2, 8, seed=1, grad=True),
        random(2, K, 2, 8, seed=2, grad=True),
    )
    out, lse, probs = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True, **options)
    expected, expected_lse = plain(q, k, v, **of_plain(options))
    close(out, expected)
    close(lse, expected_lse)
    assert out.dtype == q.dtype
    assert lse.dtype == torch.float32
    assert out.is_contiguous()
    assert probs.shape == (0,)
    dout = random(*out.shape, seed=3)
    found = torch.autograd.grad(out, (q, k, v), dout)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (q, k, v), dout.double()), strict=True):
        close(ours, theirs)
    with torch.no_grad():
        assert torch.equal(flash_attn.flash_attn_func(q, k, v, **options), out)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtypes(dtype):
    q, k, v = (random(1, 6, 2, 16, dtype=dtype, seed=i, grad=True) for i in range(3))
    out = flash_attn.flash_attn_func(q, k, v, causal=True)
    assert out.dtype == dtype
    expected, _ = plain(q, k, v, causal=True)
    close(out, expected, dtype)
    dout = random(*out.shape, dtype=dtype, seed=3)
    for ours, theirs in zip(
        torch.autograd.grad(out, (q, k, v), dout),
        torch.autograd.grad(expected, (q, k, v), dout.double()),
        strict=True,
    ):
        assert ours.dtype == dtype
        close(ours, theirs, dtype)


def test_lse_is_differentiable():
    q, k, v = (random(1, 6, 2, 8, dtype=torch.float64, seed=i, grad=True) for i in range(3))

    def both(q, k, v):
        return flash_attn.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)[:2]

    assert torch.autograd.gradcheck(both, (q, k, v))
    (first,) = torch.autograd.grad(both(q, k, v)[0].sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="only first derivatives exist"):
        torch.autograd.grad(first.sum(), q)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_forward_mode_is_not_lost():
    q, k, v, along = (random(1, 6, 2, 8, dtype=torch.float64, seed=i) for i in range(4))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, along)
        out = flash_attn.flash_attn_func(dual, k, v, causal=True)
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    step = 1e-6
    up, down = (flash_attn.flash_attn_func(q + s * along, k, v, causal=True) for s in (step, -step))
    torch.testing.assert_close(tangent, (up - down) / (2 * step), rtol=0, atol=1e-8)


def test_packed_arrays_and_their_gradients():
    qkv = random(2, 7, 3, 4, 8, grad=True)
    expected, _ = plain(*qkv.unbind(2), causal=True)
    out = flash_attn.flash_attn_qkvpacked_func(qkv, causal=True)
    close(out, expected)
    dout = random(*out.shape, seed=1)
    close(torch.autograd.grad(out, qkv, dout)[0], torch.autograd.grad(expected, qkv, dout.double())[0])

    q, kv = random(2, 5, 4, 8, grad=True), random(2, 7, 2, 2, 8, seed=1, grad=True)
    expected, _ = plain(q, *kv.unbind(2), window=(2, 2))
    out = flash_attn.flash_attn_kvpacked_func(q, kv, window_size=(2, 2))
    close(out, expected)
    for ours, theirs in zip(
        torch.autograd.grad(out, (q, kv), dout[:, :5]),
        torch.autograd.grad(expected, (q, kv), dout[:, :5].double()),
        strict=True,
    ):
        close(ours, theirs)


LENGTHS = ([3, 0, 6, 1], [4, 2, 6, 5])  # of queries, of keys


def boundaries(lengths):
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def sequences(x, cu):
    return [x[None, start:end] for start, end in itertools.pairwise(cu.tolist())]


VARLEN = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (2, 1)},
    "slopes": {"alibi_slopes": torch.tensor([0.1, 0.2, 0.3, 0.4]), "softcap": 2.0, "causal": True},
}


@pytest.mark.parametrize("options", VARLEN.values(), ids=VARLEN)
def test_varlen(options):
    cu_q, cu_k = map(boundaries, LENGTHS)
    q, k, v = (
        random(10, 4, 8, grad=True),
        random(17, 2, 8, seed=1, grad=True),
        random(17, 2, 8, seed=2, grad=True),
    )
    out, lse, probs = flash_attn.flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, 6, 6, return_attn_probs=True, **options
    )
    parts = [
        plain(*each, **of_plain(options))
        for each in zip(sequences(q, cu_q), sequences(k, cu_k), sequences(v, cu_k), strict=True)
    ]
    expected = torch.cat([o[0] for o, _ in parts])
    close(out, expected)
    close(lse, torch.cat([part[0] for _, part in parts], dim=1))
    assert probs.shape == (0,)
    dout = random(*out.shape, seed=3)
    for ours, theirs in zip(
        torch.autograd.grad(out, (q, k, v), dout),
        torch.autograd.grad(expected, (q, k, v), dout.double()),
        strict=True,
    ):
        close(ours, theirs)
    kv = torch.stack([k, v], dim=1).detach().requires_grad_()
    assert torch.equal(flash_attn.flash_attn_varlen_kvpacked_func(q, kv, cu_q, cu_k, 6, 6, **options), out)


def test_varlen_qkvpacked_and_slopes_of_each_sequence():
    cu, slopes = boundaries([4, 6]), torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    qkv = random(10, 3, 2, 8, grad=True)
    out = flash_attn.flash_attn_varlen_qkvpacked_func(qkv, cu, 6, causal=True, alibi_slopes=slopes)
    parts = [
        plain(*part.unbind(2), causal=True, slopes=own[None])[0][0]
        for part, own in zip(sequences(qkv, cu), slopes, strict=True)
    ]
    expected = torch.cat(parts)
    close(out, expected)
    close(torch.autograd.grad(out.sum(), qkv)[0], torch.autograd.grad(expected.sum(), qkv)[0])


def in_pages(x, lengths, size, table):
    """Rows of sequences (B, K, H, D) in pages of that size; unused pages hold NaN."""
    pages = torch.full((int(table.max()) + 2, size, *x.shape[2:]), math.nan, dtype=x.dtype)
    for b, length in enumerate(lengths):
        for j in range(length):
            pages[table[b, j // size], j % size] = x[b, j]
    return pages


TABLE = torch.tensor([[3, 1, 9], [0, 7, 2], [4, 5, 6]], dtype=torch.int32)


def test_varlen_over_pages():
    lengths_q, lengths_k = [2, 5, 1], [9, 5, 12]
    cu_q, cu_k = boundaries(lengths_q), boundaries(lengths_k)
    q, k, v = random(8, 4, 8), random(3, 12, 2, 8, seed=1), random(3, 12, 2, 8, seed=2)
    pages = [in_pages(x, lengths_k, 4, TABLE) for x in (k, v)]
    out = flash_attn.flash_attn_varlen_func(q, *pages, cu_q, cu_k, 5, 12, causal=True, block_table=TABLE)
    for b, (own, length) in enumerate(zip(sequences(q, cu_q), lengths_k, strict=True)):
        expected, _ = plain(own, k[b : b + 1, :length], v[b : b + 1, :length], causal=True)
        close(out[None, cu_q[b] : cu_q[b + 1]], expected)


def rotated(x, positions, cos, sin, interleaved):
    """Turn (S, H, D) by the rows of the tables."""
    half = cos.shape[1]
    c, s = cos[positions][:, None], sin[positions][:, None]
    turned = x.clone()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if interleaved
        else (slice(0, half), slice(half, 2 * half))
    )
    a, b = x[..., first], x[..., second]
    turned[..., first], turned[..., second] = a * c - b * s, b * c + a * s
    return turned


KINDS = ["rows", "batch index", "left padding", "both", "pages"]
ATTENTION = {
    "plain": {},
    "causal": {"causal": True, "softcap": 2.0},
    "window and slopes": {"window_size": (4, 0), "alibi_slopes": torch.tensor([0.1, 0.2, 0.3, 0.4])},
}


@pytest.mark.parametrize("rotary", [None, True, False], ids=["", "interleaved", "halves"])
@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("kind", KINDS)
def test_cache(kind, options, rotary):
    """Append two tokens to each sequence and attend with three queries."""
    B, S, new, size = 3, 3, 2, 12
    lengths = torch.tensor([6, 3, 10], dtype=torch.int32)
    q, k, v = random(B, S, 4, 8), random(B, new, 2, 8, seed=1), random(B, new, 2, 8, seed=2)
    old_k, old_v = random(B, size, 2, 8, seed=3), random(B, size, 2, 8, seed=4)
    index = torch.tensor([4, 0, 2], dtype=torch.int32)
    pad = torch.tensor([1, 0, 4], dtype=torch.int32) if kind in ("left padding", "both") else None
    given = {"cache_seqlens": lengths, "return_softmax_lse": True, **options}
    if kind == "pages":
        caches = [in_pages(x, lengths, 4, TABLE) for x in (old_k, old_v)]
        given["block_table"] = TABLE
    elif kind in ("batch index", "both"):
        caches = [random(5, size, 2, 8, seed=9) for _ in range(2)]
        for cache, old in zip(caches, (old_k, old_v), strict=True):
            cache[index.long()] = old
        given["cache_batch_idx"] = index
    else:
        caches = [old_k.clone(), old_v.clone()]
    if pad is not None:
        given["cache_leftpad"] = pad
    turned_q, turned_k = q, k
    if rotary is not None:
        angle = torch.rand(20, 3, generator=torch.Generator().manual_seed(7))
        cos, sin = torch.cos(angle), torch.sin(angle)
        given |= {"rotary_cos": cos, "rotary_sin": sin, "rotary_interleaved": rotary}
        moving = bool(options)
        turned_q = torch.stack(
            [rotated(q[b], lengths[b] + torch.arange(S) * moving, cos, sin, rotary) for b in range(B)]
        )
        turned_k = torch.stack(
            [rotated(k[b], lengths[b] + torch.arange(new), cos, sin, rotary) for b in range(B)]
        )
    before = [cache.clone() for cache in caches]
    out, lse = flash_attn.flash_attn_with_kvcache(q, *caches, k, v, **given)
    for b in range(B):
        n, start = int(lengths[b]), 0 if pad is None else int(pad[b])
        all_k, all_v = torch.cat([old_k[b, :n], turned_k[b]]), torch.cat([old_v[b, :n], v[b]])
        expected, expected_lse = plain(
            turned_q[b : b + 1], all_k[None, start:], all_v[None, start:], **of_plain(options)
        )
        close(out[b : b + 1], expected)
        close(lse[b : b + 1], expected_lse)
        for cache, wanted, was in zip(
            caches, (all_k, all_v), before, strict=True
        ):  # in place, and nowhere else
            for j in range(n, n + new):
                place = {"pages": (TABLE[b, j // 4], j % 4)}.get(
                    kind, (int(index[b]) if "cache_batch_idx" in given else b, j)
                )
                close(cache[place], wanted[j])
                was[place] = cache[place]
    for cache, was in zip(caches, before, strict=True):
        torch.testing.assert_close(cache, was, rtol=0, atol=0, equal_nan=True)


def test_cache_that_only_is_read():
    q, k, v = random(2, 1, 4, 8), random(2, 9, 2, 8, seed=1), random(2, 9, 2, 8, seed=2)
    close(flash_attn.flash_attn_with_kvcache(q, k, v), plain(q, k, v)[0])
    close(flash_attn.flash_attn_with_kvcache(q, k, v, cache_seqlens=5), plain(q, k[:, :5], v[:, :5])[0])
    out = flash_attn.flash_attn_with_kvcache(q, k, v, cache_seqlens=np.array([0, 4]), num_splits=3)
    assert not out[0].any()
    close(out[1:], plain(q[1:], k[1:, :4], v[1:, :4])[0])
    b = [x.bfloat16() for x in (q, k, v)]
    close(flash_attn.flash_attn_with_kvcache(*b, causal=True), plain(*b, causal=True)[0], torch.bfloat16)


def test_dropout_and_the_weights():
    q, k, v = (
        random(2, 6, 4, 8, grad=True),
        random(2, 9, 2, 8, seed=1, grad=True),
        random(2, 9, 2, 8, seed=2, grad=True),
    )

    def drop(seed):
        torch.manual_seed(seed)
        return flash_attn.flash_attn_func(q, k, v, dropout_p=0.4, causal=True, return_attn_probs=True)

    out, lse, probs = drop(3)
    for ours, again in zip((out, lse, probs), drop(3), strict=True):
        assert torch.equal(ours, again)
    assert not torch.equal(out, drop(4)[0])
    weights = npkernels.attention_weights(
        q.detach().transpose(1, 2), k.detach().transpose(1, 2), causal="bottom_right"
    )
    close(probs.abs(), weights)
    assert 0.25 < (probs < 0).sum() / (probs != 0).sum() < 0.55
    repeated = v.double().transpose(1, 2).repeat_interleave(2, dim=1)
    expected = (probs.double().clamp(min=0) / 0.6 @ repeated).transpose(1, 2)
    close(out, expected)
    dout = random(*out.shape, seed=3)
    (dv,) = torch.autograd.grad(out, v, dout, retain_graph=True)
    close(dv, torch.autograd.grad(expected, v, dout.double())[0])


def test_dropout_of_packed_sequences():
    cu_q, cu_k = map(boundaries, LENGTHS)
    q, k, v = random(10, 4, 8), random(17, 2, 8, seed=1), random(17, 2, 8, seed=2)
    torch.manual_seed(0)
    out, _, probs = flash_attn.flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, 6, 6, dropout_p=0.3, return_attn_probs=True
    )
    assert probs.shape == (4, 4, 6, 6)
    for n, (own, length) in enumerate(zip(sequences(v, cu_k), LENGTHS[1], strict=True)):
        rows = probs[n, :, : LENGTHS[0][n], :length].double()
        close(rows.abs().sum(-1), torch.ones(rows.shape[:2]))
        expected = rows.clamp(min=0) / 0.7 @ own[0].double().transpose(0, 1).repeat_interleave(2, dim=0)
        close(out[cu_q[n] : cu_q[n + 1]], expected.transpose(0, 1))


def test_numpy_arrays_give_what_tensors_give():
    q, k, v = random(2, 5, 4, 8), random(2, 7, 2, 8, seed=1), random(2, 7, 2, 8, seed=2)
    arrays = [x.numpy() for x in (q, k, v)]
    tensors = flash_attn.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    for ours, theirs in zip(
        flash_attn.flash_attn_func(*arrays, causal=True, return_attn_probs=True), tensors, strict=True
    ):
        assert isinstance(ours, np.ndarray)
        assert np.array_equal(ours, theirs.numpy())
    cu = np.array([0, 3, 5])
    packed = [x[0] for x in (arrays[0], arrays[1][:, :5], arrays[2][:, :5])]
    ours = flash_attn.flash_attn_varlen_func(*packed, cu, cu, 3, 3)
    theirs = flash_attn.flash_attn_varlen_func(*(torch.from_numpy(x) for x in packed), cu, cu, 3, 3)
    assert np.array_equal(ours, theirs.numpy())
    ours = flash_attn.flash_attn_with_kvcache(
        *arrays, arrays[1][:, :2] * 2, arrays[2][:, :2], cache_seqlens=3
    )
    assert isinstance(ours, np.ndarray)
    close(arrays[1][:, 3:5], k[:, :2] * 2)  # the cache, in place


COMMON = "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs"
PACKED = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"
SIGNATURES = {
    "flash_attn_func": f"q k v {COMMON}",
    "flash_attn_kvpacked_func": f"q kv {COMMON}",
    "flash_attn_qkvpacked_func": f"qkv {COMMON}",
    "flash_attn_varlen_func": f"q k v {PACKED} {COMMON} block_table",
    "flash_attn_varlen_kvpacked_func": f"q kv {PACKED} {COMMON}",
    "flash_attn_varlen_qkvpacked_func": f"qkv cu_seqlens max_seqlen {COMMON}",
    "flash_attn_with_kvcache": "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx "
    "cache_leftpad block_table softmax_scale causal window_size softcap rotary_interleaved alibi_slopes num_splits "
    "return_softmax_lse",
}
DEFAULTS = {
    "dropout_p": 0.0,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "deterministic": False,
    "return_attn_probs": False,
    "rotary_interleaved": True,
    "num_splits": 0,
    "return_softmax_lse": False,
}


def test_signatures_are_those_of_flash_attention():
    assert sorted(SIGNATURES) == flash_attn.__all__
    for name, expected in SIGNATURES.items():
        parameters = inspect.signature(getattr(flash_attn, name)).parameters
        assert list(parameters) == expected.split()
        for p in parameters.values():
            assert p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            if p.default is not inspect.Parameter.empty:
                assert p.default == DEFAULTS.get(p.name)


X, CACHE = torch.zeros(2, 3, 2, 4), torch.zeros(2, 8, 2, 4)
CU = torch.tensor([0, 2, 3])
WITH = flash_attn.flash_attn_with_kvcache
DENSE = flash_attn.flash_attn_func
REFUSED = {
    "a list": (TypeError, "q is a list", lambda: DENSE([1.0], X, X)),
    "kinds mixed": (TypeError, "mixed", lambda: DENSE(X, X.numpy(), X)),
    "axes": (ValueError, r"k has shape \(3, 2, 4\)", lambda: DENSE(X, X[0], X)),
    "batch": (ValueError, "k has batch size 1, q has 2", lambda: DENSE(X, X[:1], X[:1])),
    "heads": (ValueError, "k has 2 heads, q has 1", lambda: DENSE(X[:, :, :1], X, X)),
    "head size": (ValueError, "k has head size 2, q has 4", lambda: DENSE(X, X[..., :2], X)),
    "keys": (ValueError, "v has shape", lambda: DENSE(X, X, X[:, :2])),
    "dtype": (TypeError, "k has dtype float64, q has float32", lambda: DENSE(X, X.double(), X)),
    "window": (ValueError, "window_size is 3", lambda: DENSE(X, X, X, window_size=3)),
    "open window": (
        TypeError,
        "^flash_attn_func: window_size is .*; expected a pair of integers",
        lambda: DENSE(X, X, X, window_size=(None, None)),
    ),
    "softcap": (
        TypeError,
        "^flash_attn_func: softcap is None; expected a number",
        lambda: DENSE(X, X, X, softcap=None),
    ),
    "slopes": (ValueError, "alibi_slopes has shape", lambda: DENSE(X, X, X, alibi_slopes=torch.ones(3))),
    "dropout": (ValueError, "dropout_p is 1.5", lambda: DENSE(X, X, X, dropout_p=1.5)),
    "dropout of arrays": (
        ValueError,
        "dropout_p is 0.5 for NumPy",
        lambda: DENSE(*[X.numpy()] * 3, dropout_p=0.5),
    ),
    "device": (ValueError, "on meta", lambda: DENSE(*[X.to("meta")] * 3)),
    "packed": (
        ValueError,
        r"qkv has shape .* expected \(B, S, 3, H, D\)",
        lambda: flash_attn.flash_attn_qkvpacked_func(torch.zeros(2, 3, 2, 2, 4)),
    ),
    "longest": (
        ValueError,
        "max_seqlen_k is 1, cu_seqlens_k has a sequence of 2",
        lambda: flash_attn.flash_attn_varlen_func(X[0], X[0], X[0], CU, CU, 2, 1),
    ),
    "no longest": (
        TypeError,
        "^flash_attn_varlen_func: max_seqlen_q is None; expected an integer",
        lambda: flash_attn.flash_attn_varlen_func(X[0], X[0], X[0], CU, CU, None, 2),
    ),
    "total": (
        ValueError,
        "cu_seqlens_q goes from 0 to 2",
        lambda: flash_attn.flash_attn_varlen_func(X[0], X[0], X[0], CU[:2], CU[:2], 2, 2),
    ),
    "sequences": (
        ValueError,
        "cu_seqlens_k has 1 sequences, cu_seqlens_q has 2",
        lambda: flash_attn.flash_attn_varlen_func(X[0], X[0], X[0], CU, torch.tensor([0, 3]), 3, 3),
    ),
    "k alone": (ValueError, "v is None", lambda: WITH(X, CACHE, CACHE, X)),
    "nowhere to put": (ValueError, "cache_seqlens is None", lambda: WITH(X, CACHE, CACHE, X, X)),
    "cos alone": (
        ValueError,
        "rotary_sin is None",
        lambda: WITH(X, CACHE, CACHE, X, X, torch.ones(9, 2), cache_seqlens=1),
    ),
    "rotary without keys": (
        ValueError,
        "without k and v",
        lambda: WITH(X, CACHE, CACHE, None, None, X[0, 0], X[0, 0]),
    ),
    "full": (
        ValueError,
        "cache_seqlens holds 6, and 3 rows are new",
        lambda: WITH(X, CACHE, CACHE, X, X, cache_seqlens=6),
    ),
    "index and pages": (
        ValueError,
        "cache_batch_idx and block_table",
        lambda: WITH(X, CACHE, CACHE, cache_batch_idx=CU[:2], block_table=CU[:2, None]),
    ),
    "no such page": (
        IndexError,
        r"block_table\[1, 0\] is 2",
        lambda: WITH(X, CACHE, CACHE, block_table=CU[:2, None]),
    ),
    "no such row": (IndexError, "cache_batch_idx is", lambda: WITH(X, CACHE, CACHE, cache_batch_idx=CU[:2])),
    "padding": (
        ValueError,
        "cache_leftpad is",
        lambda: WITH(X, CACHE, CACHE, cache_seqlens=1, cache_leftpad=CU[:2]),
    ),
    "cache dtype": (TypeError, "k_cache has dtype float64", lambda: WITH(X, CACHE.double(), CACHE)),
    "new rows": (
        ValueError,
        "k has shape",
        lambda: WITH(X, CACHE, CACHE, X[:, :, :1], X[:, :, :1], cache_seqlens=1),
    ),
}


@pytest.mark.parametrize(("error", "text", "call"), REFUSED.values(), ids=REFUSED)
def test_refused(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(
    "bad", [{"softcap": math.nan}, {"alibi_slopes": torch.ones(3)}, {"softmax_scale": math.inf}]
)
def test_a_refused_step_leaves_the_cache_alone(bad):
    cache = torch.zeros(2, 8, 2, 4)
    with pytest.raises(ValueError, match=next(iter(bad)).removeprefix("softmax_")):
        WITH(X, cache, cache.clone(), X + 1, X + 1, cache_seqlens=1, **bad)
    assert not cache.any()


def test_without_pytorch():
    """NumPy arrays need no PyTorch, and importing the module does not import it."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from npkernels.flash_attn import flash_attn_func\n"
        "print(flash_attn_func(*np.ones((3, 1, 2, 1, 4)))[0, 0, 0, 0])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "1.0\n"


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_a_step_of_nothing(kind):
    """No sequences, no queries, no capacity: empty results, or zeros."""
    for batch, queries, capacity in ((0, 1, 8), (2, 0, 8), (2, 1, 0)):
        shapes = (batch, queries, 4, 4), (batch, capacity, 2, 4), (batch, capacity, 2, 4)
        args = [torch.ones(shape) if kind == "tensors" else np.ones(shape) for shape in shapes]
        out, lse = WITH(*args, return_softmax_lse=True)
        assert tuple(out.shape) == (batch, queries, 4, 4)
        assert tuple(lse.shape) == (batch, 4, queries)
        assert (out == (capacity > 0)).all()


def test_slopes_in_a_list():
    q = random(2, 5, 4, 8)
    for x in (q, q.numpy()):
        listed, given = (
            flash_attn.flash_attn_func(x, x, x, alibi_slopes=s) for s in ([1, 2, 3, 4], np.arange(1.0, 5))
        )
        close(listed, torch.as_tensor(given))


def test_an_old_pytorch_is_named():
    """Where a tensor comes in; NumPy arrays go on without it."""
    code = (
        "import torch; torch.__version__ = '2.3.1'\n"
        "from npkernels import flash_attn as f\n"
        "x = torch.ones(2, 1, 2, 4)\n"
        "print(f.flash_attn_func(*[x.numpy()] * 3)[0, 0, 0, 0])\n"
        "for call in (lambda: f.flash_attn_func(x, x, x), lambda: f.flash_attn_with_kvcache(x, x, x)):\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed = "npkernels.flash_attn needs torch 2.4 or newer: pip install 'npkernels[torch]' (this is 2.3.1)"
    assert done.stdout.splitlines() == ["1.0", needed, needed]


def test_the_examples_of_the_page():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "flash-attn.md").read_text()
    names = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(example, names)
    assert names["out"].shape == (2, 1, 8, 64)
    assert names["pages"][0, 0, 255].any()
    assert names["pages"][0, 5, 17].any()
