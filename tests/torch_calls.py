"""One ordinary differentiable call of every function of npkernels.torch, for tests that vary all else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

import npkernels.torch as nt


@dataclasses.dataclass
class Call:
    function: Callable[..., Any]
    wrt: tuple[torch.Tensor, ...]  # what derivatives are with respect to; the first arguments, or `named`
    rest: tuple[Any, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    named: tuple[str, ...] = ()  # the last of `wrt` are these options
    outputs: tuple[str, ...] = ()  # the differentiable fields of the result
    forward_mode: bool = True

    def __call__(self, *wrt):
        """The differentiable results, as a tuple."""
        first = len(wrt) - len(self.named)
        named = dict(zip(self.named, wrt[first:], strict=True))
        result = self.function(*wrt[:first], *self.rest, **self.options, **named)
        if self.outputs:
            return tuple(getattr(result, name) for name in self.outputs)
        return result if isinstance(result, tuple) else (result,)

    def leaves(self, dtype=None):
        """New leaves with the same values."""
        return tuple(x.detach().clone().to(dtype or x.dtype).requires_grad_() for x in self.wrt)


def make(name, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    def leaf(*shape):
        return normal(*shape).requires_grad_()

    some = torch.rand(3, 7, generator=g) < 0.8
    some[:, 0] = True
    ids = torch.tensor([1, 2, 6])
    ids2 = torch.randint(0, 6, (2, 5), generator=g)
    keep = torch.rand(2, 5, generator=g) < 0.8
    cu_q, cu_k = torch.tensor([0, 2, 5]), torch.tensor([0, 3, 6])
    q, k, v = leaf(2, 4, 3, 5), leaf(2, 2, 6, 5), leaf(2, 2, 6, 4)
    old, logp = -abs(normal(2, 5)), (-abs(normal(2, 5))).requires_grad_()
    policy = {"ref_logp": old - 0.1, "beta": 0.1, "mask": keep, "clip": (0.2, 0.3)}
    calls = {
        "softmax": lambda: Call(nt.softmax, (leaf(3, 7),), options={"mask": some}),
        "softmax, other axis": lambda: Call(nt.softmax, (leaf(3, 7),), (0,), {"temperature": 0.7}),
        "log_softmax": lambda: Call(nt.log_softmax, (leaf(3, 7),), options={"temperature": 0.7}),
        "logsumexp": lambda: Call(nt.logsumexp, (leaf(3, 7),), options={"mask": some, "keepdims": True}),
        "entropy": lambda: Call(nt.entropy, (leaf(3, 7),), options={"mask": some, "temperature": 0.7}),
        "entropy, other axis": lambda: Call(nt.entropy, (leaf(3, 7),), (0,)),
        "token_log_probs": lambda: Call(
            nt.token_log_probs, (leaf(3, 7),), (ids,), {"temperature": 0.8}, outputs=("log_prob", "entropy")
        ),
        "token_log_probs, log_prob": lambda: Call(
            nt.token_log_probs, (leaf(3, 7),), (ids,), {"stats": ("rank",)}, outputs=("log_prob",)
        ),
        "cross_entropy": lambda: Call(
            nt.cross_entropy,
            (leaf(3, 7),),
            (torch.tensor([1, -100, 6]),),
            {"weight": abs(normal(7)), "label_smoothing": 0.1},
        ),
        "cross_entropy, none": lambda: Call(
            nt.cross_entropy, (leaf(3, 7, 2),), (ids[:, None].repeat(1, 2),), {"reduction": "none", "axis": 1}
        ),
        "policy_loss": lambda: Call(
            nt.policy_loss, (logp,), (old, normal(2)), policy, outputs=("loss",)
        ),
        "policy_loss, packed": lambda: Call(
            nt.policy_loss,
            (logp.detach().reshape(-1).requires_grad_(),),
            (old.reshape(-1), normal(2)),
            {"cu_seqlens": torch.tensor([0, 4, 10]), "loss": "gspo", "sampler_logp": old.reshape(-1) - 0.01,
             "importance": ("token-truncate", 2.0)},
            outputs=("loss",),
        ),
        "token_policy_loss": lambda: Call(
            nt.token_policy_loss,
            (leaf(2, 5, 6),),
            (ids2, old, normal(2)),
            policy | {"entropy": True, "temperature": 0.9},
            outputs=("loss",),
        ),
        "attention": lambda: Call(
            nt.attention, (q, k, v), options={"causal": "bottom_right", "return_lse": True, "scale": 0.3}
        ),
        "attention, plain": lambda: Call(nt.attention, (q, k, v)),
        "attention, memory order": lambda: Call(
            lambda q, k, v, **o: nt.attention(*(x.transpose(1, 2) for x in (q, k, v)), **o),
            (leaf(2, 3, 4, 5), leaf(2, 6, 2, 5), leaf(2, 6, 2, 4)),
            options={"window": (1, -1), "q_offset": 2, "mask": torch.rand(3, 6, generator=g) < 0.9},
        ),
        "attention, bias and sinks": lambda: Call(
            nt.attention,
            (q, k, v, leaf(4, 1, 6), leaf(4)),
            options={"softcap": 2.0, "return_lse": True, "alibi_slopes": abs(normal(4))},
            named=("bias", "sinks"),
            forward_mode=False,
        ),
        "attention, dropout": lambda: Call(
            nt.attention,
            (q, k, v),
            options={"dropout_p": 0.3, "dropout_seed": 2**64 - 5, "kv_lengths": torch.tensor([6, 4])},
            forward_mode=False,
        ),
        "attention_varlen": lambda: Call(
            nt.attention_varlen,
            (leaf(5, 4, 3), leaf(6, 2, 3), leaf(6, 2, 2), leaf(4)),
            (cu_q, cu_k),
            {"causal": "bottom_right", "return_lse": True},
            named=("sinks",),
            forward_mode=False,
        ),
    }  # fmt: skip
    return calls[name]() if name is not None else list(calls)


NAMES = make(None)
