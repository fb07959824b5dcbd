// What the machine can do at most: multiply-adds on registers, and streams through memory. The benchmark
// states every kernel's speed as a share of these.
#include "kernels.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

// Enough independent chains to hide the latency of a multiply-add (4 or 5 cycles, two a cycle).
constexpr int kChains = 12;

}  // namespace

// Runs steps x kChains float32 multiply-adds of one register on this thread and returns how many operations
// (2 per multiply-add and lane) these are.
double probe_fma(int64_t steps) {
  Vec<float> acc[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) acc[i] = splat(static_cast<float>(i));
  Vec<float> a = splat(0.999f), b = splat(0.001f);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], a, b);
    a = held(a), b = held(b);  // keeps the compiler from folding steps into one another
  }
  Vec<float> sum = acc[0];
  for (int i = 1; i < kChains; ++i) sum = sum + acc[i];
  volatile double sink = sum_lanes(sum);
  (void)sink;
  return 2.0 * kChains * kLanes<float> * static_cast<double>(steps);
}

// kind 0 reads, 1 copies, 2 copies past the cache. Pieces of 1 MB are shared among the threads. Returns the
// bytes moved.
double probe_stream(const char* source, char* target, int64_t bytes, int kind) {
  constexpr int64_t kPiece = 1 << 20;
  constexpr int kUnroll = 8;
  const int64_t pieces = bytes / kPiece;
  parallel(pieces, [&](int64_t piece) {
    const float* from = reinterpret_cast<const float*>(source + piece * kPiece);
    float* to = reinterpret_cast<float*>(target + piece * kPiece);
    const int64_t n = kPiece / int64_t(sizeof(float));
    if (kind == 0) {
      Vec<float> acc[kUnroll];
      for (int i = 0; i < kUnroll; ++i) acc[i] = splat(0.0f);
      for (int64_t j = 0; j < n; j += kUnroll * kLanes<float>)
#pragma GCC unroll 8
        for (int i = 0; i < kUnroll; ++i) acc[i] = max_of(load(from + j + i * kLanes<float>), acc[i]);
      for (int i = 1; i < kUnroll; ++i) acc[0] = max_of(acc[i], acc[0]);
      volatile float sink = max_lane(acc[0]);
      (void)sink;
    } else if (kind == 1) {
      for (int64_t j = 0; j < n; j += kLanes<float>) store(to + j, load(from + j));
    } else {
      for (int64_t j = 0; j < n; j += kLanes<float>) stream(to + j, load(from + j));
      stream_fence();
    }
  });
  return static_cast<double>(pieces * kPiece) * (kind == 0 ? 1 : 2);
}

}  // namespace npkernels::NPK_ISA
