// The small dense pieces that all attention kernels are made of: products of tiles and transposes.
//
// Every product has the form  c[m][lane] (+)= sum over i of a(m, i) * b[i][lane]:  a is read one scalar at a
// time and broadcast, so it is used where it lies; b and c are rows of whole registers. The unit U of a and b
// is T, or Pair, which multiplies two bfloat16 numbers at a time.
#pragma once

#include "row_driver.h"
#include "transpose.h"

namespace npkernels::NPK_ISA {
namespace {

// Where a(m, i) lies: at a[m * pitch + i], or at a[i * pitch + m].
enum class Lies { by_rows, by_steps };

// Registers across a product, and rows of the register tile beside N of them: the sums, a row of b and a
// scalar fill the register file.
constexpr int kMostAcross = kRegisters >= 32 || kHasFma ? 3 : 2;
template <int N>
constexpr int kTileRows = kRegisters >= 32 ? (N == 3   ? 8
                                              : N == 2 ? 12
                                                       : 16)
                          : kHasFma        ? (N == 3   ? 4
                                              : N == 2 ? 6
                                                       : 12)
                                           : (N == 2 ? 4 : 8);

template <int N>
struct Count {
  static constexpr int value = N;
};

template <int M, int N, Lies kLies, bool kAccumulate, class U, class T>
inline void multiply_tile(const U* a, int64_t a_pitch, const U* b, int64_t b_pitch, int64_t steps, T* c,
                          int64_t c_pitch) {
  using Units = decltype(load(b));
  Vec<T> acc[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = splat(T(0));
  const auto step = [&](int64_t i) __attribute__((always_inline)) {
    Units row[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) row[n] = load(b + i * b_pitch + n * kLanes<T>);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Units scalar = splat(kLies == Lies::by_rows ? a[m * a_pitch + i] : a[i * a_pitch + m]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = fma(scalar, row[n], acc[m][n]);
    }
  };
  int64_t i = 0;
  for (; i + 4 <= steps; i += 4)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) step(i + u);
  for (; i < steps; ++i) step(i);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      T* to = c + m * c_pitch + n * kLanes<T>;
      store(to, kAccumulate ? load(to) + acc[m][n] : acc[m][n]);
    }
}

// c (rows, N registers) = or += a (rows, steps) b (steps, N registers). A function of its own, so that its
// loops have all registers for themselves.
template <int N, Lies kLies, bool kAccumulate, class U, class T>
__attribute__((noinline)) void multiply_piece(const U* a, int64_t a_pitch, const U* b, int64_t b_pitch,
                                              int64_t rows, int64_t steps, T* c, int64_t c_pitch) {
  int64_t m = 0;
  const auto strip = [&](auto height) {
    constexpr int M = decltype(height)::value;
    for (; m + M <= rows; m += M)
      multiply_tile<M, N, kLies, kAccumulate>(kLies == Lies::by_rows ? a + m * a_pitch : a + m, a_pitch, b,
                                              b_pitch, steps, c + m * c_pitch, c_pitch);
  };
  strip(Count<kTileRows<N>>{});
  if constexpr (kTileRows<N> > 4) strip(Count<4>{});
  strip(Count<1>{});
}

// A weight times what dropout makes of it; 0 where it is dropped, whatever it is.
template <class T>
inline Vec<T> kept(Vec<T> weight, Vec<T> keep) {
  return select(equal(keep, splat(T(0))), splat(T(0)), weight * keep);
}

// Where the piece of a sum ends that begins at term i.
inline int64_t end_of_piece(int64_t i, int64_t steps) {
  constexpr int64_t kPiece = 16;
  return kHasFma ? steps : smaller(steps, i + kPiece);
}

// The same; without a fused multiply-add every term is rounded twice, so the sum is made of pieces.
template <int N, Lies kLies, bool kAccumulate, class U, class T>
inline void multiply(const U* a, int64_t a_pitch, const U* b, int64_t b_pitch, int64_t rows, int64_t steps,
                     T* c, int64_t c_pitch) {
  int64_t i = end_of_piece(0, steps);
  multiply_piece<N, kLies, kAccumulate>(a, a_pitch, b, b_pitch, rows, i, c, c_pitch);
  if constexpr (!kHasFma)
    while (i < steps) {
      const int64_t end = end_of_piece(i, steps);
      multiply_piece<N, kLies, true>(kLies == Lies::by_rows ? a + i : a + i * a_pitch, a_pitch,
                                     b + i * b_pitch, b_pitch, rows, end - i, c, c_pitch);
      i = end;
    }
}

// The same for any number of registers across.
template <Lies kLies, bool kAccumulate, class T>
inline void multiply_wide(const T* a, int64_t a_pitch, const T* b, int64_t b_pitch, int64_t rows,
                          int64_t steps, T* c, int64_t c_pitch, int64_t registers) {
  int64_t n = 0;
  const auto strip = [&](auto width) {
    constexpr int N = decltype(width)::value;
    for (; n + N <= registers; n += N)
      multiply<N, kLies, kAccumulate>(a, a_pitch, b + n * kLanes<T>, b_pitch, rows, steps, c + n * kLanes<T>,
                                      c_pitch);
  };
  // Two and two rather than three and one.
  if (registers % kMostAcross == 1 && registers > 1 && kMostAcross == 3)
    for (; registers - n > 4; n += 3)
      multiply<3, kLies, kAccumulate>(a, a_pitch, b + n * kLanes<T>, b_pitch, rows, steps, c + n * kLanes<T>,
                                      c_pitch);
  else if constexpr (kMostAcross == 3)
    strip(Count<3>{});
  strip(Count<2>{});
  strip(Count<1>{});
}

// As multiply<N, Lies, true>, in the same order of its sums, but a product whose b is zero adds nothing,
// whatever its a is.
template <int N, Lies kLies, class T>
inline void multiply_careful(const T* a, int64_t a_pitch, const T* b, int64_t b_pitch, int64_t rows,
                             int64_t steps, T* c, int64_t c_pitch) {
  const Vec<T> zero = splat(T(0));
  for (int64_t m = 0; m < rows; ++m)
    for (int n = 0; n < N; ++n) {
      T* to = c + m * c_pitch + n * kLanes<T>;
      for (int64_t i = 0; i < steps;) {
        Vec<T> acc = zero;
        for (const int64_t end = end_of_piece(i, steps); i < end; ++i) {
          const Vec<T> bi = load(b + i * b_pitch + n * kLanes<T>);
          const Vec<T> scalar = splat(kLies == Lies::by_rows ? a[m * a_pitch + i] : a[i * a_pitch + m]);
          acc = select(equal(bi, zero), acc, fma(scalar, bi, acc));
        }
        store(to, load(to) + acc);
      }
    }
}

// As multiply_wide<Lies, true>, in the same order of its sums, but a product whose a is zero adds nothing,
// whatever its b is.
template <Lies kLies, class T>
inline void multiply_wide_careful(const T* a, int64_t a_pitch, const T* b, int64_t b_pitch, int64_t rows,
                                  int64_t steps, T* c, int64_t c_pitch, int64_t registers) {
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < registers * kLanes<T>; n += kLanes<T>) {
      for (int64_t i = 0; i < steps;) {
        Vec<T> acc = splat(T(0));
        for (const int64_t end = end_of_piece(i, steps); i < end; ++i) {
          const T scalar = kLies == Lies::by_rows ? a[m * a_pitch + i] : a[i * a_pitch + m];
          if (scalar != 0) acc = fma(splat(scalar), load(b + i * b_pitch + n), acc);
        }
        store(c + m * c_pitch + n, load(c + m * c_pitch + n) + acc);
      }
    }
}

}  // namespace
}  // namespace npkernels::NPK_ISA
