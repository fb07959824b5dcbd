// Rows of queries, keys and values: where they lie, and bringing them into the compute type T.
#pragma once

#include "attention_call.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

template <class S, class T>
inline void widen_as(const char* from, int64_t n, T* to) {
  const S* p = reinterpret_cast<const S*>(from);
  for (int64_t i = 0; i < n; i += kLanes<T>) store_upto(to + i, load_upto(p + i, n - i, T(0)), n - i);
}

// n adjacent entries of any dtype as numbers of T.
template <class T>
inline void widen(const char* from, DType dtype, int64_t n, T* to) {
  switch (dtype) {
    case DType::boolean:
      return flags_to_numbers(from, n, to);
    case DType::int8:
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(static_cast<signed char>(from[i]));
      return;
    case DType::float16:
      if constexpr (sizeof(T) == sizeof(float)) widen_as<Half>(from, n, to);
      return;
    case DType::bfloat16:
      if constexpr (sizeof(T) == sizeof(float)) widen_as<BFloat>(from, n, to);
      return;
    default:
      widen_as<T>(from, n, to);
  }
}

// n numbers of T into adjacent entries of a floating dtype, rounded to nearest.
template <class T>
inline void narrow(const T* from, int64_t n, DType dtype, char* to) {
  const auto write = [&](auto* p) {
    for (int64_t i = 0; i < n; i += kLanes<T>) store_upto(p + i, load_upto(from + i, n - i, T(0)), n - i);
  };
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::float16) return write(reinterpret_cast<Half*>(to));
    if (dtype == DType::bfloat16) return write(reinterpret_cast<BFloat*>(to));
  }
  write(reinterpret_cast<T*>(to));
}

// Entries of a row of n, rounded up to whole registers.
template <class T>
inline int64_t padded(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// widen, and zeros up to a whole register.
template <class T>
inline void widen_padded(const char* from, DType dtype, int64_t n, T* to) {
  widen(from, dtype, n, to);
  for (int64_t d = n; d < padded<T>(n); ++d) to[d] = 0;
}

// The units that products go through n entries in: the entries, or pairs of them.
template <class U>
constexpr bool kIsPair = false;
template <>
constexpr bool kIsPair<Pair> = true;
template <class U>
inline int64_t units(int64_t n) {
  return kIsPair<U> ? (n + 1) / 2 : n;
}

// Whether k q and v dout go by pairs of bfloat16: products whose two factors are inputs, so that nothing is
// rounded but their sum, in float32 as ever. Numbers below the normal range count as 0, which moves a product
// by at most 1.2e-38 times its other factor. Products with weights stay in float32: a weight rounded to
// bfloat16 is off by up to 2^-8 of itself, so the output by 2^-8 sum(p |v|), which no shape bounds by the
// output itself: of outputs with two keys and one entry, 3 in 100 would miss the accuracy gate.
template <class T>
constexpr bool kByPairs = kHasPairs && sizeof(T) == sizeof(float);
template <class T>
inline bool by_pairs(DType dtype) {
  return kByPairs<T> && dtype == DType::bfloat16;
}

// n adjacent entries of bfloat16 as pairs; a last one alone is beside a 0.
inline void copy_pairs(const char* from, int64_t n, void* to) {
  memcpy(to, from, static_cast<size_t>(n) * sizeof(BFloat));
  if (n % 2) memset(static_cast<BFloat*>(to) + n, 0, sizeof(BFloat));
}

// The keys or the values of one sequence and key head, n entries each.
template <class T>
class KeyRows {
 public:
  KeyRows(const KeyArray& array, const Sequence& sequence, int64_t head, int64_t n)
      : array_(array), sequence_(sequence), head_(head), n_(n) {
    direct_ = array.dtype == (sizeof(T) == sizeof(float) ? DType::float32 : DType::float64) && !array.table;
  }

  // Whether rows are read where they lie.
  bool direct() const { return direct_; }

  const char* at(int64_t key) const {
    const int64_t row = sequence_.k_first + key;
    if (!array_.table)
      return array_.data + sequence_.batch * array_.batch + head_ * array_.head + row * array_.row;
    return array_.data + page(row) * array_.batch + head_ * array_.head + row % array_.page_size * array_.row;
  }

  // Rows first .. first+count-1 in the compute type: where they lie, or brought into `room` (count, padded
  // n).
  const T* rows(int64_t first, int count, T* room, int64_t* pitch) const {
    if (direct_) {
      *pitch = array_.row / int64_t(sizeof(T));
      return reinterpret_cast<const T*>(at(first));
    }
    *pitch = padded<T>(n_);
    for (int i = 0; i < count; ++i) {
      T* to = room + i * *pitch;
      widen(at(first + i), array_.dtype, n_, to);
      if (array_.row_scale) {
        const T scale = static_cast<T>(*scale_of(first + i));
        for (int64_t d = 0; d < n_; ++d) to[d] *= scale;
      }
    }
    return room;
  }

  // The same of bfloat16 rows as pairs.
  const Pair* rows(int64_t first, int count, Pair* room, int64_t* pitch) const {
    if (!array_.table && n_ % 2 == 0 && array_.row % int64_t(sizeof(Pair)) == 0) {
      *pitch = array_.row / int64_t(sizeof(Pair));
      return reinterpret_cast<const Pair*>(at(first));
    }
    *pitch = units<Pair>(n_);
    for (int i = 0; i < count; ++i) copy_pairs(at(first + i), n_, room + i * *pitch);
    return room;
  }

 private:
  int64_t page(int64_t row) const {
    return array_.table[sequence_.batch * array_.pages_per_entry + row / array_.page_size];
  }
  const float* scale_of(int64_t key) const {
    const int64_t row = sequence_.k_first + key;
    if (!array_.table)
      return array_.row_scale + sequence_.batch * array_.scale_batch + head_ * array_.scale_head + row;
    return array_.row_scale + page(row) * array_.scale_batch + head_ * array_.scale_head +
           row % array_.page_size;
  }

  const KeyArray& array_;
  const Sequence& sequence_;
  int64_t head_, n_;
  bool direct_;
};

}  // namespace
}  // namespace npkernels::NPK_ISA
