// The limits of this machine, for stating a kernel's speed as a share of them.
#pragma once

#include "array.h"

namespace npkernels {

// Best of `repeats`: float32 operations per second of multiply-adds on all threads (num_threads()).
NPK_API double peak_flops(int repeats);
// Best of `repeats`: bytes read plus written per second over arrays of `bytes` each. False if memory could
// not be had.
struct Bandwidth {
  double read, copy, stream_copy;  // stream_copy: written past the cache
};
NPK_API bool peak_bandwidth(int64_t bytes, int repeats, Bandwidth* result);

}  // namespace npkernels
