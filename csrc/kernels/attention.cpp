// Tiled attention: out = softmax(scale q k^T + bias) v without ever holding more than a tile of scores.
//
// Letters: S queries, K keys, D head size, Dv value head size, G query heads that share one key/value head.
// The G * S query rows of one key/value head are taken in blocks, row r = s * G + g, so that neighbours share
// their keys. Queries lie across the lanes of a register, everything else runs over registers and memory:
//   qt  (D, block)      the block's queries, transposed once
//   st  (tile, block)   scores of a tile of keys, then their weights
//   ot  (Dv, block)     the output, transposed, unnormalised
// so the maximum and sum over keys are lane-wise, keys and values are read where they lie (as broadcast
// scalars), and nothing is packed. For each tile of keys
//   1. st = k qt                                 (multiply<D>)
//   2. scale, bias, masks                        (only where the tile needs them)
//   3. m = max(m, st); st = exp(st - m); l += sum; ot *= exp(m before - m)    (online softmax)
//   4. ot += v^T st                              (multiply_add)
// and at the end out = ot^T / l, lse = m + log(l).
// A weight of zero must contribute nothing even if its value is inf or NaN: a block whose output is not
// finite is done again with step 4 choosing by weight (`careful`).
#include <math.h>

#include "kernels.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int kBlockRegs = kRegisters >= 32 || kHasFma ? 3 : 2;  // registers across a block of queries
constexpr int kTileRows = kRegisters >= 32 ? 8 : 4;  // rows of the register tile: 8 x 3, 4 x 3 or 4 x 2
constexpr int64_t kTerms = 16;                       // terms of a score added one after another
constexpr int kKeys = 128;                           // keys of a tile

template <class T>
constexpr int kBlock = kBlockRegs * kLanes<T>;

// The scratch of one worker.
template <class T>
struct Scratch {
  T *qt, *st, *ot, *extra;
  int64_t bytes;

  Scratch(char* memory, int64_t dim, int64_t value_dim) {
    T* p = reinterpret_cast<T*>(memory);
    qt = p;
    st = qt + dim * kBlock<T>;
    ot = st + kKeys * kBlock<T>;
    extra = ot + value_dim * kBlock<T>;
    bytes = (dim + value_dim + 2 * kKeys) * kBlock<T> * int64_t(sizeof(T));
  }
};

// The block of queries that a task works on, and what each lane needs to know of its query.
template <class T>
struct Block {
  int64_t batch, kv_head, first, rows;  // rows first .. first+rows-1 of the G * S
  int regs;                             // registers in use
  int64_t low, high;                    // key positions of the first and last query
  int64_t position[kBlock<T>];
  const char *mask[kBlock<T>], *bias[kBlock<T>];
};

// acc[m][n] = sum over i of a[m * a_row + i * a_step] * b[i * kBlock + n]: M scalars by N registers in
// 'steps' steps.
template <int M, int N, bool kAccumulate, class T>
inline void multiply_tile(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t steps, T* c) {
  Vec<T> acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = splat(T(0));
  for (int64_t i = 0; i < steps; ++i) {
    Vec<T> bn[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) bn[n] = load(b + i * kBlock<T> + n * kLanes<T>);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec<T> am = splat(a[m * a_row + i * a_step]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = fma(am, bn[n], acc[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      T* to = c + m * kBlock<T> + n * kLanes<T>;
      store(to, kAccumulate ? load(to) + acc[m][n] : acc[m][n]);
    }
}

// c (rows, block) = or += a (rows, steps) b (steps, block), a by its strides.
template <int N, bool kAccumulate, class T>
inline void multiply(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t rows, int64_t steps,
                     T* c) {
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows)
    multiply_tile<kTileRows, N, kAccumulate>(a + m * a_row, a_row, a_step, b, steps, c + m * kBlock<T>);
  if (kTileRows > 4 && m + 4 <= rows) {
    multiply_tile<4, N, kAccumulate>(a + m * a_row, a_row, a_step, b, steps, c + m * kBlock<T>);
    m += 4;
  }
  for (; m < rows; ++m)
    multiply_tile<1, N, kAccumulate>(a + m * a_row, a_row, a_step, b, steps, c + m * kBlock<T>);
}

// ot += v^T st, where a weight of zero leaves its lane alone.
template <int N, class T>
inline void multiply_add_careful(const T* v, int64_t v_row, const T* st, int64_t keys, int64_t value_dim,
                                 T* ot) {
  const Vec<T> zero = splat(T(0));
  for (int64_t j = 0; j < keys; ++j)
    for (int n = 0; n < N; ++n) {
      const Vec<T> p = load(st + j * kBlock<T> + n * kLanes<T>);
      const Mask<T> none = equal(p, zero);
      for (int64_t d = 0; d < value_dim; ++d) {
        T* o = ot + d * kBlock<T> + n * kLanes<T>;
        store(o, select(none, load(o), fma(splat(v[j * v_row + d]), p, load(o))));
      }
    }
}

template <class T>
class Attention {
 public:
  explicit Attention(const AttentionCall& call) : call_(call) {}

  void run() const {
    const int64_t rows = call_.queries * call_.group;
    const int64_t blocks = (rows + kBlock<T> - 1) / kBlock<T>;
    const int64_t tasks = call_.batch * call_.kv_heads * blocks;
    parallel_tasks(
        tasks, call_.workers,
        [](void* self, int64_t task, int worker) {
          static_cast<const Attention*>(self)->run_task(task, worker);
        },
        const_cast<Attention*>(this));
  }

 private:
  // Blocks of one head follow each other so that its keys stay in cache; late blocks first, causal ones are
  // the longest.
  void run_task(int64_t task, int worker) const {
    const int64_t rows = call_.queries * call_.group;
    const int64_t blocks = (rows + kBlock<T> - 1) / kBlock<T>;
    Block<T> block;
    const int64_t head = task / blocks;
    block.batch = head / call_.kv_heads;
    block.kv_head = head % call_.kv_heads;
    block.first = (blocks - 1 - task % blocks) * kBlock<T>;
    block.rows = smaller<int64_t>(kBlock<T>, rows - block.first);
    block.regs = static_cast<int>((block.rows + kLanes<T> - 1) / kLanes<T>);
    place(block);

    Scratch<T> scratch(call_.scratch + worker * call_.scratch_bytes, call_.dim, call_.value_dim);
    transpose_queries(block, scratch.qt);
    if (!attend(block, scratch, false)) attend(block, scratch, true);
  }

  void place(Block<T>& block) const {
    const int64_t offset = call_.offset ? call_.offset[block.batch] : 0;
    for (int r = 0; r < kBlock<T>; ++r) {
      const int64_t row =
          block.first + smaller<int64_t>(r, block.rows - 1);  // idle lanes repeat the last row
      const int64_t s = row / call_.group, head = block.kv_head * call_.group + row % call_.group;
      block.position[r] = s + offset;
      block.mask[r] = call_.mask + block.batch * call_.mask_stride[0] + head * call_.mask_stride[1] +
                      s * call_.mask_stride[2];
      block.bias[r] = call_.bias + block.batch * call_.bias_stride[0] + head * call_.bias_stride[1] +
                      s * call_.bias_stride[2];
    }
    block.low = block.position[0];
    block.high = block.position[kBlock<T> - 1];
  }

  const T* query(const Block<T>& block, int64_t r) const {
    const int64_t s = (block.first + r) / call_.group, g = (block.first + r) % call_.group;
    return reinterpret_cast<const T*>(call_.q + block.batch * call_.q_stride[0] +
                                      (block.kv_head * call_.group + g) * call_.q_stride[1] +
                                      s * call_.q_stride[2]);
  }

  void transpose_queries(const Block<T>& block, T* qt) const {
    const int lanes = block.regs * kLanes<T>;
    for (int r = 0; r < lanes; ++r) {
      const T* q = query(block, smaller<int64_t>(r, block.rows - 1));
      for (int64_t d = 0; d < call_.dim; ++d) qt[d * kBlock<T> + r] = q[d];
    }
  }

  // False if the output is not finite and a value may have met a weight of zero: to be done again carefully.
  bool attend(const Block<T>& block, const Scratch<T>& scratch, bool careful) const {
    switch (block.regs) {
      case 1:
        return attend_regs<1>(block, scratch, careful);
      case 2:
        return attend_regs<2>(block, scratch, careful);
      default:
        return attend_regs<kBlockRegs>(block, scratch, careful);
    }
  }

  template <int N>
  bool attend_regs(const Block<T>& block, const Scratch<T>& scratch, bool careful) const {
    const int64_t keys = call_.causal ? larger<int64_t>(0, smaller(call_.keys, block.high + 1)) : call_.keys;
    const int64_t k_row = call_.k_stride[2] / int64_t(sizeof(T)),
                  v_row = call_.v_stride[2] / int64_t(sizeof(T));
    const T* k = reinterpret_cast<const T*>(call_.k + block.batch * call_.k_stride[0] +
                                            block.kv_head * call_.k_stride[1]);
    const T* v = reinterpret_cast<const T*>(call_.v + block.batch * call_.v_stride[0] +
                                            block.kv_head * call_.v_stride[1]);
    T *st = scratch.st, *ot = scratch.ot;
    Vec<T> m[N], l[N], nan[N];
    for (int n = 0; n < N; ++n) m[n] = splat(T(-INFINITY)), l[n] = splat(T(0)), nan[n] = splat(T(0));
    for (int64_t d = 0; d < call_.value_dim; ++d)
      for (int n = 0; n < N; ++n) store(ot + d * kBlock<T> + n * kLanes<T>, splat(T(0)));

    for (int64_t first = 0; first < keys; first += kKeys) {
      const int tile = static_cast<int>(smaller<int64_t>(kKeys, keys - first));
      const Need need = classify(block, first, tile);
      if (need == Need::nothing) continue;
      multiply_scores<N>(k + first * k_row, k_row, scratch.qt, tile, st);
      T scale = static_cast<T>(call_.scale);
      if (need == Need::masking || call_.bias || !(scale > 0)) {
        transform<N>(block, first, tile, need == Need::masking, scratch.extra, st);
        scale = 1;
      }
      if (careful) collect_nan<N>(tile, st, nan);
      online_softmax<N>(tile, scale, st, m, l, ot);
      if (careful)
        multiply_add_careful<N>(v + first * v_row, v_row, st, tile, call_.value_dim, ot);
      else
        multiply<N, true>(v + first * v_row, 1, v_row, st, call_.value_dim, tile, ot);
    }
    return finish<N>(block, m, l, nan, ot, careful);
  }

  // st = k qt, the sum over D in pieces so that its rounding does not grow with D.
  template <int N>
  void multiply_scores(const T* k, int64_t k_row, const T* qt, int tile, T* st) const {
    multiply<N, false>(k, k_row, 1, qt, tile, smaller(call_.dim, kTerms), st);
    for (int64_t d = kTerms; d < call_.dim; d += kTerms)
      multiply<N, true>(k + d, k_row, 1, qt + d * kBlock<T>, tile, smaller(call_.dim - d, kTerms), st);
  }

  enum class Need { nothing, all, masking };

  // Which pairs of the tile are allowed: none, all, or some.
  Need classify(const Block<T>& block, int64_t first, int tile) const {
    const bool causal_mixed = call_.causal && block.low < first + tile - 1;
    if (!call_.mask) return causal_mixed ? Need::masking : Need::all;
    bool some = false, every = true;
    for (int r = 0; r < block.rows && (every || !some); ++r) {
      if (r > 0 && block.mask[r] == block.mask[r - 1]) continue;
      const char* mask = block.mask[r] + first * call_.mask_stride[3];
      int64_t allowed = 0;
      if (call_.mask_stride[3] == 1)
        for (int j = 0; j < tile; ++j) allowed += mask[j] != 0;
      else
        for (int j = 0; j < tile; ++j) allowed += mask[j * call_.mask_stride[3]] != 0;
      some = some || allowed > 0;
      every = every && allowed == tile;
    }
    if (!some) return Need::nothing;
    return every && !causal_mixed ? Need::all : Need::masking;
  }

  // st = scale st + bias, then -inf where not allowed.
  template <int N>
  void transform(const Block<T>& block, int64_t first, int tile, bool masking, T* extra, T* st) const {
    const Vec<T> scale = splat(static_cast<T>(call_.scale)), never = splat(T(-INFINITY)), zero = splat(T(0));
    if (call_.bias) {
      for (int r = 0; r < N * kLanes<T>; ++r)
        for (int j = 0; j < tile; ++j)
          memcpy(extra + j * kBlock<T> + r, block.bias[r] + (first + j) * call_.bias_stride[3], sizeof(T));
    }
    for (int j = 0; j < tile; ++j)
      for (int n = 0; n < N; ++n) {
        T* s = st + j * kBlock<T> + n * kLanes<T>;
        store(s, fma(scale, load(s), call_.bias ? load(extra + j * kBlock<T> + n * kLanes<T>) : zero));
      }
    if (!masking) return;
    if (call_.mask) {
      for (int r = 0; r < N * kLanes<T>; ++r)
        for (int j = 0; j < tile; ++j)
          if (!block.mask[r][(first + j) * call_.mask_stride[3]]) st[j * kBlock<T> + r] = T(-INFINITY);
    }
    if (call_.causal) {
      alignas(64) T last[kBlock<T>];  // the last allowed key of each lane, counted from the tile's first
      for (int r = 0; r < N * kLanes<T>; ++r)
        last[r] = static_cast<T>(smaller<int64_t>(kKeys, larger<int64_t>(-1, block.position[r] - first)));
      for (int j = 0; j < tile; ++j)
        for (int n = 0; n < N; ++n) {
          T* s = st + j * kBlock<T> + n * kLanes<T>;
          store(s, select(greater(splat(static_cast<T>(j)), load(last + n * kLanes<T>)), never, load(s)));
        }
    }
  }

  // Raises m to the tile's maximum, turns scores into weights exp(scale st - m), adds them to l, rescales
  // what is there.
  template <int N>
  void online_softmax(int tile, T scale, T* st, Vec<T>* m, Vec<T>* l, T* ot) const {
    const Vec<T> lowest = splat(T(-INFINITY)), zero = splat(T(0)), one = splat(T(1)), factor = splat(scale);
    Vec<T> top[N], shift[N], sum[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) top[n] = lowest, sum[n] = zero;
    for (int j = 0; j < tile; ++j)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) top[n] = max_of(load(st + j * kBlock<T> + n * kLanes<T>), top[n]);
    bool rescale = false;
    Vec<T> shrink[N];
    for (int n = 0; n < N; ++n) {
      const Vec<T> raised = max_of(top[n] * factor, m[n]);
      shift[n] = select(equal(raised, lowest), zero, raised);  // nothing allowed yet: exp(-inf - 0) = 0
      shrink[n] = exp_negative<T>(m[n] - shift[n]);
      rescale = rescale || any(greater(one, shrink[n]));
      m[n] = raised;
    }
    for (int j = 0; j < tile; ++j)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        T* s = st + j * kBlock<T> + n * kLanes<T>;
        const Vec<T> p = exp_any<T>(fma(factor, load(s), zero - shift[n]));
        sum[n] = sum[n] + p;
        store(s, p);
      }
    for (int n = 0; n < N; ++n) l[n] = fma(l[n], shrink[n], sum[n]);
    if (!rescale) return;
    for (int64_t d = 0; d < call_.value_dim; ++d)
      for (int n = 0; n < N; ++n) {
        T* o = ot + d * kBlock<T> + n * kLanes<T>;
        store(o, load(o) * shrink[n]);
      }
  }

  // nan = NaN in the lanes that have a NaN among their scores.
  template <int N>
  void collect_nan(int tile, const T* st, Vec<T>* nan) const {
    for (int j = 0; j < tile; ++j)
      for (int n = 0; n < N; ++n) {
        const Vec<T> s = load(st + j * kBlock<T> + n * kLanes<T>);
        nan[n] = select(not_nan(s), nan[n], s);
      }
  }

  // out = ot^T / l, lse = m + log(l). With a score of +inf the sum is NaN (inf - inf) but lse is +inf, unless
  // there is a NaN.
  template <int N>
  bool finish(const Block<T>& block, const Vec<T>* m, const Vec<T>* l, const Vec<T>* nan, T* ot,
              bool careful) const {
    const Vec<T> zero = splat(T(0)), one = splat(T(1));
    Vec<T> inverse[N], spoilt[N];
    for (int n = 0; n < N; ++n) {
      inverse[n] = select(equal(l[n], zero), zero, one / l[n]);
      spoilt[n] = zero;
    }
    for (int64_t d = 0; d < call_.value_dim; ++d)
      for (int n = 0; n < N; ++n) {
        T* o = ot + d * kBlock<T> + n * kLanes<T>;
        const Vec<T> y = load(o) * inverse[n];
        spoilt[n] = spoilt[n] + (y - y);  // 0, or NaN if y is not finite
        store(o, y);
      }
    bool finite = true;
    for (int n = 0; n < N; ++n) finite = finite && count(equal(spoilt[n], zero)) == kLanes<T>;
    if (!finite && !careful) return false;

    alignas(64) T top[kBlock<T>], sum[kBlock<T>], spoil[kBlock<T>];
    for (int n = 0; n < N; ++n) {
      store(top + n * kLanes<T>, m[n]);
      store(sum + n * kLanes<T>, l[n]);
      store(spoil + n * kLanes<T>, nan[n]);
    }
    for (int r = 0; r < block.rows; ++r) {
      const int64_t s = (block.first + r) / call_.group;
      const int64_t head = block.kv_head * call_.group + (block.first + r) % call_.group;
      T* out = reinterpret_cast<T*>(call_.out + block.batch * call_.out_stride[0] +
                                    head * call_.out_stride[1] + s * call_.out_stride[2]);
      for (int64_t d = 0; d < call_.value_dim; ++d) out[d] = ot[d * kBlock<T> + r];
      if (call_.lse) {
        const int64_t heads = call_.kv_heads * call_.group;
        T lse = static_cast<T>(double(top[r]) + ::log(double(sum[r])));
        if (sum[r] == 0) lse = T(-INFINITY);
        if (top[r] == T(INFINITY)) lse = top[r] + spoil[r];
        static_cast<T*>(call_.lse)[(block.batch * heads + head) * call_.queries + s] = lse;
      }
    }
    return true;
  }

  const AttentionCall& call_;
};

}  // namespace

int64_t attention_scratch(const AttentionCall& call) {
  if (call.dtype == DType::float64) return Scratch<double>(nullptr, call.dim, call.value_dim).bytes;
  return Scratch<float>(nullptr, call.dim, call.value_dim).bytes;
}

int64_t attention_tasks(const AttentionCall& call) {
  const int64_t block = call.dtype == DType::float64 ? kBlock<double> : kBlock<float>;
  return call.batch * call.kv_heads * ((call.queries * call.group + block - 1) / block);
}

void attention(const AttentionCall& call) {
  if (call.dtype == DType::float64)
    Attention<double>(call).run();
  else
    Attention<float>(call).run();
}

}  // namespace npkernels::NPK_ISA
