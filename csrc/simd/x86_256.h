// What ISAs with 256-bit registers share: transposes of small squares, and the sums of some registers.
#pragma once

#include "x86_intrinsics.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
constexpr int kTransposeSide = 32 / sizeof(T);

// to[j][i] = from[i][j] for 8 x 8 floats: pairs, pairs of pairs, halves.
inline void transpose_square(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * from_pitch);
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_pitch, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_pitch, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

inline void transpose_square(const double* from, int64_t from_pitch, double* to, int64_t to_pitch) {
  __m256d r[4], s[4];
  for (int i = 0; i < 4; ++i) r[i] = _mm256_loadu_pd(from + i * from_pitch);
  for (int i = 0; i < 4; i += 2) {
    s[i] = _mm256_unpacklo_pd(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_pd(r[i], r[i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    _mm256_storeu_pd(to + i * to_pitch, _mm256_permute2f128_pd(s[i], s[i + 2], 0x20));
    _mm256_storeu_pd(to + (i + 2) * to_pitch, _mm256_permute2f128_pd(s[i], s[i + 2], 0x31));
  }
}

// Lane i is the sum of the lanes of v[i]: neighbours, pairs of pairs, halves.
inline __m256 sum_each(const __m256 (&v)[8]) {
  const auto two = [&](int i) {
    return _mm256_unpacklo_ps(v[i], v[i + 1]) + _mm256_unpackhi_ps(v[i], v[i + 1]);
  };
  const auto four = [&](int i) {
    const __m256 a = two(i), b = two(i + 2);
    return _mm256_shuffle_ps(a, b, 0x44) + _mm256_shuffle_ps(a, b, 0xee);
  };
  const __m256 a = four(0), b = four(4);
  const __m128 low = _mm256_castps256_ps128(a) + _mm256_extractf128_ps(a, 1);
  return _mm256_insertf128_ps(_mm256_castps128_ps256(low),
                              _mm256_castps256_ps128(b) + _mm256_extractf128_ps(b, 1), 1);
}
inline __m256d sum_each(const __m256d (&v)[4]) {
  const auto two = [&](int i) {
    return _mm256_unpacklo_pd(v[i], v[i + 1]) + _mm256_unpackhi_pd(v[i], v[i + 1]);
  };
  const __m256d a = two(0), b = two(2);
  const __m128d low = _mm256_castpd256_pd128(a) + _mm256_extractf128_pd(a, 1);
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(low),
                              _mm256_castpd256_pd128(b) + _mm256_extractf128_pd(b, 1), 1);
}

}  // namespace
}  // namespace npkernels::NPK_ISA
