"""Attacks: loops over the steps, for any callable that gives gradients of a loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, compute_dtype
from npkernels.perturb._arguments import INF, Bounds, amount, decay_of, finite
from npkernels.perturb._attack import Attack, Flag, Gradient, counted, generator, positive
from npkernels.perturb._result import AttackResult
from npkernels.perturb._steps import Norm, pgd_step, project, steepest_step

ArrayLike = npt.ArrayLike
ALPHA, RHO = 0.75, 0.75  # of APGD: the share of the new step, and of steps that should raise the loss


def fgsm(
    x: ArrayLike,
    grad_fn: Gradient,
    eps: ArrayLike,
    *,
    norm: Norm = "inf",
    bounds: Bounds = None,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    success: Flag | None = None,
) -> AttackResult:
    """One step of length eps along the steepest direction: the fast gradient (sign) method.

    Parameters
    ----------
    x : array_like (B, ...)
        Clean samples, within the bounds. Any CPU array; the callables get its kind.
    grad_fn : callable
        x -> gradient of the loss with respect to x, of x's shape, or (losses (B,), gradient). A gradient in a wider
        dtype is scaled before it is rounded.
    eps : float or array_like
        Length of the step: one number or one for each sample (B,).
    norm, bounds, targeted, mask
        As for `steepest_step`.
    success : callable, optional
        x -> bool (B,): whether a sample has the outcome that is wanted. A sample that has it stays as it is.

    Returns
    -------
    AttackResult
        ``.x``, ``.success``, ``.step``, ``.distance``, ``.loss``; arrays of the kind that came in.

    Raises
    ------
    TypeError, ValueError
        If an argument or what a callable gives has the wrong dtype, shape or range.
    AttackError
        If a callable raises; ``.result`` holds what was found before. Any other exception that ends an attack on its
        way, such as KeyboardInterrupt, has that attribute, too.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> w = np.array([1.0, -2.0])
    >>> result = npkernels.perturb.fgsm(np.zeros((1, 2)), lambda x: (x @ w, np.tile(w, (len(x), 1))), 0.5)
    >>> result.x, result.distance
    (array([[ 0.5, -0.5]]), array([0.5]))
    """
    attack = Attack("fgsm", x, grad_fn, eps, norm, bounds, mask, success, targeted)
    length = _length(attack, eps, "eps")
    with attack.kept():
        attack.look()
        if not attack.finished():
            g = attack.gradient()
            attack.move(steepest_step(attack.x, g, length, targeted=attack.targeted, **attack.options), g)
            attack.finish_run()
    return attack.result()


def pgd(
    x: ArrayLike,
    grad_fn: Gradient,
    *,
    eps: ArrayLike,
    step: ArrayLike | None = None,
    steps: int = 20,
    norm: Norm = "inf",
    bounds: Bounds = None,
    random_start: bool = False,
    restarts: int = 1,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    decay: float | None = None,
    success: Flag | None = None,
    rng: np.random.Generator | int | None = None,
    progress: bool = False,
) -> AttackResult:
    """Projected gradient ascent: `pgd_step` again and again, from the clean samples or from random points of the ball.

    A sample stops where it succeeds; the whole attack when all have.

    Parameters
    ----------
    eps : float or array_like
        Radius of the ball: one number or one for each sample (B,).
    step : float or array_like, optional
        Length of a step; without it ``2.5 eps / steps``.
    steps, restarts : int
        Steps of a run, and runs. Of several runs a sample keeps the one in which it succeeded, else that of largest
        loss (smallest if targeted); so more than one needs `success` or losses.
    random_start : bool
        Begin at a random point of the ball, uniform in the entries that the mask lets move (without a mask that of
        `random_in_ball`); runs after the first always do.
    decay : float, optional
        Follow the `momentum` of the gradients.
    rng : numpy.random.Generator or int, optional
        Of the random starts; needed for them.
    progress : bool
        Show a bar on a terminal, if tqdm is installed.
    x, grad_fn, norm, bounds, targeted, mask, success
        And returns and errors as for `fgsm`.

    References
    ----------
    .. [1] A. Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> def grad_fn(x):  # the loss |x - 1|^2 / 2
    ...     return ((x - 1) ** 2).sum(axis=1) / 2, x - 1
    >>> result = npkernels.perturb.pgd(np.zeros((1, 2)), grad_fn, eps=0.5, steps=5, norm=2)
    >>> result.x.round(4), result.loss.round(4)
    (array([[-0.3536, -0.3536]]), array([1.8321]))
    """
    name = "pgd"
    attack = Attack(name, x, grad_fn, eps, norm, bounds, mask, success, targeted)
    return _ascend(attack, step, 2.5, steps, random_start, restarts, decay, rng, progress)


def mi_fgsm(
    x: ArrayLike,
    grad_fn: Gradient,
    *,
    eps: ArrayLike,
    step: ArrayLike | None = None,
    steps: int = 10,
    decay: float = 1.0,
    norm: Norm = "inf",
    bounds: Bounds = None,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    success: Flag | None = None,
    progress: bool = False,
) -> AttackResult:
    """Momentum iterative FGSM: `pgd` along the `momentum` of the gradients, with steps of ``eps / steps``.

    Parameters
    ----------
    step : float or array_like, optional
        Length of a step; without it ``eps / steps``.
    x, grad_fn, eps, steps, decay, norm, bounds, targeted, mask, success, progress
        And returns and errors as for `pgd`.

    References
    ----------
    .. [1] Y. Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> result = npkernels.perturb.mi_fgsm(np.zeros((1, 2)), lambda x: x - 1, eps=0.5)
    >>> result.x
    array([[-0.5, -0.5]])
    """
    attack = Attack("mi_fgsm", x, grad_fn, eps, norm, bounds, mask, success, targeted)
    return _ascend(attack, step, 1.0, steps, False, 1, decay, None, progress)


def _ascend(
    attack: Attack,
    step: Any,
    reach: float,
    steps: int,
    random_start: bool,
    restarts: int,
    decay: float | None,
    rng: Any,
    progress: bool,
) -> AttackResult:
    positive(attack.name, "steps", steps)
    positive(attack.name, "restarts", restarts)
    length = _length(attack, np.asarray(attack.eps) * (reach / steps) if step is None else step)
    factor = None if decay is None else decay_of(attack.name, decay)
    attack.signs = attack.signs and factor is None
    random = generator(attack.name, rng) if random_start or restarts > 1 else None
    with attack.kept():
        for k in counted(steps * restarts, attack.name, progress):
            if k % steps == 0:
                if k > 0:
                    attack.finish_run()
                    if attack.success is None and attack.loss is None:
                        raise ValueError(
                            f"{attack.name}: restarts need losses from grad_fn, or success, to choose by"
                        )
                if random is not None and (k > 0 or random_start):
                    attack.restart(random)
                velocity = None if factor is None else np.zeros_like(attack.clean)
            attack.look()
            if attack.finished():
                break
            g = attack.gradient()
            move: dict[str, Any] = {} if factor is None else {"momentum": velocity, "decay": factor}
            x, c, r = attack.x, attack.clean, attack.eps
            attack.move(pgd_step(x, c, g, length, r, targeted=attack.targeted, **attack.options, **move), g)
        attack.finish_run()
    return attack.result()


def _length(attack: Attack, value: Any, what: str = "step") -> Any:
    """The length of a step, checked."""
    one, each = finite(attack.name, what, amount(attack.name, what, value, attack.clean, attack.code))
    return one if each is None else each


def apgd(
    x: ArrayLike,
    grad_fn: Gradient,
    *,
    eps: ArrayLike,
    steps: int = 100,
    norm: Norm = "inf",
    bounds: Bounds = None,
    random_start: bool = False,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    success: Flag | None = None,
    rng: np.random.Generator | int | None = None,
    progress: bool = False,
) -> AttackResult:
    """Auto-PGD: `pgd` with momentum whose steps are halved, for each sample, where they stop to pay.

    Begins with steps of 2 eps. At checkpoints that come closer (0.22, 0.41, ... of the steps) a sample whose loss rose
    in less than 0.75 of the steps since the last one, or whose best loss and step are what they were there, goes on
    from its best point with half the step.

    Parameters
    ----------
    grad_fn : callable
        x -> (losses (B,), gradient): here the losses are needed.
    eps : float or array_like
        Radius of the ball: one number or one for each sample (B,).
    norm : "inf" or 2
        The algorithm for 1 is another one.
    x, steps, bounds, random_start, targeted, mask, success, rng, progress
        And returns and errors as for `pgd`.

    References
    ----------
    .. [1] F. Croce, M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
       attacks", ICML 2020.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> def grad_fn(x):
    ...     return ((x - 1) ** 2).sum(axis=1) / 2, x - 1
    >>> result = npkernels.perturb.apgd(np.zeros((1, 2)), grad_fn, eps=0.5, steps=10)
    >>> result.x, result.loss
    (array([[-0.5, -0.5]]), array([2.25]))
    """
    name = "apgd"
    attack = Attack(name, x, grad_fn, eps, norm, bounds, mask, success, targeted)
    positive(name, "steps", steps)
    if attack.code == 1:
        raise ValueError(f'{name}: norm is {norm!r}; expected "inf" or 2')
    if random_start:
        attack.restart(generator(name, rng))
    radius = np.asarray(_length(attack, eps, "eps"), np.float64)
    if radius.ndim > 1:
        raise ValueError(f"{name}: eps has shape {radius.shape}; expected one number or one for each sample")
    schedule = _Schedule(np.broadcast_to(2 * radius, len(attack.clean)), steps)
    with attack.kept():
        _adapt(attack, schedule, steps, progress)
    return attack.result()


def _adapt(attack: Attack, schedule: _Schedule, steps: int, progress: bool) -> None:
    """The loop of `apgd`."""
    wide = compute_dtype(attack.clean.dtype)
    before = attack.x
    attack.look()
    for k in counted(steps, attack.name, progress):
        if attack.finished():
            break
        g = attack.gradient()
        if attack.loss is None:
            raise ValueError(f"{attack.name}: grad_fn gave no losses; expected a pair (losses, gradient)")
        again = schedule.halve(k, -attack.loss if attack.targeted else attack.loss, attack.best_loss)
        if again.any():  # from the best points, where the gradient is another one
            attack.x = attack.where(again & ~attack.found, attack.best, attack.x)
            before = attack.where(again, attack.x, before)
            g = attack.gradient()
        x, c, r = attack.x, attack.clean, attack.eps
        z = pgd_step(x, c, g, schedule.step, r, targeted=attack.targeted, **attack.options)
        now, step = x.astype(wide), z.astype(wide) - x.astype(wide)
        alpha = 1.0 if k == 0 else ALPHA
        mixed = now + alpha * step + (1 - alpha) * (now - before.astype(wide))
        before = x
        attack.move(project(mixed.astype(c.dtype), c, r, **attack.options), g)
        attack.look()
    attack.complete()


class _Schedule:
    """Lengths of APGD's steps, for each sample, and the checkpoints at which they are halved."""

    def __init__(self, step: Array, steps: int) -> None:
        shares = [0.0, 0.22]
        while shares[-1] < 1:
            shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
        self.points = [int(np.ceil(p * steps)) for p in shares]
        self.step = np.array(step, np.float64)
        self.rises = np.zeros(len(self.step))
        self.last = np.full(len(self.step), -INF)
        self.kept = (
            np.full(len(self.step), -INF),
            np.full(len(self.step), INF),
        )  # best loss and step at the last point

    def halve(self, k: int, loss: Array, best: Array) -> Array:
        """Take note of the losses at step k; which samples go back to their best point."""
        self.rises += (loss > self.last) & (k > 0)
        self.last = loss
        if k == 0 or k not in self.points:
            return np.zeros(len(self.step), bool)
        since = k - self.points[self.points.index(k) - 1]
        few = self.rises < RHO * since
        stuck = (best <= self.kept[0]) & (self.step == self.kept[1])
        self.kept = (best.copy(), self.step.copy())
        self.rises[:] = 0
        self.step = np.where(few | stuck, self.step / 2, self.step)
        return np.asarray(few | stuck)
