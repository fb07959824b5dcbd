// Tiled attention: out = softmax(scores) v without ever holding more than a tile of scores.
//
// Letters: S queries, K keys, D head size, Dv value head size, G query heads that share one key head.
// A task is a block of query rows of one key head and the keys that they see. Queries lie across the lanes of
// a register (attention_block.h), everything else runs over registers and memory:
//   qt  (D, block)      the block's queries, transposed once
//   st  (tile, group)   scores of a tile of keys with a group of lanes, then their weights
//   ot  (Dv, block)     the output, transposed, unnormalised
// so the maximum and sum over keys are lane-wise, and keys and values are read as broadcast scalars where
// they lie. For each tile of keys and each group of lanes
//   1. st = k qt                                 (two bfloat16 products at a time where the ISA can)
//   2. softcap, bias, masks                      (only where the tile needs them)
//   3. m = max(m, st); st = exp(st - m); l += sum; ot *= exp(m before - m)    (online softmax)
//   4. ot += v^T st
// and at the end out = ot^T / l, lse = m + log(l).
//
// A block of few rows (decoding) would leave most lanes idle in the products. There the entries of D and Dv
// lie across the lanes instead: q (rows, D), o (rows, Dv), and each key and value is read once for all rows.
//
// A weight of zero must contribute nothing even if its value is inf or NaN: a block whose output is not
// finite is done again with step 4 choosing by weight (`careful`).
#include <math.h>

#include "attention_online.h"
#include "kernels.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int kTogether = 4;             // keys and values that few rows take at a time
constexpr int kAhead = 16;               // and how many later ones are fetched meanwhile
constexpr int kFew = kLanes<float> / 2;  // rows up to which the entries of a head lie across the lanes

// The scratch of one worker.
template <class T>
struct Scratch {
  T *q, *k, *v, *st, *room, *o, *m, *l, *nan;
  int64_t bytes;

  Scratch(char* memory, const AttentionCall& call) {
    T* p = reinterpret_cast<T*>(memory);
    const auto take = [&](int64_t n) {
      T* const taken = p;
      p += (n + 15) / 16 * 16;
      return taken;
    };
    const int64_t dim = padded<T>(call.dim), value_dim = padded<T>(call.value_dim);
    q = take(dim * kBlock<T>);
    o = take(value_dim * kBlock<T>);
    k = take(kKeys * dim);
    v = take(kKeys * value_dim);
    st = take(kKeys * kGroup<T>);
    room = take(larger(2 * int64_t(kKeys) * kGroup<T>, larger(dim, value_dim) * kLanes<T>));
    m = take(kBlock<T>);
    l = take(kBlock<T>);
    nan = take(kBlock<T>);
    bytes = reinterpret_cast<char*>(p) - memory;
  }
};

template <class T>
class Forward {
 public:
  Forward(const AttentionCall& call, const AttentionTask& task, const Scratch<T>& scratch)
      : call_(call),
        task_(task),
        scratch_(scratch),
        block_(call, task),
        k_(call.k, block_.sequence, task.kv_head, call.dim),
        v_(call.v, block_.sequence, task.kv_head, call.value_dim),
        few_(block_.rows <= kFew),
        pairs_(by_pairs<T>(call.dtype) && !few_),
        o_pitch_(padded<T>(call.value_dim)) {}

  void run() {
    if (few_)
      for (int r = 0; r < block_.rows; ++r) {
        T* const q = scratch_.q + r * padded<T>(call_.dim);
        widen(block_.row(call_.q, r), call_.dtype, call_.dim, q);
        for (int64_t d = call_.dim; d < padded<T>(call_.dim); ++d) q[d] = 0;
      }
    else
      with_units([&](auto* q) { block_.load_transposed(call_.q, call_.dim, q, scratch_.room); }, scratch_.q);
    attend(false);
    if (!normalise()) {
      attend(true);
      normalise();
    }
    write();
  }

 private:
  // Calls f(room) with the room as that of the units that queries and keys are multiplied in.
  template <class F>
  void with_units(F f, T* room) const {
    if constexpr (kByPairs<T>)
      if (pairs_) return f(reinterpret_cast<Pair*>(room));
    f(room);
  }

  void attend(bool careful) {
    with_units([&](auto* room) { this->attend_by(room, careful); }, scratch_.k);
  }

  template <class U>
  void attend_by(U* k_room, bool careful) {
    clear();
    for (int64_t from = block_.lowest; from < block_.highest; from += kKeys) {
      const int n = static_cast<int>(smaller<int64_t>(kKeys, block_.highest - from));
      const U* k = nullptr;  // brought in when the first group needs them
      const T* v = nullptr;
      int64_t k_pitch = 0, v_pitch = 0;
      for (int g = 0; g < block_.groups; ++g) {
        const Group& group = block_.group[g];
        int64_t first = from, end = from + n;
        block_.clip(group, &first, &end);
        if (first >= end) continue;
        const Need need = block_.need(group, first, end);
        if (need.nothing) continue;
        if (!k) k = k_.rows(from, n, k_room, &k_pitch), v = v_.rows(from, n, scratch_.v, &v_pitch);
        with_registers(group.regs, [&](auto count) {
          this->template tile<decltype(count)::value>(group, first, static_cast<int>(end - first), need,
                                                      k + (first - from) * k_pitch, k_pitch,
                                                      v + (first - from) * v_pitch, v_pitch, careful);
        });
      }
    }
  }

  void clear() {
    for (int r = 0; r < kBlock<T>; ++r) scratch_.m[r] = T(-INFINITY), scratch_.l[r] = 0, scratch_.nan[r] = 0;
    const int64_t entries = few_ ? block_.rows * o_pitch_ : call_.value_dim * kBlock<T>;
    memset(scratch_.o, 0, static_cast<size_t>(entries) * sizeof(T));
  }

  // Steps 1 to 4 for keys first .. first+n-1.
  template <int N, class U>
  void tile(const Group& group, int64_t first, int n, const Need& need, const U* k, int64_t k_pitch,
            const T* v, int64_t v_pitch, bool careful) {
    T* const st = scratch_.st;
    if constexpr (!kIsPair<U>)
      if (few_) dot_rows(k, k_pitch, n, st);
    if (!few_)
      multiply<N, Lies::by_rows, false>(k, k_pitch, reinterpret_cast<const U*>(scratch_.q) + group.lane,
                                        int64_t(kBlock<T>), int64_t(n), units<U>(call_.dim), st,
                                        int64_t(kGroup<T>));
    const T factor = block_.template adjust<N>(group, first, n, need, st, scratch_.room, nullptr);
    if (careful) collect_nan<N>(n, st, scratch_.nan + group.lane);
    online_softmax<N>(group, n, factor, st);
    if (call_.drop_below) {
      block_.draw(group, first, n, scratch_.room);
      Block<T>::template each<N>(n, st, [&](Vec<T> p, int j, int i) {
        return kept<T>(p, load(scratch_.room + j * kGroup<T> + i * kLanes<T>));
      });
    }
    if (few_)
      add_rows(v, v_pitch, n, st, careful);
    else if (careful)
      multiply_careful<N, Lies::by_steps>(v, v_pitch, st, int64_t(kGroup<T>), call_.value_dim, int64_t(n),
                                          scratch_.o + group.lane, int64_t(kBlock<T>));
    else
      multiply<N, Lies::by_steps, true>(v, v_pitch, st, int64_t(kGroup<T>), call_.value_dim, int64_t(n),
                                        scratch_.o + group.lane, int64_t(kBlock<T>));
  }

  // Decoding reads every key and value once and waits for memory, so while some rows are worked on, those
  // after the next ones are fetched: line by line, since many at once would hold up what is read now.
  static constexpr int kLine = larger(1, 64 / int(sizeof(Vec<T>)));  // registers
  template <int J>
  static void fetch(const T* rows, int64_t pitch, int64_t d) {
    for (int j = 0; j < J; ++j) prefetch(rows + (j + kAhead) * pitch + d);
  }

  // Calls f(Count<J>, Count<R>, Bool<first>, j, r) for all n keys and the block's rows, in tiles; `first` for
  // the first of a key's tiles.
  template <class F>
  void tiles(int n, F f) const {
    const auto keys = [&](auto count, int j) {
      if (block_.rows == 1) return f(count, Count<1>{}, Bool<true>{}, j, 0);
      f(count, Count<2>{}, Bool<true>{}, j, 0);
      int r = 2;
      for (; r + 2 <= block_.rows; r += 2) f(count, Count<2>{}, Bool<false>{}, j, r);
      if (r < block_.rows) f(count, Count<1>{}, Bool<false>{}, j, r);
    };
    int j = 0;
    for (; j + kTogether <= n; j += kTogether) keys(Count<kTogether>{}, j);
    for (; j < n; ++j) keys(Count<1>{}, j);
  }

  // st[j][r] = k[j] . q[r] for few rows; the other lanes repeat the last.
  void dot_rows(const T* k, int64_t k_pitch, int n, T* st) const {
    const bool whole = call_.dim % (kLine * kLanes<T>) == 0;
    tiles(n, [&](auto count, auto height, auto first, int j, int r) {
      constexpr int J = decltype(count)::value, R = decltype(height)::value;
      constexpr bool kFirst = decltype(first)::value;
      if (whole)
        dot_tile<J, R, kFirst, true>(k + j * k_pitch, k_pitch, r, st + j * kGroup<T> + r);
      else
        dot_tile<J, R, kFirst, false>(k + j * k_pitch, k_pitch, r, st + j * kGroup<T> + r);
    });
    for (int j = 0; j < n; ++j)
      for (int i = block_.rows; i < kLanes<T>; ++i)
        st[j * kGroup<T> + i] = st[j * kGroup<T> + block_.rows - 1];
  }

  template <int J, int R, bool kFirst, bool kWhole>
  void dot_tile(const T* k, int64_t k_pitch, int row, T* st) const {
    const int64_t q_pitch = padded<T>(call_.dim);
    Vec<T> acc[J][R];
    for (int j = 0; j < J; ++j)
      for (int r = 0; r < R; ++r) acc[j][r] = splat(T(0));
    for (int64_t line = 0; line < call_.dim; line += kLine * kLanes<T>) {
      if (kFirst) fetch<J>(k, k_pitch, line);
#pragma GCC unroll 4
      for (int u = 0; u < kLine; ++u) {
        const int64_t d = line + u * kLanes<T>;
        if (!kWhole && d >= call_.dim) break;
        Vec<T> q[R];
        for (int r = 0; r < R; ++r) q[r] = load(scratch_.q + (row + r) * q_pitch + d);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) {
          const T* const at = k + j * k_pitch + d;
          const Vec<T> key = kWhole ? load(at) : load_upto(at, call_.dim - d, T(0));
          for (int r = 0; r < R; ++r) acc[j][r] = fma(key, q[r], acc[j][r]);
        }
      }
    }
    for (int j = 0; j < J; ++j)
      for (int r = 0; r < R; ++r) st[j * kGroup<T> + r] = static_cast<T>(sum_lanes(acc[j][r]));
  }

  // o[r] += sum over j of st[j][r] v[j] for few rows.
  void add_rows(const T* v, int64_t v_pitch, int n, const T* st, bool careful) {
    const bool plain = call_.value_dim % kLanes<T> == 0 && !careful;
    tiles(n, [&](auto count, auto height, auto first, int j, int r) {
      constexpr int J = decltype(count)::value, R = decltype(height)::value;
      constexpr bool kFirst = decltype(first)::value;
      if (plain) return add_tile<J, R, kFirst>(v + j * v_pitch, v_pitch, st + j * kGroup<T> + r, r);
      for (int i = r; i < r + R; ++i)
        add_tile_careful<J>(v + j * v_pitch, v_pitch, st + j * kGroup<T> + i, i, careful);
    });
  }

  // Of J values and R rows; Dv is a multiple of the lanes. Some registers of each row go together, since a
  // sum waits for the one before it.
  template <int J, int R, bool kFirst>
  void add_tile(const T* v, int64_t v_pitch, const T* st, int row) const {
    T* const o = scratch_.o + row * o_pitch_;
    Vec<T> p[J][R];
    for (int j = 0; j < J; ++j)
      for (int r = 0; r < R; ++r) p[j][r] = splat(st[j * kGroup<T> + r]);
    int64_t d = 0;
    const auto columns = [&](auto width) {
      constexpr int U = decltype(width)::value;
      for (; d + U * kLanes<T> <= call_.value_dim; d += U * kLanes<T>) {
        if (kFirst)
          for (int u = 0; u < U; u += kLine) fetch<J>(v, v_pitch, d + u * kLanes<T>);
        Vec<T> acc[R][U];
        for (int r = 0; r < R; ++r)
          for (int u = 0; u < U; ++u) acc[r][u] = load(o + r * o_pitch_ + d + u * kLanes<T>);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j)
          for (int u = 0; u < U; ++u) {
            const Vec<T> value = load(v + j * v_pitch + d + u * kLanes<T>);
            for (int r = 0; r < R; ++r) acc[r][u] = fma(p[j][r], value, acc[r][u]);
          }
        for (int r = 0; r < R; ++r)
          for (int u = 0; u < U; ++u) store(o + r * o_pitch_ + d + u * kLanes<T>, acc[r][u]);
      }
    };
    columns(Count<2>{});
    columns(Count<1>{});
  }

  template <int J>
  void add_tile_careful(const T* v, int64_t v_pitch, const T* st, int row, bool careful) const {
    T* const o = scratch_.o + row * o_pitch_;
    for (int64_t d = 0; d < call_.value_dim; d += kLanes<T>) {
      Vec<T> acc = load(o + d);
      for (int j = 0; j < J; ++j) {
        const Vec<T> p = splat(st[j * kGroup<T>]);
        const Vec<T> sum = fma(p, load_upto(v + j * v_pitch + d, call_.value_dim - d, T(0)), acc);
        acc = careful ? select(equal(p, splat(T(0))), acc, sum) : sum;
      }
      store(o + d, acc);
    }
  }

  // Turns scores into weights exp(factor st - m), adds them to l, rescales what is there if m rises.
  template <int N>
  void online_softmax(const Group& group, int n, T factor, T* st) {
    T* const l = scratch_.l + group.lane;
    const Raised<N, T> raised = raise_maximum<N>(n, factor, st, scratch_.m + group.lane);
    Vec<T> sum[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) sum[i] = load(l + i * kLanes<T>) * raised.shrink[i];
    each_weight<N, false>(n, st, raised.scale, raised.shift, [&](Vec<T> p, int j, int i) {
      sum[i] = sum[i] + p;
      store(st + j * kGroup<T> + i * kLanes<T>, p);
    });
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) store(l + i * kLanes<T>, sum[i]);
    if (!few_) return shrink_sums<N>(raised, call_.value_dim, scratch_.o + group.lane);
    if (!raised.rescale) return;
    alignas(64) T by[kLanes<T>];
    store(by, raised.shrink[0]);
    for (int r = 0; r < block_.rows; ++r)
      for (int64_t d = 0; d < o_pitch_; d += kLanes<T>)
        store(scratch_.o + r * o_pitch_ + d, load(scratch_.o + r * o_pitch_ + d) * splat(by[r]));
  }

  // o = o / l. False if it is not finite, which a value that met a weight of zero may have done.
  bool normalise() {
    const Vec<T> zero = splat(T(0));
    Vec<T> spoilt = zero;  // 0, or NaN if something is not finite
    if (few_) {
      for (int r = 0; r < block_.rows; ++r) {
        const Vec<T> inverse = splat(scratch_.l[r] == 0 ? T(0) : 1 / scratch_.l[r]);
        for (int64_t d = 0; d < o_pitch_; d += kLanes<T>) {
          const Vec<T> y = load(scratch_.o + r * o_pitch_ + d) * inverse;
          spoilt = spoilt + (y - y);
          store(scratch_.o + r * o_pitch_ + d, y);
        }
      }
    } else {
      const Group& last = block_.group[block_.groups - 1];
      for (int lane = 0; lane < last.lane + last.regs * kLanes<T>; lane += kLanes<T>) {
        const Vec<T> l = load(scratch_.l + lane), inverse = select(equal(l, zero), zero, splat(T(1)) / l);
        for (int64_t d = 0; d < call_.value_dim; ++d) {
          T* o = scratch_.o + d * kBlock<T> + lane;
          const Vec<T> y = load(o) * inverse;
          spoilt = spoilt + (y - y);
          store(o, y);
        }
      }
    }
    return count(equal(spoilt, zero)) == kLanes<T>;
  }

  T lse(int r) const { return log_sum(scratch_.m[r], scratch_.l[r], scratch_.nan[r]); }

  void write() {
    if (task_.slot >= 0) return write_part();
    if (call_.sinks) {  // exp(sink) joins the denominator
      for (int r = 0; r < block_.rows; ++r) {
        const double sink = static_cast<const T*>(call_.sinks)[block_.head[r]], before = lse(r);
        const double top = before > sink ? before : sink;
        const double both =
            isinf(top) || top != top ? top : top + ::log(::exp(before - top) + ::exp(sink - top));
        const bool alone = before == -double(INFINITY) || sink == -double(INFINITY);
        // Beside a sink of +inf the share is exp(-inf) / NaN.
        const T share = alone ? T(1) : static_cast<T>(both == double(INFINITY) ? NAN : ::exp(before - both));
        for (int64_t d = 0; d < call_.value_dim; ++d)
          scratch_.o[few_ ? r * o_pitch_ + d : d * kBlock<T> + r] *= share;
        scratch_.m[r] = static_cast<T>(before == before ? both : before);
        scratch_.l[r] = scratch_.m[r] == T(-INFINITY) ? 0 : 1;
      }
    }
    if (few_)
      for (int r = 0; r < block_.rows; ++r)
        narrow(scratch_.o + r * o_pitch_, call_.value_dim, call_.dtype, block_.row(call_.out, r));
    else
      block_.store_transposed(scratch_.o, call_.value_dim, call_.out, scratch_.room);
    if (!call_.lse) return;
    for (int r = 0; r < block_.rows; ++r) static_cast<T*>(call_.lse)[block_.index(r)] = lse(r);
  }

  // Partial results go to the slot of the task, row by row in T.
  void write_part() {
    T* const out = reinterpret_cast<T*>(call_.part_out) + task_.slot * call_.slot_rows * call_.value_dim;
    T* const norm = reinterpret_cast<T*>(call_.part_lse) + task_.slot * call_.slot_rows;
    for (int r = 0; r < block_.rows; ++r) {
      for (int64_t d = 0; d < call_.value_dim; ++d)
        out[r * call_.value_dim + d] = scratch_.o[few_ ? r * o_pitch_ + d : d * kBlock<T> + r];
      norm[r] = lse(r);
    }
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  const Scratch<T>& scratch_;
  Block<T> block_;
  KeyRows<T> k_, v_;
  bool few_, pairs_;
  int64_t o_pitch_;
};

template <class T>
void run(const AttentionCall& call) {
  parallel_tasks(
      call.task_count, call.workers,
      [](void* context, int64_t task, int worker) {
        const auto& c = *static_cast<const AttentionCall*>(context);
        const Scratch<T> scratch(c.scratch + worker * c.scratch_bytes, c);
        Forward<T>(c, c.tasks[task], scratch).run();
      },
      const_cast<AttentionCall*>(&call));
}

}  // namespace

int64_t attention_block(DType dtype) { return dtype == DType::float64 ? kBlock<double> : kBlock<float>; }

int64_t attention_scratch(const AttentionCall& call) {
  return call.dtype == DType::float64 ? Scratch<double>(nullptr, call).bytes
                                      : Scratch<float>(nullptr, call).bytes;
}

void attention(const AttentionCall& call) {
  if (call.dtype == DType::float64)
    run<double>(call);
  else
    run<float>(call);
}

}  // namespace npkernels::NPK_ISA
