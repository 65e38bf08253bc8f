# The door's threads: how many, when, and which rows each one takes; and where a call looks up for
# Ctrl-C. Rows are independent, so any split gives the same bits. Times are of an Intel Xeon with
# AVX-512, 2 CPUs.

cdef extern from "pool.h" nogil:
    ctypedef void (*pool_item)(const void* call, long item) noexcept nogil
    void pool_run(pool_item run, const void* call, long items, int threads, bint brief)
    const bint POOL_EXISTS
    const int POOL_MOST         # threads
    const char* POOL_SYSTEM     # what its threads sleep on
    int read_word(int word)
    void write_word(int word, int value)

cdef extern from *:
    """
    /* Static, or each thread allocates it at its first call, and the extension needs ld.so too.
       musl loads no extension that has such memory. */
    #ifdef __GLIBC__
    __attribute__((tls_model("initial-exec")))
    #endif
    static _Thread_local int thread_limit = POOL_MOST;

    static int wanted_threads = 1;
    /* threadpoolctl knows the library by this symbol, among other packages' _core. */
    Py_EXPORTED_SYMBOL int fastrms_num_threads(void) { return read_word(wanted_threads); }
    """
    int thread_limit    # of the calls made from this thread
    int wanted_threads  # of any call: see set_num_threads

cdef extern from "machine.h" nogil:
    ctypedef unsigned long fp_state
    fp_state default_fp_state()
    void restore_fp_state(fp_state state)

# From these many elements on (some 3 us) a call lets go of the GIL.
cdef Py_ssize_t RELEASE_GIL = 16384
# From these many on, 16 x 4096, it uses threads, each for half of them at least: calls in a row
# gain, 1.5 times on two threads, 1.6 to 1.9 at 32 x 4096. From eight times as many on it wakes
# threads for a single call, which costs some 40 us: at 450,000 elements such a call takes as long
# as on one thread, at 64 x 11008 0.15 ms instead of 0.22, at 512 x 4096 0.36 instead of 0.58.
# Not atomic, as in caches.pxi: measurements alone set it, before the calls that are to see it.
cdef Py_ssize_t parallel_from = 1 << 16
# The rows of each thread are so many items, for another to take those that it has not begun.
cdef int ITEMS = 4
# Between pieces of these many elements, and of a row for each thread at least, a call runs the
# handlers of signals that came.
cdef Py_ssize_t PIECE = 1 << 24

cdef bint forked = False

MOST_THREADS = POOL_MOST


def set_num_threads(n):
    """Set how many threads a call may use.

    Parameters
    ----------
    n : int
        1 to 1024. Small work stays on the calling thread whatever n is. The results have the
        same bits for every n.

    Raises
    ------
    TypeError, ValueError
        If n is not an integer, or out of range.

    Warns
    -----
    RuntimeWarning
        If n is above 1 and this build has no threads.

    Notes
    -----
    The default is ``FASTRMS_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the CPUs that the process
    may use: its affinity, and on Linux its cgroup's quota. `show_config` says which it was.
    ``threadpool_limits(n)`` of threadpoolctl is ``set_num_threads(n)`` until it ends. A process
    forked from this one runs on one thread, because threads do not survive a fork.
    """
    cdef Py_ssize_t count
    try:
        count = n
    except TypeError:
        raise TypeError(f"n must be an integer, got {type(n).__name__}") from None
    except OverflowError:
        raise ValueError(f"n must be 1 to {POOL_MOST} threads, got a larger integer") from None
    if not 1 <= count <= POOL_MOST:
        raise ValueError(f"n must be 1 to {POOL_MOST} threads, got {count}")
    if count > 1 and not POOL_EXISTS:
        PyErr_WarnEx(RuntimeWarning, b"this build has no threads: every call is serial", 1)
    write_word(wanted_threads, <int>count)


def get_num_threads():
    """Return how many threads a large call made now, from this thread, would use."""
    return thread_count()


def limit_threads(n):
    """Use at most n threads in calls made from this thread, for adapters; return what it was."""
    global thread_limit
    previous, thread_limit = thread_limit, n
    return previous


def set_parallel_from(elements):
    """Use threads from this many elements on, for tests and measurements; return what it was."""
    global parallel_from
    previous, parallel_from = parallel_from, elements
    return previous


cdef int thread_count() noexcept nogil:
    if forked or not POOL_EXISTS:
        return 1
    return min(read_word(wanted_threads), thread_limit)


cdef inline int threads_for(Py_ssize_t elements) noexcept nogil:
    cdef Py_ssize_t least = parallel_from
    if elements < least:
        return 1
    return <int>min(<Py_ssize_t>thread_count(), 2 * elements // least)


cdef inline bint is_brief(Py_ssize_t elements) noexcept nogil:
    """Over before a thread that sleeps would be there: see parallel_from."""
    return elements < 8 * parallel_from


def _run_serially_after_fork():
    global forked
    forked = True


cdef int run(rows_kernel kernel, Job* job, Py_ssize_t rows) except -1:
    """A kernel over all rows, in order; without the GIL where it is worth letting go of it."""
    cdef Py_ssize_t piece, count
    cdef int threads = threads_for(rows * job.n)
    cdef bint small = rows * job.n < min(RELEASE_GIL, parallel_from)
    cdef fp_state state
    if rows * job.n == 0:
        return 0
    state = default_fp_state()
    kernels.start(job)
    if small:
        run_kernel(kernel, job, 0, rows)
    restore_fp_state(state)
    if small:
        return 0
    count = max(1, piece_rows(job.n) // threads) * threads      # as many for each thread
    for piece in range(0, rows, count):
        if piece > 0:
            PyErr_CheckSignals()
        with nogil:
            run_rows(kernel, job, piece, min(rows, piece + count), threads)
    return 0


cdef inline Py_ssize_t piece_rows(Py_ssize_t n) noexcept nogil:
    """How many rows make a piece; one of fewer than 64 floats counts as one of 64."""
    return max(1, PIECE // max(n, 64))


cdef struct Shared:
    rows_kernel kernel
    const Job* job
    Py_ssize_t first, rows, items


cdef void run_rows(rows_kernel kernel, const Job* job, Py_ssize_t first, Py_ssize_t last,
                   int threads) noexcept nogil:
    """A kernel over rows [first, last), on this thread or on several."""
    cdef Shared shared
    cdef bint brief = is_brief((last - first) * job.n)
    threads = <int>min(<Py_ssize_t>threads, last - first)
    if threads == 1:
        run_part(kernel, job, first, last)
        return
    shared.kernel, shared.job, shared.first, shared.rows = kernel, job, first, last - first
    shared.items = min(shared.rows, threads if brief else ITEMS * threads)
    pool_run(run_item, &shared, shared.items, threads, brief)


cdef void run_item(const void* call, long item) noexcept nogil:
    cdef const Shared* shared = <const Shared*>call
    run_part(shared.kernel, shared.job, shared.first + shared.rows * item // shared.items,
             shared.first + shared.rows * (item + 1) // shared.items)


cdef inline void run_part(rows_kernel kernel, const Job* job, Py_ssize_t first,
                          Py_ssize_t last) noexcept nogil:
    cdef fp_state state = default_fp_state()
    run_kernel(kernel, job, first, last)
    restore_fp_state(state)
