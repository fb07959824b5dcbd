// aarch64: 128-bit registers, FMA, binary16 conversions. A mask is a register of all-ones or all-zero lanes.
#pragma once

#include <arm_neon.h>

namespace npkernels::NPK_ISA {
namespace {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = float32x4_t;
  using mask = uint32x4_t;
  static constexpr int lanes = 4;
};
template <>
struct VecOf<double> {
  using type = float64x2_t;
  using mask = uint64x2_t;
  static constexpr int lanes = 2;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;
template <class T>
constexpr int kLanes = VecOf<T>::lanes;

constexpr int kRegisters = 32;
constexpr bool kHasFma = true;

inline float32x4_t splat(float x) { return vdupq_n_f32(x); }
inline float64x2_t splat(double x) { return vdupq_n_f64(x); }
inline float32x4_t load(const float* p) { return vld1q_f32(p); }
inline float64x2_t load(const double* p) { return vld1q_f64(p); }
inline void store(float* p, float32x4_t v) { vst1q_f32(p, v); }
inline void store(double* p, float64x2_t v) { vst1q_f64(p, v); }
// The non-temporal pair store of aarch64 is a hint that compilers do not expose here; an ordinary store is as
// good.
inline void stream(float* p, float32x4_t v) { vst1q_f32(p, v); }
inline void stream(double* p, float64x2_t v) { vst1q_f64(p, v); }
inline void stream_fence() {}
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

inline float32x4_t load_part(const float* p, int n, float fill) {
  float32x4_t v = splat(fill);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline float64x2_t load_part(const double* p, int n, double fill) {
  float64x2_t v = splat(fill);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_part(float* p, float32x4_t v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
inline void store_part(double* p, float64x2_t v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

template <class V>
inline V held(V v) {
  asm("" : "+w"(v));
  return v;
}
inline float32x4_t fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
inline float64x2_t fma(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }
inline float32x4_t max_of(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float64x2_t max_of(float64x2_t a, float64x2_t b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
inline float32x4_t min_of(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline float64x2_t min_of(float64x2_t a, float64x2_t b) { return vbslq_f64(vcltq_f64(a, b), a, b); }
inline float32x4_t round_even(float32x4_t x) { return vrndnq_f32(x); }
inline float64x2_t round_even(float64x2_t x) { return vrndnq_f64(x); }
inline float32x4_t square_root(float32x4_t x) { return vsqrtq_f32(x); }
inline float64x2_t square_root(float64x2_t x) { return vsqrtq_f64(x); }

// 2^n by the exponent bits, in two factors so that each is a normal number.
inline float32x4_t pow2(int32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
inline float64x2_t pow2(int64x2_t n) {
  return vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(n, vdupq_n_s64(1023)), 52));
}
inline float32x4_t mul_pow2(float32x4_t x, float32x4_t n) {
  const int32x4_t whole = vcvtq_s32_f32(n);
  const int32x4_t half = vshrq_n_s32(whole, 1);
  return x * pow2(half) * pow2(vsubq_s32(whole, half));
}
inline float64x2_t mul_pow2(float64x2_t x, float64x2_t n) {
  const int64x2_t whole = vcvtq_s64_f64(n);
  const int64x2_t half = vshrq_n_s64(whole, 1);
  return x * pow2(half) * pow2(vsubq_s64(whole, half));
}

// By adding to the exponent bits.
constexpr bool kOnePower = false;
template <class T>
constexpr T kZeroPower = sizeof(T) == sizeof(float) ? -127 : -1023;
inline float32x4_t mul_pow2_normal(float32x4_t x, float32x4_t n) {
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
}
inline float64x2_t mul_pow2_normal(float64x2_t x, float64x2_t n) {
  return vreinterpretq_f64_s64(vaddq_s64(vreinterpretq_s64_f64(x), vshlq_n_s64(vcvtq_s64_f64(n), 52)));
}

inline uint32x4_t greater(float32x4_t a, float32x4_t b) { return vcgtq_f32(a, b); }
inline uint64x2_t greater(float64x2_t a, float64x2_t b) { return vcgtq_f64(a, b); }
inline uint32x4_t equal(float32x4_t a, float32x4_t b) { return vceqq_f32(a, b); }
inline uint64x2_t equal(float64x2_t a, float64x2_t b) { return vceqq_f64(a, b); }
inline uint32x4_t not_nan(float32x4_t a) { return vceqq_f32(a, a); }
inline uint64x2_t not_nan(float64x2_t a) { return vceqq_f64(a, a); }
inline float32x4_t select(uint32x4_t m, float32x4_t a, float32x4_t b) { return vbslq_f32(m, a, b); }
inline float64x2_t select(uint64x2_t m, float64x2_t a, float64x2_t b) { return vbslq_f64(m, a, b); }
inline bool any(uint32x4_t m) { return vmaxvq_u32(m) != 0; }
inline bool any(uint64x2_t m) { return (m[0] | m[1]) != 0; }
inline int count(uint32x4_t m) { return static_cast<int>(vaddvq_u32(vshrq_n_u32(m, 31))); }
inline int count(uint64x2_t m) { return static_cast<int>(vaddvq_u64(vshrq_n_u64(m, 63))); }

inline uint32x4_t nonzero(const uint8_t* p, float) {
  uint32_t bytes;
  memcpy(&bytes, p, sizeof bytes);
  const uint32x4_t wide = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)))));
  return vtstq_u32(wide, wide);
}
inline uint64x2_t nonzero(const uint8_t* p, double) {
  return uint64x2_t{p[0] ? ~uint64_t(0) : 0, p[1] ? ~uint64_t(0) : 0};
}

template <class T>
constexpr int kTransposeSide = 16 / sizeof(T);

// to[j][i] = from[i][j]
inline void transpose_square(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
  const float32x4x2_t a = vtrnq_f32(load(from), load(from + from_pitch));
  const float32x4x2_t b = vtrnq_f32(load(from + 2 * from_pitch), load(from + 3 * from_pitch));
  for (int i = 0; i < 2; ++i) {
    store(to + i * to_pitch, vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i])));
    store(to + (i + 2) * to_pitch, vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i])));
  }
}
inline void transpose_square(const double* from, int64_t from_pitch, double* to, int64_t to_pitch) {
  const float64x2_t a = load(from), b = load(from + from_pitch);
  store(to, vzip1q_f64(a, b));
  store(to + to_pitch, vzip2q_f64(a, b));
}

inline float32x4_t sum_each(const float32x4_t (&v)[4]) {
  return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
}
inline float64x2_t sum_each(const float64x2_t (&v)[2]) { return vpaddq_f64(v[0], v[1]); }
inline double sum_lanes(float64x2_t v) { return v[0] + v[1]; }
inline double sum_lanes(float32x4_t v) {
  return sum_lanes(vcvt_f64_f32(vget_low_f32(v)) + vcvt_f64_f32(vget_high_f32(v)));
}
inline float max_lane(float32x4_t v) { return vmaxvq_f32(v); }
inline double max_lane(float64x2_t v) { return v[0] > v[1] ? v[0] : v[1]; }

inline float32x4_t load(const Half* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}
inline void store(Half* p, float32x4_t v) {
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
inline float32x4_t load(const BFloat* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
}
// Round to nearest even by adding 0x7fff + the lowest kept bit; a NaN keeps its upper bits and is made quiet.
inline void store(BFloat* p, float32x4_t v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(vbslq_u32(not_nan(v), rounded, quiet), 16));
}

}  // namespace
}  // namespace npkernels::NPK_ISA
