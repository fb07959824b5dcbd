// The families of npkernels.h that begin at rewards, gradients and cotangents, on every instruction set of
// this CPU: beside plain loops and central differences, and refusals that write nothing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "npkernels/npkernels.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace {

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const char* const* name = npk_compiled_isas(); *name; ++name)
    if (npk_isa_supported(*name)) names.push_back(*name);
  return names;
}

template <class F>
void on_every_isa(F f) {
  for (const std::string& name : isas()) {
    CAPTURE(name);
    REQUIRE(npk_set_isa(name.c_str()) == NPK_OK);
    f();
  }
}

// A C-ordered array of doubles with canaries around it, and its description.
class Block {
 public:
  explicit Block(std::vector<int64_t> shape, double seed = 1) : shape_(std::move(shape)) {
    size_ = 1;
    for (int64_t n : shape_) size_ *= n;
    memory_.assign(static_cast<size_t>(size_) + 2 * kGuard, -77);
    for (int64_t i = 0; i < size_; ++i) data()[i] = std::sin(1.7 * double(i) + 2.3 * seed);
  }
  double* data() { return memory_.data() + kGuard; }
  double& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return size_; }
  const npk_array* array() {
    array_ = {data(), shape_.data(), nullptr, static_cast<int32_t>(shape_.size()), NPK_FLOAT64};
    return &array_;
  }
  void fill(double x) { std::fill_n(data(), size_, x); }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i)
      if (memory_[i] != -77 || memory_[memory_.size() - 1 - i] != -77) return false;
    return true;
  }
  bool all(double x) {
    return std::all_of(data(), data() + size_, [x](double y) { return x == y; });
  }

 private:
  static constexpr size_t kGuard = 32;
  std::vector<int64_t> shape_;
  std::vector<double> memory_;
  int64_t size_;
  npk_array array_;
};

struct Integers {
  std::vector<int64_t> values, shape;
  npk_array array() { return {values.data(), shape.data(), nullptr, int32_t(shape.size()), NPK_INT64}; }
};

// Each entry of a gradient beside the central difference of a loss when that entry of x moves.
template <class Loss>
void check_gradient(Block& x, Block& gradient, Loss loss) {
  const double h = 1e-5;
  for (int64_t i = 0; i < x.size(); ++i) {
    CAPTURE(i);
    const double before = x[i];
    x[i] = before + h;
    const double above = loss();
    x[i] = before - h;
    const double below = loss();
    x[i] = before;
    REQUIRE(gradient[i] == doctest::Approx((above - below) / (2 * h)).epsilon(1e-6));
  }
}

}  // namespace

TEST_CASE("advantages beside plain loops") {
  on_every_isa([] {
    for (int64_t G : {1, 2, 3, 7, 16, 33}) {
      const int64_t n = 5, B = n * G;
      Block r({B}), a({B}), again({B}), stats({B, 5});
      r.fill(0.3);
      for (int64_t i = G; i < B; ++i) r[i] = std::sin(double(i));  // the first group is constant
      Integers ids{std::vector<int64_t>(size_t(B)), {B}}, index = ids;
      for (int64_t i = 0; i < B; ++i) ids.values[size_t(i)] = 1000 - 7 * (i / G);
      const npk_array id = ids.array(), to_index = index.array();
      int64_t groups = -1;
      REQUIRE(npk_group_advantages(r.array(), G, nullptr, nullptr, a.array(), nullptr, nullptr, nullptr) ==
              NPK_OK);
      REQUIRE(npk_group_advantages(r.array(), 0, &id, nullptr, again.array(), stats.array(), &to_index,
                                   &groups) == NPK_OK);
      CHECK(groups == n);
      for (int64_t i = 0; i < B; ++i) {
        const double* group = r.data() + i / G * G;
        double mean = 0, squares = 0;
        for (int64_t j = 0; j < G; ++j) mean += group[j] / double(G);
        for (int64_t j = 0; j < G; ++j) squares += (group[j] - mean) * (group[j] - mean);
        const bool constant = i < G || G == 1;
        const double expected = constant ? 0 : (r[i] - mean) / (std::sqrt(squares / double(G - 1)) + 1e-4);
        REQUIRE(a[i] == doctest::Approx(expected).epsilon(1e-12));
        REQUIRE(again[i] == doctest::Approx(expected).epsilon(1e-12));
        REQUIRE(index.values[size_t(i)] == i / G);
        REQUIRE(stats[i / G * 5] == double(G));
      }
      for (const Block* block : {&r, &a, &again, &stats}) CHECK(block->intact());
    }
  });
}

TEST_CASE("policy losses and their gradients by differences") {
  struct Case {
    int32_t surrogate, sequence_level, aggregate, kl;
  };
  const Case cases[] = {{NPK_SURROGATE_CLIP, 0, NPK_TOKEN_MEAN, NPK_KL_K3},
                        {NPK_SURROGATE_CLIP, 1, NPK_SEQ_MEAN_TOKEN_MEAN, NPK_KL_K2},
                        {NPK_SURROGATE_GATE, 0, NPK_TOKEN_SUM, NPK_KL_K1},
                        {NPK_SURROGATE_GEOMETRIC, 1, NPK_SEQ_MEAN_TOKEN_SUM, NPK_KL_K3},
                        {NPK_SURROGATE_LOG, 0, NPK_SEQ_MEAN_TOKEN_SUM_NORM, NPK_KL_K3}};
  on_every_isa([&] {
    for (const Case& c : cases) {
      CAPTURE(c.surrogate);
      const int64_t B = 3, T = 11, V = 19;
      Block logits({B, T, V}, 3), old({B, T}, 5), ref({B, T}, 7), a({B}), dlogits({B, T, V});
      Block logp({B, T}), dlogp({B, T});
      Integers ids{std::vector<int64_t>(size_t(B * T)), {B, T}};
      std::vector<char> kept(size_t(B * T), 1);
      const int64_t shape[] = {B, T};
      for (int64_t i = 0; i < B * T; ++i) {
        ids.values[size_t(i)] = i * 5 % V;
        if (i % 6 == 4) kept[size_t(i)] = 0, ids.values[size_t(i)] = -1;
        double sum = 0;
        for (int64_t v = 0; v < V; ++v) sum += std::exp(logits[i * V + v]);
        logp[i] = logits[i * V + i * 5 % V] - std::log(sum);
        old[i] = logp[i] + 0.1 * old[i];
        ref[i] = logp[i] + 0.5 * ref[i];
      }
      const npk_array mask{kept.data(), shape, nullptr, 2, NPK_BOOL}, id = ids.array();
      npk_policy_options options = NPK_POLICY_OPTIONS_INIT;
      options.surrogate = c.surrogate;
      options.sequence_level = c.sequence_level;
      options.aggregate = c.aggregate;
      options.kl = c.kl;
      options.mask = &mask;
      options.ref_logp = ref.array();
      options.beta = 0.3;
      options.clip_low = options.clip_high = 0.07;
      npk_policy_metrics metrics = NPK_POLICY_METRICS_INIT, of_logits = NPK_POLICY_METRICS_INIT;
      const auto loss = [&] {
        REQUIRE(npk_policy_loss(logp.array(), old.array(), a.array(), &options, &metrics, nullptr) == NPK_OK);
        return metrics.loss;
      };
      const auto loss_of_logits = [&] {
        REQUIRE(npk_token_policy_loss(logits.array(), &id, old.array(), a.array(), 1.0, &options, &of_logits,
                                      nullptr) == NPK_OK);
        return of_logits.loss;
      };
      CHECK(loss() == doctest::Approx(loss_of_logits()).epsilon(1e-12));
      REQUIRE(npk_policy_loss(logp.array(), old.array(), a.array(), &options, &metrics, dlogp.array()) ==
              NPK_OK);
      REQUIRE(npk_token_policy_loss(logits.array(), &id, old.array(), a.array(), 1.0, &options, &of_logits,
                                    dlogits.array()) == NPK_OK);
      check_gradient(logp, dlogp, loss);
      check_gradient(logits, dlogits, loss_of_logits);
      loss(), loss_of_logits();  // at the very point
      CHECK(metrics.tokens == B * T - 5);
      CHECK(metrics.kl == doctest::Approx(of_logits.kl).epsilon(1e-12));
      CHECK(std::isnan(metrics.importance));
      for (const Block* block : {&logits, &dlogits, &logp, &dlogp, &old, &ref, &a}) CHECK(block->intact());
    }
  });
}

TEST_CASE("returns and advantages along time beside plain loops") {
  on_every_isa([] {
    const double gamma = 0.9, lam = 0.8;
    for (int64_t T : {1, 7, 128, 131}) {
      const int64_t B = 9;
      Block r({B, T}, 2), v({B, T}, 3), R({B, T}), A({B, T}), returns({B, T});
      REQUIRE(npk_discounted_returns(r.array(), gamma, nullptr, R.array()) == NPK_OK);
      REQUIRE(npk_gae(r.array(), v.array(), gamma, lam, nullptr, A.array(), returns.array()) == NPK_OK);
      for (int64_t b = 0; b < B; ++b) {
        double sum = 0, advantage = 0, next = 0;
        for (int64_t t = T - 1; t >= 0; --t) {
          const int64_t i = b * T + t;
          sum = r[i] + gamma * sum;
          advantage = r[i] + gamma * next - v[i] + gamma * lam * advantage;
          next = v[i];
          REQUIRE(R[i] == doctest::Approx(sum).epsilon(1e-12));
          REQUIRE(A[i] == doctest::Approx(advantage).epsilon(1e-12));
          REQUIRE(returns[i] == doctest::Approx(advantage + v[i]).epsilon(1e-12));
        }
      }
      for (const Block* block : {&r, &v, &R, &A, &returns}) CHECK(block->intact());
    }
  });
}

TEST_CASE("steps, projections and points of balls") {
  on_every_isa([] {
    for (int64_t d : {1, 3, 8, 17, 100, 1025}) {
      const int64_t B = 4;
      Block x({B, d}, 2), c({B, d}, 3), g({B, d}, 5), y({B, d});
      npk_step_options options = NPK_STEP_OPTIONS_INIT;
      options.bounded = 1;
      options.low = -0.9;
      options.high = 0.95;
      g[0] = NAN;
      int64_t nans = -1;
      REQUIRE(npk_sign_step(x.array(), g.array(), 0.25, &options, y.array(), &nans) == NPK_OK);
      CHECK(nans == 1);
      for (int64_t i = 0; i < B * d; ++i) {
        const double sign = g[i] > 0 ? 1 : g[i] < 0 ? -1 : 0;
        REQUIRE(y[i] == std::min(std::max(x[i] + 0.25 * sign, -0.9), 0.95));
      }
      const npk_step_options open = NPK_STEP_OPTIONS_INIT;
      for (int32_t norm : {NPK_NORM_INF, NPK_NORM_ONE, NPK_NORM_TWO}) {
        options = open;
        options.norm = norm;
        Block p({B, d}), q({B, d}), z({B, d});
        const auto length = [&](Block& a, int64_t b) {
          double most = 0, sum = 0, squares = 0;
          for (int64_t j = b * d; j < (b + 1) * d; ++j) {
            const double e = std::abs(a[j] - c[j]);
            most = std::max(most, e);
            sum += e;
            squares += e * e;
          }
          return norm == NPK_NORM_INF ? most : norm == NPK_NORM_ONE ? sum : std::sqrt(squares);
        };
        REQUIRE(npk_project(x.array(), c.array(), 0.3, &options, p.array()) == NPK_OK);
        REQUIRE(npk_steepest_step(x.array(), g.array(), 0.5, &options, z.array(), nullptr) == NPK_OK);
        REQUIRE(npk_project(z.array(), c.array(), 0.3, &options, z.array()) == NPK_OK);  // in place
        REQUIRE(npk_pgd_step(x.array(), c.array(), g.array(), 0.5, 0.3, &options, q.array(), nullptr) ==
                NPK_OK);
        REQUIRE(npk_random_in_ball(c.array(), 0.3, 11, &options, y.array()) == NPK_OK);
        for (int64_t b = 0; b < B; ++b) {
          const double far = length(x, b);
          REQUIRE(length(p, b) == doctest::Approx(std::min(far, 0.3)).epsilon(1e-12));
          REQUIRE(length(y, b) <= 0.3 * (1 + 1e-12));
        }
        for (int64_t i = 0; i < B * d; ++i) REQUIRE(q[i] == doctest::Approx(z[i]).epsilon(1e-12));
        for (const Block* block : {&p, &q, &z, &y}) CHECK(block->intact());
      }
      for (const Block* block : {&x, &c, &g}) CHECK(block->intact());
    }
  });
}

TEST_CASE("derivatives of attention by differences") {
  on_every_isa([] {
    const int64_t Hq = 4, Hkv = 2, S = 3, K = 5, D = 6, Dv = 7;
    Block q({1, Hq, S, D}, 1), k({1, Hkv, K, D}, 2), v({1, Hkv, K, Dv}, 3), bias({S, K}, 4), sinks({Hq}, 5);
    Block out({1, Hq, S, Dv}), lse({1, Hq, S}), dout({1, Hq, S, Dv}, 6), dlse({1, Hq, S}, 7);
    Block dq({1, Hq, S, D}), dk({1, Hkv, K, D}), dv({1, Hkv, K, Dv}), dbias({S, K}), dsinks({Hq});
    npk_attention_options options = NPK_ATTENTION_OPTIONS_INIT;
    options.bias = bias.array();
    options.sinks = sinks.array();
    options.softcap = 1.5;
    options.causal = NPK_CAUSAL_BOTTOM_RIGHT;
    const auto loss = [&] {
      REQUIRE(npk_attention(q.array(), k.array(), v.array(), &options, out.array(), lse.array()) == NPK_OK);
      double sum = 0;
      for (int64_t i = 0; i < out.size(); ++i) sum += out[i] * dout[i];
      for (int64_t i = 0; i < lse.size(); ++i) sum += lse[i] * dlse[i];
      return sum;
    };
    loss();
    REQUIRE(npk_attention_vjp(dout.array(), q.array(), k.array(), v.array(), out.array(), lse.array(),
                              dlse.array(), &options, dq.array(), dk.array(), dv.array(), dbias.array(),
                              dsinks.array()) == NPK_OK);
    check_gradient(q, dq, loss);
    check_gradient(k, dk, loss);
    check_gradient(v, dv, loss);
    check_gradient(bias, dbias, loss);
    check_gradient(sinks, dsinks, loss);

    // The derivative along a direction is that of the gradient.
    Block tq({1, Hq, S, D}, 8), tk({1, Hkv, K, D}, 9), tv({1, Hkv, K, Dv}, 10), tout({1, Hq, S, Dv}),
        same({1, Hq, S, Dv});
    dlse.fill(0);
    loss();
    REQUIRE(npk_attention_vjp(dout.array(), q.array(), k.array(), v.array(), out.array(), lse.array(),
                              nullptr, &options, dq.array(), dk.array(), dv.array(), nullptr,
                              nullptr) == NPK_OK);
    REQUIRE(npk_attention_jvp(q.array(), k.array(), v.array(), tq.array(), tk.array(), tv.array(), &options,
                              same.array(), tout.array(), nullptr) == NPK_OK);
    double along = 0, expected = 0;
    for (int64_t i = 0; i < tout.size(); ++i) along += tout[i] * dout[i];
    for (int64_t i = 0; i < dq.size(); ++i) expected += dq[i] * tq[i];
    for (int64_t i = 0; i < dk.size(); ++i) expected += dk[i] * tk[i];
    for (int64_t i = 0; i < dv.size(); ++i) expected += dv[i] * tv[i];
    CHECK(along == doctest::Approx(expected).epsilon(1e-12));
    for (const Block* block : {&q, &k, &v, &bias, &out, &lse, &dq, &dk, &dv, &dbias, &dsinks, &tout, &same})
      CHECK(block->intact());
  });
}

TEST_CASE("a call that is refused names the argument and writes nothing") {
  Block x({3, 4}), g({3, 4}, 2), y({3, 4}), rewards({12}), a({12}), metrics_grad({3, 4});
  y.fill(42), a.fill(42), metrics_grad.fill(42);
  const auto refused = [](npk_status got, npk_status status, const char* argument) {
    CHECK(got == status);
    CHECK(std::string(npk_bad_argument()) == argument);
  };
  npk_step_options step = NPK_STEP_OPTIONS_INIT;
  step.norm = 3;
  refused(npk_pgd_step(x.array(), x.array(), g.array(), 0.1, 0.1, &step, y.array(), nullptr), NPK_BAD_VALUE,
          "norm");
  refused(npk_sign_step(x.array(), g.array(), -1, nullptr, y.array(), nullptr), NPK_BAD_VALUE, "eps");
  refused(npk_sign_step(x.array(), nullptr, 1, nullptr, y.array(), nullptr), NPK_NULL_POINTER, "grad");
  refused(npk_project(x.array(), rewards.array(), 1, nullptr, y.array()), NPK_BAD_SHAPE, "center");
  refused(npk_random_in_ball(x.array(), INFINITY, 1, nullptr, y.array()), NPK_BAD_VALUE, "eps");
  refused(npk_group_advantages(rewards.array(), 5, nullptr, nullptr, a.array(), nullptr, nullptr, nullptr),
          NPK_BAD_VALUE, "group_size");
  rewards[3] = INFINITY;
  refused(npk_group_advantages(rewards.array(), 4, nullptr, nullptr, a.array(), nullptr, nullptr, nullptr),
          NPK_BAD_VALUE, "rewards");
  refused(npk_discounted_returns(x.array(), 0.5, nullptr, x.array()), NPK_OVERLAP, "returns");
  refused(npk_policy_loss(x.array(), g.array(), g.array(), nullptr, nullptr, metrics_grad.array()),
          NPK_NULL_POINTER, "metrics");
  refused(npk_attention_jvp(x.array(), x.array(), x.array(), g.array(), g.array(), g.array(), nullptr,
                            y.array(), y.array(), nullptr),
          NPK_OVERLAP, "dout");
  for (Block* block : {&y, &a, &metrics_grad}) CHECK(block->all(42));
}
