/* The door's threads: workers that share the items of one call, then wait for the next.
 *
 * OpenMP's parallel region ends when every thread of the team has been there, those too that have
 * yet to wake, and its threads then spin for some 5 ms on a CPU that the caller's next library
 * wants. Here whoever is awake takes the next item, a call waits for items that were begun and for
 * nothing else, and a worker soon sleeps. A norm of 512 x 4096 and a matmul of 512 x 512 (OpenBLAS)
 * in turn, on 2 CPUs: 0.61 and 1.0 ms with one thread for the norm, 3.6 and 4.4 ms with libgomp's
 * two, 0.38 and 1.0 ms with two of these (bench/beside.py).
 */
#ifndef FASTRMS_POOL_H
#define FASTRMS_POOL_H

/* Item number `item` of a call, from any thread. */
typedef void (*pool_item)(const void *call, long item);

#ifdef __linux__
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#define POOL_MOST 1024  /* threads */
/* How often a worker looks for another call before it sleeps, for some 20 us. Calls in a row find
 * it awake; to wake it costs a call 25 to 40 us. (A matmul of 0.14 ms in between took 0.01 ms longer
 * so, and 0.1 ms with five times as many looks. With sched_yield between looks the worker fell
 * behind a thread of OpenBLAS that yields too, and had no item of any call.)
 */
#define POOL_LOOKS 2000
/* Calls are in a row when each begins less than these ns after the last one's end. After so many of
 * them the next is taken to be as near. */
#define POOL_GAP 20000
#define POOL_ROW 8

/* The gate is OPEN while a call has items that nobody began. It holds the call's threads, SEAT for
 * each, how many workers are INSIDE: joined, and not left yet, and whether the caller is ASLEEP
 * until the last of them leaves. */
#define POOL_OPEN 0x80000000u
#define POOL_ASLEEP 0x40000000u
#define POOL_SEAT 0x1000u
#define POOL_INSIDE (POOL_SEAT - 1)

static struct {
    uint32_t gate;
    uint32_t busy;  /* one call has the workers; another thread's does without them */
    int workers;
    int cpu;        /* of the caller, when it last woke someone */
    pool_item run;
    const void *call;
    int threads;
    int row;        /* how many calls came in a row */
    int64_t end;    /* of the last call, in ns */
    /* Each thread begins with its own items, whose rows its cache may hold from the call before,
     * and goes on with those of others. Number 0 is the caller. */
    struct {
        long next, last;
        uint32_t asleep;
        char line[64 - 2 * sizeof(long) - sizeof(uint32_t)];
    } thread[POOL_MOST];
} pool;

static inline void pool_pause(void) {
#ifdef __SSE2__
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline long pool_futex(uint32_t *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static void pool_work(int own) {
    for (int k = 0; k < pool.threads; k++) {
        const int t = (own + k) % pool.threads;
        const long last = pool.thread[t].last;
        while (__atomic_load_n(&pool.thread[t].next, __ATOMIC_RELAXED) < last) {
            const long item = __atomic_fetch_add(&pool.thread[t].next, 1, __ATOMIC_RELAXED);
            if (item < last) pool.run(pool.call, item);
        }
    }
    __atomic_fetch_and(&pool.gate, ~POOL_OPEN, __ATOMIC_RELAXED);
}

static inline int pool_wants(uint32_t gate, int own) {
    return (uint32_t)own < (gate & ~(POOL_OPEN | POOL_ASLEEP)) / POOL_SEAT;
}

/* Join the call that is open, if it wants this worker, and work on it. */
static int pool_join(int own) {
    uint32_t gate = __atomic_load_n(&pool.gate, __ATOMIC_SEQ_CST);
    do {
        if (!(gate & POOL_OPEN) || !pool_wants(gate, own)) return 0;
    } while (!__atomic_compare_exchange_n(&pool.gate, &gate, gate + 1, 0, __ATOMIC_ACQUIRE,
                                          __ATOMIC_RELAXED));
    pool_work(own);
    gate = __atomic_sub_fetch(&pool.gate, 1, __ATOMIC_RELEASE);
    if ((gate & POOL_ASLEEP) && !(gate & POOL_INSIDE)) pool_futex(&pool.gate, FUTEX_WAKE, 1);
    return 1;
}

/* Leave the CPU to the caller where the kernel woke this thread on it: they took turns there until
 * the scheduler's tick, 4 ms later, with another CPU idle. */
static void pool_make_way(void) {
    cpu_set_t mine, others;
    const int cpu = __atomic_load_n(&pool.cpu, __ATOMIC_RELAXED);
    if (cpu < 0 || sched_getcpu() != cpu || sched_getaffinity(0, sizeof mine, &mine)) return;
    others = mine;
    CPU_CLR(cpu, &others);
    if (!sched_setaffinity(0, sizeof others, &others)) sched_setaffinity(0, sizeof mine, &mine);
}

static void *pool_worker(void *number) {
    const int own = (int)(intptr_t)number;
    uint32_t *asleep = &pool.thread[own].asleep;
    int took_part = 0;  /* in a call that is going on, as far as this worker can tell */
    for (;;) {
        for (int look = 0; look < POOL_LOOKS; look++) {
            took_part = pool_join(own)
                || (took_part && __atomic_load_n(&pool.busy, __ATOMIC_RELAXED)
                    && pool_wants(__atomic_load_n(&pool.gate, __ATOMIC_RELAXED), own));
            if (took_part) look = 0;
            pool_pause();
        }
        __atomic_store_n(asleep, 1, __ATOMIC_SEQ_CST);
        if (!pool_join(own)) {  /* a call that opened before `asleep` was set woke nobody */
            while (__atomic_load_n(asleep, __ATOMIC_ACQUIRE)) pool_futex(asleep, FUTEX_WAIT, 1);
            pool_make_way();
        }
        __atomic_store_n(asleep, 0, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* Wake those of the wanted workers that sleep. */
static void pool_wake(int threads) {
    int woken = 0;
    __atomic_store_n(&pool.cpu, sched_getcpu(), __ATOMIC_RELAXED);
    for (int t = 1; t < threads; t++) {
        uint32_t *asleep = &pool.thread[t].asleep;
        if (__atomic_load_n(asleep, __ATOMIC_SEQ_CST)
            && __atomic_exchange_n(asleep, 0, __ATOMIC_SEQ_CST))
            woken += pool_futex(asleep, FUTEX_WAKE, 1) > 0;
    }
    if (woken) sched_yield();  /* to a worker that has to make way */
}

/* As many workers as asked for, or as the system gives. They take no signals but those of a fault of
 * their own, which would end the process without a word to its handler (Python's faulthandler). */
static void pool_grow(int workers) {
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    sigset_t blocked, before;
    pthread_t thread;
    if (pool.workers >= workers) return;
    sigfillset(&blocked);
    for (int k = 0; k < 4; k++) sigdelset(&blocked, faults[k]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (pool.workers < workers
           && !pthread_create(&thread, NULL, pool_worker, (void *)(intptr_t)(pool.workers + 1))) {
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Until every worker has left. One whose CPU was taken away in the midst of an item may need this
 * one: it is yielded, and then given up, since one of real-time priority yields to no other. */
static void pool_wait(void) {
    uint32_t gate;
    for (int look = 1; look < POOL_LOOKS; look++) {
        if (!(__atomic_load_n(&pool.gate, __ATOMIC_ACQUIRE) & POOL_INSIDE)) return;
        if (look % 16) pool_pause(); else sched_yield();
    }
    gate = __atomic_or_fetch(&pool.gate, POOL_ASLEEP, __ATOMIC_ACQUIRE);
    while (gate & POOL_INSIDE) {
        pool_futex(&pool.gate, FUTEX_WAIT, gate);
        gate = __atomic_load_n(&pool.gate, __ATOMIC_ACQUIRE);
    }
}

static inline int64_t pool_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* All items of a call, on so many threads, its own among them. It is not worth waking workers for a
 * brief call, unless that comes in a row of calls. */
static void pool_run(pool_item run, const void *call, long items, int threads, int brief) {
    if (__atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE)) {
        for (long item = 0; item < items; item++) run(call, item);
        return;
    }
    pool_grow(threads - 1);
    pool.run = run;
    pool.call = call;
    pool.threads = threads;
    for (int t = 0; t < threads; t++) {
        pool.thread[t].next = items * t / threads;
        pool.thread[t].last = items * (t + 1) / threads;
    }
    __atomic_store_n(&pool.gate, POOL_OPEN | POOL_SEAT * (uint32_t)threads, __ATOMIC_SEQ_CST);
    pool.row = pool_clock() - pool.end < POOL_GAP ? pool.row + 1 : 0;
    if (!brief || pool.row >= POOL_ROW) pool_wake(threads);
    pool_work(0);
    pool_wait();
    pool.end = pool_clock();
    __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE);
}

#define POOL_EXISTS 1
#define POOL_SYSTEM "futex"
#else
#define POOL_EXISTS 0
#define POOL_SYSTEM ""
static void pool_run(pool_item run, const void *call, long items, int threads, int brief) {
    (void)threads, (void)brief;
    for (long item = 0; item < items; item++) run(call, item);
}
#endif

#endif
