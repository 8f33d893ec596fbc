"""Stride-2 convolutions of several maps and a stride-2 max pool of another in Triton, one launch.

    y_i[p, q, f]    = relu(bias_i[f] + sum over r, s, c of x_i[2p + r, 2q + s, c] * w_i[f, r, s, c])
    pooled[p, q, c] = max over r, s of x[2p + r, 2q + s, c]

Each convolution has an input, a weight, a bias and a destination of its own, and so has the pool;
the maps have one size. Programs are numbered over the tiles of the first convolution, then those of
the next, then those of the pool: a program finds out whose tile it has and is that kernel. A sum
has the order of `conv2d_act`, taps outside and channels inside, and its bits.

Bytes moved from and to memory: those of the launches that it stands for. What is saved is launches,
and multiprocessors that idle: at 17×17 one image makes five tiles of its 320 filters, three of its
192 and 24 of the pool, of which none waits for another. The pool's come last, where the tiles of
the convolutions leave some idle.

Limits: up to three convolutions; channels in multiples of 16 (the launcher pads others with zeros).
One launch covers fewer than 2^31 rows, and the launcher splits a larger batch.
"""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_conv import (
    conv_product,
    epilogue,
    pixel_of_row,
    store_tile,
)
from fused_inception.ops.common.triton_pool import max_pool_tile


@triton.jit(
    do_not_specialize=["num_rows", "first_image"],
    do_not_specialize_on_alignment=["bias0_ptr", "bias1_ptr", "bias2_ptr"],
)
def halving_branches_kernel(
    x0_ptr,  # of each convolution; those that are not there repeat the last one
    x1_ptr,
    x2_ptr,
    weight0_ptr,  # (filters, KERNEL, KERNEL, channels)
    weight1_ptr,
    weight2_ptr,
    bias0_ptr,  # anything where BIASES says that there is none
    bias1_ptr,
    bias2_ptr,
    y0_ptr,
    y1_ptr,
    y2_ptr,
    channels0,
    channels1,
    channels2,
    filters0,
    filters1,
    filters2,
    stride_y0,  # elements from one pixel of a destination to the next
    stride_y1,
    stride_y2,
    pool_x_ptr,
    pool_ptr,
    stride_pool_x,  # elements from one pixel to the next
    stride_pool,
    pool_channels,  # those that are stored
    first_image,
    num_rows,  # output pixels of this launch, ordered (image, p, q)
    height,
    width,
    out_height,
    out_width,
    BRANCHES: tl.constexpr,
    BIASES: tl.constexpr,  # bit i: whether convolution i has a bias
    KERNEL: tl.constexpr,
    EVEN_K: tl.constexpr,  # whether the channels of all come in whole K blocks
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    POOL_P: tl.constexpr,
    POOL_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # The convolution of this program's tile.
    tile = tl.program_id(0)
    p_blocks = tl.cdiv(num_rows, BLOCK_P)
    x_ptr, weight_ptr, bias_ptr, y_ptr = x0_ptr, weight0_ptr, bias0_ptr, y0_ptr
    channels, filters, stride_y, branch = channels0, filters0, stride_y0, 0
    if BRANCHES > 1:
        if tile >= p_blocks * tl.cdiv(filters, BLOCK_F):
            tile -= p_blocks * tl.cdiv(filters, BLOCK_F)
            x_ptr, weight_ptr, bias_ptr, y_ptr = x1_ptr, weight1_ptr, bias1_ptr, y1_ptr
            channels, filters, stride_y, branch = channels1, filters1, stride_y1, 1
            if BRANCHES > 2:
                if tile >= p_blocks * tl.cdiv(filters, BLOCK_F):
                    tile -= p_blocks * tl.cdiv(filters, BLOCK_F)
                    x_ptr, weight_ptr, bias_ptr, y_ptr = x2_ptr, weight2_ptr, bias2_ptr, y2_ptr
                    channels, filters, stride_y, branch = channels2, filters2, stride_y2, 2
    f_blocks = tl.cdiv(filters, BLOCK_F)

    if tile < p_blocks * f_blocks:
        offs_f = (tile % f_blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
        mask_f = offs_f < filters
        row = (tile // f_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        valid = row < num_rows
        image, p, q = pixel_of_row(row, out_height, out_width)
        stride_xh = tl.cast(width, tl.int64) * channels
        x_offset = (first_image + image) * (stride_xh * height)
        x_offset += (2 * p).to(tl.int64) * stride_xh + (2 * q).to(tl.int64) * channels
        acc = conv_product(
            tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32),
            x_ptr + x_offset, 2 * p, 2 * q, valid, height, width, stride_xh, channels,
            weight_ptr + offs_f.to(tl.int64) * (KERNEL * KERNEL) * channels, mask_f, channels,
            KERNEL, KERNEL, -1, False, False, EVEN_K, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
        )  # fmt: skip
        if BIASES > 0:
            mask_b = mask_f & (((BIASES >> branch) & 1) != 0)
            acc += tl.load(bias_ptr + offs_f, mask=mask_b, other=0.0).to(tl.float32)[None, :]
        y = epilogue(acc, bias_ptr, offs_f, mask_f, False, True)
        y_offset = (tl.cast(first_image, tl.int64) * out_height * out_width + row) * stride_y
        store_tile(y_ptr, y_offset, offs_f, y, valid, mask_f)
    else:
        stride_xh = tl.cast(width, tl.int64) * stride_pool_x
        max_pool_tile(
            tile - p_blocks * f_blocks,
            pool_x_ptr, pool_ptr, first_image, num_rows, height, width, out_height, out_width,
            stride_xh * height, stride_xh, stride_pool_x, stride_pool, pool_channels, 2, 2, 0, 0,
            KERNEL, KERNEL, False, False, POOL_P, POOL_K, UPCAST,
        )  # fmt: skip
