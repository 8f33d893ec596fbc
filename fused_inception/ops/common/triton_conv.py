"""A convolution as a matrix product: the pieces that every Triton kernel of an op is made of.

The left operand is pixels × channels, and its rows move with the tap; the right one is (tap,
channel) × filters. A tile is BLOCK_P pixels by BLOCK_F filters, summed BLOCK_K channels at a time.
Pixels and weights are channels_last, `[pixel][channel]` and `[filter][tap][channel]`, channels in
multiples of 16, so that every load moves 16 bytes. Offsets are int64 before they are multiplied.

The order of a sum is that of the loops written here: taps outside (row-major), blocks of channels
inside. Nothing about the batch enters it.

IEEE float32 has no matrix instruction: a product is one chain of multiply-adds, whose error grows
with its length. There a chain ends after at most SUM_LENGTH terms, and with its tap (in the grid
reduction with its block of channels), and the partial sums are added up. (Simulated in numpy with
1,344 random terms: a largest error of 4.8e-6 as one chain, 1.2e-6 with a partial sum a tap.)

Under the interpreter `tl.dot` on bfloat16 gives garbage without an error; `UPCAST` converts the
operands to float32 there (their products are exact in it), and is never set for a device.
"""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_math import relu, round_to_tf32

SUM_LENGTH = tl.constexpr(256)


@triton.jit
def pixel_of_row(row, height, width):
    """Image (int64), h and w of pixels that are counted (image, h, w)."""
    line = row // width
    return (line // height).to(tl.int64), line % height, row % width


@triton.jit
def tap_mask(valid, h, w, height, width, CHECK_H: tl.constexpr, CHECK_W: tl.constexpr):
    """Which rows have their tap inside the map; an axis without CHECK is inside by construction."""
    # A negative coordinate is a large unsigned one: one comparison an axis, and fewer registers.
    mask = valid
    if CHECK_H:
        mask = mask & (h.to(tl.uint32, bitcast=True) < height)
    if CHECK_W:
        mask = mask & (w.to(tl.uint32, bitcast=True) < width)
    return mask


@triton.jit
def load_pixels(
    pixels,  # pointers (BLOCK_P,)
    mask,  # (BLOCK_P,)
    tap_offset,  # int64: elements from a row's pointer to its tap
    k,  # int32 (BLOCK_K,)
    channels,
    EVEN_K: tl.constexpr,
):
    """Channels `k` of one tap of every row, (BLOCK_P, BLOCK_K), zero outside."""
    mask = mask[:, None]
    if not EVEN_K:
        mask = mask & (k < channels)[None, :]
    return tl.load(pixels[:, None] + (tap_offset + k[None, :]), mask=mask, other=0.0)


@triton.jit
def load_weights(
    filter_rows,  # pointers (BLOCK_F,)
    mask,  # (BLOCK_F,)
    tap_offset,  # int64: elements from a filter's pointer to its tap
    k,  # int32 (BLOCK_K,)
    channels,
    EVEN_K: tl.constexpr,
):
    """Channels `k` of one tap of every filter, (BLOCK_K, BLOCK_F), zero outside."""
    mask = mask[None, :]
    if not EVEN_K:
        mask = mask & (k < channels)[:, None]
    return tl.load(filter_rows[None, :] + (tap_offset + k[:, None]), mask=mask, other=0.0)


@triton.jit
def multiply_add(a, b, acc, TF32: tl.constexpr, UPCAST: tl.constexpr):
    """A float32 `acc` plus a·b; operands rounded to nearest where they are tf32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    if TF32:
        a = round_to_tf32(a)
        b = round_to_tf32(b)
    return tl.dot(a, b, acc, input_precision="tf32" if TF32 else "ieee")


@triton.jit
def conv_product(
    acc,  # float32 (BLOCK_P, BLOCK_F)
    pixels,  # pointers (BLOCK_P,): channel 0 of the first tap of each row
    h,  # int32 (BLOCK_P,): coordinates of the first tap, possibly outside the map
    w,
    valid,  # (BLOCK_P,)
    height,
    width,
    stride_h,  # elements from one pixel of the source to the next
    stride_w,
    filter_rows,  # pointers (BLOCK_F,): channel 0 of the first tap of each filter
    mask_f,  # (BLOCK_F,)
    channels,
    R: tl.constexpr,  # rows and columns of the filter
    S: tl.constexpr,
    SKIP: tl.constexpr,  # a tap that is left out, -1 for none
    CHECK_H: tl.constexpr,
    CHECK_W: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`acc` plus the sum over taps t and channels c of src[p + t, c] * weight[f, t, c]."""
    IEEE: tl.constexpr = (pixels.dtype.element_ty == tl.float32) and not TF32
    TAPS: tl.constexpr = R * S - (1 if SKIP >= 0 else 0)
    offs_k = tl.arange(0, BLOCK_K)
    if IEEE:
        for i in range(TAPS):
            tap = i + (i + TAPS - SKIP) // TAPS if SKIP >= 0 else i
            r = tap // S
            s = tap % S
            mask = tap_mask(valid, h + r, w + s, height, width, CHECK_H, CHECK_W)
            a_offset = tl.cast(r, tl.int64) * stride_h + tl.cast(s, tl.int64) * stride_w
            b_offset = tl.cast(tap, tl.int64) * channels
            for k0 in range(0, channels, SUM_LENGTH):
                partial = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
                for k1 in range(k0, tl.minimum(k0 + SUM_LENGTH, channels), BLOCK_K):
                    k = k1 + offs_k
                    a = load_pixels(pixels, mask, a_offset, k, channels, EVEN_K)
                    b = load_weights(filter_rows, mask_f, b_offset, k, channels, EVEN_K)
                    partial = multiply_add(a, b, partial, TF32, UPCAST)
                acc += partial
    else:
        # One loop over taps and channels, so that loads run ahead across the taps too.
        k_blocks = tl.cdiv(channels, BLOCK_K)
        for step in range(TAPS * k_blocks):
            i = step // k_blocks
            tap = i + (i + TAPS - SKIP) // TAPS if SKIP >= 0 else i
            r = tap // S
            s = tap % S
            mask = tap_mask(valid, h + r, w + s, height, width, CHECK_H, CHECK_W)
            a_offset = tl.cast(r, tl.int64) * stride_h + tl.cast(s, tl.int64) * stride_w
            b_offset = tl.cast(tap, tl.int64) * channels
            k = (step % k_blocks) * BLOCK_K + offs_k
            a = load_pixels(pixels, mask, a_offset, k, channels, EVEN_K)
            b = load_weights(filter_rows, mask_f, b_offset, k, channels, EVEN_K)
            acc = multiply_add(a, b, acc, TF32, UPCAST)
    return acc


@triton.jit
def epilogue(acc, bias_ptr, offs_f, mask_f, HAS_BIAS: tl.constexpr, RELU: tl.constexpr):
    """Bias and activation on the float32 accumulator; zero past the last filter."""
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_f, mask=mask_f, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = relu(acc)
    # An infinite input times a masked weight is NaN, so the columns of no filter are not zero yet.
    return tl.where(mask_f[None, :], acc, 0.0)


@triton.jit
def store_tile(dst_ptr, row_offset, channel, values, valid, mask_c):
    """Rows × channels into channels_last memory, rounded to its dtype."""
    tl.store(
        dst_ptr + row_offset[:, None] + channel[None, :],
        values.to(dst_ptr.dtype.element_ty),
        mask=valid[:, None] & mask_c[None, :],
    )
