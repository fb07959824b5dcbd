// Rotary position embedding (Su et al. 2021): pairs (a, b) of a row turn by the angle of their position,
//   a' = a cos - b sin,  b' = b cos + a sin
// where a pair is (x[i], x[i + half]), or (x[2i], x[2i+1]) if interleaved; entries past rotary_dim = 2 half
// pass through.
#include "kernels.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int kPairs = 256;  // pairs turned at a time
constexpr int64_t kRowsPerTask = 128;

template <class S>
class Rotary {
  using T = typename ComputeOf<S>::type;

 public:
  explicit Rotary(const RotaryCall& call) : call_(call) {}

  void run() const {
    parallel((call_.rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
      const int64_t end = smaller(call_.rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) turn_row(row);
    });
  }

 private:
  void turn_row(int64_t row) const {
    const S* x = reinterpret_cast<const S*>(row_of(call_, call_.in[0], row));
    S* y = reinterpret_cast<S*>(row_of(call_, call_.out[0], row));
    const T* cos = reinterpret_cast<const T*>(row_of(call_, call_.cos, row));
    const T* sin = reinterpret_cast<const T*>(row_of(call_, call_.sin, row));
    const int64_t half = call_.rotary_dim / 2;
    for (int64_t first = 0; first < half; first += kPairs) {
      const int n = static_cast<int>(smaller<int64_t>(kPairs, half - first));
      if (call_.interleaved)
        turn_interleaved(x + 2 * first, cos + first, sin + first, n, y + 2 * first);
      else
        turn_halves(x + first, x + half + first, cos + first, sin + first, n, y + first, y + half + first);
    }
    for (int64_t i = call_.rotary_dim; i < call_.n; i += kLanes<T>)
      store_upto(y + i, load_upto(x + i, call_.n - i, T(0)), call_.n - i);
  }

  void turn_halves(const S* a, const S* b, const T* cos, const T* sin, int n, S* ya, S* yb) const {
    const Vec<T> sign = splat(call_.inverse ? T(-1) : T(1));
    for (int i = 0; i < n; i += kLanes<T>) {
      const Vec<T> ai = load_upto(a + i, n - i, T(0)), bi = load_upto(b + i, n - i, T(0));
      const Vec<T> c = load_upto(cos + i, n - i, T(0)), s = load_upto(sin + i, n - i, T(0)) * sign;
      store_upto(ya + i, ai * c - bi * s, n - i);
      store_upto(yb + i, bi * c + ai * s, n - i);
    }
  }

  void turn_interleaved(const S* x, const T* cos, const T* sin, int n, S* y) const {
    const T sign = call_.inverse ? T(-1) : T(1);
    alignas(64) T pair[2 * kPairs];
    for (int i = 0; i < 2 * n; i += kLanes<T>) store(pair + i, load_upto(x + i, 2 * n - i, T(0)));
    for (int i = 0; i < n; ++i) {
      const T a = pair[2 * i], b = pair[2 * i + 1], c = cos[i], s = sin[i] * sign;
      pair[2 * i] = a * c - b * s;
      pair[2 * i + 1] = b * c + a * s;
    }
    for (int i = 0; i < 2 * n; i += kLanes<T>) store_upto(y + i, load(pair + i), 2 * n - i);
  }

  const RotaryCall& call_;
};

}  // namespace

void rotary(const RotaryCall& call) {
  switch (call.dtype) {
    case DType::float32:
      return Rotary<float>(call).run();
    case DType::float64:
      return Rotary<double>(call).run();
    case DType::float16:
      return Rotary<Half>(call).run();
    case DType::bfloat16:
      return Rotary<BFloat>(call).run();
    default:
      return;
  }
}

}  // namespace npkernels::NPK_ISA
