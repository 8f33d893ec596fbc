"""Pools of channels_last maps in Triton: no arithmetic but comparisons, sums and one division.

    max_pool2d_kernel           y[p, q, c] = max over r, s of x[h + r, w + s, c]
    avg_pool2d_act_kernel       y[p, q, c] = act(bias[c] + mean over r, s of x[h + r, w + s, c])
    global_avg_pool2d_kernel    y[c]       = mean over h, w of x[h, w, c]

The average pool has a bias and an activation because it stands behind the 1×1 convolution that the
network has behind the pool: both are linear, so they may change places, and the pool then runs over
the 1×1's filters instead of over all channels of the block's input.

The maximum is PyTorch's, bit by bit (`max_pool_tile`). Sums are float32, row-major over the window.
The global mean keeps one partial sum a row of the tile, pixels `i`, `i + BLOCK_P`, ... in the
`i`-th, and adds these up at the end: its order depends on the tile and the map, never on the batch.

Bytes moved from and to memory: the input and the output once; what windows share comes from L2.

Limits: channels in multiples of 16 (the launcher pads others with zeros). One launch covers fewer
than 2^31 rows, and the launcher splits a larger batch.
"""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_conv import pixel_of_row, store_tile, tap_mask
from fused_inception.ops.common.triton_math import relu
from fused_inception.ops.common.triton_pool import max_pool_tile


@triton.jit(do_not_specialize=["num_rows", "first_image"])
def max_pool2d_kernel(
    x_ptr,
    y_ptr,
    first_image,
    num_rows,  # output pixels of this launch, ordered (image, p, q)
    height,
    width,
    out_height,
    out_width,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_y,  # elements from one pixel of the destination to the next
    pool_channels,
    step_h,  # stride and padding of the pool
    step_w,
    pad_h,
    pad_w,
    R: tl.constexpr,
    S: tl.constexpr,
    CHECK_H: tl.constexpr,  # whether a pixel of the window may lie outside the map
    CHECK_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    max_pool_tile(
        tl.program_id(0),
        x_ptr, y_ptr, first_image, num_rows, height, width, out_height, out_width,
        stride_xn, stride_xh, stride_xw, stride_y, pool_channels, step_h, step_w, pad_h, pad_w,
        R, S, CHECK_H, CHECK_W, BLOCK_P, BLOCK_K, UPCAST,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["num_rows", "first_image"],
    do_not_specialize_on_alignment=["bias_ptr"],
)
def avg_pool2d_act_kernel(
    x_ptr,
    bias_ptr,
    y_ptr,
    first_image,
    num_rows,  # pixels of this launch, ordered (image, h, w)
    height,
    width,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_y,  # elements from one pixel of the destination to the next
    pool_channels,
    KERNEL: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    k_blocks = tl.cdiv(pool_channels, BLOCK_K)
    k = (tl.program_id(0) % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_k = k < pool_channels
    row = (tl.program_id(0) // k_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = row < num_rows
    image, h, w = pixel_of_row(row, height, width)
    h -= KERNEL // 2
    w -= KERNEL // 2
    x_offset = (first_image + image) * stride_xn
    x_offset += h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw
    total = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    count = tl.zeros((BLOCK_P,), dtype=tl.int32)
    for r in range(KERNEL):
        for s in tl.static_range(KERNEL):
            inside = tap_mask(valid, h + r, w + s, height, width, True, True)
            tap = x_offset + tl.cast(r, tl.int64) * stride_xh + tl.cast(s, tl.int64) * stride_xw
            mask = inside[:, None] & mask_k[None, :]
            a = tl.load(x_ptr + tap[:, None] + k[None, :], mask=mask, other=0.0)
            total += a.to(tl.float32)
            count += inside.to(tl.int32)
    if INCLUDE_PAD:
        y = tl.div_rn(total, float(KERNEL * KERNEL))
    else:
        # Rows that are no pixel have counted none; nothing of them is stored.
        y = tl.div_rn(total, tl.maximum(count, 1).to(tl.float32)[:, None])
    if HAS_BIAS:
        y += tl.load(bias_ptr + k, mask=mask_k, other=0.0).to(tl.float32)[None, :]
    if RELU:
        y = relu(y)
    y_offset = (tl.cast(first_image, tl.int64) * height * width + row) * stride_y
    store_tile(y_ptr, y_offset, k, y, valid, mask_k)


@triton.jit(do_not_specialize=["first_image", "pixels"])
def global_avg_pool2d_kernel(
    x_ptr,
    y_ptr,
    first_image,
    pixels,  # of an image
    stride_xn,
    stride_xw,
    stride_y,  # elements from one image of the destination to the next
    pool_channels,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    k_blocks = tl.cdiv(pool_channels, BLOCK_K)
    k = (tl.program_id(0) % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_k = k < pool_channels
    image = first_image + (tl.program_id(0) // k_blocks).to(tl.int64)
    total = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    for pixel0 in range(0, pixels, BLOCK_P):
        pixel = pixel0 + tl.arange(0, BLOCK_P)
        offset = image * stride_xn + pixel.to(tl.int64) * stride_xw
        mask = (pixel < pixels)[:, None] & mask_k[None, :]
        a = tl.load(x_ptr + offset[:, None] + k[None, :], mask=mask, other=0.0)
        total += a.to(tl.float32)
    mean = tl.div_rn(tl.sum(total, 0), pixels.to(tl.float32))
    tl.store(y_ptr + image * stride_y + k, mean.to(y_ptr.dtype.element_ty), mask=mask_k)
