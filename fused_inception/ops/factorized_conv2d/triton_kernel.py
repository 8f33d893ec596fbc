"""A `1×n → m×1` (or `n×1 → 1×m`) pair of convolutions in Triton, nothing recomputed at the seam.

The second factor moves along one axis only. Call a *line* the pixels of one image along that axis:
a column for `1×n → m×1`, a row for `n×1 → 1×m`. An output line needs the intermediate tensor of
that line alone, and an intermediate line needs the input lines `cross ± n // 2`, which are read,
not recomputed (s = t - n//2 and u = t - m//2 are the shifts of the taps):

    mid[cross, l, k] = act_mid(bias1[k] + sum over t, c of x[cross + s, l, c] * weight1[k, t, c])
    y[cross, l, f]   = act(bias2[f] + sum over t, k of mid[cross, l + u, k] * weight2[f, t, k])

Both are products of a (pixels × channels) matrix, whose rows shift with the tap, and a (tap,
channel) × filters matrix. `_shifted_product` is that product. Its sum always runs in the same order
(taps outside, K blocks of channels inside), so the two forms of the op give bitwise equal results:

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

Limits: channels_last operands; a weight is `[filter][tap][channel]`. Channels come in multiples of
16 (the launcher pads others with zeros), so that every load moves 16 bytes: with narrower loads the
same tiles spill 0.4 to 2.8 KB a thread. Offsets are int64 before they are multiplied; one launch
covers fewer than 2^31 rows, and the launcher splits a larger batch. Nothing that orders a sum
depends on the batch.

Tried and dropped (offline, Triton 3.7.1, sm_90, bfloat16, 128 rows × 64 filters × 64 deep, 8 warps:
191 registers as it stands): row offsets of 32 bits relative to the band's first image, 175; 32-bit
offsets inside the loop too, 165; 128 filters to a tile, 240. None changes the blocks per
multiprocessor (one), and none has been timed. IEEE float32 as one chain of multiply-adds over all
taps: simulated in numpy with 1,344 random terms, a largest error of 4.8e-6 against 1.2e-6 with one
partial sum a tap.

Under the interpreter `tl.dot` on bfloat16 gives garbage without an error; `UPCAST` converts the
operands to float32 there (their products are exact in it), and is never set for a device.
"""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_math import relu, round_to_tf32


@triton.jit
def _load_step(
    src_rows,
    row_coord,
    row_valid,
    coord_end,
    tap_stride,
    weight_rows,
    mask_f,
    channels,
    tap,
    k,  # int32 (BLOCK_K,): channels of this step
    TAPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The operands of one step of `_shifted_product`: (BLOCK_P, BLOCK_K) and (BLOCK_K, BLOCK_F)."""
    shift = tap - TAPS // 2
    coord = row_coord + shift
    mask_a = (row_valid & (coord >= 0) & (coord < coord_end))[:, None]
    mask_b = mask_f[None, :]
    if not EVEN_K:
        mask_a = mask_a & (k < channels)[None, :]
        mask_b = mask_b & (k < channels)[:, None]
    a_offset = tl.cast(shift, tl.int64) * tap_stride + k[None, :]
    b_offset = tl.cast(tap, tl.int64) * channels + k[:, None]
    a = tl.load(src_rows[:, None] + a_offset, mask=mask_a, other=0.0)
    b = tl.load(weight_rows[None, :] + b_offset, mask=mask_b, other=0.0)
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    if TF32:
        a = round_to_tf32(a)
        b = round_to_tf32(b)
    return a, b


@triton.jit
def _shifted_product(
    src_ptr,
    row_offset,  # int64 (BLOCK_P,): elements from src_ptr to channel 0 of the row's own pixel
    row_coord,  # int32 (BLOCK_P,): the row's coordinate on the axis along which the taps move
    row_valid,  # (BLOCK_P,)
    coord_end,  # size of that axis; outside it the source is zero
    tap_stride,  # elements from one coordinate to the next
    weight_ptr,  # [filter][tap][channel]
    offs_f,  # int32 (BLOCK_F,)
    filters,
    channels,
    TAPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """acc[p, f] = sum over taps t, channels c of src[p + t - TAPS//2, c] * weight[f, t, c]."""
    IEEE: tl.constexpr = (src_ptr.dtype.element_ty == tl.float32) and not TF32
    offs_k = tl.arange(0, BLOCK_K)
    k_blocks = tl.cdiv(channels, BLOCK_K)
    src_rows = src_ptr + row_offset
    weight_rows = weight_ptr + offs_f.to(tl.int64) * TAPS * channels
    mask_f = offs_f < filters
    acc = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
    if IEEE:
        # Without tensor cores a product is one chain of multiply-adds, whose error grows with its
        # length; one partial sum a tap shortens it.
        for tap in range(TAPS):
            partial = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
            for k in range(0, k_blocks * BLOCK_K, BLOCK_K):
                a, b = _load_step(
                    src_rows, row_coord, row_valid, coord_end, tap_stride,
                    weight_rows, mask_f, channels, tap, k + offs_k, TAPS, EVEN_K, TF32, UPCAST,
                )  # fmt: skip
                partial = tl.dot(a, b, partial, input_precision="ieee")
            acc += partial
    else:
        # One loop over taps and channels, so that loads run ahead across the taps too.
        for step in range(TAPS * k_blocks):
            tap = step // k_blocks
            k = (step % k_blocks) * BLOCK_K + offs_k
            a, b = _load_step(
                src_rows, row_coord, row_valid, coord_end, tap_stride,
                weight_rows, mask_f, channels, tap, k, TAPS, EVEN_K, TF32, UPCAST,
            )  # fmt: skip
            acc = tl.dot(a, b, acc, input_precision="tf32" if TF32 else "ieee")
    return acc


@triton.jit
def _epilogue(acc, bias_ptr, offs_f, filters, HAS_BIAS: tl.constexpr, RELU: tl.constexpr):
    """Bias and activation on the float32 accumulator; zero past the last filter."""
    mask_f = offs_f < filters
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_f, mask=mask_f, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = relu(acc)
    # An infinite input times a masked weight is NaN, so the columns of no filter are not zero yet.
    return tl.where(mask_f[None, :], acc, 0.0)


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
            acc = _shifted_product(
                x_ptr, x_offset, cross, valid, cross_size, stride_x_cross,
                weight1_ptr, offs_f, c_mid, c_in,
                TAPS1, EVEN_K1, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
            )  # fmt: skip
            mid = _epilogue(acc, bias1_ptr, offs_f, c_mid, HAS_BIAS1, MID_RELU)
            tl.store(
                scratch + mid_offset[:, None] + offs_f[None, :],
                mid.to(scratch_ptr.dtype.element_ty),
                mask=valid[:, None] & (offs_f < mid_channels)[None, :],
            )
        tl.debug_barrier()

        # Second factor: the taps move along the line, which is whole in the scratch.
        y_offset = image * stride_yn + cross.to(tl.int64) * stride_y_cross
        y_offset += pos.to(tl.int64) * stride_y_line
        for f0 in range(0, c_out, BLOCK_F):
            offs_f = f0 + tl.arange(0, BLOCK_F)
            acc = _shifted_product(
                scratch, mid_offset, pos, valid, line_size, mid_channels,
                weight2_ptr, offs_f, c_out, mid_channels,
                TAPS2, EVEN_K2, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
            )  # fmt: skip
            y = _epilogue(acc, bias2_ptr, offs_f, c_out, HAS_BIAS2, RELU)
            tl.store(
                y_ptr + y_offset[:, None] + offs_f[None, :],
                y.to(y_ptr.dtype.element_ty),
                mask=valid[:, None] & (offs_f < c_out)[None, :],
            )
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
    line = row // line_size
    pos = row % line_size
    image = (line // cross_size).to(tl.int64)
    cross = line % cross_size
    src_offset = (src_first_image + image) * stride_src_n + cross.to(tl.int64) * stride_src_cross
    src_offset += pos.to(tl.int64) * stride_src_line
    dst_offset = (dst_first_image + image) * stride_dst_n + cross.to(tl.int64) * stride_dst_cross
    dst_offset += pos.to(tl.int64) * stride_dst_line
    if ALONG_LINE:
        acc = _shifted_product(
            src_ptr, src_offset, pos, valid, line_size, stride_src_line,
            weight_ptr, offs_f, filters, channels,
            TAPS, EVEN_K, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
        )  # fmt: skip
    else:
        acc = _shifted_product(
            src_ptr, src_offset, cross, valid, cross_size, stride_src_cross,
            weight_ptr, offs_f, filters, channels,
            TAPS, EVEN_K, BLOCK_P, BLOCK_F, BLOCK_K, TF32, UPCAST,
        )  # fmt: skip
    result = _epilogue(acc, bias_ptr, offs_f, filters, HAS_BIAS, RELU)
    tl.store(
        dst_ptr + dst_offset[:, None] + offs_f[None, :],
        result.to(dst_ptr.dtype.element_ty),
        mask=valid[:, None] & (offs_f < stored)[None, :],
    )
