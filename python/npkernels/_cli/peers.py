"""The same work in other libraries."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npkernels import TokenStats
from npkernels._arrays import Array, is_bfloat16
from npkernels._cli import peers_grpo
from npkernels._cli.workloads import Call, Inputs, Workload
from npkernels._types import AttentionGrads


@dataclass(frozen=True)
class Peer:
    """A library: what to install, and by kernel what makes its call of a workload."""

    install: str
    calls: dict[str, Callable[[Workload, Inputs], Call]]


def _torch() -> Any:
    return importlib.import_module("torch")


def _tensor(x: Array) -> Any:
    """A tensor over the memory of an array."""
    torch = _torch()
    return (
        torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        if is_bfloat16(x.dtype)
        else torch.from_numpy(x)
    )


def _torch_softmax(workload: Workload, inputs: Inputs) -> Call:
    function, x = getattr(_torch(), workload.kernel), _tensor(inputs["x"])
    out = _torch().empty_like(x)
    return lambda: function(x, -1, out=out)


def _torch_token_log_probs(_: Workload, inputs: Inputs) -> Call:
    x, ids = _tensor(inputs["logits"]), _tensor(inputs["ids"])[:, None]

    def call() -> TokenStats[Any]:
        log_p = x.log_softmax(-1)
        chosen = log_p.gather(-1, ids)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return TokenStats(log_prob=chosen[:, 0], entropy=entropy, lse=(x.gather(-1, ids) - chosen)[:, 0])

    return call


def _torch_token_log_probs_vjp(_: Workload, inputs: Inputs) -> Call:
    """The backward pass alone; its graph stands."""
    torch = _torch()
    x = _tensor(inputs["logits"]).requires_grad_()
    chosen = x.log_softmax(-1).gather(-1, _tensor(inputs["ids"])[:, None])[:, 0]
    cotangent = _tensor(inputs["dlogp"]).to(x.dtype)
    return lambda: torch.autograd.grad(chosen, x, cotangent, retain_graph=True)[0]


def _torch_cross_entropy(_: Workload, inputs: Inputs) -> Call:
    torch = _torch()
    x, targets = _tensor(inputs["logits"]).requires_grad_(), _tensor(inputs["targets"])

    def call() -> tuple[Any, Any]:
        loss = torch.nn.functional.cross_entropy(x, targets)
        return loss, torch.autograd.grad(loss, x)[0]

    return call


def _torch_attention(workload: Workload, inputs: Inputs) -> Call:
    q, k, v = (_tensor(inputs[name]) for name in "qkv")
    return _torch_sdpa(workload, q, k, v)


def _torch_sdpa(workload: Workload, q: Any, k: Any, v: Any) -> Call:
    """Attention of tensors; a window as the boolean mask that it is."""
    torch = _torch()
    options: dict[str, Any] = {"is_causal": workload.options["causal"]}
    if window := workload.options["window"]:
        ones = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        options = {"attn_mask": ones.tril() & ones.triu(1 - window)}
    if workload.options["grouped"]:
        options["enable_gqa"] = True
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)


def _torch_attention_vjp(workload: Workload, inputs: Inputs) -> Call:
    torch = _torch()
    arrays = [_tensor(inputs[name]).requires_grad_() for name in "qkv"]
    dout = _tensor(inputs["dout"])
    forward = _torch_sdpa(workload, *arrays)
    return lambda: AttentionGrads(*torch.autograd.grad(forward(), arrays, dout))


def _torch_rotary(_: Workload, inputs: Inputs) -> Call:
    """As the Llama of transformers has it: ``x * cos + rotate_half(x) * sin``."""
    torch = _torch()
    x, cos, sin = _tensor(inputs["x"]), *(torch.cat([_tensor(inputs[t])] * 2, -1) for t in ("cos", "sin"))
    half = x.shape[-1] // 2
    return lambda: x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _torch_sign_step(workload: Workload, inputs: Inputs) -> Call:
    x, g, eps = _tensor(inputs["x"]), _tensor(inputs["grad"]), workload.rows(inputs)[0][2]
    return lambda: (x + eps * g.sign()).clamp(0, 1)


def _torch_pgd_step(workload: Workload, inputs: Inputs) -> Call:
    x, c, g = (_tensor(inputs[name]) for name in ("x", "center", "grad"))
    step, eps = workload.rows(inputs)[0][3:]
    return lambda: (c + (x + step * g.sign() - c).clamp(-eps, eps)).clamp(0, 1)


def _torch_project_l1(workload: Workload, inputs: Inputs) -> Call:
    """By sorting, as Duchi et al. 2008 have it and as published attacks in PyTorch do."""
    torch = _torch()
    x, c, eps = _tensor(inputs["x"]), _tensor(inputs["center"]), workload.rows(inputs)[0][2]

    def call() -> Any:
        d = x - c
        a = d.abs()
        falling = a.sort(dim=1, descending=True).values
        sums = falling.cumsum(1) - eps
        ranks = torch.arange(1, a.shape[1] + 1, dtype=a.dtype)
        last = (falling * ranks > sums).sum(1, keepdim=True)
        t = sums.gather(1, last - 1) / last
        return torch.where(a.sum(1, keepdim=True) <= eps, x, c + d.sign() * (a - t).clamp(min=0))

    return call


def _scipy_softmax(workload: Workload, inputs: Inputs) -> Call:
    function, x = getattr(importlib.import_module("scipy.special"), workload.kernel), inputs["x"]
    return lambda: function(x, axis=-1)


PEERS = {
    "torch": Peer(
        "npkernels[peers]",
        {
            "softmax": _torch_softmax,
            "log_softmax": _torch_softmax,
            "token_log_probs": _torch_token_log_probs,
            "token_log_probs_vjp": _torch_token_log_probs_vjp,
            "cross_entropy": _torch_cross_entropy,
            "attention": _torch_attention,
            "attention_vjp": _torch_attention_vjp,
            "cached_attention": _torch_attention,
            "rotary_embedding": _torch_rotary,
            "policy_loss": peers_grpo.torch_policy_loss,
            "token_policy_loss": peers_grpo.torch_token_policy_loss,
            "perturb.sign_step": _torch_sign_step,
            "perturb.pgd_step": _torch_pgd_step,
            "perturb.project": _torch_project_l1,
        },
    ),
    "scipy": Peer("scipy", {"softmax": _scipy_softmax, "log_softmax": _scipy_softmax}),
}


def installed() -> list[str]:
    """Names of the peers that are installed."""
    return [name for name in PEERS if importlib.util.find_spec(name) is not None]


def choose(names: Sequence[str] | None) -> list[str]:
    """Give the peers that were asked for, or all that are installed; ValueError if one cannot be had."""
    if names is None:
        return installed()
    for name in names:
        if name not in PEERS:
            raise ValueError(f"{name!r} is no peer; expected some of {', '.join(PEERS)}")
        if name not in installed():
            raise ValueError(f"{name} is not installed (pip install '{PEERS[name].install}')")
    return list(names)


def versions(names: Sequence[str]) -> dict[str, str]:
    """Give the versions of NumPy and of these peers."""
    return {name: importlib.metadata.version(name) for name in ("numpy", *names)}


def able(workload: Workload, names: Sequence[str]) -> list[str]:
    """Who can do a workload: npkernels, NumPy where it has the memory, and those of the peers that have it."""
    plain = [] if workload.numpy is None else ["numpy"]
    return ["npkernels", *plain, *(name for name in names if workload.kernel in PEERS[name].calls)]


def verified_call(name: str, workload: Workload, inputs: Inputs) -> Call:
    """Give the call that does a workload, after its answer was compared with the reference (AssertionError)."""
    if name == "npkernels":
        call = workload.ours(inputs)
        workload.verify(inputs, call())
        return call
    if name == "numpy" and workload.numpy is not None:
        call = workload.numpy(inputs)
    else:
        call = PEERS[name].calls[workload.kernel](workload, inputs)
    workload.verify_peer(inputs, call())
    return call


@contextlib.contextmanager
def threads(n: int, names: Sequence[str]) -> Iterator[bool]:
    """Let NumPy and the peers use n threads; gives whether NumPy could be told (that takes threadpoolctl)."""
    with contextlib.ExitStack() as stack:
        told = importlib.util.find_spec("threadpoolctl") is not None
        if told:
            limits = importlib.import_module("threadpoolctl").threadpool_limits
            stack.enter_context(limits(limits=n, user_api="blas"))
        if "torch" in names:
            before = _torch().get_num_threads()
            _torch().set_num_threads(n)
            stack.callback(_torch().set_num_threads, before)
        yield told
