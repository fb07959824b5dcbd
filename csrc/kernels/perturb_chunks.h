// Chunks of a perturbation call: what of every operand belongs to some neighbouring entries of a row,
// contiguous. Entries that are apart in memory go through a tile; an operand that is the same for all entries
// of a row is one register.
#pragma once

#include "perturb_call.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

// An operand of the compute type: an array, or one number for all entries.
template <class T>
struct Entries {
  const T* p = nullptr;
  T one = 0;
  Vec<T> at(int i, int n) const { return p ? load_upto(p + i, n - i, p[0]) : splat(one); }
};

template <class S>
struct Chunk {
  using T = typename ComputeOf<S>::type;
  int n = 0;
  const S *x = nullptr, *grad = nullptr, *center = nullptr;  // null where the call has none
  Entries<T> step, radius, low, high;
  const T* mask = nullptr;  // 1 where an entry takes part, else 0; null: all do
  S* y = nullptr;

  Vec<T> x_at(int i) const { return load_upto(x + i, n - i, T(0)); }
  Vec<T> grad_at(int i) const { return only(i, load_upto(grad + i, n - i, T(0))); }
  Vec<T> center_at(int i) const { return load_upto(center + i, n - i, T(0)); }
  // v where entries take part, `other` elsewhere.
  Vec<T> only(int i, Vec<T> v, Vec<T> other = splat(T(0))) const {
    return mask ? select(greater(load_upto(mask + i, n - i, T(1)), splat(T(0))), v, other) : v;
  }
  void put(int i, Vec<T> v) const { store_upto(y + i, only(i, v, x_or_zero(i)), n - i); }

 private:
  Vec<T> x_or_zero(int i) const { return mask ? x_at(i) : splat(T(0)); }
};

template <class T>
inline Vec<T> absolute(Vec<T> v) {
  return max_of(v, splat(T(0)) - v);
}

// v within [low, high]; NaN stays NaN.
template <class T>
inline Vec<T> clamp(Vec<T> v, Vec<T> low, Vec<T> high) {
  return min_of(high, max_of(low, v));
}

// Reads chunks of one row after another and writes their results. A worker has one.
template <class S>
class Reader {
  using T = typename ComputeOf<S>::type;
  static constexpr int kLine = 64 / sizeof(S);

 public:
  explicit Reader(const PerturbCall& call) : call_(call) {
    const bool in_place = call.out[0].data == call.in[0].data;
    stream_ = sizeof(S) == sizeof(T) && !in_place && call.out[0].inner == int64_t(sizeof(S)) &&
              call.rows * call.n * int64_t(sizeof(S)) >= kStreamBytes;
  }

  // `first_of_all` is where in[0] begins: a call without x has none.
  void go_to(int64_t row) {
    const int64_t sample = row / (call_.rows / call_.samples);
    const auto place = [&](const RowOperand& operand) {
      return operand.data ? row_of(call_, operand, row) : nullptr;
    };
    x_ = place(call_.in[0]);
    y_ = place(call_.out[0]);
    grad_ = call_.stepped ? place(call_.in[1]) : nullptr;
    center_ = call_.centered ? place(call_.center) : nullptr;
    mask_ = call_.masked ? place(call_.mask) : nullptr;
    begin(call_.step, sample, row, step_, chunk_.step);
    begin(call_.radius, sample, row, radius_, chunk_.radius);
    begin(call_.low, row, low_, chunk_.low);
    begin(call_.high, row, high_, chunk_.high);
  }

  // The entries first .. first+n-1 of the row, n <= kChunk.
  const Chunk<S>& read(int64_t first, int n) {
    chunk_.n = n;
    chunk_.x = fetch(call_.in[0], x_, first, x_tile_);
    chunk_.grad = fetch(call_.in[1], grad_, first, grad_tile_);
    chunk_.center = fetch(call_.center, center_, first, center_tile_);
    fetch(call_.step, step_, first, step_tile_, chunk_.step);
    fetch(call_.radius, radius_, first, radius_tile_, chunk_.radius);
    fetch(call_.low, low_, first, low_tile_, chunk_.low);
    fetch(call_.high, high_, first, high_tile_, chunk_.high);
    chunk_.mask = nullptr;
    if (mask_) {
      const char* mask = mask_ + first * call_.mask.inner;
      if (call_.mask.inner == 1)
        flags_to_numbers(mask, n, mask_tile_);
      else
        for (int i = 0; i < n; ++i) mask_tile_[i] = mask[i * call_.mask.inner] ? T(1) : T(0);
      chunk_.mask = mask_tile_;
    }
    target_ = y_ ? y_ + first * call_.out[0].inner : nullptr;
    direct_ = !stream_ && call_.out[0].inner == int64_t(sizeof(S));
    chunk_.y = direct_ ? reinterpret_cast<S*>(target_) : y_tile_;
    return chunk_;
  }

  // Entries of the chunk that begins at `first`, so that the next begins on a line of the output.
  int length(int64_t first, int64_t end) const {
    int most = kChunk;
    if (stream_)
      most -=
          static_cast<int>(reinterpret_cast<uintptr_t>(y_ + first * int64_t(sizeof(S))) / sizeof(S) % kLine);
    return static_cast<int>(smaller<int64_t>(most, end - first));
  }

  void write() const {
    if (direct_) return;
    if (stream_) return put_past_cache(reinterpret_cast<T*>(target_), reinterpret_cast<const T*>(y_tile_));
    for (int i = 0; i < chunk_.n; ++i) memcpy(target_ + i * call_.out[0].inner, y_tile_ + i, sizeof(S));
  }

  void finish() const {
    if (stream_) stream_fence();
  }

 private:
  void begin(const RowAmount& amount, int64_t sample, int64_t row, const char*& place, Entries<T>& entries) {
    place = amount.each ? row_of(call_, amount.entries, row) : nullptr;
    entries = {nullptr, static_cast<T>(amount.per_sample ? amount.per_sample[sample] : amount.value)};
  }
  void begin(const RowBound& bound, int64_t row, const char*& place, Entries<T>& entries) {
    place = bound.each ? row_of(call_, bound.entries, row) : nullptr;
    entries = {nullptr, static_cast<T>(bound.value)};
  }

  template <class E>
  const E* fetch(const RowOperand& operand, const char* place, int64_t first, E* tile) const {
    if (!place) return nullptr;
    const char* start = place + first * operand.inner;
    if (operand.inner == int64_t(sizeof(E))) return reinterpret_cast<const E*>(start);
    for (int i = 0; i < chunk_.n; ++i) memcpy(tile + i, start + i * operand.inner, sizeof(E));
    return tile;
  }
  template <class Amount>
  void fetch(const Amount& amount, const char* place, int64_t first, T* tile, Entries<T>& entries) const {
    if (!place) return;
    if (amount.entries.inner == 0)
      entries = {nullptr, *reinterpret_cast<const T*>(place)};
    else
      entries.p = fetch(amount.entries, place, first, tile);
  }

  void put_past_cache(T* target, const T* source) const {
    const int n = chunk_.n;
    const int ahead =
        static_cast<int>(-(reinterpret_cast<intptr_t>(target) / intptr_t(sizeof(T))) & (kLanes<T> - 1));
    int i = smaller(ahead, n);
    if (i > 0) store_part(target, load(source), i);
    for (; i + kLanes<T> <= n; i += kLanes<T>) stream(target + i, load(source + i));
    if (i < n) store_part(target + i, load(source + i), n - i);
  }

  const PerturbCall& call_;
  Chunk<S> chunk_;
  bool stream_ = false, direct_ = false;
  char *x_ = nullptr, *y_ = nullptr, *target_ = nullptr;
  const char *grad_ = nullptr, *center_ = nullptr, *mask_ = nullptr;
  const char *step_ = nullptr, *radius_ = nullptr, *low_ = nullptr, *high_ = nullptr;
  alignas(64) S x_tile_[kChunk], grad_tile_[kChunk], center_tile_[kChunk];
  alignas(64) S y_tile_[kChunk + kLanes<T>];
  alignas(64) T step_tile_[kChunk], radius_tile_[kChunk], low_tile_[kChunk], high_tile_[kChunk];
  alignas(64) T mask_tile_[kChunk];
};

// f(reader, sample) for every sample, on the library's threads; small samples share a task.
template <class S, class F>
inline void each_sample(const PerturbCall& call, F f) {
  const int64_t entries = larger<int64_t>(1, call.n * (call.rows / larger<int64_t>(1, call.samples)));
  const int64_t per_task = larger<int64_t>(1, kTaskEntries / entries);
  parallel((call.samples + per_task - 1) / per_task, [&](int64_t task) {
    Reader<S> reader(call);
    const int64_t end = smaller(call.samples, (task + 1) * per_task);
    for (int64_t sample = task * per_task; sample < end; ++sample) f(reader, sample);
    reader.finish();
  });
}

// f(chunk) for every chunk of a sample, the same chunks for the same shapes.
template <class S, class F>
inline void each_chunk(const PerturbCall& call, Reader<S>& reader, int64_t sample, F f) {
  const int64_t rows = call.rows / call.samples;
  for (int64_t row = sample * rows; row < (sample + 1) * rows; ++row) {
    reader.go_to(row);
    for (int64_t first = 0; first < call.n; first += kChunk)
      f(reader.read(first, static_cast<int>(smaller<int64_t>(kChunk, call.n - first))));
  }
}

// f(chunk) fills the results of every chunk of a sample.
template <class S, class F>
inline void emit_chunks(const PerturbCall& call, Reader<S>& reader, int64_t sample, F f) {
  const int64_t rows = call.rows / call.samples;
  for (int64_t row = sample * rows; row < (sample + 1) * rows; ++row) {
    reader.go_to(row);
    for (int64_t first = 0, n; first < call.n; first += n) {
      n = reader.length(first, call.n);
      f(reader.read(first, static_cast<int>(n)));
      reader.write();
    }
  }
}

template <class S>
inline int64_t count_nans(const Chunk<S>& chunk) {
  using T = typename ComputeOf<S>::type;
  int64_t numbers = 0;
  for (int i = 0; i < chunk.n; i += kLanes<T>) numbers += count(not_nan(chunk.grad_at(i)));
  return (chunk.n + kLanes<T> - 1) / kLanes<T> * kLanes<T> - numbers;
}

inline void add_nans(const PerturbCall& call, int64_t nans) {
  if (nans) __atomic_fetch_add(call.nans, nans, __ATOMIC_RELAXED);
}

// Calls Run<S> for the call's storage type S.
template <template <class> class Run>
inline void run_samples(const PerturbCall& call) {
  if (call.rows == 0 || call.n == 0) return;
  switch (call.dtype) {
    case DType::float32:
      return Run<float>::run(call);
    case DType::float64:
      return Run<double>::run(call);
    case DType::float16:
      return Run<Half>::run(call);
    case DType::bfloat16:
      return Run<BFloat>::run(call);
    default:
      return;
  }
}

}  // namespace
}  // namespace npkernels::NPK_ISA
