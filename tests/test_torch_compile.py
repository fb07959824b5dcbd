"""npkernels.torch under compilers: the operators keep PyTorch's rules, and whole functions compile."""

import pytest

torch = pytest.importorskip("torch")

import npkernels.torch as nt  # noqa: E402
from torch_calls import NAMES, make  # noqa: E402

# PyTorch's own tracing warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
OPS = (
    nt._softmax._softmax,
    nt._softmax._log_softmax,
    nt._softmax._logsumexp,
    nt._tokens._entropy,
    nt._tokens._token_log_probs,
    nt._losses._cross_entropy,
    nt._policy._policy_loss,
    nt._policy._token_policy_loss,
    nt._attention._attention,
    nt._attention._attention_varlen,
)


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the arguments of our operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "npkernels":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_operators_pass_opcheck(name):
    """With the arguments that an ordinary call and its gradient give them."""
    call = make(name, torch.float32)
    leaves = {x.data_ptr() for x in call.wrt}
    with Recorder() as recorder:
        outputs = call(*call.wrt)
        torch.autograd.grad(sum(y.sum() for y in outputs), call.wrt)
    assert [f._opname.endswith("_backward") for f, _ in recorder.calls] == [False, True]
    for operator, args in recorder.calls:
        watched = not operator._opname.endswith("_backward")
        given = [
            a.detach().requires_grad_(watched and a.data_ptr() in leaves)
            if isinstance(a, torch.Tensor) and a.is_floating_point()
            else a
            for a in args
        ]
        torch.library.opcheck(operator, tuple(given))


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_function_compiles(name):
    """To one graph, in which the operators stand; values and gradients are those of eager mode."""
    call = make(name, torch.float32)

    def scaled(*wrt):
        return tuple(2 * y for y in call(*(1.5 * x for x in wrt)))

    compiled = torch.compile(scaled, backend="aot_eager", fullgraph=True)
    results = []
    for function in (scaled, compiled):
        wrt = call.leaves()
        outputs = function(*wrt)
        gradients = torch.autograd.grad(sum(y.sum() for y in outputs), wrt)
        results.append((*outputs, *gradients))
    for one, other in zip(*results, strict=True):
        assert one.stride() == other.stride() or one.is_contiguous()
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch._dynamo.reset()


def test_inductor_and_another_length():
    """A layer compiled to C++; a second length does not need a third graph."""
    linear = torch.nn.Linear(8, 24, bias=False)

    def layer(x, ids):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in linear(x).chunk(3, -1))
        y = nt.attention(q, k, v, causal=True).transpose(1, 2).flatten(-2)
        return nt.cross_entropy(y + torch.tanh(x), ids)

    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for length in (5, 7):
        x, ids = torch.randn(2, length, 8), torch.randint(0, 8, (2, length))
        losses = [f(x, ids) for f in (layer, compiled)]
        gradients = [torch.autograd.grad(loss, linear.weight)[0] for loss in losses]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


def test_export():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return nt.softmax(nt.attention(q, k, v, causal=True))

    tensors = [torch.randn(1, 2, 6, 4) for _ in range(3)]
    program = torch.export.export(Layer(), tuple(tensors))
    assert {"npkernels.attention.default", "npkernels.softmax.default"} <= {
        str(node.target) for node in program.graph.nodes
    }
    torch.testing.assert_close(program.module()(*tensors), Layer()(*tensors))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("f", [nt.softmax, lambda x: nt.attention(x, x, x)], ids=["softmax", "attention"])
def test_a_trace_keeps_the_call(f):
    """And not the numbers that it gave."""
    traced = torch.jit.trace(f, (torch.randn(3, 4, requires_grad=True),))
    for x in (torch.randn(5, 4), torch.randn(5, 4, requires_grad=True)):
        assert torch.equal(traced(x), f(x))
    got, wanted = (torch.autograd.grad((g(x) ** 2).sum(), x) for g in (traced, f))
    assert torch.equal(*got, *wanted)


def test_fake_tensors_and_subclasses_take_the_operators():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(3, 5, dtype=torch.bfloat16)
        assert nt.softmax(x).shape == (3, 5)
        assert nt.logsumexp(x).dtype is torch.float32
        assert nt.attention(x, x, x[:, :2].contiguous()).shape == (3, 2)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_operators_have_names(op):
    assert op.overload is getattr(torch.ops.npkernels, op.name).default
