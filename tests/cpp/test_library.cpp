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

template <class T>
void check_attention(int64_t q_heads, int64_t k_heads, int64_t S, int64_t K, int64_t D, int64_t Dv,
                     bool causal) {
  Block<T> q({2, q_heads, S, D}), k({2, k_heads, K, D}), v({2, k_heads, K, Dv}), out({2, q_heads, S, Dv}),
      lse({2, q_heads, S});
  const int64_t offset[] = {K - S, K - S - 1};
  REQUIRE(attention(q.array(), k.array(), v.array(), {0.4, causal, offset, nullptr, nullptr}, out.array(),
                    lse.data()));
  const double eps = 60 * double(std::numeric_limits<T>::epsilon());
  for (int64_t row = 0; row < 2 * q_heads * S; ++row) {
    const int64_t b = row / (q_heads * S), head = row / S % q_heads, s = row % S;
    const int64_t kv = b * k_heads + head / (q_heads / k_heads);
    double sum = 0;
    std::vector<double> o(static_cast<size_t>(Dv));
    for (int64_t j = 0; j < K; ++j) {
      if (causal && j > s + offset[b]) continue;
      double score = 0;
      for (int64_t d = 0; d < D; ++d)
        score += double(q.data()[row * D + d]) * double(k.data()[(kv * K + j) * D + d]);
      const double p = std::exp(0.4 * score);
      sum += p;
      for (int64_t d = 0; d < Dv; ++d)
        o[static_cast<size_t>(d)] += p * double(v.data()[(kv * K + j) * Dv + d]);
    }
    for (int64_t d = 0; d < Dv; ++d)
      REQUIRE(std::abs(double(out.data()[row * Dv + d]) - (sum > 0 ? o[static_cast<size_t>(d)] / sum : 0)) <
              eps);
    if (sum > 0)
      REQUIRE(double(lse.data()[row]) == doctest::Approx(std::log(sum)).epsilon(eps));
    else
      REQUIRE(double(lse.data()[row]) == -INFINITY);
  }
  for (const Block<T>* block : {&q, &k, &v, &out, &lse}) CHECK(block->intact());
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
    for (bool causal : {false, true}) {
      check_attention<float>(1, 1, 1, 1, 1, 1, causal);
      check_attention<float>(6, 2, 50, 131, 17, 9, causal);
      check_attention<double>(3, 3, 33, 16, 8, 13, causal);
      check_attention<double>(4, 1, 7, 300, 64, 64, causal);
      check_attention<float>(2, 1, 97, 129, 80, 33, causal);
    }
  }
}

TEST_CASE("merging halves of the keys gives the whole") {
  Block<float> q({1, 2, 5, 16}), k({1, 2, 40, 16}), v({1, 2, 40, 8});
  Block<float> whole({1, 2, 5, 8}), lse({1, 2, 5}), out = whole, joined = lse;
  REQUIRE(attention(q.array(), k.array(), v.array(), {0.25, false, nullptr, nullptr, nullptr}, whole.array(),
                    lse.data()));
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
    REQUIRE(attention(q.array(), ki, vi, {0.25, false, nullptr, nullptr, nullptr}, part[i].array(),
                      norm[i].data()));
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
