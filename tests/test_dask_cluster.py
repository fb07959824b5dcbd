"""The same in two processes, one of which is killed in the middle."""

import os

import numpy as np
import pytest

import npkernels as nk

pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
import dask  # noqa: E402
import dask.array as da  # noqa: E402

import npkernels.dask as nd  # noqa: E402

RNG = np.random.default_rng(0)
Q = RNG.standard_normal((1, 4, 96, 8))
K, V = RNG.standard_normal((2, 1, 2, 96, 8))
WAIT = 25


@pytest.fixture(scope="module")
def client():
    environment = dict(os.environ)  # Dask's nannies change it: one BLAS thread, for their workers
    try:
        yield from cluster_of_two()
    finally:
        os.environ.clear()
        os.environ.update(environment)


def cluster_of_two():
    with (
        # how long a worker tries to reach one that is dead
        dask.config.set({"distributed.comm.timeouts.connect": "3s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def die_once(block, path):
    """End the process that comes first to a file of that name."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return block
    os._exit(1)


def lazy(x):
    return da.from_array(x, chunks=(1, 2 if x is Q else 1, 16, 8))


def test_attention_in_two_processes(client):
    out, lse = nd.attention(*map(lazy, (Q, K, V)), causal=True, window=(40, 0), return_lse=True)
    grads = nd.attention_vjp(out, *map(lazy, (Q, K, V)), out, lse, causal=True, window=(40, 0))
    o, l = nk.attention(Q, K, V, causal=True, window=(40, 0), return_lse=True)
    want = nk.attention_vjp(o, Q, K, V, o, l, causal=True, window=(40, 0))
    futures = client.compute([out, grads.dq, grads.dk, grads.dv])
    for future, x in zip(futures, (o, want.dq, want.dk, want.dv), strict=True):
        np.testing.assert_allclose(future.result(timeout=WAIT), x, rtol=1e-11, atol=1e-12)


def test_groups_and_rows_in_two_processes(client):
    rewards, x = RNG.standard_normal(1000), RNG.standard_normal((40, 30))
    lazy = [
        nd.group_advantages(da.from_array(rewards, chunks=170), 8).advantages,
        nd.group_advantages(da.from_array(rewards, chunks=170), np.arange(1000) % 8).advantages,
        nd.softmax(da.from_array(x, chunks=(9, 7)), 0),
    ]
    plain = [
        nk.group_advantages(rewards, 8).advantages,
        nk.group_advantages(rewards, np.arange(1000) % 8).advantages,
        nk.softmax(x, 0),
    ]
    for future, want in zip(client.compute(lazy), plain, strict=True):
        np.testing.assert_allclose(future.result(timeout=WAIT), want, rtol=0, atol=1e-12)
    draws = [nd.random_in_ball(da.from_array(x, chunks=(n, 30)), 1.0, rng=0) for n in (9, 40)]
    one, two = (future.result(timeout=WAIT) for future in client.compute(draws))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("mortal", [0, 1, 2], ids=["queries", "keys", "values"])
def test_a_worker_is_killed(client, tmp_path, mortal):
    path = str(tmp_path / "dead")
    qkv = [lazy(x) for x in (Q, K, V)]
    qkv[mortal] = qkv[mortal].map_blocks(die_once, path, dtype=Q.dtype, meta=np.empty((0,) * 4))
    out = nd.attention(*qkv, causal=True)
    got = client.compute(out).result(timeout=WAIT)
    assert os.path.exists(path)
    np.testing.assert_allclose(got, nk.attention(Q, K, V, causal=True), rtol=1e-12, atol=1e-13)
    # a successor that starts while the cluster closes would delay it
    client.wait_for_workers(2, timeout=WAIT)
