/* Windows' threads, for pool.h. */
#pragma once

#include <stdint.h>
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602  /* Windows 8: WaitOnAddress, of -lsynchronization */
#endif
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#define POOL_SYSTEM "WaitOnAddress"

static void sleep_on(uint32_t *word, uint32_t value) {
    WaitOnAddress(word, &value, sizeof value, INFINITE);
}

static int wake(uint32_t *word) {
    WakeByAddressSingle(word);
    return 0;
}

typedef DWORD thread_result;
#define THREAD_CALL WINAPI

static int start_thread(int number, thread_result (THREAD_CALL *begin)(void *)) {
    HANDLE thread = CreateThread(NULL, 0, begin, (void *)(intptr_t)number, 0, NULL);
    return thread && CloseHandle(thread);
}

static inline void yield_cpu(void) { SwitchToThread(); }

static inline int64_t clock_ns(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (int64_t)((double)ticks.QuadPart * (1e9 / (double)per_second.QuadPart));
}
