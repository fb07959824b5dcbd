// The softmax family and the statistics of tokens, of npkernels.h: arguments checked, then the functions of
// softmax.h.
#include <math.h>

#include <memory>
#include <vector>

#include "c_arguments.h"
#include "npkernels/softmax.h"

using namespace npkernels::c_api;
using npkernels::Array;
using npkernels::DType;
using npkernels::SoftmaxOptions;

namespace {

constexpr size_t kFirstTokenStats = offsetof(npk_token_stats, rank) + sizeof(npk_array*);
constexpr size_t kFirstCrossEntropyOptions = offsetof(npk_cross_entropy_options, reserved) + sizeof(int32_t);

// What all functions of the family check of x, and the options that they hand on.
struct Rows {
  View x;
  SoftmaxOptions options;
  DType compute;  // the dtype of what is per row

  Rows(const npk_array* array, const char* name, int axis, double temperature, const npk_array* mask)
      : x(array, name), compute(npkernels::compute_dtype(x.dtype)), mask_(optional_view(mask, "mask")) {
    check_floating(x);
    options = {checked_axis(x, axis), temperature, nullptr};
    check_temperature(temperature);
    if (!mask_) return;
    check_dtype(*mask_, DType::boolean);
    options.mask = &broadcast_.emplace(*mask_, x.ndim, x.shape).array;
  }

  const View* mask() const { return pointer(mask_); }

  // An array of x's shape and dtype.
  View like(const npk_array* array, const char* name) const {
    View view(array, name);
    check_dtype(view, x.dtype);
    check_shape(view, x);
    return view;
  }

  View per_row(const npk_array* array, const char* name, DType dtype) const {
    View view(array, name);
    check_per_row(view, x, options.axis, dtype);
    return view;
  }
  View per_row(const npk_array* array, const char* name) const { return per_row(array, name, compute); }
  std::optional<View> per_row_or_null(const npk_array* array, const char* name) const {
    return array ? std::optional<View>(per_row(array, name)) : std::nullopt;
  }

 private:
  std::optional<View> mask_;
  std::optional<Broadcast> broadcast_;
};

void* data_of(const std::optional<View>& view) { return view ? view->data : nullptr; }

using Map = void (*)(const Array&, const SoftmaxOptions&, const Array&);
using Vjp = void (*)(const Array&, const Array&, const SoftmaxOptions&, const Array&);
using Jvp = void (*)(const Array&, const Array&, const SoftmaxOptions&, const Array&, const Array&);

npk_status map(Map kernel, const npk_array* x, int axis, double temperature, const npk_array* mask,
               const npk_array* y) {
  return guarded([&] {
    const Rows rows(x, "x", axis, temperature, mask);
    const View out = rows.like(y, "y");
    check_output(out, {&rows.x}, {rows.mask()});
    kernel(rows.x, rows.options, out);
  });
}

npk_status vjp(Vjp kernel, const npk_array* dy, const npk_array* y, int axis, double temperature,
               const npk_array* mask, const npk_array* dx) {
  return guarded([&] {
    const Rows rows(y, "y", axis, temperature, mask);
    const View cotangent = rows.like(dy, "dy"), out = rows.like(dx, "dx");
    check_output(out, {&cotangent, &rows.x}, {rows.mask()});
    kernel(cotangent, rows.x, rows.options, out);
  });
}

npk_status jvp(Jvp kernel, const npk_array* x, const npk_array* dx, int axis, double temperature,
               const npk_array* mask, const npk_array* y, const npk_array* dy) {
  return guarded([&] {
    const Rows rows(x, "x", axis, temperature, mask);
    const View tangent = rows.like(dx, "dx"), out = rows.like(y, "y"), out_tangent = rows.like(dy, "dy");
    check_output(out, {&rows.x, &tangent}, {rows.mask()});
    check_output(out_tangent, {&rows.x, &tangent}, {rows.mask(), &out});
    kernel(rows.x, tangent, rows.options, out, out_tangent);
  });
}

// The statistics of token_log_probs: what was asked for, checked.
struct WantedStats {
  std::optional<View> log_prob, lse, entropy, sum_p2, top1, rank;

  WantedStats(const npk_token_stats& stats, const Rows& rows, const View& ids) {
    const auto add = [&](std::optional<View>& wanted, const npk_array* array, const char* name, DType dtype) {
      if (!array) return;
      const View& out = wanted.emplace(rows.per_row(array, name, dtype));
      check_output(out, {}, {&rows.x, &ids, rows.mask()});
      for (const View* other : outputs_) check_output(out, {}, {other});
      outputs_.push_back(&out);
    };
    add(log_prob, stats.log_prob, "log_prob", rows.compute);
    add(lse, stats.lse, "lse", rows.compute);
    add(entropy, stats.entropy, "entropy", rows.compute);
    add(sum_p2, stats.sum_p2, "sum_p2", rows.compute);
    add(top1, stats.top1, "top1", DType::int64);
    add(rank, stats.rank, "rank", DType::int64);
  }

 private:
  std::vector<const View*> outputs_;
};

// Targets as the kernel takes them, negative where ignored, and the sum of the weights of the others.
struct Targets {
  const int64_t* ids;
  double total = 0;

  Targets(const View& targets, int64_t ignored, const View* weight)
      : ids(reinterpret_cast<const int64_t*>(targets.data)) {
    if (ignored >= 0) {
      own_.assign(ids, ids + targets.size);
      for (int64_t& id : own_)
        if (id == ignored) id = -1;
      ids = own_.data();
    }
    for (int64_t i = 0; i < targets.size; ++i)
      if (ids[i] >= 0) total += weight ? at(*weight, ids[i]) : 1;
  }

  static double at(const View& a, int64_t i) {
    return a.dtype == DType::float64 ? reinterpret_cast<const double*>(a.data)[i]
                                     : double(reinterpret_cast<const float*>(a.data)[i]);
  }

 private:
  std::vector<int64_t> own_;
};

void put(const View& number, double value) {
  if (number.dtype == DType::float64)
    *reinterpret_cast<double*>(number.data) = value;
  else
    *reinterpret_cast<float*>(number.data) = static_cast<float>(value);
}

}  // namespace

extern "C" {

npk_status npk_softmax(const npk_array* x, int axis, double temperature, const npk_array* mask,
                       const npk_array* y) {
  return map(npkernels::softmax, x, axis, temperature, mask, y);
}

npk_status npk_log_softmax(const npk_array* x, int axis, double temperature, const npk_array* mask,
                           const npk_array* y) {
  return map(npkernels::log_softmax, x, axis, temperature, mask, y);
}

npk_status npk_softmax_vjp(const npk_array* dy, const npk_array* y, int axis, double temperature,
                           const npk_array* mask, const npk_array* dx) {
  return vjp(npkernels::softmax_vjp, dy, y, axis, temperature, mask, dx);
}

npk_status npk_log_softmax_vjp(const npk_array* dy, const npk_array* y, int axis, double temperature,
                               const npk_array* mask, const npk_array* dx) {
  return vjp(npkernels::log_softmax_vjp, dy, y, axis, temperature, mask, dx);
}

npk_status npk_softmax_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                           const npk_array* mask, const npk_array* y, const npk_array* dy) {
  return jvp(npkernels::softmax_jvp, x, dx, axis, temperature, mask, y, dy);
}

npk_status npk_log_softmax_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                               const npk_array* mask, const npk_array* y, const npk_array* dy) {
  return jvp(npkernels::log_softmax_jvp, x, dx, axis, temperature, mask, y, dy);
}

npk_status npk_logsumexp(const npk_array* x, int axis, double temperature, const npk_array* mask,
                         const npk_array* lse, const npk_array* entropy) {
  return guarded([&] {
    const Rows rows(x, "x", axis, temperature, mask);
    require(lse || entropy, NPK_NULL_POINTER, "lse");
    const std::optional<View> norm = rows.per_row_or_null(lse, "lse"),
                              h = rows.per_row_or_null(entropy, "entropy");
    if (norm) check_output(*norm, {}, {&rows.x, rows.mask()});
    if (h) check_output(*h, {}, {&rows.x, rows.mask(), pointer(norm)});
    npkernels::logsumexp(rows.x, rows.options, data_of(norm), data_of(h));
  });
}

npk_status npk_logsumexp_vjp(const npk_array* d, const npk_array* x, const npk_array* lse, int axis,
                             double temperature, const npk_array* mask, const npk_array* dx) {
  return guarded([&] {
    const Rows rows(x, "x", axis, temperature, mask);
    const View cotangent = rows.per_row(d, "d"), norm = rows.per_row(lse, "lse"), out = rows.like(dx, "dx");
    check_output(out, {&rows.x}, {rows.mask(), &cotangent, &norm});
    npkernels::logsumexp_vjp(cotangent.data, rows.x, norm.data, rows.options, out);
  });
}

npk_status npk_logsumexp_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                             const npk_array* mask, const npk_array* lse, const npk_array* dlse) {
  return guarded([&] {
    const Rows rows(x, "x", axis, temperature, mask);
    const View tangent = rows.like(dx, "dx"), norm = rows.per_row(lse, "lse"),
               dnorm = rows.per_row(dlse, "dlse");
    check_output(norm, {}, {&rows.x, &tangent, rows.mask()});
    check_output(dnorm, {}, {&rows.x, &tangent, rows.mask(), &norm});
    npkernels::logsumexp_jvp(rows.x, tangent, rows.options, norm.data, dnorm.data);
  });
}

npk_status npk_token_log_probs(const npk_array* logits, const npk_array* ids, double temperature,
                               const npk_array* mask, const npk_token_stats* stats) {
  return guarded([&] {
    const Rows rows(logits, "logits", -1, temperature, mask);
    const View chosen = rows.per_row(ids, "ids", DType::int64);
    const WantedStats out(known_options(stats, kFirstTokenStats, "stats"), rows, chosen);
    check_ids(chosen, rows.x.shape[rows.options.axis]);
    npkernels::token_log_probs(
        rows.x, reinterpret_cast<const int64_t*>(chosen.data), rows.options,
        {data_of(out.log_prob), data_of(out.lse), data_of(out.entropy), data_of(out.sum_p2),
         static_cast<int64_t*>(data_of(out.top1)), static_cast<int64_t*>(data_of(out.rank))});
  });
}

npk_status npk_token_log_probs_vjp(const npk_array* dlogp, const npk_array* logits, const npk_array* ids,
                                   const npk_array* lse, const npk_array* dentropy, const npk_array* entropy,
                                   double temperature, const npk_array* mask, const npk_array* dlogits) {
  return guarded([&] {
    const Rows rows(logits, "logits", -1, temperature, mask);
    const View d = rows.per_row(dlogp, "dlogp"), chosen = rows.per_row(ids, "ids", DType::int64);
    const View norm = rows.per_row(lse, "lse");
    require(!dentropy || entropy, NPK_NULL_POINTER, "entropy");
    require(!entropy || dentropy, NPK_NULL_POINTER, "dentropy");
    const std::optional<View> dh = rows.per_row_or_null(dentropy, "dentropy");
    const std::optional<View> h = rows.per_row_or_null(entropy, "entropy");
    const View out = rows.like(dlogits, "dlogits");
    check_output(out, {&rows.x}, {rows.mask(), &d, &chosen, &norm, pointer(dh), pointer(h)});
    check_ids(chosen, rows.x.shape[rows.options.axis]);
    npkernels::token_log_probs_vjp(d.data, rows.x, reinterpret_cast<const int64_t*>(chosen.data), norm.data,
                                   data_of(dh), data_of(h), rows.options, out);
  });
}

npk_status npk_cross_entropy(const npk_array* logits, const npk_array* targets, int axis,
                             const npk_cross_entropy_options* options, const npk_array* loss,
                             const npk_array* dlogits) {
  return guarded([&] {
    const npk_cross_entropy_options defaults = NPK_CROSS_ENTROPY_OPTIONS_INIT;
    const auto o = known_options(options ? options : &defaults, kFirstCrossEntropyOptions, "options");
    const Rows rows(logits, "logits", axis, 1.0, nullptr);
    const int64_t classes = rows.x.shape[rows.options.axis];
    const View chosen = rows.per_row(targets, "targets", DType::int64);
    require(o.label_smoothing >= 0 && o.label_smoothing <= 1, NPK_BAD_VALUE, "label_smoothing");
    require(o.reserved == 0, NPK_BAD_VALUE, "reserved");
    require(o.reduction >= NPK_MEAN && o.reduction <= NPK_NONE, NPK_BAD_VALUE, "reduction");
    const std::optional<View> weight = optional_view(o.weight, "weight");
    if (weight) {
      check_dtype(*weight, rows.compute);
      require(weight->ndim == 1 && weight->shape[0] == classes, NPK_BAD_SHAPE, "weight");
      check_last_axis_contiguous(*weight);
    }
    const View result(loss, "loss");
    if (o.reduction == NPK_NONE) {
      check_per_row(result, rows.x, rows.options.axis, rows.compute);
    } else {
      check_dtype(result, rows.compute);
      require(result.ndim == 0, NPK_BAD_SHAPE, "loss");
    }
    check_output(result, {}, {&rows.x, &chosen, pointer(weight)});
    std::optional<View> grad;
    if (dlogits)
      check_output(grad.emplace(rows.like(dlogits, "dlogits")), {&rows.x},
                   {&chosen, pointer(weight), &result});
    check_ids(chosen, classes, &o.ignore_index);

    const Targets known(chosen, o.ignore_index, pointer(weight));
    double weight_sum = weight ? 0 : double(classes);
    for (int64_t c = 0; weight && c < classes; ++c) weight_sum += Targets::at(*weight, c);
    const double grad_scale = o.reduction != NPK_MEAN ? 1 : known.total != 0 ? 1 / known.total : double(NAN);
    std::unique_ptr<double[]> scratch;  // one float or double per row, where the caller wants one number only
    if (o.reduction != NPK_NONE) scratch.reset(new double[static_cast<size_t>(chosen.size)]);
    void* losses = scratch ? static_cast<void*>(scratch.get()) : result.data;
    const Array dx = grad ? Array(*grad) : Array{};
    npkernels::cross_entropy(rows.x, known.ids,
                             {rows.options.axis, o.label_smoothing, data_of(weight), weight_sum, grad_scale},
                             losses, grad ? &dx : nullptr);
    if (o.reduction == NPK_NONE) return;
    double sum = 0;
    for (int64_t i = 0; i < chosen.size; ++i)
      sum += rows.compute == DType::float64 ? scratch[i] : double(static_cast<const float*>(losses)[i]);
    put(result, o.reduction == NPK_SUM ? sum : known.total != 0 ? sum / known.total : double(NAN));
  });
}

}  // extern "C"
