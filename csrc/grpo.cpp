// The functions of grpo.h about groups: numbering of ids, scratch memory, and the kernel in use.
#include "npkernels/grpo.h"

#include <cstdlib>
#include <memory>

#include "kernels/grpo_call.h"
#include "kernels/table.h"

namespace npkernels {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Scratch = std::unique_ptr<double, Free>;

// Ids and their numbers, by open addressing; grows so that at most half of the slots are taken.
class IdTable {
 public:
  IdTable() : slots_(allocate(kFirst)) {}
  bool good() const { return slots_ != nullptr; }

  // The number of an id: the next one if it is new, -1 if memory cannot be had.
  int64_t number_of(int64_t id) {
    Slot* slot = find(slots_.get(), mask_, id);
    if (slot->number >= 0) return slot->number;
    if (2 * (count_ + 1) > mask_ + 1) {
      if (!grow()) return -1;
      slot = find(slots_.get(), mask_, id);
    }
    *slot = {id, count_};
    return count_++;
  }
  int64_t count() const { return count_; }

 private:
  struct Slot {
    int64_t id, number;
  };
  using Slots = std::unique_ptr<Slot, Free>;
  static constexpr int64_t kFirst = 256;

  static Slots allocate(int64_t n) {
    auto* slots = static_cast<Slot*>(std::malloc(static_cast<size_t>(n) * sizeof(Slot)));
    if (slots)
      for (int64_t i = 0; i < n; ++i) slots[i].number = -1;
    return Slots(slots);
  }
  // The slot that holds the id, or where it goes. The upper bits of the product depend on all bits of the id.
  static Slot* find(Slot* slots, int64_t mask, int64_t id) {
    uint64_t hash = static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    for (auto at = static_cast<int64_t>(hash) & mask;; at = (at + 1) & mask)
      if (slots[at].number < 0 || slots[at].id == id) return slots + at;
  }
  bool grow() {
    const int64_t n = 4 * (mask_ + 1);
    Slots larger = allocate(n);
    if (!larger) return false;
    for (int64_t i = 0; i <= mask_; ++i) {
      const Slot& slot = slots_.get()[i];
      if (slot.number >= 0) *find(larger.get(), n - 1, slot.id) = slot;
    }
    slots_ = std::move(larger);
    mask_ = n - 1;
    return true;
  }

  Slots slots_;
  int64_t mask_ = kFirst - 1, count_ = 0;
};

// Runs the kernel with scratch memory: a few numbers per group, on the stack for a few groups.
bool run(GroupCall& call) {
  constexpr int64_t kFew = 64, kEach = 5;
  double few[kFew * kEach];
  Scratch many;
  double* scratch = few;
  if (call.groups.n > kFew) {
    many.reset(
        static_cast<double*>(std::malloc(static_cast<size_t>(call.groups.n * kEach) * sizeof(double))));
    if (!many) return false;
    scratch = many.get();
  }
  call.transform = scratch;
  call.extra = scratch + 3 * call.groups.n;
  kernels().group_advantages(call);
  return true;
}

}  // namespace

int64_t number_groups(const int64_t* ids, int64_t B, int64_t* index, int64_t* keys) {
  IdTable table;
  if (!table.good()) return -1;
  for (int64_t i = 0; i < B; ++i) {
    const int64_t before = table.count(), number = table.number_of(ids[i]);
    if (number < 0) return -1;
    if (number == before) keys[number] = ids[i];
    index[i] = number;
  }
  return table.count();
}

bool group_stats(const Rewards& rewards, const Groups& groups, double* state) {
  GroupCall call{rewards, groups, {Baseline::mean, Scale::none, 0, 0, false, false}, state};
  return run(call);
}

bool group_advantages(const Rewards& rewards, const Groups& groups, const AdvantageOptions& options, void* a,
                      double* stats) {
  GroupCall call{rewards, groups, options, stats};
  call.advantages = a;
  return run(call);
}

}  // namespace npkernels
