"""npkernels.torch: values, derivatives and their limits, eagerly."""

import doctest
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import npkernels

torch = pytest.importorskip("torch")

import npkernels.torch as nt  # noqa: E402
from torch_calls import NAMES, make  # noqa: E402

# PyTorch's rules of forward mode warn, when they are loaded, about torch.jit which they use.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def to_numpy(x):
    return npkernels._arrays._to_numpy("test", x.detach()) if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_have_the_bits_of_the_numpy_functions(name, dtype):
    call = make(name, dtype)
    recorded = []
    inner = call.function

    def compare(*args, **kwargs):  # the function itself, then NumPy's on the same arguments
        result = inner(*args, **kwargs)
        if inner.__module__ == "torch_calls":
            args, function = [x.transpose(1, 2) for x in args], npkernels.attention
        else:
            function = getattr(npkernels, inner.__name__)
        recorded.append(function(*map(to_numpy, args), **{k: to_numpy(v) for k, v in kwargs.items()}))
        return result

    call.function = compare
    watched = call(*call.wrt)
    with torch.no_grad():
        quiet = call(*call.wrt)
    expected = recorded[0]
    if call.outputs:
        expected = tuple(getattr(expected, n) for n in call.outputs)
    elif not isinstance(expected, tuple):
        expected = (expected,)
    for one, other, wanted in zip(watched, quiet, expected, strict=True):
        assert one.requires_grad
        assert not other.requires_grad
        for got in (one, other):
            assert to_numpy(got).dtype == np.asarray(wanted).dtype
            assert to_numpy(got).tobytes() == np.asarray(wanted).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_of_central_differences(name):
    call = make(name)
    assert torch.autograd.gradcheck(call, call.wrt, check_forward_ad=call.forward_mode)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_16_bit_tensors_are_rounded_gradients(name, dtype):
    call = make(name, dtype)
    exact = make(name, torch.float64)
    exact.wrt = tuple(x.detach().double().requires_grad_() for x in call.wrt)
    exact.rest, exact.options = (
        _doubled(call.rest),
        dict(zip(call.options, _doubled(call.options.values()), strict=True)),
    )
    gradients = [torch.autograd.grad(sum(map(uneven, c(*c.wrt))), c.wrt) for c in (call, exact)]
    for got, wanted, x in zip(*gradients, call.wrt, strict=True):
        assert got.dtype is dtype
        assert got.shape == x.shape
        scale = float(wanted.abs().max())
        assert float((got.double() - wanted).abs().max()) <= 8 * torch.finfo(dtype).eps * scale


def uneven(y):
    """A sum with weights, in double."""
    return (y.double().flatten() * torch.arange(y.numel()).cos()).sum()


def _doubled(values):
    return tuple(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in values)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_derivative_is_an_error(name):
    call = make(name)

    def total(*wrt):  # a cube beside it: without the error its share alone would come out
        return sum(y.sum() for y in call(*wrt)) + sum((x**3).sum() for x in wrt)

    first = torch.autograd.grad(total(*call.wrt), call.wrt, create_graph=True)
    for backward in (
        lambda: torch.autograd.grad(sum(g.sum() for g in first), call.wrt),
        lambda: torch.func.hessian(total)(*(x.detach() for x in call.wrt)),
        lambda: torch.func.jacrev(torch.func.jacrev(total))(*(x.detach() for x in call.wrt)),
    ):
        text = (
            "only first derivatives exist" if call.forward_mode else ".*"
        )  # else forward mode itself is missing
        with pytest.raises(NotImplementedError, match=rf"npkernels\.torch\.[\w, ]+: {text}"):
            backward()


@pytest.mark.parametrize("name", NAMES)
def test_transforms_of_torch_func(name):
    call = make(name)
    leaves = tuple(x.detach() for x in call.wrt)
    directions = tuple(torch.ones_like(x) for x in leaves)

    def total(*wrt):
        return sum(y.sum() for y in call(*wrt))

    gradients = torch.autograd.grad(total(*call.wrt), call.wrt)
    for got, wanted in zip(
        torch.func.grad(total, tuple(range(len(leaves))))(*leaves), gradients, strict=True
    ):
        torch.testing.assert_close(got, wanted)
    if call.forward_mode:
        value, along = torch.func.jvp(total, leaves, directions)
        torch.testing.assert_close(value, total(*leaves))
        torch.testing.assert_close(
            along, sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        )
    else:
        with pytest.raises(NotImplementedError, match=r"npkernels\.torch\.attention\w*: .*forward mode"):
            torch.func.jvp(total, leaves, directions)


def test_many_rows_under_vmap():
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(torch.func.vmap(nt.softmax, in_dims=1, out_dims=1)(x), nt.softmax(x))
    ids = torch.randint(0, 5, (4,))
    batched = torch.func.vmap(lambda row: nt.cross_entropy(row, ids))(x)
    torch.testing.assert_close(batched, torch.stack([nt.cross_entropy(row, ids) for row in x]))


def test_no_rows_under_vmap():
    x = torch.zeros(2, 0, 5)
    rows = torch.func.vmap(nt.softmax, in_dims=1, out_dims=1)(x)
    assert rows.shape == x.shape
    logits, ids = torch.zeros(0, 3, 5), torch.zeros(0, 3, dtype=torch.int64)
    ranks = torch.func.vmap(lambda x, i: nt.token_log_probs(x, i).rank)(logits, ids)
    assert ranks.shape == (0, 3)
    assert ranks.dtype is torch.int64
    grad = torch.func.vmap(torch.func.grad(lambda row: nt.logsumexp(row)))(torch.zeros(0, 5))
    assert grad.shape == (0, 5)


def test_lazy_negations_are_read_as_they_are_meant():
    x = torch.randn(3, 4, dtype=torch.complex128).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(nt.softmax(x), torch.softmax(x, -1))
    q = x.detach().requires_grad_()
    (got,) = torch.autograd.grad(nt.attention(q, x, x).sin().sum(), q)
    plain = x.resolve_neg()
    other = plain.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(nt.attention(other, plain, plain).sin().sum(), other)
    torch.testing.assert_close(got, wanted)


def test_results_and_gradients_are_not_copied(monkeypatch):
    made = []
    inner = npkernels._core.softmax_vjp
    monkeypatch.setattr(npkernels._core, "softmax_vjp", lambda *a: made.append(r := inner(*a)) or r)
    x = torch.randn(3, 5, requires_grad=True)
    nt.softmax(x).backward(torch.ones(3, 5))
    assert [m.ctypes.data for m in made] == [x.grad.data_ptr()]


def test_without_gradients_no_node_and_no_operator(monkeypatch):
    def never(*args):
        raise AssertionError

    x = torch.randn(3, 5)
    for op in (nt._softmax._softmax, nt._softmax._logsumexp):
        monkeypatch.setattr(op, "overload", never)
        monkeypatch.setattr(op, "function", never)
    nt.softmax(x)
    with torch.no_grad():
        nt.logsumexp(x.requires_grad_())
    with torch.inference_mode():
        nt.softmax(x)
        nt.softmax(torch.zeros(3))
    with pytest.raises(AttributeError):
        nt.softmax(x)


def test_lse_and_other_statistics_are_constants():
    x = torch.randn(3, 5, requires_grad=True)
    t = nt.token_log_probs(x, torch.tensor([0, 1, 2]))
    assert t.log_prob.requires_grad
    assert t.entropy.requires_grad
    assert not any(s.requires_grad for s in (t.lse, t.sum_p2, t.top1, t.rank))
    assert nt.token_log_probs(x, torch.tensor([0, 1, 2]), stats=()).lse is None


def test_metrics_of_a_policy_loss():
    call = make("token_policy_loss", torch.float32)
    result = call.function(*call.wrt, *call.rest, **call.options)
    wanted = npkernels.token_policy_loss(
        *map(to_numpy, (*call.wrt, *call.rest)), **{k: to_numpy(v) for k, v in call.options.items()}
    ).metrics
    assert result.dlogits is result.dlogp is result.metrics.importance is None
    for name in ("tokens", "sequences", "ratio", "clip_low", "clip_high", "old_kl", "kl", "entropy"):
        assert getattr(result.metrics, name).item() == getattr(wanted, name)


def test_the_cotangent_of_a_loss_scales_its_gradient():
    for dtype in DTYPES:
        x = torch.randn(3, 5).to(dtype).requires_grad_()
        ids = torch.tensor([0, 1, 2])
        (one,) = torch.autograd.grad(nt.cross_entropy(x, ids), x)
        (three,) = torch.autograd.grad(nt.cross_entropy(x, ids) * 3, x)
        torch.testing.assert_close(three, one * 3)
        per_row = torch.tensor([1.0, 0.0, -2.0])
        loss = nt.cross_entropy(x, ids, reduction="none")
        (rows,) = torch.autograd.grad(loss, x, per_row.to(loss.dtype))
        (whole,) = torch.autograd.grad(nt.cross_entropy(x, ids, reduction="sum"), x)
        torch.testing.assert_close(rows, (whole.float() * per_row[:, None]).to(dtype))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "entropy"])
def test_empty_and_unusual_shapes(name):
    f = getattr(nt, name)
    for shape in ((0, 3), (3, 0), (5,), (2, 1, 3, 4, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        f(x).sum().backward()
        assert x.grad.shape == x.shape
        assert x.grad.isfinite().all()
    turned = torch.randn(4, 3, dtype=torch.float64).T.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: f(t, 0), turned)


x_, ids_ = torch.zeros(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: nt.softmax(np.zeros(3)), TypeError, "softmax: x is a numpy.ndarray; expected a torch.Tensor"),
        (lambda: nt.softmax(x_.to("meta")), TypeError, r"softmax: x is on device meta; .*x\.cpu\(\)"),
        (lambda: nt.softmax(x_.to_sparse()), TypeError, "softmax: x has layout torch.sparse_coo"),
        (lambda: nt.softmax(ids_), TypeError, "softmax: x has dtype torch.int64; expected torch.float32"),
        (lambda: nt.softmax(x_, 2), ValueError, "softmax: axis 2 is out of bounds"),
        (lambda: nt.softmax(x_, 1.0), TypeError, "softmax: axis is 1.0; expected an integer"),
        (lambda: nt.softmax(x_, mask=torch.ones(4, dtype=torch.bool)), ValueError, "softmax: mask has shape"),
        (lambda: nt.entropy(x_, 5), ValueError, "entropy: axis 5 is out of bounds"),
        (lambda: nt.token_log_probs(x_, ids_ + 5), IndexError, "token_log_probs: ids holds 5"),
        (lambda: nt.token_log_probs(x_, ids_, stats="lse"), ValueError, "token_log_probs: stats is 'lse'"),
        (lambda: nt.cross_entropy(x_, ids_, reduction="max"), ValueError, "cross_entropy: reduction is 'max'"),
        (
            lambda: nt.cross_entropy(x_, ids_, weight=torch.ones(3, requires_grad=True)),
            TypeError,
            r"cross_entropy: weight requires grad.*weight\.detach\(\)",
        ),
        (
            lambda: nt.policy_loss(x_, x_.clone().requires_grad_(), x_),
            TypeError,
            r"policy_loss: old_logp requires grad.*old_logp\.detach\(\)",
        ),
        (lambda: nt.policy_loss(x_, x_, x_, loss="no"), ValueError, "policy_loss: loss is 'no'"),
        (lambda: nt.policy_loss(x_, x_, x_, importance="a"), TypeError, "policy_loss: importance is 'a'"),
        (lambda: nt.attention(x_, x_[:, :2], x_), ValueError, "attention: k has head size 2, q has 3"),
        (lambda: nt.attention(x_, x_, x_, causal="left"), ValueError, "attention: causal is 'left'"),
        (lambda: nt.attention(x_, x_, x_, window=3), TypeError, "attention: window is 3"),
        (lambda: nt.attention(x_, x_, x_, dropout_p=0.5), ValueError, "attention: dropout_p is 0.5, which needs"),
        (
            lambda: nt.attention(x_, x_, x_, alibi_slopes=torch.ones(1, requires_grad=True)),
            TypeError,
            "attention: alibi_slopes requires grad",
        ),
    ],
)  # fmt: skip
def test_errors(call, error, text):
    with pytest.raises(error, match=f"^{text}"):
        call()


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])
    with pytest.raises(TypeError, match=r"^softmax: x has a nested layout; expected a dense tensor"):
        nt.softmax(nested)
    with pytest.raises(
        TypeError, match=r"^softmax: a torch\.Tensor cannot be read .*it is nested: pass its tensors"
    ):
        npkernels.softmax(nested)


def test_forward_mode_says_what_it_cannot_do():
    q = torch.randn(2, 3, dtype=torch.float64)
    one = torch.ones_like(q)
    for f, text in (
        (lambda x: nt.attention(x, q, q, dropout_p=0.5, dropout_seed=1), "with dropout"),
        (lambda x: nt.attention(x, q, q, softcap=1.0, return_lse=True)[0], "forward mode of lse"),
        (lambda x: nt.attention(q, q, q, bias=x[:, :2]), "bias has a tangent too"),
    ):
        with pytest.raises(NotImplementedError, match=text):
            torch.func.jvp(f, (q,), (one,))


def test_a_tangent_of_what_has_no_derivative_is_an_error():
    """Left out, it would be a wrong number."""
    x, one, ids = torch.randn(2, 3), torch.ones(2), torch.tensor([0, 1])
    for f, name in (
        (lambda a: nt.policy_loss(x, x, a).loss, "policy_loss: advantages"),
        (lambda a: nt.cross_entropy(x[:, :2], ids, weight=a), "cross_entropy: weight"),
        (
            lambda a: nt.attention(x[:, None], x[:, None], x[:, None], alibi_slopes=a),
            "attention: alibi_slopes",
        ),
    ):
        with pytest.raises(TypeError, match=f"^{name} has a tangent, and no derivative here; pass"):
            torch.func.jvp(f, (one,), (one,))
        assert torch.func.jvp(lambda a, f=f: f(a.detach()), (one,), (one,))[1].abs().max() == 0


@pytest.mark.parametrize(
    ("batch", "queries", "keys"), [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=["batch", "queries", "keys"]
)
def test_gradients_of_attention_without_anything(batch, queries, keys):
    q, k, v = (torch.randn(batch, 2, n, 4, requires_grad=True) for n in (queries, keys, keys))
    for gradient, x in zip(
        torch.autograd.grad(nt.attention(q, k, v).sum(), (q, k, v)), (q, k, v), strict=True
    ):
        assert gradient.shape == x.shape
        assert not gradient.any()
    packed = [torch.randn(n if batch else 0, 2, 4, requires_grad=True) for n in (queries, keys, keys)]
    starts = [torch.tensor([0, len(x)]) for x in packed[:2]]
    gradients = torch.autograd.grad(nt.attention_varlen(*packed, *starts).sum(), packed)
    assert not any(g.any() for g in gradients)


def test_arguments_that_only_look_like_numbers():
    q = torch.randn(3, 4)
    seeded = [nt.attention(q, q, q, dropout_p=0.5, dropout_seed=s) for s in (3, torch.tensor(3), np.int64(3))]
    assert all(torch.equal(x, seeded[0]) for x in seeded)
    causal = [nt.attention(q, q, q, causal=c) for c in (True, np.True_)]
    assert torch.equal(*causal)
    for f in (nt.softmax, nt.entropy, lambda x, axis: nt.cross_entropy(x, torch.tensor([0] * 4), axis=axis)):
        assert torch.equal(f(q, axis=np.int64(0)), f(q, axis=0))
        for axis in ("0", True, 1.0, None):
            with pytest.raises(TypeError, match=r"^\w+: axis is .*; expected an integer"):
                f(q, axis=axis)
    for seed in ("3", 3.0):
        with pytest.raises(TypeError, match=r"^attention: dropout_seed is .*; expected an integer"):
            nt.attention(q, q, q, dropout_p=0.5, dropout_seed=seed)
    for offset in ([1], 1.0):
        with pytest.raises(TypeError, match=r"^attention: q_offset is .*; expected an integer or a tensor"):
            nt.attention(q, q, q, q_offset=offset)


def test_the_prototype_of_vmap_is_named():
    x = torch.randn(3, 4, requires_grad=True)
    for f in (
        nt.softmax,
        lambda x: nt.attention(x, x, x),
        lambda x: nt.cross_entropy(x, torch.tensor([0, 1, 2])),
    ):
        y = f(x)
        with pytest.raises(NotImplementedError, match=r"is_grads_batched=True.* expected torch\.func"):
            torch.autograd.grad(y, x, torch.randn(5, *y.shape), is_grads_batched=True)
        with pytest.raises(NotImplementedError, match=r"vectorize=True.* expected torch\.func"):
            torch.autograd.functional.jacobian(f, x, vectorize=True)


PAGE = pathlib.Path(__file__).parents[1] / "docs" / "torch.md"


def test_the_example_of_the_page_runs():
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    exec(compile(example, PAGE.name, "exec"), {})


@pytest.mark.parametrize("name", nt.__all__)
def test_every_function_is_on_the_page_and_its_example_runs(name):
    assert f"`{name}" in PAGE.read_text()
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(nt, name), name)
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


def run(code, *paths):
    """In a process of its own, with `paths` before all others."""
    root = pathlib.Path(npkernels.__file__).parents[1]
    lines = [f"import sys; sys.path[:0] = {[*map(str, paths), str(root)]!r}", code]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=False
    )


def test_npkernels_does_not_import_torch():
    done = run(
        "import npkernels, sys; assert 'torch' not in sys.modules; assert not hasattr(npkernels, 'torch')"
    )
    assert done.returncode == 0, done.stderr
