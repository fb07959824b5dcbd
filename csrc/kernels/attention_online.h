// The online softmax: what becomes of a tile of scores st when weights are exp(score - m) and m, the greatest
// score of each lane so far, may rise with every tile.
//
// N registers of lanes; st, m, l, nan as in attention.cpp.
#pragma once

#include <math.h>

#include "attention_block.h"

namespace npkernels::NPK_ISA {
namespace {

// Calls f(weight, j, i) for register i of key j, where weight = exp(scale st - shift), for all keys j < n,
// which lie `pitch` apart. An exponential waits for many steps before it, so that those of about six
// registers go together. kClamp: weights are at most the greatest normal number; else none may be beyond it.
template <int N, bool kClamp, class T, class F>
NPK_INLINE void each_weight(int n, const T* st, int64_t pitch, Vec<T> scale, const Vec<T> (&shift)[N], F f) {
  const Vec<T> highest = splat(NormalRange<T>::highest), zero = splat(T(0));
  int j = 0;
  const auto keys = [&](auto count) __attribute__((always_inline)) {
    constexpr int J = decltype(count)::value, W = J * N;
    for (; j + J <= n; j += J) {
      Vec<T> p[W];
#pragma GCC unroll 8
      for (int u = 0; u < W; ++u) {
        p[u] = fma(scale, load(st + (j + u / N) * pitch + u % N * kLanes<T>), zero - shift[u % N]);
        if (kClamp) p[u] = min_of(highest, p[u]);
      }
      exp_weight<T>(p);
#pragma GCC unroll 8
      for (int u = 0; u < W; ++u) f(p[u], j + u / N, u % N);
    }
  };
  keys(Count<N == 1 ? 4 : 6 / N>{});
  keys(Count<1>{});
}

// What the maxima of a tile ask for: its weights are exp(score - shift), and sums of earlier ones are
// multiplied by `shrink`, which is 1 everywhere unless `rescale`.
template <int N, class T>
struct Raised {
  Vec<T> shift[N], shrink[N];
  bool rescale = false;
};

// Raises m to `top`, but not by less than a lag: weights up to exp(lag) are as exact, and most tiles then
// leave the sums as they are. Where that is too much beside the greatest values, the block is done again,
// carefully, without a lag.
template <int N, class T>
inline Raised<N, T> raise(const Vec<T> (&top)[N], bool careful, T* m) {
  const T lag = careful ? 0 : 4;
  const Vec<T> lowest = splat(T(-INFINITY)), zero = splat(T(0)), one = splat(T(1));
  Raised<N, T> raised;
  for (int i = 0; i < N; ++i) {
    const Vec<T> before = load(m + i * kLanes<T>),
                 now = select(greater(top[i], before + splat(lag)), top[i], before);
    store(m + i * kLanes<T>, now);
    raised.shift[i] = select(equal(now, lowest), zero, now);  // nothing allowed yet: exp(-inf - 0) = 0
    raised.shrink[i] = exp_negative<T>(before - raised.shift[i]);
    raised.rescale = raised.rescale || any(greater(one, raised.shrink[i]));
  }
  return raised;
}

// The maxima of factor * st over n keys.
template <int N, class T>
inline void tile_maxima(int n, T factor, const T* st, Vec<T> (&top)[N]) {
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) top[i] = splat(T(-INFINITY));
  for (int j = 0; j < n; ++j)
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) top[i] = max_of(load(st + j * kGroup<T> + i * kLanes<T>), top[i]);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) top[i] = top[i] * splat(factor);
}

// Weights are exp(factor * st - shift), where the product is exact and the shift a rounded one. Whether
// shifts are so large that this difference matters: then the products have to be rounded too.
template <int N, class T>
inline bool large(const Vec<T> (&shift)[N]) {
  const Vec<T> bound = splat(T(1 << 24)), never = splat(T(-INFINITY)), zero = splat(T(0));
  bool some = false;
  for (int i = 0; i < N; ++i) {
    const Vec<T> size = magnitude<T>(shift[i]);
    some = some || any(greater(select(equal(size, zero - never), zero, size), bound));
  }
  return some;
}
template <class T>
inline Vec<T> rounded_score(Vec<T> product, T factor) {
  return select(equal(product, splat(T(-INFINITY))), product, product * splat(factor));
}

// Rounds the products if they have to be. Returns the factor from here.
template <int N, class T>
inline T round_large(const Vec<T> (&shift)[N], int n, T factor, T* st) {
  if (factor == 1 || !large<N, T>(shift)) return factor;
  Block<T>::template each<N>(n, st, [&](Vec<T> s, int, int) { return rounded_score<T>(s, factor); });
  return 1;
}

// The first `rows` rows, kBlock apart, of a sum over keys, after m rose.
template <int N, class T>
inline void shrink_sums(const Raised<N, T>& raised, int64_t rows, T* sums) {
  if (!raised.rescale) return;
  for (int64_t d = 0; d < rows; ++d)
    for (int i = 0; i < N; ++i) {
      T* const at = sums + d * kBlock<T> + i * kLanes<T>;
      store(at, load(at) * raised.shrink[i]);
    }
}

// nan = the last score that is NaN, if there is one.
template <int N, class T>
inline void collect_nan(int n, const T* st, T* nan) {
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < N; ++i) {
      const Vec<T> s = load(st + j * kGroup<T> + i * kLanes<T>);
      store(nan + i * kLanes<T>, select(not_nan(s), load(nan + i * kLanes<T>), s));
    }
}

// lse = m + log(l). With a score of +inf the sum is NaN (inf - inf) but lse is +inf, unless there is a NaN.
template <class T>
inline T log_sum(T m, T l, T nan) {
  if (m == T(INFINITY)) return m + nan;
  return l == 0 ? T(-INFINITY) : static_cast<T>(double(m) + ::log(double(l)));
}

}  // namespace
}  // namespace npkernels::NPK_ISA
