# How many threads a call uses. Rows are independent, so any number gives the same bits. Times are
# of an Intel Xeon with AVX-512, 2 CPUs.

from schedule.pool cimport POOL_EXISTS, relaxed_load, thread_limit, wanted_threads

# From this many elements on (some 3 us) a call releases the GIL.
cdef Py_ssize_t RELEASE_GIL = 16384
# From this many elements on a call uses threads, each for at least half of them. From eight times
# as many on it also wakes sleeping threads, which costs 40 us. Not atomic: only measurements set
# it, before their calls.
cdef Py_ssize_t parallel_from = 1 << 16

cdef bint forked = False


def set_parallel_from(elements):
    """Use threads from this many elements on, for tests and measurements; return the last value."""
    global parallel_from
    previous, parallel_from = parallel_from, elements
    return previous


def limit_threads(n):
    """Use at most n threads in calls made from this thread, for adapters; return the last limit."""
    global thread_limit
    previous, thread_limit = thread_limit, n
    return previous


def _run_serially_after_fork():
    global forked
    forked = True


cdef int thread_count() noexcept nogil:
    """Return how many threads a large call may use."""
    if forked or not POOL_EXISTS:
        return 1
    return min(relaxed_load(wanted_threads), thread_limit)


cdef inline int threads_for(Py_ssize_t elements) noexcept nogil:
    """Return how many threads a call of this many elements uses."""
    cdef Py_ssize_t least = parallel_from
    if elements < least:
        return 1
    return <int>min(<Py_ssize_t>thread_count(), 2 * elements // least)


cdef inline bint is_brief(Py_ssize_t elements) noexcept nogil:
    """Return whether a call ends before a sleeping thread could join it: see parallel_from."""
    return elements < 8 * parallel_from
