#include "npkernels/probe.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>

#include "kernels/table.h"
#include "npkernels/threads.h"

namespace npkernels {
namespace {

template <class F>
double seconds(F f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double peak_flops(int repeats) {
  constexpr int64_t kSteps = 1 << 20;
  const int threads = num_threads();
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    double operations[1] = {0};
    const double time = seconds([&] {
      parallel_tasks(
          threads, threads,
          [](void* context, int64_t task, int) {
            const double done = kernels().probe_fma(kSteps);
            if (task == 0) *static_cast<double*>(context) = done;
          },
          operations);
    });
    best = std::max(best, operations[0] * threads / time);
  }
  return best;
}

bool peak_bandwidth(int64_t bytes, int repeats, Bandwidth* result) {
  char* source = static_cast<char*>(aligned_alloc(4096, static_cast<size_t>(bytes)));
  char* target = static_cast<char*>(aligned_alloc(4096, static_cast<size_t>(bytes)));
  const bool have = source && target;
  if (have) {
    memset(source, 1, static_cast<size_t>(bytes));
    memset(target, 2, static_cast<size_t>(bytes));
    double* const best[] = {&result->read, &result->copy, &result->stream_copy};
    for (int kind = 0; kind < 3; ++kind) {
      *best[kind] = 0;
      for (int i = 0; i < repeats; ++i) {
        double moved = 0;
        const double time = seconds([&] { moved = kernels().probe_stream(source, target, bytes, kind); });
        *best[kind] = std::max(*best[kind], moved / time);
      }
    }
  }
  free(source);
  free(target);
  return have;
}

}  // namespace npkernels
