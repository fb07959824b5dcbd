// Joining partial attention results over disjoint keys. Per row: m the largest lse_i,
//   Z = sum exp(lse_i - m),  lse = m + log Z,  out = sum w_i out_i with w_i = exp(lse_i - m) / Z.
// (exp(lse_i - lse) is the same, but has the rounding error of lse, which is large far from zero.)
// A part with lse_i = -inf saw no key and is not read.
#include <math.h>

#include "kernels.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int64_t kRowsPerTask = 64;

template <class S>
class Merge {
  using T = typename ComputeOf<S>::type;

 public:
  explicit Merge(const MergeCall& call) : call_(call) {}

  void run() const {
    parallel((call_.rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
      const int64_t end = smaller(call_.rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) merge_row(row);
    });
  }

 private:
  T lse(int part, int64_t row) const { return static_cast<const T*>(call_.lses[part])[row]; }

  void merge_row(int64_t row) const {
    double m = -INFINITY, sum = 0;
    for (int i = 0; i < call_.parts; ++i) {
      const double x = lse(i, row);
      if (x > m || x != x) m = x;
    }
    const double shift = m == -double(INFINITY) ? 0 : m;
    const auto share = [&](int i) { return ::exp(double(lse(i, row)) - shift); };
    for (int i = 0; i < call_.parts; ++i) sum += share(i);
    const double total = isinf(m) ? m : m + ::log(sum);
    static_cast<T*>(call_.lse)[row] = static_cast<T>(total);

    S* out = reinterpret_cast<S*>(row_of(call_, call_.out[0], row));
    alignas(64) T acc[kChunk];
    for (int64_t first = 0; first < call_.n; first += kChunk) {
      const int n = static_cast<int>(smaller<int64_t>(kChunk, call_.n - first));
      for (int j = 0; j < n; ++j) acc[j] = 0;
      for (int i = 0; i < call_.parts; ++i) {
        if (lse(i, row) == T(-INFINITY)) continue;
        const Vec<T> weight = splat(static_cast<T>(share(i) / sum));
        const S* part = reinterpret_cast<const S*>(row_of(call_, call_.outs[i], row)) + first;
        for (int j = 0; j < n; j += kLanes<T>)
          store(acc + j, fma(weight, load_upto(part + j, n - j, T(0)), load(acc + j)));
      }
      for (int j = 0; j < n; j += kLanes<T>) store_upto(out + first + j, load(acc + j), n - j);
    }
  }

  const MergeCall& call_;
};

}  // namespace

void merge_attention(const MergeCall& call) {
  switch (call.dtype) {
    case DType::float32:
      return Merge<float>(call).run();
    case DType::float64:
      return Merge<double>(call).run();
    case DType::float16:
      return Merge<Half>(call).run();
    case DType::bfloat16:
      return Merge<BFloat>(call).run();
    default:
      return;
  }
}

}  // namespace npkernels::NPK_ISA
