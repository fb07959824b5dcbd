#include "rows.h"

namespace npkernels {

void make_rows(RowCall& call, int axis, const RowArray* arrays, int count) {
  const Array& lead = *arrays[0].array;
  call.n = lead.shape[axis];
  call.rows = 1;
  call.outer_dims = 0;
  for (int i = 0; i < count; ++i) {
    arrays[i].operand->data = static_cast<char*>(arrays[i].array->data);
    arrays[i].operand->inner = arrays[i].array->strides[axis];
    arrays[i].operand->outer[0] = 0;
  }
  for (int d = 0; d < lead.ndim; ++d) {
    const int64_t length = lead.shape[d];
    if (d == axis) continue;
    call.rows *= length;
    if (length == 1) continue;
    const int last = call.outer_dims - 1;
    bool behind = last >= 0;
    for (int i = 0; i < count && behind; ++i)
      behind = arrays[i].operand->outer[last] == arrays[i].array->strides[d] * length;
    const int target = behind ? last : call.outer_dims++;
    call.shape[target] = behind ? call.shape[target] * length : length;
    for (int i = 0; i < count; ++i) arrays[i].operand->outer[target] = arrays[i].array->strides[d];
  }
}

}  // namespace npkernels
