// Joining partial attention results over disjoint keys, row by row: out = sum of the parts' results by their
// shares (shares.h). A part with lse = -inf saw no key and is not read.
#include "kernels.h"
#include "row_driver.h"
#include "shares.h"

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
    const Shares shares(call_.parts, [&](int64_t part) { return lse(static_cast<int>(part), row); });
    static_cast<T*>(call_.lse)[row] = static_cast<T>(shares.total());

    S* out = reinterpret_cast<S*>(row_of(call_, call_.out[0], row));
    alignas(64) T acc[kChunk];
    for (int64_t first = 0; first < call_.n; first += kChunk) {
      const int n = static_cast<int>(smaller<int64_t>(kChunk, call_.n - first));
      for (int j = 0; j < n; ++j) acc[j] = 0;
      for (int i = 0; i < call_.parts; ++i) {
        if (shares.empty(i)) continue;
        const Vec<T> weight = splat(static_cast<T>(shares.of(i)));
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
