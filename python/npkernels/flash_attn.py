"""flash-attention's functions on the CPU: the signatures of flash-attn 2.8 for tensors of PyTorch and NumPy arrays.

``from npkernels.flash_attn import flash_attn_func`` in the place of ``from flash_attn import flash_attn_func``.

Letters: B batch, S queries, K keys, Hq query heads, Hk key/value heads (Hq a multiple), D head size,
N packed sequences.
"""

from __future__ import annotations

from typing import Any

from npkernels._flash_attn_cache import flash_attn_with_kvcache
from npkernels._flash_attn_calls import dense, packed, unpack

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]


def flash_attn_func(
    q: Any,
    k: Any,
    v: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of q on k and v, differentiable for tensors.

    Query i stands at key position p = i + K - S: all that follows is aligned at the bottom right.

    Parameters
    ----------
    q : tensor or ndarray (B, S, Hq, D)
        float32, float64, float16 or bfloat16, on the CPU; strides are free.
    k, v : like q (B, K, Hk, D)
        v may have another head size.
    dropout_p : float
        The share of weights that are dropped; `torch.manual_seed` decides which. Tensors only.
    softmax_scale : float, optional
        Default ``1 / sqrt(D)``.
    causal : bool
        A query sees keys up to its own position.
    window_size : (int, int)
        (left, right): a query sees keys from p - left to p + right; negative = open.
    softcap : float
        c > 0 bounds the scaled products: s becomes ``c * tanh(s / c)``.
    alibi_slopes : tensor or ndarray (Hq,) or (B, Hq), optional
        ``-slope * |p - j|`` is added to the score of key j.
    deterministic : bool
        Taken and ignored: results always have the same bits, for any number of threads.
    return_attn_probs : bool
        Also return the lse and, where dropout_p > 0, the weights, whose memory is S x K.

    Returns
    -------
    out : like q (B, S, Hq, Dv)
        A query with nothing to attend to gives 0.
    softmax_lse : (B, Hq, S)
        Only if `return_attn_probs`; float32 (float64 for float64). -inf for a query with nothing to attend to. It is
        differentiable too.
    S_dmask : (B, Hq, S, K)
        Only if `return_attn_probs`; negative where the weight was dropped. Empty, (0,), without dropout.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong kind, dtype, shape or value.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from npkernels.flash_attn import flash_attn_func
    >>> q, v = np.zeros((1, 1, 1, 4)), np.array([1.0, 3.0]).reshape(1, 2, 1, 1)  # one query, two keys
    >>> flash_attn_func(q, np.zeros((1, 2, 1, 4)), v, causal=True).ravel()
    array([2.])
    """
    return dense(
        "flash_attn_func",
        q,
        k,
        v,
        dropout_p=dropout_p,
        scale=softmax_scale,
        causal=causal,
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        want_probs=return_attn_probs,
    )


def flash_attn_kvpacked_func(
    q: Any,
    kv: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` with keys and values in one array, kv (B, K, 2, Hk, D); its gradient is one array too.

    Examples
    --------
    >>> import numpy as np
    >>> from npkernels.flash_attn import flash_attn_kvpacked_func
    >>> flash_attn_kvpacked_func(np.zeros((1, 1, 1, 2)), np.ones((1, 5, 2, 1, 2))).ravel()
    array([1., 1.])
    """
    name = "flash_attn_kvpacked_func"
    k, v = unpack(name, "kv", kv, 5, 2)
    return dense(
        name,
        q,
        k,
        v,
        dropout_p=dropout_p,
        scale=softmax_scale,
        causal=causal,
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        want_probs=return_attn_probs,
    )


def flash_attn_qkvpacked_func(
    qkv: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` with all three in one array, qkv (B, S, 3, H, D); its gradient is one array too.

    Examples
    --------
    >>> import numpy as np
    >>> from npkernels.flash_attn import flash_attn_qkvpacked_func
    >>> flash_attn_qkvpacked_func(np.ones((1, 5, 3, 1, 2)))[0, 0]
    array([[1., 1.]])
    """
    name = "flash_attn_qkvpacked_func"
    q, k, v = unpack(name, "qkv", qkv, 5, 3)
    return dense(
        name,
        q,
        k,
        v,
        dropout_p=dropout_p,
        scale=softmax_scale,
        causal=causal,
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        want_probs=return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Any = None,
) -> Any:
    """`flash_attn_func` within each of N sequences that are packed one after the other.

    Parameters
    ----------
    q : tensor or ndarray (total_q, Hq, D)
    k, v : like q (total_k, Hk, D)
        With a block table (pages, page_size, Hk, D).
    cu_seqlens_q, cu_seqlens_k : int (N + 1,)
        Sequence n has the queries ``cu_seqlens_q[n]`` to ``cu_seqlens_q[n + 1]`` (exclusive), and the keys likewise.
    max_seqlen_q, max_seqlen_k : int
        Not needed here; smaller than the longest sequence is an error.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
        As for `flash_attn_func`, each sequence with its own lengths; alibi_slopes (Hq,) or (N, Hq).
    block_table : int (N, blocks), optional
        The pages of each sequence, any size; no gradients then.

    Returns
    -------
    out : like q (total_q, Hq, Dv)
    softmax_lse : (Hq, total_q)
        Only if `return_attn_probs`.
    S_dmask : (N, Hq, max_seqlen_q, max_seqlen_k)
        Only if `return_attn_probs`, as for `flash_attn_func`; 0 behind the end of a sequence.

    Raises
    ------
    TypeError, ValueError, IndexError
        If an argument has the wrong kind, dtype, shape or value.

    Examples
    --------
    >>> import numpy as np
    >>> from npkernels.flash_attn import flash_attn_varlen_func
    >>> q, v = np.zeros((3, 1, 4)), np.array([[[1.0]], [[3.0]], [[7.0]]])  # two tokens, then one
    >>> cu_seqlens = np.array([0, 2, 3])
    >>> flash_attn_varlen_func(q, q, v, cu_seqlens, cu_seqlens, 2, 2).ravel()
    array([2., 2., 7.])
    """
    return packed(
        "flash_attn_varlen_func",
        q,
        k,
        v,
        (cu_seqlens_q, cu_seqlens_k),
        (max_seqlen_q, max_seqlen_k),
        dropout_p=dropout_p,
        scale=softmax_scale,
        causal=causal,
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        want_probs=return_attn_probs,
        block_table=block_table,
    )


def flash_attn_varlen_kvpacked_func(
    q: Any,
    kv: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` with keys and values in one array, kv (total_k, 2, Hk, D).

    Examples
    --------
    >>> import numpy as np
    >>> from npkernels.flash_attn import flash_attn_varlen_kvpacked_func
    >>> cu_seqlens = np.array([0, 2, 3])
    >>> flash_attn_varlen_kvpacked_func(np.zeros((3, 1, 2)), np.ones((3, 2, 1, 2)), cu_seqlens, cu_seqlens, 2, 2)[0]
    array([[1., 1.]])
    """
    name = "flash_attn_varlen_kvpacked_func"
    k, v = unpack(name, "kv", kv, 4, 2)
    return packed(
        name,
        q,
        k,
        v,
        (cu_seqlens_q, cu_seqlens_k),
        (max_seqlen_q, max_seqlen_k),
        dropout_p=dropout_p,
        scale=softmax_scale,
        causal=causal,
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        want_probs=return_attn_probs,
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: Any,
    cu_seqlens: Any,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` with all three in one array, qkv (total, 3, H, D).

    Examples
    --------
    >>> import numpy as np
    >>> from npkernels.flash_attn import flash_attn_varlen_qkvpacked_func
    >>> flash_attn_varlen_qkvpacked_func(np.ones((3, 3, 1, 2)), np.array([0, 2, 3]), 2)[0]
    array([[1., 1.]])
    """
    name = "flash_attn_varlen_qkvpacked_func"
    q, k, v = unpack(name, "qkv", qkv, 4, 3)
    return packed(
        name,
        q,
        k,
        v,
        (cu_seqlens, cu_seqlens),
        (max_seqlen, max_seqlen),
        dropout_p=dropout_p,
        scale=softmax_scale,
        causal=causal,
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        want_probs=return_attn_probs,
    )
