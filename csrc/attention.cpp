// The public functions of attention.h.
#include "npkernels/attention.h"

#include <stdlib.h>

#include "kernels/table.h"
#include "npkernels/threads.h"
#include "rows.h"

namespace npkernels {
namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr double kSerialWork = 500e3;

}  // namespace

bool attention(const Array& q, const Array& k, const Array& v, const AttentionOptions& options,
               const Array& out, void* lse) {
  AttentionCall call;
  call.dtype = q.dtype;
  call.batch = q.shape[0];
  call.kv_heads = k.shape[1];
  call.group = k.shape[1] ? q.shape[1] / k.shape[1] : 1;
  call.queries = q.shape[2];
  call.keys = k.shape[2];
  call.dim = q.shape[3];
  call.value_dim = v.shape[3];
  call.q = static_cast<const char*>(q.data);
  call.k = static_cast<const char*>(k.data);
  call.v = static_cast<const char*>(v.data);
  call.out = static_cast<char*>(out.data);
  for (int i = 0; i < 3; ++i) {
    call.q_stride[i] = q.strides[i];
    call.k_stride[i] = k.strides[i];
    call.v_stride[i] = v.strides[i];
    call.out_stride[i] = out.strides[i];
  }
  for (int i = 0; i < 4; ++i) {
    if (options.mask) call.mask_stride[i] = options.mask->strides[i];
    if (options.bias) call.bias_stride[i] = options.bias->strides[i];
  }
  if (options.mask) call.mask = static_cast<const char*>(options.mask->data);
  if (options.bias) call.bias = static_cast<const char*>(options.bias->data);
  call.lse = lse;
  call.scale = options.scale;
  call.causal = options.causal;
  call.offset = options.offset;

  const int64_t tasks = kernels().attention_tasks(call);
  if (tasks == 0) return true;
  const double work = double(call.batch) * call.kv_heads * call.group * call.queries * call.keys *
                      (call.dim + call.value_dim);
  call.workers = work < kSerialWork ? 1 : workers_for(tasks);
  call.scratch_bytes = (kernels().attention_scratch(call) + 63) / 64 * 64;
  call.scratch =
      static_cast<char*>(aligned_alloc(64, static_cast<size_t>(call.scratch_bytes) * call.workers));
  if (!call.scratch) return false;
  kernels().attention(call);
  free(call.scratch);
  return true;
}

void merge_attention(int parts, const Array* outs, const void* const* lses, const Array& out, void* lse) {
  MergeCall call;
  call.dtype = out.dtype;
  call.parts = parts;
  RowOperand* operands = new RowOperand[parts];
  RowArray* arrays = new RowArray[parts + 1];
  arrays[0] = {&out, &call.out[0]};
  for (int i = 0; i < parts; ++i) arrays[i + 1] = {&outs[i], &operands[i]};
  make_rows(call, out.ndim - 1, arrays, parts + 1);
  call.outs = operands;
  call.lses = lses;
  call.lse = lse;
  kernels().merge_attention(call);
  delete[] arrays;
  delete[] operands;
}

void rotary_embedding(const Array& x, const Array& cos, const Array& sin, int64_t rotary_dim,
                      bool interleaved, bool inverse, const Array& out) {
  RotaryCall call;
  call.dtype = x.dtype;
  const RowArray arrays[] = {{&x, &call.in[0]}, {&out, &call.out[0]}, {&cos, &call.cos}, {&sin, &call.sin}};
  make_rows(call, x.ndim - 1, arrays, 4);
  call.rotary_dim = rotary_dim;
  call.interleaved = interleaved;
  call.inverse = inverse;
  kernels().rotary(call);
}

}  // namespace npkernels
