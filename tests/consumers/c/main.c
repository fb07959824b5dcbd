/* Softmax, token statistics and attention through npkernels.h, each checked against plain loops. */
#include <math.h>
#include <npkernels/npkernels.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(npk_status status, const char* what) {
  if (status == NPK_OK) return;
  fprintf(stderr, "%s: %s %s\n", what, npk_bad_argument(), npk_status_text(status));
  exit(1);
}

static void expect(int condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "wrong: %s\n", what);
  exit(1);
}

static void expect_close(double got, double wanted, const char* what) {
  if (fabs(got - wanted) <= 1e-5 * (1 + fabs(wanted))) return;
  fprintf(stderr, "%s: got %.9g, wanted %.9g\n", what, got, wanted);
  exit(1);
}

/* Numbers without a pattern, in [-2, 2). */
static void fill(float* x, size_t n) {
  static unsigned state = 1;
  for (size_t i = 0; i < n; ++i) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(state >> 8) / (float)(1 << 22) - 2.0f;
  }
}

/* Columns 1 .. V of a wider matrix, at a temperature; the last entry of each row masked. */
static void test_softmax(void) {
  enum { T = 3, V = 37, WIDTH = 40 };
  const double temperature = 0.7;
  float memory[T][WIDTH], y[T][V];
  unsigned char allowed[V];
  fill(&memory[0][0], T * WIDTH);
  memset(allowed, 1, sizeof allowed);
  allowed[V - 1] = 0;
  memory[1][V] = NAN; /* masked: never read */

  const int64_t shape[] = {T, V}, strides[] = {sizeof memory[0], sizeof(float)}, mask_shape[] = {V};
  const npk_array x = {&memory[0][1], shape, strides, 2, NPK_FLOAT32};
  const npk_array out = {y, shape, NULL, 2, NPK_FLOAT32};
  const npk_array mask = {allowed, mask_shape, NULL, 1, NPK_BOOL};
  check(npk_softmax(&x, -1, temperature, &mask, &out), "softmax");

  for (int t = 0; t < T; ++t) {
    double sum = 0;
    for (int v = 0; v < V - 1; ++v) sum += exp(memory[t][1 + v] / temperature);
    for (int v = 0; v < V - 1; ++v)
      expect_close(y[t][v], exp(memory[t][1 + v] / temperature) / sum, "softmax");
    expect(y[t][V - 1] == 0, "softmax of a masked entry");
  }
}

static void test_tokens(void) {
  enum { T = 4, V = 1000 };
  static float logits[T][V], log_prob[T], entropy[T];
  int64_t ids[T] = {0, 17, 999, 500}, rank[T];
  fill(&logits[0][0], T * V);

  const int64_t shape[] = {T, V};
  const npk_array x = {logits, shape, NULL, 2, NPK_FLOAT32}, id = {ids, shape, NULL, 1, NPK_INT64};
  const npk_array to_log_prob = {log_prob, shape, NULL, 1, NPK_FLOAT32};
  const npk_array to_entropy = {entropy, shape, NULL, 1, NPK_FLOAT32};
  const npk_array to_rank = {rank, shape, NULL, 1, NPK_INT64};
  npk_token_stats stats = NPK_TOKEN_STATS_INIT;
  stats.log_prob = &to_log_prob;
  stats.entropy = &to_entropy;
  stats.rank = &to_rank;
  check(npk_token_log_probs(&x, &id, 1.0, NULL, &stats), "token_log_probs");

  for (int t = 0; t < T; ++t) {
    double sum = 0, h = 0;
    int64_t above = 0;
    for (int v = 0; v < V; ++v) sum += exp(logits[t][v]), above += logits[t][v] > logits[t][ids[t]];
    for (int v = 0; v < V; ++v) h -= exp(logits[t][v]) / sum * (logits[t][v] - log(sum));
    expect_close(log_prob[t], logits[t][ids[t]] - log(sum), "log_prob");
    expect_close(entropy[t], h, "entropy");
    expect(rank[t] == above, "rank");
  }

  ids[2] = V;
  log_prob[0] = 42;
  expect(npk_token_log_probs(&x, &id, 1.0, NULL, &stats) == NPK_BAD_INDEX,
         "status of an id outside the vocabulary");
  expect(strcmp(npk_bad_argument(), "ids") == 0, "npk_bad_argument");
  expect(log_prob[0] == 42, "outputs of a call that was refused");
}

/* Causal, two query heads for each key head, queries stored as (B, S, H, D). */
static void test_attention(void) {
  enum { B = 2, HQ = 4, HKV = 2, S = 5, K = 9, D = 16, DV = 8 };
  static float q[B][S][HQ][D], k[B][HKV][K][D], v[B][HKV][K][DV], out[B][HQ][S][DV], lse[B][HQ][S];
  fill(&q[0][0][0][0], sizeof q / sizeof(float));
  fill(&k[0][0][0][0], sizeof k / sizeof(float));
  fill(&v[0][0][0][0], sizeof v / sizeof(float));

  const int64_t q_shape[] = {B, HQ, S, D}, k_shape[] = {B, HKV, K, D}, v_shape[] = {B, HKV, K, DV};
  const int64_t q_strides[] = {sizeof q[0], sizeof q[0][0][0], sizeof q[0][0], sizeof(float)};
  const int64_t out_shape[] = {B, HQ, S, DV};
  const npk_array aq = {q, q_shape, q_strides, 4, NPK_FLOAT32}, ak = {k, k_shape, NULL, 4, NPK_FLOAT32};
  const npk_array av = {v, v_shape, NULL, 4, NPK_FLOAT32}, aout = {out, out_shape, NULL, 4, NPK_FLOAT32};
  const npk_array alse = {lse, out_shape, NULL, 3, NPK_FLOAT32};
  npk_attention_options options = NPK_ATTENTION_OPTIONS_INIT;
  options.causal = NPK_CAUSAL_BOTTOM_RIGHT;
  check(npk_attention(&aq, &ak, &av, &options, &aout, &alse), "attention");

  for (int b = 0; b < B; ++b)
    for (int h = 0; h < HQ; ++h)
      for (int s = 0; s < S; ++s) {
        const int kv = h / (HQ / HKV), keys = s + K - S + 1;
        double weight[K], sum = 0;
        for (int j = 0; j < keys; ++j) {
          double score = 0;
          for (int d = 0; d < D; ++d) score += (double)q[b][s][h][d] * k[b][kv][j][d];
          sum += weight[j] = exp(score / sqrt(D));
        }
        for (int d = 0; d < DV; ++d) {
          double y = 0;
          for (int j = 0; j < keys; ++j) y += weight[j] / sum * v[b][kv][j][d];
          expect_close(out[b][h][s][d], y, "attention");
        }
        expect_close(lse[b][h][s], log(sum), "lse of attention");
      }
}

/* Advantages of groups of G, by size and by ids in another order, and the gradient of the clipped loss of one
 * token each. */
static void test_grpo(void) {
  enum { B = 12, G = 4 };
  double rewards[B], a[B], by_id[B], stats[B][5];
  float numbers[B];
  int64_t ids[B], groups = 0;
  fill(numbers, B);
  for (int i = 0; i < B; ++i) rewards[i] = numbers[i], ids[i] = 100 - i / G;

  const int64_t shape[] = {B, 5}, tokens[] = {B, 1};
  const npk_array r = {rewards, shape, NULL, 1, NPK_FLOAT64}, to_a = {a, shape, NULL, 1, NPK_FLOAT64};
  const npk_array to_by_id = {by_id, shape, NULL, 1, NPK_FLOAT64}, id = {ids, shape, NULL, 1, NPK_INT64};
  const npk_array to_stats = {stats, shape, NULL, 2, NPK_FLOAT64};
  check(npk_group_advantages(&r, G, NULL, NULL, &to_a, NULL, NULL, NULL), "group_advantages");
  check(npk_group_advantages(&r, 0, &id, NULL, &to_by_id, &to_stats, NULL, &groups), "group_advantages");
  expect(groups == B / G, "number of groups");
  for (int g = 0; g < B / G; ++g) {
    double mean = 0, square = 0;
    for (int i = 0; i < G; ++i) mean += rewards[g * G + i] / G;
    for (int i = 0; i < G; ++i) square += (rewards[g * G + i] - mean) * (rewards[g * G + i] - mean);
    const double deviation = sqrt(square / (G - 1));
    expect_close(stats[g][1], mean, "mean of a group");
    expect_close(stats[g][2], deviation, "deviation of a group");
    for (int i = g * G; i < (g + 1) * G; ++i) {
      expect_close(a[i], (rewards[i] - mean) / (deviation + 1e-4), "advantage");
      expect_close(by_id[i], a[i], "advantage by id");
    }
  }

  double logp[B], old_logp[B], dlogp[B], loss = 0;
  for (int i = 0; i < B; ++i) old_logp[i] = -1, logp[i] = -1 + 0.1 * rewards[i];
  const npk_array now = {logp, tokens, NULL, 2, NPK_FLOAT64}, old = {old_logp, tokens, NULL, 2, NPK_FLOAT64};
  const npk_array grad = {dlogp, tokens, NULL, 2, NPK_FLOAT64};
  npk_policy_options options = NPK_POLICY_OPTIONS_INIT;
  npk_policy_metrics metrics = NPK_POLICY_METRICS_INIT;
  options.aggregate = NPK_TOKEN_MEAN;
  options.clip_low = options.clip_high = 0.05;
  check(npk_policy_loss(&now, &old, &to_a, &options, &metrics, &grad), "policy_loss");
  for (int i = 0; i < B; ++i) {
    const double ratio = exp(logp[i] - old_logp[i]), clipped = fmin(fmax(ratio, 0.95), 1.05);
    const int free = ratio * a[i] <= clipped * a[i];
    loss -= (free ? ratio : clipped) * a[i] / B;
    expect_close(dlogp[i], free ? -ratio * a[i] / B : 0, "dlogp");
  }
  expect_close(metrics.loss, loss, "policy loss");
  expect(metrics.tokens == B && metrics.sequences == B && isnan(metrics.kl), "metrics");

  options.clip_low = -1;
  metrics.loss = 42;
  expect(npk_policy_loss(&now, &old, &to_a, &options, &metrics, &grad) == NPK_BAD_VALUE,
         "status of a negative range");
  expect(strcmp(npk_bad_argument(), "clip_low") == 0 && metrics.loss == 42, "a loss that was refused");
}

/* Steps on the loss sum(w x) in the box [0, 1], by the norm inf and by the norm 2. */
static void test_perturb(void) {
  enum { B = 3, D = 50 };
  static float x[B][D], w[B][D], y[B][D];
  fill(&x[0][0], B * D);
  fill(&w[0][0], B * D);
  w[1][7] = NAN;
  for (int b = 0; b < B; ++b)
    for (int d = 0; d < D; ++d) x[b][d] = 0.25f * x[b][d] + 0.5f;

  const int64_t shape[] = {B, D};
  const npk_array ax = {x, shape, NULL, 2, NPK_FLOAT32}, aw = {w, shape, NULL, 2, NPK_FLOAT32};
  const npk_array ay = {y, shape, NULL, 2, NPK_FLOAT32};
  int64_t nans = -1;
  npk_step_options options = NPK_STEP_OPTIONS_INIT;
  options.bounded = 1;
  options.high = 1;
  check(npk_sign_step(&ax, &aw, 0.125, &options, &ay, &nans), "sign_step");
  expect(nans == 1, "number of NaN");
  for (int b = 0; b < B; ++b)
    for (int d = 0; d < D; ++d) {
      const double moved = x[b][d] + (w[b][d] > 0 ? 0.125 : w[b][d] < 0 ? -0.125 : 0);
      expect_close(y[b][d], fmin(fmax(moved, 0), 1), "sign_step");
    }

  options.norm = NPK_NORM_TWO;
  check(npk_pgd_step(&ax, &ax, &aw, 10, 0.01, &options, &ay, NULL), "pgd_step");
  for (int b = 0; b < B; ++b) {
    double length = 0, gain = 0, distance = 0;
    for (int d = 0; d < D; ++d) {
      if (isnan(w[b][d])) continue;
      length += (double)w[b][d] * w[b][d];
      gain += (double)w[b][d] * (y[b][d] - x[b][d]);
      distance += (double)(y[b][d] - x[b][d]) * (y[b][d] - x[b][d]);
    }
    expect(sqrt(distance) <= 0.01 * (1 + 1e-5), "distance of pgd_step");
    expect(gain <= 0.01 * sqrt(length) * (1 + 1e-4), "gain of pgd_step");
    expect(gain >= 0.9 * 0.01 * sqrt(length), "gain of pgd_step where few entries meet the box");
  }

  options.bounded = 0;
  check(npk_random_in_ball(&ax, 0.5, 7, &options, &ay), "random_in_ball");
  for (int b = 0; b < B; ++b) {
    double distance = 0;
    for (int d = 0; d < D; ++d) distance += (double)(y[b][d] - x[b][d]) * (y[b][d] - x[b][d]);
    expect(sqrt(distance) > 0.4 && sqrt(distance) <= 0.5 * (1 + 1e-5), "random_in_ball");
  }
}

static void test_settings(void) {
  int before = -1;
  expect(npk_isa_supported(npk_isa()), "the ISA in use");
  expect(npk_set_isa("abacus") == NPK_BAD_VALUE, "status of an unknown ISA");
  check(npk_set_isa(npk_compiled_isas()[0]), "set_isa");
  check(npk_set_num_threads(1, &before), "set_num_threads");
  expect(before == 0 && npk_num_threads() == 1, "num_threads");
}

int main(void) {
  test_softmax();
  test_tokens();
  test_attention();
  test_grpo();
  test_perturb();
  test_settings();
  printf("npkernels %s: softmax, tokens, attention, GRPO and perturbations agree with plain loops\n",
         npk_version());
  return 0;
}
