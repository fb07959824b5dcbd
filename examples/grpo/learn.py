"""A tiny transformer learns by GRPO to write a string backwards, from the rewards of its answers alone.

    python -m grpo.learn        # inside the folder examples

For each question a group of answers is sampled; the reward of an answer is the share of its symbols that are right.
Nothing ever shows the model a right answer. Random answers are right in one of 6^4 = 1296 cases.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

import npkernels
from grpo.tiny import Adam, Tiny

Ids = npt.NDArray[np.int64]
SYMBOLS, LENGTH = 6, 4
BEGIN = SYMBOLS  # stands between question and answer


@dataclass(frozen=True)
class Recipe:
    """What the training is made of."""

    steps: int = 80
    prompts: int = 32
    group: int = 16
    updates: int = 2  # of the same answers; from the second on the ratio is not 1
    rate: float = 2e-3
    width: int = 48
    heads: int = 4
    layers: int = 2
    seed: int = 0


@dataclass
class Curve:
    """What is seen on the way, a number a step."""

    reward: list[float] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)


def questions(rng: np.random.Generator, n: int) -> Ids:
    """Return n random strings (n, LENGTH)."""
    return rng.integers(0, SYMBOLS, (n, LENGTH))


def answer(
    model: Tiny, question: Ids, rng: np.random.Generator | None
) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Return sampled answers (greedy ones without rng) and the log-probabilities of their symbols, (B, LENGTH) each."""
    ids = np.concatenate([question, np.full((len(question), 1), BEGIN)], 1)
    logps = []
    for _ in range(LENGTH):
        logits = model(ids)[0][:, -1]
        chosen = npkernels.sample(logits, temperature=0.0 if rng is None else 1.0, rng=rng)
        logps.append(npkernels.token_log_probs(logits, chosen, stats=()).log_prob)
        ids = np.concatenate([ids, chosen[:, None]], 1)
    return ids[:, LENGTH + 1 :], np.stack(logps, 1)


def rewards(question: Ids, given: Ids) -> npt.NDArray[np.float64]:
    """Return the share of each answer's symbols that are right."""
    return (given == question[:, ::-1]).mean(axis=1)


def accuracy(model: Tiny, seed: int = 10**6, n: int = 1000) -> float:
    """Return the share of fresh questions whose greedy answer is right in every symbol."""
    question = questions(np.random.default_rng(seed), n)
    return float((rewards(question, answer(model, question, None)[0]) == 1).mean())


def train(recipe: Recipe, steps: Iterable[int]) -> tuple[Tiny, Curve]:
    """Return the trained model and what was seen."""
    size = {"width": recipe.width, "heads": recipe.heads, "layers": recipe.layers, "seed": recipe.seed}
    model, curve = Tiny(SYMBOLS + 1, 2 * LENGTH + 1, **size), Curve()
    optimiser = Adam(model.parameters, recipe.rate)
    rng = np.random.default_rng(recipe.seed)
    for _ in steps:
        question = np.repeat(questions(rng, recipe.prompts), recipe.group, axis=0)
        given, old_logp = answer(model, question, rng)
        reward = rewards(question, given)
        advantage = npkernels.group_advantages(reward, recipe.group).advantages
        ids = np.concatenate([question, np.full((len(question), 1), BEGIN), given[:, :-1]], 1)
        for _ in range(recipe.updates):
            logits, tape = model(ids)
            dlogits = np.zeros_like(logits)
            at = logits[:, LENGTH:]  # the logits of the answer's symbols
            r = npkernels.token_policy_loss(
                at, given, old_logp, advantage, loss="dapo", clip=(0.2, 0.28), entropy=True
            )
            dlogits[:, LENGTH:] = r.dlogits
            optimiser.step(model.backward(dlogits, tape))
        curve.reward.append(float(reward.mean()))
        curve.exact.append(float((reward == 1).mean()))
        curve.entropy.append(float(r.metrics.entropy))
        curve.clipped.append(float(r.metrics.clip_low + r.metrics.clip_high))
    return model, curve


def plot(curve: Curve, path: Path) -> None:
    """Draw reward and entropy over the steps."""
    plt = importlib.import_module("matplotlib.pyplot")
    figure, left = plt.subplots(figsize=(7, 4))
    left.plot(curve.reward, color="tab:blue", label="mean reward")
    left.plot(curve.exact, color="tab:green", label="exact answers")
    left.set(xlabel="step", ylabel="share", ylim=(0, 1.02))
    right = left.twinx()
    right.plot(curve.entropy, color="tab:red", label="entropy of a symbol")
    right.set(ylabel="nats", ylim=(0, None))
    figure.legend(loc="center right", bbox_to_anchor=(0.88, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def bar(steps: int) -> Iterable[int]:
    """Count the steps, with a progress bar where tqdm is installed."""
    if importlib.util.find_spec("tqdm") is None:
        return range(steps)
    counted: Iterable[int] = importlib.import_module("tqdm").trange(steps, desc="GRPO", file=sys.stderr)
    return counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the training; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m grpo.learn",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="updates of the sampled answers")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="the same seed gives the same bits")
    parser.add_argument("--plot", type=Path, help="draw the curves into this file (needs matplotlib)")
    parser.add_argument("--json", type=Path, help="write the curves there")
    chosen = parser.parse_args(arguments)
    recipe = Recipe(steps=chosen.steps, seed=chosen.seed)
    start = perf_counter()
    model, curve = train(recipe, bar(recipe.steps))
    print(
        f"{recipe.steps} steps of {recipe.prompts} x {recipe.group} answers in {perf_counter() - start:.0f} s"
    )
    for i in sorted({0, *range(49, recipe.steps, 50)} & set(range(recipe.steps))):
        print(
            f"step {i + 1:4d}: reward {curve.reward[i]:.3f}, exact {curve.exact[i]:6.1%}, "
            f"entropy {curve.entropy[i]:.3f}, clipped {curve.clipped[i]:.1%}"
        )
    print(f"greedy answers to 1000 fresh questions: {accuracy(model):.1%} exact")
    if chosen.plot:
        plot(curve, chosen.plot)
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"recipe": asdict(recipe), **asdict(curve)}) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
