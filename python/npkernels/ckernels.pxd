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
# K keys, D head size, Dv value head size; r rewards, T tokens of a sequence in what is about GRPO.
cimport cython
from cython cimport floating
from libc.stdint cimport int64_t, uint64_t


# What `causal` may be: query i attends to every key; to keys 0 .. i; to keys 0 .. i + K - S.
cdef enum Causal:
    NOT_CAUSAL = 0
    TOP_LEFT = 1
    BOTTOM_RIGHT = 2

# What advantages are relative to, and what divides them.
cdef enum Baseline:
    MEAN_BASELINE = 0
    LEAVE_ONE_OUT = 1
    NO_BASELINE = 2

cdef enum Scale:
    GROUP_SCALE = 0
    BATCH_SCALE = 1
    NO_SCALE = 2

# How the losses of the tokens become one number: npk_aggregate of npkernels.h.
cdef enum Aggregate:
    TOKEN_MEAN = 0
    TOKEN_SUM = 1
    SEQ_MEAN_TOKEN_SUM = 2
    SEQ_MEAN_TOKEN_MEAN = 3
    SEQ_MEAN_TOKEN_SUM_NORM = 4

cdef enum Norm:
    NORM_INF = 0
    NORM_ONE = 1
    NORM_TWO = 2


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

# Gradients of attention from dout, with out and lse as attention gave them: dq, dk, dv of the shapes of q, k, v, which
# must not overlap anything.
cdef inline int attention_vjp(const floating[:, :, :, :] dout, const floating[:, :, :, :] q, const floating[:, :, :, :] k,
                              const floating[:, :, :, :] v, const floating[:, :, :, :] out, const floating[:, :, ::1] lse,
                              floating[:, :, :, :] dq, floating[:, :, :, :] dk, floating[:, :, :, :] dv, int causal=0,
                              double scale=0.0) except -1 nogil:
    cdef Array adout = tensor(dout), aq = tensor(q), ak = tensor(k), av = tensor(v), aout = tensor(out), alse = cube(lse)
    cdef Array adq = tensor(dq), adk = tensor(dk), adv = tensor(dv)
    return _attention_vjp(&adout, &aq, &ak, &av, &aout, &alse, causal, scale, &adq, &adk, &adv)

# attention and its derivative dout along (dq, dk, dv).
cdef inline int attention_jvp(const floating[:, :, :, :] q, const floating[:, :, :, :] k, const floating[:, :, :, :] v,
                              const floating[:, :, :, :] dq, const floating[:, :, :, :] dk, const floating[:, :, :, :] dv,
                              floating[:, :, :, :] out, floating[:, :, :, :] dout, int causal=0,
                              double scale=0.0) except -1 nogil:
    cdef Array aq = tensor(q), ak = tensor(k), av = tensor(v), adq = tensor(dq), adk = tensor(dk), adv = tensor(dv)
    cdef Array aout = tensor(out), adout = tensor(dout)
    return _attention_jvp(&aq, &ak, &av, &adq, &adk, &adv, causal, scale, &aout, &adout)

# advantages = (r - baseline) / (deviation + eps) of groups of `size` consecutive rewards; advantages may be rewards.
cdef inline int group_advantages(const floating[::1] rewards, int64_t size, floating[::1] advantages, double eps=1e-4,
                                 int baseline=0, int scale=0, int ddof=1) except -1 nogil:
    cdef Array ar = vector(rewards), aa = vector(advantages)
    return _group_advantages(&ar, size, NULL, eps, baseline, scale, ddof, &aa)

# The same of the groups of equal ids, of any values in any order.
cdef inline int group_advantages_by_id(const floating[::1] rewards, const int64_t[::1] ids, floating[::1] advantages,
                                       double eps=1e-4, int baseline=0, int scale=0, int ddof=1) except -1 nogil:
    cdef Array ar = vector(rewards), aids = indices(ids), aa = vector(advantages)
    return _group_advantages(&ar, 0, &aids, eps, baseline, scale, ddof, &aa)

# *loss = aggregate of -min(rho A, clip(rho, 1 - low, 1 + high) A), rho = exp(logp - old_logp) of each token, or of its
# sequence; dlogp its gradient. logp, old_logp, dlogp (B, T), advantages (B,). Contiguous; dlogp must not overlap anything.
cdef inline int policy_loss(const floating[:, :] logp, const floating[:, :] old_logp, const floating[::1] advantages,
                            floating[:, :] dlogp, double* loss, double low=0.2, double high=0.2, int aggregate=3,
                            bint sequence_level=False) except -1 nogil:
    cdef Array ap = matrix(logp), aold = matrix(old_logp), aa = vector(advantages), adp = matrix(dlogp)
    return _policy_loss(&ap, &aold, &aa, low, high, aggregate, sequence_level, loss, &adp)

# The same from logits (B, T, V) and ids (B, T) with 0 <= id < V, dlogits the gradient with respect to them; dlogits may be
# logits.
cdef inline int token_policy_loss(const floating[:, :, ::1] logits, const int64_t[:, ::1] ids, const floating[:, :] old_logp,
                                  const floating[::1] advantages, floating[:, :, ::1] dlogits, double* loss,
                                  double low=0.2, double high=0.2, int aggregate=3, bint sequence_level=False,
                                  double temperature=1.0) except -1 nogil:
    cdef Array ax = cube(logits), aids = index_matrix(ids), aold = matrix(old_logp), aa = vector(advantages)
    cdef Array adx = cube(dlogits)
    return _token_policy_loss(&ax, &aids, &aold, &aa, temperature, low, high, aggregate, sequence_level, loss, &adx)

# returns[t] = rewards[t] + gamma returns[t + 1], (B, T), contiguous
cdef inline int discounted_returns(const floating[:, :] rewards, double gamma, floating[:, :] returns) except -1 nogil:
    cdef Array ar = matrix(rewards), aR = matrix(returns)
    return _discounted_returns(&ar, gamma, &aR)

# A_t = r_t + gamma V_{t+1} - V_t + gamma lam A_{t+1}, returns = A + V, all (B, T), contiguous
cdef inline int gae(const floating[:, :] rewards, const floating[:, :] values, double gamma, double lam,
                    floating[:, :] advantages, floating[:, :] returns) except -1 nogil:
    cdef Array ar = matrix(rewards), av = matrix(values), aa = matrix(advantages), aR = matrix(returns)
    return _gae(&ar, &av, gamma, lam, &aa, &aR)

# y = x + eps sign(grad), clipped to [low, high] if bounded; rows are samples. y may be x or grad.
cdef inline int sign_step(const floating[:, :] x, const floating[:, :] grad, double eps, floating[:, :] y,
                          bint bounded=False, double low=0.0, double high=0.0) except -1 nogil:
    cdef Array ax = matrix(x), ag = matrix(grad), ay = matrix(y)
    return _sign_step(&ax, &ag, eps, bounded, low, high, &ay)

# y = the nearest point to x of the ball of radius eps around center, by a Norm; y may be x or center.
cdef inline int project(const floating[:, :] x, const floating[:, :] center, double eps, floating[:, :] y, int norm=0,
                        bint bounded=False, double low=0.0, double high=0.0) except -1 nogil:
    cdef Array ax = matrix(x), ac = matrix(center), ay = matrix(y)
    return _project(&ax, &ac, eps, norm, bounded, low, high, &ay)

# A step of that length along the steepest direction, then the projection; y may be x, center or grad.
cdef inline int pgd_step(const floating[:, :] x, const floating[:, :] center, const floating[:, :] grad, double step,
                         double eps, floating[:, :] y, int norm=0, bint bounded=False, double low=0.0,
                         double high=0.0) except -1 nogil:
    cdef Array ax = matrix(x), ac = matrix(center), ag = matrix(grad), ay = matrix(y)
    return _pgd_step(&ax, &ac, &ag, step, eps, norm, bounded, low, high, &ay)

# y = a point of the ball around each row of center, uniform, a function of the key and the place; y may be center.
cdef inline int random_in_ball(const floating[:, :] center, double eps, uint64_t key, floating[:, :] y, int norm=0,
                               bint bounded=False, double low=0.0, double high=0.0) except -1 nogil:
    cdef Array ac = matrix(center), ay = matrix(y)
    return _random_in_ball(&ac, eps, key, norm, bounded, low, high, &ay)

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

cdef inline Array index_matrix(const int64_t[:, ::1] x) noexcept nogil:
    with cython.boundscheck(False):
        return described(&x[0, 0], 2, x.shape, x.strides, 5)

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
cdef int _attention_vjp(const Array* dout, const Array* q, const Array* k, const Array* v, const Array* out,
                        const Array* lse, int causal, double scale, const Array* dq, const Array* dk,
                        const Array* dv) except -1 nogil
cdef int _attention_jvp(const Array* q, const Array* k, const Array* v, const Array* dq, const Array* dk, const Array* dv,
                        int causal, double scale, const Array* out, const Array* dout) except -1 nogil
cdef int _group_advantages(const Array* rewards, int64_t size, const Array* ids, double eps, int baseline, int scale,
                           int ddof, const Array* advantages) except -1 nogil
cdef int _policy_loss(const Array* logp, const Array* old_logp, const Array* advantages, double low, double high,
                      int aggregate, bint sequence_level, double* loss, const Array* dlogp) except -1 nogil
cdef int _token_policy_loss(const Array* logits, const Array* ids, const Array* old_logp, const Array* advantages,
                            double temperature, double low, double high, int aggregate, bint sequence_level,
                            double* loss, const Array* dlogits) except -1 nogil
cdef int _discounted_returns(const Array* rewards, double gamma, const Array* returns) except -1 nogil
cdef int _gae(const Array* rewards, const Array* values, double gamma, double lam, const Array* advantages,
              const Array* returns) except -1 nogil
cdef int _sign_step(const Array* x, const Array* grad, double eps, bint bounded, double low, double high,
                    const Array* y) except -1 nogil
cdef int _project(const Array* x, const Array* center, double eps, int norm, bint bounded, double low,
                  double high, const Array* y) except -1 nogil
cdef int _pgd_step(const Array* x, const Array* center, const Array* grad, double step, double eps, int norm, bint bounded,
                   double low, double high, const Array* y) except -1 nogil
cdef int _random_in_ball(const Array* center, double eps, uint64_t key, int norm, bint bounded, double low,
                         double high, const Array* y) except -1 nogil
