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

  // Returns whether m rose. With `exact` the exponentials are those of exp_negative, and kept, if given, gets
  // them; it has room for whole lockstep blocks.
  bool add(const T* x, int n, bool exact = false, T* kept = nullptr) {
    const T top = chunk_max(x, n);
    const bool rose = top > m;
    if (rose) {
      rescale(top);
      m = top;
    }
    const T shift = m == T(-INFINITY) ? T(0) : m;  // exp(-inf - 0) = 0
    const Vec<T> vm = splat(shift), lowest = splat(ExpConstants<T>::lowest), zero = splat(T(0));
    LaneSum<T> sum, first_moment, squares;
    int equals = 0;
    for (int i = 0; i < n;) {
      Vec<T> part = zero, moment_part = zero, square_part = zero;
      for (const int end = smaller(n, i + kSummed<T> * kLanes<T>); i < end; i += kLockstep * kLanes<T>) {
        Vec<T> xi[kLockstep], e[kLockstep], bounded[kLockstep];
#pragma GCC unroll 4
        for (int u = 0; u < kLockstep; ++u) {
          const int at = i + u * kLanes<T>;
          if (u * sizeof(Vec<T>) % 64 == 0) prefetch(x + at + kChunk);  // the next chunk comes meanwhile
          xi[u] = load_upto(x + at, n - at, T(-INFINITY));
          // exp is 0 at `lowest`, or next to it, and 0 * lowest is 0 where 0 * -inf is not
          bounded[u] = What::entropy ? max_of(lowest, xi[u] - vm) : xi[u] - vm;
          e[u] = bounded[u];
        }
        if (exact)
          exp_negative<T>(e);
        else
          exp_weight<T>(e);
        if (kept)
#pragma GCC unroll 4
          for (int u = 0; u < kLockstep; ++u) store(kept + i + u * kLanes<T>, e[u]);
#pragma GCC unroll 4
        for (int u = 0; u < kLockstep; ++u) {
          if constexpr (What::entropy) moment_part = fma(e[u], bounded[u], moment_part);
          if constexpr (What::split) {
            const Mask<T> tie = equal(xi[u], vm);  // also where both are +inf and the difference is NaN
            equals += count(tie);
            e[u] = select(tie, zero, e[u]);
          }
          part = part + e[u];
          if constexpr (What::squares) square_part = fma(e[u], e[u], square_part);
        }
      }
      sum.add(part);
      if constexpr (What::entropy) first_moment.add(moment_part);
      if constexpr (What::squares) squares.add(square_part);
    }
    ties += equals;
    tail.add(sum.total());
    if constexpr (What::entropy) moment.add(first_moment.total());
    if constexpr (What::squares) square.add(squares.total());
    return rose;
  }

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
  // Four registers, since each maximum waits for the one before it.
  static T chunk_max(const T* x, int n) {
    constexpr int kWays = 4;
    Vec<T> top[kWays];
    for (int u = 0; u < kWays; ++u) top[u] = splat(T(-INFINITY));
    for (int i = 0; i < n; i += kWays * kLanes<T>)
#pragma GCC unroll 4
      for (int u = 0; u < kWays; ++u) {
        const int at = i + u * kLanes<T>;
        top[u] = max_of(load_upto(x + at, n - at, T(-INFINITY)), top[u]);
      }
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

}  // namespace
}  // namespace npkernels::NPK_ISA
