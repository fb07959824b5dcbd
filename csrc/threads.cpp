#include "npkernels/threads.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>

namespace npkernels {
namespace {

constexpr int kMostThreads = 4096;
std::atomic<int> setting{0};        // set_num_threads
thread_local int thread_limit = 0;  // set_thread_limit
std::atomic<bool> forked{false};

// CPUs that the container's quota allows, rounded up; 0 where there is no quota (cgroup v2, then v1).
int cgroup_cpus() {
  double quota = 0, period = 0;
  if (FILE* file = fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (fscanf(file, "%lf %lf", &quota, &period) != 2) quota = 0;
    fclose(file);
  } else if (FILE* v1 = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
    if (fscanf(v1, "%lf", &quota) != 1) quota = 0;
    fclose(v1);
    if (FILE* p = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
      if (fscanf(p, "%lf", &period) != 1) period = 0;
      fclose(p);
    }
  }
  if (quota <= 0 || period <= 0) return 0;
  return std::max(1, static_cast<int>((quota + period - 1) / period));
}

// What the environment says, read once.
struct Environment {
  int variable = 0;  // NPKERNELS_NUM_THREADS; 0 = not set
  int openmp = 1;    // OpenMP's own default: OMP_NUM_THREADS or the CPUs this process may run on
  int fallback = 1;  // openmp, within the container's quota
  const char* source = "";

  Environment() {
    if (const char* text = getenv("NPKERNELS_NUM_THREADS")) {
      char* end = nullptr;
      const long n = strtol(text, &end, 10);
      if (end != text && *end == 0 && n > 0 && n <= kMostThreads) variable = static_cast<int>(n);
    }
    openmp = std::max(1, omp_get_max_threads());
    fallback = openmp;
    const int quota = cgroup_cpus();
    if (getenv("OMP_NUM_THREADS")) {
      source = "OMP_NUM_THREADS";
    } else if (quota > 0 && quota < openmp) {
      fallback = quota;
      source = "cgroup CPU quota";
    } else {
      source = "CPUs this process may run on";
    }
    // libgomp's threads do not exist in a forked child and waiting for them would hang: the child works
    // alone.
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
  }
};

const Environment& environment() {
  static const Environment instance;
  return instance;
}

const int loaded =
    environment().openmp;  // before anyone can limit OpenMP, so that a later limit is recognised

}  // namespace

int num_threads() {
  const Environment& env = environment();
  if (forked) return 1;
  int n = setting ? setting.load() : env.variable ? env.variable : env.fallback;
  const int openmp =
      omp_get_max_threads();  // threadpoolctl and omp_set_num_threads limit the calling thread's number
  if (openmp != env.openmp) n = std::min(n, openmp);
  if (thread_limit) n = std::min(n, thread_limit);
  return std::clamp(n, 1, kMostThreads);
}

int set_num_threads(int n) { return setting.exchange(std::clamp(n, 0, kMostThreads)); }

int set_thread_limit(int n) {
  const int before = thread_limit;
  thread_limit = std::clamp(n, 0, kMostThreads);
  return before;
}

const char* num_threads_source() {
  const Environment& env = environment();
  if (forked) return "forked process: one thread";
  if (thread_limit) return "num_threads context";
  if (omp_get_max_threads() != env.openmp) return "limit set through OpenMP";
  if (setting) return "set_num_threads";
  return env.variable ? "NPKERNELS_NUM_THREADS" : env.source;
}

int workers_for(int64_t tasks) {
  if (tasks <= 1 || omp_in_parallel()) return 1;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(tasks, num_threads())));
}

void parallel_tasks(int64_t tasks, int workers, void (*body)(void*, int64_t, int), void* context) {
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
  for (int64_t task = 0; task < tasks; ++task) body(context, task, omp_get_thread_num());
}

}  // namespace npkernels
