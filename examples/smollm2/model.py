"""A Llama model: sizes, weights, the forward pass with a key/value cache, the log-probabilities of a text.

Letters: S new tokens, K tokens in the cache with them, V vocabulary, E width, F width of the feed-forward
layer, H query heads, G key/value heads, D head size. There is no batch axis: this is one conversation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

import npkernels
from smollm2.timer import Timer

Array = npt.NDArray[np.float32]
Tokens: TypeAlias = npt.ArrayLike  # integers (S,)

PRODUCTS, KERNELS = "matrix products", "npkernels"  # the labels under which a model adds up its time


@dataclass(frozen=True)
class Config:
    """Sizes and constants of a model."""

    layers: int
    width: int  # E
    hidden: int  # F
    heads: int  # H
    kv_heads: int  # G
    head_dim: int  # D
    context: int  # the longest sequence that the model was trained on
    rope_base: float
    norm_eps: float


@dataclass(frozen=True)
class Layer:
    """One block.

    Matrices are (outputs, inputs), so that ``x @ w.T`` for a single token reads whole rows. Those that
    multiply the same input are stacked, so that one product serves them all.
    """

    attention_norm: Array  # (E,)
    qkv: Array  # ((H + 2 G) D, E): queries, then keys, then values
    output: Array  # (E, H D)
    ffn_norm: Array  # (E,)
    gate_up: Array  # (2 F, E)
    down: Array  # (E, F)


@dataclass(frozen=True)
class Weights:
    """All arrays of the model, float32."""

    config: Config
    embedding: Array  # (V, E)
    layers: tuple[Layer, ...]
    norm: Array  # (E,)
    head: Array  # (V, E); the embedding itself where the model ties the two

    @property
    def parameters(self) -> int:
        """How many numbers the model has; a tied head counts once."""
        arrays = [self.embedding, self.norm] + ([] if self.head is self.embedding else [self.head])
        arrays += [array for layer in self.layers for array in vars(layer).values()]
        return sum(array.size for array in arrays)


class Cache:
    """Keys and values of the tokens so far: a `npkernels.KVCache` for every layer."""

    def __init__(self, config: Config, capacity: int) -> None:
        sizes = {"kv_heads": config.kv_heads, "capacity": capacity, "head_dim": config.head_dim}
        self.layers = [npkernels.KVCache(1, **sizes) for _ in range(config.layers)]
        self.capacity = capacity

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return int(self.layers[-1].lengths[0])


class Llama:
    """The model; calling it gives logits.

    Parameters
    ----------
    weights : Weights
        From `weights.load_weights`.

    Attributes
    ----------
    config : Config
    timer : Timer
        Seconds spent in matrix products and in npkernels.
    tokens : int
        How many tokens went through the model so far.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.config = weights.config
        self.timer = Timer()
        self.tokens = 0
        self._product = self.timer.timed(PRODUCTS, np.matmul)
        self._append = self.timer.timed(KERNELS, npkernels.KVCache.append)
        self._attention = self.timer.timed(KERNELS, npkernels.KVCache.attend)
        self._rotate = self.timer.timed(KERNELS, npkernels.rotary_embedding)
        self._token_log_probs = self.timer.timed(KERNELS, npkernels.token_log_probs)
        half = self.config.head_dim // 2
        frequency = self.config.rope_base ** (-np.arange(half) / half)
        angle = np.arange(self.config.context)[:, None] * frequency
        self._cos, self._sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def new_cache(self, capacity: int) -> Cache:
        """Return an empty cache for so many tokens."""
        return Cache(self.config, capacity)

    def __call__(self, tokens: Tokens, cache: Cache | None = None, *, last: bool = False) -> Array:
        """Return the logits of the token that follows each of `tokens`.

        Parameters
        ----------
        tokens : array_like of int (S,)
            The tokens after those that the cache holds.
        cache : Cache, optional
            Is extended by the tokens. Default: a new one, thrown away afterwards.
        last : bool
            Only the logits after the last token.

        Returns
        -------
        ndarray (S, V) or (1, V)

        Raises
        ------
        ValueError
            If there are no tokens, or more than the cache or the model's context can hold.
        """
        ids = np.asarray(tokens)
        if ids.size == 0:
            raise ValueError("tokens is empty; expected at least one")
        cache = self.new_cache(ids.size) if cache is None else cache
        start, stop = cache.length, cache.length + ids.size
        if stop > min(cache.capacity, self.config.context):
            limits = f"the cache holds {cache.capacity}, the model's context {self.config.context}"
            raise ValueError(f"{stop} tokens do not fit: {limits}")
        x = self.weights.embedding[ids]
        for i in range(self.config.layers):
            x += self._attend(i, x, cache.layers[i], start)
            x += self._feed_forward(i, x)
        self.tokens += ids.size
        if last:
            x = x[-1:]
        x = rms_norm(x, self.weights.norm, self.config.norm_eps)
        logits: Array = self._product(x, self.weights.head.T)
        return logits

    def _attend(self, i: int, x: Array, cache: npkernels.KVCache, start: int) -> Array:
        layer, c = self.weights.layers[i], self.config
        S, stop = len(x), start + len(x)
        qkv = self._product(rms_norm(x, layer.attention_norm, c.norm_eps), layer.qkv.T)
        heads = qkv.reshape(S, -1, c.head_dim).transpose(1, 0, 2)  # (H + 2 G, S, D), a view

        # GGUF orders the rows of a Llama's query and key matrices such that rotary pairs are neighbours.
        turned, cos, sin = heads[: c.heads + c.kv_heads], self._cos[start:stop], self._sin[start:stop]
        self._rotate(turned, cos=cos, sin=sin, interleaved=True, out=turned)

        keys, values = heads[c.heads :].reshape(2, 1, c.kv_heads, S, c.head_dim)
        self._append(cache, keys, values)
        mixed = np.empty((S, c.heads, c.head_dim), dtype=np.float32)
        self._attention(cache, heads[None, : c.heads], out=mixed.transpose(1, 0, 2)[None])
        out: Array = self._product(mixed.reshape(S, -1), layer.output.T)
        return out

    def _feed_forward(self, i: int, x: Array) -> Array:
        layer, c = self.weights.layers[i], self.config
        gate_up = self._product(rms_norm(x, layer.ffn_norm, c.norm_eps), layer.gate_up.T)
        out: Array = self._product(silu(gate_up[:, : c.hidden]) * gate_up[:, c.hidden :], layer.down.T)
        return out

    def log_probs(self, tokens: Tokens) -> Array:
        """Return the log-probability of each token but the first, given those before it, (S - 1,).

        ``npkernels.perplexity(model.log_probs(tokens))`` is the perplexity of a text.
        """
        ids = np.asarray(tokens)
        log_probs: Array = self._token_log_probs(self(ids[:-1]), ids[1:], stats=()).log_prob
        return log_probs


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Return x scaled to root mean square 1 along the last axis, times `weight` [1]_.

    References
    ----------
    .. [1] B. Zhang, R. Sennrich, "Root mean square layer normalization", 2019.

    Examples
    --------
    >>> rms_norm(np.array([[3.0, 4.0]]), np.array([1.0, 2.0]), eps=0.0).round(3)
    array([[0.849, 2.263]])
    """
    mean_square = np.einsum("se,se->s", x, x)[:, None] / x.shape[1]
    scaled: Array = x / np.sqrt(mean_square + x.dtype.type(eps))
    scaled *= weight
    return scaled


def silu(x: Array) -> Array:
    """Return ``x * sigmoid(x)``.

    Examples
    --------
    >>> silu(np.array([-1000.0, 0.0, 1000.0]))
    array([  -0.,    0., 1000.])
    """
    with np.errstate(over="ignore"):  # exp(1000) is inf, and x / inf the 0 that is meant
        denominator: Array = np.exp(-x)
    denominator += 1
    np.divide(x, denominator, out=denominator)
    return denominator
