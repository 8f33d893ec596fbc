"""A stride-2 convolution and a stride-2 pool of the same window in Triton, in one pass.

    y[p, q, f]        = act(bias[f] + sum over c, r, s of x[2p + r, 2q + s, c] * weight[f, r, s, c])
    y[p, q, Cout + c] = max (or mean) over r, s of x[2p + r, 2q + s, c]

The window of the pool is the window of the filter. Blocks of channels are the outer loop and taps
the inner one, so the tiles of one block of channels pass by in the row-major order of the window:
while a tile feeds the matrix unit, a running maximum (or sum) is kept of it, and the pool loads
nothing. The programs of one tile of pixels, one per block of filters, see the same tiles; each
stores the pool of every `f_blocks`-th block of channels.

The maximum is PyTorch's, bit by bit: the first pixel to begin with, replaced when the next is
greater or NaN; so NaN stays, and of +0 and -0 the first.

Bytes moved from and to memory: the input, the weight and the output once; what the taps and the
blocks of filters read again comes from L2. The window is always inside the map: no tap is checked.

Limits: channels in multiples of 16 (the launcher pads others with zeros). One launch covers fewer
than 2^31 rows, and the launcher splits a larger batch. The sum runs over blocks of channels outside
and taps inside; nothing that orders it depends on the batch.
"""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_conv import (
    SUM_LENGTH,
    epilogue,
    load_pixels,
    load_weights,
    multiply_add,
    pixel_of_row,
    store_tile,
)


@triton.jit
def _pool_step(pooled, a, tap, MAX: tl.constexpr):
    """The running maximum or sum after one more pixel of the window."""
    a = a.to(pooled.dtype)
    if MAX:
        return tl.where((tap == 0) | (a > pooled) | (a != a), a, pooled)
    return tl.where(tap == 0, a, pooled + a)


@triton.jit(
    do_not_specialize=["num_rows", "first_image"],
    do_not_specialize_on_alignment=["bias_ptr"],
)
def grid_reduction_kernel(
    x_ptr,
    weight_ptr,  # (filters, KERNEL, KERNEL, channels)
    bias_ptr,
    y_ptr,  # of the convolution
    pool_ptr,  # of the pool
    first_image,
    num_rows,  # output pixels of this launch, ordered (image, p, q)
    out_height,
    out_width,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_y,  # elements from one pixel of a destination to the next
    stride_pool,
    channels,
    pool_channels,  # those that are stored: `channels` without padding
    filters,
    KERNEL: tl.constexpr,
    MAX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    TAPS: tl.constexpr = KERNEL * KERNEL
    IEEE: tl.constexpr = (x_ptr.dtype.element_ty == tl.float32) and not TF32
    CHAIN: tl.constexpr = SUM_LENGTH // BLOCK_K  # steps of one chain of multiply-adds
    # Comparing keeps the bits of the input's dtype; a mean is summed in float32.
    POOL_DTYPE: tl.constexpr = x_ptr.dtype.element_ty if MAX and not UPCAST else tl.float32
    f_blocks = tl.cdiv(filters, BLOCK_F)
    block = tl.program_id(0) % f_blocks
    offs_f = block * BLOCK_F + tl.arange(0, BLOCK_F)
    offs_k = tl.arange(0, BLOCK_K)
    mask_f = offs_f < filters
    filter_rows = weight_ptr + offs_f.to(tl.int64) * TAPS * channels

    row = (tl.program_id(0) // f_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = row < num_rows
    image, p, q = pixel_of_row(row, out_height, out_width)
    x_offset = (first_image + image) * stride_xn
    x_offset += (2 * p).to(tl.int64) * stride_xh + (2 * q).to(tl.int64) * stride_xw
    pixels = x_ptr + x_offset
    pixel = tl.cast(first_image, tl.int64) * out_height * out_width + row

    acc = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
    partial = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
    pooled = tl.zeros((BLOCK_P, BLOCK_K), dtype=POOL_DTYPE)
    # One loop over blocks of channels and taps, so that loads run ahead across the blocks too.
    for step in range(tl.cdiv(channels, BLOCK_K) * TAPS):
        k_block = step // TAPS
        tap = step % TAPS
        k = k_block * BLOCK_K + offs_k
        a_offset = tl.cast(tap // KERNEL, tl.int64) * stride_xh
        a_offset += tl.cast(tap % KERNEL, tl.int64) * stride_xw
        b_offset = tl.cast(tap, tl.int64) * channels
        a = load_pixels(pixels, valid, a_offset, k, channels, EVEN_K)
        b = load_weights(filter_rows, mask_f, b_offset, k, channels, EVEN_K)
        if IEEE:
            partial = multiply_add(a, b, partial, TF32, UPCAST)
        else:
            acc = multiply_add(a, b, acc, TF32, UPCAST)
        last = tap == TAPS - 1
        if IEEE:
            ends = last | (tap % CHAIN == CHAIN - 1)
            acc += tl.where(ends, partial, 0.0)
            partial = tl.where(ends, 0.0, partial)
        if k_block % f_blocks == block:
            pooled = _pool_step(pooled, a, tap, MAX)
            if last:
                result = pooled if MAX else tl.div_rn(pooled, float(TAPS))
                store_tile(pool_ptr, pixel * stride_pool, k, result, valid, k < pool_channels)
    y = epilogue(acc, bias_ptr, offs_f, mask_f, HAS_BIAS, RELU)
    store_tile(y_ptr, pixel * stride_y, offs_f, y, valid, mask_f)
