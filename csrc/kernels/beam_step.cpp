// One step of a beam search: of all scores[beam] + log_probs[beam, token] the `width` largest, in falling
// order. Those found so far are kept sorted; a register of candidates is looked at only if one of them beats
// the last.
#include <math.h>

#include "grpo_call.h"
#include "kernels.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
class BeamStep {
 public:
  explicit BeamStep(const BeamCall& call) : call_(call) {}

  void run() const {
    parallel(call_.batch, [&](int64_t item) {
      T* best = static_cast<T*>(call_.best) + item * call_.width;
      int64_t* place = call_.token + item * call_.width;  // beam * vocabulary + token until the end
      int64_t found = 0;
      for (int64_t beam = 0; beam < call_.beams; ++beam) look_at(item, beam, best, place, found);
      for (int64_t i = 0; i < call_.width; ++i) {
        call_.beam[item * call_.width + i] = place[i] / call_.vocabulary;
        place[i] %= call_.vocabulary;
      }
    });
  }

 private:
  static bool beats(T a, T b) { return a > b || (b != b && a == a); }

  void look_at(int64_t item, int64_t beam, T* best, int64_t* place, int64_t& found) const {
    const int64_t row = item * call_.beams + beam, V = call_.vocabulary;
    const T* p = static_cast<const T*>(call_.log_probs) + row * V;
    const T score = static_cast<const T*>(call_.scores)[row];
    for (int64_t i = 0; i < V; i += kLanes<T>) {
      const Vec<T> total = load_upto(p + i, V - i, T(-INFINITY)) + splat(score);
      const bool full = found == call_.width;
      if (full && best[found - 1] == best[found - 1] && !any(greater(total, splat(best[found - 1]))))
        continue;
      const int n = static_cast<int>(smaller<int64_t>(kLanes<T>, V - i));
      for (int lane = 0; lane < n; ++lane)
        insert(p[i + lane] + score, beam * V + i + lane, best, place, found);
    }
  }

  void insert(T total, int64_t at, T* best, int64_t* place, int64_t& found) const {
    if (found == call_.width && !beats(total, best[found - 1])) return;
    if (found < call_.width) ++found;
    int64_t i = found - 1;
    for (; i > 0 && beats(total, best[i - 1]); --i) {
      best[i] = best[i - 1];
      place[i] = place[i - 1];
    }
    best[i] = total;
    place[i] = at;
  }

  const BeamCall& call_;
};

}  // namespace

void beam_step(const BeamCall& call) {
  if (call.dtype == DType::float64)
    BeamStep<double>(call).run();
  else
    BeamStep<float>(call).run();
}

}  // namespace npkernels::NPK_ISA
