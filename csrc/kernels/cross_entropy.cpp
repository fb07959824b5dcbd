// loss = a lse' - (1 - s) w[t] x'[t] - s/V sum_c w[c] x'[c]  with x' = x - m, lse' = log(sum),
// a = (1 - s) w[t] + s/V sum_c w[c]; gradient  g (a p - (1 - s) w[t] onehot - s/V w).
// t target, w class weights (1 without), s label smoothing, V classes, m and sum of the row as in
// row_stats.h.
#include "kernels.h"
#include "row_stats.h"

namespace npkernels::NPK_ISA {
namespace {

template <class Type, bool kSmooth>
struct CrossEntropy {
  using T = Type;
  struct State {
    KeptStats<T, Normaliser> stats;
    T chosen = 0;  // the target's logit
    Sum weighted;  // sum of w[c] (x[c] - m) over the entries seen
    Sum seen;      // sum of their w[c]
    T target_term = 0, smooth_term = 0;
    int64_t id = -1;
  };
  static constexpr int inputs = 1, outputs = 1;
  static constexpr bool reduces = true, chooses = true, keeps = true;
  static constexpr T fill[] = {-INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {false};
  const LossCall& call;
  const T* weight;

  explicit CrossEntropy(const LossCall& c) : call(c), weight(static_cast<const T*>(c.weight)) {}
  int64_t choice(int64_t row) const { return call.ids[row]; }
  bool emits() const { return call.out[0].data != nullptr; }

  State begin(int64_t row) const {
    State s;
    s.stats = KeptStats<T, Normaliser>(call.n);
    s.id = call.ids[row];
    return s;
  }

  void reduce(State& s, int64_t first, const T* const* x, int n, T* kept) const {
    if (s.id < 0) return;
    const T before = s.stats.m;
    const bool rose = s.stats.read(first, x[0], n, kept);
    if constexpr (kSmooth) {
      if (rose && s.seen.value() != 0) s.weighted.add(s.seen.value() * (double(before) - double(s.stats.m)));
      add_weighted(s, x[0], weight ? weight + first : nullptr, n);
    }
  }

  void finish(State& s, int64_t row) const {
    if (s.id < 0) {
      static_cast<T*>(call.loss)[row] = 0;
      return;
    }
    const double log_sum = s.stats.log_sum(), m = s.stats.m;
    const double smooth = kSmooth ? call.label_smoothing / double(call.n) : 0;
    const double target = (1 - (kSmooth ? call.label_smoothing : 0)) * (weight ? double(weight[s.id]) : 1);
    double loss = target * (log_sum - (double(s.chosen) - m));
    if constexpr (kSmooth) loss += smooth * (call.weight_sum * log_sum - s.weighted.value());
    static_cast<T*>(call.loss)[row] = static_cast<T>(loss);
    const double g = call.grad_scale;
    s.stats.scale = g * (target + smooth * call.weight_sum) / s.stats.sum();
    s.target_term = static_cast<T>(g * target);
    s.smooth_term = static_cast<T>(g * smooth);
  }

  void emit(const State& s, int64_t first, const T* const* x, const T* kept, T* const* dx, int n) const {
    if (s.id < 0) return fill_chunk(dx[0], n, T(0));
    s.stats.emit(first, x[0], kept, dx[0], n);
    if constexpr (kSmooth) {
      const Vec<T> smooth = splat(s.smooth_term), one = splat(T(1));
      for (int i = 0; i < n; i += kLanes<T>) {
        const Vec<T> w = weight ? load_upto(weight + first + i, n - i, T(0)) : one;
        store_upto(dx[0] + i, load_upto(dx[0] + i, n - i, T(0)) - smooth * w, n - i);
      }
    }
    if (s.id >= first && s.id < first + n) dx[0][s.id - first] -= s.target_term;
  }

  static void add_weighted(State& s, const T* x, const T* w, int n) {
    const Vec<T> m = splat(s.stats.m == T(-INFINITY) ? T(0) : s.stats.m);
    // Past the end x - m is 0 and w is 0.
    s.weighted.add(sum_of<T>(n, [&](int i, Vec<T> sum) {
      const Vec<T> d = load_upto(x + i, n - i, m[0]) - m;
      return w ? fma(load_upto(w + i, n - i, T(0)), d, sum) : sum + d;
    }));
    s.seen.add(w ? sum_of<T>(n, [&](int i, Vec<T> sum) { return sum + load_upto(w + i, n - i, T(0)); }) : n);
  }
};

template <class T>
using PlainCrossEntropy = CrossEntropy<T, false>;
template <class T>
using SmoothCrossEntropy = CrossEntropy<T, true>;

}  // namespace

void cross_entropy(const LossCall& call) {
  if (call.label_smoothing != 0)
    run_rows<SmoothCrossEntropy>(call);
  else
    run_rows<PlainCrossEntropy>(call);
}

}  // namespace npkernels::NPK_ISA
