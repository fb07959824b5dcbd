#include "memory.h"

namespace npkernels {

Memory allocate(int64_t bytes) {
  const int64_t lines = bytes > 0 ? (bytes + 63) / 64 : 1;  // of nothing, the answer may be null
  return Memory(static_cast<char*>(aligned_alloc(64, static_cast<size_t>(lines * 64))));
}

Scratch::Scratch(int64_t bytes) {
  constexpr int64_t kKept = 1 << 20;
  thread_local Memory kept;
  thread_local int64_t size = 0;
  if (bytes > kKept) {
    own_ = allocate(bytes);
    data_ = own_.get();
    return;
  }
  if (bytes > size) {
    kept = allocate(bytes);
    size = kept ? bytes : 0;
  }
  data_ = kept.get();
}

}  // namespace npkernels
