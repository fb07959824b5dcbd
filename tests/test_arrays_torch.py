"""PyTorch tensors in every function: the kernels work on their memory, and on that of the results; all dtypes."""

import dataclasses

import numpy as np
import pytest

import npkernels
from kernel_calls import DTYPES, NAMES, make
from npkernels import _arrays, lipschitz, perturb

torch = pytest.importorskip("torch")

rng = np.random.default_rng(3)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


LOGITS, IDS = normal(2, 5, 9), rng.integers(0, 9, (2, 5))
LOGP, OLD, MASK = -abs(normal(2, 5)), -abs(normal(2, 5)), rng.random((2, 5)) < 0.8
ADVANTAGES, REWARDS, IMAGES, STEPS = normal(2), normal(8), normal(4, 6), normal(4, 6)
MORE = {  # what kernel_calls has no call of: function, arrays, options
    "group_advantages": (
        npkernels.group_advantages,
        (REWARDS,),
        {"groups": np.array([0, 0, 1, 1, 2, 2, 0, 1])},
    ),
    "group_stats": (npkernels.group_stats, (REWARDS, np.array([0, 0, 1, 1, 2, 2, 0, 1])), {}),
    "policy_loss": (npkernels.policy_loss, (LOGP, OLD, ADVANTAGES, MASK), {"ref_logp": OLD, "beta": 0.1}),
    "token_policy_loss": (npkernels.token_policy_loss, (LOGITS, IDS, OLD, ADVANTAGES), {"entropy": True}),
    "kl_divergence": (npkernels.kl_divergence, (LOGP, OLD), {}),
    "discounted_returns": (npkernels.discounted_returns, (LOGP, 0.9), {}),
    "gae": (npkernels.gae, (LOGP, OLD), {"gamma": 0.9, "lam": 0.8}),
    "pass_at_k": (npkernels.pass_at_k, (np.array([4, 5]), np.array([1, 2]), 2), {}),
    "sample": (npkernels.sample, (LOGITS,), {"rng": 0}),
    "beam_step": (npkernels.beam_step, (normal(3, 9), normal(3), 2), {}),
    "sign_step": (perturb.sign_step, (IMAGES, STEPS, 0.1), {}),
    "steepest_step": (perturb.steepest_step, (IMAGES, STEPS, 0.1), {"norm": 2}),
    "project": (perturb.project, (IMAGES, STEPS, 0.1), {"norm": 1}),
    "pgd_step": (perturb.pgd_step, (IMAGES, IMAGES, STEPS, 0.1, 0.2), {}),
    "momentum": (perturb.momentum, (IMAGES, STEPS), {}),
    "random_in_ball": (perturb.random_in_ball, (IMAGES, 0.1), {"rng": 0}),
    "split": (lipschitz.split, (IMAGES, np.eye(2, 6)), {}),
    "tangent_basis": (lipschitz.tangent_basis, (IMAGES[0], IMAGES), {"dim": 2}),
    "off_manifold": (lipschitz.off_manifold, (IMAGES, STEPS, 0.1), {}),
}
# In these the arrays themselves do not reach the compiled module: plain NumPy, or what is prepared by it.
NUMPY = {
    "nll_loss", "perplexity", "attention_weights", "multi_head_attention", "multi_head_attention_vjp",
    "group_advantages", "group_stats", "token_policy_loss", "kl_divergence", "pass_at_k", "beam_step", "sample",
    "discounted_returns", "gae", "rotary_embedding", "rotary_embedding_vjp", "project", "random_in_ball",
    "split", "tangent_basis", "off_manifold", "cross_entropy",
}  # fmt: skip


def tensor(array):
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def tensors(value):
    if isinstance(value, np.ndarray):
        return tensor(value)
    return [tensors(v) for v in value] if isinstance(value, list) else value


def case(name, dtype="float32"):
    if name in MORE:
        return MORE[name]
    call = make(name, 21, dtype)
    return getattr(npkernels, name), call.args, call.kwargs


def leaves(result):
    """The arrays of a result."""
    if isinstance(result, npkernels.GroupAdvantages):
        return [result.advantages]
    if dataclasses.is_dataclass(result):
        result = tuple(getattr(result, f.name) for f in dataclasses.fields(result))
    if not isinstance(result, tuple):
        result = (result,)
    return [leaf for part in result if part is not None and not isinstance(part, int)
            for leaf in (leaves(part) if dataclasses.is_dataclass(part) else [part])]  # fmt: skip


def arrays_in(values):
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, list | tuple):
            yield from arrays_in(value)


@pytest.fixture
def watched(monkeypatch):
    """Addresses that went into the functions, into the compiled module, and of what the functions gave."""
    into, into_core, out = set(), set(), []

    def note(place, function):
        def call(*args, **kwargs):
            place.update(a.ctypes.data for a in arrays_in([*args, *kwargs.values()]))
            return function(*args, **kwargs)

        return call

    def call(function, args, kwargs):
        into.update(a.ctypes.data for a in arrays_in([*args, *kwargs.values()]))
        result = function(*args, **kwargs)
        out.extend(a.ctypes.data for a in leaves(result) if isinstance(a, np.ndarray))
        return result

    monkeypatch.setattr(_arrays, "_call", call)
    for name, function in vars(npkernels._core).items():
        if callable(function) and not name.startswith("_") and not isinstance(function, type):
            monkeypatch.setattr(npkernels._core, name, note(into_core, function))
    return into, into_core, out


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_nothing_is_copied_on_the_way(name, watched):
    function, args, kwargs = case(name)
    args, kwargs = [tensors(a) for a in args], {k: tensors(v) for k, v in kwargs.items()}
    result = function(*args, **kwargs)
    assert all(type(leaf) is torch.Tensor for leaf in leaves(result) if not isinstance(leaf, int))
    into, into_core, out = watched
    given = {
        t.data_ptr()
        for a in [*args, *kwargs.values()]
        for t in (a if isinstance(a, list) else [a])
        if isinstance(t, torch.Tensor)
    }
    if hasattr(function, "__wrapped__"):
        assert given <= into
        made = [leaf.data_ptr() for leaf in leaves(result) if leaf.dim()]
        assert set(made) <= set(out)
    if name not in NUMPY:
        assert given <= into_core


@pytest.mark.parametrize("name", MORE)
def test_torch_gives_what_numpy_gives(name):
    function, args, kwargs = case(name)
    expected = leaves(function(*args, **kwargs))
    result = leaves(function(*map(tensors, args), **{k: tensors(v) for k, v in kwargs.items()}))
    for one, other in zip(result, expected, strict=True):
        assert one.numpy().tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_in_bfloat16_out(name):
    call = make(name, 21, "bfloat16")
    expected = leaves(call())
    result = leaves(call.mapped(tensor)())
    for one, other in zip(result, expected, strict=True):
        assert type(one) is torch.Tensor
        other = np.asarray(other)
        if other.dtype == DTYPES["bfloat16"]:
            assert one.dtype is torch.bfloat16
            one = one.view(torch.int16)
        assert one.numpy().tobytes() == other.tobytes()


def test_bfloat16_is_read_and_written_in_place(watched):
    x = torch.randn(3, 8).to(torch.bfloat16)
    out = torch.zeros(3, 8, dtype=torch.bfloat16)
    result = npkernels.softmax(x.T, axis=0, out=out.T)  # any strides
    assert result.data_ptr() == out.data_ptr()
    assert {x.data_ptr(), out.data_ptr()} <= watched[1]
    torch.testing.assert_close(out, torch.softmax(x.float(), -1).to(torch.bfloat16))
    made = npkernels.softmax(x)
    assert made.dtype is torch.bfloat16
    assert made.data_ptr() in watched[2]


def test_a_cache_over_tensors_is_updated_in_place():
    for dtype in (torch.float32, torch.bfloat16):
        k, v = torch.zeros(1, 1, 8, 4, dtype=dtype), torch.zeros(1, 1, 8, 4, dtype=dtype)
        cache = npkernels.KVCache.from_arrays(k, v, torch.tensor([0]))
        cache.append(torch.ones(1, 1, 2, 4, dtype=dtype), torch.full((1, 1, 2, 4), 2.0, dtype=dtype))
        assert k[0, 0, :, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
        out = cache.attend(torch.ones(1, 1, 1, 4, dtype=dtype))
        assert type(out) is torch.Tensor
        assert out.dtype is dtype
        assert out.flatten().tolist() == [2, 2, 2, 2]


class Named(torch.Tensor):
    """A subclass that lives in a module without from_dlpack."""


def test_a_subclass_gives_a_tensor():
    for x in (torch.zeros(3).as_subclass(Named), torch.nn.Parameter(torch.zeros(3), requires_grad=False)):
        assert isinstance(npkernels.softmax(x), torch.Tensor)


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (torch.zeros(3, requires_grad=True), r"requires grad: pass x.detach\(\), or use npkernels.torch"),
        (torch.zeros(3, device="meta"), "on device meta: copy it to the CPU first"),
        (torch.eye(3).to_sparse(), r"sparse: pass x.to_dense\(\)"),
        (torch.zeros(3, dtype=torch.complex64).conj(), "conjugate"),
    ],
)
def test_what_cannot_be_read_says_why(x, why):
    with pytest.raises(TypeError, match=rf"^softmax: a torch\.Tensor cannot be read in CPU memory \(.*{why}"):
        npkernels.softmax(x)
    with pytest.raises(TypeError, match=r"^attention: a torch\.Tensor cannot be read"):
        npkernels.attention(x, x, x)


def test_float8_says_what_is_expected():
    with pytest.raises(TypeError, match=r"^softmax: a torch\.Tensor cannot be read"):
        npkernels.softmax(torch.zeros(3).to(torch.float8_e5m2))


def test_memory_that_is_not_what_the_tensor_means_is_refused():
    negated = torch.zeros(3, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(3)
    for x, why in ((negated, r"pass x\.resolve_neg\(\)"), (fake, "FakeTensor, which has no memory")):
        with pytest.raises(
            TypeError, match=rf"^softmax: a torch\..*does not hold its numbers itself: .*{why}"
        ):
            npkernels.softmax(x)
    with pytest.raises(TypeError, match="lazy negation"):  # nothing would be seen of what is written
        npkernels.softmax(torch.zeros(3), out=negated)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_derivatives_are_not_dropped_without_a_word():
    x = torch.zeros(2, 3)
    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(
            TypeError, match=r"softmax: .*transform of torch\.func; npkernels\.torch takes it"
        ):
            transform(npkernels.softmax)(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(TypeError, match=r"tangent of forward mode; npkernels\.torch has derivatives"):
            npkernels.softmax(dual)
        assert npkernels.softmax(x).shape == x.shape
