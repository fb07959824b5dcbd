from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

__version__: str
compiler: str
build_type: str

def compiled_isas() -> list[str]: ...
def isa_supported(name: str) -> bool: ...
def isa() -> str: ...
def isa_source() -> str: ...
def set_isa(name: str) -> bool: ...
def reset_isa() -> None: ...
def num_threads() -> int: ...
def num_threads_source() -> str: ...
def set_num_threads(n: int) -> int: ...
def set_thread_limit(n: int) -> int: ...
def peak_flops(repeats: int) -> float: ...
def peak_bandwidth(bytes: int, repeats: int) -> tuple[float, float, float]: ...
def softmax(x: Array, axis: int, temperature: float, mask: Array | None, out: Array | None) -> Array: ...
def log_softmax(x: Array, axis: int, temperature: float, mask: Array | None, out: Array | None) -> Array: ...
def softmax_vjp(
    dy: Array, y: Array, axis: int, temperature: float, mask: Array | None, out: Array | None
) -> Array: ...
def log_softmax_vjp(
    dy: Array, y: Array, axis: int, temperature: float, mask: Array | None, out: Array | None
) -> Array: ...
def softmax_jvp(
    x: Array,
    dx: Array,
    axis: int,
    temperature: float,
    mask: Array | None,
    out_y: Array | None,
    out_dy: Array | None,
) -> tuple[Array, Array]: ...
def log_softmax_jvp(
    x: Array,
    dx: Array,
    axis: int,
    temperature: float,
    mask: Array | None,
    out_y: Array | None,
    out_dy: Array | None,
) -> tuple[Array, Array]: ...
def logsumexp(x: Array, axis: int, temperature: float, mask: Array | None) -> Array: ...
def entropy(logits: Array, axis: int, temperature: float, mask: Array | None) -> Array: ...
def logsumexp_vjp(
    d: Array, x: Array, lse: Array, axis: int, temperature: float, mask: Array | None, out: Array | None
) -> Array: ...
def logsumexp_jvp(
    x: Array, dx: Array, axis: int, temperature: float, mask: Array | None
) -> tuple[Array, Array]: ...
def token_log_probs(
    logits: Array,
    ids: npt.NDArray[np.int64],
    temperature: float,
    mask: Array | None,
    want_lse: bool,
    want_entropy: bool,
    want_sum_p2: bool,
    want_top1: bool,
    want_rank: bool,
) -> dict[str, Array | None]: ...
def token_log_probs_vjp(
    dlogp: Array,
    logits: Array,
    ids: npt.NDArray[np.int64],
    lse: Array,
    dentropy: Array | None,
    entropy: Array | None,
    temperature: float,
    mask: Array | None,
    out: Array | None,
) -> Array: ...
def cross_entropy(
    logits: Array,
    ids: npt.NDArray[np.int64],
    axis: int,
    weight: Array | None,
    weight_sum: float,
    label_smoothing: float,
    grad_scale: float,
    want_grad: bool,
    out: Array | None,
) -> tuple[Array, Any]: ...
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    bias: Array | None,
    causal: bool,
    scale: float,
    offset: Array | None,
    want_lse: bool,
    out: Array,
) -> tuple[Array, Any]: ...
def attention_output(q: Array, k: Array, v: Array, out: Array | None) -> Array: ...
def merge_attention(outs: list[Array], lses: list[Array], out: Array | None) -> tuple[Array, Array]: ...
def rotary(
    x: Array, cos: Array, sin: Array, interleaved: bool, inverse: bool, out: Array | None
) -> Array: ...
