// The attention family of npkernels.h: arguments checked, then the functions of attention.h.
#include <math.h>

#include <vector>

#include "c_arguments.h"
#include "npkernels/attention.h"

using namespace npkernels::c_api;
using npkernels::Array;
using npkernels::DType;

namespace {

constexpr size_t kFirstAttentionOptions = offsetof(npk_attention_options, bias) + sizeof(npk_array*);
constexpr int64_t kFarthest = int64_t(1) << 62;  // key positions beyond it would overflow

// An array of the attention family with four axes; a missing batch or head axis becomes one of length 1.
struct FourAxes {
  int64_t shape[4], strides[4];
  Array array;

  explicit FourAxes(const View& a) : array{a.data, shape, strides, 4, a.dtype} {
    const int missing = 4 - a.ndim;
    for (int i = 0; i < 4; ++i) {
      shape[i] = i < missing ? 1 : a.shape[i - missing];
      strides[i] = i < missing ? 0 : a.strides[i - missing];
    }
  }
  FourAxes(const FourAxes&) = delete;
  FourAxes& operator=(const FourAxes&) = delete;
};

// q, k, v or out: of q's dtype and number of axes, the last of them contiguous.
View operand(const npk_array* array, const char* name, const View* q) {
  View view(array, name);
  if (q) {
    check_dtype(view, q->dtype);
    require(view.ndim == q->ndim, NPK_BAD_SHAPE, name);
  } else {
    check_floating(view);
    require(view.ndim >= 2 && view.ndim <= 4, NPK_BAD_SHAPE, name);
  }
  check_last_axis_contiguous(view);
  return view;
}

// One integer per entry of the batch, in [low, high]; null where it was not given.
std::optional<View> per_entry(const npk_array* array, const char* name, int64_t batch, int64_t low,
                              int64_t high) {
  std::optional<View> view = optional_view(array, name);
  if (!view) return view;
  check_dtype(*view, DType::int64);
  require(view->ndim == 1 && view->shape[0] == batch, NPK_BAD_SHAPE, name);
  check_last_axis_contiguous(*view);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t value = reinterpret_cast<const int64_t*>(view->data)[b];
    require(value >= low && value <= high, NPK_BAD_VALUE, name);
  }
  return view;
}

const int64_t* integers(const std::optional<View>& view) {
  return view ? reinterpret_cast<const int64_t*>(view->data) : nullptr;
}

// Key position of query 0 per batch; null where it is 0.
class Offset {
 public:
  Offset(const npk_attention_options& options, const std::optional<View>& lengths, int64_t batch,
         int64_t queries, int64_t keys)
      : given_(per_entry(options.q_offset, "q_offset", batch, 1 - kFarthest, kFarthest - 1)) {
    if (given_ || options.causal != NPK_CAUSAL_BOTTOM_RIGHT) return;
    for (int64_t b = 0; b < batch; ++b) own_.push_back((lengths ? integers(lengths)[b] : keys) - queries);
  }
  const int64_t* get() const { return given_ ? integers(given_) : own_.empty() ? nullptr : own_.data(); }
  const View* view() const { return pointer(given_); }

 private:
  std::optional<View> given_;
  std::vector<int64_t> own_;
};

}  // namespace

extern "C" {

npk_status npk_attention(const npk_array* q, const npk_array* k, const npk_array* v,
                         const npk_attention_options* options, const npk_array* out, const npk_array* lse) {
  return guarded([&] {
    const npk_attention_options defaults = NPK_ATTENTION_OPTIONS_INIT;
    const auto o = known_options(options ? options : &defaults, kFirstAttentionOptions, "options");
    const View query = operand(q, "q", nullptr), key = operand(k, "k", &query),
               value = operand(v, "v", &query);
    const View result = operand(out, "out", &query);
    const FourAxes q4(query), k4(key), v4(value), out4(result);
    const int64_t B = q4.shape[0], Hq = q4.shape[1], S = q4.shape[2], D = q4.shape[3];
    const int64_t Hkv = k4.shape[1], K = k4.shape[2], Dv = v4.shape[3];
    require(k4.shape[0] == B && k4.shape[3] == D && (Hkv ? Hq % Hkv : Hq) == 0, NPK_BAD_SHAPE, "k");
    require(v4.shape[0] == B && v4.shape[1] == Hkv && v4.shape[2] == K, NPK_BAD_SHAPE, "v");
    require(out4.shape[0] == B && out4.shape[1] == Hq && out4.shape[2] == S && out4.shape[3] == Dv,
            NPK_BAD_SHAPE, "out");

    require(isfinite(o.scale), NPK_BAD_VALUE, "scale");
    require(o.causal >= NPK_CAUSAL_NONE && o.causal <= NPK_CAUSAL_BOTTOM_RIGHT, NPK_BAD_VALUE, "causal");
    require(o.windowed == 0 || o.windowed == 1, NPK_BAD_VALUE, "windowed");
    const int64_t left = o.windowed ? o.window_left : -1, right = o.windowed ? o.window_right : -1;
    require(left >= -1 && left < kFarthest, NPK_BAD_VALUE, "window_left");
    require(right >= -1 && right < kFarthest, NPK_BAD_VALUE, "window_right");
    require(isfinite(o.softcap) && o.softcap >= 0, NPK_BAD_VALUE, "softcap");
    require(o.dropout_p >= 0 && o.dropout_p < 1, NPK_BAD_VALUE, "dropout_p");
    const std::optional<View> lengths = per_entry(o.kv_lengths, "kv_lengths", B, 0, K);
    const Offset offset(o, lengths, B, S, K);
    const DType compute = npkernels::compute_dtype(query.dtype);
    const std::optional<View> slopes = optional_view(o.alibi_slopes, "alibi_slopes"),
                              sinks = optional_view(o.sinks, "sinks");
    const int64_t per_head[2] = {B, Hq};
    std::optional<Broadcast> slopes2;
    if (slopes) {
      check_dtype(*slopes, compute);
      slopes2.emplace(*slopes, 2, per_head);
    }
    if (sinks) {
      check_dtype(*sinks, compute);
      require(sinks->ndim == 1 && sinks->shape[0] == Hq, NPK_BAD_SHAPE, "sinks");
      check_last_axis_contiguous(*sinks);
    }
    const std::optional<View> mask = optional_view(o.mask, "mask"), bias = optional_view(o.bias, "bias");
    if (mask) check_dtype(*mask, DType::boolean);
    if (bias) check_dtype(*bias, query.dtype);
    const int64_t scores[4] = {B, Hq, S, K};
    std::optional<Broadcast> mask4, bias4;
    if (mask) mask4.emplace(*mask, 4, scores);
    if (bias) bias4.emplace(*bias, 4, scores);

    const std::optional<View> norm = optional_view(lse, "lse");
    if (norm) check_per_row(*norm, query, query.ndim - 1, compute);
    const auto apart = [&](const View& written, const View* other) {
      check_output(written, {},
                   {&query, &key, &value, pointer(mask), pointer(bias), offset.view(), pointer(lengths),
                    pointer(slopes), pointer(sinks), other});
    };
    apart(result, nullptr);
    if (norm) apart(*norm, &result);

    npkernels::AttentionOptions options;
    options.scale = o.scale != 0 ? o.scale : D > 0 ? 1 / sqrt(double(D)) : 1;
    options.softcap = o.softcap;
    options.causal = o.causal != NPK_CAUSAL_NONE;
    options.window_left = left;
    options.window_right = right;
    options.offset = offset.get();
    options.kv_lengths = integers(lengths);
    options.mask = mask4 ? &mask4->array : nullptr;
    options.bias = bias4 ? &bias4->array : nullptr;
    options.slopes = slopes2 ? &slopes2->array : nullptr;
    options.sinks = sinks ? sinks->data : nullptr;
    options.dropout_p = o.dropout_p;
    options.dropout_seed = o.dropout_seed;
    const bool done =
        npkernels::attention(q4.array, k4.array, v4.array, options, out4.array, norm ? norm->data : nullptr);
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
