// SPDX-License-Identifier: Apache-2.0
// Tasks on the threads of OpenMP, where there is one.
#pragma once

#include <cstdint>

namespace cpu {

// Runs task(0) to task(count - 1), each once, in any order.
template <class Task>
void run(int64_t count, int64_t threads, const Task& task) {
    // Not even a team of one where one thread is asked for: a forked process may do this, as a data loader's worker is.
    if (threads <= 1 || count <= 1) {
        for (int64_t i = 0; i < count; ++i) task(i);
        return;
    }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) task(i);
}

}  // namespace cpu
