// How many threads a kernel may use, and the parallel loop that all kernels share.
#pragma once

#include "array.h"

namespace npkernels {

// The number of threads that a large call made now would use.
NPK_API int num_threads();
// Fixes the number for the process; 0 goes back to the default. Returns the previous setting (0 = default).
NPK_API int set_num_threads(int n);
// A limit for calls made from this thread only; 0 removes it. Returns the previous one.
NPK_API int set_thread_limit(int n);
// Where num_threads() comes from, for people: "NPKERNELS_NUM_THREADS", "OpenMP default", ...
NPK_API const char* num_threads_source();

// How many threads a loop over that many tasks would use now.
NPK_API int workers_for(int64_t tasks);

// Calls body(context, task, worker) for task = 0 .. tasks-1 on `workers` threads, 0 <= worker < workers.
// Which worker takes which task is not fixed, so a task must own what it writes; what is to be the same for
// every thread count follows from the task alone.
NPK_API void parallel_tasks(int64_t tasks, int workers, void (*body)(void* context, int64_t task, int worker),
                            void* context);

}  // namespace npkernels
