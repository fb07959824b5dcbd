"""PyTorch's own attention function on npkernels, where it can be."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from npkernels.torch._attention import attention
from npkernels.torch._bridge import FLOATS

_original: Any = functional.scaled_dot_product_attention
_lock = threading.Lock()
_holders = 0  # how many want the replacement
_before: Any = None  # what stood there when the first came


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, computed by `attention` where that gives the same.

    That is: dense CPU tensors of one dtype (float32, float64, float16, bfloat16), with 2 to 4 axes, the same leading
    axes (with `enable_gqa` fewer heads of keys and values, that divide those of the query), `attn_mask` of booleans or
    of the dtype of the query, not together with `is_causal`, dropout_p 0. Every other call goes to PyTorch as it is.
    Within `torch.autocast` the tensors are cast to its dtype first, as PyTorch does it.

    Parameters
    ----------
    query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        As for `torch.nn.functional.scaled_dot_product_attention`; is_causal counts from the top left.

    Returns
    -------
    Tensor
        Of the shape (..., S, Dv) and the dtype of the query. A query that may attend to nothing gives 0.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> q, v = torch.zeros(1, 1, 2, 4), torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1)
    >>> npkernels.torch.scaled_dot_product_attention(q, q, v, is_causal=True).flatten()
    tensor([1., 2.])
    """
    if not _supported(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
        result: Tensor = _fallback()(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p,
                                     is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)  # fmt: skip
        return result
    if torch.is_autocast_enabled("cpu"):
        query, key, value, attn_mask = (_autocast(x) for x in (query, key, value, attn_mask))
    boolean = attn_mask is not None and attn_mask.dtype is torch.bool
    out = attention(
        query,
        key,
        value,
        mask=attn_mask if boolean else None,
        bias=None if boolean else attn_mask,
        causal="top_left" if is_causal and query.shape[-2] != key.shape[-2] else bool(is_causal),
        scale=scale,
    )
    assert isinstance(out, Tensor)
    return out


def _autocast(x: Any) -> Any:
    """As PyTorch casts what goes into a function in the lower precision: all floating tensors but those of double."""
    if x is None or x.dtype not in FLOATS or x.dtype is torch.float64:
        return x
    return x.to(torch.get_autocast_dtype("cpu"))


def _supported(
    q: Any, k: Any, v: Any, mask: Any, dropout_p: Any, is_causal: Any, scale: Any, enable_gqa: Any
) -> bool:
    tensors = (q, k, v) if mask is None else (q, k, v, mask)
    for x in tensors:
        if (
            not isinstance(x, Tensor)
            or x.device.type != "cpu"
            or x.layout is not torch.strided
            or x.is_nested
        ):
            return False
    if q.dtype not in FLOATS or k.dtype is not q.dtype or v.dtype is not q.dtype:
        return False
    if not 2 <= q.dim() <= 4 or k.dim() != q.dim() or v.dim() != q.dim():
        return False
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or k.shape[:-2] != v.shape[:-2]:
        return False
    if 0 in q.shape or 0 in k.shape or 0 in v.shape:
        return False
    if q.shape[:-2] != k.shape[:-2] and not (
        enable_gqa and q.dim() > 2 and q.shape[:-3] == k.shape[:-3] and q.shape[-3] % k.shape[-3] == 0
    ):
        return False
    if dropout_p != 0 or not (scale is None or isinstance(scale, int | float)):
        return False
    if mask is None:
        return True
    return (
        not is_causal
        and (mask.dtype is torch.bool or mask.dtype is q.dtype)
        and mask.dim() <= q.dim()
        and all(n in (1, m) for n, m in zip(mask.shape[::-1], (k.shape[-2], *q.shape[-2::-1]), strict=False))
    )


def _fallback() -> Any:
    before = _before
    return _original if before is None or before is scaled_dot_product_attention else before


class replace_sdpa:  # noqa: N801  (reads as a function)
    """Let `torch.nn.functional.scaled_dot_product_attention` go through npkernels, in the whole process.

    Calling it does it; leaving it as a context manager, or its `restore`, undoes it, after exceptions too. It may be
    nested: the last one to leave restores what was there before the first. What was imported by name before
    (``from torch.nn.functional import scaled_dot_product_attention``) and what PyTorch calls inside of C++ is not
    reached. Which calls are taken over: see `scaled_dot_product_attention`.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> functional = torch.nn.functional
    >>> q = torch.zeros(1, 2, 3, 4)
    >>> with npkernels.torch.replace_sdpa():
    ...     functional.scaled_dot_product_attention is npkernels.torch.scaled_dot_product_attention
    True
    >>> functional.scaled_dot_product_attention is npkernels.torch.scaled_dot_product_attention
    False
    """

    def __init__(self) -> None:
        global _holders, _before
        self._holds = True
        with _lock:
            if _holders == 0:
                _before = functional.scaled_dot_product_attention
            _holders += 1
            functional.scaled_dot_product_attention = scaled_dot_product_attention

    def restore(self) -> None:
        """Undo it; a second time does nothing."""
        global _holders, _before
        with _lock:
            if not self._holds:
                return
            self._holds = False
            _holders -= 1
            if _holders:
                return
            if functional.scaled_dot_product_attention is scaled_dot_product_attention:
                functional.scaled_dot_product_attention = (
                    _before  # else another replaced it meanwhile: leave that
                )
            _before = None

    def __enter__(self) -> replace_sdpa:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
