"""What must hold around the numbers of the GRPO kernels: memory limits, threads, scratch, leaks, foreign memory."""

import numpy as np
import pytest

import npkernels as nk
from npkernels._grpo_types import LOSSES
from test_robustness import ISAS, Guarded, dtypes, run


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_end", [True, False])
def test_no_kernel_touches_memory_beside_its_arrays(isa, at_end):
    rng = np.random.default_rng(0)
    with nk.use_isa(isa):
        for dtype in dtypes():
            for n in (1, 3, 7, 8, 9, 16, 17, 33, 63, 64, 65, 127, 129):
                guard = Guarded(at_end).copy
                lp, old, ref, out = (guard(-rng.random((3, n)).astype(dtype)) for _ in range(4))
                mask, A = guard(rng.random((3, n)) < 0.7), guard(rng.standard_normal(3).astype(dtype))
                for loss in LOSSES:
                    nk.policy_loss(
                        lp, old, A, mask, ref_logp=ref, sampler_logp=old, beta=0.1, loss=loss, out=out
                    )
                    nk.policy_loss(lp, old, lp, None, loss=loss)
                logits, target = (guard(rng.standard_normal((1, 3, n)).astype(dtype)) for _ in range(2))
                ids, first = guard(rng.integers(0, n, (1, 3))), guard(-rng.random((1, 3)).astype(dtype))
                for loss in ("grpo", "cispo", "gspo"):
                    nk.token_policy_loss(logits, ids, first, guard(A[:1]), loss=loss, out=target)
                nk.group_advantages(guard(lp.ravel()), n)
                nk.group_advantages(guard(lp.ravel()), guard(rng.integers(0, 3, 3 * n)), scale="batch")
                nk.group_stats(guard(lp.ravel()), n)
                nk.gae(lp, old, gamma=0.9, lam=0.9, out=(out, guard(ref)))
                nk.gae(lp, old, gamma=0.9, lam=0.9, mask=mask, dones=guard(~mask), out=(out, guard(ref)))
                nk.discounted_returns(lp, 0.9, mask=mask, out=out)
                nk.sample(lp, top_k=2, top_p=0.9, min_p=0.1, rng=0)
                nk.beam_step(lp, guard(A), 2)


def work():
    """A call of each kernel that is large enough for several threads, as bytes."""
    rng = np.random.default_rng(0)
    lp, old, ref = (-rng.random((40, 1500)).astype(np.float32) for _ in range(3))
    A, mask = rng.standard_normal(40).astype(np.float32), rng.random((40, 1500)) < 0.9
    logits, ids = rng.standard_normal((4, 9, 5003)).astype(np.float32), rng.integers(0, 5003, (4, 9))
    results = []
    for loss in ("grpo", "gspo", "sapo", "gmpo", "cispo"):
        r = nk.policy_loss(lp, old, A, mask, ref_logp=ref, beta=0.1, loss=loss)
        t = nk.token_policy_loss(logits, ids, old[:4, :9], A[:4], loss=loss)
        results += [r.loss, r.dlogp, r.metrics.ratio, t.loss, t.dlogits]
    g = nk.group_advantages(lp.ravel(), 16)
    results += [g.advantages, g.stats, *nk.gae(lp, old, gamma=0.99, lam=0.95)]
    results += [
        nk.group_advantages(lp.ravel(), ids.ravel()[np.arange(60_000) % 36], scale="batch").advantages
    ]
    results += [nk.sample(logits, top_p=0.9, rng=1), *nk.beam_step(logits, A[:36].reshape(4, 9), 5)]
    return b"".join(np.asarray(r).tobytes() for r in results)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_number_of_threads(isa):
    with nk.use_isa(isa):
        seen = set()
        for n in (1, 2, 3, 5):
            with nk.num_threads(n):
                seen.add(work())
        assert len(seen) == 1


SCRATCH = """
import numpy as np, npkernels
def peak():
    return next(int(l.split()[1]) * 1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))
x = np.ones((64, 151936), np.float32)
ids, old, A = np.zeros(64, int), np.full(64, -12, np.float32), np.ones(64, np.float32)
cu = np.array([0, 32, 64])
calls = {
    loss: (lambda loss=loss: npkernels.token_policy_loss(x, ids, old, A, loss=loss, cu_seqlens=cu, out=x))
    for loss in ('grpo', 'gspo')
}
calls['sample'] = lambda: npkernels.sample(x, top_p=0.9, rng=0)
for name, call in calls.items():
    call()
    open('/proc/self/clear_refs', 'w').write('5')
    before = peak()
    call()
    print(name, peak() - before)
"""


def test_the_loss_of_logits_needs_less_than_four_megabytes():
    lines = run(SCRATCH, NPKERNELS_NUM_THREADS="2").splitlines()
    used = {line.split()[0]: int(line.split()[1]) for line in lines}
    assert len(used) == 3
    assert {name: size for name, size in used.items() if size > 4 * 2**20} == {}


def test_nothing_leaks():
    code = """
import numpy as np, npkernels
def rss():
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS'))
lp, A, r = -np.ones((8, 500)), np.ones(8), np.arange(600.0)
def calls():
    for _ in range(200):
        npkernels.policy_loss(lp, lp, A, loss='gspo')
        npkernels.group_advantages(r, np.arange(600) % 100)
        npkernels.group_advantages(r, 6)
        npkernels.gae(lp, lp, gamma=0.9, lam=0.9)
        for bad in (lambda: npkernels.group_advantages(r, 7), lambda: npkernels.policy_loss(lp, lp, r)):
            try:
                bad()
            except ValueError:
                pass
calls()
before = rss()
for _ in range(4):
    calls()
print(rss() - before < 2000)
"""
    assert run(code) == "True"


def test_inputs_may_be_read_only_and_are_never_changed():
    lp = -np.random.default_rng(0).random((4, 30))
    before = lp.copy()
    lp.flags.writeable = False
    nk.policy_loss(lp, lp, lp[:, 0], ref_logp=lp, beta=0.1, loss="gspo")
    nk.token_policy_loss(lp[None], np.zeros((1, 4), int), lp[:1, :4], lp[0, :1])
    nk.group_advantages(lp.ravel(), 4)
    nk.gae(lp, lp, gamma=0.9, lam=0.9)
    nk.sample(lp, rng=0)
    nk.beam_step(lp, lp[:, 0], 3)
    assert np.array_equal(lp, before)


def test_memory_of_any_layout():
    rng = np.random.default_rng(1)
    lp, old, A = -rng.random((6, 40)), -rng.random((6, 40)), rng.standard_normal(6)
    want = nk.policy_loss(lp, old, A)
    for change in (
        np.asfortranarray,
        lambda x: np.repeat(x, 2, -1)[..., ::2],
        lambda x: x[::-1].copy()[::-1],
    ):
        got = nk.policy_loss(change(lp), change(old), change(A))
        assert got.loss == want.loss
        assert np.array_equal(got.dlogp, want.dlogp)
    swapped = nk.policy_loss(lp.astype(">f8"), old.astype(">f8"), A.astype(">f8"))
    assert swapped.loss == want.loss
    assert (
        nk.group_advantages(A.astype(">f8"), 3).advantages.tolist()
        == nk.group_advantages(A, 3).advantages.tolist()
    )
