// The normaliser of a row, gathered chunk by chunk in one read (online softmax, Milakov & Gimelshein 2018).
//
// m is the largest entry so far. Entries equal to m are counted (each is exp(0) = 1), the others are summed:
//   sum = ties + tail,  log(sum) = log1p((ties - 1) + tail)
// so that a row with one dominating entry keeps the digits of its small tail (Blanchard, Higham & Higham
// 2021, eq. 4.2). Lanes are of type T within a chunk; chunks are added up in double.
#pragma once

#include <math.h>

#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

// What beside the sum is gathered.
struct SumOnly {
  static constexpr bool split = false, entropy = false, squares = false;
};
struct Normaliser {
  static constexpr bool split = true, entropy = false, squares = false;
};
struct NormaliserEntropy {
  static constexpr bool split = true, entropy = true, squares = false;
};
struct EveryStatistic {
  static constexpr bool split = true, entropy = true, squares = true;
};

template <class T, class What>
struct RowStats {
  T m = -INFINITY;
  double ties = 0;  // entries equal to m (not counted for SumOnly, where tail holds them)
  Sum tail;         // of exp(x - m) over the others
  Sum moment;       // of exp(x - m) (x - m)
  Sum square;       // of exp(x - m)^2 over the others

  // Returns whether m rose.
  bool add(const T* x, int n) { return add_by<false>(x, n, nullptr); }
  // The same with the exponentials of exp_negative, which `kept`, if given, receives.
  bool add_exact(const T* x, int n, T* kept) { return add_by<true>(x, n, kept); }

  // The results below are those of the row as the formula has them: NaN for a row of -inf, a row with +inf or
  // NaN.
  bool has_nan() const { return tail.value() != tail.value(); }
  bool empty() const { return m == T(-INFINITY) && !has_nan(); }
  double sum() const { return m == T(INFINITY) || empty() ? double(NAN) : ties + tail.value(); }
  double log_sum() const {
    return m == T(INFINITY) || empty() ? double(NAN) : log1p(ties - 1 + tail.value());
  }
  double lse() const {
    if (empty()) return -double(INFINITY);
    if (m == T(INFINITY)) return has_nan() ? double(NAN) : double(INFINITY);
    return double(m) + log_sum();
  }
  // H = log(sum) - sum(p (x - m))
  double entropy() const { return log_sum() - moment.value() / sum(); }
  double sum_p2() const { return (ties + square.value()) / (sum() * sum()); }

 private:
  template <bool kExact>
  bool add_by(const T* x, int n, T* kept) {
    const T top = chunk_max(x, n);
    const bool rose = top > m;
    if (rose) {
      rescale(top);
      m = top;
    }
    // Only a chunk that reaches m holds entries equal to it; most do not.
    if (What::split && top == m)
      sum_chunk<kExact, What::split>(x, n, kept);
    else
      sum_chunk<kExact, false>(x, n, kept);
    return rose;
  }

  template <bool kExact, bool kTies>
  void sum_chunk(const T* x, int n, T* kept) {
    const T shift = m == T(-INFINITY) ? T(0) : m;  // exp(-inf - 0) = 0
    const Vec<T> zero = splat(T(0));
    LaneSum<T> sum, first_moment, squares;
    int equals = 0, i = 0;
    constexpr int kBlock = kSummed<T> * kLanes<T>;
    const auto block = [&](auto whole) {
      Vec<T> part = zero, moment_part = zero, square_part = zero;
      for (const int end = smaller(n, i + kBlock); i < end; i += kLockstep * kLanes<T>)
        equals += add_lockstep<kExact, kTies, decltype(whole)::value>(
            x + i, n - i, shift, kept ? kept + i : nullptr, part, moment_part, square_part);
      sum.add(part);
      if constexpr (What::entropy) first_moment.add(moment_part);
      if constexpr (What::squares) squares.add(square_part);
    };
    while (i + kBlock <= n) block(Bool<true>{});
    while (i < n) block(Bool<false>{});
    ties += equals;
    tail.add(sum.total());
    if constexpr (What::entropy) moment.add(first_moment.total());
    if constexpr (What::squares) square.add(squares.total());
  }

  // kLockstep registers; returns how many entries equal the shift, if they are to be counted.
  template <bool kExact, bool kTies, bool kWhole>
  static inline int add_lockstep(const T* x, int n, T shift, T* kept, Vec<T>& part, Vec<T>& moment_part,
                                 Vec<T>& square_part) {
    const Vec<T> vm = splat(shift), lowest = splat(ExpConstants<T>::lowest), zero = splat(T(0));
    Vec<T> xi[kLockstep], e[kLockstep], bounded[kLockstep];
    int equals = 0;
#pragma GCC unroll 4
    for (int u = 0; u < kLockstep; ++u) {
      const int at = u * kLanes<T>;
      if (u * sizeof(Vec<T>) % 64 == 0) prefetch(x + at + kChunk);  // the next chunk comes meanwhile
      xi[u] = kWhole ? load(x + at) : load_upto(x + at, n - at, T(-INFINITY));
      // exp is 0 at `lowest`, or next to it, and 0 * lowest is 0 where 0 * -inf is not
      bounded[u] = What::entropy ? max_of(lowest, xi[u] - vm) : xi[u] - vm;
      e[u] = bounded[u];
    }
    if constexpr (kExact)
      exp_negative<T>(e);
    else
      exp_weight<T>(e);
    if (kExact && kept)
#pragma GCC unroll 4
      for (int u = 0; u < kLockstep; ++u) {
        const int at = u * kLanes<T>;
        if (kWhole)
          store(kept + at, e[u]);
        else if (at < n)
          store_upto(kept + at, e[u], n - at);
      }
#pragma GCC unroll 4
    for (int u = 0; u < kLockstep; ++u) {
      if constexpr (What::entropy) moment_part = fma(e[u], bounded[u], moment_part);
      if constexpr (kTies) {
        const Mask<T> tie = equal(xi[u], vm);  // also where both are +inf and the difference is NaN
        equals += count(tie);
        e[u] = select(tie, zero, e[u]);
      }
      part = part + e[u];
      if constexpr (What::squares) square_part = fma(e[u], e[u], square_part);
    }
    return equals;
  }

  // Four registers, since each maximum waits for the one before it.
  static T chunk_max(const T* x, int n) {
    constexpr int kWays = 4, kBlock = kWays * kLanes<T>;
    Vec<T> top[kWays];
    int i = 0;
    for (int u = 0; u < kWays; ++u) top[u] = splat(T(-INFINITY));
    for (; i + kBlock <= n; i += kBlock)
#pragma GCC unroll 4
      for (int u = 0; u < kWays; ++u) top[u] = max_of(load(x + i + u * kLanes<T>), top[u]);
    for (; i < n; i += kLanes<T>) top[0] = max_of(load_upto(x + i, n - i, T(-INFINITY)), top[0]);
    return max_lane(max_of(max_of(top[0], top[1]), max_of(top[2], top[3])));
  }

  void rescale(T top) {
    if (m == T(-INFINITY)) {
      return;  // nothing counted yet, though tail may hold a NaN
    }
    const double down = double(m) - double(top), factor = ::exp(down);
    tail.add(ties);
    square.add(ties);
    if (factor > 0) moment.add(down * tail.value());
    tail.scale(factor);
    moment.scale(factor);
    square.scale(factor * factor);
    ties = 0;
  }
};

// The statistics of a row whose exponentials are kept for the second pass, or computed again there with the
// same bits. They are relative to m as it was when their chunk was read.
template <class T, class What>
struct KeptStats : RowStats<T, What> {
  double scale = 0;  // of the results: scale * exp(x - m)

  explicit KeptStats(int64_t n = 0) : by_chunk_(n <= kKeptMost<T>) {}  // of n entries

  // Returns whether m rose; kept may be null.
  bool read(int64_t first, const T* x, int n, T* kept) {
    if (!by_chunk_) return this->add(x, n);
    const bool rose = this->add_exact(x, n, kept);
    top_[first / kChunk] = this->m;
    return rose;
  }

  // y = scale * exp(x - m) for the entries from `first` on, from what was kept of them or else from x.
  void emit(int64_t first, const T* x, const T* kept, T* y, int n) const {
    if (!by_chunk_) return emit_piece(x, nullptr, y, n, this->m, 1);
    for (int i = 0, count; i < n; i += count) {
      const int64_t chunk = (first + i) / kChunk;
      count = static_cast<int>(smaller<int64_t>(n - i, (chunk + 1) * kChunk - first - i));
      const T top = top_[chunk];
      emit_piece(kept ? nullptr : x + i, kept ? kept + i : nullptr, y + i, count, top,
                 top == this->m ? 1 : ::exp(double(top) - double(this->m)));
    }
  }

 private:
  void emit_piece(const T* x, const T* kept, T* y, int n, T top, double share) const {
    const Vec<T> factor = splat(static_cast<T>(scale * share));
    if (kept) {
      for (int i = 0; i < n; i += kLanes<T>)
        store_upto(y + i, load_upto(kept + i, n - i, T(0)) * factor, n - i);
      return;
    }
    const Vec<T> shift = splat(top == T(-INFINITY) ? T(0) : top);
    transform_chunk(x, y, n, [&](auto& v) {
      for (Vec<T>& vi : v) vi = vi - shift;
      exp_negative<T>(v);
      for (Vec<T>& vi : v) vi = vi * factor;
    });
  }

  // m after each chunk, written before it is read. States are copied before their first chunk only.
  struct Tops {
    Tops() {}
    Tops(const Tops&) {}
    Tops& operator=(const Tops&) { return *this; }
    T& operator[](int64_t chunk) { return of_[chunk]; }
    T operator[](int64_t chunk) const { return of_[chunk]; }

   private:
    T of_[kKeptMost<T> / kChunk];
  };

  bool by_chunk_;
  Tops top_;
};

}  // namespace
}  // namespace npkernels::NPK_ISA
