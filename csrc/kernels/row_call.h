// A call of a row kernel after normalising: rows of n entries, the axes around them merged where memory
// allows.
#pragma once

#include "npkernels/array.h"

namespace npkernels {

struct RowOperand {
  char* data = nullptr;
  int64_t inner = 0;        // bytes between the entries of a row
  int64_t outer[kMaxDims];  // bytes between rows, per outer axis; make_rows sets what is used
};

// Rows are numbered in the C order of the outer axes.
struct RowCall {
  int64_t n = 0;
  int64_t rows = 1;
  int outer_dims = 0;
  int64_t shape[kMaxDims];
  DType dtype = DType::float32;
  double temperature = 1.0;
  bool masked = false;
  RowOperand mask;
  RowOperand in[2];
  RowOperand out[2];
};

// Per-row numbers that some kernels read or write; of the compute dtype and contiguous unless a type is
// given.
struct StatsCall : RowCall {
  const int64_t* ids = nullptr;
  void* log_prob = nullptr;
  void* lse = nullptr;
  void* entropy = nullptr;
  void* sum_p2 = nullptr;
  int64_t* top1 = nullptr;
  int64_t* rank = nullptr;
  void* tangent = nullptr;  // of lse
};

struct RowGradCall : RowCall {
  const void* d = nullptr;  // cotangent of lse or of log_prob
  const int64_t* ids = nullptr;
  const void* lse = nullptr;
  const void* dentropy = nullptr;
  const void* entropy = nullptr;
};

struct LossCall : RowCall {
  const int64_t* ids = nullptr;
  const void* weight = nullptr;
  double weight_sum = 0;
  double label_smoothing = 0;
  double grad_scale = 0;
  void* loss = nullptr;
};

}  // namespace npkernels
