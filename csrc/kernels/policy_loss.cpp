// Policy losses and their gradients with respect to logp, sequence by sequence.
//
//   loss = sum over kept tokens of  w (c l(rho, A) + beta kl(ref - logp))
//
// Letters: rho = exp(logp - old), of the token or, at sequence level, of the mean over the sequence; A
// advantage; c correction between sampler and trainer; n kept tokens of a sequence; w = w(n) the weight of
// the aggregation.
//
//   pass 0   n of every sequence, then w
//   pass 1   (only if needed) the sums over a sequence that rho or c is made of
//   pass 2   (a piece at a time: exponentials first) loss, metrics, and dlogp = w (c dl/dlogp + beta
//   dkl/dlogp) pass 3   (sequence level) dlogp += w / n * sum c dl/dlog rho
//
// What stands in masked places is replaced by 0 as it is read.
#include "policy_terms.h"

#include "kernels.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int kPiece = 512;  // tokens between two additions in double
// Tokens whose terms are added first; of double a register, since there is no wider type to join them in.
template <class T>
constexpr int kGroup = sizeof(T) == sizeof(double) ? kLanes<double> : 64;
constexpr int kTogether = 2;  // registers that go through the terms of a KL estimate together
template <class T>
constexpr int kAtOnce = kTogether * kLanes<T>;
constexpr int64_t kTaskTokens = 8192;  // tokens per task, in whole sequences

template <class T, template <class> class Surrogate>
class Policy {
  using V = Vec<T>;

 public:
  explicit Policy(const PolicyCall& call) : call_(call), o_(call.options), k_(call.options) {}

  void run() const {
    const int64_t mean_length = call_.tokens() / larger<int64_t>(1, call_.sequences);
    const int64_t per_task = larger<int64_t>(1, kTaskTokens / larger<int64_t>(1, mean_length));
    parallel((call_.sequences + per_task - 1) / per_task, [&](int64_t task) {
      const int64_t end = smaller(call_.sequences, (task + 1) * per_task);
      for (int64_t s = task * per_task; s < end; ++s) run_sequence(s);
    });
  }

 private:
  const T* at(const void* p, int64_t token) const { return p ? static_cast<const T*>(p) + token : nullptr; }

  // What the passes need of one sequence.
  struct Sequence {
    const T *logp, *old, *ref, *sampler, *entropy, *A;
    const uint8_t* mask;
    T* grad;
    int64_t length;
    T one_A, rho, c, w;
    double exact_rho, exact_c;  // of the whole sequence, before rounding
    bool whole;  // whether rho and A are those of the sequence: then the sums need no rounded terms
  };

  void run_sequence(int64_t s) const {
    const int64_t first = call_.begin(s), kept = call_.counts[s];
    Sequence q{};
    q.length = call_.begin(s + 1) - first;
    q.logp = at(call_.logp, first);
    q.old = at(call_.old_logp, first);
    q.ref = at(call_.ref_logp, first);
    q.sampler = at(call_.sampler_logp, first);
    q.entropy = at(call_.entropy, first);
    q.mask = call_.mask ? call_.mask + first : nullptr;
    q.grad = call_.dlogp ? static_cast<T*>(call_.dlogp) + first : nullptr;
    if (call_.per_token)
      q.A = at(call_.advantages, first);
    else
      q.one_A = at(call_.advantages, 0)[s];
    q.w = T(call_.weights[s]);
    q.c = q.rho = 1;
    q.exact_c = q.exact_rho = 1;
    q.whole = o_.sequence_level && !q.A && !(q.sampler && !o_.importance_of_sequence);
    double* sums = call_.sums + s * kSums;
    for (int i = 0; i < kSums; ++i) sums[i] = 0;
    if (kept == 0) {
      for (int64_t t = 0; q.grad && t < q.length; ++t) q.grad[t] = 0;
      return;
    }
    if (o_.sequence_level || (q.sampler && o_.importance_of_sequence)) gather(q, kept);
    losses(q, kept, sums);
    if (q.grad && o_.sequence_level) spread(q, T(double(q.w) * sums[kSlope] / double(kept)));
  }

  // Pass 1.
  void gather(Sequence& q, int64_t kept) const {
    Sum log_rho, gap;
    for (int64_t first = 0; first < q.length; first += kPiece) {
      LaneSum<T> ratio, between;
      const int64_t end = smaller(q.length, first + kPiece);
      if (dropped(q, first, end)) continue;
      for (int64_t t = first; t < end; t += kLanes<T>) {
        const Mask<T> there = kept_lanes<T>(q.mask ? q.mask + t : nullptr, end - t);
        const V zero = splat(T(0)), old = load_upto(q.old + t, end - t, T(0));
        const V d = select(there, load_upto(q.logp + t, end - t, T(0)) - old, zero);
        ratio.add(k_.in_logs ? held_log_ratio<T>(k_, d, advantage(q, there, t, end)) : d);
        if (q.sampler) between.add(select(there, old - load_upto(q.sampler + t, end - t, T(0)), zero));
      }
      log_rho.add(ratio.total());
      gap.add(between.total());
    }
    if (o_.sequence_level) q.exact_rho = ::exp(log_rho.value() / double(kept));
    if (q.sampler && o_.importance_of_sequence) {
      const double c = ::exp(gap.value());
      q.exact_c = c > o_.importance_cap ? (o_.truncates ? o_.importance_cap : 0) : c;
    }
    q.rho = T(q.exact_rho);
    q.c = T(q.exact_c);
  }

  // Whether no token of a piece is kept, as where sequences are padded.
  static bool dropped(const Sequence& q, int64_t first, int64_t end) {
    if (!q.mask) return false;
    uint8_t some = 0;
    for (int64_t t = first; t < end; ++t) some |= q.mask[t];
    return !some;
  }

  V advantage(const Sequence& q, Mask<T> there, int64_t t, int64_t end) const {
    return select(there, q.A ? load_upto(q.A + t, end - t, T(0)) : splat(q.one_A), splat(T(0)));
  }

  // Exponentials of a piece. They wait for nothing but their own chain of products, so each kind has a loop
  // of its own, over several registers at a time.
  struct Piece {
    alignas(64) T d[kPiece], rho[kPiece], kl[kPiece], kl_slope[kPiece];
  };

  // a - b of the kept tokens first .. end-1, 0 for the others and up to a whole step.
  void gaps(const Sequence& q, const T* a, const T* b, int64_t first, int64_t end, T* gap) const {
    const V zero = splat(T(0));
    const int64_t last = first + (end - first + kAtOnce<T> - 1) / kAtOnce<T> * kAtOnce<T>;
    for (int64_t t = first; t < last; t += kLanes<T>, gap += kLanes<T>) {
      const Mask<T> there = kept_lanes<T>(q.mask ? q.mask + t : nullptr, end - t);
      store(gap, select(there, load_upto(a + t, end - t, T(0)) - load_upto(b + t, end - t, T(0)), zero));
    }
  }

  void prepare(const Sequence& q, int64_t first, int64_t end, Piece& piece) const {
    const int n = static_cast<int>(end - first);
    gaps(q, q.logp, q.old, first, end, piece.d);
    if (o_.sequence_level)
      fill_chunk(piece.rho, n, q.rho);
    else
      transform_chunk(piece.d, piece.rho, n, [](auto& v) { exp_any<T>(v); });
    if (!q.ref) return;
    gaps(q, q.ref, q.logp, first, end, piece.kl);
    with_kl(k_.kl, [&](auto kind) {
      for (int i = 0; i < n; i += kAtOnce<T>) {
        V x[kTogether], slope[kTogether];
        for (int u = 0; u < kTogether; ++u) x[u] = load(piece.kl + i + u * kLanes<T>);
        kl_terms<decltype(kind)::value>(k_, x, slope);  // 0 for 0
        for (int u = 0; u < kTogether; ++u) store(piece.kl + i + u * kLanes<T>, x[u]);
        for (int u = 0; u < kTogether; ++u) store(piece.kl_slope + i + u * kLanes<T>, slope[u]);
      }
    });
  }

  // Pass 2. Terms are added a few registers, then a piece, then a sequence at a time, the last in double.
  void losses(const Sequence& q, int64_t kept, double* sums) const {
    Sum total[kSums];
    Piece terms;
    for (int64_t first = 0; first < q.length; first += kPiece) {
      LaneSum<T> piece[kSums];
      const int64_t end = smaller(q.length, first + kPiece);
      if (dropped(q, first, end)) {
        if (q.grad) fill_chunk(q.grad + first, static_cast<int>(end - first), T(0));
        continue;
      }
      prepare(q, first, end, terms);
      for (int64_t t = first; t < end; t += kGroup<T>) {
        V part[kSums];
        for (int i = 0; i < kSums; ++i) part[i] = splat(T(0));
        add_terms(q, terms, first, t, smaller(end, t + kGroup<T>), part);
        for (int i = 0; i < kSums; ++i) piece[i].add(part[i]);
      }
      for (int i = 0; i < kSums; ++i) total[i].add(piece[i].total());
    }
    for (int i = 0; i < kSums; ++i) sums[i] = total[i].value();
    if (q.whole) {  // n times what does not depend on logp, and the rest times the sum of logp
      const Terms<double> l = Surrogate<double>::of(PolicyConstants<double>(o_), splat(q.exact_rho),
                                                    splat(double(q.one_A)), splat(0.0));
      const bool idle = q.one_A == 0 || q.exact_c == 0;
      sums[kLoss] =
          idle ? 0 : double(kept) * l.loss[0] + (l.direct[0] == 0 ? 0 : l.direct[0] * summed_logp(q));
      sums[kSlope] = idle ? 0 : double(kept) * l.slope[0];
      sums[kRatio] = double(kept) * q.exact_rho;
    }
    sums[kLoss] *= q.exact_c;
    sums[kSlope] *= q.exact_c;
    sums[kImportance] *= q.exact_c;
  }

  void add_terms(const Sequence& q, const Piece& piece, int64_t origin, int64_t first, int64_t end,
                 V* part) const {
    const V zero = splat(T(0)), one = splat(T(1)), scale = splat(q.w * q.c), kl_scale = splat(q.w * k_.beta);
    for (int64_t t = first; t < end; t += kLanes<T>) {
      const Mask<T> there = kept_lanes<T>(q.mask ? q.mask + t : nullptr, end - t);
      const V A = advantage(q, there, t, end);
      const V given = select(there, load_upto(q.logp + t, end - t, T(0)), zero);
      const V d = load(piece.d + (t - origin)), rho = load(piece.rho + (t - origin));
      V c = one;  // that of a whole sequence is multiplied last
      if (q.sampler) {
        const V gap = load_upto(q.old + t, end - t, T(0)) - load_upto(q.sampler + t, end - t, T(0));
        if (!o_.importance_of_sequence) c = correction<T>(k_, select(there, gap, zero), T(o_.importance_cap));
        part[kImportance] = part[kImportance] + select(there, c, zero);
      }
      // Without an advantage, or dropped by the correction, no loss, whatever rho and logp are.
      const V worth = select(equal(q.exact_c == 0 ? zero : c, zero), zero, A);
      const Mask<T> idle = equal(worth, zero);
      const Terms<T> l = Surrogate<T>::of(k_, select(idle, one, rho), worth, select(idle, zero, given));
      part[kLoss] = part[kLoss] + c * l.loss;
      part[kRatio] = part[kRatio] + select(there, rho, zero);
      part[kOldKl] = part[kOldKl] + d;
      const V measured = k_.in_logs ? d : rho;
      const V below = select(greater(splat(k_.least), measured), one, zero);
      const V above = select(greater(measured, splat(k_.most)), one, zero);
      part[kClipLow] = part[kClipLow] + select(greater(zero, A), below, zero);
      part[kClipHigh] = part[kClipHigh] + select(greater(A, zero), above, zero);
      V grad = c * l.direct;
      if (o_.sequence_level)
        part[kSlope] = part[kSlope] + c * l.slope;
      else
        grad = grad + c * l.slope;
      grad = grad * scale;
      if (q.ref) {
        part[kKl] = part[kKl] + load(piece.kl + (t - origin));
        if (o_.beta != 0) grad = fma(kl_scale, load(piece.kl_slope + (t - origin)), grad);
      }
      if (q.entropy)
        part[kEntropy] = part[kEntropy] + select(there, load_upto(q.entropy + t, end - t, T(0)), zero);
      if (q.grad) store_upto(q.grad + t, select(there, grad, zero), end - t);
    }
  }

  static double summed_logp(const Sequence& q) {
    Sum sum;
    for (int64_t t = 0; t < q.length; ++t)
      if (!q.mask || q.mask[t]) sum.add(q.logp[t]);
    return sum.value();
  }

  // Pass 3.
  void spread(const Sequence& q, T each) const {
    const V zero = splat(T(0)), share = splat(each);
    for (int64_t t = 0; t < q.length; t += kLanes<T>) {
      const int64_t n = q.length - t;
      const Mask<T> there = kept_lanes<T>(q.mask ? q.mask + t : nullptr, n);
      V more = share;
      if (k_.in_logs) {
        const V d = select(there, load_upto(q.logp + t, n, T(0)) - load_upto(q.old + t, n, T(0)), zero);
        const V A = advantage(q, there, t, q.length);
        more = select(equal(held_log_ratio<T>(k_, d, A), d), select(equal(A, zero), zero, share), zero);
      }
      store_upto(q.grad + t, load_upto(q.grad + t, n, T(0)) + select(there, more, zero), n);
    }
  }

  const PolicyCall& call_;
  const PolicyOptions& o_;
  const PolicyConstants<T> k_;
};

template <class T>
void run_policy(const PolicyCall& call) {
  with_surrogate(call.options, [&](auto which) { Policy<T, decltype(which)::template Terms>(call).run(); });
}

}  // namespace

void policy_loss(const PolicyCall& call) {
  if (call.dtype == DType::float64)
    run_policy<double>(call);
  else
    run_policy<float>(call);
}

}  // namespace npkernels::NPK_ISA
