"""Maps of special values for the pools, for the emulator and the interpreter alike."""

from __future__ import annotations

import math

import torch

from fused_inception import testing

_INTEGERS = {2: torch.int16, 4: torch.int32}


def special_maps(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """(3, 20, 9, 8) each, in channels_last.

    "special" has NaN of two bit patterns, infinities, signed zeros and ties anywhere in a window,
    "zeros" zeros of both signs, "low" nothing but -inf, "noise" normal numbers and "holes" NaN
    among such.
    """
    generator = torch.Generator().manual_seed(3)
    shape = (3, 20, 9, 8)
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-7]).to(dtype)
    bits = values.view(_INTEGERS[dtype.itemsize])
    values = torch.cat([values, (bits[:1] | 1).view(dtype)])
    draw = torch.randint(len(values), shape, generator=generator)
    signs, gaps = (torch.rand(shape, generator=generator) for _ in range(2))
    noise = torch.randn(shape, generator=generator)
    maps = {
        "special": values[draw],
        "zeros": torch.where(signs < 0.5, 0.0, -0.0),
        "low": torch.full(shape, -math.inf),
        "noise": noise,
        "holes": torch.where(gaps < 0.1, math.nan, noise),
    }
    return {name: testing.channels_last(map_.to(dtype)) for name, map_ in maps.items()}


# Those that decide how a maximum treats what is no ordinary number.
EDGES = ("special", "zeros", "low")
