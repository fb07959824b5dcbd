#include "c_policy.h"

#include <math.h>

#include <algorithm>

namespace npkernels::c_api {
namespace {

constexpr size_t kFirstPolicyOptions = offsetof(npk_policy_options, importance_cap) + sizeof(double);
constexpr size_t kFirstPolicyMetrics = offsetof(npk_policy_metrics, entropy) + sizeof(double);

npk_policy_options known(const npk_policy_options* options) {
  const npk_policy_options defaults = NPK_POLICY_OPTIONS_INIT;
  return known_options(options ? options : &defaults, kFirstPolicyOptions, "options");
}

// 0 = no bound.
double or_infinite(double x) { return x != 0 ? x : double(INFINITY); }

}  // namespace

TokenSequences::TokenSequences(const char* name, const int64_t* shape, int ndim, const npk_array* cu_seqlens,
                               int padded_ndim)
    : ends_(optional_view(cu_seqlens, "cu_seqlens")), shape_(shape), ndim_(ndim) {
  const int expected = ends_ ? 1 : padded_ndim;
  require(ndim >= 1 && (expected == 0 || ndim == expected), NPK_BAD_SHAPE, name);
  tokens = 1;
  for (int i = 0; i < ndim; ++i) tokens *= shape[i];
  if (!ends_) {
    int64_t count = 1;
    for (int i = 0; i + 1 < ndim; ++i) count *= shape[i];
    sequences = {count, shape[ndim - 1], nullptr};
    return;
  }
  check_dtype(*ends_, DType::int64);
  require(ends_->ndim == 1 && ends_->shape[0] >= 1, NPK_BAD_SHAPE, ends_->name);
  check_contiguous(*ends_);
  const int64_t* ends = reinterpret_cast<const int64_t*>(ends_->data);
  const int64_t count = ends_->shape[0] - 1;
  require(ends[0] == 0 && ends[count] == tokens, NPK_BAD_VALUE, ends_->name);
  for (int64_t s = 0; s < count; ++s) require(ends[s] <= ends[s + 1], NPK_BAD_VALUE, ends_->name);
  sequences = {count, 0, ends};
}

int64_t TokenSequences::longest() const {
  int64_t most = sequences.ends || sequences.count == 0 ? 0 : sequences.length;
  for (int64_t s = 0; sequences.ends && s < sequences.count; ++s)
    most = std::max(most, begin(s + 1) - begin(s));
  return most;
}

bool TokenSequences::per_sequence(const View& a) const {
  if (sequences.ends) return a.ndim == 1 && a.shape[0] == sequences.count;
  return a.ndim == ndim_ - 1 && std::equal(a.shape, a.shape + a.ndim, shape_);
}

void check_wide(const View& a) {
  require(a.dtype == DType::float32 || a.dtype == DType::float64, NPK_BAD_DTYPE, a.name);
  check_contiguous(a);
}

PolicyArguments::PolicyArguments(const npk_policy_options* o, const char* lead, const int64_t* shape,
                                 int ndim, DType dtype)
    : asked(known(o)),
      layout(lead, shape, ndim, asked.cu_seqlens, 2),
      shape_(shape),
      ndim_(ndim),
      dtype_(dtype) {
  const auto optional = [&](const npk_array* array, const char* name, std::optional<View>& target) {
    if (array) target.emplace(per_token(array, name));
  };
  if (asked.mask) {
    mask.emplace(asked.mask, "mask");
    check_dtype(*mask, DType::boolean);
    require(mask->ndim == ndim && std::equal(shape, shape + ndim, mask->shape), NPK_BAD_SHAPE, "mask");
    check_contiguous(*mask);
  }
  optional(asked.ref_logp, "ref_logp", ref_logp);
  optional(asked.sampler_logp, "sampler_logp", sampler_logp);
  optional(asked.entropy, "entropy", entropy);
  check_options();
}

void PolicyArguments::check_options() {
  const npk_policy_options& o = asked;
  const auto flag = [](int32_t value, const char* name) {
    require(value == 0 || value == 1, NPK_BAD_VALUE, name);
  };
  const auto bound = [](double value, const char* name) { require(value >= 0, NPK_BAD_VALUE, name); };
  require(o.surrogate >= NPK_SURROGATE_CLIP && o.surrogate <= NPK_SURROGATE_LOG, NPK_BAD_VALUE, "surrogate");
  flag(o.sequence_level, "sequence_level");
  require((o.surrogate != NPK_SURROGATE_GEOMETRIC || o.sequence_level == 1) &&
              (o.surrogate != NPK_SURROGATE_LOG || o.sequence_level == 0),
          NPK_BAD_VALUE, "sequence_level");
  require(o.aggregate >= NPK_TOKEN_MEAN && o.aggregate <= NPK_SEQ_MEAN_TOKEN_SUM_NORM, NPK_BAD_VALUE,
          "aggregate");
  require(o.kl >= NPK_KL_K1 && o.kl <= NPK_KL_K3_PLUS, NPK_BAD_VALUE, "kl");
  require(o.importance >= NPK_IMPORTANCE_SEQUENCE_MASK && o.importance <= NPK_IMPORTANCE_TOKEN_TRUNCATE,
          NPK_BAD_VALUE, "importance");
  flag(o.want_entropy, "want_entropy");
  bound(o.clip_low, "clip_low");
  bound(o.clip_high, "clip_high");
  // What would be ignored is an error.
  const bool clips = o.surrogate == NPK_SURROGATE_CLIP;
  require(o.delta == 0 || (clips && o.delta > 0 && isfinite(o.delta)), NPK_BAD_VALUE, "delta");
  require(o.dual_clip == 0 || (clips && o.dual_clip > 1 && isfinite(o.dual_clip)), NPK_BAD_VALUE,
          "dual_clip");
  require(o.tau_positive > 0, NPK_BAD_VALUE, "tau_positive");
  require(o.tau_negative > 0, NPK_BAD_VALUE, "tau_negative");
  require(o.max_length == 0 ||
              (o.aggregate == NPK_SEQ_MEAN_TOKEN_SUM_NORM && o.max_length > 0 && isfinite(o.max_length)),
          NPK_BAD_VALUE, "max_length");
  require(o.total_tokens == 0 ||
              (o.aggregate == NPK_TOKEN_MEAN && o.total_tokens > 0 && isfinite(o.total_tokens)),
          NPK_BAD_VALUE, "total_tokens");
  require(isfinite(o.beta), NPK_BAD_VALUE, "beta");
  require(o.beta == 0 || ref_logp, NPK_NULL_POINTER, "ref_logp");
  bound(o.kl_inner, "kl_inner");
  bound(o.kl_outer, "kl_outer");
  require(o.importance_cap > 0 && isfinite(o.importance_cap), NPK_BAD_VALUE, "importance_cap");

  options.surrogate = static_cast<Surrogate>(o.surrogate);
  options.sequence_level = o.sequence_level != 0;
  options.aggregate = static_cast<Aggregate>(o.aggregate);
  options.max_length = o.max_length != 0 ? o.max_length : double(std::max<int64_t>(1, layout.longest()));
  options.total_tokens = o.total_tokens != 0 ? o.total_tokens : -1;
  options.clip_low = o.clip_low;
  options.clip_high = o.clip_high;
  options.delta = or_infinite(o.delta);
  options.dual_clip = or_infinite(o.dual_clip);
  options.tau_positive = o.tau_positive;
  options.tau_negative = o.tau_negative;
  options.kl = static_cast<Kl>(o.kl);
  options.beta = o.beta;
  options.kl_inner = or_infinite(o.kl_inner);
  options.kl_outer = or_infinite(o.kl_outer);
  options.importance_of_sequence =
      o.importance == NPK_IMPORTANCE_SEQUENCE_MASK || o.importance == NPK_IMPORTANCE_SEQUENCE_TRUNCATE;
  options.truncates =
      o.importance == NPK_IMPORTANCE_SEQUENCE_TRUNCATE || o.importance == NPK_IMPORTANCE_TOKEN_TRUNCATE;
  options.importance_cap = o.importance_cap;
}

View PolicyArguments::per_token(const npk_array* array, const char* name) const {
  View view(array, name);
  check_dtype(view, dtype_);
  require(view.ndim == ndim_ && std::equal(shape_, shape_ + ndim_, view.shape), NPK_BAD_SHAPE, name);
  check_contiguous(view);
  return view;
}

View PolicyArguments::advantages(const npk_array* array) const {
  View view(array, "advantages");
  if (!layout.per_sequence(view)) return per_token(array, "advantages");
  check_dtype(view, dtype_);
  check_contiguous(view);
  return view;
}

void PolicyArguments::check_apart(const View& written) const {
  check_output(written, {},
               {pointer(mask), pointer(ref_logp), pointer(sampler_logp), pointer(entropy), layout.ends()});
}

void check_metrics(const npk_policy_metrics* metrics) {
  require(metrics != nullptr, NPK_NULL_POINTER, "metrics");
  require(metrics->size >= kFirstPolicyMetrics && metrics->size <= size_t(1) << 16, NPK_BAD_VALUE, "metrics");
}

void store_metrics(const PolicyTotals& totals, const PolicyArguments& given, bool entropy,
                   npk_policy_metrics* metrics) {
  const double n = double(std::max<int64_t>(1, totals.tokens));
  metrics->loss = totals.loss;
  metrics->tokens = totals.tokens;
  metrics->sequences = totals.sequences;
  metrics->ratio = totals.ratio / n;
  metrics->clip_low = totals.clip_low / n;
  metrics->clip_high = totals.clip_high / n;
  metrics->old_kl = totals.old_kl / n;
  metrics->kl = given.ref_logp ? totals.kl / n : double(NAN);
  metrics->importance = given.sampler_logp ? totals.importance / n : double(NAN);
  metrics->entropy = entropy ? totals.entropy / n : double(NAN);
}

}  // namespace npkernels::c_api
