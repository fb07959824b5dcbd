// 16-bit storage: partial registers for every ISA, and bit-exact conversions for those without the
// instructions.
#pragma once

namespace npkernels::NPK_ISA {
namespace {

#ifdef NPK_SOFT_HALF
// binary16 -> binary32. The exponent is moved by 127 - 15; subnormals are scaled by an exact product.
inline float widen(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t rest = h.bits & 0x7fffu;
  float value;
  if (rest >= 0x7c00u) {
    const uint32_t bits = 0x7f800000u | (rest & 0x3ffu) << 13 | (rest > 0x7c00u ? 0x400000u : 0u);
    memcpy(&value, &bits, 4);
  } else if (rest >= 0x400u) {
    const uint32_t bits = (rest << 13) + ((127u - 15u) << 23);
    memcpy(&value, &bits, 4);
  } else {
    value = static_cast<float>(rest) * 0x1p-24f;
  }
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits |= sign;
  memcpy(&value, &bits, 4);
  return value;
}

// binary32 -> binary16, to nearest even. Adding 0.5 aligns a subnormal result's bits with the end of the
// significand.
inline Half narrow_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  uint32_t result;
  if (bits > 0x7f800000u) {
    result = 0x7e00u | (bits >> 13 & 0x3ffu);
  } else if (bits >= 0x477ff000u) {
    result = 0x7c00u;
  } else if (bits < 0x38800000u) {
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&result, &magnitude, 4);
    result -= 0x3f000000u;
  } else {
    result = (bits - ((127u - 15u) << 23) + 0xfffu + (bits >> 13 & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | result)};
}

inline float widen(BFloat b) {
  const uint32_t bits = static_cast<uint32_t>(b.bits) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline BFloat narrow_bfloat(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <class Narrow>
inline Vec<float> load_soft(const Narrow* p) {
  Vec<float> v = splat(0.0f);
  for (int i = 0; i < kLanes<float>; ++i) v[i] = widen(p[i]);
  return v;
}
inline Vec<float> load(const Half* p) { return load_soft(p); }
inline Vec<float> load(const BFloat* p) { return load_soft(p); }
inline void store(Half* p, Vec<float> v) {
  for (int i = 0; i < kLanes<float>; ++i) p[i] = narrow_half(v[i]);
}
inline void store(BFloat* p, Vec<float> v) {
  for (int i = 0; i < kLanes<float>; ++i) p[i] = narrow_bfloat(v[i]);
}
#endif

template <class Narrow>
inline Vec<float> load_part(const Narrow* p, int n, float fill) {
  Narrow whole[kLanes<float>] = {};
  for (int i = 0; i < n; ++i) whole[i] = p[i];
  Vec<float> v = load(whole);
  for (int i = n; i < kLanes<float>; ++i) v[i] = fill;
  return v;
}

template <class Narrow>
inline void store_part(Narrow* p, Vec<float> v, int n) {
  Narrow whole[kLanes<float>];
  store(whole, v);
  for (int i = 0; i < n; ++i) p[i] = whole[i];
}

}  // namespace
}  // namespace npkernels::NPK_ISA
