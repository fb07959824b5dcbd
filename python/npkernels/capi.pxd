# The functions of npkernels/npkernels.h as they are: for Cython code that is compiled with the include directory
# npkernels.get_include() and linked against libnpkernels.so. `npkernels.ckernels` needs neither.
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef extern from "npkernels/npkernels.h" nogil:
    ctypedef enum npk_dtype:
        NPK_FLOAT32
        NPK_FLOAT64
        NPK_FLOAT16
        NPK_BFLOAT16
        NPK_BOOL
        NPK_INT64

    ctypedef struct npk_array:
        void* data
        const int64_t* shape
        const int64_t* strides
        int32_t ndim
        int32_t dtype

    ctypedef enum npk_status:
        NPK_OK
        NPK_NULL_POINTER
        NPK_BAD_SHAPE
        NPK_BAD_DTYPE
        NPK_BAD_STRIDES
        NPK_BAD_AXIS
        NPK_BAD_VALUE
        NPK_BAD_INDEX
        NPK_OVERLAP
        NPK_NO_MEMORY

    const char* npk_status_text(npk_status status)
    const char* npk_bad_argument()

    npk_status npk_softmax(const npk_array* x, int axis, double temperature, const npk_array* mask, const npk_array* y)
    npk_status npk_log_softmax(const npk_array* x, int axis, double temperature, const npk_array* mask,
                               const npk_array* y)
    npk_status npk_logsumexp(const npk_array* x, int axis, double temperature, const npk_array* mask,
                             const npk_array* lse, const npk_array* entropy)
    npk_status npk_softmax_vjp(const npk_array* dy, const npk_array* y, int axis, double temperature,
                               const npk_array* mask, const npk_array* dx)
    npk_status npk_log_softmax_vjp(const npk_array* dy, const npk_array* y, int axis, double temperature,
                                   const npk_array* mask, const npk_array* dx)
    npk_status npk_logsumexp_vjp(const npk_array* d, const npk_array* x, const npk_array* lse, int axis,
                                 double temperature, const npk_array* mask, const npk_array* dx)
    npk_status npk_softmax_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                               const npk_array* mask, const npk_array* y, const npk_array* dy)
    npk_status npk_log_softmax_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                                   const npk_array* mask, const npk_array* y, const npk_array* dy)
    npk_status npk_logsumexp_jvp(const npk_array* x, const npk_array* dx, int axis, double temperature,
                                 const npk_array* mask, const npk_array* lse, const npk_array* dlse)

    ctypedef struct npk_token_stats:
        size_t size
        const npk_array* log_prob
        const npk_array* lse
        const npk_array* entropy
        const npk_array* sum_p2
        const npk_array* top1
        const npk_array* rank

    npk_status npk_token_log_probs(const npk_array* logits, const npk_array* ids, double temperature,
                                   const npk_array* mask, const npk_token_stats* stats)
    npk_status npk_token_log_probs_vjp(const npk_array* dlogp, const npk_array* logits, const npk_array* ids,
                                       const npk_array* lse, const npk_array* dentropy, const npk_array* entropy,
                                       double temperature, const npk_array* mask, const npk_array* dlogits)

    ctypedef enum npk_reduction:
        NPK_MEAN
        NPK_SUM
        NPK_NONE

    ctypedef struct npk_cross_entropy_options:
        size_t size
        const npk_array* weight
        int64_t ignore_index
        double label_smoothing
        int32_t reduction
        int32_t reserved

    npk_status npk_cross_entropy(const npk_array* logits, const npk_array* targets, int axis,
                                 const npk_cross_entropy_options* options, const npk_array* loss,
                                 const npk_array* dlogits)

    ctypedef enum npk_causal:
        NPK_CAUSAL_NONE
        NPK_CAUSAL_TOP_LEFT
        NPK_CAUSAL_BOTTOM_RIGHT

    ctypedef struct npk_attention_options:
        size_t size
        double scale
        int32_t causal
        int32_t windowed
        const npk_array* q_offset
        const npk_array* mask
        const npk_array* bias
        const npk_array* kv_lengths
        const npk_array* alibi_slopes
        const npk_array* sinks
        int64_t window_left
        int64_t window_right
        double softcap
        double dropout_p
        uint64_t dropout_seed

    npk_status npk_attention(const npk_array* q, const npk_array* k, const npk_array* v,
                             const npk_attention_options* options, const npk_array* out, const npk_array* lse)
    npk_status npk_merge_attention(int parts, const npk_array* outs, const npk_array* lses, const npk_array* out,
                                   const npk_array* lse)
    npk_status npk_rotary_embedding(const npk_array* x, const npk_array* cos, const npk_array* sin, int interleaved,
                                    int inverse, const npk_array* y)

    npk_status npk_attention_vjp(const npk_array* dout, const npk_array* q, const npk_array* k, const npk_array* v,
                                 const npk_array* out, const npk_array* lse, const npk_array* dlse,
                                 const npk_attention_options* options, const npk_array* dq, const npk_array* dk,
                                 const npk_array* dv, const npk_array* dbias, const npk_array* dsinks)
    npk_status npk_attention_jvp(const npk_array* q, const npk_array* k, const npk_array* v, const npk_array* dq,
                                 const npk_array* dk, const npk_array* dv, const npk_attention_options* options,
                                 const npk_array* out, const npk_array* dout, const npk_array* lse)

    ctypedef enum npk_baseline:
        NPK_BASELINE_MEAN
        NPK_BASELINE_LEAVE_ONE_OUT
        NPK_BASELINE_NONE

    ctypedef enum npk_scale:
        NPK_SCALE_GROUP
        NPK_SCALE_BATCH
        NPK_SCALE_NONE

    ctypedef struct npk_advantage_options:
        size_t size
        double eps
        int32_t baseline
        int32_t scale
        int32_t ddof
        int32_t lone_reward
        int32_t over_mean
        int32_t reserved

    npk_status npk_group_advantages(const npk_array* rewards, int64_t group_size, const npk_array* ids,
                                    const npk_advantage_options* options, const npk_array* advantages,
                                    const npk_array* stats, const npk_array* index, int64_t* groups)

    ctypedef enum npk_surrogate:
        NPK_SURROGATE_CLIP
        NPK_SURROGATE_CAP
        NPK_SURROGATE_RANGE
        NPK_SURROGATE_GATE
        NPK_SURROGATE_GEOMETRIC
        NPK_SURROGATE_LOG

    ctypedef enum npk_aggregate:
        NPK_TOKEN_MEAN
        NPK_TOKEN_SUM
        NPK_SEQ_MEAN_TOKEN_SUM
        NPK_SEQ_MEAN_TOKEN_MEAN
        NPK_SEQ_MEAN_TOKEN_SUM_NORM

    ctypedef enum npk_kl:
        NPK_KL_K1
        NPK_KL_K2
        NPK_KL_K3
        NPK_KL_K3_PLUS

    ctypedef enum npk_importance:
        NPK_IMPORTANCE_SEQUENCE_MASK
        NPK_IMPORTANCE_SEQUENCE_TRUNCATE
        NPK_IMPORTANCE_TOKEN_MASK
        NPK_IMPORTANCE_TOKEN_TRUNCATE

    ctypedef struct npk_policy_options:
        size_t size
        const npk_array* mask
        const npk_array* cu_seqlens
        const npk_array* ref_logp
        const npk_array* sampler_logp
        const npk_array* entropy
        int32_t surrogate
        int32_t sequence_level
        int32_t aggregate
        int32_t kl
        int32_t importance
        int32_t want_entropy
        double clip_low
        double clip_high
        double delta
        double dual_clip
        double tau_positive
        double tau_negative
        double max_length
        double total_tokens
        double beta
        double kl_inner
        double kl_outer
        double importance_cap

    ctypedef struct npk_policy_metrics:
        size_t size
        double loss
        int64_t tokens
        int64_t sequences
        double ratio
        double clip_low
        double clip_high
        double old_kl
        double kl
        double importance
        double entropy

    npk_status npk_policy_loss(const npk_array* logp, const npk_array* old_logp, const npk_array* advantages,
                               const npk_policy_options* options, npk_policy_metrics* metrics, const npk_array* dlogp)
    npk_status npk_token_policy_loss(const npk_array* logits, const npk_array* ids, const npk_array* old_logp,
                                     const npk_array* advantages, double temperature,
                                     const npk_policy_options* options, npk_policy_metrics* metrics,
                                     const npk_array* dlogits)

    ctypedef struct npk_return_options:
        size_t size
        const npk_array* mask
        const npk_array* dones
        const npk_array* cu_seqlens
        const npk_array* last_value
        const npk_array* gammas
        const npk_array* lams

    npk_status npk_discounted_returns(const npk_array* rewards, double gamma, const npk_return_options* options,
                                      const npk_array* returns)
    npk_status npk_gae(const npk_array* rewards, const npk_array* values, double gamma, double lam,
                       const npk_return_options* options, const npk_array* advantages, const npk_array* returns)

    ctypedef enum npk_norm:
        NPK_NORM_INF
        NPK_NORM_ONE
        NPK_NORM_TWO

    ctypedef struct npk_step_options:
        size_t size
        int32_t norm
        int32_t targeted
        int32_t bounded
        int32_t reserved
        double low
        double high
        const npk_array* lows
        const npk_array* highs
        const npk_array* mask
        const npk_array* step_lengths
        const npk_array* radii

    npk_status npk_sign_step(const npk_array* x, const npk_array* grad, double eps, const npk_step_options* options,
                             const npk_array* y, int64_t* nans)
    npk_status npk_steepest_step(const npk_array* x, const npk_array* grad, double step,
                                 const npk_step_options* options, const npk_array* y, int64_t* nans)
    npk_status npk_project(const npk_array* x, const npk_array* center, double eps, const npk_step_options* options,
                           const npk_array* y)
    npk_status npk_pgd_step(const npk_array* x, const npk_array* center, const npk_array* grad, double step, double eps,
                            const npk_step_options* options, const npk_array* y, int64_t* nans)
    npk_status npk_random_in_ball(const npk_array* center, double eps, uint64_t key, const npk_step_options* options,
                                  const npk_array* y)

    const char* const* npk_compiled_isas()
    int npk_isa_supported(const char* name)
    const char* npk_isa()
    npk_status npk_set_isa(const char* name)
    int npk_num_threads()
    npk_status npk_set_num_threads(int n, int* before)
    npk_status npk_set_thread_limit(int n, int* before)
    const char* npk_version()
