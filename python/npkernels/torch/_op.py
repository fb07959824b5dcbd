"""One function as PyTorch knows it: a short path, autograd in eager mode, and a custom operator for compilers.

What a function computes stands in `forward`, on tensors in CPU memory and plain Python options, in the order of the
schema. The three ways to it:

* Nothing watches (no gradient, no transform, no compiler): `forward` itself.
* Autograd, forward mode, torch.func: a `torch.autograd.Function`, which unlike a custom operator has a forward mode.
* torch.compile, torch.export, torch.jit.trace, fake tensors, subclasses, dispatch modes: the operator
  `torch.ops.npkernels.<name>`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active
_tracing: Callable[[], bool] = torch._C._is_tracing
_ORDINARY = (Tensor, torch.nn.Parameter)


class Op:
    """A function with its derivatives.

    Parameters
    ----------
    name, schema : str
        Of the custom operator; no schema, no operator (what only forward mode calls).
    forward : callable
        From the arguments to a tensor or a tuple of tensors.
    fake : callable
        The same for tensors that have no memory.
    setup : callable (ctx, inputs, output)
        Keeps what the derivatives need.
    backward : callable (ctx, *cotangents)
        Cotangent of every argument; None for those without. Without it: an error that says so.
    jvp : callable (ctx, *tangents), optional
        Tangent of every output.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any] | None = None,
        setup: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        jvp: Callable[..., Any] | None = None,
    ) -> None:
        self.name = name
        self.forward = forward
        members: dict[str, Any] = {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup or _keep_nothing),
            "backward": staticmethod(backward or _refusal(name)),
            "vmap": staticmethod(self._one_by_one),
        }
        members["jvp"] = staticmethod(jvp or _refusal(name, forward=True))
        self.function: Any = type(f"npkernels_{name}", (torch.autograd.Function,), members)
        self.overload: Any = None
        if schema:
            operator = torch.library.custom_op(
                f"npkernels::{name}", forward, mutates_args=(), device_types="cpu", schema=schema
            )
            assert fake is not None
            operator.register_fake(fake)
            operator.register_autograd(backward or _refusal(name), setup_context=setup)
            operator.register_vmap(self._one_by_one)
            self.overload = getattr(torch.ops.npkernels, name).default

    def __call__(self, *args: Any) -> Any:
        """Call it the shortest way that loses nothing."""
        if torch.compiler.is_compiling() or (_tracing() and self.overload is not None):
            return self.overload(*args)
        watched = False
        ordinary = _modes() == 0
        for x in args:
            if isinstance(x, Tensor):
                watched = watched or x.requires_grad
                ordinary = ordinary and type(x) in _ORDINARY
        if not ordinary and self.overload is not None:
            return self.overload(*args)
        way: Callable[..., Any] = self.forward
        if _transforms() or forward_ad._current_level >= 0 or (watched and torch.is_grad_enabled()):
            way = self.function.apply
        try:
            return way(*args)
        except RuntimeError as error:
            if "Batching rule" not in str(error):
                raise
            raise NotImplementedError(
                f"npkernels.torch.{_function(self.name)}: PyTorch's prototype of vmap (is_grads_batched=True, "
                "torch.autograd.functional with vectorize=True) was asked for; expected torch.func, as in "
                "torch.func.jacrev or torch.func.vmap"
            ) from error

    def _one_by_one(self, info: Any, in_dims: Any, *args: Any) -> Any:
        """Under vmap: one call after the other. Of none at all the shapes are those of a call on zeros."""
        none = not info.batch_size
        if none:
            args = tuple(
                a.new_zeros([n or 1 if axis == d else n for axis, n in enumerate(a.shape)])
                if isinstance(d, int)
                else a
                for a, d in zip(args, in_dims, strict=True)
            )

        def at(i: int) -> list[Any]:
            return [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]

        def stacked(parts: Any) -> Tensor:
            return torch.stack(parts)[:0] if none else torch.stack(parts)

        results = [self(*at(i)) for i in range(info.batch_size or 1)]
        if isinstance(results[0], Tensor):
            return stacked(results), 0
        return tuple(stacked(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


def derivative_wanted(x: Tensor) -> bool:
    """Whether anything will ask for a derivative with respect to x."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    return not torch.compiler.is_compiling() and (_transforms() or forward_ad._current_level >= 0)


def anchor(x: Tensor) -> Tensor | None:
    """Return a tensor without entries that hangs on the graph of x, but not on its memory.

    A loss keeps its gradient, which looks like a constant; by this its second derivative is seen to be asked for.
    """
    if torch.compiler.is_compiling() or _tracing() or not x.dim():
        return None
    return x.narrow(-1, 0, 0).clone()


def _keep_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    pass


def _function(name: str) -> str:
    """The function to which an operator belongs; the losses share theirs."""
    first = name.removesuffix("_backward").removesuffix("_jvp")
    return "cross_entropy, policy_loss, token_policy_loss" if first == "loss" else first


def _refusal(name: str, forward: bool = False) -> Callable[..., Any]:
    """Instead of a derivative that does not exist: an error, since leaving it out would give wrong numbers."""
    first = _function(name)
    if first == name and forward:
        what = "there is no forward mode"
    else:
        what = (
            "only first derivatives exist; a derivative of its derivative was asked for "
            "(create_graph=True, torch.func.hessian or their like)"
        )

    def derivative(ctx: Any, *cotangents: Any) -> Any:
        raise NotImplementedError(f"npkernels.torch.{first}: {what}")

    return derivative
