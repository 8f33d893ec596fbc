"""Pieces that every Triton kernel shares: the activation and the rounding of tf32 operands."""

import triton
import triton.language as tl


@triton.jit
def relu(x):
    """max(x, 0) that keeps NaN and -0.0, as `F.relu` does (`tl.maximum` turns NaN into 0)."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def round_to_tf32(x):
    """float32 rounded to tf32: 10 mantissa bits, to nearest, ties away (PTX's `cvt.rna`).

    Tensor cores drop the low bits of a tf32 operand, which biases every product towards zero.
    Adding half of the last kept bit carries correctly into the exponent; infinities keep their
    bits. A NaN gets its quiet bit: one whose payload lies in the dropped bits would else be read as
    an infinity.
    """
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) >> 13) << 13
    return tl.where(x == x, rounded, bits | 0x00400000).to(tl.float32, bitcast=True)
