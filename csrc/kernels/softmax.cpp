// softmax(x) = exp(x - m) / sum,  log_softmax(x) = (x - m) - log(sum),  and their derivatives.
// Per row: m the largest entry, sum the sum of exp(x - m); y the result, p the probabilities.
#include "kernels.h"
#include "row_stats.h"

namespace npkernels::NPK_ISA {
namespace {

// y = exp(x - m) / sum. A row without entries (mask) is all 0.
template <class Type>
struct Softmax {
  using T = Type;
  using State = KeptStats<T, SumOnly>;
  static constexpr int inputs = 1, outputs = 1;
  static constexpr bool reduces = true, chooses = false, keeps = true;
  static constexpr T fill[] = {-INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {true};
  const RowCall& call;

  explicit Softmax(const RowCall& c) : call(c) {}
  State begin(int64_t) const { return State(call.n); }
  bool emits() const { return true; }

  void reduce(State& s, int64_t first, const T* const* x, int n, T* kept) const {
    s.read(first, x[0], n, kept);
  }
  void finish(State& s, int64_t) const { s.scale = call.masked && s.empty() ? 0 : 1 / s.sum(); }
  void emit(const State& s, int64_t first, const T* const* x, const T* kept, T* const* y, int n) const {
    s.emit(first, x[0], kept, y[0], n);
  }
};

// y = (x - m) - log(sum). A row without entries (mask) is all -inf.
template <class Type>
struct LogSoftmax {
  using T = Type;
  struct State : RowStats<T, Normaliser> {
    T log_scale = 0;
  };
  static constexpr int inputs = 1, outputs = 1;
  static constexpr bool reduces = true, chooses = false;
  static constexpr T fill[] = {-INFINITY}, blank[] = {-INFINITY};
  static constexpr bool scaled[] = {true};
  bool masked;

  explicit LogSoftmax(const RowCall& call) : masked(call.masked) {}
  State begin(int64_t) const { return {}; }
  bool emits() const { return true; }

  void reduce(State& s, int64_t, const T* const* x, int n) const { s.add(x[0], n); }

  void finish(State& s, int64_t) const {
    const bool blank_row = masked && s.empty();
    s.log_scale = blank_row ? T(0) : static_cast<T>(s.log_sum());
    if (blank_row) s.m = 0;
  }

  void emit(const State& s, int64_t, const T* const* x, T* const* y, int n) const {
    const Vec<T> m = splat(s.m), log_scale = splat(s.log_scale);
    for (int i = 0; i < n; i += kLanes<T>)
      store_upto(y[0] + i, (load_upto(x[0] + i, n - i, T(0)) - m) - log_scale, n - i);
  }
};

// dx = y (dy - sum(dy y)) / T; the driver has divided dy by T.
template <class Type>
struct SoftmaxVjp {
  using T = Type;
  struct State {
    Sum dot;
  };
  static constexpr int inputs = 2, outputs = 1;
  static constexpr bool reduces = true, chooses = false;
  static constexpr T fill[] = {0, 0}, blank[] = {0};
  static constexpr bool scaled[] = {true, false};

  explicit SoftmaxVjp(const RowCall&) {}
  State begin(int64_t) const { return {}; }
  bool emits() const { return true; }
  void finish(State&, int64_t) const {}

  void reduce(State& s, int64_t, const T* const* x, int n) const {
    s.dot.add(sum_of<T>(n, [&](int i, Vec<T> dot) {
      return fma(load_upto(x[0] + i, n - i, T(0)), load_upto(x[1] + i, n - i, T(0)), dot);
    }));
  }

  void emit(const State& s, int64_t, const T* const* x, T* const* dx, int n) const {
    const Vec<T> dot = splat(static_cast<T>(s.dot.value()));
    for (int i = 0; i < n; i += kLanes<T>) {
      const Vec<T> dy = load_upto(x[0] + i, n - i, T(0)), y = load_upto(x[1] + i, n - i, T(0));
      store_upto(dx[0] + i, y * (dy - dot), n - i);
    }
  }
};

// dx = (dy - exp(y) sum(dy)) / T; the driver has divided dy by T.
template <class Type>
struct LogSoftmaxVjp {
  using T = Type;
  struct State {
    Sum sum;
  };
  static constexpr int inputs = 2, outputs = 1;
  static constexpr bool reduces = true, chooses = false;
  static constexpr T fill[] = {0, -INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {true, false};

  explicit LogSoftmaxVjp(const RowCall&) {}
  State begin(int64_t) const { return {}; }
  bool emits() const { return true; }
  void finish(State&, int64_t) const {}

  void reduce(State& s, int64_t, const T* const* x, int n) const {
    s.sum.add(sum_of<T>(n, [&](int i, Vec<T> sum) { return sum + load_upto(x[0] + i, n - i, T(0)); }));
  }

  void emit(const State& s, int64_t, const T* const* x, T* const* dx, int n) const {
    const Vec<T> sum = splat(static_cast<T>(s.sum.value()));
    for (int i = 0; i < n; i += kLanes<T>) {
      const Vec<T> dy = load_upto(x[0] + i, n - i, T(0)), y = load_upto(x[1] + i, n - i, T(0));
      store_upto(dx[0] + i, dy - exp_any<T>(y) * sum, n - i);
    }
  }
};

// y = softmax(x) or its logarithm; dy = y (dx - sum(p dx)) or dx - sum(p dx); x and dx are divided by T.
template <class Type, bool kLog>
struct Jvp {
  using T = Type;
  struct State {
    RowStats<T, Normaliser> stats;
    Sum dot;  // of exp(x - m) dx
    T log_scale = 0, scale = 0, mean = 0;
  };
  static constexpr int inputs = 2, outputs = 2;
  static constexpr bool reduces = true, chooses = false;
  static constexpr T fill[] = {-INFINITY, 0}, blank[] = {kLog ? T(-INFINITY) : T(0), 0};
  static constexpr bool scaled[] = {true, true};
  bool masked;

  explicit Jvp(const RowCall& call) : masked(call.masked) {}
  State begin(int64_t) const { return {}; }
  bool emits() const { return true; }

  void reduce(State& s, int64_t, const T* const* x, int n) const {
    s.dot.scale(add_with_tangent(s.stats, x[0], n));
    s.dot.add(weighted_sum(s.stats, x[0], x[1], n));
  }

  void finish(State& s, int64_t) const {
    const bool blank_row = masked && s.stats.empty();
    if (blank_row) s.stats.m = 0;
    s.log_scale = blank_row ? T(0) : static_cast<T>(s.stats.log_sum());
    s.scale = blank_row ? T(0) : static_cast<T>(1 / s.stats.sum());
    s.mean = blank_row ? T(0) : static_cast<T>(s.dot.value() / s.stats.sum());
  }

  void emit(const State& s, int64_t, const T* const* x, T* const* y, int n) const {
    const Vec<T> m = splat(s.stats.m), log_scale = splat(s.log_scale), scale = splat(s.scale),
                 mean = splat(s.mean);
    for (int i = 0; i < n; i += kLanes<T>) {
      const Vec<T> d = load_upto(x[0] + i, n - i, T(0)) - m;
      const Vec<T> tangent = load_upto(x[1] + i, n - i, T(0)) - mean;
      const Vec<T> result = kLog ? d - log_scale : exp_negative<T>(d) * scale;
      store_upto(y[0] + i, result, n - i);
      store_upto(y[1] + i, kLog ? tangent : result * tangent, n - i);
    }
  }

  // Adds a chunk to the statistics and returns exp(m before - m after), by which earlier weighted sums
  // shrink.
  static double add_with_tangent(RowStats<T, Normaliser>& stats, const T* x, int n) {
    const T before = stats.m;
    if (!stats.add(x, n) || before == T(-INFINITY)) return 1;
    return ::exp(double(before) - double(stats.m));
  }

  // sum of exp(x - m) dx; an entry of weight 0 adds nothing.
  static double weighted_sum(const RowStats<T, Normaliser>& stats, const T* x, const T* dx, int n) {
    const Vec<T> m = splat(stats.m == T(-INFINITY) ? T(0) : stats.m), zero = splat(T(0));
    return sum_of<T>(n, [&](int i, Vec<T> sum) {
      const Vec<T> e = exp_negative<T>(load_upto(x + i, n - i, T(-INFINITY)) - m);
      return sum + select(equal(e, zero), zero, e * load_upto(dx + i, n - i, T(0)));
    });
  }
};

template <class T>
using SoftmaxJvp = Jvp<T, false>;
template <class T>
using LogSoftmaxJvp = Jvp<T, true>;

// lse and its tangent sum(p dx) / T, per row.
template <class Type>
struct LogsumexpJvp {
  using T = Type;
  struct State {
    RowStats<T, Normaliser> stats;
    Sum dot;
  };
  static constexpr int inputs = 2, outputs = 0;
  static constexpr bool reduces = true, chooses = false;
  static constexpr T fill[] = {-INFINITY, 0}, blank[] = {0};
  static constexpr bool scaled[] = {true, true};
  const StatsCall& call;

  explicit LogsumexpJvp(const StatsCall& c) : call(c) {}
  State begin(int64_t) const { return {}; }
  bool emits() const { return false; }
  void emit(const State&, int64_t, const T* const*, T* const*, int) const {}

  void reduce(State& s, int64_t, const T* const* x, int n) const {
    s.dot.scale(SoftmaxJvp<T>::add_with_tangent(s.stats, x[0], n));
    s.dot.add(SoftmaxJvp<T>::weighted_sum(s.stats, x[0], x[1], n));
  }

  void finish(State& s, int64_t row) const {
    static_cast<T*>(call.lse)[row] = static_cast<T>(s.stats.lse());
    static_cast<T*>(call.tangent)[row] =
        s.stats.empty() ? T(0) : static_cast<T>(s.dot.value() / s.stats.sum());
  }
};

}  // namespace

void softmax(const RowCall& call) { run_rows<Softmax>(call); }
void log_softmax(const RowCall& call) { run_rows<LogSoftmax>(call); }
void softmax_vjp(const RowCall& call) { run_rows<SoftmaxVjp>(call); }
void log_softmax_vjp(const RowCall& call) { run_rows<LogSoftmaxVjp>(call); }
void softmax_jvp(const RowCall& call) { run_rows<SoftmaxJvp>(call); }
void log_softmax_jvp(const RowCall& call) { run_rows<LogSoftmaxJvp>(call); }
void logsumexp_jvp(const StatsCall& call) { run_rows<LogsumexpJvp>(call); }

}  // namespace npkernels::NPK_ISA
