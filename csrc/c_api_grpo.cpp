// The GRPO family of npkernels.h: arguments checked, then the functions of grpo.h. c_api_token_policy.cpp has
// the loss that begins at the logits.
#include <math.h>

#include <vector>

#include "c_policy.h"

using namespace npkernels::c_api;
using npkernels::DType;

namespace {

constexpr size_t kFirstAdvantageOptions = offsetof(npk_advantage_options, reserved) + sizeof(int32_t);
constexpr size_t kFirstReturnOptions = offsetof(npk_return_options, lams) + sizeof(npk_array*);

template <class T>
bool holds_infinity(const View& a) {
  const T* x = reinterpret_cast<const T*>(a.data);
  for (int64_t i = 0; i < a.size; ++i)
    if (isinf(x[i])) return true;
  return false;
}

const void* data_of(const std::optional<View>& view) { return view ? view->data : nullptr; }
const uint8_t* bytes_of(const std::optional<View>& view) {
  return static_cast<const uint8_t*>(data_of(view));
}

npkernels::AdvantageOptions advantage_options(const npk_advantage_options* options) {
  const npk_advantage_options defaults = NPK_ADVANTAGE_OPTIONS_INIT;
  const auto o = known_options(options ? options : &defaults, kFirstAdvantageOptions, "options");
  require(o.baseline >= NPK_BASELINE_MEAN && o.baseline <= NPK_BASELINE_NONE, NPK_BAD_VALUE, "baseline");
  require(o.scale >= NPK_SCALE_GROUP && o.scale <= NPK_SCALE_NONE, NPK_BAD_VALUE, "scale");
  require(o.ddof == 0 || o.ddof == 1, NPK_BAD_VALUE, "ddof");
  require(o.eps >= 0 && isfinite(o.eps), NPK_BAD_VALUE, "eps");
  require(o.lone_reward == 0 || o.lone_reward == 1, NPK_BAD_VALUE, "lone_reward");
  require(o.over_mean == 0 || (o.over_mean == 1 && o.scale == NPK_SCALE_NONE), NPK_BAD_VALUE, "over_mean");
  require(o.reserved == 0, NPK_BAD_VALUE, "reserved");
  return {static_cast<npkernels::Baseline>(o.baseline),
          static_cast<npkernels::Scale>(o.scale),
          o.ddof,
          o.eps,
          o.lone_reward != 0,
          o.over_mean != 0};
}

// An array of rewards or values and the options of returns, as the scans take them.
class Scan {
 public:
  const View rewards;

  Scan(const npk_array* array, double gamma, const npk_return_options* options)
      : rewards(array, "rewards"),
        asked_(known(options)),
        layout_("rewards", rewards.shape, rewards.ndim, asked_.cu_seqlens, 0) {
    check_wide(rewards);
    flags(asked_.mask, "mask", mask_);
    flags(asked_.dones, "dones", dones_);
    gamma_ = each(asked_.gammas, "gammas", gamma, gammas_);
    last_ = each(asked_.last_value, "last_value", 0, last_values_);
    lams_ = optional_view(asked_.lams, "lams");
  }
  Scan(const Scan&) = delete;
  Scan& operator=(const Scan&) = delete;

  bool has_dones() const { return dones_.has_value(); }
  bool has_lams() const { return lams_.has_value(); }
  View like(const npk_array* array, const char* name) const {
    View view(array, name);
    check_dtype(view, rewards.dtype);
    check_shape(view, rewards);
    check_contiguous(view);
    return view;
  }
  void check_apart(const View& written, std::initializer_list<const View*> others) const {
    check_output(written, {},
                 {&rewards, pointer(mask_), pointer(dones_), pointer(gammas_), pointer(lams_),
                  pointer(last_values_), layout_.ends()});
    for (const View* other : others)
      if (other) check_output(written, {}, {other});
  }
  void returns(const View& out) const {
    npkernels::discounted_returns(rewards.dtype, rewards.data, layout_.sequences, bytes_of(mask_), gamma_,
                                  last_, out.data);
  }
  // What lams or lam says is found out here, since only this function has it.
  void set_lam(double lam) { lam_ = each(asked_.lams, "lams", lam, lams_); }
  void gae(const View& values, const View& advantages, const View& out) const {
    npkernels::gae(rewards.dtype, rewards.data, values.data, layout_.sequences, bytes_of(mask_),
                   bytes_of(dones_), gamma_, lam_, last_, advantages.data, out.data);
  }

 private:
  static npk_return_options known(const npk_return_options* options) {
    const npk_return_options defaults = NPK_RETURN_OPTIONS_INIT;
    return known_options(options ? options : &defaults, kFirstReturnOptions, "options");
  }

  void flags(const npk_array* array, const char* name, std::optional<View>& target) const {
    if (!array) return;
    target.emplace(array, name);
    check_dtype(*target, DType::boolean);
    check_shape(*target, rewards);
    check_contiguous(*target);
  }

  // One double per sequence: the caller's, or the number again and again.
  const double* each(const npk_array* array, const char* name, double number, std::optional<View>& target) {
    if (array) {
      target.emplace(array, name);
      check_dtype(*target, DType::float64);
      require(layout_.per_sequence(*target), NPK_BAD_SHAPE, name);
      check_contiguous(*target);
      return reinterpret_cast<const double*>(target->data);
    }
    repeated_.emplace_back(static_cast<size_t>(layout_.sequences.count), number);
    return repeated_.back().data();
  }

  const npk_return_options asked_;
  const TokenSequences layout_;
  std::optional<View> mask_, dones_, gammas_, lams_, last_values_;
  const double *gamma_, *last_, *lam_ = nullptr;
  std::vector<std::vector<double>> repeated_;
};

}  // namespace

extern "C" {

npk_status npk_group_advantages(const npk_array* rewards, int64_t group_size, const npk_array* ids,
                                const npk_advantage_options* options, const npk_array* advantages,
                                const npk_array* stats, const npk_array* index, int64_t* groups) {
  return guarded([&] {
    const npkernels::AdvantageOptions o = advantage_options(options);
    const View r(rewards, "rewards"), a(advantages, "advantages");
    check_wide(r);
    require(r.ndim == 1, NPK_BAD_SHAPE, "rewards");
    check_dtype(a, r.dtype);
    check_shape(a, r);
    check_contiguous(a);
    const auto numbers = [&](const npk_array* array, const char* name) {
      std::optional<View> view = optional_view(array, name);
      if (!view) return view;
      check_dtype(*view, DType::int64);
      check_shape(*view, r);
      check_contiguous(*view);
      return view;
    };
    const std::optional<View> names = numbers(ids, "ids"), to_index = numbers(index, "index"),
                              to_stats = optional_view(stats, "stats");
    const int64_t B = r.size;
    require(names ? group_size == 0 : group_size >= 1 && B % group_size == 0, NPK_BAD_VALUE, "group_size");
    if (to_stats) {
      check_dtype(*to_stats, DType::float64);
      require(to_stats->ndim == 2 && to_stats->shape[1] == 5, NPK_BAD_SHAPE, "stats");
      check_contiguous(*to_stats);
    }
    check_output(a, {&r}, {pointer(names)});
    if (to_stats) check_output(*to_stats, {}, {&r, pointer(names), &a});
    if (to_index) check_output(*to_index, {}, {&r, &a, pointer(to_stats)});
    if (to_index && names) check_output(*to_index, {&*names}, {});
    require(!(r.dtype == DType::float64 ? holds_infinity<double>(r) : holds_infinity<float>(r)),
            NPK_BAD_VALUE, "rewards");

    npkernels::Groups of{B, names ? 0 : B / group_size, group_size, nullptr};
    std::vector<int64_t> own(names ? static_cast<size_t>(B) : 0), keys(own.size());
    if (names) {
      of.n =
          npkernels::number_groups(reinterpret_cast<const int64_t*>(names->data), B, own.data(), keys.data());
      require(of.n >= 0, NPK_NO_MEMORY, "");
      of.index = own.data();
    }
    if (to_stats) require(to_stats->shape[0] >= of.n, NPK_BAD_SHAPE, "stats");
    std::vector<double> scratch(to_stats ? 0 : static_cast<size_t>(of.n * 5));
    double* table = to_stats ? reinterpret_cast<double*>(to_stats->data) : scratch.data();
    require(npkernels::group_advantages({r.data, r.dtype}, of, o, a.data, table), NPK_NO_MEMORY, "");
    if (groups) *groups = of.n;
    int64_t* to = to_index ? reinterpret_cast<int64_t*>(to_index->data) : nullptr;
    for (int64_t i = 0; to && i < B; ++i) to[i] = names ? own[static_cast<size_t>(i)] : i / group_size;
  });
}

npk_status npk_policy_loss(const npk_array* logp, const npk_array* old_logp, const npk_array* advantages,
                           const npk_policy_options* options, npk_policy_metrics* metrics,
                           const npk_array* dlogp) {
  return guarded([&] {
    const View now(logp, "logp");
    check_wide(now);
    const PolicyArguments given(options, "logp", now.shape, now.ndim, now.dtype);
    require(given.asked.want_entropy == 0, NPK_BAD_VALUE, "want_entropy");
    const View old = given.per_token(old_logp, "old_logp"), a = given.advantages(advantages);
    check_metrics(metrics);
    std::optional<View> grad;
    if (dlogp) {
      grad.emplace(given.per_token(dlogp, "dlogp"));
      check_output(*grad, {}, {&now, &old, &a});
      given.check_apart(*grad);
    }
    const npkernels::PolicyTokens tokens{now.dtype,
                                         now.data,
                                         old.data,
                                         data_of(given.ref_logp),
                                         data_of(given.sampler_logp),
                                         data_of(given.entropy),
                                         given.kept(),
                                         a.data,
                                         given.per_token_advantages(a)};
    npkernels::PolicyTotals totals{};
    const bool done = npkernels::policy_loss(tokens, given.layout.sequences, given.options, &totals,
                                             grad ? grad->data : nullptr);
    require(done, NPK_NO_MEMORY, "");
    store_metrics(totals, given, given.entropy.has_value(), metrics);
  });
}

npk_status npk_discounted_returns(const npk_array* rewards, double gamma, const npk_return_options* options,
                                  const npk_array* returns) {
  return guarded([&] {
    const Scan scan(rewards, gamma, options);
    require(!scan.has_dones(), NPK_BAD_VALUE, "dones");
    require(!scan.has_lams(), NPK_BAD_VALUE, "lams");
    const View out = scan.like(returns, "returns");
    scan.check_apart(out, {});
    scan.returns(out);
  });
}

npk_status npk_gae(const npk_array* rewards, const npk_array* values, double gamma, double lam,
                   const npk_return_options* options, const npk_array* advantages, const npk_array* returns) {
  return guarded([&] {
    Scan scan(rewards, gamma, options);
    scan.set_lam(lam);
    const View v = scan.like(values, "values"), a = scan.like(advantages, "advantages"),
               out = scan.like(returns, "returns");
    scan.check_apart(a, {&v});
    scan.check_apart(out, {&v, &a});
    scan.gae(v, a, out);
  });
}

}  // extern "C"
