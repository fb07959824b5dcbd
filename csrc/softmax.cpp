// The public functions of softmax.h: each describes its arrays as rows and hands them to the kernel in use.
#include "npkernels/softmax.h"

#include "kernels/table.h"
#include "rows.h"

namespace npkernels {
namespace {

// `arrays` in the order in[0], in[1], out[0], out[1]; null where a kernel has none.
void describe(RowCall& call, const SoftmaxOptions& options, const Array* in0, const Array* in1,
              const Array* out0, const Array* out1) {
  call.dtype = in0->dtype;
  call.temperature = options.temperature;
  call.masked = options.mask != nullptr;
  RowArray arrays[5];
  int count = 0;
  const auto add = [&](const Array* array, RowOperand& operand) {
    if (array) arrays[count++] = {array, &operand};
  };
  add(in0, call.in[0]);
  add(in1, call.in[1]);
  add(out0, call.out[0]);
  add(out1, call.out[1]);
  add(options.mask, call.mask);
  make_rows(call, options.axis, arrays, count);
}

}  // namespace

void softmax(const Array& x, const SoftmaxOptions& options, const Array& y) {
  RowCall call;
  describe(call, options, &x, nullptr, &y, nullptr);
  kernels().softmax(call);
}

void log_softmax(const Array& x, const SoftmaxOptions& options, const Array& y) {
  RowCall call;
  describe(call, options, &x, nullptr, &y, nullptr);
  kernels().log_softmax(call);
}

void logsumexp(const Array& x, const SoftmaxOptions& options, void* lse, void* entropy) {
  StatsCall call;
  describe(call, options, &x, nullptr, nullptr, nullptr);
  call.lse = lse;
  call.entropy = entropy;
  kernels().logsumexp(call);
}

void softmax_vjp(const Array& dy, const Array& y, const SoftmaxOptions& options, const Array& dx) {
  RowCall call;
  describe(call, options, &dy, &y, &dx, nullptr);
  kernels().softmax_vjp(call);
}

void log_softmax_vjp(const Array& dy, const Array& y, const SoftmaxOptions& options, const Array& dx) {
  RowCall call;
  describe(call, options, &dy, &y, &dx, nullptr);
  kernels().log_softmax_vjp(call);
}

void logsumexp_vjp(const void* d, const Array& x, const void* lse, const SoftmaxOptions& options,
                   const Array& dx) {
  RowGradCall call;
  describe(call, options, &x, nullptr, &dx, nullptr);
  call.d = d;
  call.lse = lse;
  kernels().logsumexp_vjp(call);
}

void softmax_jvp(const Array& x, const Array& dx, const SoftmaxOptions& options, const Array& y,
                 const Array& dy) {
  RowCall call;
  describe(call, options, &x, &dx, &y, &dy);
  kernels().softmax_jvp(call);
}

void log_softmax_jvp(const Array& x, const Array& dx, const SoftmaxOptions& options, const Array& y,
                     const Array& dy) {
  RowCall call;
  describe(call, options, &x, &dx, &y, &dy);
  kernels().log_softmax_jvp(call);
}

void logsumexp_jvp(const Array& x, const Array& dx, const SoftmaxOptions& options, void* lse, void* dlse) {
  StatsCall call;
  describe(call, options, &x, &dx, nullptr, nullptr);
  call.lse = lse;
  call.tangent = dlse;
  kernels().logsumexp_jvp(call);
}

void token_log_probs(const Array& logits, const int64_t* ids, const SoftmaxOptions& options,
                     const TokenStatsOut& out) {
  StatsCall call;
  describe(call, options, &logits, nullptr, nullptr, nullptr);
  call.ids = ids;
  call.log_prob = out.log_prob;
  call.lse = out.lse;
  call.entropy = out.entropy;
  call.sum_p2 = out.sum_p2;
  call.top1 = out.top1;
  call.rank = out.rank;
  kernels().token_log_probs(call);
}

void token_log_probs_vjp(const void* dlogp, const Array& logits, const int64_t* ids, const void* lse,
                         const void* dentropy, const void* entropy, const SoftmaxOptions& options,
                         const Array& dlogits) {
  RowGradCall call;
  describe(call, options, &logits, nullptr, &dlogits, nullptr);
  call.d = dlogp;
  call.ids = ids;
  call.lse = lse;
  call.dentropy = dentropy;
  call.entropy = entropy;
  kernels().token_log_probs_vjp(call);
}

void cross_entropy(const Array& x, const int64_t* ids, const CrossEntropyOptions& options, void* loss,
                   const Array* dx) {
  LossCall call;
  describe(call, {options.axis, 1.0, nullptr}, &x, nullptr, dx, nullptr);
  if (!dx) {  // an output that nobody reads, laid out like x
    call.out[0] = call.in[0];
    call.out[0].data = nullptr;
  }
  call.ids = ids;
  call.weight = options.weight;
  call.weight_sum = options.weight_sum;
  call.label_smoothing = options.label_smoothing;
  call.grad_scale = options.grad_scale;
  call.loss = loss;
  kernels().cross_entropy(call);
}

}  // namespace npkernels
