"""PyTorch's attention function on npkernels: which calls, what they give, and how it is undone."""

import threading

import pytest

torch = pytest.importorskip("torch")

import npkernels.torch as nt  # noqa: E402

functional = torch.nn.functional
ORIGINAL = functional.scaled_dot_product_attention


@pytest.fixture
def taken(monkeypatch):
    """The calls that npkernels took."""
    calls = []
    inner = nt._sdpa.attention
    monkeypatch.setattr(nt._sdpa, "attention", lambda *a, **k: calls.append((a, k)) or inner(*a, **k))
    return calls


def qkv(q_shape=(2, 4, 5, 8), k_shape=None, dtype=torch.float32, value=8):
    g = torch.Generator().manual_seed(1)
    k_shape = k_shape or q_shape
    shapes = (q_shape, k_shape, (*k_shape[:-1], value))
    return [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def mask(*shape, dtype=torch.bool):
    g = torch.Generator().manual_seed(2)
    keep = torch.rand(*shape, generator=g) < 0.7
    keep[..., 0] = True
    return keep if dtype is torch.bool else torch.randn(*shape, generator=g).to(dtype)


TAKEN = {
    "plain": (qkv(), {}),
    "causal": (qkv(), {"is_causal": True}),
    "causal, more keys": (qkv((2, 4, 5, 8), (2, 4, 9, 8)), {"is_causal": True}),
    "causal, fewer keys": (qkv((2, 4, 5, 8), (2, 4, 3, 8)), {"is_causal": True}),
    "scale": (qkv(), {"scale": 0.1}),
    "other value size": (qkv(value=3), {}),
    "no batch": (qkv((4, 5, 8)), {"is_causal": True}),
    "no heads": (qkv((5, 8)), {}),
    "boolean mask": (qkv(), {"attn_mask": mask(5, 5)}),
    "boolean mask of each head": (qkv(), {"attn_mask": mask(2, 4, 5, 5)}),
    "boolean mask of each sample": (qkv(), {"attn_mask": mask(2, 1, 1, 5).expand(2, 1, 5, 5)}),
    "added mask": (qkv(), {"attn_mask": mask(1, 4, 5, 5, dtype=torch.float32)}),
    "grouped heads": (qkv((2, 4, 5, 8), (2, 2, 7, 8)), {"enable_gqa": True, "attn_mask": mask(5, 7)}),
    "dropout 0": (qkv(), {"dropout_p": 0.0}),
}
LEFT = {
    "dropout": (qkv(), {"dropout_p": 0.5}),
    "five axes": (qkv((1, 2, 4, 5, 8)), {}),
    "broadcast keys": (qkv((2, 4, 5, 8), (1, 4, 5, 8)), {}),
    "mask of another dtype": (qkv(dtype=torch.bfloat16), {"attn_mask": mask(5, 5, dtype=torch.float32)}),
    "mask and causal": (qkv(), {"attn_mask": mask(5, 5), "is_causal": True}),
    "no queries": (qkv((2, 4, 0, 8), (2, 4, 5, 8)), {}),
}
ERRORS = {
    "heads without enable_gqa": (qkv((2, 4, 5, 8), (2, 2, 5, 8)), {}),
    "integers": ([x.long() for x in qkv()], {}),
    "mask that does not fit": (qkv(), {"attn_mask": mask(5, 4)}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_calls_that_are_taken(name, dtype, taken):
    tensors, options = TAKEN[name]
    tensors = [x.to(dtype) for x in tensors]
    options = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }
    with nt.replace_sdpa():
        got = functional.scaled_dot_product_attention(*tensors, **options)
    assert len(taken) == 1
    exact = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }
    wanted = ORIGINAL(*(x.double() for x in tensors), **exact)
    assert got.dtype is dtype
    assert float((got - wanted).abs().max()) <= 4 * torch.finfo(dtype).eps * float(wanted.abs().max())


@pytest.mark.parametrize("name", LEFT)
def test_calls_that_are_left(name, taken):
    tensors, options = LEFT[name]
    torch.manual_seed(0)
    wanted = ORIGINAL(*tensors, **options)
    torch.manual_seed(0)
    with nt.replace_sdpa():
        got = functional.scaled_dot_product_attention(*tensors, **options)
    assert torch.equal(got, wanted)
    assert not taken


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_pytorchs_own(name, taken):
    tensors, options = ERRORS[name]
    with pytest.raises(RuntimeError) as original:
        ORIGINAL(*tensors, **options)
    with nt.replace_sdpa(), pytest.raises(RuntimeError) as replaced:
        functional.scaled_dot_product_attention(*tensors, **options)
    assert str(replaced.value) == str(original.value)
    assert not taken


def test_a_query_that_may_see_nothing_gives_zero_as_in_pytorch():
    q, k, v = qkv()
    keep = mask(5, 5)
    keep[2] = False
    added = torch.zeros(5, 5).masked_fill(~keep, -torch.inf)
    for allowed in (keep, added):
        with nt.replace_sdpa():
            got = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        assert (got[:, :, 2] == 0).all()
        torch.testing.assert_close(got, ORIGINAL(q, k, v, attn_mask=allowed))


def test_what_a_masked_value_holds_does_not_matter():
    q, k, v = qkv()
    keep = torch.ones(5, 5, dtype=torch.bool)
    keep[:, 3] = False
    wanted = ORIGINAL(q, k, v, attn_mask=keep)
    v[:, :, 3] = torch.nan
    with nt.replace_sdpa():
        got = functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    torch.testing.assert_close(got, wanted)


def test_gradients(taken):
    for options in ({"is_causal": True}, {"attn_mask": mask(4, 5, 5, dtype=torch.float32).requires_grad_()}):
        tensors = [x.requires_grad_() for x in qkv()]
        wrt = [*tensors, *(v for v in options.values() if isinstance(v, torch.Tensor))]
        with nt.replace_sdpa():
            out = functional.scaled_dot_product_attention(*tensors, **options)
        for got, wanted in zip(
            torch.autograd.grad(out.sin().sum(), wrt),
            torch.autograd.grad(ORIGINAL(*tensors, **options).sin().sum(), wrt),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert len(taken) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_autocast_casts_as_pytorch_does(dtype, taken):
    q, k, v = (x.requires_grad_() for x in qkv(dtype=dtype))
    bias = mask(5, 5, dtype=dtype)
    for options in ({"is_causal": True}, {"attn_mask": bias}, {"attn_mask": mask(5, 5)}):
        with torch.autocast("cpu"):
            wanted = ORIGINAL(q, k, v, **options)
            with nt.replace_sdpa():
                got = functional.scaled_dot_product_attention(q, k, v, **options)
        assert got.dtype is wanted.dtype is (torch.float64 if dtype is torch.float64 else torch.bfloat16)
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
        (dq,) = torch.autograd.grad(got.sum(), q)
        assert dq.dtype is dtype
    assert len(taken) == 3


def test_a_layer_of_pytorch_goes_through(taken):
    layer = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    x = torch.randn(2, 7, 16, requires_grad=True)
    wanted, _ = layer(x, x, x, need_weights=False)
    with nt.replace_sdpa():
        got, _ = layer(x, x, x, need_weights=False)
    assert len(taken) == 1
    torch.testing.assert_close(got, wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_compiles():
    q, k, v = qkv()
    with nt.replace_sdpa():
        compiled = torch.compile(
            lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True) + 1,
            backend="aot_eager",
            fullgraph=True,
        )
        torch.testing.assert_close(compiled(q, k, v), ORIGINAL(q, k, v, is_causal=True) + 1)
    torch._dynamo.reset()


def replaced():
    return functional.scaled_dot_product_attention is nt.scaled_dot_product_attention


def test_it_is_undone():
    with nt.replace_sdpa():
        assert replaced()
    assert functional.scaled_dot_product_attention is ORIGINAL

    def fail():
        with nt.replace_sdpa():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert functional.scaled_dot_product_attention is ORIGINAL


def test_it_may_be_nested_and_left_in_any_order():
    with nt.replace_sdpa():
        with nt.replace_sdpa():
            assert replaced()
        assert replaced()
    assert functional.scaled_dot_product_attention is ORIGINAL
    first, second = nt.replace_sdpa(), nt.replace_sdpa()
    first.restore()
    first.restore()  # does nothing more
    assert replaced()
    second.restore()
    assert functional.scaled_dot_product_attention is ORIGINAL


def test_what_another_put_there_stays(monkeypatch):
    calls = []

    def other(*args, **kwargs):
        calls.append("other")
        return ORIGINAL(*args, **kwargs)

    tensors = qkv((1, 2, 4, 5, 8))  # five axes: never ours
    monkeypatch.setattr(functional, "scaled_dot_product_attention", other)
    with nt.replace_sdpa():
        functional.scaled_dot_product_attention(*tensors)  # goes to what was there before
        assert calls == ["other"]
        monkeypatch.setattr(functional, "scaled_dot_product_attention", ORIGINAL)  # someone else, meanwhile
    assert functional.scaled_dot_product_attention is ORIGINAL


def test_from_many_threads():
    q, k, v = qkv()
    wanted = ORIGINAL(q, k, v)
    errors = []

    def work():
        for _ in range(20):
            with nt.replace_sdpa():
                got = functional.scaled_dot_product_attention(q, k, v)
            if not torch.allclose(got, wanted, atol=1e-5):
                errors.append(got)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert functional.scaled_dot_product_attention is ORIGINAL
