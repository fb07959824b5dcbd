// The derivatives of attention, of npkernels.h: arguments checked, then the functions of attention.h.
#include <memory>

#include "c_attention.h"

using namespace npkernels::c_api;
using npkernels::Array;
using npkernels::DType;

namespace {

void* data_of(const std::optional<View>& view) { return view ? view->data : nullptr; }

// The gradient of the bias as attention.h wants it: zeros of double, of the shape of the bias.
class BiasGradient {
 public:
  BiasGradient(const View& target, const int64_t* scores) : target_(target) {
    sums_.reset(new double[static_cast<size_t>(target.size)]());
    const npk_array described{sums_.get(), target.shape, nullptr, target.ndim, NPK_FLOAT64};
    view_.emplace(View(&described, target.name), 4, scores);
  }
  const Array* array() const { return &view_->array; }

  // Rounds the sums to the compute dtype.
  void store() const {
    if (target_.dtype == DType::float64)
      for (int64_t i = 0; i < target_.size; ++i) reinterpret_cast<double*>(target_.data)[i] = sums_[i];
    else
      for (int64_t i = 0; i < target_.size; ++i)
        reinterpret_cast<float*>(target_.data)[i] = static_cast<float>(sums_[i]);
  }

 private:
  const View& target_;
  std::unique_ptr<double[]> sums_;
  std::optional<Broadcast> view_;
};

}  // namespace

extern "C" {

npk_status npk_attention_vjp(const npk_array* dout, const npk_array* q, const npk_array* k,
                             const npk_array* v, const npk_array* out, const npk_array* lse,
                             const npk_array* dlse, const npk_attention_options* options, const npk_array* dq,
                             const npk_array* dk, const npk_array* dv, const npk_array* dbias,
                             const npk_array* dsinks) {
  return guarded([&] {
    const AttentionArguments given(q, k, v, options);
    const View cotangent = given.output(dout, "dout"), result = given.output(out, "out");
    const View norm = given.per_query(lse, "lse");
    const std::optional<View> d_norm = given.per_query_or_null(dlse, "dlse");
    const View to_q = given.like(dq, "dq", given.query), to_k = given.like(dk, "dk", given.key),
               to_v = given.like(dv, "dv", given.value);
    const std::optional<View> to_bias = optional_view(dbias, "dbias"),
                              to_sinks = optional_view(dsinks, "dsinks");
    if (to_bias) {
      require(given.bias.has_value(), NPK_NULL_POINTER, "bias");
      check_dtype(*to_bias, given.compute);
      check_shape(*to_bias, *given.bias);
      check_contiguous(*to_bias);
    }
    if (to_sinks) {
      require(given.sinks.has_value(), NPK_NULL_POINTER, "sinks");
      check_dtype(*to_sinks, given.compute);
      check_shape(*to_sinks, *given.sinks);
      check_contiguous(*to_sinks);
    }
    const auto apart = [&](const View& written, std::initializer_list<const View*> earlier) {
      given.check_apart(written, {&cotangent, &result, &norm, pointer(d_norm)});
      given.check_apart(written, earlier);
    };
    apart(to_q, {});
    apart(to_k, {&to_q});
    apart(to_v, {&to_q, &to_k});
    if (to_bias) apart(*to_bias, {&to_q, &to_k, &to_v});
    if (to_sinks) apart(*to_sinks, {&to_q, &to_k, &to_v, pointer(to_bias)});

    const FourAxes dout4(cotangent), out4(result), dq4(to_q), dk4(to_k), dv4(to_v);
    const int64_t scores[4] = {given.q4.shape[0], given.q4.shape[1], given.q4.shape[2], given.k4.shape[2]};
    std::optional<BiasGradient> of_bias;
    if (to_bias) of_bias.emplace(*to_bias, scores);
    const bool done = npkernels::attention_vjp(
        dout4.array, given.q4.array, given.k4.array, given.v4.array, out4.array, norm.data, data_of(d_norm),
        given.options,
        {&dq4.array, &dk4.array, &dv4.array, of_bias ? of_bias->array() : nullptr, data_of(to_sinks)});
    require(done, NPK_NO_MEMORY, "");
    if (of_bias) of_bias->store();
  });
}

npk_status npk_attention_jvp(const npk_array* q, const npk_array* k, const npk_array* v, const npk_array* dq,
                             const npk_array* dk, const npk_array* dv, const npk_attention_options* options,
                             const npk_array* out, const npk_array* dout, const npk_array* lse) {
  return guarded([&] {
    const AttentionArguments given(q, k, v, options);
    require(given.asked.dropout_p == 0, NPK_BAD_VALUE, "dropout_p");
    const View along_q = given.like(dq, "dq", given.query), along_k = given.like(dk, "dk", given.key),
               along_v = given.like(dv, "dv", given.value);
    const View result = given.output(out, "out"), tangent = given.output(dout, "dout");
    const std::optional<View> norm = given.per_query_or_null(lse, "lse");
    const auto apart = [&](const View& written, std::initializer_list<const View*> earlier) {
      given.check_apart(written, {&along_q, &along_k, &along_v});
      given.check_apart(written, earlier);
    };
    apart(result, {});
    apart(tangent, {&result});
    if (norm) apart(*norm, {&result, &tangent});

    const FourAxes dq4(along_q), dk4(along_k), dv4(along_v), out4(result), dout4(tangent);
    const bool done =
        npkernels::attention_jvp(given.q4.array, given.k4.array, given.v4.array, dq4.array, dk4.array,
                                 dv4.array, given.options, out4.array, dout4.array, data_of(norm));
    require(done, NPK_NO_MEMORY, "");
  });
}

}  // extern "C"
