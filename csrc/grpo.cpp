// The functions of grpo.h about groups: numbering of ids, scratch memory, and the kernel in use.
#include "npkernels/grpo.h"

#include <algorithm>
#include <cstring>

#include "kernels/grpo_call.h"
#include "kernels/table.h"
#include "memory.h"
#include "npkernels/threads.h"

namespace npkernels {
namespace {

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
  static constexpr int64_t kFirst = 256;

  static Buffer<Slot> allocate(int64_t n) {
    Buffer<Slot> slots = buffer<Slot>(n);
    if (slots)
      for (int64_t i = 0; i < n; ++i) slots.get()[i].number = -1;
    return slots;
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
    Buffer<Slot> larger = allocate(n);
    if (!larger) return false;
    for (int64_t i = 0; i <= mask_; ++i) {
      const Slot& slot = slots_.get()[i];
      if (slot.number >= 0) *find(larger.get(), n - 1, slot.id) = slot;
    }
    slots_ = std::move(larger);
    mask_ = n - 1;
    return true;
  }

  Buffer<Slot> slots_;
  int64_t mask_ = kFirst - 1, count_ = 0;
};

// Runs the kernel with scratch memory: a few numbers per group, on the stack for a few groups.
bool run(GroupCall& call) {
  constexpr int64_t kFew = 64, kEach = 3;
  double few[kFew * kEach];
  Buffer<double> many;
  call.transform = few;
  if (call.groups.n > kFew) {
    many = buffer<double>(call.groups.n * kEach);
    if (!many) return false;
    call.transform = many.get();
  }
  kernels().group_advantages(call);
  return true;
}

// f(begin, end) for parts of 0 .. n-1 on the library's threads.
template <class F>
void in_parts(int64_t n, F f) {
  constexpr int64_t kPart = 16384;
  struct Context {
    F f;
    int64_t n;
  } context{f, n};
  const int64_t parts = (n + kPart - 1) / kPart;
  parallel_tasks(
      parts, workers_for(parts),
      [](void* p, int64_t part, int) {
        const auto& c = *static_cast<Context*>(p);
        c.f(part * kPart, std::min(c.n, (part + 1) * kPart));
      },
      &context);
}

// The kernel on groups by index: the samples are brought together by their groups (counting sort) as double,
// and the results, which take their place, brought back. Place numbers samples.
template <class T, class Place>
bool run_sorted(GroupCall call) {
  const int64_t B = call.groups.samples, n = call.groups.n;
  const int64_t* const index = call.groups.index;
  const T* const r = static_cast<const T*>(call.rewards.data);
  T* const a = static_cast<T*>(call.advantages);
  const Scratch memory((n + 1) * int64_t(sizeof(int64_t)) + B * int64_t(sizeof(double) + sizeof(Place)) +
                       n * int64_t(sizeof(Place)));
  if (!memory.get()) return false;
  auto* const first = reinterpret_cast<int64_t*>(memory.get());  // sample of each group
  auto* const sorted = reinterpret_cast<double*>(first + n + 1);
  auto* const place = reinterpret_cast<Place*>(sorted + B);  // of each sample
  auto* const next = place + B;                              // free place of each group

  std::memset(next, 0, static_cast<size_t>(n) * sizeof(Place));
  for (int64_t i = 0; i < B; ++i) ++next[index[i]];
  first[0] = 0;
  for (int64_t g = 0; g < n; ++g) {
    first[g + 1] = first[g] + next[g];
    next[g] = static_cast<Place>(first[g]);
  }
  for (int64_t i = 0; i < B; ++i) sorted[place[i] = next[index[i]]++] = r[i];
  call.first = first;
  call.rewards = {sorted, DType::float64};
  if (a) call.advantages = sorted;
  if (!run(call)) return false;
  if (a)
    in_parts(B, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) a[i] = static_cast<T>(sorted[place[i]]);
    });
  return true;
}

template <class T>
bool run_as(GroupCall& call) {
  if (call.groups.size > 0) return run(call);
  return call.groups.samples <= INT32_MAX ? run_sorted<T, int32_t>(call) : run_sorted<T, int64_t>(call);
}

bool run_any(GroupCall& call) {
  return call.rewards.dtype == DType::float64 ? run_as<double>(call) : run_as<float>(call);
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
  return run_any(call);
}

bool group_advantages(const Rewards& rewards, const Groups& groups, const AdvantageOptions& options, void* a,
                      double* stats) {
  GroupCall call{rewards, groups, options, stats};
  call.advantages = a;
  return run_any(call);
}

}  // namespace npkernels
