/* POSIX threads, for pool.h; threads sleep on condition variables where the system's own file, which
 * comes first, gives nothing better.
 */
#pragma once

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>

#ifndef POOL_SYSTEM
#define POOL_SYSTEM "condition variable"

/* Words share 64 condition variables, by their address; sharing causes spurious wake-ups. */
#define SLEEPERS 64
#define SLEEPER(word) sleepers[(uintptr_t)(word) / 64 % SLEEPERS]
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t woken;
} sleepers[SLEEPERS] = {
    [0 ... SLEEPERS - 1] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER}};

static void sleep_on(uint32_t *word, uint32_t value) {
    pthread_mutex_t *mutex = &SLEEPER(word).mutex;
    pthread_mutex_lock(mutex);
    if (__atomic_load_n(word, __ATOMIC_RELAXED) == value)
        pthread_cond_wait(&SLEEPER(word).woken, mutex);
    pthread_mutex_unlock(mutex);
}

/* The mutex ensures that a sleeper either sees the new value of `word` or is waiting already. */
static int wake(uint32_t *word) {
    pthread_mutex_t *mutex = &SLEEPER(word).mutex;
    pthread_mutex_lock(mutex);
    pthread_cond_broadcast(&SLEEPER(word).woken);
    pthread_mutex_unlock(mutex);
    return 0;
}
#endif

typedef void *thread_result;
#define THREAD_CALL

/* The thread blocks all signals except those of its own faults: blocked, they would end the process
 * without calling a handler (Python's faulthandler). */
static int start_thread(int number, thread_result (*begin)(void *)) {
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    sigset_t blocked, before;
    pthread_t thread;
    int failed;
    sigfillset(&blocked);
    for (int k = 0; k < 4; k++) sigdelset(&blocked, faults[k]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    failed = pthread_create(&thread, NULL, begin, (void *)(intptr_t)number);
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
