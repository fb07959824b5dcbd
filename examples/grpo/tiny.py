"""A small transformer and its gradients: attention by npkernels, the matrix products and what is left by NumPy.

Letters: B sequences, S tokens of each, E width, H heads, D = E / H, V vocabulary. Blocks are
x += attention(norm(x)), x += mlp(norm(x)), all without biases; positions are learned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import npkernels

Array = npt.NDArray[np.float32]
Parameters = dict[str, Array]
EPS = np.float32(1e-5)


def norm(x: Array) -> tuple[Array, Array]:
    """Return x over its root mean square, and one over that."""
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    return x * r, r


def norm_vjp(dy: Array, y: Array, r: Array) -> Array:
    """Return the cotangent of x for y = x r."""
    dx: Array = r * (dy - y * (dy * y).mean(-1, keepdims=True))
    return dx


class Tiny:
    """The model: calling it gives logits and what `backward` needs."""

    def __init__(
        self, vocabulary: int, length: int, *, width: int, heads: int, layers: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        self.heads, self.layers = heads, layers

        def matrix(inputs: int, outputs: int, gain: float = 1.0) -> Array:
            return (rng.standard_normal((inputs, outputs)) * gain / np.sqrt(inputs)).astype(np.float32)

        p = {"tokens": matrix(vocabulary, width, 1.0), "positions": matrix(length, width, 1.0)}
        for i in range(layers):
            p[f"{i} qkv"] = matrix(width, 3 * width)
            p[f"{i} out"] = matrix(width, width, 0.5)
            p[f"{i} up"] = matrix(width, 4 * width)
            p[f"{i} down"] = matrix(4 * width, width, 0.5)
        p["head"] = matrix(width, vocabulary, 0.1)
        self.parameters: Parameters = p

    def __call__(self, ids: npt.NDArray[np.int64]) -> tuple[Array, list[Any]]:
        """Return the logits (B, S, V) of what follows each token."""
        p, tape = self.parameters, [ids]
        x = p["tokens"][ids] + p["positions"][: ids.shape[1]]
        for i in range(self.layers):
            y, r = norm(x)
            o, attended = self._attend(i, y)
            x = x + o @ p[f"{i} out"]
            z, s = norm(x)
            h = z @ p[f"{i} up"]
            a = np.maximum(h, 0)
            x = x + a @ p[f"{i} down"]
            tape.append((y, r, o, attended, z, s, a))
        y, r = norm(x)
        tape.append((y, r))
        return y @ p["head"], tape

    def _split(self, x: Array) -> Array:
        """(B, S, n E) -> (n, B, H, S, D), views."""
        B, S, width = x.shape
        n = width // self.parameters["head"].shape[0]
        return x.reshape(B, S, n, self.heads, -1).transpose(2, 0, 3, 1, 4)

    @staticmethod
    def _join(x: Array) -> Array:
        """(n, B, H, S, D) -> (B, S, n E)."""
        n, B, H, S, D = x.shape
        return x.transpose(1, 3, 0, 2, 4).reshape(B, S, n * H * D)

    def _attend(self, i: int, y: Array) -> tuple[Array, Any]:
        q, k, v = self._split(y @ self.parameters[f"{i} qkv"])
        o, lse = npkernels.attention(q, k, v, causal=True, return_lse=True)
        return self._join(o[None]), (q, k, v, o, lse)

    def _attend_vjp(self, do: Array, attended: Any) -> Array:
        """Return the cotangent of the queries, keys and values, (B, S, 3 E)."""
        g = npkernels.attention_vjp(self._split(do)[0], *attended, causal=True)
        return self._join(np.stack([g.dq, g.dk, g.dv]))

    def backward(self, dlogits: Array, tape: list[Any]) -> Parameters:
        """Return the gradient of every parameter."""
        p, g = self.parameters, {}

        def product(name: str, x: Array, dy: Array) -> Array:
            """Of y = x @ p[name]: notes the gradient of the matrix, returns that of x."""
            g[name] = x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
            return dy @ p[name].T

        y, r = tape[-1]
        dx = norm_vjp(product("head", y, dlogits), y, r)
        for i in reversed(range(self.layers)):
            y, r, o, attended, z, s, a = tape[1 + i]
            da = product(f"{i} down", a, dx) * (a > 0)
            dx = dx + norm_vjp(product(f"{i} up", z, da), z, s)
            dqkv = self._attend_vjp(product(f"{i} out", o, dx), attended)
            dx = dx + norm_vjp(product(f"{i} qkv", y, dqkv), y, r)
        ids = tape[0]
        g["tokens"], g["positions"] = np.zeros_like(p["tokens"]), np.zeros_like(p["positions"])
        np.add.at(g["tokens"], ids, dx)
        g["positions"][: ids.shape[1]] = dx.sum(0)
        return g


class Adam:
    """D. Kingma, J. Ba, "Adam", 2015."""

    def __init__(self, parameters: Parameters, rate: float, b1: float = 0.9, b2: float = 0.99) -> None:
        self.parameters, self.rate, self.b1, self.b2, self.t = parameters, rate, b1, b2, 0
        self.m = {name: np.zeros_like(p) for name, p in parameters.items()}
        self.v = {name: np.zeros_like(p) for name, p in parameters.items()}

    def step(self, gradients: Parameters) -> None:
        """Change the parameters in place."""
        self.t += 1
        rate = self.rate * np.sqrt(1 - self.b2**self.t) / (1 - self.b1**self.t)
        for name, g in gradients.items():
            m, v = self.m[name], self.v[name]
            m += (1 - self.b1) * (g - m)
            v += (1 - self.b2) * (g * g - v)
            self.parameters[name] -= (rate * m / (np.sqrt(v) + 1e-8)).astype(np.float32)
