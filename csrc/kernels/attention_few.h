// Decoding: a block of few query rows, which would leave most lanes idle if they lay across them. Here the
// entries of a head lie across the lanes instead, and a tile of scores lies row by row:
//   q (rows, D)   s (rows, tile)   o (rows, Dv), unnormalised
// Every key and value is read once for all rows, and the time is that of the memory, which is fastest where
// it is read in the order in which it lies: while some rows are worked on, later ones are fetched line by
// line.
#pragma once

#include "attention_online.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int kFew = kLanes<float> / 2;  // rows up to which a block is one of few

template <class T>
class FewRows {
 public:
  struct Scratch {
    T *q, *s, *lanes, *room, *o, *m, *l, *nan;  // lanes: a tile of scores as attention_block.h has them
  };

  FewRows(const AttentionCall& call, const Block<T>& block, const Scratch& scratch)
      : call_(call),
        block_(block),
        s_(scratch),
        q_pitch_(padded<T>(call.dim)),
        o_pitch_(padded<T>(call.value_dim)) {}

  void load_queries() const {
    for (int r = 0; r < block_.rows; ++r)
      widen_padded(block_.row(call_.q, r), call_.dtype, call_.dim, s_.q + r * q_pitch_);
  }

  void clear() const { memset(s_.o, 0, static_cast<size_t>(block_.rows * o_pitch_) * sizeof(T)); }

  // Rows that lie one pitch apart, as far as they go.
  struct Rows {
    const T* at;
    int64_t pitch, count;
    const T* row(int64_t i) const { return at + i * pitch; }
  };

  // Adds keys first .. first+n-1, which k and v begin with.
  void add(int64_t first, int n, const Need& need, const Rows& k, const Rows& v, bool careful) const {
    dot(k, n);
    const T factor = adjust(first, n, need);
    if (careful) collect_nan(n);
    weigh(n, factor, careful);
    if (call_.drop_below) drop(first, n);
    if (careful || call_.value_dim % kLanes<T>)
      add_careful(v, n, careful);
    else
      add_values(v, n);
  }

  // o = o / l. False if it is not finite.
  bool normalise() const {
    Vec<T> spoilt = splat(T(0));
    for (int r = 0; r < block_.rows; ++r) {
      const Vec<T> inverse = splat(s_.l[r] == 0 ? T(0) : 1 / s_.l[r]);
      each_register(r, [&](Vec<T> o) {
        const Vec<T> y = o * inverse;
        spoilt = spoilt + (y - y);
        return y;
      });
    }
    return count(equal(spoilt, splat(T(0)))) == kLanes<T>;
  }

  T* row(int r) const { return s_.o + r * o_pitch_; }

 private:
  static constexpr int kLine = larger(1, 64 / int(sizeof(Vec<T>)));  // registers

  // Fetches rows of n entries line by line in their order, some rows before they are needed, but not what
  // lies behind the last: fetching from a page that is not there takes long.
  class Ahead {
   public:
    Ahead(const Rows& rows, int64_t n) : pitch_(rows.pitch), n_(n) {
      const int64_t first = smaller(kAhead, rows.count - 1);
      left_ = rows.count - 1 - first;
      at_ = rows.row(first);
      if (pitch_ == n_) n_ *= left_ + 1, left_ = 0;  // they are one long row
      end_ = at_ + n_;
    }

    template <int kLines>
    void fetch() {
#pragma GCC unroll 16
      for (int i = 0; i < kLines; ++i) prefetch(at_ + i * kEntries);
      at_ += kLines * kEntries;
      if (at_ >= end_) next();
    }

   private:
    static constexpr int64_t kAhead = 8, kEntries = kLine * kLanes<T>;

    void next() {
      if (left_ > 0) --left_, end_ += pitch_;
      at_ = end_ - n_;
    }

    const T *at_, *end_;
    int64_t pitch_, left_, n_;
  };

  // Calls f(Count<J>, Count<R>, Bool<r == 0>, j, r) for all n keys and the block's rows: kOne keys at a time
  // with one row, kTwo with two, which read a key once for both.
  template <int kOne, int kTwo, class F>
  void tiles(int n, F f) const {
    int j = 0;
    const auto all_rows = [&](auto keys) {
      if (block_.rows == 1) return f(keys, Count<1>{}, Bool<true>{}, j, 0);
      f(keys, Count<2>{}, Bool<true>{}, j, 0);
      int r = 2;
      for (; r + 2 <= block_.rows; r += 2) f(keys, Count<2>{}, Bool<false>{}, j, r);
      if (r < block_.rows) f(keys, Count<1>{}, Bool<false>{}, j, r);
    };
    if (block_.rows == 1)
      for (; j + kOne <= n; j += kOne) f(Count<kOne>{}, Count<1>{}, Bool<true>{}, j, 0);
    for (; j + kTwo <= n; j += kTwo) all_rows(Count<kTwo>{});
    for (; j < n; ++j) all_rows(Count<1>{});
  }

  // s = q k^T, of so many keys at a time that their sums fill registers.
  void dot(const Rows& k, int n) const {
    constexpr int kOne = larger(4, kLanes<T>), kTwo = larger(4, kLanes<T> / 2);
    const bool whole = call_.dim % (kLine * kLanes<T>) == 0;
    Ahead ahead(k, call_.dim);
    tiles<kOne, kTwo>(n, [&](auto keys, auto rows, auto fetch, int j, int r) {
      constexpr int J = decltype(keys)::value, R = decltype(rows)::value;
      constexpr bool kFetch = decltype(fetch)::value;
      if (whole)
        dot_tile<J, R, kFetch, true>(k.row(j), k.pitch, r, s_.s + j, ahead);
      else
        dot_tile<J, R, kFetch, false>(k.row(j), k.pitch, r, s_.s + j, ahead);
    });
  }

  template <int J, int R, bool kFetch, bool kWhole>
  void dot_tile(const T* k, int64_t pitch, int first, T* s, Ahead& ahead) const {
    Vec<T> acc[R * J];
#pragma GCC unroll 16
    for (int i = 0; i < R * J; ++i) acc[i] = splat(T(0));
    for (int64_t line = 0; line < call_.dim; line += kLine * kLanes<T>) {
#pragma GCC unroll 4
      for (int u = 0; u < kLine; ++u) {
        const int64_t d = line + u * kLanes<T>;
        if (!kWhole && d >= call_.dim) break;
        if (kFetch) ahead.template fetch<(J + kLine - 1) / kLine>();
        Vec<T> q[R];
        for (int r = 0; r < R; ++r) q[r] = load(s_.q + (first + r) * q_pitch_ + d);
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) {
          const T* const at = k + j * pitch + d;
          const Vec<T> key = held(kWhole ? load(at) : load_upto(at, call_.dim - d, T(0)));
          for (int r = 0; r < R; ++r) acc[r * J + j] = fma(key, q[r], acc[r * J + j]);
        }
      }
    }
    alignas(64) T sums[R * J];
    if constexpr (R * J % kLanes<T> == 0) {
      for (int i = 0; i < R * J; i += kLanes<T>) {
        Vec<T> part[kLanes<T>];
        for (int lane = 0; lane < kLanes<T>; ++lane) part[lane] = acc[i + lane];
        store(sums + i, sum_each(part));
      }
    } else {
      for (int i = 0; i < R * J; ++i) sums[i] = static_cast<T>(sum_lanes(acc[i]));
    }
    for (int r = 0; r < R; ++r) memcpy(s + (first + r) * kKeys, sums + r * J, J * sizeof(T));
  }

  // As Block::adjust, which wants the rows across the lanes.
  T adjust(int64_t first, int n, const Need& need) const {
    if (block_.plain() && !need.interval && !need.mask) return static_cast<T>(call_.scale);
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < kLanes<T>; ++i)
        s_.lanes[j * kGroup<T> + i] = s_.s[smaller(i, block_.rows - 1) * kKeys + j];
    const T factor = block_.template adjust<1>(block_.group[0], first, n, need, s_.lanes, s_.room, nullptr);
    each_score(n, [&](T* s, int r, int j) { *s = s_.lanes[j * kGroup<T> + r]; });
    return factor;
  }

  void collect_nan(int n) const {
    each_score(n, [&](T* s, int r, int) {
      if (*s != *s) s_.nan[r] = *s;
    });
  }

  void drop(int64_t first, int n) const {
    block_.draw(block_.group[0], first, n, s_.room);
    each_score(n, [&](T* s, int r, int j) {
      const T keep = s_.room[j * kGroup<T> + r];
      *s = keep == 0 ? 0 : *s * keep;
    });
  }

  // Scores become weights exp(factor s - m), which are added to l.
  void weigh(int n, T factor, bool careful) const {
    const int registers = static_cast<int>(padded<T>(n) / kLanes<T>);
    alignas(64) T top[kLanes<T>], shift[kLanes<T>], shrink[kLanes<T>];
    for (int r = 0; r < block_.rows; ++r) {
      T* const s = s_.s + r * kKeys;
      for (int j = n; j < registers * kLanes<T>; ++j) s[j] = T(-INFINITY);
      Vec<T> most = splat(T(-INFINITY));
      for (int j = 0; j < registers; ++j) most = max_of(load(s + j * kLanes<T>), most);
      top[r] = factor * max_lane(most);
    }
    for (int r = block_.rows; r < kLanes<T>; ++r) top[r] = top[block_.rows - 1];
    const Vec<T> tops[] = {load(top)};
    const Raised<1, T> raised = raise<1>(tops, careful, s_.m);
    store(shift, raised.shift[0]);
    store(shrink, raised.shrink[0]);
    const bool rounds = factor != 1 && large<1, T>(raised.shift);
    for (int r = 0; r < block_.rows; ++r) {
      T* const s = s_.s + r * kKeys;
      if (rounds)
        for (int j = 0; j < registers; ++j)
          store(s + j * kLanes<T>, rounded_score<T>(load(s + j * kLanes<T>), factor));
      const Vec<T> shifts[] = {splat(shift[r])};
      Vec<T> sum = splat(T(0));
      each_weight<1, false>(registers, s, int64_t(kLanes<T>), splat(rounds ? T(1) : factor), shifts,
                            [&](Vec<T> p, int j, int) {
                              sum = sum + p;
                              store(s + j * kLanes<T>, p);
                            });
      s_.l[r] = s_.l[r] * shrink[r] + static_cast<T>(sum_lanes(sum));
      if (raised.rescale) each_register(r, [&](Vec<T> o) { return o * splat(shrink[r]); });
    }
  }

  // o += s v.
  void add_values(const Rows& v, int n) const {
    Ahead ahead(v, call_.value_dim);
    tiles<4, 4>(n, [&](auto keys, auto rows, auto fetch, int j, int r) {
      add_tile<decltype(keys)::value, decltype(rows)::value, decltype(fetch)::value>(v.row(j), v.pitch, r,
                                                                                     s_.s + j, ahead);
    });
  }

  // Two registers of each row go together, since a sum waits for the one before it.
  template <int J, int R, bool kFetch>
  void add_tile(const T* v, int64_t pitch, int first, const T* s, Ahead& ahead) const {
    T* const o = row(first);
    Vec<T> p[J][R];
    for (int j = 0; j < J; ++j)
      for (int r = 0; r < R; ++r) p[j][r] = splat(s[(first + r) * kKeys + j]);
    int64_t d = 0;
    const auto columns = [&](auto width) {
      constexpr int U = decltype(width)::value;
      for (; d + U * kLanes<T> <= call_.value_dim; d += U * kLanes<T>) {
        if (kFetch) ahead.template fetch<(J * U + kLine - 1) / kLine>();
        Vec<T> acc[R][U];
        for (int r = 0; r < R; ++r)
          for (int u = 0; u < U; ++u) acc[r][u] = load(o + r * o_pitch_ + d + u * kLanes<T>);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j)
          for (int u = 0; u < U; ++u) {
            const Vec<T> value = held(load(v + j * pitch + d + u * kLanes<T>));
            for (int r = 0; r < R; ++r) acc[r][u] = fma(p[j][r], value, acc[r][u]);
          }
        for (int r = 0; r < R; ++r)
          for (int u = 0; u < U; ++u) store(o + r * o_pitch_ + d + u * kLanes<T>, acc[r][u]);
      }
    };
    columns(Count<2>{});
    columns(Count<1>{});
  }

  void add_careful(const Rows& v, int n, bool careful) const {
    for (int r = 0; r < block_.rows; ++r)
      for (int64_t d = 0; d < call_.value_dim; d += kLanes<T>) {
        Vec<T> acc = load(row(r) + d);
        for (int j = 0; j < n; ++j) {
          const T p = s_.s[r * kKeys + j];
          if (careful && p == 0) continue;
          acc = fma(splat(p), load_upto(v.row(j) + d, call_.value_dim - d, T(0)), acc);
        }
        store(row(r) + d, acc);
      }
  }

  // f(address, r, j) of every score.
  template <class F>
  void each_score(int n, F f) const {
    for (int r = 0; r < block_.rows; ++r)
      for (int j = 0; j < n; ++j) f(s_.s + r * kKeys + j, r, j);
  }

  // o = f(o) of row r, register by register.
  template <class F>
  void each_register(int r, F f) const {
    for (int64_t d = 0; d < o_pitch_; d += kLanes<T>) store(row(r) + d, f(load(row(r) + d)));
  }

  const AttentionCall& call_;
  const Block<T>& block_;
  const Scratch s_;
  const int64_t q_pitch_, o_pitch_;
};

}  // namespace
}  // namespace npkernels::NPK_ISA
