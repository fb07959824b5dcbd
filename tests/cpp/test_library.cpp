// The library through its public C++ headers, on every instruction set of this CPU, beside plain loops in
// double; and the parts that no kernel shows: rows, dispatch, threads.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "npkernels/attention.h"
#include "npkernels/isa.h"
#include "npkernels/softmax.h"
#include "npkernels/threads.h"
#include "rows.h"

using namespace npkernels;

namespace {

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const char* const* name = compiled_isas(); *name; ++name)
    if (isa_supported(*name)) names.push_back(*name);
  return names;
}

// A C-ordered array with canaries around it.
template <class T>
class Block {
 public:
  explicit Block(std::vector<int64_t> shape, double scale = 1)
      : shape_(std::move(shape)), strides_(shape_.size()) {
    int64_t size = 1;
    for (size_t i = shape_.size(); i-- > 0; size *= shape_[i]) strides_[i] = size * int64_t(sizeof(T));
    memory_.assign(static_cast<size_t>(size) + 2 * kGuard, T(-77));
    for (int64_t i = 0; i < size; ++i) data()[i] = T(scale * std::sin(1.7 * double(i) + double(size)));
  }
  T* data() { return memory_.data() + kGuard; }
  Array array() {
    const DType dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;
    return {data(), shape_.data(), strides_.data(), static_cast<int32_t>(shape_.size()), dtype};
  }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i)
      if (memory_[i] != T(-77) || memory_[memory_.size() - 1 - i] != T(-77)) return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 32;
  std::vector<int64_t> shape_, strides_;
  std::vector<T> memory_;
};

template <class T>
void check_rows(int64_t rows, int64_t n, int axis) {
  const int64_t row_step = axis == 1 ? n : 1, entry_step = axis == 1 ? 1 : rows;
  Block<T> x(axis == 1 ? std::vector<int64_t>{rows, n} : std::vector<int64_t>{n, rows}, 5);
  Block<T> y = x, log_y = x, lse({rows}), entropy({rows}), log_prob({rows}), loss({rows}), dx = x;
  const SoftmaxOptions options{axis, 1.0, nullptr};
  softmax(x.array(), options, y.array());
  log_softmax(x.array(), options, log_y.array());
  logsumexp(x.array(), options, lse.data(), entropy.data());
  std::vector<int64_t> ids(static_cast<size_t>(rows)), top1(ids), rank(ids);
  for (int64_t r = 0; r < rows; ++r) ids[static_cast<size_t>(r)] = (r * 7) % n;
  token_log_probs(x.array(), ids.data(), options,
                  {log_prob.data(), nullptr, nullptr, nullptr, top1.data(), rank.data()});
  const Array grad = dx.array();
  cross_entropy(x.array(), ids.data(), {axis, 0.0, nullptr, double(n), 1.0}, loss.data(), &grad);
  const double eps = 40 * double(std::numeric_limits<T>::epsilon());
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = x.data() + r * row_step;
    double m = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; ++j) m = std::max(m, double(row[j * entry_step]));
    for (int64_t j = 0; j < n; ++j) sum += std::exp(row[j * entry_step] - m);
    const double norm = m + std::log(sum);
    int64_t above = 0;
    const int64_t id = ids[static_cast<size_t>(r)];
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = r * row_step + j * entry_step;
      const double log_p = x.data()[at] - norm;
      REQUIRE(y.data()[at] == doctest::Approx(std::exp(log_p)).epsilon(eps));
      REQUIRE(log_y.data()[at] == doctest::Approx(log_p).epsilon(eps));
      REQUIRE(std::abs(dx.data()[at] - (std::exp(log_p) - (j == id))) < eps);
      above += x.data()[at] > row[id * entry_step];
    }
    REQUIRE(lse.data()[r] == doctest::Approx(norm).epsilon(eps));
    REQUIRE(log_prob.data()[r] == doctest::Approx(row[id * entry_step] - norm).epsilon(eps));
    REQUIRE(loss.data()[r] == doctest::Approx(norm - row[id * entry_step]).epsilon(eps));
    REQUIRE(rank[static_cast<size_t>(r)] == above);
    REQUIRE(double(row[top1[static_cast<size_t>(r)] * entry_step]) == m);
  }
  for (const Block<T>* block : {&x, &y, &log_y, &lse, &entropy, &log_prob, &loss, &dx})
    CHECK(block->intact());
}

struct AttentionCase {
  int64_t q_heads, k_heads, S, K, D, Dv;
  bool causal = false;
  int64_t left = -1, right = -1;
  double softcap = 0;
  bool mask = false;
};

// attention, its gradients and its derivative along a tangent, all from the formulas in double: P = softmax
// of the scores s, dP = dout v^T, dS = P o (dP - rowsum(P o dP) + dlse) ds/dx for x = scale q k.
template <class T>
struct PlainAttention {
  std::vector<double> out, lse, dq, dk, dv, tangent;

  // x = q, k, v and then their tangents; allowed(b, head, s, j).
  template <class Allowed>
  PlainAttention(const AttentionCase& c, double scale, Block<T> (&x)[6], Block<T>& dout, Block<T>& dlse,
                 Allowed allowed) {
    const int64_t rows = 2 * c.q_heads * c.S, keys = 2 * c.k_heads * c.K;
    const auto size = [](int64_t n) { return std::vector<double>(static_cast<size_t>(n)); };
    out = tangent = size(rows * c.Dv), lse = size(rows);
    dq = size(rows * c.D), dk = size(keys * c.D), dv = size(keys * c.Dv);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t b = row / (c.q_heads * c.S), head = row / c.S % c.q_heads, s = row % c.S;
      const int64_t first = (b * c.k_heads + head / (c.q_heads / c.k_heads)) * c.K;
      std::vector<double> p = size(c.K), slope = p, dp = p, moved = p;
      double sum = 0, mean_dp = 0, mean_moved = 0;
      for (int64_t j = 0; j < c.K; ++j) {
        const size_t i = static_cast<size_t>(j);
        const double product = dot(x[0], row, x[1], first + j, c.D);
        const double t = c.softcap > 0 ? std::tanh(scale * product / c.softcap) : 0;
        slope[i] = 1 - t * t;
        p[i] = allowed(b, head, s, j) ? std::exp(c.softcap > 0 ? c.softcap * t : scale * product) : 0;
        sum += p[i];
        dp[i] = dot(dout, row, x[2], first + j, c.Dv);
        moved[i] =
            scale * slope[i] * (dot(x[3], row, x[1], first + j, c.D) + dot(x[0], row, x[4], first + j, c.D));
      }
      lse[static_cast<size_t>(row)] = std::log(sum);
      for (size_t i = 0; sum > 0 && i < p.size(); ++i) {
        p[i] /= sum;
        mean_dp += p[i] * dp[i];
        mean_moved += p[i] * moved[i];
      }
      mean_dp -= double(dlse.data()[row]);
      for (int64_t j = 0; j < c.K; ++j) {
        const size_t i = static_cast<size_t>(j);
        const double ds = scale * p[i] * (dp[i] - mean_dp) * slope[i];
        add(dq, row, ds, x[1], first + j, c.D);
        add(dk, first + j, ds, x[0], row, c.D);
        add(dv, first + j, p[i], dout, row, c.Dv);
        add(out, row, p[i], x[2], first + j, c.Dv);
        add(tangent, row, p[i], x[5], first + j, c.Dv);
        add(tangent, row, p[i] * (moved[i] - mean_moved), x[2], first + j, c.Dv);
      }
    }
  }

 private:
  static double dot(Block<T>& a, int64_t i, Block<T>& b, int64_t j, int64_t n) {
    double sum = 0;
    for (int64_t d = 0; d < n; ++d) sum += double(a.data()[i * n + d]) * double(b.data()[j * n + d]);
    return sum;
  }
  static void add(std::vector<double>& to, int64_t i, double factor, Block<T>& from, int64_t j, int64_t n) {
    for (int64_t d = 0; d < n; ++d)
      to[static_cast<size_t>(i * n + d)] += factor * double(from.data()[j * n + d]);
  }
};

// Up to the rounding of scores, which exp passes on, and of sums; all in proportion to the largest entry.
template <class T>
void check_equal(Block<T>& computed, const std::vector<double>& expected, double largest_score) {
  double largest = 1;
  for (double e : expected) largest = std::isfinite(e) ? std::max(largest, std::abs(e)) : largest;
  const double eps = (60 + 20 * largest_score) * double(std::numeric_limits<T>::epsilon()) * largest;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double x = double(computed.data()[i]), error = x == expected[i] ? 0 : std::abs(x - expected[i]);
    CAPTURE(i);
    CAPTURE(x);
    REQUIRE(error < eps);
  }
}

template <class T>
void check_attention(const AttentionCase& c) {
  CAPTURE(c.S);
  CAPTURE(c.K);
  const std::vector<int64_t> q_shape{2, c.q_heads, c.S, c.D}, k_shape{2, c.k_heads, c.K, c.D},
      v_shape{2, c.k_heads, c.K, c.Dv}, out_shape{2, c.q_heads, c.S, c.Dv}, row_shape{2, c.q_heads, c.S};
  Block<T> x[6] = {Block<T>(q_shape),      Block<T>(k_shape),      Block<T>(v_shape),
                   Block<T>(q_shape, 0.7), Block<T>(k_shape, 0.6), Block<T>(v_shape, 0.5)};
  for (int i = 3; i < 6; ++i) x[i].data()[0] = T(-2);  // a tangent is no multiple of its point
  Block<T> out(out_shape), lse(row_shape), dout(out_shape, 1.3), dlse(row_shape, 0.4), dq(q_shape),
      dk(k_shape), dv(v_shape), along(out_shape), tangent(out_shape), along_lse(row_shape);

  const int64_t offset[] = {c.K - c.S, c.K - c.S - 1};
  std::vector<char> mask(static_cast<size_t>(2 * c.S * c.K));  // the same for all heads
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = i * i % 7 < 4;
  const int64_t mask_shape[] = {2, c.q_heads, c.S, c.K}, mask_strides[] = {c.S * c.K, 0, c.K, 1};
  const Array mask_array{mask.data(), mask_shape, mask_strides, 4, DType::boolean};
  AttentionOptions options;
  options.scale = 0.4;
  options.softcap = c.softcap;
  options.causal = c.causal;
  options.window_left = c.left;
  options.window_right = c.right;
  options.offset = offset;
  options.mask = c.mask ? &mask_array : nullptr;
  const PlainAttention<T> plain(c, 0.4, x, dout, dlse, [&](int64_t b, int64_t, int64_t s, int64_t j) {
    const int64_t p = s + offset[b];
    return !(c.causal && j > p) && !(c.left >= 0 && j < p - c.left) && !(c.right >= 0 && j > p + c.right) &&
           (!c.mask || mask[static_cast<size_t>((b * c.S + s) * c.K + j)]);
  });

  const double largest_score = options.scale * double(c.D);

  REQUIRE(attention(x[0].array(), x[1].array(), x[2].array(), options, out.array(), lse.data()));
  check_equal(out, plain.out, largest_score);
  check_equal(lse, plain.lse, largest_score);
  const Array gradients[] = {dq.array(), dk.array(), dv.array()};
  REQUIRE(attention_vjp(dout.array(), x[0].array(), x[1].array(), x[2].array(), out.array(), lse.data(),
                        dlse.data(), options,
                        {&gradients[0], &gradients[1], &gradients[2], nullptr, nullptr}));
  check_equal(dq, plain.dq, largest_score);
  check_equal(dk, plain.dk, largest_score);
  check_equal(dv, plain.dv, largest_score);
  REQUIRE(attention_jvp(x[0].array(), x[1].array(), x[2].array(), x[3].array(), x[4].array(), x[5].array(),
                        options, along.array(), tangent.array(), along_lse.data()));
  check_equal(along, plain.out, largest_score);
  check_equal(tangent, plain.tangent, largest_score);
  check_equal(along_lse, plain.lse, largest_score);
  for (const Block<T>& block : x) CHECK(block.intact());
  for (const Block<T>* block : {&out, &lse, &dout, &dlse, &dq, &dk, &dv, &along, &tangent, &along_lse})
    CHECK(block->intact());
}

}  // namespace

TEST_CASE("softmax family beside plain loops") {
  for (const std::string& name : isas()) {
    CAPTURE(name);
    REQUIRE(set_isa(name.c_str()));
    for (int64_t n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 97, 256, 257, 1023, 1024, 1025, 2500})
      for (int axis : {0, 1}) {
        check_rows<float>(n > 300 ? 3 : 19, n, axis);
        check_rows<double>(n > 300 ? 3 : 19, n, axis);
      }
  }
}

TEST_CASE("attention beside plain loops") {
  for (const std::string& name : isas()) {
    CAPTURE(name);
    REQUIRE(set_isa(name.c_str()));
    for (bool causal : {false, true})
      for (bool mask : {false, true}) {
        check_attention<float>({1, 1, 1, 1, 1, 1, causal, -1, -1, 0, mask});
        check_attention<float>({6, 2, 50, 131, 17, 9, causal, 40, -1, 0, mask});
        check_attention<double>({3, 3, 33, 16, 8, 13, causal, -1, 5, 2, mask});
        check_attention<double>({4, 1, 7, 300, 64, 64, causal, -1, -1, 0, mask});
        check_attention<float>({2, 1, 97, 129, 80, 33, causal, 3, 60, 0.5, mask});
        check_attention<float>({2, 2, 5, 70, 31, 40, causal, -1, -1, 0, mask});
        check_attention<double>({5, 1, 11, 65, 3, 2, causal, 0, 0, 0, mask});
      }
  }
}

TEST_CASE("merging halves of the keys gives the whole") {
  Block<float> q({1, 2, 5, 16}), k({1, 2, 40, 16}), v({1, 2, 40, 8});
  Block<float> whole({1, 2, 5, 8}), lse({1, 2, 5}), out = whole, joined = lse;
  AttentionOptions options;
  options.scale = 0.25;
  REQUIRE(attention(q.array(), k.array(), v.array(), options, whole.array(), lse.data()));
  Block<float> part[2] = {whole, whole}, norm[2] = {lse, lse};
  Array parts[2];
  const void* norms[2];
  for (int i = 0; i < 2; ++i) {
    Array ki = k.array(), vi = v.array();
    const int64_t k_shape[] = {1, 2, 20, 16}, v_shape[] = {1, 2, 20, 8};
    ki.shape = k_shape;
    vi.shape = v_shape;
    ki.data = k.data() + i * 20 * 16;
    vi.data = v.data() + i * 20 * 8;
    REQUIRE(attention(q.array(), ki, vi, options, part[i].array(), norm[i].data()));
    parts[i] = part[i].array();
    norms[i] = norm[i].data();
  }
  merge_attention(2, parts, norms, out.array(), joined.data());
  for (int i = 0; i < 80; ++i) CHECK(out.data()[i] == doctest::Approx(whole.data()[i]).epsilon(1e-5));
  CHECK(out.intact());
}

TEST_CASE("outer axes that lie behind one another become one") {
  const int64_t shape[] = {2, 3, 5, 7}, strides[] = {420, 140, 28, 4}, broadcast[] = {0, 0, 28, 4};
  const Array x{nullptr, shape, strides, 4, DType::float32},
      mask{nullptr, shape, broadcast, 4, DType::boolean};
  RowCall call;
  const RowArray one[] = {{&x, &call.in[0]}};
  make_rows(call, 3, one, 1);
  CHECK(call.outer_dims == 1);
  CHECK(call.rows == 30);
  CHECK(call.in[0].outer[0] == 28);
  const RowArray two[] = {{&x, &call.in[0]}, {&mask, &call.mask}};
  make_rows(call, 3, two, 2);
  CHECK(call.outer_dims == 2);
  make_rows(call, 1, one, 1);
  CHECK(call.outer_dims == 2);
  CHECK(call.n == 3);
  CHECK(call.in[0].inner == 140);
}

TEST_CASE("only a supported instruction set can be chosen") {
  const std::string before = isa();
  CHECK_FALSE(set_isa("sse9"));
  CHECK_FALSE(set_isa(nullptr));
  CHECK(before == isa());
  for (const std::string& name : isas()) {
    CHECK(set_isa(name.c_str()));
    CHECK(name == isa());
  }
}

TEST_CASE("every task is done once, by a worker in range") {
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    CHECK(num_threads() == threads);
    struct Seen {
      std::vector<std::atomic<int>> count = std::vector<std::atomic<int>>(1000);
      std::atomic<int> strays{0};
      int workers = 0;
    } seen;
    seen.workers = workers_for(1000);
    parallel_tasks(
        1000, seen.workers,
        [](void* context, int64_t task, int worker) {
          Seen& s = *static_cast<Seen*>(context);
          ++s.count[static_cast<size_t>(task)];
          if (worker < 0 || worker >= s.workers) ++s.strays;
        },
        &seen);
    for (const auto& count : seen.count) CHECK(count == 1);
    CHECK(seen.strays == 0);
  }
  const int before = set_thread_limit(1);
  CHECK(num_threads() == 1);
  set_thread_limit(before);
  set_num_threads(0);
}

TEST_CASE("a forked child works alone") {
  set_num_threads(2);
  Block<float> x({64, 2048}), y = x;
  softmax(x.array(), {1, 1.0, nullptr}, y.array());
  const pid_t child = fork();
  if (child == 0) {
    Block<float> z = x;
    softmax(x.array(), {1, 1.0, nullptr}, z.array());
    _exit(num_threads() == 1 && std::memcmp(z.data(), y.data(), 64 * 2048 * 4) == 0 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  set_num_threads(0);
}
