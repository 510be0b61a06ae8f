"""Dropout in a user's module, whose masks are a function of the member and not of its pack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hpsearch.training.layers.dropout import hashed

FEATURE_AXES: dict[Callable[..., Any], int] = {
    functional.dropout: 0,
    functional.dropout1d: 1,
    functional.dropout2d: 2,
    functional.dropout3d: 3,
}
"""torch's functions, under ``nn.Dropout…`` as well, and over how many last axes what they drop reaches."""


class MemberDropout(TorchFunctionMode):
    """Within, ``nn.Dropout`` and its functions drop by a hash of the key, the call and the place.

    vmap can draw for all members alike or for each by its place in the pack; neither is the member's own stream. The
    hash is computed like any other operation, whether the key is one member's or, under vmap, each one's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key: torch.Tensor | None = None
        self._n_calls = 0

    def begin(self, key: torch.Tensor) -> None:
        """A forward pass comes; ``key``: () int32, of the member and the minibatch."""
        self._key = key
        self._n_calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Every call of a function of torch; all but dropout go their way."""
        del types
        if func in FEATURE_AXES and self._key is not None:
            return self._drop(FEATURE_AXES[func], *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(
        self,
        axes: int,
        input: torch.Tensor,  # noqa: A002 - torch's name
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> torch.Tensor:
        assert self._key is not None
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if not training or p == 0:
            return input
        shape = input.shape[: input.dim() - axes] + (1,) * axes
        mask = self._mask(shape, p).to(input.dtype)
        return input.mul_(mask) if inplace else input * mask

    def _mask(self, shape: torch.Size | tuple[int, ...], p: float) -> torch.Tensor:
        """0 or 1 / (1 − p)."""
        assert self._key is not None
        self._n_calls += 1
        places = torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=self._key.device).view(shape)
        drawn = hashed(hashed(places) ^ hashed(self._key + self._n_calls))
        kept = drawn >= int(p * 2**32) - 2**31 if p < 1 else torch.zeros_like(drawn)
        return kept.to(torch.float32) * (1 / (1 - p) if p < 1 else 0.0)
