"""Cases of the GRPO family: groups of every kind, losses with every option, sequences padded and packed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from npkernels import reference
from npkernels._arrays import Array, compute_dtype
from npkernels._cli.cases import NAN, Case, Cases, Inputs
from npkernels._grpo_types import AGGREGATES, IMPORTANCES, KLS, LOSSES, PRESETS

FROM_STATS = [name for name, p in PRESETS.items() if p.rule in ("", "lone reward", "over mean")]
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 97, 127, 128, 129, 515, 1031)
CLIPS = {"cispo": (0.0, 1.1), "gmpo": (0.1, 0.15)}


def _rewards(make: Inputs) -> Iterator[tuple[str, Array, Any]]:
    """Rewards and their groups."""
    for B, G in ((1, 1), (8, 8), (12, 3), (51, 17), (96, 16), (330, 5), (600, 300), (10_000, 16)):
        yield f"{B} in groups of {G}", make.normal((B,)), G
    for B, n in ((40, 7), (1000, 300), (3000, 11)):
        yield f"{B} by id", make.normal((B,)), make.integers(n, (B,)) * 10**15 - 7
    yield "by name", make.normal((9,)), np.array(list("abacbcaab"))
    r = make.normal((60,))
    r[make.mask((60,), 0.4)] = NAN
    yield "some NaN", r, 6
    yield "some NaN, by id", r, make.integers(9, (60,))
    yield "all NaN", np.full(6, NAN).astype(make.dtype), 3
    yield "0 and 1", make.integers(2, (64,)).astype(make.dtype), 8
    yield "constant", np.full(21, 0.3).astype(make.dtype), 7
    yield "none", make.normal((0,)), 4
    yield "every second", make.normal((64,))[::2], 8


def _group_advantages(make: Inputs) -> Iterator[Case]:
    for label, r, groups in _rewards(make):
        yield Case(label, (r, groups))
        yield Case(f"{label}, leave one out", (r, groups), {"baseline": "leave_one_out", "scale": "none"})
        yield Case(f"{label}, batch", (r, groups), {"scale": "batch", "ddof": 0, "eps": 1e-3})
    r = make.normal((64,))
    for name, p in PRESETS.items():
        options: dict[str, Any] = {"lengths": make.integers(50, (64,))} if p.lengths else {}
        yield Case(name, (r, 8), {"preset": name, **options})
        yield Case(f"{name} by id", (r, np.arange(64) % 7), {"preset": name, **options})
    for k in (1, 2, 5, 8):
        yield Case(f"max@{k}", (r, 8), {"preset": "pass@k", "k": k})
    for baseline, scale in itertools.product(("mean", "leave_one_out", "none"), ("group", "batch", "none")):
        yield Case(f"{baseline}, {scale}", (r, 4), {"baseline": baseline, "scale": scale})
    several = make.normal((48, 3))
    several[make.mask((48, 3), 0.2)] = NAN
    weights = np.array([0.5, 2.0, 1.0])
    for preset in ("trl", "gdpo"):
        yield Case(f"3 functions, {preset}", (several, 6), {"weights": weights, "preset": preset})


def _group_stats(make: Inputs) -> Iterator[Case]:
    for label, r, groups in _rewards(make):
        if label != "by name":
            yield Case(label, (r, groups))


def _parts(make: Inputs) -> Iterator[tuple[str, Array, Array, tuple[Array, Array], tuple[Array, Array]]]:
    for B, n in ((2, 1), (3, 2), (20, 4), (40, 9), (200, 30)):
        for name, r in (("", make.normal((B,))), (", 0 and 1", make.integers(2, (B,)).astype(make.dtype))):
            ids = make.integers(n, (B,))
            halves = [reference.group_stats(r[s], ids[s]) for s in (slice(B // 2), slice(B // 2, B))]
            first, second = ((keys, state.astype(np.float64)) for keys, state in halves)
            yield f"{B} of {n}{name}", r, ids, first, second


def _merge_group_stats(make: Inputs) -> Iterator[Case]:
    for label, _, _, a, b in _parts(make):
        yield Case(label, (a, b))


def _advantages_from_stats(make: Inputs) -> Iterator[Case]:
    for label, r, ids, a, b in _parts(make):
        keys, state = reference.merge_group_stats(a, b)
        stats = (keys, state.astype(np.float64))
        for preset in FROM_STATS:
            yield Case(f"{label}, {preset}", (r, ids, stats), {"preset": preset})
        yield Case(f"{label}, batch", (r, ids, stats), {"scale": "batch"})


def _tokens(make: Inputs, shape: tuple[int, ...]) -> tuple[Array, dict[str, Array]]:
    """Log-probabilities of tokens, and those of other policies not far from them."""
    logp = -np.abs(make.normal(shape, 2.0))
    near = {
        name: (logp + make.normal(shape, 0.2)).astype(make.dtype)
        for name in ("old_logp", "ref_logp", "sampler_logp")
    }
    return logp, near


def _policy(make: Inputs, shape: tuple[int, ...], options: dict[str, Any], *, masked: bool = True) -> Case:
    logp, near = _tokens(make, shape)
    A = make.normal(shape[:1] if "cu_seqlens" not in options else (len(options["cu_seqlens"]) - 1,))
    mask = make.mask(shape) if masked else None
    extra: dict[str, Any] = {k: near[k] for k in ("ref_logp", "sampler_logp") if k in options}
    if mask is not None:
        if len(shape) == 2 and shape[0] > 2:
            mask[1] = False
        logp, near["old_logp"] = make.behind(mask, logp), make.behind(mask, near["old_logp"])
        extra = {k: make.behind(mask, x) for k, x in extra.items()}
    label = ", ".join(f"{k}={v}" for k, v in options.items() if not isinstance(v, np.ndarray))
    return Case(f"{shape} {label}", (logp, near["old_logp"], A, mask), {**options, **extra})


def _policy_loss(make: Inputs) -> Iterator[Case]:
    for T in LENGTHS:
        yield _policy(make, (4, T), {"ref_logp": True, "beta": 0.1}, masked=T % 2 == 0)
    for loss in LOSSES:
        options: dict[str, Any] = {"loss": loss, "clip": CLIPS.get(loss, (0.2, 0.28))}
        for level in ("token", "sequence"):
            if loss not in ("gmpo", "gpg") or level == LOSSES[loss].level:
                yield _policy(make, (5, 67), {**options, "level": level})
        yield _policy(make, (5, 67), {**options, "ref_logp": True, "sampler_logp": True, "beta": 0.3})
    for kl in KLS:
        yield _policy(make, (3, 45), {"ref_logp": True, "beta": 1.0, "kl": kl})
        yield _policy(make, (3, 45), {"ref_logp": True, "beta": 1.0, "kl": kl, "kl_clamp": (0.3, 0.03)})
    for mode in IMPORTANCES:
        yield _policy(make, (6, 9), {"sampler_logp": True, "importance": (mode, 1.1), "level": "sequence"})
        yield _policy(make, (6, 9), {"sampler_logp": True, "importance": (mode, 1.1)})
    for aggregate in AGGREGATES:
        yield _policy(make, (6, 33), {"aggregate": aggregate})
    yield _policy(make, (4, 70), {"dual_clip": 1.2, "delta": 1.4})
    yield _policy(make, (4, 70), {"loss": "sapo", "tau": (0.5, 2.0)})
    cu = np.array([0, 5, 5, 40, 41, 90])
    for loss in ("grpo", "gspo", "gmpo"):
        packed = {"loss": loss, "cu_seqlens": cu, "ref_logp": True, "beta": 0.1}
        yield _policy(make, (90,), packed)
    logp, near = _tokens(make, (3, 40))
    h = np.abs(make.normal((3, 40)))
    yield Case("advantages of tokens", (logp, near["old_logp"], make.normal((3, 40)), None), {"entropy": h})
    yield Case("on policy", (logp, logp, make.normal((3,)), None))
    yield Case("no gradient", (logp, near["old_logp"], make.normal((3,)), None), {"return_grad": False})
    yield Case("no tokens", (logp, logp, make.normal((3,)), np.zeros((3, 40), bool)))


def _token_policy_loss(make: Inputs) -> Iterator[Case]:
    dtype = compute_dtype(make.dtype)

    def case(B: int, T: int, V: int, options: dict[str, Any], inplace: bool = False) -> Case:
        logits, ids = make.normal((B, T, V), 2.0), make.integers(V, (B, T))
        stats = reference.token_log_probs(logits, ids, temperature=options.get("temperature", 1.0))
        near = {
            name: (stats.log_prob + 0.2 * make.rng.standard_normal((B, T))).astype(dtype)
            for name in ("old_logp", "ref_logp", "sampler_logp")
        }
        mask = make.mask((B, T), 0.8)
        logits = make.behind(np.broadcast_to(mask[..., None], logits.shape), logits)
        extra: dict[str, Any] = {k: near[k] for k in ("ref_logp", "sampler_logp") if k in options}
        label = ", ".join(f"{k}={v}" for k, v in options.items() if k not in near)
        A = make.rng.standard_normal(B).astype(dtype)
        args = (logits, np.where(mask, ids, -100), near["old_logp"], A, mask)
        return Case(f"{B}x{T}x{V} {label}", args, {**options, **extra}, 0 if inplace else None)

    for V in (1, 2, 7, 8, 17, 97, 257, 1031):
        yield case(3, 4, V, {})
    for loss in LOSSES:
        options: dict[str, Any] = {"loss": loss, "clip": CLIPS.get(loss, (0.2, 0.28)), "temperature": 0.8}
        yield case(4, 5, 67, options)
        yield case(
            4, 5, 67, {**options, "ref_logp": True, "sampler_logp": True, "beta": 0.2, "entropy": True}
        )
    for mode in IMPORTANCES:
        yield case(4, 5, 33, {"sampler_logp": True, "importance": (mode, 1.1)})
    for aggregate in AGGREGATES:
        yield case(4, 5, 33, {"aggregate": aggregate})
    yield case(4, 5, 300, {"temperature": 2.0}, inplace=True)
    yield case(4, 5, 300, {"loss": "gspo"}, inplace=True)


def _kl_divergence(make: Inputs) -> Iterator[Case]:
    logp, near = _tokens(make, (5, 33))
    for kl in KLS:
        yield Case(kl, (logp, near["ref_logp"], kl))
        yield Case(f"{kl}, clamped", (logp, near["ref_logp"], kl), {"clamp": (0.3, 0.05)})
        for scale in (1e-4, 30.0):
            far = (logp + make.normal((5, 33), scale)).astype(make.dtype)
            yield Case(f"{kl}, {scale} away", (logp, far, kl))


def _times(make: Inputs) -> Iterator[tuple[str, tuple[int, ...], dict[str, Any]]]:
    for shape in ((3,), (1, 1), (5, 17), (2, 3, 130), (9, 257), (8, 128), (17, 61), (3, 0), (0, 4)):
        yield f"{shape}", shape, {}
        yield f"{shape} mask", shape, {"mask": make.mask(shape)}
    one = make.rng.random((6,)).astype(make.dtype)
    yield "of each row", (6, 40), {"last_value": make.normal((6,)), "mask": make.mask((6, 40)), "gamma": one}
    cu = np.array([0, 5, 5, 140, 141, 500])
    yield "packed", (500,), {"cu_seqlens": cu, "last_value": make.normal((5,))}
    yield "packed, mask", (500,), {"cu_seqlens": cu, "mask": make.mask((500,))}


def _discounted_returns(make: Inputs) -> Iterator[Case]:
    for label, shape, options in _times(make):
        r, rest = make.normal(shape), dict(options)
        if "mask" in rest:
            r = make.behind(rest["mask"], r)
        yield Case(label, (r, rest.pop("gamma", 0.9)), rest)


def _gae(make: Inputs) -> Iterator[Case]:
    for label, shape, options in _times(make):
        r, v = make.normal(shape), make.normal(shape)
        if "mask" in options:
            r, v = make.behind(options["mask"], r), make.behind(options["mask"], v)
        given = {"gamma": 0.95, "lam": 0.9, **options}
        yield Case(label, (r, v), given)
        yield Case(f"{label}, dones", (r, v), {**given, "dones": make.mask(shape, 0.1)})


def _pass_at_k(make: Inputs) -> Iterator[Case]:
    for n in (1, 2, 5, 8, 16, 64, 200):
        c = np.arange(n + 1)
        for k in {1, (n + 1) // 2, n}:
            yield Case(f"{n}, {k}", (n, c, k))


def _sample(make: Inputs) -> Iterator[Case]:
    for V in (1, 2, 7, 8, 17, 97, 1031):
        for options in (
            {},
            {"top_k": 5},
            {"top_p": 0.8},
            {"min_p": 0.1},
            {"top_k": 9, "top_p": 0.7, "min_p": 0.05},
        ):
            yield Case(
                f"{V} {options}", (make.normal((9, V), 2.0),), {**options, "temperature": 0.9, "rng": 5}
            )
    yield Case("greedy", (make.normal((3, 4, 50)),), {"temperature": 0.0})
    yield Case("seeds", (make.normal((3, 4, 50)),), {"rng": np.arange(12).reshape(3, 4)})
    x = make.normal((6, 40))
    x[0, ::3], x[1], x[2, 5:7] = NAN, NAN, np.inf
    x[3], x[4, 1::2], x[4, ::2] = -np.inf, -np.inf, NAN
    for options in ({}, {"temperature": 0.0}, {"top_k": 7, "top_p": 0.9, "min_p": 0.01}):
        yield Case(f"NaN and infinities {options}", (x,), {**options, "rng": 3})


def _beam_step(make: Inputs) -> Iterator[Case]:
    for W, V in ((1, 1), (1, 7), (2, 8), (3, 17), (4, 1031)):
        for width in sorted({1, 2, W * V} if W * V > 1 else {1}):
            yield Case(f"{W}x{V}, {width}", (make.normal((W, V), 3.0), make.normal((W,)), width))
    lp = make.normal((2, 3, 40))
    lp[:, :, 7] = -np.inf
    lp[0, 1, 3] = NAN
    s = make.normal((2, 3))
    s[1, 0] = -np.inf
    yield Case("-inf and NaN", (lp, s, 5))
    yield Case("all of them", (lp, s, 120))


KERNELS: dict[str, Cases] = {
    "group_advantages": _group_advantages,
    "group_stats": _group_stats,
    "merge_group_stats": _merge_group_stats,
    "advantages_from_stats": _advantages_from_stats,
    "policy_loss": _policy_loss,
    "token_policy_loss": _token_policy_loss,
    "kl_divergence": _kl_divergence,
    "discounted_returns": _discounted_returns,
    "gae": _gae,
    "pass_at_k": _pass_at_k,
    "sample": _sample,
    "beam_step": _beam_step,
}
