// SPDX-License-Identifier: Apache-2.0
// What the test programs that take one map read of their arguments.
#pragma once

#include "common/convolution.h"
#include "emulator/driver.h"

namespace driver {

// The map of file `input`, and the filter or window that looks at it.
inline fused_inception::FilteredMap input_map(const Arguments& arguments, int64_t element_bytes) {
  const auto integer = [&](const char* key) { return static_cast<int32_t>(arguments.number(key)); };
  fused_inception::FilteredMap map = {};
  map.channels = integer("channels");
  map.cross_size = integer("height");
  map.line_size = integer("width");
  map.out_cross_size = integer("out_height");
  map.out_line_size = integer("out_width");
  map.cross_taps = integer("rows");
  map.line_taps = integer("columns");
  map.cross_step = integer("step_h");
  map.line_step = integer("step_w");
  map.cross_pad = integer("pad_h");
  map.line_pad = integer("pad_w");
  map.first_image = arguments.number("first_image", 0);
  map.num_images = integer("batch") - static_cast<int32_t>(map.first_image);
  const int64_t row = int64_t{map.line_size} * map.channels;
  map.stride = {arguments.number("input_image_stride", row * map.cross_size), row, map.channels};
  // Images apart from one another, where the stride says so.
  map.data = Buffer::read("input",
                          arguments.text("input"),
                          static_cast<size_t>(arguments.number("batch")),
                          static_cast<size_t>(element_bytes * map.stride.image))
                 .get();
  return map;
}

}  // namespace driver
