// SPDX-License-Identifier: Apache-2.0
// Runs tasks on OpenMP threads if OpenMP is available.
#pragma once

#include <cstdint>

namespace cpu {

// Runs task(0) to task(count - 1), each once, in any order.
template <class Task>
void run(int64_t count, int64_t threads, const Task& task) {
    // With one thread, do not create a team at all: only this is safe in a forked process, such as a data loader's
    // worker.
    if (threads <= 1 || count <= 1) {
        for (int64_t i = 0; i < count; ++i) task(i);
        return;
    }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) task(i);
}

}  // namespace cpu
