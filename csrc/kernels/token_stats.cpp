// Per-row statistics of logits in one read: log-probability of an id, lse, entropy, sum of p^2, top-1, rank;
// and the gradients that need nothing but the logits and these numbers: one read, one write.
#include "kernels.h"
#include "row_stats.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
inline void put(void* target, int64_t row, double value) {
  if (target) static_cast<T*>(target)[row] = static_cast<T>(value);
}

template <class Type, class What>
struct Logsumexp {
  using T = Type;
  using State = RowStats<T, What>;
  static constexpr int inputs = 1, outputs = 0;
  static constexpr bool reduces = true, chooses = false;
  static constexpr T fill[] = {-INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {true};
  const StatsCall& call;

  explicit Logsumexp(const StatsCall& c) : call(c) {}
  State begin(int64_t) const { return {}; }
  bool emits() const { return false; }
  void emit(const State&, int64_t, const T* const*, T* const*, int) const {}
  void reduce(State& s, int64_t, const T* const* x, int n) const { s.add(x[0], n); }

  void finish(State& s, int64_t row) const {
    const bool blank_row = (call.masked || call.n == 0) && s.empty();
    put<T>(call.lse, row, s.lse());
    if constexpr (What::entropy) put<T>(call.entropy, row, blank_row ? 0 : s.entropy());
  }
};

template <class T>
using LogsumexpOnly = Logsumexp<T, Normaliser>;
template <class T>
using LogsumexpEntropy = Logsumexp<T, NormaliserEntropy>;

// The statistics above and those of one id: its log-probability and how many logits beat it. Logits are
// compared as they came: divided by a temperature, different ones may become equal.
template <class Type, class What>
struct TokenStats {
  using T = Type;
  struct State {
    RowStats<T, What> stats;
    T chosen = -INFINITY;  // the id's logit, as it came
    T top = -INFINITY;     // the largest, as it came
    int64_t top1 = -1, nan = -1, rank = 0;
  };
  static constexpr int inputs = 1, outputs = 0;
  static constexpr bool reduces = true, chooses = true;
  static constexpr T fill[] = {-INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {false};
  const StatsCall& call;

  explicit TokenStats(const StatsCall& c) : call(c) {}
  State begin(int64_t) const { return {}; }
  int64_t choice(int64_t row) const { return call.ids[row]; }
  bool emits() const { return false; }
  void emit(const State&, int64_t, const T* const*, T* const*, int) const {}

  void reduce(State& s, int64_t first, const T* const* x, int n) const {
    if (call.temperature == 1.0) {
      if (s.stats.add(x[0], n)) s.top1 = first + index_of_top(x[0], n, s.stats.m);
    } else {
      alignas(64) T quotients[kChunk];
      T top = s.top;
      divide(x[0], n, quotients, top);
      if (top > s.top) s.top1 = first + index_of_top(x[0], n, top);
      s.top = top;
      s.stats.add(quotients, n);
    }
    if (s.nan < 0 && s.stats.has_nan()) s.nan = first + index_of_nan(x[0], n);
    if (call.rank) s.rank += count_above(x[0], n, s.chosen);
  }

  void finish(State& s, int64_t row) const {
    const auto& stats = s.stats;
    const bool blank_row = call.masked && stats.empty();
    const T chosen = static_cast<T>(s.chosen / static_cast<T>(call.temperature));
    const double log_prob = (double(chosen) - double(stats.m)) - stats.log_sum();
    const bool never = blank_row || is_masked(call, row, call.ids[row]);
    put<T>(call.log_prob, row, never ? -double(INFINITY) : log_prob);
    put<T>(call.lse, row, stats.lse());
    if constexpr (What::entropy) put<T>(call.entropy, row, blank_row ? 0 : stats.entropy());
    if constexpr (What::squares) put<T>(call.sum_p2, row, blank_row ? 0 : stats.sum_p2());
    if (call.top1) call.top1[row] = s.nan >= 0 ? s.nan : s.top1 < 0 && !call.masked ? 0 : s.top1;
    if (call.rank) call.rank[row] = s.rank;
  }

  // quotients = x / temperature, and top raised to the largest x.
  void divide(const T* x, int n, T* quotients, T& top) const {
    const Vec<T> temperature = splat(static_cast<T>(call.temperature));
    Vec<T> tops = splat(top);
    for (int i = 0; i < n; i += kLanes<T>) {
      const Vec<T> xi = load_upto(x + i, n - i, T(-INFINITY));
      tops = max_of(xi, tops);
      store(quotients + i, xi / temperature);
    }
    top = max_lane(tops);
  }
  static int64_t count_above(const T* x, int n, T bound) {
    const Vec<T> b = splat(bound);
    int64_t above = 0;
    for (int i = 0; i < n; i += kLanes<T>) above += count(greater(load_upto(x + i, n - i, T(-INFINITY)), b));
    return above;
  }
  static int index_of_top(const T* x, int n, T top) {
    int i = 0;
    while (i < n - 1 && !(x[i] == top)) ++i;
    return i;
  }
  static int index_of_nan(const T* x, int n) {
    int i = 0;
    while (i < n - 1 && x[i] == x[i]) ++i;
    return i;
  }
};

template <class T>
using TokenLogProb = TokenStats<T, Normaliser>;
template <class T>
using TokenEntropy = TokenStats<T, NormaliserEntropy>;
template <class T>
using TokenEverything = TokenStats<T, EveryStatistic>;

// dx = d p / T with p = exp(x/T - lse); a row with lse = -inf has no entries and gets 0.
template <class Type>
struct LogsumexpVjp {
  using T = Type;
  struct State {
    T lse, scale;
  };
  static constexpr int inputs = 1, outputs = 1;
  static constexpr bool reduces = false, chooses = false;
  static constexpr T fill[] = {-INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {true};
  const RowGradCall& call;

  explicit LogsumexpVjp(const RowGradCall& c) : call(c) {}
  bool emits() const { return true; }
  void reduce(State&, int64_t, const T* const*, int) const {}
  void finish(State&, int64_t) const {}

  State begin(int64_t row) const {
    const T lse = static_cast<const T*>(call.lse)[row];
    if (lse == T(-INFINITY)) return {0, 0};
    return {lse, static_cast<T>(double(static_cast<const T*>(call.d)[row]) / call.temperature)};
  }

  void emit(const State& s, int64_t, const T* const* x, T* const* dx, int n) const {
    const Vec<T> lse = splat(s.lse), scale = splat(s.scale);
    transform_chunk(x[0], dx[0], n, [&](auto& v) {
      for (Vec<T>& vi : v) vi = vi - lse;
      exp_any<T>(v);
      for (Vec<T>& vi : v) vi = vi * scale;
    });
  }
};

// dx = (d (onehot - p) - dentropy p (log p + H)) / T with log p = x/T - lse
//    = -p (d + dentropy (log p + H)) / T, and d / T more at the id.
template <class Type>
struct TokenVjp {
  using T = Type;
  struct State {
    T lse, d, slope, at_zero;  // d and dentropy over T; at_zero = (d + dentropy H) / T
    int64_t id;
  };
  static constexpr int inputs = 1, outputs = 1;
  static constexpr bool reduces = false, chooses = false;
  static constexpr T fill[] = {-INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {true};
  const RowGradCall& call;

  explicit TokenVjp(const RowGradCall& c) : call(c) {}
  bool emits() const { return true; }
  void reduce(State&, int64_t, const T* const*, int) const {}
  void finish(State&, int64_t) const {}

  State begin(int64_t row) const {
    const T lse = static_cast<const T*>(call.lse)[row];
    if (call.masked && lse == T(-INFINITY)) return {0, 0, 0, 0, -1};  // a row without entries
    const double d = static_cast<const T*>(call.d)[row] / call.temperature;
    double slope = 0, entropy = 0;
    if (call.dentropy) {
      slope = static_cast<const T*>(call.dentropy)[row] / call.temperature;
      entropy = static_cast<const T*>(call.entropy)[row];
    }
    return {lse, static_cast<T>(d), static_cast<T>(slope), static_cast<T>(d + slope * entropy),
            call.ids[row]};
  }

  // Where p is 0 the result is 0, whatever log p and H are.
  void emit(const State& s, int64_t first, const T* const* x, T* const* dx, int n) const {
    const Vec<T> lse = splat(s.lse), slope = splat(s.slope), at_zero = splat(s.at_zero), zero = splat(T(0));
    transform_chunk(x[0], dx[0], n, [&](auto& v) {
      Vec<T> factor[kLockstep];
#pragma GCC unroll 4
      for (int u = 0; u < kLockstep; ++u) {
        v[u] = v[u] - lse;
        factor[u] = zero - fma(slope, v[u], at_zero);
      }
      exp_any<T>(v);
#pragma GCC unroll 4
      for (int u = 0; u < kLockstep; ++u) v[u] = select(equal(v[u], zero), zero, v[u] * factor[u]);
    });
    if (s.id >= first && s.id < first + n) dx[0][s.id - first] += s.d;
  }
};

}  // namespace

void logsumexp(const StatsCall& call) {
  if (call.entropy)
    run_rows<LogsumexpEntropy>(call);
  else
    run_rows<LogsumexpOnly>(call);
}

void token_log_probs(const StatsCall& call) {
  if (call.sum_p2)
    run_rows<TokenEverything>(call);
  else if (call.entropy)
    run_rows<TokenEntropy>(call);
  else
    run_rows<TokenLogProb>(call);
}

void logsumexp_vjp(const RowGradCall& call) { run_rows<LogsumexpVjp>(call); }
void token_log_probs_vjp(const RowGradCall& call) { run_rows<TokenVjp>(call); }

}  // namespace npkernels::NPK_ISA
