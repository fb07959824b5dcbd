"""Perturbations at the size of a batch of images, and of one small image.

Bytes: a step reads x and the gradient and writes the result, 12 for a float32 entry; a step of PGD also reads the
center, 16. The L1 projection reads its samples several times, from cache; x and center once and the result are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npkernels import lipschitz, perturb
from npkernels._arrays import Array
from npkernels._cli import plain
from npkernels._cli.workloads import Call, Inputs, Limit, Workload, as_numpy, some

IMAGES = (256, 3, 224, 224)  # 154 MB of float32
STEP, EPS = 1e-4, 8 / 255


def _inputs(rng: np.random.Generator, shape: tuple[int, ...]) -> Inputs:
    c = rng.random(shape, dtype=np.float32)
    x = np.clip(c + np.float32(0.02) * rng.standard_normal(shape, dtype=np.float32), 0, 1)
    return {"x": x, "center": c, "grad": rng.standard_normal(shape, dtype=np.float32)}


def _rows(x: Any) -> Array:
    array = as_numpy(x)
    return array[some(len(array))]


def _workload(
    kernel: str,
    shape: tuple[int, ...],
    what: str,
    limit: Limit,
    per_entry: int,
    ours: Any,
    numpy: Any,
    names: tuple[str, ...],
    lengths: tuple[float, ...],
    options: dict[str, Any],
    quick: bool,
) -> Workload:
    entries = float(np.prod(shape))
    return Workload(
        kernel=f"perturb.{kernel}",
        family="perturb",
        dtype="float32",
        size=f"{'x'.join(map(str, shape))}{what}",
        limit=limit,
        flops=4 * entries,
        bytes=per_entry * entries,
        quick=quick,
        make=lambda rng: _inputs(rng, shape),
        ours=ours,
        numpy=numpy,
        rows=lambda inputs: ([*(_rows(inputs[name]) for name in names), *lengths], options),
        part=_rows,
        options=options,
    )


def sign_step(shape: tuple[int, ...], *, in_place: bool = False, quick: bool = False) -> Workload:
    """``clip(x + eps sign(g), 0, 1)``."""

    def ours(inputs: Inputs) -> Call:
        x = inputs["x"].copy() if in_place else inputs["x"]
        g, out = inputs["grad"], x if in_place else np.empty_like(x)
        return lambda: perturb.sign_step(x, g, STEP, bounds=(0.0, 1.0), out=out)

    def numpy(inputs: Inputs) -> Call:
        x, g, eps = inputs["x"], inputs["grad"], np.float32(STEP)
        return lambda: np.clip(x + eps * np.sign(g), 0, 1)

    limit: Limit = "copy" if np.prod(shape) > 1 << 20 else "none"
    what, options = " in place" if in_place else "", {"bounds": (0.0, 1.0)}
    return _workload("sign_step", shape, what, limit, 12, ours, numpy, ("x", "grad"), (STEP,), options, quick)


def pgd_step(shape: tuple[int, ...], *, quick: bool = False) -> Workload:
    """``clip(clip(x + step sign(g), c - eps, c + eps), 0, 1)``, in place."""

    def ours(inputs: Inputs) -> Call:
        x, c, g = inputs["x"].copy(), inputs["center"], inputs["grad"]
        return lambda: perturb.pgd_step(x, c, g, STEP, EPS, bounds=(0.0, 1.0), out=x)

    def numpy(inputs: Inputs) -> Call:
        x, c, g, step, eps = inputs["x"], inputs["center"], inputs["grad"], np.float32(STEP), np.float32(EPS)
        return lambda: np.clip(c + np.clip(x + step * np.sign(g) - c, -eps, eps), 0, 1)

    names, options = ("x", "center", "grad"), {"bounds": (0.0, 1.0)}
    return _workload(
        "pgd_step", shape, " in place", "copy", 16, ours, numpy, names, (STEP, EPS), options, quick
    )


def project_l1(shape: tuple[int, int], eps: float, *, quick: bool = False) -> Workload:
    """The projection onto the L1 ball; NumPy and PyTorch sort."""

    def ours(inputs: Inputs) -> Call:
        x, c, out = inputs["x"], inputs["center"], np.empty_like(inputs["x"])
        return lambda: perturb.project(x, c, eps, norm=1, out=out)

    def numpy(inputs: Inputs) -> Call:
        return lambda: plain.perturb.project(inputs["x"], inputs["center"], eps, norm=1)

    options = {"norm": 1}
    return _workload(
        "project", shape, " L1", "none", 12, ours, numpy, ("x", "center"), (eps,), options, quick
    )


def perturb_workloads() -> list[Workload]:
    """Give the workloads of the family."""
    return [
        sign_step((28, 28), quick=True),
        sign_step(IMAGES, quick=True),
        sign_step(IMAGES, in_place=True),
        pgd_step(IMAGES, quick=True),
        project_l1((512, 3072), 12.0, quick=True),
        project_l1((64, 150_528), 12.0),
    ]


def attention_norm(batch: int, heads: int, length: int, dim: int) -> tuple[float, int]:
    """The Jacobian norm of attention on normal inputs with respect to q, k and v, and how many iterations it took."""
    q, k, v = np.random.default_rng(0).standard_normal((3, batch, heads, length, dim), dtype=np.float32)
    b = lipschitz.attention_jacobian_norm(q, k, v)
    return float(b), b.details["iterations"]
