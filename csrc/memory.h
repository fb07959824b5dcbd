// Memory for the length of a call.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <memory>

namespace npkernels {

struct Free {
  void operator()(void* p) const { free(p); }
};
// Null if it could not be had.
template <class T>
using Buffer = std::unique_ptr<T, Free>;
template <class T>
Buffer<T> buffer(int64_t n) {
  return Buffer<T>(static_cast<T*>(malloc(static_cast<size_t>(n + 1) * sizeof(T))));
}

using Memory = Buffer<char>;
// Aligned to 64 bytes.
Memory allocate(int64_t bytes);

// The same, but a small piece stays with the thread for its next call: asking the system for fresh pages
// would cost a small call more than its work. One at a time in a thread.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  char* get() const { return data_; }

 private:
  Memory own_;
  char* data_;
};

}  // namespace npkernels
