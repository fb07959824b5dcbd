"""What is measured of the GRPO family; see `workloads`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import npkernels
from npkernels import GroupAdvantages, PolicyLoss
from npkernels._arrays import Array
from npkernels._cli import plain
from npkernels._cli.workloads import Inputs, Workload, as_numpy, some

EPS = 1e-4  # of TRL
BETA = 0.04


def _around(a: Array, stats: Array, groups: Any) -> GroupAdvantages:
    return GroupAdvantages(a, stats, groups)


def _by_size(r: Array, G: int) -> GroupAdvantages:
    """The two lines, and the statistics that they are made of."""
    x = r.reshape(-1, G)
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    a = (x - mean) / (std + EPS)
    return _around(a.reshape(-1), np.full((len(x), 5), np.nan), G)


def _by_id(r: Array, ids: Array) -> GroupAdvantages:
    _, index = np.unique(ids, return_inverse=True)
    n = np.bincount(index)
    d = r - (np.bincount(index, r) / n)[index]
    std = np.sqrt(np.bincount(index, d * d) / (n - 1))
    return _around(d / (std[index] + EPS), np.full((len(n), 5), np.nan), index)


def group_advantages(samples: int, groups: int, *, by_id: bool, quick: bool = False) -> Workload:
    """Advantages of samples: read, and a few operations each."""
    G = samples // groups

    def make(rng: np.random.Generator) -> Inputs:
        ids = rng.integers(-(2**62), 2**62, groups)
        return {
            "rewards": rng.standard_normal(samples),
            "groups": rng.permutation(np.repeat(ids, G)) if by_id else G,
        }

    numpy = _by_id if by_id else _by_size

    def formula(inputs: Inputs) -> Callable[[], GroupAdvantages]:
        full = npkernels.group_advantages(**inputs)

        def call() -> GroupAdvantages:
            a = numpy(inputs["rewards"], inputs["groups"]).advantages
            return GroupAdvantages(a, full.stats, full.group_index)

        return call

    return Workload(
        kernel="group_advantages",
        family="grpo",
        dtype="float64",
        size=f"{samples} in {groups} {'by id' if by_id else 'consecutive'}",
        limit="none",
        flops=8.0 * samples,
        bytes=(24.0 if by_id else 16.0) * samples,
        quick=quick,
        make=make,
        ours=lambda inputs: lambda: npkernels.group_advantages(inputs["rewards"], inputs["groups"]),
        numpy=formula,
        rows=lambda inputs: ((inputs["rewards"], inputs["groups"]), {}),
        part=lambda result: result,
    )


def policy_loss(B: int, T: int, *, quick: bool = False) -> Workload:
    """Clipped loss with KL term, mask and gradient: logp, old, ref and mask read, dlogp written."""

    def make(rng: np.random.Generator) -> Inputs:
        logp = -np.abs(rng.standard_normal((B, T), np.float32))
        near = [logp + np.float32(0.1) * rng.standard_normal((B, T), np.float32) for _ in range(2)]
        A = rng.standard_normal(B, np.float32)
        mask = np.arange(T) < rng.integers(T // 2, T, (B, 1))
        return {
            "logp": logp,
            "old_logp": near[0],
            "advantages": A,
            "mask": mask,
            "ref_logp": near[1],
            "beta": BETA,
        }

    def call(inputs: Inputs) -> Callable[[], PolicyLoss]:
        out = np.empty_like(inputs["logp"])
        return lambda: npkernels.policy_loss(**inputs, out=out)

    def rows(inputs: Inputs) -> Any:
        rest = dict(inputs)
        return [rest.pop(name) for name in ("logp", "old_logp", "advantages", "mask")], rest

    return Workload(
        kernel="policy_loss",
        family="grpo",
        dtype="float32",
        size=f"{B}x{T} with reference and mask",
        limit="copy",
        flops=20.0 * B * T,
        bytes=17.0 * B * T,
        quick=quick,
        make=make,
        ours=call,
        numpy=lambda inputs: lambda: plain.policy_loss(**inputs),
        rows=rows,
        part=lambda result: result,
    )


def token_policy_loss(T: int, V: int, *, quick: bool = False) -> Workload:
    """From logits to their gradient, in place. Only the first call sees the logits; the others cost the same."""
    places = some(T)
    names = ("logits", "ids", "old_logp", "advantages")

    def make(rng: np.random.Generator) -> Inputs:
        logits = 3 * rng.standard_normal((T, V), np.float32)
        ids = rng.integers(0, V, T)
        t = npkernels.token_log_probs(logits, ids, stats=())
        old = t.log_prob + np.float32(0.1) * rng.standard_normal(T, np.float32)
        A = rng.standard_normal(T, np.float32)
        return {"logits": logits, "ids": ids, "old_logp": old, "advantages": A}

    def options(n: int) -> dict[str, Any]:
        return {"loss": "dapo", "cu_seqlens": np.array([0, n]), "total_tokens": float(T)}

    def call(inputs: Inputs) -> Callable[[], PolicyLoss]:
        logits, rest = inputs["logits"].copy(), [inputs[name] for name in names[1:]]
        return lambda: npkernels.token_policy_loss(logits, *rest, **options(T), out=logits)

    def few(inputs: Inputs) -> list[Array]:
        return [inputs[name][places] for name in names]

    made: list[list[Array]] = []

    def rows(inputs: Inputs) -> Any:
        made[:] = [few(inputs)]
        return made[0], options(len(places))

    def part(result: PolicyLoss) -> PolicyLoss:
        """The gradient of a few rows, with the loss of these rows."""
        alone = npkernels.token_policy_loss(*made[0], **options(len(places)))
        return PolicyLoss(alone.loss, alone.metrics, None, as_numpy(result.dlogits)[places])

    return Workload(
        kernel="token_policy_loss",
        family="grpo",
        dtype="float32",
        size=f"{T}x{V} in place",
        limit="copy",
        flops=7.0 * T * V,
        bytes=8.0 * T * V,
        quick=quick,
        make=make,
        ours=call,
        numpy=lambda inputs: lambda: plain.token_policy_loss(**inputs, **options(T)),
        rows=rows,
        part=part,
    )


def _gae_by_steps(r: Array, v: Array, gamma: float, lam: float) -> tuple[Array, Array]:
    """The loop over time, all rows at once."""
    A = np.empty_like(r)
    value = advantage = np.zeros(len(r), r.dtype)
    for t in range(r.shape[1] - 1, -1, -1):
        delta = r[:, t] + gamma * value - v[:, t]
        A[:, t] = advantage = delta + gamma * lam * advantage
        value = v[:, t]
    return A, A + v


def gae(B: int, T: int, *, quick: bool = False) -> Workload:
    """Rewards and values read, advantages and returns written."""
    gains = {"gamma": 0.99, "lam": 0.95}
    places = some(B)

    def make(rng: np.random.Generator) -> Inputs:
        return {name: rng.standard_normal((B, T), np.float32) for name in ("rewards", "values")}

    def call(inputs: Inputs) -> Callable[[], tuple[Array, Array]]:
        out = (np.empty((B, T), np.float32), np.empty((B, T), np.float32))
        return lambda: npkernels.gae(**inputs, **gains, out=out)

    return Workload(
        kernel="gae",
        family="grpo",
        dtype="float32",
        size=f"{B}x{T}",
        limit="copy",
        flops=6.0 * B * T,
        bytes=16.0 * B * T,
        quick=quick,
        make=make,
        ours=call,
        numpy=lambda inputs: lambda: _gae_by_steps(inputs["rewards"], inputs["values"], **gains),
        rows=lambda inputs: ((inputs["rewards"][places], inputs["values"][places]), gains),
        part=lambda result: tuple(x[places] for x in result),
    )


def listed() -> list[Workload]:
    """Give the workloads of the family."""
    return [
        group_advantages(8, 1, by_id=False, quick=True),
        group_advantages(1024 * 16, 1024, by_id=False, quick=True),
        group_advantages(65_536, 4096, by_id=True, quick=True),
        policy_loss(64, 8192, quick=True),
        token_policy_loss(256, 151_936),
        gae(64, 8192, quick=True),
    ]
