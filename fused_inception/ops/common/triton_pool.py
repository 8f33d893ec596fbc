"""A max pool of a tile of pixels and channels, which two Triton kernels share."""

import triton
import triton.language as tl

from fused_inception.ops.common.triton_conv import pixel_of_row, store_tile, tap_mask


@triton.jit
def max_pool_tile(
    tile,  # numbered over blocks of channels inside, blocks of pixels outside
    x_ptr,
    y_ptr,
    first_image,
    num_rows,  # output pixels, ordered (image, p, q)
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
    """Writes the largest of every window.

    The maximum is PyTorch's, bit by bit: row-major over the window, replaced when the next is
    greater or NaN; so NaN stays, and of +0 and -0 the first.
    """
    # Comparing keeps the bits of the input's dtype.
    POOL_DTYPE: tl.constexpr = tl.float32 if UPCAST else x_ptr.dtype.element_ty
    k_blocks = tl.cdiv(pool_channels, BLOCK_K)
    k = (tile % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    row = (tile // k_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = row < num_rows
    image, p, q = pixel_of_row(row, out_height, out_width)
    h = p * step_h - pad_h
    w = q * step_w - pad_w
    x_offset = (first_image + image) * stride_xn
    x_offset += h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw
    pooled = tl.full((BLOCK_P, BLOCK_K), -float("inf"), dtype=POOL_DTYPE)
    for r in range(R):
        for s in tl.static_range(S):
            inside = tap_mask(valid, h + r, w + s, height, width, CHECK_H, CHECK_W)
            mask = inside[:, None] & (k < pool_channels)[None, :]
            tap = x_offset + tl.cast(r, tl.int64) * stride_xh + tl.cast(s, tl.int64) * stride_xw
            a = tl.load(x_ptr + tap[:, None] + k[None, :], mask=mask, other=0.0).to(POOL_DTYPE)
            pooled = tl.where(mask & ((a > pooled) | (a != a)), a, pooled)
    y_offset = (tl.cast(first_image, tl.int64) * out_height * out_width + row) * stride_y
    store_tile(y_ptr, y_offset, k, pooled, valid, k < pool_channels)
