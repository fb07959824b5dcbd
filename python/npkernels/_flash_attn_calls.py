"""From flash-attention's arguments to those of `attention`: kinds of arrays, axes, positions, packed sequences."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from npkernels._arrays import Array, integers, number, plain, shape_error
from npkernels._attention import attention
from npkernels._attention_varlen import attention_varlen


def is_tensor(function: str, **arrays: Any) -> bool:
    """Return whether the arrays are tensors of PyTorch; raise unless all are, or all are NumPy's."""
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    kinds = set()
    for name, x in arrays.items():
        tensor = torch is not None and isinstance(x, torch.Tensor)
        if tensor:
            import npkernels._flash_attn_torch  # noqa: F401  (raises if this PyTorch is too old)
        if not tensor and not isinstance(x, np.ndarray):
            raise TypeError(
                f"{function}: {name} is a {type(x).__name__}; expected a PyTorch tensor or a NumPy array"
            )
        kinds.add(tensor)
    if len(kinds) > 1:
        names = ", ".join(arrays)
        raise TypeError(f"{function}: {names} are tensors and NumPy arrays mixed; expected all of one kind")
    return kinds.pop()


def as_numpy(function: str, name: str, x: Any) -> Array:
    """View a tensor or an array as a NumPy array."""
    if isinstance(x, np.ndarray):
        return x
    from npkernels._torch_attention import to_numpy

    return to_numpy(function, name, x)


def as_given(x: Array, tensor: bool) -> Any:
    """Return the result as the kind that came in."""
    if not tensor:
        return x
    from npkernels._torch_memory import to_torch

    return to_torch(x)


def small(function: str, name: str, x: Any) -> Any:
    """Take a list, a tensor or an array of few numbers as NumPy can read it; None stays None."""
    return as_numpy(function, name, x) if hasattr(x, "detach") else x


def options_of(
    function: str, scale: Any, causal: Any, window: Any, softcap: Any, alibi_slopes: Any
) -> dict[str, Any]:
    """Return the options of `attention` that do not depend on lengths."""
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise ValueError(f"{function}: window_size is {window!r}; expected a pair (left, right), -1 = open")
    if not all(hasattr(side, "__index__") for side in window):
        raise TypeError(f"{function}: window_size is {window!r}; expected a pair of integers, -1 = open")
    slopes = small(function, "alibi_slopes", alibi_slopes)
    return {
        "scale": scale,
        "causal": "bottom_right" if causal else False,
        "window": tuple(max(side, -1) for side in window),
        "softcap": max(number(function, "softcap", softcap), 0.0),
        "alibi_slopes": None if slopes is None else plain(function, "alibi_slopes", slopes),
    }


def unpack(function: str, name: str, x: Any, ndim: int, parts: int) -> tuple[Any, ...]:
    """Return the views of the parts that stand in the third axis from behind."""
    tensor = is_tensor(function, **{name: x})
    if x.ndim != ndim or x.shape[-3] != parts:
        axes = "B, S" if ndim == 5 else "total"
        shape_error(function, name, tuple(x.shape), f"({axes}, {parts}, H, D)")
    return tuple(x.unbind(-3)) if tensor else tuple(x[..., i, :, :] for i in range(parts))


def check_shapes(function: str, q: Any, k: Any, v: Any, layout: str) -> None:
    """Raise unless q, k and v of a layout such as (B, S, H, D) belong together."""
    axes = layout.count(",") + 1
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != axes:
            shape_error(function, name, tuple(x.shape), layout)
    if axes == 4 and k.shape[0] != q.shape[0]:
        raise ValueError(f"{function}: k has batch size {k.shape[0]}, q has {q.shape[0]}; expected the same")
    if v.shape[:-1] != k.shape[:-1]:
        shape_error(function, "v", tuple(v.shape), f"that of k but for the head size, {tuple(k.shape)}")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{function}: k has head size {k.shape[-1]}, q has {q.shape[-1]}; expected the same")
    if (q.shape[-2] % k.shape[-2] if k.shape[-2] else q.shape[-2]) != 0:
        raise ValueError(
            f"{function}: k has {k.shape[-2]} heads, q has {q.shape[-2]}; q heads must be a multiple of k heads"
        )


def _dropout(function: str, dropout_p: float, tensor: bool) -> dict[str, Any]:
    if not dropout_p:
        return {}
    if not tensor:
        raise ValueError(
            f"{function}: dropout_p is {dropout_p!r} for NumPy arrays, which have no generator to draw from; expected "
            "0 (or tensors, or npkernels.attention with dropout_seed=)"
        )
    from npkernels._torch_attention import dropout_seed

    return {"dropout_p": dropout_p, "dropout_seed": dropout_seed(dropout_p)}


def dense(
    function: str,
    q: Any,
    k: Any,
    v: Any,
    *,
    dropout_p: float,
    scale: float | None,
    causal: bool,
    window: Any,
    softcap: float,
    alibi_slopes: Any,
    want_probs: bool,
) -> Any:
    """Attention of (B, S, H, D) arrays, as `flash_attn_func` describes it."""
    tensor = is_tensor(function, q=q, k=k, v=v)
    check_shapes(function, q, k, v, "(B, S, H, D)")
    options = options_of(function, scale, causal, window, softcap, alibi_slopes)
    options["q_offset"] = k.shape[1] - q.shape[1]
    dropped = _dropout(function, dropout_p, tensor)
    out: Any
    lse: Any
    if tensor:
        from npkernels._torch_attention import tensor_attention

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = tensor_attention(function, q, k, v, return_lse=want_probs, **dropped, **options)
        out = out.transpose(1, 2)
        q, k = q.detach(), k.detach()
    else:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        result = attention(q, k, v, return_lse=want_probs, **options)
        out, lse = result if want_probs else (result, None)
        out = out.swapaxes(1, 2)
    if not want_probs:
        return out
    probs = np.zeros(0, np.float32)
    if dropped:
        q, k = as_numpy(function, "q", q), as_numpy(function, "k", k)
        keys = k.shape[2]
        one_hot = np.broadcast_to(np.eye(keys, dtype=q.dtype), (*k.shape[:2], keys, keys))
        kept: Any
        all_of_them: Any
        kept, all_of_them = (attention(q, k, one_hot, **options, **more) for more in (dropped, {}))
        probs = np.where(kept == 0, -all_of_them, all_of_them)
    return out, lse, as_given(probs, tensor)


def packed(
    function: str,
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens: tuple[Any, Any],
    longest: tuple[Any, Any],
    *,
    dropout_p: float,
    scale: float | None,
    causal: bool,
    window: Any,
    softcap: float,
    alibi_slopes: Any,
    want_probs: bool,
    block_table: Any = None,
) -> Any:
    """Attention of packed (total, H, D) arrays, as `flash_attn_varlen_func` describes it."""
    tensor = is_tensor(function, q=q, k=k, v=v)
    starts = []
    for name, cu, most in zip(("cu_seqlens_q", "cu_seqlens_k"), cu_seqlens, longest, strict=True):
        boundaries = integers(function, name, small(function, name, cu))
        if boundaries.ndim != 1 or not len(boundaries):
            shape_error(function, name, boundaries.shape, "(N + 1,) for N sequences")
        lengths = np.diff(boundaries)
        what = name.replace("cu_seqlens", "max_seqlen")
        if not hasattr(most, "__index__"):
            raise TypeError(f"{function}: {what} is {most!r}; expected an integer")
        if lengths.size and lengths.max() > int(most):
            raise ValueError(
                f"{function}: {what} is {most}, {name} has a sequence of {lengths.max()}; expected at least that"
            )
        starts.append(boundaries)
    options = options_of(function, scale, causal, window, softcap, alibi_slopes)
    queries, keys = (np.diff(cu) for cu in starts)
    if len(queries) != len(keys):
        raise ValueError(
            f"{function}: cu_seqlens_k has {len(keys)} sequences, cu_seqlens_q has {len(queries)}; expected as many"
        )
    options["q_offset"] = keys - queries
    dropped = _dropout(function, dropout_p, tensor)
    if block_table is not None:
        k, v = (as_numpy(function, name, x) for name, x in (("k", k), ("v", v)))
        rows = rows_of_pages(function, block_table, k, v, keys)
        k, v = (as_given(x.reshape(-1, *x.shape[2:])[rows], tensor) for x in (k, v))
        q = q.detach() if tensor else q
    check_shapes(function, q, k, v, "(total, H, D)")
    out: Any
    lse: Any
    if tensor:
        from npkernels._torch_attention import tensor_attention

        out, lse = tensor_attention(
            function, q, k, v, cu_seqlens=(starts[0], starts[1]), return_lse=want_probs, **dropped, **options
        )
    else:
        result = attention_varlen(q, k, v, starts[0], starts[1], return_lse=want_probs, **options)
        out, lse = result if want_probs else (result, None)
    if not want_probs:
        return out
    probs = np.zeros(0, np.float32)
    if dropped:
        q, k = (as_numpy(function, name, x) for name, x in (("q", q), ("k", k)))
        own = np.arange(len(k)) - np.repeat(starts[1][:-1], keys)
        one_hot = np.zeros((len(k), 1, int(longest[1])), q.dtype)
        one_hot[np.arange(len(k)), 0, own] = 1
        one_hot = np.broadcast_to(one_hot, (len(k), k.shape[1], one_hot.shape[2]))
        kept: Any
        all_of_them: Any
        kept, all_of_them = (
            attention_varlen(q, k, one_hot, starts[0], starts[1], **options, **more) for more in (dropped, {})
        )
        signed = np.where(kept == 0, -all_of_them, all_of_them)
        probs = np.zeros((len(keys), q.shape[1], int(longest[0]), int(longest[1])), q.dtype)
        for n, (start, end) in enumerate(zip(starts[0][:-1], starts[0][1:], strict=True)):
            probs[n, :, : end - start] = signed[start:end].swapaxes(0, 1)
    return out, lse, as_given(probs, tensor)


def pages_needed(function: str, block_table: Any, lengths: Array, page_size: int, pages: int) -> Array:
    """Return the block table as int64, with -1 behind the pages that sequences of these lengths need."""
    table = integers(function, "block_table", small(function, "block_table", block_table))
    if table.ndim != 2 or len(table) != len(lengths):
        shape_error(function, "block_table", table.shape, f"({len(lengths)}, blocks)")
    needed = -(-lengths // max(page_size, 1))
    if needed.size and needed.max() > table.shape[1]:
        n = int(np.argmax(needed))
        raise ValueError(
            f"{function}: block_table has {table.shape[1]} blocks of {page_size}, sequence {n} has {lengths[n]} keys; "
            f"expected {needed[n]} blocks"
        )
    used = np.arange(table.shape[1]) < needed[:, None]
    wrong = used & ((table < 0) | (table >= pages))
    if wrong.any():
        n, block = np.argwhere(wrong)[0].tolist()
        raise IndexError(
            f"{function}: block_table[{n}, {block}] is {table[n, block]}; expected a page from 0 to {pages - 1}"
        )
    result: Array = np.where(used, table, -1)
    return result


def rows_of_pages(function: str, block_table: Any, k: Array, v: Array, lengths: Array) -> Array:
    """Return which rows of the pages, counted through all of them, belong to sequences of these lengths, in order."""
    for name, x in (("k", k), ("v", v)):
        if x.ndim != 4:
            shape_error(function, name, x.shape, "(pages, page_size, Hk, D), since block_table is given")
    size = k.shape[1]
    table = pages_needed(function, block_table, lengths, size, len(k))
    parts = []
    for pages, length in zip(table, lengths.tolist(), strict=True):
        tokens = np.arange(length)
        parts.append(pages[tokens // size] * size + tokens % size)
    return np.concatenate([np.zeros(0, np.int64), *parts])
