"""A cache of Transformers that keeps room for the tokens to come, instead of copying all keys for each of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: views of the tokens that are there, in memory that has room for more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rooms: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return all keys and values; where gradients are recorded, as the class above does it."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            both: tuple[torch.Tensor, torch.Tensor] = super().update(
                key_states, value_states, *args, **kwargs
            )
            return both
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", key_states)
        self.values = self._append("values", value_states)
        return self.keys, self.values

    def _append(self, what: str, new: torch.Tensor) -> torch.Tensor:
        have: torch.Tensor = getattr(self, what)
        start = have.shape[-2] if have.numel() else 0
        end = start + new.shape[-2]
        room = self._rooms.get(what)
        if room is None or not _fits(room, have, new, start, end):
            room = new.new_empty((*new.shape[:-2], end + max(end // 2, 64), new.shape[-1]))
            if start:
                room[..., :start, :] = have
            self._rooms[what] = room
        room[..., start:end, :] = new
        return room[..., :end, :]


def _fits(room: torch.Tensor, have: torch.Tensor, new: torch.Tensor, start: int, end: int) -> bool:
    """Whether the new tokens can be written behind those that are there."""
    alike = room.dtype == new.dtype and room.shape[:-2] == new.shape[:-2] and room.shape[-1] == new.shape[-1]
    there = not start or (have.data_ptr() == room.data_ptr() and have.stride() == room.stride())
    writable = torch.is_inference_mode_enabled() or not room.is_inference()
    return alike and there and writable and end <= room.shape[-2]


class GrowingCache(DynamicCache):
    """A `transformers.DynamicCache` that appends in place: a token costs its own memory, not that of all before it.

    Sliding layers are those of Transformers. Tokens that were cropped are overwritten by the next ones, also in tensors
    that were taken from the cache before.

    Parameters
    ----------
    config : transformers.PreTrainedConfig, optional
        Of the model: which layers have a sliding window.

    Examples
    --------
    >>> import torch
    >>> from npkernels.transformers import GrowingCache
    >>> cache = GrowingCache()
    >>> for _ in range(3):
    ...     k, v = cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
    >>> k.shape
    torch.Size([1, 2, 3, 4])
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]
        if self.layer_class_to_replicate is not None:
            self.layer_class_to_replicate = GrowingLayer
