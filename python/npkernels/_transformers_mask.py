"""The mask of a Transformers model as a rule instead of an array of queries x keys, wherever it is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from transformers import masking_utils
from transformers.utils.import_utils import is_tracing


class PatternMask(torch.Tensor):
    """A bool tensor (B, 1, S, K), True = may attend, that is known by its rule and computed only if something reads it.

    Query i stands at position p = i + offset, key j at position j. The pair is allowed where j >= p - left and
    j <= p + right (-1 = open on that side), and where `padding`, if any, is True for key j.

    Attention reads the rule. Every operation of PyTorch sees an ordinary tensor, which is made the first time. An
    operation that writes into it, or gives away a view through which others may, ends the rule.
    """

    offset: int
    left: int
    right: int
    padding: torch.Tensor | None  # (B, K)
    is_rule: bool  # whether the rule still says what the mask is
    _dense: torch.Tensor | None
    _options: dict[str, Any] | None

    @staticmethod
    def __new__(
        cls,
        shape: tuple[int, int, int, int],
        offset: int,
        left: int,
        right: int,
        padding: torch.Tensor | None,
    ) -> PatternMask:
        """Make the mask of this shape and rule."""
        self: PatternMask = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=torch.bool, device=torch.device("cpu")
        )
        self.offset, self.left, self.right, self.padding = offset, left, right, padding
        self.is_rule, self._dense, self._options = True, None, None
        return self

    # results are ordinary tensors
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Say the rule, or the values if they were written."""
        if not self.is_rule:
            return f"PatternMask({self.values_now()!r})"
        padded = "" if self.padding is None else ", padded"
        return f"PatternMask({tuple(self.shape)}, offset={self.offset}, left={self.left}, right={self.right}{padded})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do the operation on the values."""
        masks: list[PatternMask] = []

        def values(mask: PatternMask) -> torch.Tensor:
            masks.append(mask)
            return mask.values_now()

        result = operation(*tree_map_only(cls, values, args), **tree_map_only(cls, values, kwargs or {}))
        schema = operation._schema
        if schema.is_mutable or any(returned.alias_info is not None for returned in schema.returns):
            for mask in masks:
                mask.is_rule = False
        return result

    def options(self) -> dict[str, Any]:
        """Return the rule as options of `attention`, the same ones for all layers."""
        if self._options is None:
            found: dict[str, Any] = {}
            _, _, queries, keys = self.shape
            left = (
                self.left if 0 <= self.left < self.offset + queries - 1 else -1
            )  # open, if it hides nothing
            right = self.right if 0 <= self.right < keys - 1 - self.offset else -1
            if (left, right, self.offset) == (-1, 0, 0):
                found["causal"] = (queries == keys and self.padding is None) or "top_left"
            elif (left, right) != (-1, -1):
                found.update(q_offset=self.offset, window=(left, right))
            if self.padding is not None:
                lengths = self.padding.sum(dim=1)
                if torch.equal(self.padding, torch.arange(self.padding.shape[1]) < lengths[:, None]):
                    found["kv_lengths"] = lengths.numpy()  # padded at the end: nothing of it is read
                else:
                    found["mask"] = self.padding.numpy()[:, None, None, :]
            self._options = found
        return self._options

    def values_now(self) -> torch.Tensor:
        """Return the values as an ordinary tensor, the same one each time."""
        if self._dense is None:
            batch, _, queries, keys = self.shape
            behind = (self.offset + torch.arange(queries))[:, None] - torch.arange(keys)
            seen = torch.ones(queries, keys, dtype=torch.bool)
            if self.left >= 0:
                seen &= behind <= self.left
            if self.right >= 0:
                seen &= behind >= -self.right
            seen = seen.expand(batch, 1, queries, keys)
            self._dense = seen.clone() if self.padding is None else seen & self.padding[:, None, None, :]
        return self._dense


def npkernels_mask(
    batch_size: int,
    q_length: int | None = None,
    kv_length: int = 0,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> torch.Tensor:
    """Make the mask of a forward pass: the mask function that goes with `npkernels_attention`.

    Called by Transformers, with the arguments of `transformers.masking_utils.sdpa_mask`. A causal mask, a sliding
    window and padding come out as a `PatternMask`, which costs nothing; anything else (packed sequences, blocks of
    images, functions of the user) as what `sdpa_mask` gives, a bool tensor (B, 1, S, K).
    """
    cache_position = kwargs.get("cache_position")  # Transformers 5.0 to 5.2
    if cache_position is not None:
        q_length, q_offset = len(cache_position), cache_position[:1].sum()
    if q_length is None:
        raise TypeError("npkernels_mask: q_length is missing; expected the number of queries")
    if not (is_tracing(attention_mask) or is_tracing(q_offset)):
        shape, first, kv_offset = (batch_size, 1, q_length, kv_length), int(q_offset), int(kv_offset)
        plain = allow_is_causal_skip or allow_is_bidirectional_skip  # nothing was added to the rule
        sides = _sides(mask_function, shape, first, kv_offset, local_size if plain else None)
        if sides is not None:
            return PatternMask(
                shape, first - kv_offset, *sides, _padding(attention_mask, kv_length, kv_offset)
            )
    if cache_position is None:
        kwargs["q_length"], kwargs["q_offset"] = q_length, q_offset
    dense: torch.Tensor | None = masking_utils.sdpa_mask(
        batch_size=batch_size,
        kv_length=kv_length,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **kwargs,
    )
    assert dense is not None  # which only happens where it may be skipped
    return dense


def _sides(
    rule: Callable[..., Any],
    shape: tuple[int, int, int, int],
    first: int,
    kv_offset: int,
    local_size: int | None,
) -> tuple[int, int] | None:
    """Return how far a query sees to the left and to the right, -1 = all; None if `rule` is something else."""
    if rule is masking_utils.causal_mask_function:
        return -1, 0
    if rule is masking_utils.bidirectional_mask_function:
        return -1, -1
    if local_size is None:
        return None
    # A causal window, one to both sides, or chunks of this size; the first and the last two queries tell which.
    batch, _, queries, keys = shape
    rows = first + torch.tensor(
        sorted({i for i in (0, queries - 2, queries - 1) if i >= 0}), dtype=torch.int64
    )
    columns = kv_offset + torch.arange(keys)
    behind = rows[:, None] - columns
    allowed = rule(
        torch.arange(batch)[:, None, None, None],
        torch.zeros((1, 1, 1, 1), dtype=torch.int64),
        rows[None, None, :, None],
        columns[None, None, None, :],
    )
    for left, right in ((local_size - 1, 0), (local_size, local_size)):
        expected = (behind <= left) & (behind >= -right)
        if torch.equal(allowed.expand(batch, 1, *expected.shape), expected.expand(batch, 1, *expected.shape)):
            return left, right
    return None


def _padding(attention_mask: torch.Tensor | None, keys: int, kv_offset: int) -> torch.Tensor | None:
    """Return which keys (B, K) are no padding; None if all."""
    if attention_mask is None:
        return None
    present: Any = masking_utils.prepare_padding_mask(attention_mask, keys, kv_offset)
    present = present[:, kv_offset : kv_offset + keys].to(torch.bool)
    return None if bool(present.all()) else present
