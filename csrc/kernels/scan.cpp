// Returns and advantages along time, from the end of each sequence to its beginning:
//   R_t = r_t + gamma R_{t+1}                      or, with values V,
//   A_t = d_t + gamma lam A_{t+1},  d_t = r_t + gamma V_{t+1} - V_t,  R_t = A_t + V_t
//
// Each step waits for the one before it, so kTogether sequences go side by side, a piece of kPiece tokens at
// a time:
//   pass 1   d_t and the factor of what follows, along the sequence
//   pass 2   the recursion, all sequences in one loop
//   pass 3   results, along the sequence
// Pieces are counted from the end, so that sequences of different lengths begin together. A masked place has
// d = 0 and factor 1: the recursion passes over it.
#include "grpo_call.h"
#include "kernels.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int kTogether = 8, kPiece = 128;

template <class T>
class Scan {
 public:
  explicit Scan(const ScanCall& call) : call_(call), plain_(!call.mask && !call.dones) {}

  void run() const {
    parallel((call_.sequences + kTogether - 1) / kTogether, [&](int64_t task) {
      const int64_t first = task * kTogether;
      run_together(first, static_cast<int>(smaller<int64_t>(kTogether, call_.sequences - first)));
    });
  }

 private:
  struct Tile {
    T d[kTogether][kPiece], factor[kTogether][kPiece];
  };

  void run_together(int64_t first, int rows) const {
    alignas(64) Tile tile;
    T carry[kTogether] = {}, next[kTogether] = {},
      factor[kTogether] = {};  // A_{t+1} (or R), V_{t+1}, gamma lam
    int64_t longest = 0;
    for (int r = 0; r < rows; ++r) {
      const int64_t s = first + r;
      longest = larger(longest, call_.begin(s + 1) - call_.begin(s));
      (call_.values ? next : carry)[r] = T(call_.last[s]);
      factor[r] = T(call_.gamma[s] * (call_.values ? call_.lam[s] : 1.0));
    }
    for (int r = 0; r < kTogether; ++r)  // what is not filled below is computed with, and not used
      for (int j = 0; j < kPiece; ++j) tile.d[r][j] = tile.factor[r][j] = 0;
    for (int64_t done = 0; done < longest; done += kPiece) {
      for (int r = 0; r < rows; ++r) prepare(first + r, done, tile, r, next[r], factor[r]);
      if (plain_)
        recur_plain(tile, carry, factor);
      else
        recur(tile, carry);
      for (int r = 0; r < rows; ++r) finish(first + r, done, tile, r);
    }
  }

  // The tokens of a sequence that a piece holds: n of them from `start`, at the right end of the tile's row.
  struct Piece {
    int64_t start;
    int n;
  };
  Piece piece(int64_t s, int64_t done) const {
    const int64_t begin = call_.begin(s), left = call_.begin(s + 1) - begin - done;
    const int n = static_cast<int>(left > kPiece ? kPiece : left > 0 ? left : 0);
    return {begin + (left > 0 ? left - n : 0), n};
  }

  void prepare(int64_t s, int64_t done, Tile& tile, int row, T& next, T factor) const {
    const Piece p = piece(s, done);
    const T* r = static_cast<const T*>(call_.rewards) + p.start;
    const T* v = call_.values ? static_cast<const T*>(call_.values) + p.start : nullptr;
    T* d = tile.d[row] + kPiece - p.n;
    if (p.n == 0) return;
    fetch(s, done + kPiece, static_cast<const T*>(call_.rewards));
    if (v) fetch(s, done + kPiece, static_cast<const T*>(call_.values));
    const T gamma = T(call_.gamma[s]);
    if (!plain_) return prepare_masked(p, r, v, d, tile.factor[row] + kPiece - p.n, gamma, factor, next);
    if (!v) {
      for (int j = 0; j < p.n; j += kLanes<T>) store_upto(d + j, load_upto(r + j, p.n - j, T(0)), p.n - j);
      return;
    }
    const Vec<T> g = splat(gamma);
    for (int j = 0; j < p.n - 1; j += kLanes<T>) {
      const int n = p.n - 1 - j;
      const Vec<T> following = load_upto(v + j + 1, n, T(0));
      store_upto(d + j, load_upto(r + j, n, T(0)) + g * following - load_upto(v + j, n, T(0)), n);
    }
    d[p.n - 1] = r[p.n - 1] + gamma * next - v[p.n - 1];
    next = v[0];
  }

  // Asks for a piece that comes later: the processor does not expect an array to be read backwards.
  void fetch(int64_t s, int64_t done, const T* array) const {
    const Piece p = piece(s, done);
    for (int j = 0; j < p.n; j += 64 / int(sizeof(T))) prefetch(array + p.start + j);
  }

  void prepare_masked(Piece p, const T* r, const T* v, T* d, T* factors, T gamma, T factor, T& next) const {
    for (int j = p.n - 1; j >= 0; --j) {
      const bool kept = !call_.mask || call_.mask[p.start + j];
      const bool ends = call_.dones && call_.dones[p.start + j];
      factors[j] = !kept ? T(1) : ends ? T(0) : factor;
      d[j] = !kept ? T(0) : !v ? r[j] : r[j] + (ends ? T(0) : gamma * next) - v[j];
      if (kept && v) next = v[j];
    }
  }

  static void recur_plain(Tile& tile, T* carry, const T* factor) {
    T a[kTogether], f[kTogether];
    for (int r = 0; r < kTogether; ++r) {
      a[r] = carry[r];
      f[r] = factor[r];
    }
    for (int j = kPiece - 1; j >= 0; --j)
#pragma GCC unroll 8
      for (int r = 0; r < kTogether; ++r) tile.d[r][j] = a[r] = tile.d[r][j] + f[r] * a[r];
    for (int r = 0; r < kTogether; ++r) carry[r] = a[r];
  }

  static void recur(Tile& tile, T* carry) {
    for (int j = kPiece - 1; j >= 0; --j)
#pragma GCC unroll 8
      for (int r = 0; r < kTogether; ++r) {
        const T f = tile.factor[r][j], d = tile.d[r][j];
        tile.d[r][j] = carry[r] = f == 0 ? d : d + f * carry[r];  // 0 also of what is infinite behind an end
      }
  }

  void finish(int64_t s, int64_t done, const Tile& tile, int row) const {
    const Piece p = piece(s, done);
    const T* a = tile.d[row] + kPiece - p.n;
    const T* v = call_.values ? static_cast<const T*>(call_.values) + p.start : nullptr;
    T* advantages = call_.advantages ? static_cast<T*>(call_.advantages) + p.start : nullptr;
    T* returns = static_cast<T*>(call_.returns) + p.start;
    for (int j = 0; j < p.n; j += kLanes<T>) {
      const Vec<T> sum = load_upto(a + j, p.n - j, T(0));
      if (advantages) store_upto(advantages + j, sum, p.n - j);
      store_upto(returns + j, v ? sum + load_upto(v + j, p.n - j, T(0)) : sum, p.n - j);
    }
    if (!call_.mask) return;
    for (int j = 0; j < p.n; ++j) {
      if (call_.mask[p.start + j]) continue;
      returns[j] = 0;
      if (advantages) advantages[j] = 0;
    }
  }

  const ScanCall& call_;
  const bool plain_;
};

}  // namespace

void scan(const ScanCall& call) {
  if (call.dtype == DType::float64)
    Scan<double>(call).run();
  else
    Scan<float>(call).run();
}

}  // namespace npkernels::NPK_ISA
