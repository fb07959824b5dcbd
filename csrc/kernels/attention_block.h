// A block of query rows, which lie across the lanes of registers, and what becomes of their scores.
//
//   rows r = s * G + g     query s of head g of the group that shares a key head; lane r of the block
//   groups                 up to kMostAcross registers of lanes, which go through the products together
//   begin[r] .. end[r]-1   the keys that the query of lane r may see by its position: causal, window and
//   length are
//                          all one interval
//
// Scores: scale -> softcap -> bias, ALiBi -> interval, mask.
#pragma once

#include <math.h>

#include "attention_rows.h"
#include "attention_tile.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
constexpr int kBlock = 384 / sizeof(T);  // lanes of a block: whole groups for every register width
template <class T>
constexpr int kGroup = kMostAcross * kLanes<T>;  // lanes of a group
constexpr int kKeys = 128;                       // keys of a tile

// Lanes lane .. lane + regs * kLanes - 1 of a block.
struct Group {
  int lane, regs;
};

// What a tile of scores needs before its softmax.
struct Need {
  bool nothing = false;  // no pair is allowed
  bool interval = false, mask = false;
};

// Calls f(Count<N>) for the number of registers of a group.
template <class F>
inline void with_registers(int regs, F f) {
  if (regs == 1) return f(Count<1>{});
  if (regs == 2) return f(Count<2>{});
  if constexpr (kMostAcross == 3) f(Count<3>{});
}

template <class T>
class Block {
 public:
  const AttentionCall& call;
  const Sequence& sequence;
  const int64_t kv_head, first;
  const int rows;
  int groups = 0;
  Group group[kBlock<T> / kLanes<T>];
  int64_t query[kBlock<T>], head[kBlock<T>];  // of each lane
  int64_t begin[kBlock<T>], end[kBlock<T>];
  int64_t lowest, highest;  // of begin and end

  Block(const AttentionCall& c, const AttentionTask& task)
      : call(c),
        sequence(c.sequences[task.sequence]),
        kv_head(task.kv_head),
        first(task.first),
        rows(static_cast<int>(task.rows)),
        entry_(task.sequence) {
    plain_ = !(c.softcap > 0) && !c.bias.data && !c.slopes && c.scale > 0;
    const int registers = static_cast<int>((rows + kLanes<T> - 1) / kLanes<T>);
    groups = (registers + kMostAcross - 1) / kMostAcross;
    for (int g = 0, lane = 0; g < groups; ++g) {
      const int regs = (registers - lane / kLanes<T> + groups - g - 1) / (groups - g);
      group[g] = {lane, regs};
      lane += regs * kLanes<T>;
    }
    int64_t s = first / c.group, g = first % c.group;
    lowest = task.end, highest = task.begin;
    for (int r = 0; r < registers * kLanes<T>; ++r) {
      query[r] = s;
      head[r] = kv_head * c.group + g;
      const int64_t position = s + sequence.offset;
      int64_t from = c.left >= 0 ? position - c.left : 0, to = sequence.keys;
      if (c.causal) to = smaller(to, position + 1);
      if (c.right >= 0) to = smaller(to, position + c.right + 1);
      begin[r] = larger(task.begin, from);
      end[r] = smaller(task.end, to);
      lowest = smaller(lowest, begin[r]);
      highest = larger(highest, end[r]);
      if (r < rows - 1 && ++g == c.group) g = 0, ++s;  // idle lanes repeat the last row
    }
    if (c.drop_below) number_rows();
  }

  // Whether scores only have to be multiplied by the scale, which the softmax does itself.
  bool plain() const { return plain_; }

  // The keys of [from, to) that some lane of the group may see by its position.
  void clip(const Group& g, int64_t* from, int64_t* to) const {
    int64_t low = begin[g.lane], high = end[g.lane];
    for (int r = g.lane + 1; r < g.lane + g.regs * kLanes<T>; ++r)
      low = smaller(low, begin[r]), high = larger(high, end[r]);
    *from = larger(*from, low);
    *to = smaller(*to, high);
  }

  Need need(const Group& g, int64_t from, int64_t to) const {
    Need need;
    for (int r = g.lane; r < g.lane + g.regs * kLanes<T> && !need.interval; ++r)
      need.interval = begin[r] > from || end[r] < to;
    if (!call.mask.data) return need;
    bool some = false, every = true;
    const char* before = nullptr;
    for (int r = g.lane; r < smaller(g.lane + g.regs * kLanes<T>, rows) && (every || !some); ++r) {
      const char* mask = pair(call.mask, r, from);
      if (mask == before) continue;
      before = mask;
      const int64_t step = call.mask.stride[3], n = to - from;
      int64_t allowed = 0;
      if (step == 1)
        for (int64_t j = 0; j < n; ++j) allowed += mask[j] != 0;
      else
        for (int64_t j = 0; j < n; ++j) allowed += mask[j * step] != 0;
      some = some || allowed > 0;
      every = every && allowed == n;
    }
    need.nothing = !some;
    need.mask = !every;
    return need;
  }

  // Turns products q k of keys from .. from+n-1 into scores, -inf where not allowed. Returns what they still
  // have to be multiplied by. `derivative` of a score with respect to the scaled product, if wanted. `room`:
  // two tiles.
  template <int N>
  T adjust(const Group& g, int64_t from, int n, const Need& need, T* st, T* room, T* derivative) const {
    T factor = static_cast<T>(call.scale);
    if (!plain_) {
      if (call.softcap > 0)
        cap<N>(n, st, derivative);
      else
        each<N>(n, st, [&](Vec<T> s, int, int) { return s * splat(factor); });
      factor = 1;
      if (call.bias.data) add_bias<N>(g, from, n, st, room);
      if (call.slopes) add_alibi<N>(g, from, n, st);
    }
    if (need.interval) keep_interval<N>(g, from, n, st);
    if (need.mask) keep_mask<N>(g, from, n, st, room);
    return factor;
  }

  // keep[j][lane] = 0 where dropout drops the weight of key from+j, else what kept ones are multiplied by.
  void draw(const Group& g, int64_t from, int n, T* keep) const {
    const T scale = static_cast<T>(call.keep_scale);
    const int lanes = g.regs * kLanes<T>;
    for (int j = 0; j < n; ++j) {
      const uint32_t key = static_cast<uint32_t>(from + j);
      for (int r = 0; r < lanes; ++r) {
        const uint32_t x = mix(mix(key ^ drop_xor_[g.lane + r]) + drop_add_[g.lane + r]);
        keep[j * kGroup<T> + r] = x < call.drop_below ? T(0) : scale;
      }
    }
  }

  // Row of q, out or what has their shape.
  static char* row_of_lane(const HeadArray& a, const Block& b, int r) {
    return a.data + b.sequence.batch * a.batch + b.head[r] * a.head +
           (b.sequence.q_first + b.query[r]) * a.row;
  }
  char* row(const HeadArray& a, int r) const { return row_of_lane(a, *this, r); }
  // Where lane r's entry is in arrays like lse.
  int64_t index(int r) const {
    return (sequence.batch * call.kv_heads * call.group + head[r]) * call.lse_rows + sequence.q_first +
           query[r];
  }

  // to[d][lane] = row of lane, d < n; room: kLanes rows of n padded. For U = Pair, d counts pairs.
  template <class U>
  void load_transposed(const HeadArray& a, int64_t n, U* to, T* room) const {
    static_assert(sizeof(U) == sizeof(T), "a transpose moves units of one size");
    const int lanes = group[groups - 1].lane + group[groups - 1].regs * kLanes<T>;
    const int64_t pitch = padded<T>(n);
    for (int r = 0; r < lanes; r += kLanes<T>) {
      for (int i = 0; i < kLanes<T>; ++i) {
        const char* const from = row(a, smaller(r + i, rows - 1));
        if constexpr (kIsPair<U>)
          copy_pairs(from, n, room + i * pitch);
        else
          widen(from, call.dtype, n, room + i * pitch);
      }
      transpose(room, pitch, reinterpret_cast<T*>(to) + r, int64_t(kBlock<T>), int64_t(kLanes<T>),
                units<U>(n));
    }
  }

  // Rows of `a` = from[d][lane]; room as above.
  void store_transposed(const T* from, int64_t n, const HeadArray& a, T* room) const {
    const int64_t pitch = padded<T>(n);
    for (int r = 0; r < rows; r += kLanes<T>) {
      transpose(from + r, int64_t(kBlock<T>), room, pitch, n, int64_t(kLanes<T>));
      for (int i = 0; i < kLanes<T> && r + i < rows; ++i)
        narrow(room + i * pitch, n, call.dtype, row(a, r + i));
    }
  }

  // f(score, j, n) of every register of a tile.
  template <int N, class F>
  static void each(int tile, T* st, F f) {
    for (int j = 0; j < tile; ++j)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        T* s = st + j * kGroup<T> + n * kLanes<T>;
        store(s, f(load(s), j, n));
      }
  }

 private:
  int64_t entry_;  // of the batch, or the number of the sequence
  bool plain_;
  uint32_t drop_xor_[kBlock<T>], drop_add_[kBlock<T>];

  const char* pair(const PairArray& a, int r, int64_t key) const {
    return a.data + sequence.batch * a.stride[0] + head[r] * a.stride[1] + query[r] * a.stride[2] +
           key * a.stride[3];
  }

  template <int N>
  void cap(int n, T* st, T* derivative) const {
    const Vec<T> top = splat(static_cast<T>(call.softcap)),
                 inner = splat(static_cast<T>(call.scale / call.softcap));
    each<N>(n, st, [&](Vec<T> s, int j, int i) {
      const Tanh<T> t(s * inner);
      if (derivative) store(derivative + j * kGroup<T> + i * kLanes<T>, t.slope);
      return t.value * top;
    });
  }

  // One row per lane of something per pair, as numbers: rows[lane][j]. False if it is the same row for all
  // lanes, of which only the first is given then.
  bool lane_rows(const PairArray& a, DType dtype, const Group& g, int64_t from, int n, T* to) const {
    const int lanes = g.regs * kLanes<T>;
    bool differ = false;
    for (int r = 1; r < lanes && !differ; ++r) differ = pair(a, g.lane + r, from) != pair(a, g.lane, from);
    for (int r = 0; r < (differ ? lanes : 1); ++r) {
      const char* p = pair(a, g.lane + r, from);
      T* row = to + r * kKeys;
      if (a.stride[3] == item_size(dtype)) {
        widen(p, dtype, n, row);
      } else {
        for (int j = 0; j < n; ++j) widen(p + j * a.stride[3], dtype, 1, row + j);
      }
    }
    return differ;
  }

  template <int N>
  void add_bias(const Group& g, int64_t from, int n, T* st, T* room) const {
    if (!lane_rows(call.bias, call.dtype, g, from, n, room))
      return each<N>(n, st, [&](Vec<T> s, int j, int) { return s + splat(room[j]); });
    T* bias = room + kKeys * kGroup<T>;
    transpose(room, int64_t(kKeys), bias, int64_t(kGroup<T>), int64_t(N * kLanes<T>), int64_t(n));
    each<N>(n, st, [&](Vec<T> s, int j, int i) { return s + load(bias + j * kGroup<T> + i * kLanes<T>); });
  }

  template <int N>
  void add_alibi(const Group& g, int64_t from, int n, T* st) const {
    alignas(64) T slope[kGroup<T>], ahead[kGroup<T>];  // of the query before key `from`
    for (int r = 0; r < N * kLanes<T>; ++r) {
      const char* p = static_cast<const char*>(call.slopes) + entry_ * call.slope_stride[0] +
                      head[g.lane + r] * call.slope_stride[1];
      memcpy(&slope[r], p, sizeof(T));
      ahead[r] = static_cast<T>(query[g.lane + r] + sequence.offset - from);
    }
    each<N>(n, st, [&](Vec<T> s, int j, int i) {
      const Vec<T> apart = load(ahead + i * kLanes<T>) - splat(static_cast<T>(j));
      return fma(splat(T(0)) - load(slope + i * kLanes<T>), magnitude<T>(apart), s);
    });
  }

  template <int N>
  void keep_interval(const Group& g, int64_t from, int n, T* st) const {
    alignas(64) T low[kGroup<T>], high[kGroup<T>];
    for (int r = 0; r < N * kLanes<T>; ++r) {
      low[r] = static_cast<T>(smaller<int64_t>(kKeys, larger<int64_t>(0, begin[g.lane + r] - from)));
      high[r] = static_cast<T>(smaller<int64_t>(kKeys, larger<int64_t>(0, end[g.lane + r] - from)));
    }
    const Vec<T> never = splat(T(-INFINITY));
    each<N>(n, st, [&](Vec<T> s, int j, int i) {
      const Vec<T> key = splat(static_cast<T>(j));
      const Vec<T> below = select(greater(load(high + i * kLanes<T>), key), s, never);
      return select(greater(load(low + i * kLanes<T>), key), never, below);
    });
  }

  template <int N>
  void keep_mask(const Group& g, int64_t from, int n, T* st, T* room) const {
    const Vec<T> never = splat(T(-INFINITY)), zero = splat(T(0));
    if (!lane_rows(call.mask, DType::boolean, g, from, n, room))
      return each<N>(n, st, [&](Vec<T> s, int j, int) { return room[j] == 0 ? never : s; });
    T* mask = room + kKeys * kGroup<T>;
    transpose(room, int64_t(kKeys), mask, int64_t(kGroup<T>), int64_t(N * kLanes<T>), int64_t(n));
    each<N>(n, st, [&](Vec<T> s, int j, int i) {
      return select(equal(load(mask + j * kGroup<T> + i * kLanes<T>), zero), never, s);
    });
  }

  // lowbias32 (C. Wellons, "Prospecting for hash functions", 2018).
  static uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
  }

  // Each row's two random words: splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom
  // number generators", 2014) of its number.
  void number_rows() {
    for (int r = 0; r < group[groups - 1].lane + group[groups - 1].regs * kLanes<T>; ++r) {
      uint64_t z = call.dropout_seed + static_cast<uint64_t>(index(r) + 1) * 0x9e3779b97f4a7c15u;
      z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
      z = (z ^ z >> 27) * 0x94d049bb133111ebu;
      z ^= z >> 31;
      drop_xor_[r] = static_cast<uint32_t>(z);
      drop_add_[r] = static_cast<uint32_t>(z >> 32);
    }
  }
};

}  // namespace
}  // namespace npkernels::NPK_ISA
