"""Cases of the attention family."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from npkernels import reference
from npkernels._arrays import Array, compute_dtype
from npkernels._cli.attention_calls import Call, calls
from npkernels._cli.cases import NAN, Case, Cases, Inputs
from npkernels._cli.cases_cache import cached_attention
from npkernels._cli.cases_multi_head import multi_head_attention, multi_head_attention_vjp
from npkernels._cli.cases_rotary import merge_attention, rotary_embedding
from npkernels._cli.cases_varlen import attention_varlen, attention_varlen_vjp

DROPOUT = ("dropout_p", "dropout_seed")


def _attention(make: Inputs) -> Iterator[Case]:
    for call in calls(make):
        yield Case(call.label, call.qkv, {**call.options, "return_lse": True})


def _without_dropout(make: Inputs) -> Iterator[Call]:
    for call in calls(make):
        if not call.label.startswith("dropout"):
            for name in DROPOUT:
                call.options.pop(name, None)
            yield call


def _attention_weights(make: Inputs) -> Iterator[Case]:
    for call in _without_dropout(make):
        yield Case(call.label, call.qkv[:2], call.options)


def _attention_vjp(make: Inputs) -> Iterator[Case]:
    """Give o and lse as the reference has them, in the dtypes of the kernel's own."""
    work = compute_dtype(make.dtype)
    for call in calls(make):
        q, k, v = call.qkv
        options = call.options
        out, lse = forward(make.dtype, call)
        dout = like(make, out)
        if call.label.startswith("garbage in queries"):
            dout = make.behind(np.asarray(options["mask"])[:, :1], dout)
        if "bias" in options:
            options["want_dbias"] = True
        if "sinks" in options:
            options["want_dsinks"] = True
        if zlib.crc32(call.label.encode()) % 2:
            options["dlse"] = make.normal(lse.shape).astype(work)
        yield Case(call.label, (dout, q, k, v, out, lse), options)
        if call.label == "NaN in a late key":
            dout = dout.copy()
            dout[0, 0, 7, 3] = NAN
            yield Case(
                "NaN in dout", (dout, q, np.nan_to_num(k), v, np.nan_to_num(out), np.nan_to_num(lse)), options
            )


def forward(dtype: np.dtype[np.generic], call: Call) -> tuple[Array, Array]:
    """Output and lse of a call, rounded as the kernel rounds them."""
    with np.errstate(all="ignore"):
        out, lse = reference.attention(*call.qkv, **call.options, return_lse=True)
        return np.asarray(out).astype(dtype), np.asarray(lse).astype(compute_dtype(dtype))


def like(make: Inputs, x: Array) -> Array:
    """Normal numbers of that shape."""
    return make.normal(x.shape)


def _attention_jvp(make: Inputs) -> Iterator[Case]:
    for i, call in enumerate(_without_dropout(make)):
        dq, dk, dv = (like(make, x) for x in call.qkv)
        if call.hidden is not None:
            dk, dv = (make.behind(~call.hidden[:, None], x) for x in (dk, dv))
        yield Case(call.label, (*call.qkv, dq, dk, dv), {**call.options, "return_lse": i % 2 == 0})
        if call.label == "equal scores":
            dk[0, 0, 100, 2] = NAN
            yield Case(
                "NaN in a tangent", (*call.qkv, dq, dk, dv), {"causal": "bottom_right", "q_offset": 80}
            )


KERNELS: dict[str, Cases] = {
    "attention": _attention,
    "attention_vjp": _attention_vjp,
    "attention_jvp": _attention_jvp,
    "attention_weights": _attention_weights,
    "attention_varlen": attention_varlen,
    "attention_varlen_vjp": attention_varlen_vjp,
    "cached_attention": cached_attention,
    "multi_head_attention": multi_head_attention,
    "multi_head_attention_vjp": multi_head_attention_vjp,
    "merge_attention": merge_attention,
    "rotary_embedding": rotary_embedding,
    "rotary_embedding_vjp": rotary_embedding,
}
