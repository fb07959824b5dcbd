// Runs a row kernel over every row of a call: first `reduce` over a row's chunks, then `emit` over them again
// (the row is in cache by then). A kernel sees contiguous chunks of the compute type T and nothing of dtypes,
// strides, masks, temperature or threads. It is a struct with
//   T, inputs, outputs                   how many arrays it reads and writes (outputs may be 0)
//   reduces, chooses                     whether it has a first pass; whether it needs one entry before that
//   fill[], scaled[]                     per input: what a masked entry reads as; whether it is divided by
//   temperature blank[]                              per output: what a masked entry is written as State
//   begin(row) choice(row)                          only if `chooses`: the index of an entry whose value is
//   wanted in state.chosen
//                                        before the first pass; -1 for none
//   reduce(State&, first, x, n)          entries first .. first+n-1, x[i] the chunk of input i
//   finish(State&, row)                  between the passes; the place for per-row results
//   emit(State&, first, x, y, n)
// A kernel that `keeps` has instead  reduce(State&, first, x, n, kept)  and  emit(State&, first, x, kept, y,
// n): where kept is not null, what the first pass writes there of each entry is what the second finds, and x
// is not read then. A row that is contiguous and of type T is read and written where it lies. Otherwise
// chunks go through a tile in cache; if the rows' entries are apart in memory but neighbouring rows are
// adjacent, a tile takes several rows, so that whole cache lines are used.
#pragma once

#include <stdlib.h>

#include "../simd/math.h"
#include "npkernels/threads.h"
#include "row_call.h"

namespace npkernels::NPK_ISA {
namespace {

template <bool kValue>
struct Bool {
  static constexpr bool value = kValue;
};

constexpr int kChunk = 1024;  // entries per chunk: 4 KB of float32, a quarter of the smallest L1
template <class T>
constexpr int64_t kKeptMost = (1 << 20) / sizeof(T);  // entries of a row that are kept: 1 MB a thread
constexpr int64_t kTaskEntries = 32768;               // entries per parallel task
constexpr int kPitch =
    kChunk + 16;            // from row to row of a tile; not a power of two, which would collide in L1
constexpr int kStep = 256;  // entries written at a time
constexpr int64_t kStreamBytes = 8 << 20;  // outputs from this size on bypass the cache,
constexpr int64_t kStreamRow = 4 << 10;    // if their rows have this size: shorter ones are written together
// While a row of up to this size is written, the next is fetched; a longer one would drive this out of the
// cache.
constexpr int64_t kFetchedBytes = 64 << 10;

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

// A sum of many terms in double that loses nothing to their number (Neumaier 1974).
class Sum {
 public:
  void add(double x) {
    if (high_ == 0) {  // the first term, for short rows the only one
      high_ = x;
      return;
    }
    const double sum = high_ + x, part = sum - high_;
    low_ += (high_ - (sum - part)) + (x - part);
    high_ = sum;
  }
  void scale(double factor) {
    high_ *= factor;
    low_ *= factor;
  }
  double value() const {
    return low_ == low_ ? high_ + low_ : high_;
  }  // low_ is NaN where high_ is not finite

 private:
  double high_ = 0, low_ = 0;
};

// Registers added one after another before they join the sum of a chunk.
template <class T>
constexpr int kSummed = sizeof(T) == sizeof(double) ? 4 : 8;

// The sum of a chunk, lane by lane. There is no type wider than double to join its partial sums in, so what
// rounding loses is kept beside them, as in Sum.
template <class T>
class LaneSum {
 public:
  void add(Vec<T> part) {
    const Vec<T> joined = sum_ + part;
    if constexpr (sizeof(T) == sizeof(double)) {
      const Vec<T> added = joined - sum_;
      lost_ = lost_ + ((sum_ - (joined - added)) + (part - added));
    }
    sum_ = joined;
  }
  double total() const {
    const double total = sum_lanes(sum_), rest = sum_lanes(lost_);
    return rest == rest ? total + rest : total;
  }

 private:
  Vec<T> sum_ = splat(T(0)), lost_ = splat(T(0));
};

constexpr int kLockstep = 4;  // registers that go through an exponential together

// y = f(x) for n entries; f changes kLockstep registers in place.
template <class T, class F>
inline void transform_chunk(const T* x, T* y, int n, F f) {
  for (int i = 0; i < n; i += kLockstep * kLanes<T>) {
    Vec<T> v[kLockstep];
#pragma GCC unroll 4
    for (int u = 0; u < kLockstep; ++u) {
      const int at = i + u * kLanes<T>;
      v[u] = load_upto(x + at, n - at, T(0));
    }
    f(v);
#pragma GCC unroll 4
    for (int u = 0; u < kLockstep; ++u) {
      const int at = i + u * kLanes<T>;
      if (at < n) store_upto(y + at, v[u], n - at);
    }
  }
}

template <class T>
inline void fill_chunk(T* y, int n, T value) {
  for (int i = 0; i < n; i += kLanes<T>) store_upto(y + i, splat(value), n - i);
}

// step(i, acc) adds the terms i .. i+kLanes-1 to acc; the sum of all n terms.
template <class T, class Step>
inline double sum_of(int n, Step step) {
  LaneSum<T> sum;
  for (int i = 0; i < n;) {
    Vec<T> part = splat(T(0));
    for (const int end = smaller(n, i + kSummed<T> * kLanes<T>); i < end; i += kLanes<T>)
      part = step(i, part);
    sum.add(part);
  }
  return sum.total();
}

// Calls f(task, worker) or f(task) for every task on the library's threads.
template <class F>
inline void parallel(int64_t tasks, int workers, F f) {
  parallel_tasks(
      tasks, workers,
      [](void* context, int64_t task, int worker) { (*static_cast<F*>(context))(task, worker); }, &f);
}
template <class F>
inline void parallel(int64_t tasks, F f) {
  parallel(tasks, workers_for(tasks), [&](int64_t task, int) { f(task); });
}

// Where a row of an operand begins.
inline char* row_of(const RowCall& call, const RowOperand& operand, int64_t row) {
  char* p = operand.data;
  for (int d = call.outer_dims - 1; d > 0; --d) {
    p += row % call.shape[d] * operand.outer[d];
    row /= call.shape[d];
  }
  return p + row * operand.outer[0];
}

inline bool is_masked(const RowCall& call, int64_t row, int64_t index) {
  return call.masked && !row_of(call, call.mask, row)[index * call.mask.inner];
}

template <class Kernel, class = void>
constexpr bool kKeeps = false;
template <class Kernel>
constexpr bool kKeeps<Kernel, decltype(void(Kernel::keeps))> = true;

// The passes over a chunk.
template <class Kernel, class T = typename Kernel::T>
inline void reduce_inline(const Kernel& kernel, typename Kernel::State& state, int64_t first,
                          const T* const* x, int n, T* kept) {
  if constexpr (kKeeps<Kernel>)
    kernel.reduce(state, first, x, n, kept);
  else
    kernel.reduce(state, first, x, n);
}
template <class Kernel, class T = typename Kernel::T>
inline void emit_inline(const Kernel& kernel, const typename Kernel::State& state, int64_t first,
                        const T* const* x, const T* kept, T* const* y, int n) {
  if constexpr (kKeeps<Kernel>)
    kernel.emit(state, first, x, kept, y, n);
  else
    kernel.emit(state, first, x, y, n);
}
// The same as functions of their own, compiled once for all storage types of T.
template <class Kernel, class T = typename Kernel::T>
__attribute__((noinline)) void reduce_chunk(const Kernel& kernel, typename Kernel::State& state,
                                            int64_t first, const T* const* x, int n, T* kept) {
  reduce_inline(kernel, state, first, x, n, kept);
}
template <class Kernel, class T = typename Kernel::T>
__attribute__((noinline)) void emit_chunk(const Kernel& kernel, const typename Kernel::State& state,
                                          int64_t first, const T* const* x, const T* kept, T* const* y,
                                          int n) {
  emit_inline(kernel, state, first, x, kept, y, n);
}

template <class S, class Kernel>
class RowDriver {
  using T = typename Kernel::T;
  static constexpr int kRows = 64 / sizeof(T);  // rows of a tile: one cache line
  static constexpr int kArrays = Kernel::inputs + Kernel::outputs;
  static constexpr bool kSameType = sizeof(S) == sizeof(T);

 public:
  RowDriver(const Kernel& kernel, const RowCall& call) : kernel_(kernel), call_(call) {
    divide_ = call.temperature != 1.0;
    large_ = call.rows * call.n * int64_t(sizeof(S)) >= kStreamBytes;
    fetches_ = large_ && call.n * int64_t(sizeof(S)) <= kFetchedBytes;
    for (int i = 0; i < Kernel::inputs; ++i) {
      direct_in_[i] = kSameType && !call.masked && call.in[i].inner == int64_t(sizeof(S)) &&
                      !(divide_ && Kernel::scaled[i]);
      contiguous_ = contiguous_ && call.in[i].inner == int64_t(sizeof(S));
    }
    for (int i = 0; i < Kernel::outputs; ++i) {
      contiguous_ = contiguous_ && call.out[i].inner == int64_t(sizeof(S));
      const bool in_place = call.out[i].data == call.in[0].data;
      stream_ = stream_ || (!in_place && large_ && call.n * int64_t(sizeof(S)) >= kStreamRow);
    }
    if (call.n <= 1) contiguous_ = true;
    for (int i = 0; i < Kernel::outputs; ++i)
      direct_out_[i] = kSameType && contiguous_ && !call.masked && !stream_;
  }

  void run() const {
    if (call_.rows == 0) return;
    const int64_t last = call_.outer_dims ? call_.shape[call_.outer_dims - 1] : 1;
    const bool together = all_direct() && call_.n <= kStep;
    const int64_t tile_rows = contiguous_ && !together ? 1 : smaller<int64_t>(kRows, last);
    const int64_t per_line = (last + tile_rows - 1) / tile_rows;  // tiles along the last outer axis
    const int64_t tiles = call_.rows / last * per_line;
    const int64_t per_task = larger<int64_t>(1, kTaskEntries / larger<int64_t>(1, call_.n * tile_rows));
    const int64_t tasks = (tiles + per_task - 1) / per_task;
    const int workers = workers_for(tasks);
    // Where the memory cannot be had, nothing is kept.
    const int64_t room = kept_room();
    T* const kept = room ? static_cast<T*>(aligned_alloc(64, size_t(workers * room) * sizeof(T))) : nullptr;
    parallel(tasks, workers, [&](int64_t task, int worker) {
      const int64_t end = smaller(tiles, (task + 1) * per_task);
      for (int64_t tile = task * per_task; tile < end; ++tile) {
        const int64_t row = tile / per_line * last + tile % per_line * tile_rows;
        const int height = static_cast<int>(smaller(tile_rows, last - tile % per_line * tile_rows));
        if (tile_rows == 1)
          run_rows<1, 1>(row, 1, kept ? kept + worker * room : nullptr);
        else if (!together)
          run_rows<kRows, kRows>(row, height, nullptr);
        else if constexpr (kSameType)
          run_rows<kRows, 1>(row, height, nullptr);
      }
      if (stream_) stream_fence();
    });
    free(kept);
  }

 private:
  // Entries of a row that a worker keeps elsewhere than on its stack.
  int64_t kept_room() const {
    const bool wanted = kKeeps<Kernel> && kernel_.emits() && contiguous_;
    return wanted && call_.n > kChunk && call_.n <= kKeptMost<T> ? (call_.n + 15) / 16 * 16 : 0;
  }

  // Where a row lies, and how far away its neighbour is.
  struct Place {
    char *in[Kernel::inputs], *out[Kernel::outputs + 1], *mask;
    int64_t in_step[Kernel::inputs], out_step[Kernel::outputs + 1], mask_step;

    Place(const RowCall& call, int64_t row) {
      const int last = call.outer_dims ? call.outer_dims - 1 : 0;
      for (int i = 0; i < Kernel::inputs; ++i) {
        in[i] = row_of(call, call.in[i], row);
        in_step[i] = call.in[i].outer[last];
      }
      for (int i = 0; i < Kernel::outputs; ++i) {
        out[i] = row_of(call, call.out[i], row);
        out_step[i] = call.out[i].outer[last];
      }
      if (call.masked) {
        mask = row_of(call, call.mask, row);
        mask_step = call.mask.outer[last];
      }
    }
  };

  bool all_direct() const {
    bool direct = true;
    for (int i = 0; i < Kernel::inputs; ++i) direct = direct && direct_in_[i];
    for (int i = 0; i < Kernel::outputs; ++i) direct = direct && direct_out_[i];
    return direct;
  }

  // Rows row .. row+height-1, neighbours along the last outer axis. The buffer is as high as rows that are
  // not direct need. Short rows where they lie (kBuffered < kHeight) would notice a call each. `room` is for
  // a row that is kept and too long for the stack.
  template <int kHeight, int kBuffered>
  void run_rows(int64_t row, int height, T* room) const {
    constexpr bool kShort = kBuffered < kHeight;
    constexpr bool kMayKeep = kKeeps<Kernel> && kBuffered == 1;
    constexpr int kOnStack = kShort ? kStep : kChunk;
    alignas(64) T few[kMayKeep ? kHeight * kOnStack : 1];
    T* const kept = kMayKeep && call_.n <= kOnStack && kernel_.emits() ? few : room;
    alignas(64) T buffer[kArrays][kBuffered * kPitch];
    typename Kernel::State state[kHeight];
    Place place(call_, row);
    const auto kept_at = [kept](int r, int64_t first) {
      return kept ? kept + r * kOnStack + first : nullptr;
    };
    int64_t x_step[Kernel::inputs], y_step[Kernel::outputs + 1];  // entries from row to row
    for (int i = 0; i < Kernel::inputs; ++i)
      x_step[i] = direct_in_[i] && kShort ? place.in_step[i] / int64_t(sizeof(T)) : kPitch;
    for (int i = 0; i < Kernel::outputs; ++i)
      y_step[i] = direct_out_[i] ? place.out_step[i] / int64_t(sizeof(T)) : kPitch;
    for (int r = 0; r < height; ++r) {
      state[r] = kernel_.begin(row + r);
      if constexpr (Kernel::chooses) {
        const T* x[Kernel::inputs];
        const int64_t index = kernel_.choice(row + r);
        if (index < 0) continue;
        read(Place(call_, row + r), index, 1, 1, buffer, x);
        state[r].chosen = x[0][0];
      }
    }

    if constexpr (Kernel::reduces) {
      for (int64_t first = 0; first < call_.n; first += kChunk) {
        const int n = static_cast<int>(smaller<int64_t>(kChunk, call_.n - first));
        const T* x[Kernel::inputs];
        read(place, first, n, kShort ? 1 : height, buffer, x);
        for (int r = 0; r < height; ++r) {
          if constexpr (kShort)
            reduce_inline(kernel_, state[r], first, x, n, kept_at(r, first));
          else
            reduce_chunk(kernel_, state[r], first, x, n, kept_at(r, first));
          for (int i = 0; i < Kernel::inputs; ++i) x[i] += x_step[i];
        }
      }
    }
    for (int r = 0; r < height; ++r) kernel_.finish(state[r], row + r);

    if (Kernel::outputs == 0 || !kernel_.emits()) return;
    int step = kStep;
    if (stream_)
      step += entries_ahead(place.out[0]);  // so that all later pieces begin on a register's boundary
    for (int64_t first = 0; first < call_.n; first += step, step = kStep) {
      const int n = static_cast<int>(smaller<int64_t>(step, call_.n - first));
      const T* x[Kernel::inputs] = {};
      T* y[Kernel::outputs + 1];
      if (fetches_) prefetch_next(place, first, n);
      if (!kept) read(place, first, n, kShort ? 1 : height, buffer, x);
      for (int i = 0; i < Kernel::outputs; ++i)
        y[i] = direct_out_[i] ? reinterpret_cast<T*>(place.out[i]) + first : buffer[Kernel::inputs + i];
      for (int r = 0; r < height; ++r) {
        if constexpr (kShort)
          emit_inline(kernel_, state[r], first, x, kept_at(r, first), y, n);
        else
          emit_chunk(kernel_, state[r], first, x, kept_at(r, first), y, n);
        for (int i = 0; i < Kernel::inputs && !kept; ++i) x[i] += x_step[i];
        for (int i = 0; i < Kernel::outputs; ++i) y[i] += y_step[i];
      }
      for (int i = 0; i < Kernel::outputs; ++i)
        if (!direct_out_[i]) write(place, i, first, n, height, buffer[Kernel::inputs + i]);
    }
  }

  // Asks for the same entries of the next row.
  void prefetch_next(const Place& place, int64_t first, int n) const {
    for (int i = 0; i < Kernel::inputs; ++i) {
      if (call_.in[i].inner != int64_t(sizeof(S))) continue;
      const char* next = place.in[i] + place.in_step[i] + first * int64_t(sizeof(S));
      for (int byte = 0; byte < n * int(sizeof(S)); byte += 64) prefetch(next + byte);
    }
  }

  // Sets x[i] to the chunk of input i: row r's entries start at x[i] + r * kPitch.
  template <class Buffer>
  void read(const Place& place, int64_t first, int n, int height, Buffer& buffer, const T** x) const {
    for (int i = 0; i < Kernel::inputs; ++i) {
      if (direct_in_[i]) {
        x[i] = reinterpret_cast<const T*>(place.in[i]) + first;
        if (height == 1) continue;
      }
      T* tile = buffer[i];
      x[i] = tile;
      const int64_t inner = call_.in[i].inner;
      const char* start = place.in[i] + first * inner;
      if (inner == int64_t(sizeof(S))) {
        for (int r = 0; r < height; ++r) {
          const S* source = reinterpret_cast<const S*>(start + r * place.in_step[i]);
          for (int j = 0; j < n; j += kLanes<T>)
            store_upto(tile + r * kPitch + j, load_upto(source + j, n - j, T(0)), n - j);
        }
      } else {
        for (int j = 0; j < n; ++j)
          for (int r = 0; r < height; ++r)
            gather(tile + r * kPitch + j, start + j * inner + r * place.in_step[i]);
        if constexpr (!kSameType) widen_tile(tile, n, height);
      }
      if (divide_ && Kernel::scaled[i]) {
        const Vec<T> temperature = splat(static_cast<T>(call_.temperature));
        for (int r = 0; r < height; ++r)
          for (int j = 0; j < n; j += kLanes<T>)
            store(tile + r * kPitch + j, load(tile + r * kPitch + j) / temperature);
      }
      if (call_.masked) cover(place, first, n, height, Kernel::fill[i], tile);
    }
  }

  // Entries where the mask is false become `value`.
  void cover(const Place& place, int64_t first, int n, int height, T value, T* tile) const {
    for (int r = 0; r < height; ++r) {
      const char* mask = place.mask + first * call_.mask.inner + r * place.mask_step;
      T* row = tile + r * kPitch;
      if (call_.mask.inner == 1)
        for (int j = 0; j < n; j += kLanes<T>) {
          const auto kept = kept_lanes<T>(reinterpret_cast<const uint8_t*>(mask) + j, n - j);
          store(row + j, select(kept, load(row + j), splat(value)));
        }
      else
        for (int j = 0; j < n; ++j)
          if (!mask[j * call_.mask.inner]) row[j] = value;
    }
  }

  void write(const Place& place, int i, int64_t first, int n, int height, T* tile) const {
    if (call_.masked) cover(place, first, n, height, Kernel::blank[i], tile);
    const int64_t inner = call_.out[i].inner;
    char* start = place.out[i] + first * inner;
    if (inner == int64_t(sizeof(S))) {
      for (int r = 0; r < height; ++r)
        put(reinterpret_cast<S*>(start + r * place.out_step[i]), tile + r * kPitch, n);
      return;
    }
    if constexpr (!kSameType) narrow_tile(tile, n, height);
    for (int j = 0; j < n; ++j)
      for (int r = 0; r < height; ++r)
        scatter(start + j * inner + r * place.out_step[i], tile + r * kPitch + j);
  }

  // How many entries lie before the next boundary of a register.
  static int entries_ahead(const void* target) {
    return static_cast<int>(-(reinterpret_cast<intptr_t>(target) / intptr_t(sizeof(T))) & (kLanes<T> - 1));
  }

  // A contiguous piece of output; past the cache if the array is too large to stay there.
  void put(S* target, const T* source, int n) const {
    if constexpr (kSameType) {
      if (stream_) {
        int j = smaller(entries_ahead(target), n);
        if (j > 0) store_part(target, load(source), j);
        for (; j + kLanes<T> <= n; j += kLanes<T>) stream(target + j, load(source + j));
        if (j < n) store_part(target + j, load(source + j), n - j);
        return;
      }
    }
    for (int j = 0; j < n; j += kLanes<T>) store_upto(target + j, load(source + j), n - j);
  }

  // Single entries of a tile keep their storage bits in the low bytes of a T until widen_tile / after
  // narrow_tile.
  static void gather(T* target, const char* source) { memcpy(static_cast<void*>(target), source, sizeof(S)); }
  static void scatter(char* target, const T* source) {
    memcpy(target, static_cast<const void*>(source), sizeof(S));
  }
  static void widen_tile(T* tile, int n, int height) {
    S narrow[kLanes<T>];
    for (int r = 0; r < height; ++r)
      for (int j = 0; j < n; j += kLanes<T>) {
        T* p = tile + r * kPitch + j;
        for (int k = 0; k < kLanes<T>; ++k) memcpy(static_cast<void*>(narrow + k), p + k, sizeof(S));
        store(p, load(narrow));
      }
  }
  static void narrow_tile(T* tile, int n, int height) {
    S narrow[kLanes<T>];
    for (int r = 0; r < height; ++r)
      for (int j = 0; j < n; j += kLanes<T>) {
        T* p = tile + r * kPitch + j;
        store(narrow, load(p));
        for (int k = 0; k < kLanes<T>; ++k) memcpy(static_cast<void*>(p + k), narrow + k, sizeof(S));
      }
  }

  const Kernel& kernel_;
  const RowCall& call_;
  bool divide_ = false, contiguous_ = true, large_ = false, fetches_ = false, stream_ = false;
  bool direct_in_[Kernel::inputs];
  bool direct_out_[Kernel::outputs + 1];
};

// Kernel<T> made from the call and run for the call's storage type.
template <template <class> class Kernel, class Call>
inline void run_rows(const Call& call) {
  switch (call.dtype) {
    case DType::float32:
      return RowDriver<float, Kernel<float>>(Kernel<float>(call), call).run();
    case DType::float64:
      return RowDriver<double, Kernel<double>>(Kernel<double>(call), call).run();
    case DType::float16:
      return RowDriver<Half, Kernel<float>>(Kernel<float>(call), call).run();
    case DType::bfloat16:
      return RowDriver<BFloat, Kernel<float>>(Kernel<float>(call), call).run();
    default:
      return;
  }
}

}  // namespace
}  // namespace npkernels::NPK_ISA
