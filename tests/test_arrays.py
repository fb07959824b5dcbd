"""Lists, numbers, subclasses, odd memory, arrays of other libraries: what comes in, what of its kind goes out."""

import dataclasses

import numpy as np
import pytest

import kernel_calls
import npkernels
from kernel_calls import NAMES, assert_same_bits, flat, make
from npkernels._arrays import entries_apart


class Labelled(np.ndarray):
    """A subclass, as libraries with units or names have them."""


class Exported:
    """An array of some other library: nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __array_namespace__(self):
        return Exporters


class Exporters:
    @staticmethod
    def from_dlpack(array):
        return Exported(np.from_dlpack(array))


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def swapped(array):
    return array.astype(array.dtype.newbyteorder()) if array.dtype.kind in "fi" else array


def every_other(array):
    wide = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def backwards(array):
    flip = (slice(None, None, -1),) * array.ndim
    return array[flip].copy()[flip]


FORMS = {
    "subclass": lambda a: a.view(Labelled),
    "unaligned": unaligned,
    "byte-swapped": swapped,
    "every other entry": every_other,
    "backwards": backwards,
    "Fortran order": np.asfortranarray,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_odd_memory_gives_what_plain_memory_gives(name, form):
    for dtype in ("float32", "float64"):
        call = make(name, 45, dtype)
        for one, other in zip(flat(call.mapped(FORMS[form])()), flat(call()), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-6)


def leaves(result):
    """The parts of a result, of whatever kind."""
    if dataclasses.is_dataclass(result):
        return tuple(
            part for f in dataclasses.fields(result) if (part := getattr(result, f.name)) is not None
        )
    return result if isinstance(result, tuple) else (result,)


def written(call, result):
    """The parts of a result that `out` takes."""
    parts = leaves(result)
    return parts[1:] if "return_grad" in call.kwargs else parts[: len(call.outs)]


def spread(shape, dtype):
    """Zeros whose last axis is contiguous and whose others run backwards with gaps."""
    wide = np.zeros((*[2 * n for n in shape[:-1]], shape[-1]), dtype)
    return wide[(slice(None, None, -2),) * (len(shape) - 1)]


WITH_OUT = [n for n in NAMES if make(n, 4, "float32").outs]
NEED_ROWS = (
    *(name for name in kernel_calls.ATTENTION if name != "attention_weights"),
    *kernel_calls.VARLEN,
    "merge_attention",
    *kernel_calls.ROTARY,
)


@pytest.mark.parametrize("n", [45, 9001])
@pytest.mark.parametrize("form", ["every other entry", "backwards", "Fortran order"])
@pytest.mark.parametrize("name", WITH_OUT)
def test_out_of_odd_memory_takes_the_result(name, form, n):
    call = make(name, n, "float32", rows=4)
    make_out = spread if name in NEED_ROWS else lambda s, d: FORMS[form](np.zeros(s, d))
    out = call.new_out(make_out)
    addresses = [array.ctypes.data for array in leaves(out)]
    result = call(out=out)
    for part, array, expected in zip(written(call, result), leaves(out), written(call, call()), strict=True):
        np.testing.assert_array_equal(array, expected)
        assert part is array
    assert [array.ctypes.data for array in leaves(out)] == addresses


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize("n", [45, 1 << 20])
def test_an_unaligned_out_is_refused(name, n):
    call = make(name, n if name not in NEED_ROWS and "attention" not in name else 45, "float32")
    out = call.new_out(lambda s, d: unaligned(np.ones(s, d)))
    with pytest.raises(ValueError, match=f"^{name}: out is not aligned"):
        call(out=out)
    assert all((array == 1).all() for array in leaves(out))


def one_further(shape, dtype):
    """An array in which every step along an axis, whichever, is one entry: most are in several places."""
    step = dtype.itemsize if sum(n > 1 for n in shape) > 1 else 0
    return np.lib.stride_tricks.as_strided(np.ones(sum(shape), dtype), shape, (step,) * len(shape))


@pytest.mark.parametrize("name", WITH_OUT)
def test_an_out_whose_entries_share_memory_is_refused(name):
    call = make(name, 45, "float32")
    out = call.new_out(one_further)
    with pytest.raises(ValueError, match=f"^{name}: out has strides .* share memory"):
        call(out=out)
    assert all((array == 1).all() for array in leaves(out))


def test_entries_of_views_by_indexing_are_apart():
    x = np.zeros((4, 5, 6, 7))
    fields = np.zeros((3, 4), [("a", "i4"), ("b", "f8", (2, 3))])
    for view in (
        x.transpose(2, 0, 3, 1)[::-2, ::3, 1::2],
        np.diagonal(x),
        np.diagonal(x, axis1=0, axis2=3),
        np.diagonal(x[:, :, :3], axis1=1, axis2=2)[::-1],
        np.swapaxes(x, 0, 3)[:, None, 1:2],
        fields["b"].T,
        x.astype(complex).imag[:, ::2],
        np.broadcast_to(x[:1, :1], (1, 1, 6, 7)),
        np.broadcast_to(x[:0, :1], (0, 5, 6, 7)),
    ):
        assert entries_apart(view)
    for strides in ((0, 8), (8, 8), (8, 16), (-8, 16), (24, 8)):
        assert not entries_apart(np.lib.stride_tricks.as_strided(x[3, 3], (4, 4), strides))
    assert entries_apart(np.lib.stride_tricks.as_strided(x, (4, 4), (32, 8)))


@pytest.mark.parametrize("name", NAMES)
def test_lists_are_float64(name):
    call = make(name, 12, "float64")
    lists = dataclasses.replace(
        call, args=tuple([a.tolist() for a in v] if isinstance(v, list) else v.tolist() for v in call.args)
    )
    assert_same_bits(lists(), call())


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.bool_])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "entropy", "perplexity"])
def test_integers_and_booleans_are_float64(name, dtype):
    x = np.array([[0, 1, 1, 0, 0], [1, 0, 0, 1, 1]]).astype(dtype)
    function = getattr(npkernels, name)
    assert flat(function(x))[0].dtype == np.float64
    assert_same_bits(function(x), function(x.astype(np.float64)))


def test_python_scalars_and_ranges():
    assert npkernels.perplexity(0.0, axis=None) == 1.0
    assert npkernels.softmax(range(3)).dtype == np.float64
    assert npkernels.softmax((0, 0), temperature=np.float32(2)).tolist() == [0.5, 0.5]
    assert npkernels.softmax([[0, 0]], axis=np.int8(1), temperature=2).tolist() == [[0.5, 0.5]]
    with pytest.raises(ValueError, match=r"^softmax: axis"):
        npkernels.softmax(3.0)


@pytest.mark.parametrize("name", NAMES)
def test_an_array_of_any_other_library(name):
    call = make(name, 20, "float32")
    result = call.mapped(lambda a: a if a.dtype == bool else Exported(a))()
    parts = leaves(result)
    assert all(isinstance(leaf, Exported) for leaf in parts)
    for one, other in zip(parts, flat(call()), strict=True):
        assert one.array.tobytes() == other.tobytes()


@pytest.mark.parametrize("argument", ["mask", "bias", "q_offset"])
def test_only_an_option_is_of_another_library(argument):
    q = np.ones((1, 1, 3, 4))
    value = {"mask": np.ones((3, 3), bool), "bias": np.zeros((3, 3)), "q_offset": np.array([2])}[argument]
    expected = npkernels.attention(q, q, q, **{argument: value})
    result = npkernels.attention(q, q, q, **{argument: Exported(value)})
    assert_same_bits(getattr(result, "array", result), expected)


def test_positions_of_another_library():
    x, positions = np.ones((3, 4)), np.array([5, 1, 2])
    result = npkernels.rotary_embedding(x, Exported(positions))
    assert_same_bits(getattr(result, "array", result), npkernels.rotary_embedding(x, positions))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", NAMES)
def test_torch_in_torch_out(name, torch):
    call = make(name, 33, "float32")
    result = call.mapped(torch.from_numpy)()
    parts = leaves(result)
    assert all(type(leaf) is torch.Tensor for leaf in parts)
    assert_same_bits(tuple(leaf.numpy() for leaf in parts), call())


@pytest.mark.parametrize("name", WITH_OUT)
def test_torch_out_is_filled_in_place(name, torch):
    call = make(name, 33, "float32")
    out = call.new_out(lambda s, d: torch.full(s, 7.0, dtype=getattr(torch, d.name)))
    outs = leaves(out)
    addresses = [o.data_ptr() for o in outs]
    result = call.mapped(torch.from_numpy)(out=out)
    for leaf, o, address in zip(written(call, result), outs, addresses, strict=True):
        assert leaf is o
        assert o.data_ptr() == address
        assert not (o == 7.0).all()


def test_torch_is_read_in_place(torch, monkeypatch):
    x = torch.zeros(3, 5)
    seen = []
    inner = npkernels._core.softmax
    monkeypatch.setattr(
        npkernels._core, "softmax", lambda a, *rest: seen.append(a.ctypes.data) or inner(a, *rest)
    )
    npkernels.softmax(x)
    assert seen == [x.data_ptr()]


def test_torch_fields_that_were_not_asked_for_stay_none(torch):
    t = npkernels.token_log_probs(torch.zeros(2, 4), torch.tensor([0, 3]), stats=("top1",))
    assert t.top1.dtype == torch.int64
    assert type(t.log_prob) is torch.Tensor
    assert t.entropy is t.rank is None


def test_torch_mixed_with_numpy_and_lists(torch):
    x = np.zeros((2, 4), np.float32)
    assert type(npkernels.token_log_probs(x, torch.tensor([0, 1])).log_prob) is np.ndarray  # the first rules
    assert type(npkernels.token_log_probs(torch.from_numpy(x), [0, 1]).log_prob) is torch.Tensor
    assert type(npkernels.softmax(x.tolist(), mask=torch.ones(4, dtype=torch.bool))) is torch.Tensor
    out, lse = npkernels.merge_attention(
        (torch.ones(3, 2), torch.ones(3, 2)), (torch.zeros(3), torch.zeros(3))
    )
    assert type(out) is type(lse) is torch.Tensor


def test_torch_that_cannot_be_read_says_so(torch):
    for bad in (torch.zeros(3, requires_grad=True), torch.zeros(3, device="meta")):
        with pytest.raises(TypeError, match=r"^softmax: a torch.*cannot be read"):
            npkernels.softmax(bad)


class OnDevice(Exported):
    """An array that is not in CPU memory."""

    device = "cuda:0"

    def __dlpack__(self, **kwargs):
        raise BufferError("no copy")

    def __dlpack_device__(self):
        return (2, 0)


def test_an_array_on_a_device_says_so():
    x = OnDevice(np.zeros(3))
    with pytest.raises(TypeError, match=r"^softmax: a .*OnDevice cannot be read .*on device cuda:0: copy it"):
        npkernels.softmax(x)


def test_results_of_a_kind_that_cannot_be_made():
    class Readable(Exported):
        __array_namespace__ = property()  # no such attribute

    with pytest.raises(TypeError, match=r"npkernels: a .*Readable came in, but .*np.from_dlpack\(x\)"):
        npkernels.softmax(Readable(np.zeros(3)))


@pytest.mark.parametrize("make_sparse", ["csr_matrix", "csr_array", "coo_array"])
def test_a_sparse_array_says_so(make_sparse):
    sparse = getattr(pytest.importorskip("scipy.sparse"), make_sparse)(np.eye(3))
    for name, call in {
        "softmax": lambda: npkernels.softmax(sparse),
        "attention": lambda: npkernels.attention(sparse, sparse, sparse),
        "token_log_probs": lambda: npkernels.token_log_probs(np.eye(3), sparse),
        "cross_entropy": lambda: npkernels.cross_entropy(sparse, [0, 1, 2]),
        "spectral_norm": lambda: npkernels.lipschitz.spectral_norm(sparse),
        "sign_step": lambda: npkernels.perturb.sign_step(sparse, sparse, 0.1),
    }.items():
        with pytest.raises(
            TypeError, match=rf"^{name}: \w+ is a scipy.sparse.*{make_sparse}, which is sparse"
        ):
            call()


@pytest.mark.parametrize("name", NAMES)
def test_read_only_arrays_of_another_library(name):
    def frozen(array):
        array = array.copy()
        array.flags.writeable = False
        return array if array.dtype == bool else Exported(array)

    call = make(name, 20, "float32")
    for one, other in zip(leaves(call.mapped(frozen)()), flat(call()), strict=True):
        assert one.array.tobytes() == other.tobytes()
