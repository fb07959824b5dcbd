// The attention family of npkernels.h: arguments checked, then the functions of attention.h.
// c_api_attention_grads.cpp has the derivatives.
#include <vector>

#include "c_attention.h"

using namespace npkernels::c_api;
using npkernels::Array;
using npkernels::DType;

extern "C" {

npk_status npk_attention(const npk_array* q, const npk_array* k, const npk_array* v,
                         const npk_attention_options* options, const npk_array* out, const npk_array* lse) {
  return guarded([&] {
    const AttentionArguments given(q, k, v, options);
    const View result = given.output(out, "out");
    const std::optional<View> norm = given.per_query_or_null(lse, "lse");
    given.check_apart(result, {});
    if (norm) given.check_apart(*norm, {&result});
    const FourAxes out4(result);
    const bool done = npkernels::attention(given.q4.array, given.k4.array, given.v4.array, given.options,
                                           out4.array, norm ? norm->data : nullptr);
    require(done, NPK_NO_MEMORY, "");
  });
}

npk_status npk_merge_attention(int parts, const npk_array* outs, const npk_array* lses, const npk_array* out,
                               const npk_array* lse) {
  return guarded([&] {
    require(parts >= 1, NPK_BAD_VALUE, "parts");
    require(outs != nullptr, NPK_NULL_POINTER, "outs");
    require(lses != nullptr, NPK_NULL_POINTER, "lses");
    const View result(out, "out"), norm(lse, "lse");
    check_floating(result);
    require(result.ndim >= 1, NPK_BAD_SHAPE, "out");
    check_last_axis_contiguous(result);
    const DType compute = npkernels::compute_dtype(result.dtype);
    check_per_row(norm, result, result.ndim - 1, compute);
    check_output(norm, {}, {&result});

    std::vector<View> views;
    std::vector<Array> arrays;
    std::vector<const void*> norms;
    views.reserve(static_cast<size_t>(parts));
    for (int i = 0; i < parts; ++i) {
      const View& part = views.emplace_back(&outs[i], "outs");
      const View part_norm(&lses[i], "lses");
      check_dtype(part, result.dtype);
      check_shape(part, result);
      check_last_axis_contiguous(part);
      check_per_row(part_norm, result, result.ndim - 1, compute);
      check_output(result, {}, {&part, &part_norm});
      check_output(norm, {}, {&part, &part_norm});
      arrays.push_back(part);
      norms.push_back(part_norm.data);
    }
    npkernels::merge_attention(parts, arrays.data(), norms.data(), result, norm.data);
  });
}

npk_status npk_rotary_embedding(const npk_array* x, const npk_array* cos, const npk_array* sin,
                                int interleaved, int inverse, const npk_array* y) {
  return guarded([&] {
    const View in(x, "x"), cosines(cos, "cos"), sines(sin, "sin"), out(y, "y");
    check_floating(in);
    require(in.ndim >= 1, NPK_BAD_SHAPE, "x");
    check_last_axis_contiguous(in);
    check_dtype(out, in.dtype);
    check_shape(out, in);
    check_last_axis_contiguous(out);
    check_dtype(cosines, npkernels::compute_dtype(in.dtype));
    check_dtype(sines, cosines.dtype);
    require(cosines.ndim >= 1, NPK_BAD_SHAPE, "cos");
    check_shape(sines, cosines);
    check_last_axis_contiguous(cosines);
    check_last_axis_contiguous(sines);
    const int64_t half = cosines.shape[cosines.ndim - 1];
    require(half <= in.shape[in.ndim - 1] / 2, NPK_BAD_SHAPE, "cos");

    int64_t shape[npkernels::kMaxDims];
    for (int i = 0; i < in.ndim; ++i) shape[i] = in.shape[i];
    shape[in.ndim - 1] = half;
    const Broadcast c(cosines, in.ndim, shape), s(sines, in.ndim, shape);
    check_output(out, {&in}, {&cosines, &sines});
    npkernels::rotary_embedding(in, c.array, s.array, 2 * half, interleaved != 0, inverse != 0, out);
  });
}

}  // extern "C"
