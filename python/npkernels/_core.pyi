from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

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
def softmax(x: _Array, axis: int, temperature: float, mask: _Array | None, out: _Array | None) -> _Array: ...
def log_softmax(
    x: _Array, axis: int, temperature: float, mask: _Array | None, out: _Array | None
) -> _Array: ...
def softmax_vjp(
    dy: _Array, y: _Array, axis: int, temperature: float, mask: _Array | None, out: _Array | None
) -> _Array: ...
def log_softmax_vjp(
    dy: _Array, y: _Array, axis: int, temperature: float, mask: _Array | None, out: _Array | None
) -> _Array: ...
def softmax_jvp(
    x: _Array,
    dx: _Array,
    axis: int,
    temperature: float,
    mask: _Array | None,
    out_y: _Array | None,
    out_dy: _Array | None,
) -> tuple[_Array, _Array]: ...
def log_softmax_jvp(
    x: _Array,
    dx: _Array,
    axis: int,
    temperature: float,
    mask: _Array | None,
    out_y: _Array | None,
    out_dy: _Array | None,
) -> tuple[_Array, _Array]: ...
def logsumexp(x: _Array, axis: int, temperature: float, mask: _Array | None) -> _Array: ...
def entropy(logits: _Array, axis: int, temperature: float, mask: _Array | None) -> _Array: ...
def logsumexp_vjp(
    d: _Array, x: _Array, lse: _Array, axis: int, temperature: float, mask: _Array | None, out: _Array | None
) -> _Array: ...
def logsumexp_jvp(
    x: _Array, dx: _Array, axis: int, temperature: float, mask: _Array | None
) -> tuple[_Array, _Array]: ...
def token_log_probs(
    logits: _Array,
    ids: npt.NDArray[np.int64],
    temperature: float,
    mask: _Array | None,
    want_lse: bool,
    want_entropy: bool,
    want_sum_p2: bool,
    want_top1: bool,
    want_rank: bool,
) -> dict[str, _Array | None]: ...
def token_log_probs_vjp(
    dlogp: _Array,
    logits: _Array,
    ids: npt.NDArray[np.int64],
    lse: _Array,
    dentropy: _Array | None,
    entropy: _Array | None,
    temperature: float,
    mask: _Array | None,
    out: _Array | None,
) -> _Array: ...
def cross_entropy(
    logits: _Array,
    ids: npt.NDArray[np.int64],
    axis: int,
    weight: _Array | None,
    weight_sum: float,
    label_smoothing: float,
    grad_scale: float,
    want_grad: bool,
    out: _Array | None,
) -> tuple[_Array, Any]: ...
def attention(
    q: _Array,
    k: _Array,
    v: _Array,
    options: tuple[Any, ...],
    want_lse: bool,
    cu_seqlens_q: _Array | None,
    cu_seqlens_k: _Array | None,
    out: _Array,
) -> tuple[_Array, Any]: ...
def attention_quick(
    q: object, k: object, v: object, causal: object, want_lse: bool, scale: object
) -> Any: ...
def attention_output(function: str, q: _Array, k: _Array, v: _Array, out: _Array | None) -> _Array: ...
def attention_cached(
    q: _Array,
    k: _Array,
    v: _Array,
    k_scale: _Array | None,
    v_scale: _Array | None,
    block_table: _Array | None,
    options: tuple[Any, ...],
    want_lse: bool,
    out: _Array,
) -> Any: ...
def attention_vjp(
    dout: _Array,
    q: _Array,
    k: _Array,
    v: _Array,
    o: _Array,
    lse: _Array,
    dlse: _Array | None,
    options: tuple[Any, ...],
    cu_seqlens_q: _Array | None,
    cu_seqlens_k: _Array | None,
    dq: _Array,
    dk: _Array,
    dv: _Array,
    want_dbias: bool,
    want_dsinks: bool,
) -> tuple[Any, Any]: ...
def attention_jvp(
    q: _Array,
    k: _Array,
    v: _Array,
    dq: _Array,
    dk: _Array,
    dv: _Array,
    options: tuple[Any, ...],
    want_lse: bool,
    out: _Array,
    dout: _Array,
) -> Any: ...
def merge_attention(outs: list[_Array], lses: list[_Array], out: _Array | None) -> tuple[_Array, _Array]: ...
def rotary(
    x: _Array, cos: _Array, sin: _Array, interleaved: bool, inverse: bool, out: _Array | None
) -> _Array: ...
def group_advantages(
    rewards: _Array,
    groups: int | _Array,
    n: int,
    baseline: int,
    scale: int,
    ddof: int,
    eps: float,
    lone_reward: bool,
    over_mean: bool,
) -> tuple[_Array, _Array]: ...
def group_advantages_plain(rewards: object, size: int) -> tuple[_Array, _Array] | None: ...
def group_stats(rewards: _Array, groups: int | _Array, n: int) -> _Array: ...
def number_groups(ids: npt.NDArray[np.int64]) -> tuple[_Array, _Array]: ...
def policy_loss(
    logp: _Array,
    old_logp: _Array,
    advantages: _Array,
    mask: _Array | None,
    ref_logp: _Array | None,
    sampler_logp: _Array | None,
    entropy: _Array | None,
    count: int,
    length: int,
    ends: _Array | None,
    options: tuple[Any, ...],
    out: _Array | None,
) -> tuple[Any, ...]: ...
def token_policy_loss(
    logits: _Array,
    ids: _Array,
    old_logp: _Array,
    advantages: _Array,
    ref_logp: _Array | None,
    correction: _Array | None,
    weights: _Array,
    temperature: float,
    want_entropy: bool,
    options: tuple[Any, ...],
    want_grad: bool,
    out: _Array | None,
) -> tuple[_Array, Any]: ...
def scan(
    rewards: _Array,
    values: _Array | None,
    count: int,
    length: int,
    ends: _Array | None,
    mask: _Array | None,
    dones: _Array | None,
    gamma: _Array,
    lam: _Array | None,
    last: _Array,
    advantages: _Array | None,
    returns: _Array,
) -> None: ...
def beam_step(log_probs: _Array, scores: _Array, width: int) -> tuple[_Array, _Array, _Array]: ...
def sample(
    logits: _Array, temperature: float, top_k: int, top_p: float, min_p: float, u: _Array
) -> _Array: ...
def perturb_step(
    function: str,
    x: _Array,
    center: _Array | None,
    grad: _Array | None,
    length: float,
    length_array: _Array | None,
    radius: float,
    radius_array: _Array | None,
    norm: int,
    low: float,
    high: float,
    low_array: _Array | None,
    high_array: _Array | None,
    targeted: bool,
    mask: _Array | None,
    want_nans: bool,
    out: _Array | None,
) -> tuple[_Array, int]: ...
def step_quick(
    x: object,
    center: object,
    grad: object,
    length: object,
    radius: object,
    bounds: object,
    targeted: object,
    out: object,
) -> _Array | None: ...
def momentum(
    velocity: _Array, grad: _Array, decay: float, mask: _Array | None, out: _Array | None
) -> _Array: ...
def random_in_ball(
    center: _Array,
    radius: float,
    radius_array: _Array | None,
    norm: int,
    key: int,
    low: float,
    high: float,
    low_array: _Array | None,
    high_array: _Array | None,
    out: _Array | None,
) -> _Array: ...
