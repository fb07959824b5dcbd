# cython: language_level=3, freethreading_compatible=True
"""The kernels for Cython code. See ckernels.pxd; there is nothing here to call from Python."""

from npkernels.capi cimport *


cdef npk_array view(const Array* a) noexcept nogil:
    cdef npk_array described
    described.data = a.data
    described.shape = &a.shape[0]
    described.strides = &a.strides[0]
    described.ndim = a.ndim
    described.dtype = a.dtype
    return described


# Raises what a status means.
cdef int done(const char* function, npk_status status) except -1 nogil:
    if status == NPK_OK:
        return 0
    with gil:
        message = f"{function.decode()}: {npk_bad_argument().decode()} {npk_status_text(status).decode()}"
        if status == NPK_NO_MEMORY:
            raise MemoryError(message)
        if status == NPK_BAD_INDEX:
            raise IndexError(message)
        if status == NPK_BAD_DTYPE:
            raise TypeError(message)
        raise ValueError(message)


cdef int _softmax(const Array* x, double temperature, const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ay = view(y)
    return done("softmax", npk_softmax(&ax, -1, temperature, NULL, &ay))


cdef int _log_softmax(const Array* x, double temperature, const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ay = view(y)
    return done("log_softmax", npk_log_softmax(&ax, -1, temperature, NULL, &ay))


cdef int _logsumexp(const Array* x, double temperature, const Array* lse) except -1 nogil:
    cdef npk_array ax = view(x), alse = view(lse)
    return done("logsumexp", npk_logsumexp(&ax, -1, temperature, NULL, &alse, NULL))


cdef int _entropy(const Array* x, double temperature, const Array* entropy) except -1 nogil:
    cdef npk_array ax = view(x), ah = view(entropy)
    return done("entropy", npk_logsumexp(&ax, -1, temperature, NULL, NULL, &ah))


cdef int _softmax_vjp(const Array* dy, const Array* y, double temperature, const Array* dx) except -1 nogil:
    cdef npk_array ady = view(dy), ay = view(y), adx = view(dx)
    return done("softmax_vjp", npk_softmax_vjp(&ady, &ay, -1, temperature, NULL, &adx))


cdef int _log_softmax_vjp(const Array* dy, const Array* y, double temperature, const Array* dx) except -1 nogil:
    cdef npk_array ady = view(dy), ay = view(y), adx = view(dx)
    return done("log_softmax_vjp", npk_log_softmax_vjp(&ady, &ay, -1, temperature, NULL, &adx))


cdef int _token_log_probs(const Array* logits, const Array* ids, double temperature, const Array* log_prob,
                          const Array* lse, const Array* entropy) except -1 nogil:
    cdef npk_array ax = view(logits), aids = view(ids), alogp = view(log_prob), alse = view(lse), ah = view(entropy)
    cdef npk_token_stats stats = npk_token_stats(
        size=sizeof(npk_token_stats), log_prob=&alogp, lse=&alse, entropy=&ah, sum_p2=NULL, top1=NULL, rank=NULL)
    return done("token_log_probs", npk_token_log_probs(&ax, &aids, temperature, NULL, &stats))


cdef int _token_log_probs_vjp(const Array* dlogp, const Array* logits, const Array* ids, const Array* lse,
                              double temperature, const Array* dlogits) except -1 nogil:
    cdef npk_array ad = view(dlogp), ax = view(logits), aids = view(ids), alse = view(lse), adx = view(dlogits)
    return done("token_log_probs_vjp",
                npk_token_log_probs_vjp(&ad, &ax, &aids, &alse, NULL, NULL, temperature, NULL, &adx))


cdef int _attention(const Array* q, const Array* k, const Array* v, int causal, double scale, const Array* out,
                    const Array* lse) except -1 nogil:
    cdef npk_array aq = view(q), ak = view(k), av = view(v), aout = view(out), alse = view(lse)
    cdef npk_attention_options options = npk_attention_options(
        size=sizeof(npk_attention_options), scale=scale, causal=causal, windowed=0, q_offset=NULL, mask=NULL, bias=NULL,
        kv_lengths=NULL, alibi_slopes=NULL, sinks=NULL, window_left=-1, window_right=-1, softcap=0, dropout_p=0, dropout_seed=0)
    return done("attention", npk_attention(&aq, &ak, &av, &options, &aout, &alse))


cdef int _rotary_embedding(const Array* x, const Array* cos, const Array* sin, bint interleaved, bint inverse,
                           const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ac = view(cos), asin = view(sin), ay = view(y)
    return done("rotary_embedding", npk_rotary_embedding(&ax, &ac, &asin, interleaved, inverse, &ay))


cdef int num_threads() noexcept nogil:
    return npk_num_threads()


cdef int set_num_threads(int n) except -1 nogil:
    return done("set_num_threads", npk_set_num_threads(n, NULL))
