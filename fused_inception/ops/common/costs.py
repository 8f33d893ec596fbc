"""What operators cost, said by whoever registers them and read by `fused_inception.analysis`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

# (arguments of the operator, its result) -> a number.
Count: TypeAlias = Callable[[Sequence[Any], Tensor], int]

# Name with the namespace -> (multiply-accumulates, bytes that move between its parts).
registered: dict[str, tuple[Count, Count]] = {}


def register_cost(operator: str, macs: Count, hidden_bytes: Count) -> None:
    """Say what an operator costs.

    Args:
        operator: its name with the namespace.
        macs: its multiply-accumulates.
        hidden_bytes: bytes that move between its parts where each part reads its operands from
            memory and writes its result.
    """
    registered[operator] = (macs, hidden_bytes)
