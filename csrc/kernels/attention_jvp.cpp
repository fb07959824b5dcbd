// Attention and its derivative along (dq, dk, dv) in one pass. With P the weights and dS the derivative of
// the scores,
//   out = P v,   dout = P dv + (P o dS) v - rowsum(P o dS) o out.
// Every sum has the form sum(exp(s) x), so all of them are rescaled alike when a maximum rises.
//
// Letters as in attention.cpp. Per tile of keys and group of lanes
//   1. st = k qt,  ut = scale (k dqt + dk qt), times the derivative of softcap
//   2. p = exp(st - m), w = p o ut; l += sum p, r += sum w
//   3. ot += v^T p,  tt += dv^T p + v^T w
// and at the end out = ot^T / l, dout = tt^T / l - r / l out.
#include <math.h>

#include "attention_online.h"
#include "kernels.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
struct JvpScratch {
  T *q, *dq, *k, *dk, *v, *dv, *st, *ut, *slope, *room, *o, *t, *m, *l, *r, *nan;
  int64_t bytes;

  JvpScratch(char* memory, const AttentionCall& call) {
    T* next = reinterpret_cast<T*>(memory);
    const auto take = [&](int64_t n) {
      T* const taken = next;
      next += (n + 15) / 16 * 16;
      return taken;
    };
    const int64_t dim = padded<T>(call.dim), value_dim = padded<T>(call.value_dim);
    q = take(dim * kBlock<T>);
    dq = take(dim * kBlock<T>);
    o = take(value_dim * kBlock<T>);
    t = take(value_dim * kBlock<T>);
    k = take(kKeys * dim);
    dk = take(kKeys * dim);
    v = take(kKeys * value_dim);
    dv = take(kKeys * value_dim);
    st = take(kKeys * kGroup<T>);
    ut = take(kKeys * kGroup<T>);
    slope = take(kKeys * kGroup<T>);
    room = take(larger(2 * int64_t(kKeys) * kGroup<T>, larger(dim, value_dim) * kLanes<T>));
    m = take(kBlock<T>);
    l = take(kBlock<T>);
    r = take(kBlock<T>);
    nan = take(kBlock<T>);
    bytes = reinterpret_cast<char*>(next) - memory;
  }
};

// Rows of a tile, brought into the compute type.
template <class T>
struct Tile {
  const T *k, *dk, *v, *dv;
  int64_t k_pitch, dk_pitch, v_pitch, dv_pitch;
};

template <class T>
class ForwardMode {
 public:
  ForwardMode(const AttentionJvpCall& call, const AttentionTask& task, const JvpScratch<T>& scratch)
      : call_(call),
        s_(scratch),
        block_(call, task),
        k_(call.k, block_.sequence, task.kv_head, call.dim),
        dk_(call.dk, block_.sequence, task.kv_head, call.dim),
        v_(call.v, block_.sequence, task.kv_head, call.value_dim),
        dv_(call.dv, block_.sequence, task.kv_head, call.value_dim) {}

  void run() {
    block_.load_transposed(call_.q, call_.dim, s_.q, s_.room);
    block_.load_transposed(call_.dq, call_.dim, s_.dq, s_.room);
    attend(false);
    if (!finish()) {
      attend(true);
      finish();
    }
    block_.store_transposed(s_.o, call_.value_dim, call_.out, s_.room);
    block_.store_transposed(s_.t, call_.value_dim, call_.dout, s_.room);
    if (!call_.lse) return;
    for (int r = 0; r < block_.rows; ++r)
      static_cast<T*>(call_.lse)[block_.index(r)] = log_sum(s_.m[r], s_.l[r], s_.nan[r]);
  }

 private:
  void attend(bool careful) {
    for (int r = 0; r < kBlock<T>; ++r) {
      s_.m[r] = T(-INFINITY);
      s_.l[r] = s_.r[r] = s_.nan[r] = 0;
    }
    memset(s_.o, 0, static_cast<size_t>(call_.value_dim * kBlock<T>) * sizeof(T));
    memset(s_.t, 0, static_cast<size_t>(call_.value_dim * kBlock<T>) * sizeof(T));
    for (int64_t from = block_.lowest; from < block_.highest; from += kKeys) {
      const int n = static_cast<int>(smaller<int64_t>(kKeys, block_.highest - from));
      Tile<T> tile{};
      for (int g = 0; g < block_.groups; ++g) {
        const Group& group = block_.group[g];
        int64_t first = from, end = from + n;
        block_.clip(group, &first, &end);
        if (first >= end) continue;
        const Need need = block_.need(group, first, end);
        if (need.nothing) continue;
        if (!tile.k) {
          tile.k = k_.rows(from, n, s_.k, &tile.k_pitch);
          tile.dk = dk_.rows(from, n, s_.dk, &tile.dk_pitch);
          tile.v = v_.rows(from, n, s_.v, &tile.v_pitch);
          tile.dv = dv_.rows(from, n, s_.dv, &tile.dv_pitch);
        }
        Tile<T> part = tile;
        const int64_t at = first - from;
        part.k += at * tile.k_pitch;
        part.dk += at * tile.dk_pitch;
        part.v += at * tile.v_pitch;
        part.dv += at * tile.dv_pitch;
        with_registers(group.regs, [&](auto count) {
          this->template add_tile<decltype(count)::value>(group, first, static_cast<int>(end - first), need,
                                                          part, careful);
        });
      }
    }
  }

  template <int N>
  void add_tile(const Group& group, int64_t first, int n, const Need& need, const Tile<T>& tile,
                bool careful) {
    const auto scores = [&](auto more, const T* rows, int64_t pitch, const T* transposed, T* to) {
      constexpr bool kMore = decltype(more)::value != 0;
      multiply<N, Lies::by_rows, kMore>(rows, pitch, transposed + group.lane, int64_t(kBlock<T>), int64_t(n),
                                        call_.dim, to, int64_t(kGroup<T>));
    };
    scores(Count<0>{}, tile.k, tile.k_pitch, s_.q, s_.st);
    scores(Count<0>{}, tile.k, tile.k_pitch, s_.dq, s_.ut);
    scores(Count<1>{}, tile.dk, tile.dk_pitch, s_.q, s_.ut);
    const bool capped = call_.softcap > 0;
    const T factor =
        block_.template adjust<N>(group, first, n, need, s_.st, s_.room, capped ? s_.slope : nullptr);
    if (careful) collect_nan<N>(n, s_.st, s_.nan + group.lane);
    weigh<N>(group, n, factor, capped, careful);

    const auto values = [&](const T* rows, int64_t pitch, const T* weights, T* to) {
      if (careful)
        multiply_careful<N, Lies::by_steps>(rows, pitch, weights, int64_t(kGroup<T>), call_.value_dim,
                                            int64_t(n), to + group.lane, int64_t(kBlock<T>));
      else
        multiply<N, Lies::by_steps, true>(rows, pitch, weights, int64_t(kGroup<T>), call_.value_dim,
                                          int64_t(n), to + group.lane, int64_t(kBlock<T>));
    };
    values(tile.v, tile.v_pitch, s_.st, s_.o);
    values(tile.dv, tile.dv_pitch, s_.st, s_.t);
    values(tile.v, tile.v_pitch, s_.ut, s_.t);
  }

  // Step 2: st becomes p, ut becomes w.
  template <int N>
  void weigh(const Group& group, int n, T factor, bool capped, bool careful) {
    const Vec<T> zero = splat(T(0)), rate = splat(static_cast<T>(call_.scale));
    T *const l = s_.l + group.lane, *const turns = s_.r + group.lane;
    Vec<T> top[N];
    tile_maxima<N>(n, factor, s_.st, top);
    const Raised<N, T> raised = raise<N>(top, careful, s_.m + group.lane);
    const Vec<T> scale = splat(round_large<N>(raised.shift, n, factor, s_.st));
    Vec<T> sum[N], turn[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) sum[i] = turn[i] = zero;
    each_weight<N, false>(n, s_.st, int64_t(kGroup<T>), scale, raised.shift, [&](Vec<T> p, int j, int i) {
      const int64_t at = j * kGroup<T> + i * kLanes<T>;
      const Vec<T> u = load(s_.ut + at) * rate;
      const Vec<T> slope = capped ? load(s_.slope + at) : splat(T(1));
      const Vec<T> w = select(equal(p, zero), zero, select(equal(slope, zero), zero, p * slope * u));
      sum[i] = sum[i] + p;
      turn[i] = turn[i] + w;
      store(s_.st + at, p);
      store(s_.ut + at, w);
    });
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const int at = i * kLanes<T>;
      store(l + at, fma(load(l + at), raised.shrink[i], sum[i]));
      store(turns + at, fma(load(turns + at), raised.shrink[i], turn[i]));
    }
    shrink_sums<N>(raised, call_.value_dim, s_.o + group.lane);
    shrink_sums<N>(raised, call_.value_dim, s_.t + group.lane);
  }

  // The sink is a last key without a value: it may raise the maximum and joins the denominator.
  void add_sinks() {
    for (int r = 0; r < block_.rows; ++r) {
      const T sink = static_cast<const T*>(call_.sinks)[block_.head[r]], before = s_.m[r];
      if (sink == T(-INFINITY) || before != before) continue;
      if (before == T(-INFINITY)) {  // without a key there is nothing to share
        s_.m[r] = sink;
        s_.l[r] = 1;
        continue;
      }
      const T top = sink > before || sink != sink ? sink : before;
      const T shrink = before == top ? T(1) : static_cast<T>(::exp(double(before) - double(top)));
      s_.m[r] = top;
      s_.l[r] = static_cast<T>(s_.l[r] * shrink + ::exp(double(sink) - double(top)));
      s_.r[r] *= shrink;
      for (int64_t d = 0; d < call_.value_dim; ++d) {
        s_.o[d * kBlock<T> + r] *= shrink;
        s_.t[d * kBlock<T> + r] *= shrink;
      }
    }
  }

  // False if a result is not finite, which a value that met a weight of zero may have done.
  bool finish() {
    if (call_.sinks) add_sinks();
    const Vec<T> zero = splat(T(0));
    Vec<T> spoilt = zero;
    const Group& last = block_.group[block_.groups - 1];
    for (int lane = 0; lane < last.lane + last.regs * kLanes<T>; lane += kLanes<T>) {
      const Vec<T> l = load(s_.l + lane), inverse = select(equal(l, zero), zero, splat(T(1)) / l);
      const Vec<T> turn = load(s_.r + lane) * inverse;
      for (int64_t d = 0; d < call_.value_dim; ++d) {
        T *const o = s_.o + d * kBlock<T> + lane, *const t = s_.t + d * kBlock<T> + lane;
        const Vec<T> y = load(o) * inverse, dy = fma(zero - turn, y, load(t) * inverse);
        spoilt = spoilt + (y - y) + (dy - dy);
        store(o, y);
        store(t, dy);
      }
    }
    return count(equal(spoilt, zero)) == kLanes<T>;
  }

  const AttentionJvpCall& call_;
  const JvpScratch<T>& s_;
  Block<T> block_;
  KeyRows<T> k_, dk_, v_, dv_;
};

template <class T>
void run(const AttentionJvpCall& call) {
  parallel_tasks(
      call.task_count, call.workers,
      [](void* context, int64_t task, int worker) {
        const auto& c = *static_cast<const AttentionJvpCall*>(context);
        const JvpScratch<T> scratch(c.scratch + worker * c.scratch_bytes, c);
        ForwardMode<T>(c, c.tasks[task], scratch).run();
      },
      const_cast<AttentionJvpCall*>(&call));
}

}  // namespace

int64_t attention_jvp_scratch(const AttentionJvpCall& call) {
  return call.dtype == DType::float64 ? JvpScratch<double>(nullptr, call).bytes
                                      : JvpScratch<float>(nullptr, call).bytes;
}

void attention_jvp(const AttentionJvpCall& call) {
  if (call.dtype == DType::float64)
    run<double>(call);
  else
    run<float>(call);
}

}  // namespace npkernels::NPK_ISA
