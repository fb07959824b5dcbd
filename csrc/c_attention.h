// The arguments that the attention functions of npkernels.h share, checked.
#pragma once

#include <vector>

#include "c_arguments.h"
#include "npkernels/attention.h"

namespace npkernels::c_api {

// An array of the attention family with four axes; a missing batch or head axis becomes one of length 1.
struct FourAxes {
  int64_t shape[4], strides[4];
  Array array;

  explicit FourAxes(const View& a);
  FourAxes(const FourAxes&) = delete;
  FourAxes& operator=(const FourAxes&) = delete;
};

// q, k, v and the options of a call, as attention.h takes them.
class AttentionArguments {
 public:
  AttentionArguments(const npk_array* q, const npk_array* k, const npk_array* v,
                     const npk_attention_options* options);
  AttentionArguments(const AttentionArguments&) = delete;
  AttentionArguments& operator=(const AttentionArguments&) = delete;

  const npk_attention_options asked;
  const View query, key, value;
  const FourAxes q4, k4, v4;
  const DType compute;  // the dtype of what is per query or per head
  AttentionOptions options;
  std::optional<View> bias, sinks;

  // An array of the shape of one of q, k and v; of the output; and of lse.
  View like(const npk_array* array, const char* name, const View& other) const;
  View output(const npk_array* array, const char* name) const;
  View per_query(const npk_array* array, const char* name) const;
  std::optional<View> per_query_or_null(const npk_array* array, const char* name) const {
    return array ? std::optional<View>(per_query(array, name)) : std::nullopt;
  }
  // Refuses a result that shares memory with q, k, v, an option, or one of the others (null = none).
  void check_apart(const View& written, std::initializer_list<const View*> others) const;

 private:
  View operand(const npk_array* array, const char* name) const;
  void check_options();

  std::optional<View> mask_, slopes_, lengths_, offset_;
  std::optional<Broadcast> mask4_, bias4_, slopes2_;
  std::vector<int64_t> own_offset_;
};

}  // namespace npkernels::c_api
