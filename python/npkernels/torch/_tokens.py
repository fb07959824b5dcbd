"""Statistics of tokens, and the entropy of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import npkernels
from npkernels._tokens import STATISTICS
from npkernels._torch_memory import to_numpy, to_torch
from npkernels._types import TokenStats
from npkernels.torch._bridge import axis_of, compute_dtype, floats, numpy_or_none, others
from npkernels.torch._op import Op

_OUTPUTS = ("log_prob", *STATISTICS)
_WHOLE = ("top1", "rank")


def _forward(
    logits: Tensor, ids: Tensor, temperature: float, mask: Tensor | None, stats: Sequence[str]
) -> tuple[Tensor, ...]:
    values = npkernels.token_log_probs(
        to_numpy(logits),
        to_numpy(ids),
        temperature=temperature,
        mask=numpy_or_none(mask),
        stats=[*stats, "lse"],
    )
    return tuple(
        to_torch(value) if (value := getattr(values, name)) is not None else _absent(name, logits)
        for name in _OUTPUTS
    )


def _absent(name: str, logits: Tensor) -> Tensor:
    dtype = torch.int64 if name in _WHOLE else compute_dtype(logits.dtype)
    return torch.empty(0, dtype=dtype, device=logits.device)


def _fake(
    logits: Tensor, ids: Tensor, temperature: float, mask: Tensor | None, stats: Sequence[str]
) -> tuple[Tensor, ...]:
    there = ("log_prob", "lse", *stats)
    return tuple(
        torch.empty(ids.shape, dtype=absent.dtype, device=logits.device) if name in there else absent
        for name in _OUTPUTS
        for absent in [_absent(name, logits)]
    )


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    logits, ids, temperature, mask, stats = inputs
    _, entropy, lse, *_ = output
    ctx.with_entropy = "entropy" in stats
    ctx.mark_non_differentiable(*output[1 + ctx.with_entropy :])
    ctx.save_for_backward(logits, ids, lse, entropy, mask)
    ctx.save_for_forward(logits, ids, lse, entropy, mask)
    ctx.temperature = temperature
    ctx.set_materialize_grads(False)


def _pull(
    dlogp: Tensor,
    dentropy: Tensor | None,
    logits: Tensor,
    ids: Tensor,
    lse: Tensor,
    entropy: Tensor | None,
    temperature: float,
    mask: Tensor | None,
) -> Tensor:
    grad = torch.empty(logits.shape, dtype=logits.dtype)
    npkernels.token_log_probs_vjp(
        *(to_numpy(x) for x in (dlogp, logits, ids, lse)),
        dentropy=numpy_or_none(dentropy),
        entropy=None if dentropy is None else numpy_or_none(entropy),
        temperature=temperature,
        mask=numpy_or_none(mask),
        out=to_numpy(grad),
    )
    return grad


def _backward(ctx: Any, dlogp: Tensor | None, dentropy: Tensor | None, *rest: Any) -> Any:
    logits, ids, lse, entropy, mask = ctx.saved_tensors
    if not ctx.with_entropy:
        dentropy = None
    if dlogp is None:
        if dentropy is None:
            return (None,) * 5
        dlogp = torch.zeros_like(lse)
    return (_pulled(dlogp, dentropy, logits, ids, lse, entropy, ctx.temperature, mask), *(None,) * 4)


def _push(
    dx: Tensor,
    logits: Tensor,
    ids: Tensor,
    lse: Tensor,
    entropy: Tensor,
    temperature: float,
    mask: Tensor | None,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Each number depends on its own row: the tangent is the product of its gradient with the row's tangent."""
    wide = compute_dtype(logits.dtype)
    x, along = logits.to(wide), dx.to(wide)
    one = torch.ones_like(lse)
    rest = (x, ids, lse, entropy, temperature, mask)
    dlogp = (_pull(one, None, *rest) * along).sum(-1)
    if not with_entropy:
        return dlogp, torch.zeros_like(entropy)
    return dlogp, (_pull(torch.zeros_like(one), one, *rest) * along).sum(-1)


def _forward_mode(ctx: Any, dx: Tensor, *rest: Any) -> Any:
    logits, ids, lse, entropy, mask = ctx.saved_tensors
    dlogp, dentropy = _pushed(dx, logits, ids, lse, entropy, ctx.temperature, mask, ctx.with_entropy)
    return dlogp, dentropy if ctx.with_entropy else None, None, None, None, None


_pulled = Op(
    "token_log_probs_backward",
    "(Tensor dlogp, Tensor? dentropy, Tensor logits, Tensor ids, Tensor lse, Tensor? entropy, float temperature, "
    "Tensor? mask) -> Tensor",
    _pull,
    lambda dlogp, dentropy, logits, *rest: torch.empty(
        logits.shape, dtype=logits.dtype, device=logits.device
    ),
)
_pushed = Op("token_log_probs_jvp", "", _push)
_token_log_probs = Op(
    "token_log_probs",
    "(Tensor logits, Tensor ids, float temperature, Tensor? mask, str[] stats) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _setup,
    _backward,
    _forward_mode,
)


def token_log_probs(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    stats: Sequence[str] = STATISTICS,
) -> TokenStats[Tensor]:
    """`npkernels.token_log_probs` with first derivatives of ``log_prob`` and ``entropy``, backward and forward.

    Parameters
    ----------
    logits : Tensor (..., V)
        float32, float64, float16 or bfloat16, in CPU memory.
    ids : Tensor of int (...)
        The tokens, 0 <= id < V.
    temperature : float
        The distribution is ``p = softmax(logits / temperature)``.
    mask : Tensor of bool, optional
        Broadcasts to logits; False takes an entry of the vocabulary out.
    stats : sequence of str
        Any of "entropy", "lse", "sum_p2", "top1", "rank"; what is not asked for is None in the result. ``lse``,
        ``sum_p2``, ``top1`` and ``rank`` are constants to autograd; `logsumexp` has a derivative.

    Returns
    -------
    TokenStats
        ``log_prob`` and the asked statistics, each of the shape of ids.

    Raises
    ------
    IndexError
        If an id is outside the vocabulary.
    TypeError, ValueError
        If an argument is no CPU tensor, or has the wrong dtype, shape or value.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> npkernels.torch.token_log_probs(x, torch.tensor([0])).log_prob.sum().backward()
    >>> x.grad
    tensor([[ 0.5000, -0.5000]])
    """
    function = "token_log_probs"
    floats(function, logits=logits)
    others(function, ids=ids, mask=mask)
    if isinstance(stats, str) or any(s not in STATISTICS for s in stats):
        raise ValueError(
            f"{function}: stats is {stats!r}; expected a sequence of some of {', '.join(STATISTICS)}"
        )
    log_prob, *values = _token_log_probs(logits, ids, temperature, mask, list(stats))
    asked = [x if name in stats else None for name, x in zip(STATISTICS, values, strict=True)]
    return TokenStats(log_prob, *asked)


# Entropy along any axis. Its gradient is that of the token statistics, without a token.


def _entropy_forward(x: Tensor, axis: int, temperature: float, mask: Tensor | None) -> Tensor:
    options: Any = {"axis": axis, "temperature": temperature, "mask": numpy_or_none(mask)}
    return to_torch(npkernels.entropy(to_numpy(x), **options))


def _entropy_fake(x: Tensor, axis: int, temperature: float, mask: Tensor | None) -> Tensor:
    at = axis % max(x.dim(), 1)
    shape = [n for i, n in enumerate(x.shape) if i != at]
    return torch.empty(shape, dtype=compute_dtype(x.dtype), device=x.device)


def _entropy_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, axis, temperature, mask = inputs
    ctx.save_for_backward(x, output, mask)
    ctx.save_for_forward(x, output, mask)
    ctx.options = axis, temperature


def _entropy_pull(
    d: Tensor, x: Tensor, entropy: Tensor, axis: int, temperature: float, mask: Tensor | None
) -> Tensor:
    grad = torch.empty(x.shape, dtype=x.dtype)
    if not x.numel():
        return grad
    options: Any = {"temperature": temperature}
    values, allowed = to_numpy(x), numpy_or_none(mask)
    lse = npkernels.logsumexp(values, axis, mask=allowed, **options)
    if allowed is not None:
        options["mask"] = np.moveaxis(np.broadcast_to(allowed, values.shape), axis, -1)
    npkernels.token_log_probs_vjp(
        np.zeros(lse.shape, lse.dtype),
        np.moveaxis(values, axis, -1),
        np.zeros(lse.shape, np.int64),
        lse,
        dentropy=to_numpy(d),
        entropy=to_numpy(entropy),
        out=np.moveaxis(to_numpy(grad), axis, -1),
        **options,
    )
    return grad


def _entropy_backward(ctx: Any, d: Tensor) -> Any:
    x, entropy, mask = ctx.saved_tensors
    return _entropy_pulled(d, x, entropy, *ctx.options, mask), None, None, None


def _entropy_push(
    x: Tensor, dx: Tensor, entropy: Tensor, axis: int, temperature: float, mask: Tensor | None
) -> Tensor:
    wide = compute_dtype(x.dtype)
    grad = _entropy_pull(torch.ones_like(entropy), x.to(wide), entropy, axis, temperature, mask)
    return (grad * dx.to(wide)).sum(axis)


def _entropy_forward_mode(ctx: Any, dx: Tensor, *rest: Any) -> Any:
    x, entropy, mask = ctx.saved_tensors
    return _entropy_pushed(x, dx, entropy, *ctx.options, mask)


_entropy_pulled = Op(
    "entropy_backward",
    "(Tensor d, Tensor x, Tensor entropy, int axis, float temperature, Tensor? mask) -> Tensor",
    _entropy_pull,
    lambda d, x, *rest: torch.empty(x.shape, dtype=x.dtype, device=x.device),
)
_entropy_pushed = Op("entropy_jvp", "", _entropy_push)
_entropy = Op(
    "entropy",
    "(Tensor x, int axis, float temperature, Tensor? mask) -> Tensor",
    _entropy_forward,
    _entropy_fake,
    _entropy_setup,
    _entropy_backward,
    _entropy_forward_mode,
)


def entropy(
    logits: Tensor, axis: int = -1, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """`npkernels.entropy` with derivatives of first order, backward and forward; arguments as for `softmax`.

    The gradient is ``-p (log p + H) / temperature``. The result is float64 for float64, float32 for all other dtypes.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> npkernels.torch.entropy(x).backward()
    >>> x.grad
    tensor([ 0.1966, -0.1966])
    """
    floats("entropy", logits=logits)
    others("entropy", mask=mask)
    h: Tensor = _entropy(logits, axis_of("entropy", logits, axis), temperature, mask)
    return h
