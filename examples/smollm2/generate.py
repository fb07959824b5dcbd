"""From logits to tokens: greedy choice, or sampling with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import npkernels
from smollm2.model import Llama

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

SAMPLING = "sampling"  # the label under which the model's timer has the time of choosing


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    Parameters
    ----------
    temperature : float
        Logits are divided by it; 0 means greedy: always the most probable token (the first of equals).
    top_k : int, optional
        Only the k most probable tokens; ones as probable as the k-th stay too.
    top_p : float, optional
        Of what `top_k` left, only the fewest most probable tokens whose probabilities add up to `top_p` or
        more [1]_.
    seed : int
        Of the random numbers.

    Raises
    ------
    ValueError
        If an option is out of its range.

    References
    ----------
    .. [1] A. Holtzman et al., "The curious case of neural text degeneration", 2020.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise ValueError(f"temperature is {self.temperature}; expected a finite number, 0 or greater")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected 1 or more, or None for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected 0 < top_p <= 1, or None for all")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more")


GREEDY = Sampling(temperature=0.0)


def most_likely(logits: Array, k: int) -> Mask:
    """Return which logits are among the k largest, (V,); ones equal to the k-th are, too.

    Examples
    --------
    >>> most_likely(np.array([1.0, 4.0, 2.0, 3.0]), 2)
    array([False,  True, False,  True])
    """
    if k >= logits.size:
        return np.ones(logits.shape, dtype=np.bool_)
    kept: Mask = logits >= np.partition(logits, -k)[-k]
    return kept


def nucleus(probabilities: Array, p: float) -> Mask:
    """Return the fewest most probable entries that add up to `p` or more, (V,).

    Notes
    -----
    Entries below ``(1 - p) / V`` add up to less than ``1 - p`` and so are outside: only the others need
    sorting, as in llama2.c. Half of that bound leaves room for rounding.

    Examples
    --------
    >>> nucleus(np.array([0.1, 0.5, 0.25, 0.15]), 0.7)
    array([False,  True,  True, False])
    """
    candidates = np.flatnonzero(probabilities >= 0.5 * (1 - p) / probabilities.size)
    candidates = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    mass = np.cumsum(probabilities[candidates], dtype=np.float64)
    kept = np.zeros(probabilities.shape, dtype=np.bool_)
    kept[candidates[: np.searchsorted(mass, p) + 1]] = True
    return kept


def distribution(logits: Array, sampling: Sampling) -> Array:
    """Return the probabilities (V,) from which the next token is drawn; they add up to 1.

    Examples
    --------
    >>> distribution(np.log([0.1, 0.2, 0.3, 0.4]), Sampling(top_k=2)).round(3)
    array([0.   , 0.   , 0.429, 0.571])
    """
    if sampling.temperature == 0:
        certain: Array = np.zeros_like(logits)
        certain[logits.argmax()] = 1
        return certain
    kept = None if sampling.top_k is None else most_likely(logits, sampling.top_k)
    probabilities: Array = npkernels.softmax(logits, temperature=sampling.temperature, mask=kept)
    if sampling.top_p is not None:
        probabilities *= nucleus(probabilities, sampling.top_p)
        probabilities /= probabilities.sum()
    return probabilities


def choose(logits: Array, sampling: Sampling, rng: np.random.Generator) -> int:
    """Return one token, greedily or drawn by inverting the cumulative distribution.

    Examples
    --------
    >>> choose(np.array([0.0, 3.0, 1.0]), GREEDY, np.random.default_rng())
    1
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    mass = np.cumsum(distribution(logits, sampling), dtype=np.float64)
    return int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))


def generate(
    model: Llama,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    stop: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that the model writes after a prompt, each as soon as it is chosen.

    Parameters
    ----------
    model : Llama
    prompt : sequence of int
    max_tokens : int
        Ends after so many tokens, or where the model's context is full.
    sampling : Sampling
        The same seed gives the same tokens.
    stop : int, optional
        A token that ends the text; it is not yielded.

    Raises
    ------
    ValueError
        If the prompt is empty, or longer than the model's context.
    """
    context = model.config.context
    if len(prompt) > context:
        raise ValueError(f"the prompt has {len(prompt)} tokens; the model's context holds {context}")
    max_tokens = min(max_tokens, context + 1 - len(prompt))  # the last token need not be read again
    pick = model.timer.timed(SAMPLING, choose)
    rng = np.random.default_rng(sampling.seed)
    cache = model.new_cache(min(len(prompt) + max_tokens, context))
    fresh = list(prompt)
    for _ in range(max_tokens):
        token = pick(model(fresh, cache, last=True)[0], sampling, rng)
        if token == stop:
            return
        yield token
        fresh = [token]
