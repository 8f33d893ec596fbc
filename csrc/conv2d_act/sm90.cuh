// SPDX-License-Identifier: Apache-2.0
// One convolution with bias and activation on wgmma, for sm_90a: the formula and the segments of
// sm80.cuh, `convolve_tile` of common/tile_product.cuh with its other engine.
//
// Pixels are rows, filters are columns. wgmma takes rows in 64s and columns in eights. The pixels
// of a batch follow one another, so that 64s of them waste nothing but at the end, whereas a
// segment of 48, 80, 96 or 160 filters as rows would waste a sixth to three eighths of them. (For
// the pair it is the other way round: its pixels come in lines.) The accumulators then lie as those
// of mma.sync do, and the epilogue is the same code.
//
// Pixels and filters arrive by cp.async, a 16-byte piece a thread and row. Pixels have to: taps,
// steps and padding move each row by itself, with any stride and any channels. For the filters
// tensor copies would spare a thread three of seven copies. What was weighed: of 256 x 192 a step
// is 768 clocks of the matrix units; its 249 instructions in 8 warps take 498 issue slots of each
// of the four schedulers; its 448 rows of 64 bytes take 448 tags of L1. Neither binds, and L2's
// bytes, which do, are the same by either way. Multicast to two blocks would take 8 from the 37
// bytes a clock below, for a tensor map per call and weight and a ring that a cluster shares: not
// built before a device has timed this.
//
// Arithmetic. A step of P pixels and F filters reads 64 (P + F) bytes from L2 and takes P F / 64
// clocks of the matrix units (4096 FLOP a clock): 4096 (1 / P + 1 / F) bytes a clock, of about 35
// that L2 gives a multiprocessor (3,942 for 114, arXiv 2501.12084). Registers by ptxas 13.0.
//
//   tile        bytes a clock   of the matrix units   registers   shared memory   blocks
//   256 x 192    37             94 %                  255         170 KB          1
//   256 x 96     59             60 %                  166         178 KB          1
//   256 x 64     80             44 %                  126         102 KB          2
//   128 x 128    64             55 %                  115          97 KB          2
//   128 x 64     96             36 %                   80          73 KB          2
//   64 x 32     192             18 %                   62          49 KB          4
//
// Left out: 256 x 128 (48 bytes), by which segments of 128 filters would gain a seventh on 256 x
// 192, and 256 x 32 (144 bytes), by which 32 filters would gain a tenth on 256 x 64.
//
// From shared memory a wgmma of 64 x F reads 2048 + 32 F bytes in F / 2 clocks: 85 of 128 bytes a
// clock with 192 filters, beside which the copies write 37; all of 128 with 64 filters, which it
// would bind at 62 %, had L2 not before. The products of a step run while the warps pass the next
// barrier and start copies four steps ahead; two of six slots are in use. No warps do nothing but
// load: beside 192 accumulators a thread there are no registers for them.
//
// One block a multiprocessor has nobody to hide its epilogue behind: 256 x 192 results are 96 KB,
// 2,800 clocks at L2's rate, after 9 steps of 819 clocks for a 1x1 of 288 channels: 10,200 clocks.
// Two blocks of 128 x 128 would hide it, and take 12,600 for as many results.
//
// Where it can win. Against Triton, whose tiles here are 128 x 128 and 128 x 64 (64 and 96 bytes a
// clock): where products bind and filters are many. 3x3 on 73x73 with 80 channels and 192 filters
// (also by joined taps, 23 steps and not 27), and the merged 1x1 on 17x17 and 8x8 from 32 images
// on, 1.7 to 3 times by this arithmetic. Against cuDNN: one launch and one reading of the input for
// all segments of a merged 1x1; a single product has nothing that cuDNN's could not have.
//
// Where it cannot. A 1x1 of 288 channels to 176 filters on 35x35 does 109 FLOP a byte, and memory
// binds below 295 (989 TFLOP/s, 3.35 TB/s) whatever multiplies. With 32 and 64 filters, the stem,
// each of nine taps reads its pixels from L2 anew, and that binds either kernel. One image has
// fewer tiles than there are multiprocessors. docs/cuda_convolutions.md has the table. Pixels that
// stay in shared memory while taps shift them, as in the pair, would spare that reading; they would
// bind tiles to lines, steps to 1 and channels to what fits: not built.
//
// Three channels are padded to 8 by the caller, and four taps of 8 make a step: 3 steps instead of
// 9, three quarters of which would have been zeros.
//
// Range: that of sm80.cuh. ptxas neither spills nor serializes the products. Nothing here has been
// timed, and nothing here has run on a device.
#pragma once

#include "common/tile_product.cuh"
#include "conv2d_act/configuration.h"

namespace fused_inception {

template <int kConfiguration>
using Conv2dActSm90Traits = TileTraits<kConv2dActSm90Configurations[kConfiguration]>;

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(Conv2dActSm90Traits<kConfiguration>::kThreads,
                                  Conv2dActSm90Traits<kConfiguration>::kMinBlocks)
    conv2d_act_sm90_kernel(const __grid_constant__ ConvolutionParams params) {
  if constexpr (device::kHasWgmma) {
    convolve_tile<Conv2dActSm90Traits<kConfiguration>, input_t>(params, device::block_index());
  } else {
    device::trap();
  }
}

}  // namespace fused_inception
