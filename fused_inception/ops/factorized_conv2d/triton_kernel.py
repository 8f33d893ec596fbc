"""A `1×n → m×1` (or `n×1 → 1×m`) pair of convolutions in Triton, nothing recomputed at the seam.

The second factor moves along one axis only. Call a *line* the pixels of one image along that axis:
a column for `1×n → m×1`, a row for `n×1 → 1×m`. An output line needs the intermediate tensor of
that line alone, and an intermediate line needs the input lines `cross ± n // 2`, which are read,
not recomputed (s = t - n//2 and u = t - m//2 are the shifts of the taps):

    mid[cross, l, k] = act_mid(bias1[k] + sum over t, c of x[cross + s, l, c] * weight1[k, t, c])
    y[cross, l, f]   = act(bias2[f] + sum over t, k of mid[cross, l + u, k] * weight2[f, t, k])

Both are convolutions whose taps move along one axis, summed by `conv_product` in the same order
whatever the tile, so the two forms of the op give bitwise equal results:

* `factorized_conv2d_band_kernel`, one launch. A tile is a *band* of whole lines, cut from the
  N * cross lines of the batch: bands need not respect image borders, 7 columns of 17 fill 119 of
  128 rows. A program computes the band's intermediate rows, keeps them in a scratch buffer of its
  own and reads them back shifted. Triton has no shifted views of shared memory, so the scratch
  lives in global memory, sized to stay in L2: the grid is persistent, and a program reuses its one
  band. The first barrier puts the program's stores before its reads, the second keeps the next
  band's stores behind them.
* `shifted_conv_kernel`, two launches, one per factor, over (row tile × filter block), with the
  intermediate rows in a buffer. It fills every multiprocessor where bands are few, and takes lines
  longer than a tile.

Bytes moved from and to memory: the input, both weights and the output once; what the taps read
again comes from L2.

Limits: channels_last operands with channels in multiples of 16 (the launcher pads others with
zeros): with narrower loads the same tiles spill 0.4 to 2.8 KB a thread. One launch covers fewer
than 2^31 rows, and the launcher splits a larger batch. Nothing that orders a sum depends on the
batch.

Tried and dropped (offline, Triton 3.7.1, sm_90, bfloat16, 128 rows × 64 filters × 64 deep, 8 warps:
198 registers as it stands): row offsets of 32 bits relative to the band's first image, 175; 32-bit
offsets inside the loop too, 165; 128 filters to a tile, 240. None changes the blocks per
multiprocessor (one), and none has been timed.
"""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_conv import (
    conv_product,
    epilogue,
    pixel_of_row,
    store_tile,
)


@triton.jit(
    do_not_specialize=["num_lines", "first_image"],
    do_not_specialize_on_alignment=["bias1_ptr", "bias2_ptr"],
)
def factorized_conv2d_band_kernel(
    x_ptr,
    weight1_ptr,  # (c_mid, TAPS1, c_in)
    bias1_ptr,
    weight2_ptr,  # (c_out, TAPS2, mid_channels)
    bias2_ptr,
    y_ptr,
    scratch_ptr,  # (programs, BLOCK_P, mid_channels): the intermediate band of each program
    first_image,
    num_lines,  # lines of this launch, counted from first_image on
    line_size,  # pixels of a line
    cross_size,  # lines of an image
    lines_per_band,
    stride_xn,
    stride_x_cross,
    stride_x_line,
    stride_yn,
    stride_y_cross,
    stride_y_line,
    c_in,
    c_mid,
    mid_channels,  # c_mid rounded up: the channels that are stored, zero past c_mid
    c_out,
    TAPS1: tl.constexpr,
    TAPS2: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    MID_RELU: tl.constexpr,
    RELU: tl.constexpr,
    EVEN_K1: tl.constexpr,
    EVEN_K2: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    program = tl.program_id(0)
    rows = tl.arange(0, BLOCK_P)
    line_in_band = rows // line_size
    pos = rows % line_size
    scratch = scratch_ptr + program.to(tl.int64) * BLOCK_P * mid_channels
    mid_offset = rows.to(tl.int64) * mid_channels

    for band in range(program, tl.cdiv(num_lines, lines_per_band), tl.num_programs(0)):
        line = band * lines_per_band + line_in_band
        valid = (line_in_band < lines_per_band) & (line < num_lines)
        image = first_image + (line // cross_size).to(tl.int64)
        cross = line % cross_size
        x_offset = image * stride_xn + cross.to(tl.int64) * stride_x_cross
        x_offset += pos.to(tl.int64) * stride_x_line

        # First factor: the taps move from line to line of the input.
        for f0 in range(0, mid_channels, BLOCK_F):
            offs_f = f0 + tl.arange(0, BLOCK_F)
            mask_f = offs_f < c_mid
            acc = conv_product(
                tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32),
                x_ptr + x_offset - tl.cast(TAPS1 // 2, tl.int64) * stride_x_cross,
                cross - TAPS1 // 2, pos, valid, cross_size, line_size, stride_x_cross, 0,
                weight1_ptr + offs_f.to(tl.int64) * TAPS1 * c_in, mask_f, c_in,
                TAPS1, 1, -1, True, False, EVEN_K1, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
            )  # fmt: skip
            mid = epilogue(acc, bias1_ptr, offs_f, mask_f, HAS_BIAS1, MID_RELU)
            store_tile(scratch, mid_offset, offs_f, mid, valid, offs_f < mid_channels)
        tl.debug_barrier()

        # Second factor: the taps move along the line, which is whole in the scratch.
        y_offset = image * stride_yn + cross.to(tl.int64) * stride_y_cross
        y_offset += pos.to(tl.int64) * stride_y_line
        for f0 in range(0, c_out, BLOCK_F):
            offs_f = f0 + tl.arange(0, BLOCK_F)
            mask_f = offs_f < c_out
            acc = conv_product(
                tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32),
                scratch + mid_offset - tl.cast(TAPS2 // 2, tl.int64) * mid_channels,
                pos - TAPS2 // 2, cross, valid, line_size, cross_size, mid_channels, 0,
                weight2_ptr + offs_f.to(tl.int64) * TAPS2 * mid_channels, mask_f, mid_channels,
                TAPS2, 1, -1, True, False, EVEN_K2, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
            )  # fmt: skip
            y = epilogue(acc, bias2_ptr, offs_f, mask_f, HAS_BIAS2, RELU)
            store_tile(y_ptr, y_offset, offs_f, y, valid, mask_f)
        tl.debug_barrier()


@triton.jit(
    do_not_specialize=["num_rows", "src_first_image", "dst_first_image"],
    do_not_specialize_on_alignment=["bias_ptr"],
)
def shifted_conv_kernel(
    src_ptr,
    weight_ptr,  # (filters, TAPS, channels)
    bias_ptr,
    dst_ptr,
    src_first_image,
    dst_first_image,
    num_rows,  # pixels of this launch, ordered (image, cross, position on the line)
    line_size,
    cross_size,
    stride_src_n,
    stride_src_cross,
    stride_src_line,
    stride_dst_n,
    stride_dst_cross,
    stride_dst_line,
    channels,
    filters,
    stored,  # filters, or more: the channels that are stored, zero past the last filter
    ALONG_LINE: tl.constexpr,  # whether the taps move along the line or across lines
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Filter blocks are the fast index, so that programs which read the same rows run side by side.
    f_blocks = tl.cdiv(stored, BLOCK_F)
    tile = tl.program_id(0) // f_blocks
    offs_f = (tl.program_id(0) % f_blocks) * BLOCK_F + tl.arange(0, BLOCK_F)
    row = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = row < num_rows
    image, cross, pos = pixel_of_row(row, cross_size, line_size)
    src_offset = (src_first_image + image) * stride_src_n + cross.to(tl.int64) * stride_src_cross
    src_offset += pos.to(tl.int64) * stride_src_line
    dst_offset = (dst_first_image + image) * stride_dst_n + cross.to(tl.int64) * stride_dst_cross
    dst_offset += pos.to(tl.int64) * stride_dst_line
    # The axis along which the taps move comes first.
    if ALONG_LINE:
        moving, fixed, moving_size, fixed_size = pos, cross, line_size, cross_size
        tap_stride = stride_src_line
    else:
        moving, fixed, moving_size, fixed_size = cross, pos, cross_size, line_size
        tap_stride = stride_src_cross
    mask_f = offs_f < filters
    acc = conv_product(
        tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32),
        src_ptr + src_offset - tl.cast(TAPS // 2, tl.int64) * tap_stride,
        moving - TAPS // 2, fixed, valid, moving_size, fixed_size, tap_stride, 0,
        weight_ptr + offs_f.to(tl.int64) * TAPS * channels, mask_f, channels,
        TAPS, 1, -1, True, False, EVEN_K, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
    )  # fmt: skip
    result = epilogue(acc, bias_ptr, offs_f, mask_f, HAS_BIAS, RELU)
    store_tile(dst_ptr, dst_offset, offs_f, result, valid, offs_f < stored)
