"""Foolbox's gradient attacks with the fused steps of `npkernels.perturb`: `FGSM`, `FGM`, `LinfPGD`, `L2PGD`.

They are Foolbox's classes with the same arguments, for models on the CPU; only the loop over steps is another: step,
projection and clipping of an iterate are one call of `npkernels.perturb.pgd_step`.

>>> import torch, foolbox
>>> from npkernels.contrib.foolbox import LinfPGD
>>> net = torch.nn.Linear(2, 2)
>>> model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
>>> x, y = torch.rand(3, 2), torch.tensor([0, 1, 0])
>>> _, moved, _ = LinfPGD(steps=5)(model, x, y, epsilons=0.1)
>>> bool((moved - x).abs().max() <= 0.1 + 1e-6)
True
"""

from __future__ import annotations

import importlib
from typing import Any

from npkernels._party import party
from npkernels.perturb import pgd_step, random_in_ball

__all__ = ["FGM", "FGSM", "L2PGD", "LinfPGD"]

foolbox = party("npkernels.contrib.foolbox", "foolbox", "3.3", "foolbox>=3.3")
ep = party("npkernels.contrib.foolbox", "eagerpy", "0.30", "foolbox>=3.3")
_base = importlib.import_module("foolbox.attacks.base")
_LinfPGD: Any = foolbox.attacks.LinfPGD
_L2PGD: Any = foolbox.attacks.L2PGD
_FGSM: Any = foolbox.attacks.FGSM
_FGM: Any = foolbox.attacks.FGM


class _Fused:
    """The loop over steps. Random starts follow the seed of the framework whose arrays these are."""

    norm: Any
    steps: int
    random_start: bool
    rel_stepsize: float
    abs_stepsize: float | None
    get_loss_fn: Any
    value_and_grad: Any

    def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
        """As Foolbox calls it: perturbed inputs of the same kind."""
        _base.raise_if_kwargs(kwargs)
        start, restore = ep.astensor_(inputs)
        goal = _base.get_criterion(criterion)
        targeted = not isinstance(goal, foolbox.criteria.Misclassification)
        classes = getattr(goal, "target_classes" if targeted else "labels", None)
        if classes is None:
            raise ValueError(
                f"{type(self).__name__}: criterion is a {type(goal).__name__}; expected Misclassification or "
                "TargetedMisclassification"
            )
        loss = self.get_loss_fn(model, classes)
        step = self.rel_stepsize * epsilon if self.abs_stepsize is None else self.abs_stepsize
        limits: dict[str, Any] = {"norm": self.norm, "bounds": tuple(model.bounds)}
        center = x = start.raw
        if self.random_start:
            seed = int(ep.uniform(start, (1,), 0, 2**24).item())
            x = random_in_ball(center, epsilon, rng=seed, **limits)
        for _ in range(self.steps):
            _, gradient = self.value_and_grad(loss, ep.astensor(x))
            x = pgd_step(x, center, gradient.raw, step, epsilon, targeted=targeted, **limits)
        return restore(ep.astensor(x))


class LinfPGD(_Fused, _LinfPGD):  # type: ignore[misc]
    """`foolbox.attacks.LinfPGD`."""

    norm = "inf"


class L2PGD(_Fused, _L2PGD):  # type: ignore[misc]
    """`foolbox.attacks.L2PGD`."""

    norm = 2


class FGSM(_Fused, _FGSM):  # type: ignore[misc]
    """`foolbox.attacks.FGSM`."""

    norm = "inf"


class FGM(_Fused, _FGM):  # type: ignore[misc]
    """`foolbox.attacks.FGM`."""

    norm = 2
