/* npkernels for C, and for every language that can call C.
 *
 * Every function checks its arguments before any work, returns a status, and on any status but NPK_OK has
 * written nothing. Nothing throws, aborts or prints. All functions may be called from several threads at
 * once, on different outputs.
 *
 * Letters: x logits, T temperature, V row length, m the largest x/T of a row, p = softmax(x/T); B batch, Hq
 * query heads, Hkv key/value heads, S queries, K keys, D head size, Dv value head size. `...` = any leading
 * axes. The "compute dtype" is float64 for float64 arrays, else float32. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef NPK_API
#if defined(_WIN32)
#define NPK_API
#else
#define NPK_API __attribute__((visibility("default")))
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- arrays ---- */

typedef enum npk_dtype {
  NPK_FLOAT32 = 0,
  NPK_FLOAT64 = 1,
  NPK_FLOAT16 = 2,  /* IEEE binary16 */
  NPK_BFLOAT16 = 3, /* the upper half of a float32 */
  NPK_BOOL = 4,     /* one byte, 0 or 1 */
  NPK_INT64 = 5
} npk_dtype;

#define NPK_MAX_DIMS 64

/* Where an array lies; whoever made it owns the memory. Inputs are never written to, although `data` is not
 * const. */
typedef struct npk_array {
  void* data;
  const int64_t* shape;   /* ndim lengths */
  const int64_t* strides; /* ndim steps in BYTES, of any sign, 0 where an input repeats; NULL = C order */
  int32_t ndim;           /* at most NPK_MAX_DIMS; 0 = one number, shape and strides may then be NULL */
  int32_t dtype;          /* an npk_dtype */
} npk_array;

/* ---- status ---- */

typedef enum npk_status {
  NPK_OK = 0,
  NPK_NULL_POINTER = 1, /* an argument that is needed, or the data of an array with entries, is NULL */
  NPK_BAD_SHAPE = 2,    /* number of axes or lengths do not fit, alone or together with another argument */
  NPK_BAD_DTYPE = 3,    /* not a dtype of this function, or not that of the argument it goes with */
  NPK_BAD_STRIDES = 4,  /* not contiguous where it must be; an output with stride 0; not aligned */
  NPK_BAD_AXIS = 5,     /* axis outside [-ndim, ndim) */
  NPK_BAD_VALUE = 6,    /* a number outside its range: temperature, scale, label smoothing, ... */
  NPK_BAD_INDEX = 7,    /* an id or target outside [0, V) */
  NPK_OVERLAP = 8,      /* an output shares memory with another argument in a way that cannot be served */
  NPK_NO_MEMORY = 9     /* scratch memory could not be had */
} npk_status;

/* The status in words, never NULL: "has a shape that does not fit". */
NPK_API const char* npk_status_text(npk_status status);
/* The argument that the last call on this thread refused, by its name below ("temperature"); "" after a call
 * that worked. */
NPK_API const char* npk_bad_argument(void);

/* ---- softmax family ----
 *
 * - x is float32, float64, float16 or bfloat16, of any strides; 16-bit arrays are computed in float32 and
 *   rounded once. -ndim <= axis < ndim. temperature is finite and > 0.
 * - mask: NULL, or booleans that broadcast to x; an entry where it is 0 does not take part, whatever is
 *   there. Without a mask, a row of -inf has softmax NaN; with one, a row that nothing takes part in has
 *   softmax 0 and lse -inf.
 * - Outputs have the shape and dtype of x and may be the very same memory as an input, entry by entry.
 * - "Per row" arrays have x's shape without the axis, the compute dtype (if no other is named), and are
 *   contiguous in C order. */

/* y = softmax(x/T) along the axis */
NPK_API npk_status npk_softmax(const npk_array* x, int axis, double temperature, const npk_array* mask,
                               const npk_array* y);
/* y = log(softmax(x/T)) */
NPK_API npk_status npk_log_softmax(const npk_array* x, int axis, double temperature, const npk_array* mask,
                                   const npk_array* y);
/* lse = log(sum(exp(x/T))), entropy = -sum(p log p) in nats; per row, one of them may be NULL. */
NPK_API npk_status npk_logsumexp(const npk_array* x, int axis, double temperature, const npk_array* mask,
                                 const npk_array* lse, const npk_array* entropy);

/* dx = y (dy - sum(dy y)) / T, y the softmax */
NPK_API npk_status npk_softmax_vjp(const npk_array* dy, const npk_array* y, int axis, double temperature,
                                   const npk_array* mask, const npk_array* dx);
/* dx = (dy - exp(y) sum(dy)) / T, y the logarithm of the softmax */
NPK_API npk_status npk_log_softmax_vjp(const npk_array* dy, const npk_array* y, int axis, double temperature,
                                       const npk_array* mask, const npk_array* dx);
/* dx = d exp(x/T - lse) / T; d and lse per row */
NPK_API npk_status npk_logsumexp_vjp(const npk_array* d, const npk_array* x, const npk_array* lse, int axis,
                                     double temperature, const npk_array* mask, const npk_array* dx);

/* y = softmax(x/T) and its derivative along dx: dy = y (dx - sum(y dx)) / T */
NPK_API npk_status npk_softmax_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                                   const npk_array* mask, const npk_array* y, const npk_array* dy);
NPK_API npk_status npk_log_softmax_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                                       const npk_array* mask, const npk_array* y, const npk_array* dy);
/* lse and dlse = sum(p dx) / T, per row */
NPK_API npk_status npk_logsumexp_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                                     const npk_array* mask, const npk_array* lse, const npk_array* dlse);

/* -------------------------------------------------------------------------------------------- tokens under
 * their logits
 *
 * logits (..., V), ids (...) int64, 0 <= id < V. Every statistic is (...), contiguous, in one read of the
 * logits. */

/* Where to write what; NULL = not wanted. Start with NPK_TOKEN_STATS_INIT. */
typedef struct npk_token_stats {
  size_t size;               /* sizeof(npk_token_stats) */
  const npk_array* log_prob; /* log p[id] */
  const npk_array* lse;      /* log(sum(exp(x/T))) */
  const npk_array* entropy;  /* -sum(p log p), nats */
  const npk_array* sum_p2;   /* sum(p^2) */
  const npk_array* top1;     /* int64: index of the first largest logit; -1 if nothing takes part */
  const npk_array* rank;     /* int64: number of logits that are strictly larger than that of the id */
} npk_token_stats;
#define NPK_TOKEN_STATS_INIT {sizeof(npk_token_stats), NULL, NULL, NULL, NULL, NULL, NULL}

NPK_API npk_status npk_token_log_probs(const npk_array* logits, const npk_array* ids, double temperature,
                                       const npk_array* mask, const npk_token_stats* stats);
/* dlogits = (dlogp (onehot(id) - p) - dentropy p (log p + entropy)) / T with log p = x/T - lse.
 * dentropy and entropy: both or neither. dlogits may be logits. */
NPK_API npk_status npk_token_log_probs_vjp(const npk_array* dlogp, const npk_array* logits,
                                           const npk_array* ids, const npk_array* lse,
                                           const npk_array* dentropy, const npk_array* entropy,
                                           double temperature, const npk_array* mask,
                                           const npk_array* dlogits);

typedef enum npk_reduction {
  NPK_MEAN = 0, /* sum of the losses / sum of the targets' weights; NaN if every row is ignored */
  NPK_SUM = 1,
  NPK_NONE = 2 /* one loss per row */
} npk_reduction;

/* Start with NPK_CROSS_ENTROPY_OPTIONS_INIT. */
typedef struct npk_cross_entropy_options {
  size_t size;             /* sizeof(npk_cross_entropy_options) */
  const npk_array* weight; /* (V,) of the compute dtype, contiguous; NULL = 1 */
  int64_t ignore_index;    /* rows with this target give loss 0 and gradient 0 */
  double label_smoothing;  /* s in [0, 1] */
  int32_t reduction;       /* an npk_reduction */
  int32_t reserved;        /* 0 */
} npk_cross_entropy_options;
#define NPK_CROSS_ENTROPY_OPTIONS_INIT {sizeof(npk_cross_entropy_options), NULL, -100, 0.0, NPK_MEAN, 0}

/* Per row (1 - s) w[t] (lse - x[t]) + s / V sum_c w[c] (lse - x[c]), as PyTorch has it; targets t per row,
 * int64, in [0, V) or ignore_index. options: NULL = the defaults. loss: per row for NPK_NONE, else one number
 * (ndim 0), of the compute dtype. dlogits: NULL, or the gradient of the loss (of its sum for NPK_NONE), of
 * the shape and dtype of logits; may be logits. */
NPK_API npk_status npk_cross_entropy(const npk_array* logits, const npk_array* targets, int axis,
                                     const npk_cross_entropy_options* options, const npk_array* loss,
                                     const npk_array* dlogits);

/* ---- attention ---- */

typedef enum npk_causal {
  NPK_CAUSAL_NONE = 0,
  NPK_CAUSAL_TOP_LEFT = 1,    /* query i attends to keys 0 .. i (PyTorch) */
  NPK_CAUSAL_BOTTOM_RIGHT = 2 /* query i attends to keys 0 .. i + K - S (flash-attention, decoding) */
} npk_causal;

/* Start with NPK_ATTENTION_OPTIONS_INIT: later versions add fields at the end, and zero there means what it
 * was before. */
typedef struct npk_attention_options {
  size_t size;               /* sizeof(npk_attention_options) */
  double scale;              /* factor of q k^T; 0 = 1 / sqrt(D) */
  int32_t causal;            /* an npk_causal */
  int32_t windowed;          /* 1 = window_left and window_right hold */
  const npk_array* q_offset; /* (B,) int64, contiguous: query i stands at key position i + q_offset[b],
                                whatever `causal` implies; NULL = what it implies */
  const npk_array* mask; /* booleans that broadcast to (B, Hq, S, K), 1 = may attend; NULL = everything may */
  const npk_array* bias; /* of q's dtype, broadcasts to (B, Hq, S, K), added to the scores; -inf forbids */
  const npk_array* kv_lengths; /* (B,) int64 in [0, K], contiguous: keys from there on do not exist;
                                  bottom-right means to them */
  const npk_array*
      alibi_slopes; /* (Hq,) or (B, Hq), compute dtype: -slope |p - j| is added, p the query's position */
  const npk_array* sinks; /* (Hq,), compute dtype, contiguous: a logit in the denominator only */
  int64_t window_left;    /* a query at position p sees keys from p - window_left on; -1 = from the first */
  int64_t window_right;   /* ... up to p + window_right; -1 = to the last */
  double softcap;         /* c > 0: s becomes c tanh(s / c) before bias and masks */
  double dropout_p;       /* share of the weights that are dropped, in [0, 1) */
  uint64_t dropout_seed;
} npk_attention_options;
#define NPK_ATTENTION_OPTIONS_INIT \
  {sizeof(npk_attention_options),  \
   0.0,                            \
   NPK_CAUSAL_NONE,                \
   0,                              \
   NULL,                           \
   NULL,                           \
   NULL,                           \
   NULL,                           \
   NULL,                           \
   NULL,                           \
   -1,                             \
   -1,                             \
   0.0,                            \
   0.0,                            \
   0}

/* out = softmax(scale q k^T + bias, where allowed) v
 * - q (B, Hq, S, D), k (B, Hkv, K, D), v (B, Hkv, K, Dv), out (B, Hq, S, Dv); all of them without B, or
 *   without B and H, too. All of one floating dtype. Hq is a multiple of Hkv: query head h reads key
 *   head h / (Hq / Hkv). The last axis of each is contiguous, the others as they are.
 * - lse: NULL, or (B, Hq, S), contiguous, of the compute dtype: the logarithm of each row's denominator.
 * - A query with nothing to attend to gives 0 and lse -inf; a key with weight 0 contributes nothing, whatever
 *   it holds.
 * - options: NULL = the defaults. out and lse must not overlap anything. */
NPK_API npk_status npk_attention(const npk_array* q, const npk_array* k, const npk_array* v,
                                 const npk_attention_options* options, const npk_array* out,
                                 const npk_array* lse);

/* Joins partial results over disjoint keys: lse = logsumexp(lses), out = sum_i exp(lses[i] - lse) outs[i].
 * - outs[0 .. parts-1] and out (..., Dv) of one dtype, with contiguous last axis; lses[0 .. parts-1] and lse
 *   (...) of the compute dtype, contiguous.
 * - A part with lse = -inf is not read. out and lse must not overlap anything. */
NPK_API npk_status npk_merge_attention(int parts, const npk_array* outs, const npk_array* lses,
                                       const npk_array* out, const npk_array* lse);

/* y = x with each pair of its first rotary_dim entries turned: (a, b) -> (a cos - b sin, b cos + a sin), or
 * back if `inverse`.
 * - A pair is (x[i], x[i + rotary_dim/2]), or (x[2i], x[2i+1]) if `interleaved`; entries past rotary_dim pass
 *   through.
 * - x (..., S, D) of any floating dtype; y may be x.
 * - cos and sin: of one shape and the compute dtype, rotary_dim/2 entries at the end; the axes before
 *   broadcast to x's: (S, rotary_dim/2) for positions that all heads share.
 * - All last axes are contiguous. */
NPK_API npk_status npk_rotary_embedding(const npk_array* x, const npk_array* cos, const npk_array* sin,
                                        int interleaved, int inverse, const npk_array* y);

/* ------------------------------------------------------------------------------------- instruction sets,
 * threads, version */

/* Names of the instruction sets (ISAs) compiled into this library, slowest first; NULL ends the list. */
NPK_API const char* const* npk_compiled_isas(void);
/* 1 if this CPU runs the compiled ISA of that name, else 0. */
NPK_API int npk_isa_supported(const char* name);
/* The ISA in use: the best one supported, unless NPKERNELS_ISA or npk_set_isa chose another. */
NPK_API const char* npk_isa(void);
/* Changes it for the process; NPK_BAD_VALUE if the name is unknown or not supported here. */
NPK_API npk_status npk_set_isa(const char* name);

/* How many threads a large call made now would use. */
NPK_API int npk_num_threads(void);
/* Fixes the number for the process; 0 = the default (NPKERNELS_NUM_THREADS, OMP_NUM_THREADS, or the CPUs
 * there are). before: NULL, or where the previous setting goes, for putting it back. */
NPK_API npk_status npk_set_num_threads(int n, int* before);
/* The same as a limit for the calling thread only; 0 = none. */
NPK_API npk_status npk_set_thread_limit(int n, int* before);

/* "major.minor.patch" of the library. */
NPK_API const char* npk_version(void);

#ifdef __cplusplus
}
#endif
