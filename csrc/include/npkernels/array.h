// How an array is handed to a kernel: where it lies, not who owns it.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#define NPK_API
#else
#define NPK_API __attribute__((visibility("default")))
#endif

namespace npkernels {

enum class DType : int32_t {
  float32 = 0,
  float64 = 1,
  float16 = 2,
  bfloat16 = 3,
  boolean = 4,
  int64 = 5,
  int8 = 6
};

// ndim <= kMaxDims; shape in elements; strides in bytes, any sign, zero for a broadcast axis.
constexpr int kMaxDims = 64;

struct Array {
  void* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t ndim;
  DType dtype;
};

// 16-bit inputs are computed in float32, and the statistics of their rows are float32.
inline DType compute_dtype(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

inline int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
      return 4;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::boolean:
    case DType::int8:
      return 1;
  }
  return 0;
}

// Whether every step along an axis goes past all that the shorter steps reach, so that no two entries share
// memory: true of every view by indexing.
inline bool entries_apart(int ndim, const int64_t* shape, const int64_t* strides, int64_t item) {
  int axes[kMaxDims], count = 0;  // of more than one entry, from the shortest step on
  for (int i = ndim - 1; i >= 0; --i) {
    if (shape[i] == 0) return true;
    if (shape[i] == 1) continue;
    int at = count++;
    for (; at > 0 && llabs(strides[axes[at - 1]]) > llabs(strides[i]); --at) axes[at] = axes[at - 1];
    axes[at] = i;
  }
  int64_t reach = item;
  for (int i = 0; i < count; ++i) {
    const int64_t step = llabs(strides[axes[i]]);
    if (step < reach) return false;
    reach += step * (shape[axes[i]] - 1);
  }
  return true;
}

}  // namespace npkernels
