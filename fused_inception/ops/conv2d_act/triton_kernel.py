"""One convolution, its bias and its activation in Triton, as an implicit matrix product.

    y[p, q, f] = act(bias[f] + sum over r, s, c of x[h + r, w + s, c] * weight[f, r, s, c])
    h = p * step_h - pad_h,  w = q * step_w - pad_w

Rows of the product are the N·P·Q output pixels, gathered from the input by `conv_product`; nothing
is unrolled in memory. Two kernels:

* `conv2d_act_kernel`: channels in multiples of 16 (the launcher pads others with zeros). Its
  filters may be those of several convolutions of one geometry that read the same input, one below
  the other in the weight: up to four *segments*, each with a destination and an activation of its
  own. A block of filters belongs to one segment. So the sibling 1×1 convolutions of an Inception
  block are one product, each writing straight into its slice of the block's output or into a map of
  its own.
* `conv2d_act_few_channels_kernel`: up to 8 channels, as the three of an image. Padding them to 16
  would write and read a map five times the size of the image. Instead the K blocks run over
  (r, s, c) taken together, 27 for a 3×3 filter on three channels, and elements are loaded one by
  one, from any strides: an image in NCHW costs no copy.

Bytes moved from and to memory: the input, the weight and the output once; what the taps and the
blocks of filters read again comes from L2, so blocks of filters are the fast index of the grid.

Limits: one launch covers fewer than 2^31 rows, and the launcher splits a larger batch. Nothing that
orders a sum depends on the batch.
"""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_conv import (
    SUM_LENGTH,
    conv_product,
    epilogue,
    multiply_add,
    pixel_of_row,
    store_tile,
    tap_mask,
)
from fused_inception.ops.common.triton_math import relu


@triton.jit(
    do_not_specialize=["num_rows", "first_image", "f_blocks", "end0", "end1", "end2", "end3"],
    do_not_specialize_on_alignment=["bias_ptr"],
)
def conv2d_act_kernel(
    x_ptr,
    weight_ptr,  # (filters, R, S, channels)
    bias_ptr,
    y0_ptr,  # one destination a segment
    y1_ptr,
    y2_ptr,
    y3_ptr,
    first_image,
    num_rows,  # output pixels of this launch, ordered (image, p, q)
    height,
    width,
    out_height,
    out_width,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_y0,  # elements from one pixel of a destination to the next
    stride_y1,
    stride_y2,
    stride_y3,
    step_h,  # stride and padding of the convolution
    step_w,
    pad_h,
    pad_w,
    channels,
    f_blocks,
    end0,  # the filter at which a segment ends
    end1,
    end2,
    end3,
    SEGMENTS: tl.constexpr,
    RELUS: tl.constexpr,  # bit i: whether segment i has a ReLU
    HAS_BIAS: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    CHECK_H: tl.constexpr,  # whether a tap may lie outside the map
    CHECK_W: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # The segment of this program's filters.
    block = tl.program_id(0) % f_blocks
    y_ptr, stride_y, begin, end, segment = y0_ptr, stride_y0, 0, end0, 0
    if SEGMENTS > 1:
        if block >= tl.cdiv(end - begin, BLOCK_F):
            block -= tl.cdiv(end - begin, BLOCK_F)
            y_ptr, stride_y, begin, end, segment = y1_ptr, stride_y1, end0, end1, 1
            if SEGMENTS > 2:
                if block >= tl.cdiv(end - begin, BLOCK_F):
                    block -= tl.cdiv(end - begin, BLOCK_F)
                    y_ptr, stride_y, begin, end, segment = y2_ptr, stride_y2, end1, end2, 2
                    if SEGMENTS > 3:
                        if block >= tl.cdiv(end - begin, BLOCK_F):
                            block -= tl.cdiv(end - begin, BLOCK_F)
                            y_ptr, stride_y, begin, end, segment = y3_ptr, stride_y3, end2, end3, 3
    channel = block * BLOCK_F + tl.arange(0, BLOCK_F)
    offs_f = begin + channel
    mask_f = offs_f < end

    row = (tl.program_id(0) // f_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = row < num_rows
    image, p, q = pixel_of_row(row, out_height, out_width)
    h = p * step_h - pad_h
    w = q * step_w - pad_w
    x_offset = (first_image + image) * stride_xn
    x_offset += h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw
    acc = conv_product(
        tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32),
        x_ptr + x_offset, h, w, valid, height, width, stride_xh, stride_xw,
        weight_ptr + offs_f.to(tl.int64) * (R * S) * channels, mask_f, channels,
        R, S, -1, CHECK_H, CHECK_W, EVEN_K, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
    )  # fmt: skip
    y = epilogue(acc, bias_ptr, offs_f, mask_f, HAS_BIAS, False)
    if RELUS == 2**SEGMENTS - 1:
        y = relu(y)
    elif RELUS > 0:
        y = tl.where(((RELUS >> segment) & 1) != 0, relu(y), y)
    y_offset = (tl.cast(first_image, tl.int64) * out_height * out_width + row) * stride_y
    store_tile(y_ptr, y_offset, channel, y, valid, mask_f)


@triton.jit(
    do_not_specialize=[
        "num_rows", "first_image", "stride_xn", "stride_xc", "stride_xh", "stride_xw",
    ],
    do_not_specialize_on_alignment=["x_ptr", "bias_ptr"],
)  # fmt: skip
def conv2d_act_few_channels_kernel(
    x_ptr,
    weight_ptr,  # (filters, R, S, CHANNELS)
    bias_ptr,
    y_ptr,
    first_image,
    num_rows,
    height,
    width,
    out_height,
    out_width,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_y,
    step_h,
    step_w,
    pad_h,
    pad_w,
    filters,
    CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    CHECK_H: tl.constexpr,
    CHECK_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    DEPTH: tl.constexpr = R * S * CHANNELS
    IEEE: tl.constexpr = (x_ptr.dtype.element_ty == tl.float32) and not TF32
    f_blocks = tl.cdiv(filters, BLOCK_F)
    offs_f = (tl.program_id(0) % f_blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask_f = offs_f < filters
    filter_rows = weight_ptr + offs_f.to(tl.int64) * DEPTH

    row = (tl.program_id(0) // f_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = row < num_rows
    image, p, q = pixel_of_row(row, out_height, out_width)
    h = p * step_h - pad_h
    w = q * step_w - pad_w
    x_offset = (first_image + image) * stride_xn
    x_offset += h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw

    acc = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
    CHAIN: tl.constexpr = SUM_LENGTH if IEEE else DEPTH
    for k0 in range(0, DEPTH, CHAIN):
        partial = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
        for k1 in range(k0, tl.minimum(k0 + CHAIN, DEPTH), BLOCK_K):
            k = k1 + tl.arange(0, BLOCK_K)
            tap = k // CHANNELS
            r = (tap // S)[None, :]
            s = (tap % S)[None, :]
            mask_a = tap_mask(
                valid[:, None] & (k < DEPTH)[None, :],
                h[:, None] + r, w[:, None] + s, height, width, CHECK_H, CHECK_W,
            )  # fmt: skip
            k_offset = r.to(tl.int64) * stride_xh + s.to(tl.int64) * stride_xw
            k_offset += (k % CHANNELS)[None, :].to(tl.int64) * stride_xc
            a = tl.load(x_ptr + x_offset[:, None] + k_offset, mask=mask_a, other=0.0)
            mask_b = mask_f[None, :] & (k < DEPTH)[:, None]
            b = tl.load(filter_rows[None, :] + k[:, None], mask=mask_b, other=0.0)
            partial = multiply_add(a, b, partial, TF32, UPCAST)
        acc += partial
    y = epilogue(acc, bias_ptr, offs_f, mask_f, HAS_BIAS, RELU)
    y_offset = (tl.cast(first_image, tl.int64) * out_height * out_width + row) * stride_y
    store_tile(y_ptr, y_offset, offs_f, y, valid, mask_f)
