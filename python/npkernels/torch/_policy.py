"""Policy losses, with their gradients made in the same call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import npkernels
from npkernels._grpo_types import PolicyLoss, PolicyMetrics
from npkernels._torch_memory import to_numpy, to_torch
from npkernels.torch import _scaled
from npkernels.torch._bridge import compute_dtype, floats, numpy_or_none, others
from npkernels.torch._op import Op, anchor, derivative_wanted

_COUNTS = ("tokens", "sequences")
_MEANS = ("ratio", "clip_low", "clip_high", "old_kl", "kl", "importance", "entropy")
# The options that are no tensors, as both functions have them, with their types in a schema.
_OPTIONS = {
    "clip": "float[]",
    "loss": "str",
    "level": "str?",
    "aggregate": "str?",
    "kl": "str",
    "beta": "float",
    "kl_clamp": "float[]?",
    "dual_clip": "float?",
    "delta": "float?",
    "tau": "float[]?",
    "max_length": "SymInt?",
    "total_tokens": "float?",
    "importance_mode": "str?",
    "importance_cap": "float",
}
_LAST = "bool want_grad, Tensor? anchor"
_TENSORS = (
    "Tensor old_logp, Tensor advantages, Tensor? mask, Tensor? ref_logp, Tensor? sampler_logp, "
    "Tensor? cu_seqlens"
)
_SCHEMA = ", ".join(f"{kind} {name}" for name, kind in _OPTIONS.items())
_RETURNS = "(Tensor, Tensor, Tensor, Tensor)"


def _make(name: str, schema: str, function: Callable[..., Any], positional: tuple[str, ...]) -> Op:
    """Return the operator of `policy_loss` or `token_policy_loss`: to (loss, gradient, counts, means)."""
    names = [argument.split()[-1] for argument in schema.split(", ")]
    wrt = names[0]

    def forward(*args: Any) -> tuple[Tensor, ...]:
        given = dict(zip(names, args, strict=True))
        x, want, _ = given[wrt], given.pop("want_grad"), given.pop("anchor")
        mode, cap = given.pop("importance_mode"), given.pop("importance_cap")
        given["importance"] = None if mode is None else (mode, cap)
        arrays = {n: numpy_or_none(v) if isinstance(v, Tensor) else v for n, v in given.items()}
        grad = torch.empty(x.shape if want else 0, dtype=x.dtype)
        options: Any = {"return_grad": want, "out": to_numpy(grad) if want else None}
        first = [arrays.pop(p) for p in positional]
        result = function(*first, **arrays, **options)
        counts = [getattr(result.metrics, n) for n in _COUNTS]
        means = [0.0 if (m := getattr(result.metrics, n)) is None else m for n in _MEANS]
        dtype = compute_dtype(x.dtype)
        return to_torch(result.loss), grad, torch.tensor(counts), torch.tensor(means, dtype=dtype)

    def fake(*args: Any) -> tuple[Tensor, ...]:
        x, want = args[0], args[-2]
        dtype = compute_dtype(x.dtype)
        return (
            torch.empty((), dtype=dtype, device=x.device),
            torch.empty(x.shape if want else 0, dtype=x.dtype, device=x.device),
            torch.empty(len(_COUNTS), dtype=torch.int64, device=x.device),
            torch.empty(len(_MEANS), dtype=dtype, device=x.device),
        )

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        _scaled.keep(ctx, output[1], -1, True, inputs[-1])

    def backward(ctx: Any, d: Tensor, *rest: Any) -> Any:
        return (_scaled.backward(ctx, d), *(None,) * (len(names) - 1))

    def forward_mode(ctx: Any, dx: Tensor, *rest: Any) -> Any:
        return _scaled.forward_mode(ctx, dx), None, None, None

    return Op(name, f"({schema}) -> {_RETURNS}", forward, fake, setup, backward, forward_mode)


_policy_loss = _make(
    "policy_loss",
    f"Tensor logp, {_TENSORS}, Tensor? entropy, {_SCHEMA}, {_LAST}",
    npkernels.policy_loss,
    ("logp", "old_logp", "advantages"),
)
_token_policy_loss = _make(
    "token_policy_loss",
    f"Tensor logits, Tensor ids, {_TENSORS}, float temperature, bool entropy, {_SCHEMA}, {_LAST}",
    npkernels.token_policy_loss,
    ("logits", "ids", "old_logp", "advantages"),
)


def _result(output: Any, kl: bool, importance: bool, entropy: bool) -> PolicyLoss:
    loss, _, counts, means = output
    there = dict(zip((*_COUNTS, *_MEANS), (*counts.unbind(), *means.unbind()), strict=True))
    for name, wanted in (("kl", kl), ("importance", importance), ("entropy", entropy)):
        if not wanted:
            there[name] = None
    return PolicyLoss(loss=loss, metrics=PolicyMetrics(**there))


def _options(
    function: str,
    clip: Any,
    loss: str,
    level: str | None,
    aggregate: str | None,
    kl: str,
    beta: float,
    kl_clamp: Any,
    dual_clip: float | None,
    delta: float | None,
    tau: Any,
    max_length: int | None,
    total_tokens: float | None,
    importance: Any,
) -> tuple[Any, ...]:
    """In the order of the schema."""
    if importance is not None and (isinstance(importance, str) or len(importance) != 2):
        raise TypeError(f"{function}: importance is {importance!r}; expected (mode, largest ratio)")
    mode, cap = importance or (None, 0.0)
    pairs = [None if pair is None else [float(p) for p in pair] for pair in (clip, kl_clamp, tau)]
    return (
        pairs[0],
        loss,
        level,
        aggregate,
        kl,
        beta,
        pairs[1],
        dual_clip,
        delta,
        pairs[2],
        max_length,
        total_tokens,
        mode,
        cap,
    )


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    ref_logp: Tensor | None = None,
    clip: Sequence[float] = (0.2, 0.2),
    loss: str = "grpo",
    level: str | None = None,
    aggregate: str | None = None,
    kl: str = "k3",
    beta: float = 0.0,
    kl_clamp: Sequence[float] | None = None,
    dual_clip: float | None = None,
    delta: float | None = None,
    tau: Sequence[float] | None = None,
    max_length: int | None = None,
    total_tokens: float | None = None,
    sampler_logp: Tensor | None = None,
    importance: tuple[str, float] | None = None,
    entropy: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> PolicyLoss:
    """`npkernels.policy_loss` whose ``loss`` has a first derivative with respect to logp, backward and forward.

    Parameters
    ----------
    logp : Tensor (B, T), or packed (total,)
        Log-probabilities of the sampled tokens now: what the derivative is with respect to.
    old_logp, advantages, mask, ref_logp, sampler_logp, entropy, cu_seqlens : Tensor
        As for `npkernels.policy_loss`; constants, which must not require grad.
    clip, loss, level, aggregate, kl, beta, kl_clamp, dual_clip, delta, tau, max_length, total_tokens, importance
        As for `npkernels.policy_loss`.

    Returns
    -------
    PolicyLoss
        ``loss``, a tensor on the graph of logp, and ``metrics``, tensors without axes. ``dlogp`` is None.

    Raises
    ------
    TypeError, ValueError
        If an argument is no CPU tensor, requires grad where it is a constant, or has the wrong dtype, shape or value.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> logp = torch.tensor([[0.5, 1.0, 1.5]]).log().requires_grad_()
    >>> r = npkernels.torch.policy_loss(logp, torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 2.0]]), loss="ppo")
    >>> r.loss.backward()
    >>> logp.grad
    tensor([[-0.1667,  0.3333,  0.0000]])
    """
    function = "policy_loss"
    floats(function, logp=logp)
    others(function, old_logp=old_logp, advantages=advantages, mask=mask, ref_logp=ref_logp,
           sampler_logp=sampler_logp, entropy=entropy, cu_seqlens=cu_seqlens)  # fmt: skip
    chosen = _options(function, clip, loss, level, aggregate, kl, beta, kl_clamp, dual_clip, delta, tau, max_length,
                      total_tokens, importance)  # fmt: skip
    want = derivative_wanted(logp)
    output = _policy_loss(logp, old_logp, advantages, mask, ref_logp, sampler_logp, cu_seqlens, entropy, *chosen,
                          want, anchor(logp) if want else None)  # fmt: skip
    return _result(output, ref_logp is not None, sampler_logp is not None, entropy is not None)


def token_policy_loss(
    logits: Tensor,
    ids: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    ref_logp: Tensor | None = None,
    clip: Sequence[float] = (0.2, 0.2),
    loss: str = "grpo",
    level: str | None = None,
    aggregate: str | None = None,
    kl: str = "k3",
    beta: float = 0.0,
    kl_clamp: Sequence[float] | None = None,
    dual_clip: float | None = None,
    delta: float | None = None,
    tau: Sequence[float] | None = None,
    max_length: int | None = None,
    total_tokens: float | None = None,
    sampler_logp: Tensor | None = None,
    importance: tuple[str, float] | None = None,
    entropy: bool = False,
    cu_seqlens: Tensor | None = None,
) -> PolicyLoss:
    """`npkernels.token_policy_loss` whose ``loss`` has a first derivative with respect to the logits.

    The gradient is made together with the loss and kept instead of the logits: one read and one write of them.

    Parameters
    ----------
    logits : Tensor (B, T, V), or packed (total, V)
        What the derivative is with respect to.
    ids, old_logp, advantages, mask, ref_logp, sampler_logp, cu_seqlens : Tensor
        As for `npkernels.token_policy_loss`; constants, which must not require grad.
    temperature, clip, loss, level, aggregate, kl, beta, kl_clamp, dual_clip, delta, tau, max_length, total_tokens
        As for `npkernels.token_policy_loss`.
    importance, entropy
        As for `npkernels.token_policy_loss`.

    Returns
    -------
    PolicyLoss
        ``loss``, a tensor on the graph of logits, and ``metrics``, tensors without axes. ``dlogits`` is None.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> x = torch.zeros(1, 1, 2, requires_grad=True)
    >>> one = torch.ones(1)
    >>> r = npkernels.torch.token_policy_loss(x, torch.tensor([[0]]), torch.tensor([[0.5]]).log(), one)
    >>> r.loss.backward()
    >>> x.grad
    tensor([[[-0.5000,  0.5000]]])
    """
    function = "token_policy_loss"
    floats(function, logits=logits)
    others(function, ids=ids, old_logp=old_logp, advantages=advantages, mask=mask, ref_logp=ref_logp,
           sampler_logp=sampler_logp, cu_seqlens=cu_seqlens)  # fmt: skip
    chosen = _options(function, clip, loss, level, aggregate, kl, beta, kl_clamp, dual_clip, delta, tau, max_length,
                      total_tokens, importance)  # fmt: skip
    want = derivative_wanted(logits)
    output = _token_policy_loss(logits, ids, old_logp, advantages, mask, ref_logp, sampler_logp, cu_seqlens,
                                temperature, bool(entropy), *chosen, want,
                                anchor(logits) if want else None)  # fmt: skip
    return _result(output, ref_logp is not None, sampler_logp is not None, bool(entropy))
