// From arrays and an axis to a RowCall.
#pragma once

#include "kernels/row_call.h"

namespace npkernels {

// One array of a call and the operand it becomes.
struct RowArray {
  const Array* array;
  RowOperand* operand;
};

// Fills call.n, rows, outer axes and the operands. All arrays have the shape of the first but for the length
// of `axis`, which is taken from the first; outer axes that lie behind one another in every array become one.
void make_rows(RowCall& call, int axis, const RowArray* arrays, int count);

}  // namespace npkernels
