// npk_token_policy_loss of npkernels.h. At token level one read and one write of the logits; where the ratio
// is that of a sequence the log-probabilities of all rows come first, then the gradients.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "c_policy.h"
#include "npkernels/softmax.h"

using namespace npkernels::c_api;
using npkernels::Array;
using npkernels::DType;
using npkernels::kPolicySums;

namespace {

enum {
  kLoss,
  kKl,
  kRatio,
  kOldKl,
  kClipLow,
  kClipHigh,
  kImportance,
  kEntropy,
  kLogp
};  // columns of the sums

double entry(const void* data, DType dtype, int64_t i) {
  return dtype == DType::float64 ? static_cast<const double*>(data)[i]
                                 : double(static_cast<const float*>(data)[i]);
}

// A logit of any dtype.
double logit(const char* p, DType dtype) {
  if (dtype == DType::float64 || dtype == DType::float32) return entry(p, dtype, 0);
  uint16_t bits;
  memcpy(&bits, p, sizeof bits);
  if (dtype == DType::bfloat16) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
  }
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent == 31 ? (fraction ? double(NAN) : double(INFINITY))
                      : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                     : ldexp(fraction, -24);
  return bits >> 15 ? -size : size;
}

class Call {
 public:
  Call(const npk_array* logits_array, const npk_array* ids_array, const npk_array* old_array,
       const npk_array* advantages_array, double temperature, const npk_policy_options* options,
       const npk_array* dlogits)
      : logits(logits_array, "logits"),
        dtype(npkernels::compute_dtype(logits.dtype)),
        given(options, "logits", logits.shape, std::max(0, logits.ndim - 1), dtype),
        ids(ids_array, "ids"),
        old(given.per_token(old_array, "old_logp")),
        advantages(given.advantages(advantages_array)),
        temperature_(temperature),
        rows_(given.layout.tokens) {
    check_floating(logits);
    require(!given.asked.entropy, NPK_BAD_VALUE, "entropy");
    check_temperature(temperature);
    check_per_row(ids, logits, logits.ndim - 1, DType::int64);
    if (dlogits) {
      grad.emplace(dlogits, "dlogits");
      check_dtype(*grad, logits.dtype);
      check_shape(*grad, logits);
      check_output(*grad, {&logits}, {&ids, &old, &advantages});
      given.check_apart(*grad);
    }
    const int64_t* named = reinterpret_cast<const int64_t*>(ids.data);
    chosen_.reserve(static_cast<size_t>(rows_));
    for (int64_t i = 0; i < rows_; ++i) {
      const bool there = !given.kept() || given.kept()[i];
      require(!there || (named[i] >= 0 && named[i] < logits.shape[logits.ndim - 1]), NPK_BAD_INDEX, "ids");
      chosen_.push_back(there ? named[i] : -1);
    }
  }

  npkernels::PolicyTotals run() { return given.options.sequence_level ? in_two_reads() : in_one_read(); }

  const View logits;
  const DType dtype;  // of what is per token
  const PolicyArguments given;
  const View ids, old, advantages;
  std::optional<View> grad;

 private:
  template <class F>
  void for_each_sequence(F f) const {
    for (int64_t s = 0; s < given.layout.sequences.count; ++s)
      f(s, given.layout.begin(s), given.layout.begin(s + 1));
  }

  // Kept tokens of each sequence.
  std::vector<int64_t> counts(npkernels::PolicyTotals& totals) const {
    std::vector<int64_t> kept;
    kept.reserve(static_cast<size_t>(given.layout.sequences.count));
    for_each_sequence([&](int64_t, int64_t first, int64_t last) {
      int64_t n = 0;
      for (int64_t i = first; i < last; ++i) n += chosen_[static_cast<size_t>(i)] >= 0;
      kept.push_back(n);
      totals.tokens += n;
      totals.sequences += n > 0;
    });
    return kept;
  }

  // What the loss of each token is multiplied by.
  std::vector<double> weights(npkernels::PolicyTotals& totals) const {
    const std::vector<int64_t> kept = counts(totals);
    const npkernels::PolicyOptions& o = given.options;
    const double N = o.total_tokens > 0 ? o.total_tokens : double(std::max<int64_t>(1, totals.tokens));
    const double S = double(std::max<int64_t>(1, totals.sequences));
    std::vector<double> w(static_cast<size_t>(rows_));
    for_each_sequence([&](int64_t s, int64_t first, int64_t last) {
      const double n = double(std::max<int64_t>(1, kept[static_cast<size_t>(s)]));
      double of_sequence = 1;
      switch (o.aggregate) {
        case npkernels::Aggregate::token_mean:
          of_sequence = 1 / N;
          break;
        case npkernels::Aggregate::token_sum:
          break;
        case npkernels::Aggregate::seq_mean_token_sum:
          of_sequence = 1 / S;
          break;
        case npkernels::Aggregate::seq_mean_token_mean:
          of_sequence = 1 / (S * n);
          break;
        case npkernels::Aggregate::seq_mean_token_sum_norm:
          of_sequence = 1 / (S * o.max_length);
      }
      std::fill(w.begin() + first, w.begin() + last, of_sequence);
    });
    return w;
  }

  // The correction between sampler and trainer of each token.
  template <class T>
  std::vector<T> corrections() const {
    const npkernels::PolicyOptions& o = given.options;
    std::vector<T> c;
    if (!given.sampler_logp) return c;
    c.resize(static_cast<size_t>(rows_));
    for_each_sequence([&](int64_t, int64_t first, int64_t last) {
      const auto gap = [&](int64_t i) {
        return chosen_[static_cast<size_t>(i)] < 0
                   ? 0.0
                   : entry(old.data, dtype, i) - entry(given.sampler_logp->data, dtype, i);
      };
      double sum = 0;
      for (int64_t i = first; i < last; ++i) sum += gap(i);
      for (int64_t i = first; i < last; ++i) {
        const double ratio = exp(o.importance_of_sequence ? sum : gap(i));
        const double most = o.importance_cap;
        c[static_cast<size_t>(i)] = T(!(ratio > most) ? ratio : o.truncates ? most : 0.0);
      }
    });
    return c;
  }

  // The advantage of each token, where they came per sequence.
  template <class T>
  std::vector<T> repeated() const {
    std::vector<T> a;
    if (given.per_token_advantages(advantages)) return a;
    a.resize(static_cast<size_t>(rows_));
    for_each_sequence([&](int64_t s, int64_t first, int64_t last) {
      std::fill(a.begin() + first, a.begin() + last, reinterpret_cast<const T*>(advantages.data)[s]);
    });
    return a;
  }

  npkernels::PolicyTotals in_one_read() const {
    return dtype == DType::float64 ? in_one_read_of<double>() : in_one_read_of<float>();
  }

  template <class T>
  npkernels::PolicyTotals in_one_read_of() const {
    npkernels::PolicyTotals totals{};
    const std::vector<double> w = weights(totals);
    const std::vector<T> c = corrections<T>(), a = repeated<T>();
    std::vector<double> sums(static_cast<size_t>(rows_ * kPolicySums));
    npkernels::TokenPolicy tokens{};
    tokens.ids = chosen_.data();
    tokens.old_logp = old.data;
    tokens.ref_logp = given.ref_logp ? given.ref_logp->data : nullptr;
    tokens.advantages =
        given.per_token_advantages(advantages) ? static_cast<const void*>(advantages.data) : a.data();
    tokens.correction = given.sampler_logp ? c.data() : nullptr;
    tokens.weights = w.data();
    tokens.temperature = temperature_;
    tokens.want_entropy = given.asked.want_entropy != 0;
    const Array dx = grad ? Array(*grad) : Array{};
    npkernels::token_policy_loss(logits, tokens, given.options, sums.data(), grad ? &dx : nullptr);
    for (int64_t i = 0; i < rows_; ++i) {
      const double* part = sums.data() + i * kPolicySums;
      const double beta = given.options.beta;
      totals.loss += w[static_cast<size_t>(i)] * (part[kLoss] + (beta != 0 ? beta * part[kKl] : 0));
      totals.kl += part[kKl];
      totals.ratio += part[kRatio];
      totals.old_kl -= part[kOldKl];
      totals.clip_low += part[kClipLow];
      totals.clip_high += part[kClipHigh];
      totals.importance += part[kImportance];
      totals.entropy += part[kEntropy];
    }
    return totals;
  }

  // An array of the tokens in double; empty for null.
  std::vector<double> widened(const View* a) const {
    std::vector<double> wide;
    for (int64_t i = 0; a && i < a->size; ++i) wide.push_back(entry(a->data, dtype, i));
    return wide;
  }

  npkernels::PolicyTotals in_two_reads() const {
    const size_t n = static_cast<size_t>(rows_);
    const bool entropy = given.asked.want_entropy != 0;
    std::vector<double> sums(n * kPolicySums), ones(n, 1), logp(n), h(n), slope(n);
    const std::vector<double> nothing(n);  // advantages and old log-probabilities that no one looks at
    npkernels::PolicyOptions first;
    first.surrogate = npkernels::Surrogate::log;
    npkernels::TokenPolicy tokens{};
    tokens.ids = chosen_.data();
    tokens.old_logp = old.data;
    tokens.advantages = nothing.data();  // of as many bytes as any dtype needs
    tokens.weights = ones.data();
    tokens.temperature = temperature_;
    tokens.want_entropy = entropy;
    npkernels::token_policy_loss(logits, tokens, first, sums.data(), nullptr);
    for (size_t i = 0; i < n; ++i) {
      logp[i] = sums[i * kPolicySums + kLogp];
      h[i] = sums[i * kPolicySums + kEntropy];
    }

    const std::vector<double> wide_old = widened(&old), a = widened(&advantages),
                              ref = widened(pointer(given.ref_logp)),
                              sampler = widened(pointer(given.sampler_logp));
    const npkernels::PolicyTokens all{DType::float64,
                                      logp.data(),
                                      wide_old.data(),
                                      given.ref_logp ? ref.data() : nullptr,
                                      given.sampler_logp ? sampler.data() : nullptr,
                                      entropy ? h.data() : nullptr,
                                      given.kept(),
                                      a.data(),
                                      given.per_token_advantages(advantages)};
    npkernels::PolicyTotals totals{};
    const bool done = npkernels::policy_loss(all, given.layout.sequences, given.options, &totals,
                                             grad ? slope.data() : nullptr);
    require(done, NPK_NO_MEMORY, "");
    if (!grad) return totals;
    dtype == DType::float64 ? write_gradients<double>(logp, slope) : write_gradients<float>(logp, slope);
    return totals;
  }

  template <class T>
  void write_gradients(const std::vector<double>& logp, const std::vector<double>& slope) const {
    std::vector<int64_t> index(chosen_.size());
    std::vector<T> d(chosen_.size()), lse(chosen_.size());
    const int last = logits.ndim - 1;
    const auto row = [&](const View& a, int64_t i) {
      int64_t offset = 0;
      for (int axis = last - 1; axis >= 0; --axis) {
        offset += i % a.shape[axis] * a.strides[axis];
        i /= a.shape[axis];
      }
      return a.data + offset;
    };
    for (size_t i = 0; i < index.size(); ++i) {
      index[i] = std::max<int64_t>(0, chosen_[i]);
      d[i] = T(slope[i]);
      if (chosen_[i] < 0) continue;
      const double x = logit(row(logits, int64_t(i)) + index[i] * logits.strides[last], logits.dtype);
      lse[i] = T(x / temperature_ - logp[i]);
    }
    npkernels::token_log_probs_vjp(d.data(), logits, index.data(), lse.data(), nullptr, nullptr,
                                   {last, temperature_, nullptr}, *grad);
    // 0 times what a masked row holds may be NaN.
    for (size_t i = 0; i < index.size(); ++i)
      for (int64_t j = 0; chosen_[i] < 0 && j < logits.shape[last]; ++j)
        memset(row(*grad, int64_t(i)) + j * grad->strides[last], 0,
               static_cast<size_t>(npkernels::item_size(grad->dtype)));
  }

  double temperature_;
  int64_t rows_;
  std::vector<int64_t> chosen_;  // negative where the mask leaves a token out
};

}  // namespace

extern "C" npk_status npk_token_policy_loss(const npk_array* logits, const npk_array* ids,
                                            const npk_array* old_logp, const npk_array* advantages,
                                            double temperature, const npk_policy_options* options,
                                            npk_policy_metrics* metrics, const npk_array* dlogits) {
  return guarded([&] {
    check_metrics(metrics);
    Call call(logits, ids, old_logp, advantages, temperature, options, dlogits);
    store_metrics(call.run(), call.given, call.given.asked.want_entropy != 0, metrics);
  });
}
