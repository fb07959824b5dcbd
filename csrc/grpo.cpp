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
  explicit IdTable(int64_t most)  // ids
      : mask_(first_size(most) - 1), first_((mask_ + 1) * int64_t(sizeof(Slot))) {
    slots_ = reinterpret_cast<Slot*>(first_.get());
    if (slots_) clear(slots_, mask_ + 1);
  }
  bool good() const { return slots_ != nullptr; }

  // The number of an id: the next one if it is new, -1 if memory cannot be had.
  int64_t number_of(int64_t id) {
    Slot* slot = find(slots_, mask_, id);
    if (slot->number >= 0) return slot->number;
    if (2 * (count_ + 1) > mask_ + 1) {
      if (!grow()) return -1;
      slot = find(slots_, mask_, id);
    }
    *slot = {id, count_};
    return count_++;
  }
  int64_t count() const { return count_; }

 private:
  struct Slot {
    int64_t id, number;
  };
  // Room from the start for as many groups as there may well be, in memory that stays with the thread.
  static int64_t first_size(int64_t most) {
    int64_t n = 256;
    while (n < 2 * most && n < 16384) n *= 2;
    return n;
  }
  static void clear(Slot* slots, int64_t n) {
    for (int64_t i = 0; i < n; ++i) slots[i].number = -1;
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
    Buffer<Slot> larger = buffer<Slot>(n);
    if (!larger) return false;
    clear(larger.get(), n);
    for (int64_t i = 0; i <= mask_; ++i)
      if (slots_[i].number >= 0) *find(larger.get(), n - 1, slots_[i].id) = slots_[i];
    larger_ = std::move(larger);
    slots_ = larger_.get();
    mask_ = n - 1;
    return true;
  }

  int64_t mask_, count_ = 0;
  Scratch first_;
  Buffer<Slot> larger_;
  Slot* slots_;
};

// What number_groups does, on one thread.
int64_t number_part(const int64_t* ids, int64_t n, int64_t* index, int64_t* keys) {
  IdTable table(n);
  if (!table.good()) return -1;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t before = table.count(), number = table.number_of(ids[i]);
    if (number < 0) return -1;
    if (number == before) keys[number] = ids[i];
    index[i] = number;
  }
  return table.count();
}

// f(begin, end) for parts of that size of 0 .. n-1 on the library's threads.
template <class F>
void in_parts(int64_t n, int64_t size, F f) {
  struct Context {
    F f;
    int64_t n, size;
  } context{f, n, size};
  const int64_t parts = (n + size - 1) / size;
  parallel_tasks(
      parts, workers_for(parts),
      [](void* p, int64_t part, int) {
        const auto& c = *static_cast<Context*>(p);
        c.f(part * c.size, std::min(c.n, (part + 1) * c.size));
      },
      &context);
}
// Samples of a task: fewer do not make up for waking a thread at every step.
constexpr int64_t kPart = 1 << 17;

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

// The kernel on groups by index: the samples are brought together by their groups (counting sort) as double,
// and the results, which take their place, brought back. Place numbers samples.
template <class T, class Place>
bool run_sorted(GroupCall call) {
  const int64_t B = call.groups.samples, n = call.groups.n;
  const int64_t* const index = call.groups.index;
  const T* const r = static_cast<const T*>(call.rewards.data);
  T* const a = static_cast<T*>(call.advantages);
  const int64_t workers = workers_for(B / kPart), wanted = workers * n > B ? 1 : workers;
  const int64_t size = std::max<int64_t>(1, (B + wanted - 1) / wanted), parts = (B + size - 1) / size;
  const Scratch memory((n + 1) * int64_t(sizeof(int64_t)) + B * int64_t(sizeof(double) + sizeof(Place)) +
                       parts * n * int64_t(sizeof(Place)));
  if (!memory.get()) return false;
  auto* const first = reinterpret_cast<int64_t*>(memory.get());  // sample of each group
  auto* const sorted = reinterpret_cast<double*>(first + n + 1);
  auto* const place = reinterpret_cast<Place*>(sorted + B);  // of each sample, at first within its part
  auto* const count = place + B;  // of each group in each part, then where its samples go

  // Counters in a loop of their own: their loads would wait for stores to places that are not yet known.
  in_parts(B, size, [=](int64_t begin, int64_t end) {
    Place* const counted = count + begin / size * n;
    std::memset(counted, 0, static_cast<size_t>(n) * sizeof(Place));
    for (int64_t i = begin; i < end; ++i) place[i] = counted[index[i]]++;
  });
  first[0] = 0;
  for (int64_t g = 0; g < n; ++g) {
    first[g + 1] = first[g];
    for (int64_t at = g; at < parts * n; at += n) {
      const Place samples = count[at];
      count[at] = static_cast<Place>(first[g + 1]);
      first[g + 1] += samples;
    }
  }
  in_parts(B, size, [=](int64_t begin, int64_t end) {
    const Place* const start = count + begin / size * n;
    for (int64_t i = begin; i < end; ++i) place[i] += start[index[i]];
    for (int64_t i = begin; i < end; ++i) sorted[place[i]] = r[i];
  });
  call.first = first;
  call.rewards = {sorted, DType::float64};
  if (a) call.advantages = sorted;
  if (!run(call)) return false;
  if (a)
    in_parts(B, kPart, [=](int64_t begin, int64_t end) {
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

// Each thread numbers a part of the samples, then the keys of the parts are numbered one after another, which
// gives the numbers of the whole.
int64_t number_groups(const int64_t* ids, int64_t B, int64_t* index, int64_t* keys) {
  const int workers = workers_for(B / kPart);
  if (workers < 2) return number_part(ids, B, index, keys);
  const int64_t size = (B + workers - 1) / workers;
  Buffer<int64_t> counts = buffer<int64_t>(workers), numbers = buffer<int64_t>(B);
  if (!counts || !numbers) return -1;
  in_parts(B, size, [&](int64_t begin, int64_t end) {
    counts.get()[begin / size] = number_part(ids + begin, end - begin, index + begin, keys + begin);
  });
  IdTable table(B);
  if (!table.good()) return -1;
  for (int64_t begin = 0, part = 0; begin < B; begin += size, ++part) {
    if (counts.get()[part] < 0) return -1;
    for (int64_t i = begin; i < begin + counts.get()[part]; ++i) {
      const int64_t key = keys[i], number = table.number_of(key);  // at most i
      if (number < 0) return -1;
      keys[number] = key;
      numbers.get()[i] = number;
    }
  }
  in_parts(B, size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; begin > 0 && i < end; ++i) index[i] = numbers.get()[begin + index[i]];
  });
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
