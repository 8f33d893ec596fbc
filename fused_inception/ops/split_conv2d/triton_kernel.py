"""The expanded filter bank `1×n ∥ m×1` in Triton: two convolutions on one input tile.

    y[h, w, f]      = act(bias_row[f] + sum over t, c of x[h, w + s, c] * weight_row[f, t, c])
    y[h, w, Cr + f] = act(bias_col[f] + sum over t, c of x[h + r, w, c] * weight_col[f, t, c])
    s = t - n//2,  r = t - m//2

A program holds BLOCK_P pixels and, of each half, BLOCK_F filters: two accumulators. The centre tap
of both filters is the same pixel, so its tile is loaded once and multiplied twice; the n - 1 and
m - 1 other taps follow, each for its own half. For 1×3 ∥ 3×1 that is five tiles of pixels loaded
for six multiplied. A sum runs over the centre first, then the other taps in order, blocks of
channels inside.

Where one half has more filters than the other, the programs past the end of the shorter one skip
its taps.

Bytes moved from and to memory: the input, both weights and the output once; what the taps and the
blocks of filters read again comes from L2.

Limits: channels in multiples of 16 (the launcher pads others with zeros). One launch covers fewer
than 2^31 rows, and the launcher splits a larger batch.
"""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_conv import (
    SUM_LENGTH,
    conv_product,
    epilogue,
    load_pixels,
    load_weights,
    multiply_add,
    pixel_of_row,
    store_tile,
)


@triton.jit
def _centre_product(
    acc_row,
    acc_col,
    pixels,
    valid,
    filter_rows,  # pointers (BLOCK_F,): the centre tap of the filters of each half
    mask_row,
    filter_cols,
    mask_col,
    begin,  # channels of this sum
    end,
    channels,
    EVEN_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Both accumulators plus the products of one tile of pixels with both centre taps."""
    for k0 in range(begin, end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a = load_pixels(pixels, valid, 0, k, channels, EVEN_K)
        b_row = load_weights(filter_rows, mask_row, 0, k, channels, EVEN_K)
        b_col = load_weights(filter_cols, mask_col, 0, k, channels, EVEN_K)
        acc_row = multiply_add(a, b_row, acc_row, TF32, UPCAST)
        acc_col = multiply_add(a, b_col, acc_col, TF32, UPCAST)
    return acc_row, acc_col


@triton.jit(
    do_not_specialize=["num_rows", "first_image"],
    do_not_specialize_on_alignment=["bias_row_ptr", "bias_col_ptr"],
)
def split_conv2d_kernel(
    x_ptr,
    weight_row_ptr,  # (c_row, TAPS_ROW, channels)
    bias_row_ptr,
    weight_col_ptr,  # (c_col, TAPS_COL, channels)
    bias_col_ptr,
    y_row_ptr,
    y_col_ptr,
    first_image,
    num_rows,  # pixels of this launch, ordered (image, h, w)
    height,
    width,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_y_row,  # elements from one pixel of a destination to the next
    stride_y_col,
    channels,
    c_row,
    c_col,
    TAPS_ROW: tl.constexpr,
    TAPS_COL: tl.constexpr,
    HAS_BIAS_ROW: tl.constexpr,
    HAS_BIAS_COL: tl.constexpr,
    RELU: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    IEEE: tl.constexpr = (x_ptr.dtype.element_ty == tl.float32) and not TF32
    CENTRE_ROW: tl.constexpr = TAPS_ROW // 2
    CENTRE_COL: tl.constexpr = TAPS_COL // 2
    f_blocks = tl.cdiv(tl.maximum(c_row, c_col), BLOCK_F)
    f0 = (tl.program_id(0) % f_blocks) * BLOCK_F
    offs_f = f0 + tl.arange(0, BLOCK_F)
    mask_row = offs_f < c_row
    mask_col = offs_f < c_col
    rows = weight_row_ptr + offs_f.to(tl.int64) * TAPS_ROW * channels
    cols = weight_col_ptr + offs_f.to(tl.int64) * TAPS_COL * channels

    row = (tl.program_id(0) // f_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = row < num_rows
    image, h, w = pixel_of_row(row, height, width)
    x_offset = (first_image + image) * stride_xn
    x_offset += h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw
    pixels = x_ptr + x_offset

    # The centre tap, of both halves.
    acc_row = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
    acc_col = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
    centre_rows = rows + CENTRE_ROW * channels
    centre_cols = cols + CENTRE_COL * channels
    if IEEE:
        for k0 in range(0, channels, SUM_LENGTH):
            partial_row, partial_col = _centre_product(
                tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32),
                tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32),
                pixels, valid, centre_rows, mask_row, centre_cols, mask_col,
                k0, tl.minimum(k0 + SUM_LENGTH, channels), channels, EVEN_K, BLOCK_K, TF32, UPCAST,
            )  # fmt: skip
            acc_row += partial_row
            acc_col += partial_col
    else:
        acc_row, acc_col = _centre_product(
            acc_row, acc_col, pixels, valid, centre_rows, mask_row, centre_cols, mask_col,
            0, channels, channels, EVEN_K, BLOCK_K, TF32, UPCAST,
        )  # fmt: skip

    # The other taps, each of its own half.
    if TAPS_ROW > 1:
        if f0 < c_row:
            acc_row = conv_product(
                acc_row, pixels - tl.cast(CENTRE_ROW, tl.int64) * stride_xw,
                h, w - CENTRE_ROW, valid, height, width, stride_xh, stride_xw, rows, mask_row,
                channels, 1, TAPS_ROW, CENTRE_ROW, False, True,
                EVEN_K, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
            )  # fmt: skip
    if TAPS_COL > 1:
        if f0 < c_col:
            acc_col = conv_product(
                acc_col, pixels - tl.cast(CENTRE_COL, tl.int64) * stride_xh,
                h - CENTRE_COL, w, valid, height, width, stride_xh, stride_xw, cols, mask_col,
                channels, TAPS_COL, 1, CENTRE_COL, True, False,
                EVEN_K, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
            )  # fmt: skip

    pixel = tl.cast(first_image, tl.int64) * height * width + row
    y_row = epilogue(acc_row, bias_row_ptr, offs_f, mask_row, HAS_BIAS_ROW, RELU)
    store_tile(y_row_ptr, pixel * stride_y_row, offs_f, y_row, valid, mask_row)
    y_col = epilogue(acc_col, bias_col_ptr, offs_f, mask_col, HAS_BIAS_COL, RELU)
    store_tile(y_col_ptr, pixel * stride_y_col, offs_f, y_col, valid, mask_col)
