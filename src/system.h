/* This system's threads, for pool.h: to start one, to put it to sleep on a word and to wake it, to
 * yield a CPU. Linux sleeps on a futex, Windows on an address; macOS and the rest on a condition
 * variable, and so does Linux with -DFASTRMS_CONDITION, for its tests. Knows nothing of calls.
 */
#ifndef FASTRMS_SYSTEM_H
#define FASTRMS_SYSTEM_H

#include <stdint.h>

/* Where the compiler has atomics of GCC's form and the system a way to sleep; gate `plain` says 0. */
#if (defined(__GNUC__) || defined(__clang__)) && !defined(POOL_EXISTS)
#define POOL_EXISTS 1

/* What thread `number` does once it was started, for ever. */
static void pool_worker(int number);

/* sleep_on: until thread `number` is woken, or for no reason at all; not if `word` no longer holds
 * `value`, which is looked at in one step with going to sleep. wake: the thread that sleeps on
 * `word`, which was changed before; it returns whether the system says that one did. */

#if defined(_WIN32)
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602  /* Windows 8: WaitOnAddress, of -lsynchronization */
#endif
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#define POOL_SYSTEM "WaitOnAddress"

static void sleep_on(int number, uint32_t *word, uint32_t value) {
    (void)number;
    WaitOnAddress(word, &value, sizeof value, INFINITE);
}

static int wake(int number, uint32_t *word) {
    (void)number;
    WakeByAddressSingle(word);
    return 0;
}

static DWORD WINAPI begin_thread(void *number) {
    pool_worker((int)(intptr_t)number);
    return 0;
}

static int start_thread(int number) {
    HANDLE thread = CreateThread(NULL, 0, begin_thread, (void *)(intptr_t)number, 0, NULL);
    return thread && CloseHandle(thread);
}

static inline void yield_cpu(void) { SwitchToThread(); }

static inline int64_t clock_ns(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (int64_t)((double)ticks.QuadPart * (1e9 / (double)per_second.QuadPart));
}

#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#if defined(__linux__) && !defined(FASTRMS_CONDITION)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#define POOL_SYSTEM "futex"

static void sleep_on(int number, uint32_t *word, uint32_t value) {
    (void)number;
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static int wake(int number, uint32_t *word) {
    (void)number;
    return syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) > 0;
}

#else
#define POOL_SYSTEM "condition variable"

/* Thread `number` sleeps in bed number % BEDS, beside those that are woken with it for no reason. */
#define BEDS 64
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t woken;
} beds[BEDS] = {[0 ... BEDS - 1] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER}};

static void sleep_on(int number, uint32_t *word, uint32_t value) {
    pthread_mutex_t *mutex = &beds[number % BEDS].mutex;
    pthread_mutex_lock(mutex);
    if (__atomic_load_n(word, __ATOMIC_RELAXED) == value)
        pthread_cond_wait(&beds[number % BEDS].woken, mutex);
    pthread_mutex_unlock(mutex);
}

/* By the mutex a sleeper sees `word` changed, or its sleep has begun. */
static int wake(int number, uint32_t *word) {
    pthread_mutex_t *mutex = &beds[number % BEDS].mutex;
    (void)word;
    pthread_mutex_lock(mutex);
    pthread_cond_broadcast(&beds[number % BEDS].woken);
    pthread_mutex_unlock(mutex);
    return 0;
}
#endif

static void *begin_thread(void *number) {
    pool_worker((int)(intptr_t)number);
    return NULL;
}

/* It takes no signals but those of a fault of its own, which would end the process without a word to
 * its handler (Python's faulthandler). */
static int start_thread(int number) {
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    sigset_t blocked, before;
    pthread_t thread;
    int failed;
    sigfillset(&blocked);
    for (int k = 0; k < 4; k++) sigdelset(&blocked, faults[k]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    failed = pthread_create(&thread, NULL, begin_thread, (void *)(intptr_t)number);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) pthread_detach(thread);
    return !failed;
}

static inline void yield_cpu(void) { sched_yield(); }

static inline int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}
#endif

/* A worker that Linux woke on its caller's CPU took turns with it there until the scheduler's tick,
 * 4 ms later, with another CPU idle: it leaves that CPU. Nothing else says on which one it is. */
#ifdef __linux__
static inline int this_cpu(void) { return sched_getcpu(); }

static void leave_cpu(int cpu) {
    cpu_set_t mine, others;
    if (cpu < 0 || sched_getcpu() != cpu || sched_getaffinity(0, sizeof mine, &mine)) return;
    others = mine;
    CPU_CLR(cpu, &others);
    if (!sched_setaffinity(0, sizeof others, &others)) sched_setaffinity(0, sizeof mine, &mine);
}
#else
static inline int this_cpu(void) { return -1; }
static inline void leave_cpu(int cpu) { (void)cpu; }
#endif

#else
#define POOL_EXISTS 0
#define POOL_SYSTEM ""
#endif

/* A word that any thread may set while others read it, where its value is all that they want. */
#if POOL_EXISTS
#define read_word(word) __atomic_load_n(&(word), __ATOMIC_RELAXED)
#define write_word(word, value) __atomic_store_n(&(word), value, __ATOMIC_RELAXED)
#else
#define read_word(word) (word)
#define write_word(word, value) ((word) = (value))
#endif

#endif
