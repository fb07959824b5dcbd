"""Foolbox's gradient attacks with the fused steps of `npkernels.perturb`: `FGSM`, `FGM`, `LinfPGD`, `L2PGD`.

They are Foolbox's classes with the same arguments, for models on the CPU; only the loop over steps is another: step,
projection and clipping of an iterate are one call of `npkernels.perturb.pgd_step`.

    from npkernels.contrib.foolbox import LinfPGD

    _, moved, success = LinfPGD(steps=20)(model, images, labels, epsilons=8 / 255)

Foolbox is imported when one of them is asked for; an ImportError then says what to install.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from npkernels._party import party
from npkernels.perturb import pgd_step, random_in_ball

__all__ = ["FGM", "FGSM", "L2PGD", "LinfPGD"]  # noqa: F822  (by __getattr__)

_NORMS: dict[str, Any] = {"FGSM": "inf", "FGM": 2, "LinfPGD": "inf", "L2PGD": 2}


def _foolbox() -> Any:
    return party("npkernels.contrib.foolbox", "foolbox", "3.3", "foolbox>=3.3")


def __getattr__(name: str) -> Any:
    if name not in _NORMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _made(name)


@functools.cache
def _made(name: str) -> type:
    base = getattr(_foolbox().attacks, name)
    text = f"`foolbox.attacks.{name}`, by fused steps."
    return type(name, (_Fused, base), {"norm": _NORMS[name], "__module__": __name__, "__doc__": text})


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
        foolbox, ep = _foolbox(), importlib.import_module("eagerpy")
        _base = importlib.import_module("foolbox.attacks.base")
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
