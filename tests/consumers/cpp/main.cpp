// Softmax and attention through the C++ headers, checked against plain loops. Their preconditions are the
// caller's.
#include <npkernels/attention.h>
#include <npkernels/isa.h>
#include <npkernels/softmax.h>
#include <npkernels/threads.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

// A contiguous array of doubles that knows its shape.
struct Tensor {
  std::vector<int64_t> shape, strides;
  std::vector<double> values;

  explicit Tensor(std::vector<int64_t> s) : shape(std::move(s)), strides(shape.size()) {
    int64_t step = sizeof(double);
    for (size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
    values.resize(static_cast<size_t>(step) / sizeof(double));
  }
  npkernels::Array array() {
    return {values.data(), shape.data(), strides.data(), static_cast<int32_t>(shape.size()),
            npkernels::DType::float64};
  }
  void randomise(unsigned seed) {
    std::mt19937 generator(seed);
    for (double& x : values) x = std::normal_distribution<double>()(generator);
  }
};

bool close(double got, double wanted) { return std::abs(got - wanted) <= 1e-13 * (1 + std::abs(wanted)); }

bool softmax_agrees() {
  const int64_t rows = 5, n = 1023;
  Tensor x({rows, n}), y({rows, n});
  x.randomise(1);
  npkernels::softmax(x.array(), {1, 2.0, nullptr}, y.array());
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(x.values[r * n + i] / 2.0);
    for (int64_t i = 0; i < n; ++i)
      if (!close(y.values[r * n + i], std::exp(x.values[r * n + i] / 2.0) / sum)) return false;
  }
  return true;
}

bool attention_agrees() {
  const int64_t H = 3, S = 20, D = 8;
  Tensor q({1, H, S, D}), k({1, H, S, D}), v({1, H, S, D}), out({1, H, S, D});
  q.randomise(2), k.randomise(3), v.randomise(4);
  npkernels::AttentionOptions causal;
  causal.scale = 0.5;
  causal.causal = true;
  if (!npkernels::attention(q.array(), k.array(), v.array(), causal, out.array(), nullptr)) return false;
  for (int64_t h = 0; h < H; ++h)
    for (int64_t s = 0; s < S; ++s) {
      std::vector<double> weight(s + 1);
      double sum = 0;
      for (int64_t j = 0; j <= s; ++j) {
        double score = 0;
        for (int64_t d = 0; d < D; ++d)
          score += q.values[(h * S + s) * D + d] * k.values[(h * S + j) * D + d];
        sum += weight[j] = std::exp(0.5 * score);
      }
      for (int64_t d = 0; d < D; ++d) {
        double y = 0;
        for (int64_t j = 0; j <= s; ++j) y += weight[j] / sum * v.values[(h * S + j) * D + d];
        if (!close(out.values[(h * S + s) * D + d], y)) return false;
      }
    }
  return true;
}

}  // namespace

int main() {
  for (const char* const* isa = npkernels::compiled_isas(); *isa; ++isa) {
    if (!npkernels::set_isa(*isa)) continue;
    if (!softmax_agrees() || !attention_agrees()) {
      std::fprintf(stderr, "wrong on %s\n", *isa);
      return 1;
    }
    std::printf("%s: softmax and attention agree with plain loops\n", *isa);
  }
  return npkernels::num_threads() >= 1 ? 0 : 1;
}
