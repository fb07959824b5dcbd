// A call of a perturbation kernel after normalising: samples of rows of n entries; a sample is rows / samples
// rows that follow one another.
#pragma once

#include "row_call.h"

namespace npkernels {

// A length for every entry, or one for each sample, or one for all.
struct RowAmount {
  double value = 0;
  const double* per_sample = nullptr;
  bool each = false;
  RowOperand entries;  // of the compute dtype, if `each`
};

// A bound on every entry, or one for all.
struct RowBound {
  double value = 0;
  bool each = false;
  RowOperand entries;  // of the compute dtype, if `each`
};

// in[0] is x (or a velocity), in[1] the gradient, out[0] the result; mask where `masked`.
struct PerturbCall : RowCall {
  int64_t samples = 1;
  int norm = 0;            // 1, 2, or 0 for the largest entry
  bool stepped = false;    // whether there is a gradient to follow
  bool targeted = false;   // against it
  bool centered = false;   // whether there is a ball to stay in
  bool bounded = false;    // whether low and high are not infinite
  RowAmount step, radius;  // of the step, of the ball
  RowOperand center;
  RowBound low, high;
  double decay = 0;         // of a velocity
  uint64_t key = 0;         // of random numbers
  int64_t* nans = nullptr;  // how many entries of the gradient are NaN, or not asked for
};

}  // namespace npkernels
