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
// A block of few rows, as in decoding, goes another way (attention_few.h).
//
// A weight of zero must contribute nothing even if its value is inf or NaN: a block whose output is not
// finite is done again with step 4 choosing by weight (`careful`).
#include <math.h>

#include "attention_few.h"
#include "kernels.h"

namespace npkernels::NPK_ISA {
namespace {

// The scratch of one worker.
template <class T>
struct Scratch {
  T *q, *k, *v, *st, *room, *o, *m, *l, *nan, *few;
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
    few = take(kFew * kKeys);
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
        few_rows_(call, block_,
                  {scratch.q, scratch.few, scratch.st, scratch.room, scratch.o, scratch.m, scratch.l,
                   scratch.nan}) {}

  void run() {
    if (few_)
      few_rows_.load_queries();
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
        const int keys = static_cast<int>(end - first);
        const U* const k_first = k + (first - from) * k_pitch;
        const T* const v_first = v + (first - from) * v_pitch;
        if constexpr (!kIsPair<U>)
          if (few_) {
            const auto left = [&](const KeyRows<T>& rows) {
              return (rows.direct() ? block_.highest : from + n) - first;
            };
            few_rows_.add(first, keys, need, {k_first, k_pitch, left(k_)}, {v_first, v_pitch, left(v_)},
                          careful);
            continue;
          }
        with_registers(group.regs, [&](auto count) {
          this->template tile<decltype(count)::value>(group, first, keys, need, k_first, k_pitch, v_first,
                                                      v_pitch, careful);
        });
      }
    }
  }

  void clear() {
    for (int r = 0; r < kBlock<T>; ++r) scratch_.m[r] = T(-INFINITY), scratch_.l[r] = 0, scratch_.nan[r] = 0;
    if (few_) return few_rows_.clear();
    memset(scratch_.o, 0, static_cast<size_t>(call_.value_dim * kBlock<T>) * sizeof(T));
  }

  // Steps 1 to 4 for keys first .. first+n-1.
  template <int N, class U>
  void tile(const Group& group, int64_t first, int n, const Need& need, const U* k, int64_t k_pitch,
            const T* v, int64_t v_pitch, bool careful) {
    T* const st = scratch_.st;
    multiply<N, Lies::by_rows, false>(k, k_pitch, reinterpret_cast<const U*>(scratch_.q) + group.lane,
                                      int64_t(kBlock<T>), int64_t(n), units<U>(call_.dim), st,
                                      int64_t(kGroup<T>));
    const T factor = block_.template adjust<N>(group, first, n, need, st, scratch_.room, nullptr);
    if (careful) collect_nan<N>(n, st, scratch_.nan + group.lane);
    online_softmax<N>(group, n, factor, st, careful);
    if (call_.drop_below) {
      block_.draw(group, first, n, scratch_.room);
      Block<T>::template each<N>(n, st, [&](Vec<T> p, int j, int i) {
        return kept<T>(p, load(scratch_.room + j * kGroup<T> + i * kLanes<T>));
      });
    }
    if (careful)
      multiply_careful<N, Lies::by_steps>(v, v_pitch, st, int64_t(kGroup<T>), call_.value_dim, int64_t(n),
                                          scratch_.o + group.lane, int64_t(kBlock<T>));
    else
      multiply<N, Lies::by_steps, true>(v, v_pitch, st, int64_t(kGroup<T>), call_.value_dim, int64_t(n),
                                        scratch_.o + group.lane, int64_t(kBlock<T>));
  }

  // Turns scores into weights exp(factor st - m), adds them to l, rescales what is there if m rises.
  template <int N>
  void online_softmax(const Group& group, int n, T factor, T* st, bool careful) {
    T* const l = scratch_.l + group.lane;
    Vec<T> top[N];
    tile_maxima<N>(n, factor, st, top);
    const Raised<N, T> raised = raise<N>(top, careful, scratch_.m + group.lane);
    const Vec<T> scale = splat(round_large<N>(raised.shift, n, factor, st));
    Vec<T> sum[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) sum[i] = splat(T(0));
    each_weight<N, false>(n, st, int64_t(kGroup<T>), scale, raised.shift, [&](Vec<T> p, int j, int i) {
      sum[i] = sum[i] + p;
      store(st + j * kGroup<T> + i * kLanes<T>, p);
    });
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i)
      store(l + i * kLanes<T>, fma(load(l + i * kLanes<T>), raised.shrink[i], sum[i]));
    shrink_sums<N>(raised, call_.value_dim, scratch_.o + group.lane);
  }

  // o = o / l. False if it is not finite, which a value that met a weight of zero may have done.
  bool normalise() {
    if (few_) return few_rows_.normalise();
    const Vec<T> zero = splat(T(0));
    Vec<T> spoilt = zero;  // 0, or NaN if something is not finite
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
    return count(equal(spoilt, zero)) == kLanes<T>;
  }

  T* entry(int r, int64_t d) const { return few_ ? few_rows_.row(r) + d : scratch_.o + d * kBlock<T> + r; }
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
        for (int64_t d = 0; d < call_.value_dim; ++d) *entry(r, d) *= share;
        scratch_.m[r] = static_cast<T>(before == before ? both : before);
        scratch_.l[r] = scratch_.m[r] == T(-INFINITY) ? 0 : 1;
      }
    }
    if (few_)
      for (int r = 0; r < block_.rows; ++r)
        narrow(few_rows_.row(r), call_.value_dim, call_.dtype, block_.row(call_.out, r));
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
      for (int64_t d = 0; d < call_.value_dim; ++d) out[r * call_.value_dim + d] = *entry(r, d);
      norm[r] = lse(r);
    }
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  const Scratch<T>& scratch_;
  Block<T> block_;
  KeyRows<T> k_, v_;
  bool few_, pairs_;
  FewRows<T> few_rows_;
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
