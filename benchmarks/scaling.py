"""How attention and GRPO of npkernels.dask scale past one machine: a small model, and a measurement that tests it.

``python benchmarks/scaling.py plan``     bytes moved, memory and time against workers, from the rates of a worker
``python benchmarks/scaling.py measure``  rates of this machine, then one and two processes beside what the model says

The model has no overlap: time = compute of the busiest worker + bytes / (P W) + tasks (t / P + s) with P workers, a
network that gives each W bytes a second, t seconds in a worker and s in the one scheduler for each task.
"""

from __future__ import annotations

import argparse
import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FAN_IN = 4  # how many partial results one task merges
KEY = 48  # bytes of a group's statistics: its id and five numbers


@dataclass(frozen=True)
class Rates:
    """What one worker does in a second, and what each task costs."""

    flops: float = 1e12  # of attention's multiply-adds, counted as two
    network: float = 1.25e9  # bytes that a worker receives
    task: float = 2e-3  # seconds in the worker
    scheduler: float = 5e-4  # seconds in the scheduler
    sample: float = 1e-7  # seconds for the statistics and the advantage of one sample
    scattered: float = 1e-6  # the same of a sample whose group is anywhere
    key: float = 1e-6  # seconds to merge one group's statistics

    def seconds(self, compute: float, moved: float, tasks: float, workers: int) -> float:
        """The time, from the busiest worker's compute, all bytes and all tasks."""
        return compute + moved / (workers * self.network) + tasks * (self.task / workers + self.scheduler)


@dataclass(frozen=True)
class Estimate:
    """What some workers need: bytes that travel in all, bytes held by one, seconds of compute in all, seconds."""

    workers: int
    tasks: int
    moved: float
    memory: float
    compute: float
    seconds: float


@dataclass(frozen=True)
class Attention:
    """Causal attention of one sequence, cut into equal blocks of queries and of keys, and of heads."""

    tokens: int
    block: int
    heads: int
    kv_heads: int
    dim: int
    itemsize: int
    head_blocks: int = 1

    @property
    def blocks(self) -> int:
        """How many blocks of queries there are, and as many of keys."""
        return math.ceil(self.tokens / self.block)

    @property
    def flops(self) -> float:
        """4 D for each head and pair of a query and a key that it sees."""
        return 4.0 * self.dim * self.heads * self.tokens * (self.tokens + 1) / 2

    def estimate(self, workers: int, rates: Rates) -> Estimate:
        """Of the forward pass.

        A pair of blocks is computed where the queries and the partial results are: its keys and values travel, but for
        the share 1 / P that is there already. Blocks of queries, of which the last sees most keys, are dealt out so
        that the next goes to the worker with least to do.
        """
        pairs = self.head_blocks * self.blocks * (self.blocks + 1) // 2
        merges = sum(merges_of(i + 1) for i in range(self.blocks))
        tasks = pairs + self.head_blocks * (merges + self.blocks)
        share = self.block * self.dim / self.head_blocks
        keys = 2.0 * share * self.kv_heads * self.itemsize
        queries = share * self.heads * self.itemsize
        partial = share * self.heads * (1 + 1 / self.dim) * max(4.0, self.itemsize)
        moved = pairs * keys * (1 - 1 / workers)
        held = self.head_blocks * self.blocks * (2 * queries + keys) / workers  # q and the output, k and v
        memory = held + keys + (FAN_IN + 1) * partial
        compute = self.flops / rates.flops
        busiest = compute * busiest_share([i + 1 for i in range(self.blocks)] * self.head_blocks, workers)
        return Estimate(workers, tasks, moved, memory, compute, rates.seconds(busiest, moved, tasks, workers))


def busiest_share(work: Sequence[int], workers: int) -> float:
    """The share of the work that the busiest has, if the largest pieces are dealt out first."""
    load = [0] * workers
    for piece in sorted(work, reverse=True):
        heapq.heapreplace(load, load[0] + piece)
    return max(load) / sum(work)


def merges_of(parts: int) -> int:
    """How many tasks merge some parts in a tree."""
    count = 0
    while parts > 1:
        count += parts // FAN_IN + (parts % FAN_IN > 1)
        parts = math.ceil(parts / FAN_IN)
    return count


@dataclass(frozen=True)
class Grpo:
    """Advantages of samples in groups: consecutive, or given by ids in any order."""

    samples: int
    group: int
    block: int
    by_ids: bool

    def estimate(self, workers: int, rates: Rates) -> Estimate:
        """Of `group_advantages`.

        Consecutive groups: what travels is the statistics of the groups that a block shares with its neighbours. Ids in
        any order: a block of b samples has n (1 - exp(-b / n)) of n groups; statistics of all groups go up the tree, on
        whose way the last merges are done by one worker after another, and come down to every worker.
        """
        blocks = math.ceil(self.samples / self.block)
        groups = self.samples / self.group
        compute = self.samples * (rates.scattered if self.by_ids else rates.sample)
        if not self.by_ids:
            tasks = blocks * 5
            moved = 2.0 * blocks * KEY * (workers > 1)
            memory = self.samples * 16 / workers + self.block * (16 + 2 * KEY / self.group)
            return Estimate(
                workers,
                tasks,
                moved,
                memory,
                compute,
                rates.seconds(compute / workers, moved, tasks, workers),
            )
        moved, serial, size, parts = 0.0, 0.0, float(self.block), blocks
        while parts > 1:
            present = groups * (1 - math.exp(-size / groups))
            width = min(parts, FAN_IN)
            moved += parts * present * KEY * (1 - 1 / workers)
            parts = math.ceil(parts / FAN_IN)
            merged = parts * (width - 1) * present * rates.key
            serial += merged / min(parts, workers)
            size *= FAN_IN
        moved += groups * KEY * (workers - 1)
        tasks = blocks * 2 + merges_of(blocks)
        memory = self.samples * 24 / workers + (FAN_IN + 1) * groups * KEY
        seconds = serial + rates.seconds(compute / workers, moved, tasks, workers)
        return Estimate(workers, tasks, moved, memory, compute, seconds)


def table(title: str, estimates: Sequence[Estimate]) -> str:
    """Estimates as a Markdown table."""
    lines = [
        f"{title}\n",
        "| workers | tasks | moved, GB | a worker's memory, GB | compute / P, s | time, s | efficiency |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in estimates:
        alone = e.compute / e.workers
        lines.append(
            f"| {e.workers} | {e.tasks} | {e.moved / 1e9:.3g} | {e.memory / 1e9:.3g} | {alone:.3g} | {e.seconds:.3g} "
            f"| {100 * alone / e.seconds:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def plan(rates: Rates) -> None:
    """Print the tables of docs/scaling.md."""
    workers = (1, 4, 16, 64, 256)
    long = Attention(2**20, 2**14, heads=32, kv_heads=8, dim=128, itemsize=2, head_blocks=8)
    print(
        table(
            "Attention forward, 1 048 576 tokens, 32 heads on 8 key heads, D 128, 16 bit, causal, "
            "blocks of 16 384 tokens and 4 heads:",
            [long.estimate(p, rates) for p in workers],
        )
    )
    for by_ids, how in ((False, "consecutive"), (True, "by ids in any order")):
        many = Grpo(10_000_000, 8, 250_000, by_ids)
        print(
            table(
                f"GRPO advantages, 10 000 000 samples in groups of 8, {how}, blocks of 250 000:",
                [many.estimate(p, rates) for p in workers[:4]],
            )
        )


# --- the measurement


def timed(call: Callable[[], Any], repeat: int = 3) -> float:
    """The shortest time of some calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def attention_rate(shape: Attention) -> float:
    """Multiply-adds a second of one block that sees all its keys, counted as two."""
    import npkernels as nk

    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, shape.heads, shape.block, shape.dim), np.float32)
    k, v = rng.standard_normal((2, 1, shape.kv_heads, shape.block, shape.dim), np.float32)
    seconds = timed(lambda: nk.attention(q, k, v, return_lse=True))
    return 4.0 * shape.dim * shape.heads * shape.block**2 / seconds


def group_rates(shape: Grpo) -> tuple[float, float, float]:
    """Seconds for a sample of consecutive groups, for one of scattered groups, and to merge those of a group."""
    import npkernels as nk

    rng = np.random.default_rng(0)
    rewards, count = rng.standard_normal(shape.block), shape.samples // shape.group
    ids, scattered = np.arange(shape.block) // shape.group, rng.integers(0, count, shape.block)
    everyone = nk.group_stats(rng.standard_normal(count), np.arange(count))

    def own(ids: np.ndarray[Any, Any]) -> None:
        nk.advantages_from_stats(rewards, ids, nk.group_stats(rewards, ids))

    def one_of_many() -> None:
        some = np.isin(everyone[0], scattered)
        nk.group_stats(rewards, scattered)
        nk.advantages_from_stats(rewards, scattered, (everyone[0][some], everyone[1][some]))

    merge = timed(lambda: nk.merge_group_stats(everyone, everyone)) / count
    return timed(lambda: own(ids)) / shape.block, timed(one_of_many) / shape.block, merge


def ones(size: int) -> np.ndarray[Any, Any]:
    """An array to be sent."""
    return np.ones(size)


def size_of(x: np.ndarray[Any, Any]) -> int:
    """Something to be done to an array that was sent."""
    return x.size


def same(i: int) -> int:
    """A task that does nothing."""
    return i


def network_rate(client: Any, size: int = 4_000_000) -> float:
    """Bytes a second from one worker to another."""
    here, there = list(client.scheduler_info()["workers"])[:2]
    times = []
    for i in range(4):
        x = client.submit(ones, size + i, workers=here)
        client.submit(same, i, workers=there).result()
        x.exception()
        start = time.perf_counter()
        client.submit(size_of, x, workers=there).result()
        times.append(time.perf_counter() - start)
    return 8 * size / min(times)


def task_seconds(client: Any, count: int = 1000) -> float:
    """Seconds of a task that does nothing, on one worker."""
    return timed(lambda: client.gather(client.map(same, range(count), pure=False)), 2) / count


def run(client: Any, build: Callable[[int], Sequence[Any]], what: Callable[..., Any]) -> float:
    """Seconds of a function of arrays that the workers hold already; its results stay there, too."""
    from distributed import wait

    seconds = 0.0
    for share in (8, 1):  # an eighth first, so that all is loaded
        inputs = client.persist(list(build(share)))
        wait(inputs)
        results = what(*inputs)
        start = time.perf_counter()
        wait(client.persist(results))
        seconds = time.perf_counter() - start
    return seconds


def measure() -> None:
    """Print rates of this machine, and one and two processes beside the model."""
    import dask.array as da
    from distributed import Client, LocalCluster

    import npkernels.dask as nd

    shape = Attention(2**14, 2**10, heads=8, kv_heads=2, dim=128, itemsize=4)
    groups = [Grpo(4_000_000, 8, 250_000, by_ids) for by_ids in (False, True)]

    def qkv(share: int) -> list[Any]:
        random = da.random.default_rng(0)
        sizes = (shape.heads, shape.kv_heads, shape.kv_heads)
        return [
            random.standard_normal(
                (1, h, shape.tokens // share, shape.dim),
                chunks=(1, h, shape.block, shape.dim),
                dtype=np.float32,
            )
            for h in sizes
        ]

    def samples(share: int) -> list[Any]:
        random = da.random.default_rng(0)
        g = groups[0]
        ids = random.integers(0, g.samples // g.group, g.samples // share, chunks=g.block)
        return [random.standard_normal(g.samples // share, chunks=g.block), ids]

    measured: dict[int, list[float]] = {}
    rates = Rates()
    for workers in (2, 1):
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            Client(cluster) as client,
        ):
            if workers == 2:
                network = network_rate(client)
            else:
                per_sample = client.submit(group_rates, groups[0]).result()
                flops = client.submit(attention_rate, shape).result()
                rates = Rates(flops, network, task_seconds(client), 0.0, *per_sample)
            measured[workers] = [
                run(client, qkv, lambda q, k, v: [nd.attention(q, k, v, causal=True)]),
                run(client, samples, lambda r, ids: [nd.group_advantages(r, groups[0].group).advantages]),
                run(client, samples, lambda r, ids: [nd.group_advantages(r, ids).advantages]),
            ]
    print(
        f"One worker (one thread): attention {rates.flops / 1e9:.0f} GFLOP/s, {rates.task * 1e3:.2f} ms a task, "
        f"{rates.sample * 1e9:.0f} ns a sample of consecutive groups,\n"
        f"{rates.scattered * 1e9:.0f} ns of scattered ones, {rates.key * 1e9:.0f} ns a merged group; "
        f"{rates.network / 1e9:.2f} GB/s from one to the other.\n"
    )
    print("| | workers | measured, s | model, s | model / measured |\n|---|---|---|---|---|")
    names = (
        "attention, 16 384 tokens",
        "GRPO, 4 000 000 samples, consecutive",
        "GRPO, 4 000 000 samples, by ids",
    )
    for name, what, place in zip(names, (shape, *groups), range(3), strict=True):
        for workers in (1, 2):
            seconds, model = measured[workers][place], what.estimate(workers, rates).seconds
            print(f"| {name} | {workers} | {seconds:.2f} | {model:.2f} | {model / seconds:.2f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="How npkernels.dask scales past one machine.")
    parser.add_argument("command", choices=("plan", "measure"))
    for name, value in vars(Rates()).items():
        parser.add_argument(
            f"--{name}", type=float, default=value, help="a rate of `plan` (default %(default)g)"
        )
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    measure() if command == "measure" else plan(Rates(**given))


if __name__ == "__main__":
    main()
