// SPDX-License-Identifier: Apache-2.0
// What the test programs that take one map read of their arguments.
#pragma once

#include "common/convolution.h"
#include "emulator/driver.h"

#include <sstream>
#include <string>

namespace driver {

inline const void* file(const Arguments& arguments, const std::string& name) {
  const std::string path = arguments.text(name, "");
  return path.empty() ? nullptr : Buffer::read(name, path).get();
}

// Of the output, which has all channels that anything is written to.
inline fused_inception::MapStrides output_stride(const Arguments& arguments,
                                                 const fused_inception::FilteredMap& input) {
  const int64_t pixel = arguments.number("out_channels"), row = pixel * input.out_line_size;
  return {row * input.out_cross_size, row, pixel};
}

// "size:offset:relu" after `begin` filters.
inline fused_inception::Segment segment(const Arguments& arguments,
                                        const fused_inception::FilteredMap& input,
                                        uint16_t* output,
                                        const std::string& text,
                                        int32_t begin) {
  int32_t size = 0, offset = 0, relu = 0;
  char colon = 0;
  std::istringstream(text) >> size >> colon >> offset >> colon >> relu;
  return {output + offset,
          output_stride(arguments, input),
          input.first_image,
          begin,
          begin + size,
          fused_inception::round_up(size, 8),
          relu != 0};
}

// The map of file `input`, and the filter or window that looks at it. `suffix` is that of the
// file's name and of its channels, where there are several.
inline fused_inception::FilteredMap input_map(const Arguments& arguments,
                                              int64_t element_bytes,
                                              const std::string& suffix = "") {
  const auto integer = [&](const char* key) { return static_cast<int32_t>(arguments.number(key)); };
  fused_inception::FilteredMap map = {};
  map.channels = integer(("channels" + suffix).c_str());
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
  map.data = Buffer::read("input" + suffix,
                          arguments.text("input" + suffix),
                          static_cast<size_t>(arguments.number("batch")),
                          static_cast<size_t>(element_bytes * map.stride.image))
                 .get();
  return map;
}

}  // namespace driver
