"""ART's gradient attacks with the fused steps of `npkernels.perturb`: `FastGradientMethod`, `ProjectedGradientDescent`.

They are ART's classes (the second is its `ProjectedGradientDescentNumpy`) with the same arguments; only a step is
another: step, projection and clipping are one call of `npkernels.perturb.pgd_step`. Norm 1 is projected exactly, where
ART scales down, and bounds hold after the projection.

    from npkernels.contrib.art import ProjectedGradientDescent

    moved = ProjectedGradientDescent(classifier, eps=8 / 255, eps_step=2 / 255, max_iter=20).generate(images, labels)

ART is imported when one of them is asked for; an ImportError then says what to install.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._party import party
from npkernels.perturb import momentum as add_momentum
from npkernels.perturb import pgd_step, random_in_ball

__all__ = ["FastGradientMethod", "ProjectedGradientDescent"]  # noqa: F822  (by __getattr__)

Array = npt.NDArray[Any]
_BASES = {
    "FastGradientMethod": "FastGradientMethod",
    "ProjectedGradientDescent": "ProjectedGradientDescentNumpy",
}
_float = np.float32  # as ART computes


def __getattr__(name: str) -> Any:
    if name not in _BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _made(name)


@functools.cache
def _made(name: str) -> type:
    attacks = party(
        "npkernels.contrib.art", "art.attacks.evasion", "1.17", "adversarial-robustness-toolbox>=1.17"
    )
    base = getattr(attacks, _BASES[name])
    text = f"`art.attacks.evasion.{_BASES[name]}`, by fused steps."
    return type(name, (_Fused, base), {"__module__": __name__, "__doc__": text})


class _Fused:
    """One step for all samples, in batches, as ART's attacks ask for it. Random starts follow NumPy's global seed."""

    estimator: Any
    norm: Any
    targeted: bool
    batch_size: int
    summary_writer: Any

    def _compute(
        self,
        x: Array,
        x_init: Array,
        y: Array,
        mask: Array | None,
        eps: Any,
        eps_step: Any,
        project: bool,
        random_init: bool,
        batch_id_ext: int | None = None,
        decay: float | None = None,
        momentum: Array | None = None,
    ) -> Array:
        if x.dtype == object:
            raise TypeError(f"{type(self).__name__}: x has dtype object; expected samples of one shape")
        limits: dict[str, Any] = {"norm": "inf" if self.norm in ("inf", np.inf) else self.norm}
        clip = self.estimator.clip_values
        limits["bounds"] = None if clip is None else tuple(clip)
        moved = np.array(x, _float)
        center = np.asarray(x_init, _float)
        may_move = None if mask is None else np.broadcast_to(np.asarray(mask) != 0, x.shape)
        if random_init:
            seed = int(np.random.randint(2**31))  # noqa: NPY002  (as ART draws its own)
            start = random_in_ball(moved, _lengths(eps, slice(None), len(x), x.ndim), rng=seed, **limits)
            moved = start if may_move is None else np.where(may_move, start, moved)
        for first in range(0, len(x), self.batch_size):
            at = slice(first, first + self.batch_size)
            part = None if may_move is None else may_move[at]
            grad = np.asarray(self.estimator.loss_gradient(moved[at], y[at]), _float)
            if decay is not None and momentum is not None:  # ART keeps it from step to step
                momentum[...] = add_momentum(momentum.astype(_float), grad, decay=decay, mask=part)
                grad = momentum.astype(_float)
            radius, step = (_lengths(e, at, len(x), x.ndim) for e in (eps if project else np.inf, eps_step))
            pgd_step(
                moved[at],
                center[at],
                grad,
                step,
                radius,
                targeted=bool(self.targeted),
                mask=part,
                out=moved[at],
                **limits,
            )
        return moved


def _lengths(given: Any, at: slice, samples: int, ndim: int) -> Any:
    """Return a radius or a step for some samples: ART's arrays broadcast to x, `perturb`'s have one number for each."""
    array = np.asarray(given, _float)
    array = array.reshape((1,) * (ndim - array.ndim) + array.shape)
    array = array[at] if len(array) == samples else array
    if array.size == 1:
        return float(array.item())
    return array.reshape(-1) if array.size == len(array) else array
