"""The GRPO family's work in PyTorch, forward and backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import npkernels
from npkernels import PolicyLoss

Inputs = dict[str, Any]


def _clipped(torch: Any, logp: Any, old: Any, A: Any) -> Any:
    """``-min(rho A, clip(rho) A)``."""
    ratio = torch.exp(logp - old)
    return -torch.min(ratio * A, torch.clamp(ratio, 0.8, 1.2) * A)


def torch_policy_loss(_: Any, inputs: Inputs) -> Callable[[], PolicyLoss]:
    """As TRL has it: clipped loss, k3, mean of the sequences' means."""
    torch = importlib.import_module("torch")
    x = {k: torch.from_numpy(v) for k, v in inputs.items() if k != "beta"}
    logp, mask = x["logp"].clone().requires_grad_(), x["mask"].float()
    metrics = npkernels.policy_loss(**inputs).metrics  # computed by PyTorch in neither case

    def call() -> PolicyLoss:
        gap = x["ref_logp"] - logp
        kl = torch.exp(gap) - gap - 1
        token = _clipped(torch, logp, x["old_logp"], x["advantages"][:, None]) + inputs["beta"] * kl
        loss = ((token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
        (grad,) = torch.autograd.grad(loss, logp)
        return PolicyLoss(loss.detach().numpy(), metrics, grad.numpy())

    return call


def torch_token_policy_loss(_: Any, inputs: Inputs) -> Callable[[], PolicyLoss]:
    """The chain log_softmax, gather, clipped loss, backward."""
    torch = importlib.import_module("torch")
    logits, ids, old, A = (
        torch.from_numpy(inputs[name]) for name in ("logits", "ids", "old_logp", "advantages")
    )
    logits = logits.requires_grad_()

    def call() -> PolicyLoss:
        logp = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        loss = _clipped(torch, logp, old, A).mean()
        (grad,) = torch.autograd.grad(loss, logits)
        return PolicyLoss(loss.detach().numpy(), None, None, grad)  # type: ignore[arg-type]

    return call
