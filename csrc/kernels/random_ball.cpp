// Points of a ball, uniformly: y = clamp(c + radius d, low, high), d in the unit ball of the norm.
//   inf  every entry by itself, uniform in (-1, 1)
//   2    a normal vector n, d = n / |n| U^(1/dim): pairs of n from pairs of uniform numbers (Box & Muller
//   1958) 1    dim + 1 exponentials e, d = +-e_i / sum e (both: Calafiore, Dabbene & Tempo 1998)
// The uniform numbers are those of a counter, Philox 4x32-10 (Salmon et al., SC 2011), so that an entry's
// number depends on nothing but the key, its sample and its place. Everything is computed in double and
// rounded at the end; sums of logarithms are taken from products.
#include <math.h>

#include "kernels.h"
#include "perturb_chunks.h"

namespace npkernels::NPK_ISA {
namespace {

struct Words {
  uint64_t first, second;
};

// The pair that is no entry's: one more number for each sample.
constexpr uint64_t kExtra = ~uint64_t(0);

inline Words philox(uint64_t pair, uint64_t sample, uint64_t key) {
  uint32_t c0 = uint32_t(pair), c1 = uint32_t(pair >> 32), c2 = uint32_t(sample), c3 = uint32_t(sample >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0 | uint64_t(c1) << 32, c2 | uint64_t(c3) << 32};
}

// In (0, 1): never 0, whose logarithm is infinite, and never 1.
inline double uniform(uint64_t word) { return (static_cast<double>(word >> 11) + 0.5) * 0x1p-53; }

// The logarithm of a product of many numbers in (0, 1), without one for each.
class LogProduct {
 public:
  void multiply(double x) {
    product_ *= x;
    if (product_ < 0x1p-900) {
      sum_.add(::log(product_));
      product_ = 1;
    }
  }
  double value() const {
    Sum total = sum_;
    total.add(::log(product_));
    return total.value();
  }

 private:
  double product_ = 1;
  Sum sum_;
};

struct Normals {
  double first, second;
};
inline Normals normals(Words w) {
  const double length = ::sqrt(-2 * ::log(uniform(w.first))), angle = 2 * M_PI * uniform(w.second);
  return {length * ::cos(angle), length * ::sin(angle)};
}

template <class S>
struct Ball {
  using T = typename ComputeOf<S>::type;

  static void run(const PerturbCall& call) {
    each_sample<S>(call, [&](Reader<S>& reader, int64_t sample) {
      const auto b = static_cast<uint64_t>(sample);
      const double factor = factor_of(call, b) * radius_of(call, sample);
      uint64_t place = 0;  // of a chunk's first entry in the sample
      emit_chunks(call, reader, sample, [&](const Chunk<S>& c) {
        alignas(64) T d[kChunk + kLanes<T>];
        fill(call, b, place, c.n, factor, d);
        place += static_cast<uint64_t>(c.n);
        if (call.radius.each)
          for (int i = 0; i < c.n; i += kLanes<T>) store(d + i, load(d + i) * c.radius.at(i, c.n));
        for (int i = 0; i < c.n; i += kLanes<T>)
          c.put(i, clamp<T>(c.center_at(i) + load(d + i), c.low.at(i, c.n), c.high.at(i, c.n)));
      });
    });
  }

  static double radius_of(const PerturbCall& call, int64_t sample) {
    if (call.radius.each) return 1;
    return call.radius.per_sample ? call.radius.per_sample[sample] : call.radius.value;
  }

  // What the numbers of a sample are multiplied by to lie in the unit ball.
  static double factor_of(const PerturbCall& call, uint64_t sample) {
    const uint64_t dim = static_cast<uint64_t>(call.n * (call.rows / call.samples));
    const double extra = uniform(philox(kExtra, sample, call.key).first);
    LogProduct product;
    switch (call.norm) {
      case 1:
        product.multiply(extra);
        for (uint64_t i = 0; i < dim; i += 2) {
          const Words w = philox(i / 2, sample, call.key);
          product.multiply(uniform(w.first));
          if (i + 1 < dim) product.multiply(uniform(w.second));
        }
        return -1 / product.value();
      case 2: {
        double last = 0;  // of an odd dimension: the square of half a pair
        for (uint64_t i = 0; i < dim; i += 2) {
          const Words w = philox(i / 2, sample, call.key);
          if (i + 1 < dim)
            product.multiply(uniform(w.first));
          else
            last = normals(w).first * normals(w).first;
        }
        return ::pow(extra, 1.0 / static_cast<double>(dim)) / ::sqrt(last - 2 * product.value());
      }
      default:
        return 1;
    }
  }

  // The numbers of the entries place .. place+n-1 of a sample, times factor.
  static void fill(const PerturbCall& call, uint64_t sample, uint64_t place, int n, double factor, T* d) {
    const auto put = [&](uint64_t at, double value) {
      if (at - place < static_cast<uint64_t>(n)) d[at - place] = static_cast<T>(value * factor);
    };
    for (uint64_t i = place & ~uint64_t(1); i < place + static_cast<uint64_t>(n); i += 2) {
      const Words w = philox(i / 2, sample, call.key);
      if (call.norm == 2) {
        const Normals both = normals(w);
        put(i, both.first);
        put(i + 1, both.second);
      } else {
        put(i, single(call.norm, w.first));
        put(i + 1, single(call.norm, w.second));
      }
    }
  }

  static double single(int norm, uint64_t word) {
    if (norm == 0) return 2 * uniform(word) - 1;
    const double e = -::log(uniform(word));
    return word & 1 ? -e : e;
  }
};

}  // namespace

void random_in_ball(const PerturbCall& call) { run_samples<Ball>(call); }

}  // namespace npkernels::NPK_ISA
