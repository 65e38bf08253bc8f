/* What ThreadSanitizer cannot see by itself: libgomp synchronises through futexes, uninstrumented,
 * so every parallel loop looks like a race. This library stands before libgomp (LD_PRELOAD) and
 * tells of the three edges that the OpenMP standard promises: fork, barrier and join. Nothing else
 * is excused, and no report is suppressed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

void __tsan_acquire(void *address);
void __tsan_release(void *address);

typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
typedef void (*barrier)(void);

struct region {
    void (*body)(void *);
    void *data;
    char start, end; /* two addresses to hang an edge on: what is ordered is not each other */
};

static __thread struct region *team;

static void in_each_thread(void *argument) {
    struct region *region = argument, *outer = team;
    __tsan_acquire(&region->start);
    team = region;
    region->body(region->data);
    team = outer;
    __tsan_release(&region->end);
}

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) {
    struct region region = {body, data, 0, 0};
    __tsan_release(&region.start);
    ((parallel)dlsym(RTLD_NEXT, "GOMP_parallel"))(in_each_thread, &region, threads, flags);
    __tsan_acquire(&region.end);
}

void GOMP_barrier(void) {
    __tsan_release(team);
    ((barrier)dlsym(RTLD_NEXT, "GOMP_barrier"))();
    __tsan_acquire(team);
}
