// Transposes of any size, square by square.
#pragma once

#include "../simd/vec.h"

namespace npkernels::NPK_ISA {
namespace {

// to[j][i] = from[i][j] for i < rows, j < columns.
template <class T>
__attribute__((noinline)) void transpose(const T* from, int64_t from_pitch, T* to, int64_t to_pitch,
                                         int64_t rows, int64_t columns) {
  constexpr int kSide = kTransposeSide<T>;
  int64_t i = 0;
  for (; i + kSide <= rows; i += kSide) {
    int64_t j = 0;
    for (; j + kSide <= columns; j += kSide)
      transpose_square(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i, to_pitch);
    for (; j < columns; ++j)
      for (int k = 0; k < kSide; ++k) to[j * to_pitch + i + k] = from[(i + k) * from_pitch + j];
  }
  for (; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * to_pitch + i] = from[i * from_pitch + j];
}

}  // namespace
}  // namespace npkernels::NPK_ISA
