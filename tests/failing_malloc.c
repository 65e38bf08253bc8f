/* malloc for LD_PRELOAD: fails one allocation of a call, on its thread, and counts blocks. */
#include <errno.h>
#include <stddef.h>

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void __libc_free(void *);

static __thread long remaining = -1; /* allocations before the one that fails; -1: none fails */
static __thread long living = 0;     /* blocks allocated and not freed by this thread */

void *PyObject_Call(void *function, void *arguments, void *named);

/* Call function(*arguments, **named); fail its allocation number `count`, from 0. */
void *call_failing(void *function, void *arguments, void *named, long count, int *failed) {
    remaining = count;
    void *result = PyObject_Call(function, arguments, named);
    *failed = remaining < 0;
    remaining = -1;
    return result;
}

long living_blocks(void) { return living; }

static int fails(void) {
    if (remaining < 0 || remaining-- > 0) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) {
    if (fails()) return NULL;
    living++;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    if (fails()) return NULL;
    living++;
    return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size) {
    if (fails()) return NULL;
    if (block == NULL) living++;
    return __libc_realloc(block, size);
}

void free(void *block) {
    if (block != NULL) living--;
    __libc_free(block);
}
