// Which of the compiled instruction sets is used: the only place that asks the CPU what it can do.
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "kernels/table.h"
#include "npkernels/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace npkernels {

#if defined(__x86_64__)
namespace baseline {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512bf16 {
extern const KernelTable table;
}
#else
namespace neon {
extern const KernelTable table;
}
#endif

namespace {

#if defined(__x86_64__)
// The features of cpuid leaves 1 and 7, less those whose registers the operating system does not save
// (xgetbv).
struct Cpu {
  bool v2 = false, v3 = false, v4 = false, bf16 = false;

  Cpu() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const auto has = [](unsigned reg, int bit) { return (reg >> bit & 1u) != 0; };
    v2 = has(c, 0) && has(c, 9) && has(c, 19) && has(c, 20) && has(c, 23);  // SSE3 SSSE3 SSE4.1 SSE4.2 POPCNT
    const bool fma_f16c_movbe = has(c, 12) && has(c, 29) && has(c, 22);
    unsigned saved = 0;
    if (has(c, 27)) {
      unsigned high;
      __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    }
    const bool ymm = (saved & 0x06u) == 0x06u, zmm = (saved & 0xe6u) == 0xe6u;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const bool avx2_bmi = has(b, 5) && has(b, 3) && has(b, 8);
    const bool avx512_f_dq_cd_bw_vl = has(b, 16) && has(b, 17) && has(b, 28) && has(b, 30) && has(b, 31);
    unsigned lzcnt = 0, unused;
    __get_cpuid(0x80000001u, &unused, &unused, &lzcnt, &unused);
    v3 = v2 && ymm && fma_f16c_movbe && avx2_bmi && has(lzcnt, 5);
#ifdef NPK_EMULATE_AVX512  // a test build, in which the wide kernels need no more than AVX2
    v4 = bf16 = v3;
    return;
#endif
    v4 = v3 && zmm && avx512_f_dq_cd_bw_vl;
    bf16 = v4 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, 5);
  }
};
const Cpu& cpu() {
  static const Cpu instance;
  return instance;
}
#endif

struct Entry {
  const char* name;
  const KernelTable* table;
  bool (*supported)();
};

const Entry entries[] = {
#if defined(__x86_64__)
    {"baseline", &baseline::table, [] { return cpu().v2; }},
    {"avx2", &avx2::table, [] { return cpu().v3; }},
    {"avx512", &avx512::table, [] { return cpu().v4; }},
    {"avx512bf16", &avx512bf16::table, [] { return cpu().bf16; }},
#else
    {"neon", &neon::table, [] { return true; }},
#endif
};

const Entry* find(const char* name) {
  if (!name) return nullptr;
  for (const Entry& entry : entries)
    if (strcmp(entry.name, name) == 0 && entry.supported()) return &entry;
  return nullptr;
}

std::atomic<const Entry*> active{nullptr};
std::atomic<const char*> source{"best supported"};

const Entry& choose() {
  if (const Entry* entry = active.load(std::memory_order_acquire)) return *entry;
  const char* wanted = getenv("NPKERNELS_ISA");
  const Entry* entry = wanted ? find(wanted) : nullptr;
  const bool from_outside = entry != nullptr;
  if (!entry) {
    entry = &entries[0];
    for (const Entry& candidate : entries)
      if (candidate.supported()) entry = &candidate;
  }
  const Entry* chosen = nullptr;  // by set_isa meanwhile
  if (!active.compare_exchange_strong(chosen, entry, std::memory_order_acq_rel)) return *chosen;
  if (from_outside) source = "NPKERNELS_ISA";
  return *entry;
}

}  // namespace

const KernelTable& kernels() { return *choose().table; }

const char* const* compiled_isas() {
  static const char* const* const names = [] {
    static const char* list[sizeof(entries) / sizeof(entries[0]) + 1] = {};
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); ++i) list[i] = entries[i].name;
    return list;
  }();
  return names;
}

bool isa_supported(const char* name) { return find(name) != nullptr; }

const char* isa() { return choose().name; }

bool set_isa(const char* name) {
  const Entry* entry = find(name);
  if (!entry) return false;
  active.store(entry, std::memory_order_release);
  source = "set_isa";
  return true;
}

void reset_isa() {
  active.store(nullptr, std::memory_order_release);
  source = "best supported";
}

const char* isa_source() {
  choose();
  return source;
}

}  // namespace npkernels
