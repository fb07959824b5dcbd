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

    const char* const* npk_compiled_isas()
    int npk_isa_supported(const char* name)
    const char* npk_isa()
    npk_status npk_set_isa(const char* name)
    int npk_num_threads()
    npk_status npk_set_num_threads(int n, int* before)
    npk_status npk_set_thread_limit(int n, int* before)
    const char* npk_version()
