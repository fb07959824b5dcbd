# The kernels for Cython code: typed memoryviews in and out, without the GIL, without a copy.
#
#     from npkernels.ckernels cimport softmax
#
#     def rows(const double[:, ::1] x, double[:, :] y):
#         with nogil:
#             softmax[double](x, y)
#
# Nothing is linked and no header is needed: the functions come from the compiled module when it is imported. The arrays of
# one call are all float or all double; name that type in brackets, since Cython guesses it only from views that are declared
# exactly as here. Strides are any, unless an axis is written ::1 or said to be contiguous. What does not fit raises ValueError,
# TypeError or IndexError before any work, with the GIL taken for that; outputs are untouched then.
#
# Letters: V row length, T temperature, p = softmax(x / T); B batch, H heads (Hq of queries, a multiple of Hkv), S queries,
# K keys, D head size, Dv value head size.
cimport cython
from cython cimport floating
from libc.stdint cimport int64_t


# What `causal` may be: query i attends to every key; to keys 0 .. i; to keys 0 .. i + K - S.
cdef enum Causal:
    NOT_CAUSAL = 0
    TOP_LEFT = 1
    BOTTOM_RIGHT = 2


# y = softmax(x / T) over the last axis; y may be x.
cdef inline int softmax(const floating[:, :] x, floating[:, :] y, double temperature=1.0) except -1 nogil:
    cdef Array ax = matrix(x), ay = matrix(y)
    return _softmax(&ax, temperature, &ay)

# y = log(softmax(x / T))
cdef inline int log_softmax(const floating[:, :] x, floating[:, :] y, double temperature=1.0) except -1 nogil:
    cdef Array ax = matrix(x), ay = matrix(y)
    return _log_softmax(&ax, temperature, &ay)

# The same for one contiguous row of n entries.
cdef inline int softmax_row(const floating* x, Py_ssize_t n, floating* y, double temperature=1.0) except -1 nogil:
    cdef Array ax = row(x, n), ay = row(y, n)
    return _softmax(&ax, temperature, &ay)

cdef inline int log_softmax_row(const floating* x, Py_ssize_t n, floating* y, double temperature=1.0) except -1 nogil:
    cdef Array ax = row(x, n), ay = row(y, n)
    return _log_softmax(&ax, temperature, &ay)

# *lse = log(sum(exp(x / T))) of one contiguous row
cdef inline int logsumexp_row(const floating* x, Py_ssize_t n, floating* lse, double temperature=1.0) except -1 nogil:
    cdef Array ax = row(x, n), alse = row(lse, 1)
    alse.ndim = 0  # one number
    return _logsumexp(&ax, temperature, &alse)

# lse = log(sum(exp(x / T))), entropy = -sum(p log p) in nats, per row.
cdef inline int logsumexp(const floating[:, :] x, floating[::1] lse, double temperature=1.0) except -1 nogil:
    cdef Array ax = matrix(x), alse = vector(lse)
    return _logsumexp(&ax, temperature, &alse)

cdef inline int entropy(const floating[:, :] x, floating[::1] h, double temperature=1.0) except -1 nogil:
    cdef Array ax = matrix(x), ah = vector(h)
    return _entropy(&ax, temperature, &ah)

# dx = y (dy - sum(dy y)) / T, y the softmax; dx may be dy or y.
cdef inline int softmax_vjp(const floating[:, :] dy, const floating[:, :] y, floating[:, :] dx,
                            double temperature=1.0) except -1 nogil:
    cdef Array ady = matrix(dy), ay = matrix(y), adx = matrix(dx)
    return _softmax_vjp(&ady, &ay, temperature, &adx)

# dx = (dy - exp(y) sum(dy)) / T, y the logarithm of the softmax
cdef inline int log_softmax_vjp(const floating[:, :] dy, const floating[:, :] y, floating[:, :] dx,
                                double temperature=1.0) except -1 nogil:
    cdef Array ady = matrix(dy), ay = matrix(y), adx = matrix(dx)
    return _log_softmax_vjp(&ady, &ay, temperature, &adx)

# log_prob = log p[id], lse and entropy of each row, in one read of the logits; 0 <= ids < V.
cdef inline int token_log_probs(const floating[:, :] logits, const int64_t[::1] ids, floating[::1] log_prob,
                                floating[::1] lse, floating[::1] h, double temperature=1.0) except -1 nogil:
    cdef Array ax = matrix(logits), aids = indices(ids), alogp = vector(log_prob), alse = vector(lse), ah = vector(h)
    return _token_log_probs(&ax, &aids, temperature, &alogp, &alse, &ah)

# dlogits = dlogp (onehot(id) - p) / T; dlogits may be logits.
cdef inline int token_log_probs_vjp(const floating[::1] dlogp, const floating[:, :] logits, const int64_t[::1] ids,
                                    const floating[::1] lse, floating[:, :] dlogits,
                                    double temperature=1.0) except -1 nogil:
    cdef Array ad = vector(dlogp), ax = matrix(logits), aids = indices(ids), alse = vector(lse), adx = matrix(dlogits)
    return _token_log_probs_vjp(&ad, &ax, &aids, &alse, temperature, &adx)

# out = softmax(scale q k^T) v. q (B, Hq, S, D), k (B, Hkv, K, D), v (B, Hkv, K, Dv), out (B, Hq, S, Dv), lse (B, Hq, S);
# last axes contiguous, scale 0 = 1 / sqrt(D). A query with nothing to attend to gives 0 and lse -inf.
cdef inline int attention(const floating[:, :, :, :] q, const floating[:, :, :, :] k, const floating[:, :, :, :] v,
                          floating[:, :, :, :] out, floating[:, :, ::1] lse, int causal=0, double scale=0.0) except -1 nogil:
    cdef Array aq = tensor(q), ak = tensor(k), av = tensor(v), aout = tensor(out), alse = cube(lse)
    return _attention(&aq, &ak, &av, causal, scale, &aout, &alse)

# The same for one head: q (S, D), k (K, D), v (K, Dv), out (S, Dv), lse (S,).
cdef inline int attention_head(const floating[:, :] q, const floating[:, :] k, const floating[:, :] v,
                               floating[:, :] out, floating[::1] lse, int causal=0, double scale=0.0) except -1 nogil:
    cdef Array aq = matrix(q), ak = matrix(k), av = matrix(v), aout = matrix(out), alse = vector(lse)
    return _attention(&aq, &ak, &av, causal, scale, &aout, &alse)

# y = x with the pairs (x[i], x[i + R]), or (x[2i], x[2i+1]) if interleaved, turned by the angle whose cosine and sine are
# given for each position: x, y (B, H, S, D), cos, sin (S, R) with R <= D / 2; last axes contiguous. y may be x.
cdef inline int rotary_embedding(const floating[:, :, :, :] x, const floating[:, :] cos, const floating[:, :] sin,
                                 floating[:, :, :, :] y, bint interleaved=False, bint inverse=False) except -1 nogil:
    cdef Array ax = tensor(x), ac = matrix(cos), asin = matrix(sin), ay = tensor(y)
    return _rotary_embedding(&ax, &ac, &asin, interleaved, inverse, &ay)

# Threads that a large call made now would use; setting 0 goes back to the default. One setting for the process.
cdef int num_threads() noexcept nogil
cdef int set_num_threads(int n) except -1 nogil


# From here on: how the functions above hand their arrays on.
cdef struct Array:
    void* data
    int64_t shape[4]
    int64_t strides[4]  # bytes
    int ndim
    int dtype  # npk_dtype

cdef inline Array described(const void* data, int ndim, const Py_ssize_t* shape, const Py_ssize_t* strides,
                            int dtype) noexcept nogil:
    cdef Array a
    cdef int i
    a.data = <void*>data
    a.ndim = ndim
    a.dtype = dtype
    for i in range(4):
        a.shape[i] = shape[i] if i < ndim else 1
        a.strides[i] = strides[i] if i < ndim else 0
    return a

cdef inline Array vector(const floating[::1] x) noexcept nogil:
    with cython.boundscheck(False):
        return described(&x[0], 1, x.shape, x.strides, 0 if floating is float else 1)

cdef inline Array indices(const int64_t[::1] x) noexcept nogil:
    with cython.boundscheck(False):
        return described(&x[0], 1, x.shape, x.strides, 5)

cdef inline Array matrix(const floating[:, :] x) noexcept nogil:
    with cython.boundscheck(False):
        return described(&x[0, 0], 2, x.shape, x.strides, 0 if floating is float else 1)

cdef inline Array cube(const floating[:, :, ::1] x) noexcept nogil:
    with cython.boundscheck(False):
        return described(&x[0, 0, 0], 3, x.shape, x.strides, 0 if floating is float else 1)

cdef inline Array tensor(const floating[:, :, :, :] x) noexcept nogil:
    with cython.boundscheck(False):
        return described(&x[0, 0, 0, 0], 4, x.shape, x.strides, 0 if floating is float else 1)

cdef inline Array row(const floating* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t step = sizeof(floating)
    return described(x, 1, &n, &step, 0 if floating is float else 1)

cdef int _softmax(const Array* x, double temperature, const Array* y) except -1 nogil
cdef int _log_softmax(const Array* x, double temperature, const Array* y) except -1 nogil
cdef int _logsumexp(const Array* x, double temperature, const Array* lse) except -1 nogil
cdef int _entropy(const Array* x, double temperature, const Array* entropy) except -1 nogil
cdef int _softmax_vjp(const Array* dy, const Array* y, double temperature, const Array* dx) except -1 nogil
cdef int _log_softmax_vjp(const Array* dy, const Array* y, double temperature, const Array* dx) except -1 nogil
cdef int _token_log_probs(const Array* logits, const Array* ids, double temperature, const Array* log_prob,
                          const Array* lse, const Array* entropy) except -1 nogil
cdef int _token_log_probs_vjp(const Array* dlogp, const Array* logits, const Array* ids, const Array* lse,
                              double temperature, const Array* dlogits) except -1 nogil
cdef int _attention(const Array* q, const Array* k, const Array* v, int causal, double scale, const Array* out,
                    const Array* lse) except -1 nogil
cdef int _rotary_embedding(const Array* x, const Array* cos, const Array* sin, bint interleaved, bint inverse,
                           const Array* y) except -1 nogil
