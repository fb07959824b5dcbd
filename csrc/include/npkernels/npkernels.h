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

/* ---- tokens under their logits ----
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

/* Gradients of npk_attention: from the cotangents of its results those of its arguments.
 * - q, k, v, options as they were given to npk_attention; out and lse as it wrote them. dout (B, Hq, S, Dv),
 * of q's dtype with contiguous last axis; dlse: NULL (0), or of lse's shape and dtype.
 * - dq, dk, dv: of the shapes and dtype of q, k and v, last axes contiguous. Keys behind kv_lengths get 0.
 * - dbias: NULL, or of the shape of options->bias, the compute dtype, contiguous in C order; summed in double
 *   over what the bias is broadcast along. A second pass over the scores.
 * - dsinks: NULL, or (Hq,), the compute dtype, contiguous.
 * - Results must not overlap anything. A weight of zero adds nothing to any gradient. */
NPK_API npk_status npk_attention_vjp(const npk_array* dout, const npk_array* q, const npk_array* k,
                                     const npk_array* v, const npk_array* out, const npk_array* lse,
                                     const npk_array* dlse, const npk_attention_options* options,
                                     const npk_array* dq, const npk_array* dk, const npk_array* dv,
                                     const npk_array* dbias, const npk_array* dsinks);
/* npk_attention and its derivative dout along (dq, dk, dv), in one pass. dq, dk, dv are inputs here, of the
 * shapes and dtype of q, k and v; dout is as out. There is no dropout. */
NPK_API npk_status npk_attention_jvp(const npk_array* q, const npk_array* k, const npk_array* v,
                                     const npk_array* dq, const npk_array* dk, const npk_array* dv,
                                     const npk_attention_options* options, const npk_array* out,
                                     const npk_array* dout, const npk_array* lse);

/* ---- GRPO ----
 *
 * Letters: B samples or sequences, G samples of a group, n groups, T tokens of a sequence, V vocabulary; r
 * reward, A advantage, rho = exp(logp - old_logp). Log-probabilities are in nats. Arrays are contiguous in C
 * order if not said otherwise. */

typedef enum npk_baseline {
  NPK_BASELINE_MEAN = 0,          /* the group's mean */
  NPK_BASELINE_LEAVE_ONE_OUT = 1, /* the mean of the others in the group */
  NPK_BASELINE_NONE = 2
} npk_baseline;

typedef enum npk_scale {
  NPK_SCALE_GROUP = 0, /* the group's standard deviation */
  NPK_SCALE_BATCH = 1, /* that of all rewards */
  NPK_SCALE_NONE = 2
} npk_scale;

/* Start with NPK_ADVANTAGE_OPTIONS_INIT, which is what TRL computes. */
typedef struct npk_advantage_options {
  size_t size;         /* sizeof(npk_advantage_options) */
  double eps;          /* added to the deviation; finite, >= 0 */
  int32_t baseline;    /* an npk_baseline */
  int32_t scale;       /* an npk_scale */
  int32_t ddof;        /* 0 or 1: the deviation divides by count - ddof */
  int32_t lone_reward; /* 1 = a group of one has mean 0 and deviation 1 (verl) */
  int32_t over_mean;   /* 1 = (r - mean) / mean, 0 where the mean is 0 (maxrl); with NPK_SCALE_NONE */
  int32_t reserved;    /* 0 */
} npk_advantage_options;
#define NPK_ADVANTAGE_OPTIONS_INIT \
  {sizeof(npk_advantage_options), 1e-4, NPK_BASELINE_MEAN, NPK_SCALE_GROUP, 1, 0, 0, 0}

/* advantages = (r - baseline) / (deviation + eps), exactly 0 for a group whose rewards are all equal (unless
 * there is neither baseline nor scale).
 * - rewards (B,), float32 or float64, finite, or NaN: such a sample takes no part and gets 0.
 * - Groups are group_size = G consecutive samples (ids NULL, B a multiple of G), or those of equal ids (B,)
 *   int64, of any values in any order (group_size 0); these are numbered as they first appear.
 * - advantages (B,), of the dtype of the rewards; may be rewards.
 * - stats: NULL, or (m, 5) float64 with m >= n (B is always enough): count, mean, standard deviation, min,
 * max of the rewards of each group; the rows from n on are left as they are. mean, min and max are NaN where
 * a group has no reward.
 * - index: NULL, or (B,) int64, the number of each sample's group; may be ids.
 * - groups: NULL, or where n goes.
 * - options: NULL = the defaults. */
NPK_API npk_status npk_group_advantages(const npk_array* rewards, int64_t group_size, const npk_array* ids,
                                        const npk_advantage_options* options, const npk_array* advantages,
                                        const npk_array* stats, const npk_array* index, int64_t* groups);

/* What is summed over the tokens. */
typedef enum npk_surrogate {
  NPK_SURROGATE_CLIP = 0,  /* -min(min(rho, delta) A, clip(rho, 1 - clip_low, 1 + clip_high) A) */
  NPK_SURROGATE_CAP = 1,   /* -min(rho, clip_high) A logp, the ratio held constant */
  NPK_SURROGATE_RANGE = 2, /* -clip(rho, 1 - clip_low, 1 + clip_high) A logp, likewise */
  NPK_SURROGATE_GATE = 3,  /* -4 / tau sigmoid(tau (rho - 1)) A, tau by the sign of A */
  NPK_SURROGATE_GEOMETRIC =
      4,                /* -rho A, rho = exp(mean of the log ratios clipped to [-clip_low, clip_high]) */
  NPK_SURROGATE_LOG = 5 /* -A logp */
} npk_surrogate;

typedef enum npk_aggregate {
  NPK_TOKEN_MEAN = 0, /* sum / (kept tokens, or total_tokens) */
  NPK_TOKEN_SUM = 1,
  NPK_SEQ_MEAN_TOKEN_SUM = 2,
  NPK_SEQ_MEAN_TOKEN_MEAN = 3,
  NPK_SEQ_MEAN_TOKEN_SUM_NORM = 4 /* sum of each sequence / max_length */
} npk_aggregate;                  /* sequences without a kept token are left out */

/* Estimates of the KL divergence, x = ref_logp - logp. */
typedef enum npk_kl {
  NPK_KL_K1 = 0,     /* -x */
  NPK_KL_K2 = 1,     /* x^2 / 2 */
  NPK_KL_K3 = 2,     /* exp(x) - 1 - x */
  NPK_KL_K3_PLUS = 3 /* the value of k3, the gradient of k2 */
} npk_kl;

/* The correction between the engine that sampled and the trainer: exp(old_logp - sampler_logp) of the token
 * or the sequence, 0 or importance_cap where it is larger than that. */
typedef enum npk_importance {
  NPK_IMPORTANCE_SEQUENCE_MASK = 0,
  NPK_IMPORTANCE_SEQUENCE_TRUNCATE = 1,
  NPK_IMPORTANCE_TOKEN_MASK = 2,
  NPK_IMPORTANCE_TOKEN_TRUNCATE = 3
} npk_importance;

/* Start with NPK_POLICY_OPTIONS_INIT, which is "grpo". By name, where not said otherwise at token level:
 *
 *   ppo, bnpo, dapo  NPK_TOKEN_MEAN                    cispo       NPK_SURROGATE_CAP, NPK_TOKEN_MEAN
 *   dr_grpo          NPK_SEQ_MEAN_TOKEN_SUM_NORM       cispo_clip  NPK_SURROGATE_RANGE, NPK_TOKEN_MEAN
 *   gspo             sequence_level                    sapo        NPK_SURROGATE_GATE
 *   gpg              NPK_SURROGATE_LOG, NPK_TOKEN_MEAN gmpo        NPK_SURROGATE_GEOMETRIC, sequence_level
 *
 * delta, dual_clip, max_length and total_tokens must be 0 where the surrogate or aggregate does not use them;
 * the taus are always > 0. */
typedef struct npk_policy_options {
  size_t size;                 /* sizeof(npk_policy_options) */
  const npk_array* mask;       /* booleans, one per token; 0 leaves it out, whatever the arrays hold there */
  const npk_array* cu_seqlens; /* (B + 1,) int64: packed sequence s has the tokens from cu_seqlens[s] to
                                  cu_seqlens[s + 1] - 1; NULL = sequences of T tokens */
  const npk_array* ref_logp;   /* per token, under the reference policy; needed with beta */
  const npk_array* sampler_logp; /* per token, under the engine that sampled: turns the correction on */
  const npk_array* entropy;      /* per token, for its mean in the metrics (npk_policy_loss only) */
  int32_t surrogate;             /* an npk_surrogate */
  int32_t sequence_level;        /* 1 = rho is that of the sequence, exp(mean(logp - old_logp)) */
  int32_t aggregate;             /* an npk_aggregate */
  int32_t kl;                    /* an npk_kl */
  int32_t importance;            /* an npk_importance */
  int32_t want_entropy;          /* 1 = mean entropy in the metrics (npk_token_policy_loss only) */
  double clip_low;               /* >= 0 */
  double clip_high;              /* >= 0 */
  double delta;                  /* 0 = none */
  double dual_clip;              /* for A < 0 the loss is at most -dual_clip A; > 1, or 0 = none */
  double tau_positive;
  double tau_negative;
  double max_length;   /* tokens; 0 = those of the longest sequence */
  double total_tokens; /* 0 = the kept ones */
  double beta;         /* the loss has beta * kl added */
  double kl_inner;     /* |x| is at most this; 0 = no bound */
  double kl_outer;     /* the estimate is at most this; 0 = no bound */
  double importance_cap;
} npk_policy_options;
#define NPK_POLICY_OPTIONS_INIT  \
  {sizeof(npk_policy_options),   \
   NULL,                         \
   NULL,                         \
   NULL,                         \
   NULL,                         \
   NULL,                         \
   NPK_SURROGATE_CLIP,           \
   0,                            \
   NPK_SEQ_MEAN_TOKEN_MEAN,      \
   NPK_KL_K3,                    \
   NPK_IMPORTANCE_SEQUENCE_MASK, \
   0,                            \
   0.2,                          \
   0.2,                          \
   0.0,                          \
   0.0,                          \
   1.0,                          \
   1.05,                         \
   0.0,                          \
   0.0,                          \
   0.0,                          \
   0.0,                          \
   0.0,                          \
   3.0}

/* The loss, and means over the kept tokens. Start with NPK_POLICY_METRICS_INIT. */
typedef struct npk_policy_metrics {
  size_t size;       /* sizeof(npk_policy_metrics) */
  double loss;       /* aggregated */
  int64_t tokens;    /* that are kept */
  int64_t sequences; /* with a kept token */
  double ratio;      /* rho */
  double clip_low;   /* share of the tokens with rho below the range and A < 0 */
  double clip_high;  /* ... above the range and A > 0 */
  double old_kl;     /* old_logp - logp, nats */
  double kl;         /* nats; NaN without ref_logp */
  double importance; /* NaN without sampler_logp */
  double entropy;    /* nats; NaN if it was not asked for */
} npk_policy_metrics;
#define NPK_POLICY_METRICS_INIT {sizeof(npk_policy_metrics), 0.0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}

/* The loss, and its gradient with respect to logp.
 * - logp, old_logp (B, T), or (tokens,) with cu_seqlens; float32 or float64, as every array per token.
 * - advantages (B,), or per token; where both fit the first.
 * - dlogp: NULL, or of the shape and dtype of logp; 0 where the mask is 0. Must not overlap anything.
 * - options: NULL = the defaults. */
NPK_API npk_status npk_policy_loss(const npk_array* logp, const npk_array* old_logp,
                                   const npk_array* advantages, const npk_policy_options* options,
                                   npk_policy_metrics* metrics, const npk_array* dlogp);
/* The same from the logits, with the gradient with respect to them: one read and one write of the logits, two
 * reads with sequence_level.
 * - logits (B, T, V), or (tokens, V) with cu_seqlens; any floating dtype and strides.
 * - ids: per token, int64, 0 <= id < V where the mask is not 0. What else is per token or sequence is of the
 *   compute dtype.
 * - temperature: finite, > 0; the logits are divided by it.
 * - dlogits: NULL, or of the shape and dtype of logits; may be logits. */
NPK_API npk_status npk_token_policy_loss(const npk_array* logits, const npk_array* ids,
                                         const npk_array* old_logp, const npk_array* advantages,
                                         double temperature, const npk_policy_options* options,
                                         npk_policy_metrics* metrics, const npk_array* dlogits);

/* Start with NPK_RETURN_OPTIONS_INIT. NULL = not given. "Per sequence" arrays are float64, of the shape of
 * the rewards without the last axis, or (B,) with cu_seqlens. */
typedef struct npk_return_options {
  size_t size;            /* sizeof(npk_return_options) */
  const npk_array* mask;  /* booleans of the shape of the rewards: a token that is left out is passed over,
                             whatever it holds, and gets 0 */
  const npk_array* dones; /* booleans likewise: where an episode ends (npk_gae only) */
  const npk_array* cu_seqlens; /* (B + 1,) int64, of packed sequences */
  const npk_array* last_value; /* per sequence: what stands behind its end; 0 */
  const npk_array* gammas;     /* per sequence, in place of gamma */
  const npk_array* lams;       /* per sequence, in place of lam (npk_gae only) */
} npk_return_options;
#define NPK_RETURN_OPTIONS_INIT {sizeof(npk_return_options), NULL, NULL, NULL, NULL, NULL, NULL}

/* R_t = r_t + gamma R_{t+1}. rewards (..., T), or (tokens,) with cu_seqlens, float32 or float64; returns of
 * the same shape and dtype, which must not overlap anything. options: NULL = the defaults. */
NPK_API npk_status npk_discounted_returns(const npk_array* rewards, double gamma,
                                          const npk_return_options* options, const npk_array* returns);
/* A_t = r_t + gamma V_{t+1} - V_t + gamma lam A_{t+1}, and R_t = A_t + V_t; nothing comes from behind a token
 * that is done. values, advantages and returns are of the shape and dtype of rewards. */
NPK_API npk_status npk_gae(const npk_array* rewards, const npk_array* values, double gamma, double lam,
                           const npk_return_options* options, const npk_array* advantages,
                           const npk_array* returns);

/* ---- perturbations ----
 *
 * x (B, ...) any floating dtype, any strides, as grad, center and y, which have its shape and dtype; the
 * first axis counts the B samples, and norms are taken over all that is behind it. y may be the very same
 * memory as x, grad or center. Lengths and radii are in the units of x. */

typedef enum npk_norm {
  NPK_NORM_INF = 0, /* the largest entry */
  NPK_NORM_ONE = 1,
  NPK_NORM_TWO = 2
} npk_norm;

/* Start with NPK_STEP_OPTIONS_INIT. What a function does not use must be 0. */
typedef struct npk_step_options {
  size_t size;      /* sizeof(npk_step_options) */
  int32_t norm;     /* an npk_norm */
  int32_t targeted; /* 1 = step against the gradient */
  int32_t bounded;  /* 1 = low and high hold: entries are clipped to [low, high], last of all */
  int32_t reserved; /* 0 */
  double low;       /* <= high */
  double high;
  const npk_array* lows; /* compute dtype, broadcast to x; stand before low and high. NULL = the numbers */
  const npk_array* highs;
  const npk_array* mask; /* booleans that broadcast to x: where it is 0 the entry keeps its value and counts
                            in no norm; NULL = everything moves */
  const npk_array*
      step_lengths;       /* in place of the length of the step: (B,) float64, contiguous, or with
                             NPK_NORM_INF of the compute dtype and x's number of axes, broadcast to x */
  const npk_array* radii; /* likewise in place of the radius of the ball */
} npk_step_options;
#define NPK_STEP_OPTIONS_INIT \
  {sizeof(npk_step_options), NPK_NORM_INF, 0, 0, 0, 0.0, 0.0, NULL, NULL, NULL, NULL, NULL}

/* y = clip(x + eps sign(grad)), in one pass (FGSM); eps finite, >= 0. sign(0) = 0; where grad is NaN nothing
 * moves. nans: NULL, or where the number of these goes. options->norm is NPK_NORM_INF. */
NPK_API npk_status npk_sign_step(const npk_array* x, const npk_array* grad, double eps,
                                 const npk_step_options* options, const npk_array* y, int64_t* nans);
/* y = clip(x + step d), d of norm 1 with the largest <grad, d>: sign(grad), grad / |grad|, or for
 * NPK_NORM_ONE all of it on the largest |grad|. A gradient of zeros moves nothing. step finite, >= 0. */
NPK_API npk_status npk_steepest_step(const npk_array* x, const npk_array* grad, double step,
                                     const npk_step_options* options, const npk_array* y, int64_t* nans);
/* y = the nearest point of the ball of radius eps >= 0 (inf too) around center, clipped to the bounds; with
 * NPK_NORM_INF and NPK_NORM_ONE the nearest point of the ball within them. center lies within the bounds. */
NPK_API npk_status npk_project(const npk_array* x, const npk_array* center, double eps,
                               const npk_step_options* options, const npk_array* y);
/* npk_steepest_step without bounds, then npk_project; one pass for NPK_NORM_INF, where it is not looked at
 * whether center lies within the bounds (y does). */
NPK_API npk_status npk_pgd_step(const npk_array* x, const npk_array* center, const npk_array* grad,
                                double step, double eps, const npk_step_options* options, const npk_array* y,
                                int64_t* nans);
/* y = a point of the ball of finite radius eps around center, uniform by volume, clipped to the bounds. The
 * numbers come from a counter: they depend on the key and the place of an entry only. No mask. */
NPK_API npk_status npk_random_in_ball(const npk_array* center, double eps, uint64_t key,
                                      const npk_step_options* options, const npk_array* y);

/* ---- instruction sets, threads, version ---- */

/* Names of the instruction sets (ISAs) compiled into this library, slowest first; NULL ends the list. */
NPK_API const char* const* npk_compiled_isas(void);
/* 1 if this CPU runs the compiled ISA of that name, else 0. */
NPK_API int npk_isa_supported(const char* name);
/* The ISA in use: the best one supported, unless NPKERNELS_ISA (a name that cannot be had is ignored) or
 * npk_set_isa chose another. */
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
