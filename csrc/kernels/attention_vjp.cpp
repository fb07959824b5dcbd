// Gradients of attention. With P the weights, rebuilt from the scores and the lse that the forward pass left,
// and delta = rowsum(dout * out) - dlse:
//   dv = P^T dout,  dP = dout v^T,  dS = P o (dP - delta),  dq = scale dS k,  dk = scale dS^T q,  dbias = dS
// (Dao et al. 2022, appendix B.4), with the derivative of softcap between dS and dq, dk.
//
// Letters as in attention.cpp. A task is a run of query rows of one key head; it owns sums for all its keys.
// For each block of queries and each tile of keys
//   1. per group of lanes: st = k qt, dp = v dot, then p and ds, which go to tiles as wide as the block
//   2. dqt += k^T ds
//   3. dk += ds q, dv += p dout: here the entries of a head lie across the lanes
// A pair whose weight is zero adds nothing to any sum: tiles with an entry that is not finite choose by
// weight.
#include <math.h>

#include "attention_online.h"
#include "kernels.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int kBackKeys = 64;  // keys of a tile

template <class T>
struct BackScratch {
  T *qt, *dot, *q, *dout, *dqt, *k, *v, *k_pairs, *v_pairs, *st, *dp, *slope, *room, *p, *ds, *lse, *delta,
      *dk, *dv;
  int64_t bytes;

  BackScratch(char* memory, const AttentionVjpCall& call) {
    T* next = reinterpret_cast<T*>(memory);
    const auto take = [&](int64_t n) {
      T* const taken = next;
      next += (n + 15) / 16 * 16;
      return taken;
    };
    const int64_t dim = padded<T>(call.dim), value_dim = padded<T>(call.value_dim);
    qt = take(dim * kBlock<T>);
    dot = take(value_dim * kBlock<T>);
    q = take(dim * kBlock<T>);
    dout = take(value_dim * kBlock<T>);
    dqt = take(dim * kBlock<T>);
    k = take(kBackKeys * dim);
    v = take(kBackKeys * value_dim);
    k_pairs = take(by_pairs<T>(call.dtype) ? kBackKeys * units<Pair>(dim) : 0);
    v_pairs = take(by_pairs<T>(call.dtype) ? kBackKeys * units<Pair>(value_dim) : 0);
    st = take(kBackKeys * kGroup<T>);
    dp = take(kBackKeys * kGroup<T>);
    slope = take(kBackKeys * kGroup<T>);
    room = take(larger(2 * int64_t(kKeys) * kGroup<T>, larger(dim, value_dim) * kLanes<T>));
    p = take(kBackKeys * kBlock<T>);
    ds = take(kBackKeys * kBlock<T>);
    lse = take(kBlock<T>);
    delta = take(kBlock<T>);
    const bool own = !call.part_dk;
    dk = take(own ? call.slot_keys * dim : 0);
    dv = take(own ? call.slot_keys * value_dim : 0);
    bytes = reinterpret_cast<char*>(next) - memory;
  }
};

template <class T>
bool finite(const T* p, int64_t rows, int64_t n, int64_t pitch) {
  constexpr int kRows = 4;  // whose sums do not wait for each other
  Vec<T> spoilt[kRows];
  for (int u = 0; u < kRows; ++u) spoilt[u] = splat(T(0));
  for (int64_t i = 0; i < rows; i += kRows)
    for (int64_t d = 0; d < n; d += kLanes<T>)
#pragma GCC unroll 4
      for (int u = 0; u < kRows; ++u) {
        const Vec<T> x = load_upto(p + smaller(i + u, rows - 1) * pitch + d, n - d, T(0));
        spoilt[u] = spoilt[u] + (x - x);
      }
  const Vec<T> all = (spoilt[0] + spoilt[1]) + (spoilt[2] + spoilt[3]);
  return count(equal(all, splat(T(0)))) == kLanes<T>;
}

// A block of queries on its way back: what both sweeps over its tiles need.
template <class T>
class BackBlock {
 public:
  const Block<T> block;

  // ds with respect to the products q k, or, for the bias, to the scores behind softcap.
  BackBlock(const AttentionVjpCall& call, const AttentionTask& task, const BackScratch<T>& s,
            bool of_products)
      : block(call, task),
        capped_(of_products && call.softcap > 0),
        call_(call),
        s_(s),
        k_(call.k, block.sequence, task.kv_head, call.dim),
        v_(call.v, block.sequence, task.kv_head, call.value_dim),
        pairs_(by_pairs<T>(call.dtype)) {
    const bool q_finite = load_rows(call.q, call.dim, s.q, s.qt);
    const bool dout_finite = load_rows(call.dout, call.value_dim, s.dout, s.dot);
    finite_ = q_finite && dout_finite;
    for (int r = 0; r < lanes(); ++r) {
      const T lse = static_cast<const T*>(call.lse)[block.index(r)];
      s.lse[r] =
          lse == T(-INFINITY) ? T(INFINITY) : lse;  // a row with nothing to attend to: exp(s - inf) = 0
      s.delta[r] = static_cast<const T*>(call.delta)[block.index(r)];
    }
  }

  int lanes() const {
    return block.group[block.groups - 1].lane + block.group[block.groups - 1].regs * kLanes<T>;
  }

  // Calls f(from, n, careful) for the tiles in which some pair is allowed, with their p and ds at hand.
  // `each_group` is called for the groups with such pairs: (Count<N>, group, first, n, careful).
  template <class EachGroup, class F>
  void tiles(EachGroup each_group, F f) {
    for (int64_t from = block.lowest; from < block.highest; from += kBackKeys) {
      const int n = static_cast<int>(smaller<int64_t>(kBackKeys, block.highest - from));
      bool any = false;
      for (int g = 0; g < block.groups; ++g) {
        const Group& group = block.group[g];
        int64_t first = from, end = from + n;
        block.clip(group, &first, &end);
        const Need need = first < end ? block.need(group, first, end) : Need{true};
        if (need.nothing) {
          empty(group, 0, n);
          continue;
        }
        if (!any) bring(from, n);
        any = true;
        empty(group, 0, static_cast<int>(first - from));
        empty(group, static_cast<int>(end - from), n);
        with_registers(group.regs, [&](auto count) {
          constexpr int N = decltype(count)::value;
          const int at = static_cast<int>(first - from), pairs = static_cast<int>(end - first);
          this->template differentiate<N>(group, first, pairs, need, at);
          each_group(count, group, at, pairs);
        });
      }
      if (any) f(from, n);
    }
  }

  bool careful() const { return !finite_ || !tile_finite_; }
  const T* k() const { return k_rows_; }
  int64_t k_pitch() const { return k_pitch_; }

 private:
  bool load_rows(const HeadArray& a, int64_t n, T* rows, T* transposed) const {
    const int64_t pitch = padded<T>(n);
    for (int r = 0; r < block.rows; ++r) widen_padded(block.row(a, r), call_.dtype, n, rows + r * pitch);
    if constexpr (kByPairs<T>)
      if (pairs_) block.load_transposed(a, n, reinterpret_cast<Pair*>(transposed), s_.room);
    if (!pairs_) block.load_transposed(a, n, transposed, s_.room);
    return finite(rows, block.rows, n, pitch);
  }

  void bring(int64_t from, int n) {
    k_rows_ = k_.rows(from, n, s_.k, &k_pitch_);
    v_rows_ = v_.rows(from, n, s_.v, &v_pitch_);
    if (pairs_) {
      k_pairs_ = k_.rows(from, n, reinterpret_cast<Pair*>(s_.k_pairs), &k_pair_pitch_);
      v_pairs_ = v_.rows(from, n, reinterpret_cast<Pair*>(s_.v_pairs), &v_pair_pitch_);
    }
    tile_finite_ = finite(k_rows_, n, call_.dim, k_pitch_) && finite(v_rows_, n, call_.value_dim, v_pitch_);
  }

  // p = ds = 0 for keys first .. end-1 of the tile.
  void empty(const Group& group, int first, int end) const {
    for (int j = first; j < end; ++j)
      for (int i = 0; i < group.regs * kLanes<T>; i += kLanes<T>) {
        store(s_.p + j * kBlock<T> + group.lane + i, splat(T(0)));
        store(s_.ds + j * kBlock<T> + group.lane + i, splat(T(0)));
      }
  }

  // to = n rows of keys or values times what lies across the lanes, in units of theirs.
  template <int N, class U>
  static void product(const U* rows, int64_t pitch, const T* across, int n, int64_t dim, T* to) {
    multiply<N, Lies::by_rows, false>(rows, pitch, reinterpret_cast<const U*>(across), int64_t(kBlock<T>),
                                      int64_t(n), units<U>(dim), to, int64_t(kGroup<T>));
  }

  // p and ds of n keys from `first` on, which is key `at` of the tile.
  template <int N>
  void differentiate(const Group& group, int64_t first, int n, const Need& need, int at) {
    if constexpr (kByPairs<T>)
      if (pairs_) {
        product<N>(k_pairs_ + at * k_pair_pitch_, k_pair_pitch_, s_.qt + group.lane, n, call_.dim, s_.st);
        product<N>(v_pairs_ + at * v_pair_pitch_, v_pair_pitch_, s_.dot + group.lane, n, call_.value_dim,
                   s_.dp);
      }
    if (!pairs_) {
      product<N>(k_rows_ + at * k_pitch_, k_pitch_, s_.qt + group.lane, n, call_.dim, s_.st);
      product<N>(v_rows_ + at * v_pitch_, v_pitch_, s_.dot + group.lane, n, call_.value_dim, s_.dp);
    }
    const T factor =
        block.template adjust<N>(group, first, n, need, s_.st, s_.room, capped_ ? s_.slope : nullptr);
    if (call_.drop_below) block.draw(group, first, n, s_.room);
    const Vec<T> zero = splat(T(0)), never = splat(T(-INFINITY));
    Vec<T> lse[N], delta[N];
    for (int i = 0; i < N; ++i) {
      lse[i] = load(s_.lse + group.lane + i * kLanes<T>);
      delta[i] = load(s_.delta + group.lane + i * kLanes<T>);
    }
    const Vec<T> scale = splat(round_large<N>(lse, n, factor, s_.st));
    each_weight<N, true>(n, s_.st, int64_t(kGroup<T>), scale, lse, [&](Vec<T> weight, int j, int i) {
      const int64_t in = j * kGroup<T> + i * kLanes<T>,
                    to = (at + j) * kBlock<T> + group.lane + i * kLanes<T>;
      const Vec<T> p = select(equal(load(s_.st + in), never), zero, weight);  // also where lse is NaN
      const Vec<T> keep = call_.drop_below ? load(s_.room + in) : splat(T(1));
      const Vec<T> slope = capped_ ? load(s_.slope + in) : splat(T(1));
      const Vec<T> dp = load(s_.dp + in);
      const Vec<T> ds = p * ((call_.drop_below ? kept<T>(dp, keep) : dp) - delta[i]) * slope;
      store(s_.p + to, call_.drop_below ? kept<T>(p, keep) : p);
      store(s_.ds + to, select(equal(p, zero), zero, select(equal(slope, zero), zero, ds)));
    });
  }

  const bool capped_;
  const AttentionVjpCall& call_;
  const BackScratch<T>& s_;
  KeyRows<T> k_, v_;
  const bool pairs_;
  bool finite_ = true, tile_finite_ = true;
  const T *k_rows_ = nullptr, *v_rows_ = nullptr;
  int64_t k_pitch_ = 0, v_pitch_ = 0;
  const Pair *k_pairs_ = nullptr, *v_pairs_ = nullptr;
  int64_t k_pair_pitch_ = 0, v_pair_pitch_ = 0;
};

// Calls f(task of one block) for the blocks that the rows of a task are cut into.
template <class T, class F>
void each_block(const AttentionTask& task, F f) {
  const int64_t blocks = (task.rows + kBlock<T> - 1) / kBlock<T>;
  for (int64_t b = 0; b < blocks; ++b) {
    AttentionTask one = task;
    one.first = task.first + task.rows * b / blocks;
    one.rows = task.first + task.rows * (b + 1) / blocks - one.first;
    f(one);
  }
}

template <class T>
class Backward {
 public:
  Backward(const AttentionVjpCall& call, const AttentionTask& task, const BackScratch<T>& scratch)
      : call_(call),
        task_(task),
        sequence_(call.sequences[task.sequence]),
        s_(scratch),
        dim_(padded<T>(call.dim)),
        value_dim_(padded<T>(call.value_dim)) {
    if (call.part_dk) {
      dk_ = reinterpret_cast<T*>(call.part_dk) + task.slot * call.slot_keys * dim_;
      dv_ = reinterpret_cast<T*>(call.part_dv) + task.slot * call.slot_keys * value_dim_;
    } else {
      dk_ = s_.dk, dv_ = s_.dv;
    }
  }

  void run() {
    memset(dk_, 0, static_cast<size_t>(sequence_.keys * dim_) * sizeof(T));
    memset(dv_, 0, static_cast<size_t>(sequence_.keys * value_dim_) * sizeof(T));
    each_block<T>(task_, [&](const AttentionTask& one) { run_block(one); });
    if (!call_.part_dk) write_keys();
  }

 private:
  void run_block(const AttentionTask& one) {
    BackBlock<T> back(call_, one, s_, true);
    memset(s_.dqt, 0, static_cast<size_t>(call_.dim * kBlock<T>) * sizeof(T));
    back.tiles(
        [&](auto count, const Group& group, int at, int n) {
          constexpr int N = decltype(count)::value;
          const T *const k = back.k() + at * back.k_pitch(), *const ds = s_.ds + at * kBlock<T> + group.lane;
          if (back.careful())
            multiply_careful<N, Lies::by_steps>(k, back.k_pitch(), ds, int64_t(kBlock<T>), call_.dim,
                                                int64_t(n), s_.dqt + group.lane, int64_t(kBlock<T>));
          else
            multiply<N, Lies::by_steps, true>(k, back.k_pitch(), ds, int64_t(kBlock<T>), call_.dim,
                                              int64_t(n), s_.dqt + group.lane, int64_t(kBlock<T>));
        },
        [&](int64_t from, int n) {
          const auto add = [&](const T* weights, const T* rows, int64_t pitch, T* sums) {
            if (back.careful())
              multiply_wide_careful<Lies::by_rows>(weights, int64_t(kBlock<T>), rows, pitch, int64_t(n),
                                                   int64_t(back.block.rows), sums + from * pitch, pitch,
                                                   pitch / kLanes<T>);
            else
              multiply_wide<Lies::by_rows, true>(weights, int64_t(kBlock<T>), rows, pitch, int64_t(n),
                                                 int64_t(back.block.rows), sums + from * pitch, pitch,
                                                 pitch / kLanes<T>);
          };
          add(s_.ds, s_.q, dim_, dk_);
          add(s_.p, s_.dout, value_dim_, dv_);
        });
    const Vec<T> scale = splat(static_cast<T>(call_.scale));
    for (int64_t d = 0; d < call_.dim; ++d)
      for (int r = 0; r < back.lanes(); r += kLanes<T>)
        store(s_.dqt + d * kBlock<T> + r, load(s_.dqt + d * kBlock<T> + r) * scale);
    back.block.store_transposed(s_.dqt, call_.dim, call_.dq, s_.room);
  }

  void write_keys() {
    for (int64_t j = 0; j < sequence_.keys; ++j) {
      for (int64_t d = 0; d < dim_; ++d) dk_[j * dim_ + d] *= static_cast<T>(call_.scale);
      narrow(dk_ + j * dim_, call_.dim, call_.dtype, key_row(call_.dk, j));
      narrow(dv_ + j * value_dim_, call_.value_dim, call_.dtype, key_row(call_.dv, j));
    }
  }

  char* key_row(const HeadArray& a, int64_t j) const {
    return a.data + sequence_.batch * a.batch + task_.kv_head * a.head + (sequence_.k_first + j) * a.row;
  }

  const AttentionVjpCall& call_;
  const AttentionTask& task_;
  const Sequence& sequence_;
  const BackScratch<T>& s_;
  int64_t dim_, value_dim_;
  T *dk_, *dv_;
};

// dk and dv are the sums of what the chunks of queries gave, in their order.
template <class T>
void sum_chunks(const AttentionVjpCall& call, const AttentionTask& first_chunk) {
  const Sequence& sequence = call.sequences[first_chunk.sequence];
  const auto sum = [&](char* parts, int64_t n, T scale, const HeadArray& to) {
    const int64_t pitch = padded<T>(n), slot = call.slot_keys * pitch;
    T* const total = reinterpret_cast<T*>(parts) + first_chunk.slot * slot;
    for (int64_t j = 0; j < sequence.keys; ++j) {
      T* const row = total + j * pitch;
      for (int64_t d = 0; d < pitch; d += kLanes<T>) {
        Vec<T> acc = load(row + d);
        for (int64_t c = 1; c < call.chunks; ++c) acc = acc + load(row + c * slot + d);
        store(row + d, acc * splat(scale));
      }
      narrow(row, n, call.dtype,
             to.data + sequence.batch * to.batch + first_chunk.kv_head * to.head +
                 (sequence.k_first + j) * to.row);
    }
  };
  sum(call.part_dk, call.dim, static_cast<T>(call.scale), call.dk);
  sum(call.part_dv, call.value_dim, T(1), call.dv);
}

// delta of the rows of a block.
template <class T>
void find_delta(const AttentionVjpCall& call, const AttentionTask& task, const BackScratch<T>& s) {
  const Block<T> block(call, task);
  for (int r = 0; r < block.rows; ++r) {
    widen(block.row(call.dout, r), call.dtype, call.value_dim, s.dout);
    widen(block.row(call.out, r), call.dtype, call.value_dim, s.dot);
    const double dot = sum_of<T>(static_cast<int>(call.value_dim), [&](int i, Vec<T> acc) {
      return fma(load_upto(s.dout + i, call.value_dim - i, T(0)),
                 load_upto(s.dot + i, call.value_dim - i, T(0)), acc);
    });
    const double less = call.dlse ? static_cast<const T*>(call.dlse)[block.index(r)] : 0;
    static_cast<T*>(call.delta)[block.index(r)] = static_cast<T>(dot - less);
  }
}

// The sum of n numbers that lie `step` apart, in eight sums that are added at the end.
template <class T>
double sum_apart(const T* p, int n, int step) {
  double sums[8] = {};
  for (int i = 0; i < n; ++i) sums[i % 8] += p[i * step];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// dbias += ds over everything that the task does not fix (-1): what shares an entry of the bias is in one
// task.
template <class T>
void add_bias_gradient(const AttentionVjpCall& call, const AttentionTask& task, const BackScratch<T>& s) {
  const auto range = [](int64_t fixed, int64_t all, auto f) {
    for (int64_t i = fixed < 0 ? 0 : fixed; i < (fixed < 0 ? all : fixed + 1); ++i) f(i);
  };
  range(task.sequence, call.sequence_count, [&](int64_t sequence) {
    range(task.kv_head, call.kv_heads, [&](int64_t head) {
      AttentionTask part = task;
      part.sequence = sequence;
      part.kv_head = head;
      part.end = smaller(task.end, call.sequences[sequence].keys);
      each_block<T>(part, [&](const AttentionTask& one) {
        BackBlock<T> back(call, one, s, false);
        const Block<T>& block = back.block;
        const auto at = [&](int r, int64_t key) -> double& {
          return *reinterpret_cast<double*>(
              const_cast<char*>(call.dbias.data) + block.sequence.batch * call.dbias.stride[0] +
              block.head[r] * call.dbias.stride[1] + block.query[r] * call.dbias.stride[2] +
              key * call.dbias.stride[3]);
        };
        back.tiles([](auto, const Group&, int, int) {},
                   [&](int64_t from, int n) {
                     if (call.dbias.stride[3] == 0) {
                       for (int r = 0; r < block.rows; ++r) at(r, 0) += sum_apart(s.ds + r, n, kBlock<T>);
                     } else if (call.dbias.stride[2] == 0 && (call.dbias.stride[1] == 0 || call.group == 1)) {
                       for (int j = 0; j < n; ++j)
                         at(0, from + j) += sum_apart(s.ds + j * kBlock<T>, block.rows, 1);
                     } else {
                       for (int r = 0; r < block.rows; ++r)
                         for (int j = 0; j < n; ++j) at(r, from + j) += s.ds[j * kBlock<T> + r];
                     }
                   });
      });
    });
  });
}

template <class T, class F>
void on_workers(const AttentionVjpCall& call, F f) {
  struct Context {
    const AttentionVjpCall& call;
    F& f;
  } context{call, f};
  parallel_tasks(
      call.task_count, call.workers,
      [](void* self, int64_t task, int worker) {
        const Context& c = *static_cast<const Context*>(self);
        const BackScratch<T> scratch(c.call.scratch + worker * c.call.scratch_bytes, c.call);
        c.f(c.call.tasks[task], scratch);
      },
      &context);
}

template <class T>
void run(const AttentionVjpCall& call, VjpStep step) {
  on_workers<T>(call, [&](const AttentionTask& task, const BackScratch<T>& scratch) {
    switch (step) {
      case VjpStep::delta:
        return find_delta<T>(call, task, scratch);
      case VjpStep::gradients:
        return Backward<T>(call, task, scratch).run();
      case VjpStep::chunks:
        return sum_chunks<T>(call, task);
      case VjpStep::bias:
        return add_bias_gradient<T>(call, task, scratch);
    }
  });
}

}  // namespace

int64_t attention_vjp_scratch(const AttentionVjpCall& call) {
  return call.dtype == DType::float64 ? BackScratch<double>(nullptr, call).bytes
                                      : BackScratch<float>(nullptr, call).bytes;
}

void attention_vjp(const AttentionVjpCall& call, VjpStep step) {
  if (call.dtype == DType::float64)
    run<double>(call, step);
  else
    run<float>(call, step);
}

}  // namespace npkernels::NPK_ISA
