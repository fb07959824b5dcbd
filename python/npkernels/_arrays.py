"""What comes in and what goes out: any CPU array in, the same kind out, and the checks that all functions share."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from npkernels import _checked, _dlpack
from npkernels._grpo_types import GroupAdvantages

ndarray = np.ndarray
Array = npt.NDArray[Any]
P = ParamSpec("P")
R = TypeVar("R")

_FLOAT32, _FLOAT64, _FLOAT16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)
_INT64 = np.dtype(np.int64)


_PLAIN = frozenset({ndarray, bool, int, float, str, type(None)})  # what needs no conversion


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of NumPy arrays take any array kind, and be compared with its reference under `checked()`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        plain = type(args[0]) is ndarray if args else all(type(value) in _PLAIN for value in kwargs.values())
        if plain and not _checked.users:
            return function(*args, **kwargs)
        return _general(function, args, kwargs)

    return call


def _general(function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    foreign = next((a for a in _leaves((*args, *kwargs.values())) if _is_foreign(a)), None)
    out = kwargs.get("out")
    name = _public(function)
    new_args = tuple(_to_numpy(name, a) for a in args)
    new_kwargs = {key: _to_numpy(name, value) for key, value in kwargs.items()}
    result: Any = (_checked.compare if _checked.enabled() else _call)(function, new_args, new_kwargs)
    kind: R = result if foreign is None else _to_kind(result, foreign, out)
    return kind


def _public(function: Callable[..., Any]) -> str:
    """The name by which a user calls it."""
    return "KVCache.attend" if function.__name__ == "cached_attention" else function.__name__


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values, and the elements of those that are lists or tuples."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


_MOST_AXES = 64  # of a NumPy array


def _is_foreign(value: object) -> bool:
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)


def _to_numpy(function: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and any(_is_foreign(v) for v in value):
        return type(value)(_to_numpy(function, v) for v in value)
    if not _is_foreign(value):
        return value
    if (why := _other_numbers(value)) is not None:
        raise TypeError(f"{function}: a {_kind(value)} does not hold its numbers itself: {why}")
    try:
        if str(getattr(value, "dtype", "")).endswith("bfloat16"):
            array = _dlpack.bfloat16_to_numpy(value)
            if array is not None:
                return array
        return np.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(
            f"{function}: a {_kind(value)} cannot be read in CPU memory ({_why_not(value, error)}); "
            "expected a CPU array"
        ) from error


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _other_numbers(value: Any) -> str | None:
    """Say why the memory that a tensor of PyTorch gives away by DLPack is not what the tensor means; None if it is."""
    torch: Any = sys.modules.get("torch")  # who has a tensor has imported it
    tensor: Any = getattr(torch, "Tensor", None)
    if tensor is None or not isinstance(value, tensor):
        return None
    if type(value).__name__ == "FakeTensor":
        return "it is a FakeTensor, which has no memory; npkernels.torch takes it"
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return "it is inside of a transform of torch.func; npkernels.torch takes it"
    if value.is_neg():
        return "it is the lazy negation of its memory; pass x.resolve_neg()"
    forward_ad = torch.autograd.forward_ad
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        return "it has a tangent of forward mode; npkernels.torch has derivatives"
    return None


def _why_not(value: Any, error: Exception) -> str:
    """Say what DLPack leaves to be guessed."""
    if getattr(value, "requires_grad", False) is True:
        return "it requires grad: pass x.detach(), or use npkernels.torch, which has derivatives"
    if "sparse" in str(getattr(value, "layout", "")):
        return "it is sparse: pass x.to_dense()"
    if getattr(value, "is_nested", False) is True:
        return "it is nested: pass its tensors one by one, or packed to the functions that take cu_seqlens"
    try:
        on_cpu = value.__dlpack_device__()[0] == 1
    except Exception:
        on_cpu = False
    if not on_cpu:
        return f"it is on device {getattr(value, 'device', 'unknown')}: copy it to the CPU first"
    return str(error)


def _to_kind(result: Any, foreign: Any, out: Any = None) -> Any:
    """Return the result as the kind of array that `foreign` is; what went into `out` is the caller's own object."""
    if isinstance(result, tuple):
        outs = out if isinstance(out, tuple) else (out,) * len(result)
        return tuple(_to_kind(r, foreign, o) for r, o in zip(result, outs, strict=True))
    if isinstance(result, GroupAdvantages):
        return result.of_kind(lambda a: _to_kind(a, foreign))
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = {f.name: _to_kind(getattr(result, f.name), foreign, out) for f in dataclasses.fields(result)}
        return dataclasses.replace(result, **fields)
    if not isinstance(result, np.ndarray | np.generic):
        return result
    for given in out if isinstance(out, tuple | list) else (out,):
        if given is not None and np.shares_memory(result, _to_numpy("out", given)):
            return given
    array = np.asarray(result)
    return _from_dlpack(foreign)(_dlpack.bfloat16_from_numpy(array) if is_bfloat16(array.dtype) else array)


def same_kind(result: R, *inputs: Any) -> R:
    """Return the result as the kind of array that the first input is which is not NumPy's."""
    foreign = next((x for x in inputs if _is_foreign(x)), None)
    kind: R = result if foreign is None else _to_kind(result, foreign)
    return kind


def _from_dlpack(foreign: Any) -> Any:
    """Return the function that makes an array of the kind that `foreign` is."""
    if hasattr(foreign, "__array_namespace__"):
        return foreign.__array_namespace__().from_dlpack
    for base in type(foreign).__mro__:  # a subclass may be defined anywhere
        package: Any = sys.modules.get(base.__module__.partition(".")[0])
        if hasattr(package, "from_dlpack"):
            return package.from_dlpack
    raise TypeError(
        f"npkernels: a {_kind(foreign)} came in, but neither it (__array_namespace__) nor its package has a "
        "from_dlpack to make results of its kind; pass np.from_dlpack(x)"
    )


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether this is ml_dtypes.bfloat16, asked without importing ml_dtypes."""
    return dtype.num >= 256 and dtype.name == "bfloat16"


def floating(function: str, name: str, x: Any) -> Array:
    """Return x as an aligned, native array of a floating dtype; integers, booleans, lists become float64."""
    if type(x) is ndarray:
        dtype = x.dtype
        if (dtype is _FLOAT32 or dtype is _FLOAT64 or dtype is _FLOAT16) and x.flags.aligned:
            return x
    return _floating_slow(function, name, x)


def _floating_slow(function: str, name: str, x: Any) -> Array:
    array = plain(function, name, x)
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    if array.dtype.newbyteorder("=") not in (_FLOAT32, _FLOAT64, _FLOAT16) and not is_bfloat16(array.dtype):
        raise TypeError(
            f"{function}: {name} has dtype {array.dtype}; expected float32, float64, float16, bfloat16 or integers"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def plain(function: str, name: str, x: Any) -> Array:
    """Return x, of whatever kind, as a NumPy array of whatever dtype."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{function}: {name} is a masked array; pass its data, and ~mask as the `mask` argument"
        )
    try:
        array = np.asarray(_to_numpy(function, x))
    except ValueError as error:  # ragged lists
        raise ValueError(f"{function}: {name} is not a rectangular array: {error}") from error
    if array.dtype == object and hasattr(x, "toarray"):
        raise TypeError(f"{function}: {name} is a {_kind(x)}, which is sparse; pass x.toarray()")
    return array


def real(function: str, name: str, x: Any) -> Array:
    """Return x, of whatever kind, as an array of real numbers: what became complex or lost its numbers is an error."""
    array = plain(function, name, x)
    if array.dtype.kind not in "fiub" and not is_bfloat16(array.dtype):
        raise TypeError(f"{function}: {name} has dtype {array.dtype}; expected real numbers")
    return array


def boolean(function: str, name: str, x: Any) -> Array:
    """Return x as an array of booleans."""
    array = plain(function, name, x)
    if array.dtype != np.bool_:
        raise TypeError(f"{function}: {name} has dtype {array.dtype}; expected bool (True = takes part)")
    return array


def integers(function: str, name: str, x: Any) -> Array:
    """Return x as a contiguous array of int64."""
    if type(x) is ndarray and x.dtype is _INT64 and x.flags.c_contiguous and x.flags.aligned:
        return x
    array = plain(function, name, x)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{function}: {name} has dtype {array.dtype}; expected integers")
    if array.dtype == np.uint64 and array.size and (largest := int(array.max())) >= 2**63:
        raise IndexError(f"{function}: {name} holds {largest}; expected a number below 2^63")
    return np.ascontiguousarray(array, dtype=np.int64).reshape(array.shape)


def statistic(function: str, name: str, x: Any, dtype: np.dtype[Any]) -> Array:
    """One value per row, as a contiguous array of the compute dtype."""
    array = floating(function, name, x)
    return np.ascontiguousarray(array, dtype=dtype).reshape(array.shape)


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float64 for float64, else float32."""
    return _FLOAT64 if dtype == _FLOAT64 else _FLOAT32


def axis_index(function: str, axis: Any) -> int:
    """Axis as an int; the compiled function checks its range."""
    if isinstance(axis, int | np.integer) and not isinstance(axis, bool):
        if not -_MOST_AXES <= axis < _MOST_AXES:
            raise ValueError(f"{function}: axis is {axis}, out of range for any array")
        return int(axis)
    raise TypeError(f"{function}: axis is {axis!r}; expected an integer")


def number(function: str, name: str, value: Any) -> float:
    """A Python or NumPy number as float; inf for an integer beyond its range."""
    if isinstance(value, int | float | np.integer | np.floating):
        try:
            return float(value)
        except OverflowError:
            return np.inf if value > 0 else -np.inf
    raise TypeError(f"{function}: {name} is {value!r}; expected a number")


def check_out(
    function: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Sequence[Array | None] = ()
) -> None:
    """Raise unless `out` (or None) can take a result of that shape and dtype, and is apart from the inputs."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{function}: out is a {type(out).__name__}; expected a NumPy array")
    if out.shape != shape:
        raise ValueError(f"{function}: out has shape {out.shape}; expected {shape}")
    if out.dtype != dtype:
        raise TypeError(f"{function}: out has dtype {out.dtype}; expected {dtype}")
    if not out.flags.writeable:
        raise ValueError(f"{function}: out is read-only; pass a writeable array")
    if not out.flags.aligned:
        raise ValueError(f"{function}: out is not aligned to its dtype; pass an ordinary array")
    if not entries_apart(out):
        raise ValueError(
            f"{function}: out has strides {out.strides} for shape {out.shape}, so its entries may share memory; pass "
            "an ordinary array"
        )
    if any(x is not None and np.shares_memory(out, x) for x in inputs):
        raise ValueError(f"{function}: out overlaps an input; pass separate memory")


def same_view(a: Array, b: Array) -> bool:
    """Whether two arrays are the same memory, read the same way."""
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape and a.strides == b.strides


def entries_apart(x: Array) -> bool:
    """Whether every step along an axis goes past all that the shorter steps reach: true of every view by indexing."""
    if x.flags.forc or not x.size:
        return True
    reach = x.itemsize
    for step, n in sorted((abs(step), n) for step, n in zip(x.strides, x.shape, strict=True)):
        if n > 1:
            if step < reach:
                return False
            reach += step * (n - 1)
    return True


def choice(function: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise unless value is one of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        expected = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{function}: {name} is {value!r}; expected one of {expected}")


def shape_error(function: str, name: str, came: tuple[int, ...], expected: str) -> NoReturn:
    """Raise the error for a shape that does not fit."""
    raise ValueError(f"{function}: {name} has shape {came}; expected {expected}")
