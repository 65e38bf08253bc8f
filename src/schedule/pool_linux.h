/* What Linux adds to pool_posix.h: futexes, and CPU affinity. -DFASTRMS_CONDITION leaves out the
 * futexes, to test the condition variables of other systems.
 */
#pragma once

#include <sched.h>
#include <stdint.h>

#ifndef FASTRMS_CONDITION
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#define POOL_SYSTEM "futex"

static void sleep_on(uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static int wake(uint32_t *word) {
    return syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) > 0;
}
#endif

static inline int this_cpu(void) { return sched_getcpu(); }

/* Move this thread off a CPU. Linux may wake a worker on its caller's CPU, where the two took turns
 * until the scheduler's next tick, 4 ms later, although another CPU was idle. */
static void leave_cpu(int cpu) {
    cpu_set_t mine, others;
    if (cpu < 0 || sched_getcpu() != cpu || sched_getaffinity(0, sizeof mine, &mine)) return;
    others = mine;
    CPU_CLR(cpu, &others);
    if (!sched_setaffinity(0, sizeof others, &others)) sched_setaffinity(0, sizeof mine, &mine);
}
