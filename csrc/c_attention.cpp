#include "c_attention.h"

#include <math.h>

namespace npkernels::c_api {
namespace {

constexpr size_t kFirstAttentionOptions = offsetof(npk_attention_options, bias) + sizeof(npk_array*);
constexpr int64_t kFarthest = int64_t(1) << 62;  // key positions beyond it would overflow

npk_attention_options known(const npk_attention_options* options) {
  const npk_attention_options defaults = NPK_ATTENTION_OPTIONS_INIT;
  return known_options(options ? options : &defaults, kFirstAttentionOptions, "options");
}

View lead(const npk_array* array, const char* name) {
  View view(array, name);
  check_floating(view);
  require(view.ndim >= 2 && view.ndim <= 4, NPK_BAD_SHAPE, name);
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
    const int64_t entry = reinterpret_cast<const int64_t*>(view->data)[b];
    require(entry >= low && entry <= high, NPK_BAD_VALUE, name);
  }
  return view;
}

const int64_t* integers(const std::optional<View>& view) {
  return view ? reinterpret_cast<const int64_t*>(view->data) : nullptr;
}

}  // namespace

FourAxes::FourAxes(const View& a) : array{a.data, shape, strides, 4, a.dtype} {
  const int missing = 4 - a.ndim;
  for (int i = 0; i < 4; ++i) {
    shape[i] = i < missing ? 1 : a.shape[i - missing];
    strides[i] = i < missing ? 0 : a.strides[i - missing];
  }
}

AttentionArguments::AttentionArguments(const npk_array* q, const npk_array* k, const npk_array* v,
                                       const npk_attention_options* o)
    : asked(known(o)),
      query(lead(q, "q")),
      key(operand(k, "k")),
      value(operand(v, "v")),
      q4(query),
      k4(key),
      v4(value),
      compute(compute_dtype(query.dtype)) {
  const int64_t q_heads = q4.shape[1], k_heads = k4.shape[1];
  require(k4.shape[0] == q4.shape[0] && k4.shape[3] == q4.shape[3] &&
              (k_heads ? q_heads % k_heads : q_heads) == 0,
          NPK_BAD_SHAPE, "k");
  require(v4.shape[0] == q4.shape[0] && v4.shape[1] == k_heads && v4.shape[2] == k4.shape[2], NPK_BAD_SHAPE,
          "v");
  check_options();
}

// Of q's dtype and number of axes, the last of them contiguous.
View AttentionArguments::operand(const npk_array* array, const char* name) const {
  View view(array, name);
  check_dtype(view, query.dtype);
  require(view.ndim == query.ndim, NPK_BAD_SHAPE, name);
  check_last_axis_contiguous(view);
  return view;
}

void AttentionArguments::check_options() {
  const npk_attention_options& o = asked;
  const int64_t B = q4.shape[0], Hq = q4.shape[1], S = q4.shape[2], D = q4.shape[3], K = k4.shape[2];
  require(isfinite(o.scale), NPK_BAD_VALUE, "scale");
  require(o.causal >= NPK_CAUSAL_NONE && o.causal <= NPK_CAUSAL_BOTTOM_RIGHT, NPK_BAD_VALUE, "causal");
  require(o.windowed == 0 || o.windowed == 1, NPK_BAD_VALUE, "windowed");
  const int64_t left = o.windowed ? o.window_left : -1, right = o.windowed ? o.window_right : -1;
  require(left >= -1 && left < kFarthest, NPK_BAD_VALUE, "window_left");
  require(right >= -1 && right < kFarthest, NPK_BAD_VALUE, "window_right");
  require(isfinite(o.softcap) && o.softcap >= 0, NPK_BAD_VALUE, "softcap");
  require(o.dropout_p >= 0 && o.dropout_p < 1, NPK_BAD_VALUE, "dropout_p");

  // Key position of query 0 of each entry of the batch.
  lengths_ = per_entry(o.kv_lengths, "kv_lengths", B, 0, K);
  offset_ = per_entry(o.q_offset, "q_offset", B, 1 - kFarthest, kFarthest - 1);
  if (!offset_ && o.causal == NPK_CAUSAL_BOTTOM_RIGHT) {
    own_offset_.reserve(static_cast<size_t>(B));  // what no memory holds is found out at once
    for (int64_t b = 0; b < B; ++b) own_offset_.push_back((lengths_ ? integers(lengths_)[b] : K) - S);
  }

  slopes_ = optional_view(o.alibi_slopes, "alibi_slopes");
  sinks = optional_view(o.sinks, "sinks");
  if (slopes_) {
    const int64_t per_head[2] = {B, Hq};
    check_dtype(*slopes_, compute);
    options.slopes = &slopes2_.emplace(*slopes_, 2, per_head).array;
  }
  if (sinks) {
    check_dtype(*sinks, compute);
    require(sinks->ndim == 1 && sinks->shape[0] == Hq, NPK_BAD_SHAPE, "sinks");
    check_last_axis_contiguous(*sinks);
    options.sinks = sinks->data;
  }
  mask_ = optional_view(o.mask, "mask");
  bias = optional_view(o.bias, "bias");
  if (mask_) check_dtype(*mask_, DType::boolean);
  if (bias) check_dtype(*bias, query.dtype);
  const int64_t scores[4] = {B, Hq, S, K};
  if (mask_) options.mask = &mask4_.emplace(*mask_, 4, scores).array;
  if (bias) options.bias = &bias4_.emplace(*bias, 4, scores).array;

  options.scale = o.scale != 0 ? o.scale : D > 0 ? 1 / sqrt(double(D)) : 1;
  options.softcap = o.softcap;
  options.causal = o.causal != NPK_CAUSAL_NONE;
  options.window_left = left;
  options.window_right = right;
  options.offset = offset_ ? integers(offset_) : own_offset_.empty() ? nullptr : own_offset_.data();
  options.kv_lengths = integers(lengths_);
  options.dropout_p = o.dropout_p;
  options.dropout_seed = o.dropout_seed;
}

View AttentionArguments::like(const npk_array* array, const char* name, const View& other) const {
  View view = operand(array, name);
  check_shape(view, other);
  return view;
}

View AttentionArguments::output(const npk_array* array, const char* name) const {
  View view = operand(array, name);
  const FourAxes a(view);
  require(a.shape[0] == q4.shape[0] && a.shape[1] == q4.shape[1] && a.shape[2] == q4.shape[2] &&
              a.shape[3] == v4.shape[3],
          NPK_BAD_SHAPE, name);
  return view;
}

View AttentionArguments::per_query(const npk_array* array, const char* name) const {
  View view(array, name);
  check_per_row(view, query, query.ndim - 1, compute);
  return view;
}

void AttentionArguments::check_apart(const View& written, std::initializer_list<const View*> others) const {
  check_output(written, {},
               {&query, &key, &value, pointer(mask_), pointer(bias), pointer(offset_), pointer(lengths_),
                pointer(slopes_), pointer(sinks)});
  for (const View* other : others)
    if (other) check_output(written, {}, {other});
}

}  // namespace npkernels::c_api
