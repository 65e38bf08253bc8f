# The door's threads: how many, when, and which rows each one takes. Rows are independent, so any
# split gives the same bits; dweight's blocks are fixed by the row count alone.

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define FASTRMS_OPENMP _OPENMP
    #else
    #define FASTRMS_OPENMP 0
    #define omp_get_max_threads() 1
    #endif
    """
    const int FASTRMS_OPENMP
    int omp_get_max_threads() nogil

# From these many elements on (some 3 us) a call lets go of the GIL.
cdef Py_ssize_t RELEASE_GIL = 16384
# From these many on, 512 x 4096, it uses threads. Calls in a row gain from 32,768 on (1.2 times on
# two threads at 8 x 4096, 2.5 times at 64 x 4096), but a pool at rest has to wake first, and where
# the kernel wakes a thread on the caller's own CPU, libgomp's caller spins in its way: a call after
# 20 ms of rest took 6 ms instead of 0.6 at 256 x 4096, and 1.2 ms instead of 1.1 at 512 x 4096.
# (A shorter GOMP_SPINCOUNT mends that call, and leaves calls in a row on one CPU.)
cdef Py_ssize_t parallel_from = 1 << 21
# dweight is summed over at most this many blocks, whatever the threads: 8 bytes * n each.
cdef Py_ssize_t MOST_BLOCKS = 64
cdef Py_ssize_t LEAST_BLOCK = 32

# An output is streamed past the cache when what a call reads and writes exceeds the last-level
# cache, of which a core is taken to have 64 MiB at most: a server's is shared with others.
cdef Py_ssize_t STREAM_BYTES = min(<Py_ssize_t>last_level_cache(), <Py_ssize_t>64 << 20)
cdef Py_ssize_t LEAST_STREAMED = 512    # floats in a row

cdef int wanted_threads = 0        # 0: what OpenMP would use
cdef int openmp_threads = omp_get_max_threads()
cdef bint forked = False


def set_num_threads(n):
    """Set how many threads a call may use.

    Parameters
    ----------
    n : int
        At least 1. Small work stays on the calling thread whatever n is. The results have the
        same bits for every n.

    Raises
    ------
    TypeError, ValueError
        If n is not an integer, or is below 1.

    Notes
    -----
    The default is ``FASTRMS_NUM_THREADS``, else what OpenMP would use (``OMP_NUM_THREADS``, the
    process's CPU affinity). A limit set through OpenMP later, as threadpoolctl does, wins. A
    process forked from this one runs on one thread, because an OpenMP pool does not survive
    a fork. Without OpenMP (see `show_config`) every call runs on its own thread.
    """
    global wanted_threads
    wanted_threads = as_thread_count(n, "n")


cdef int as_thread_count(object value, str name) except -1:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if not 1 <= count <= 1024:
        raise ValueError(f"{name} must be 1 to 1024 threads, got {count}")
    return count


def get_num_threads():
    """Return how many threads a large call made now, from this thread, would use."""
    return thread_count()


def set_parallel_from(elements):
    """Use threads from this many elements on, for tests and measurements; return what it was."""
    global parallel_from
    previous, parallel_from = parallel_from, elements
    return previous


cdef int thread_count() noexcept nogil:
    cdef int limit = omp_get_max_threads()
    if forked or FASTRMS_OPENMP == 0:
        return 1
    if wanted_threads == 0 or (limit < openmp_threads and limit < wanted_threads):
        return limit
    return wanted_threads


def _run_serially_after_fork():
    global forked
    forked = True


cdef int read_environment() except -1:
    """Take FASTRMS_NUM_THREADS, if it is set."""
    global wanted_threads
    value = os.environ.get("FASTRMS_NUM_THREADS")
    if value:
        try:
            wanted_threads = as_thread_count(int(value), "FASTRMS_NUM_THREADS")
        except ValueError:
            raise ImportError(f"FASTRMS_NUM_THREADS must be 1 to 1024, got {value!r}") from None
    return 0


cdef inline bint outgrows_cache(Py_ssize_t elements, Py_ssize_t n) noexcept nogil:
    """Whether these many elements, read and written, are too many to find in cache again.

    Not for short rows: the lines at their ends are shared, and those cannot be streamed (0.93 of
    the floor streamed at 65536 x 128, add + norm, and 1.05 not).
    """
    return n >= LEAST_STREAMED and elements * <Py_ssize_t>sizeof(float) > STREAM_BYTES


cdef void run_rows(rows_kernel kernel, const Job* job, Py_ssize_t rows) noexcept nogil:
    """Run a kernel over all rows, on one thread or split evenly over several."""
    cdef int part, parts = 1
    if rows > 1 and rows * job.n >= parallel_from:
        parts = <int>min(<Py_ssize_t>thread_count(), rows)
    if parts == 1:
        kernel(job, 0, rows)
        return
    for part in prange(parts, num_threads=parts, schedule="static"):
        kernel(job, rows * part // parts, rows * (part + 1) // parts)


cdef int run(rows_kernel kernel, const Job* job, Py_ssize_t rows) except -1:
    """run_rows, without the GIL where the work is worth letting go of it."""
    if rows * job.n == 0:
        return 0
    if rows * job.n < min(RELEASE_GIL, parallel_from):
        kernel(job, 0, rows)
    else:
        with nogil:
            run_rows(kernel, job, rows)
    return 0


cdef inline Py_ssize_t block_rows(Py_ssize_t rows) noexcept nogil:
    """How many rows one partial sum of dweight covers: from the row count alone."""
    return max(LEAST_BLOCK, (rows + MOST_BLOCKS - 1) // MOST_BLOCKS)


cdef void run_blocks(const Job* job, Py_ssize_t rows, int parts, double* dweight,
                     double* scratch) noexcept nogil:
    """Backward over fixed row blocks; their partial sums join dweight in the order of the rows.

    dweight (n,) IN-OUT; scratch holds one block's sum (n,) serially, every block's with threads.
    """
    cdef Py_ssize_t size = block_rows(rows), blocks = (rows + size - 1) // size, n = job.n, b
    cdef Py_ssize_t step = n if parts > 1 and dweight != NULL else 0
    if blocks == 1:
        kernels.backward(job, 0, rows, dweight)
        return
    for b in prange(blocks, num_threads=parts, schedule="dynamic", use_threads_if=parts > 1):
        run_block(job, b * size, min(rows, (b + 1) * size), scratch + b * step)
        if parts == 1 and dweight != NULL:
            kernels.add_block(dweight, scratch, n)
    if parts > 1 and dweight != NULL:
        for b in range(blocks):
            kernels.add_block(dweight, scratch + b * step, n)


cdef inline void run_block(const Job* job, Py_ssize_t first, Py_ssize_t last,
                           double* sums) noexcept nogil:
    if sums != NULL:
        memset(sums, 0, job.n * sizeof(double))
    kernels.backward(job, first, last, sums)


cdef int run_backward(const Job* job, Py_ssize_t rows, float* dweight,
                      bint accumulate) except -1:
    """Backward over all rows; dweight (n,) OUT, or IN-OUT to accumulate, NULL without a weight."""
    cdef Py_ssize_t size = block_rows(rows), blocks = (rows + size - 1) // size, n = job.n
    cdef int parts = 1
    cdef double* total = NULL
    cdef double* scratch = NULL
    if rows * n < RELEASE_GIL and 0 < rows <= 8 and not accumulate:
        if kernels.backward_few(job, rows, dweight):
            return 0
    if rows * n >= parallel_from:
        parts = <int>min(<Py_ssize_t>thread_count(), blocks)
    if dweight != NULL:
        total = <double*>PyMem_RawCalloc(n, (1 + (blocks if parts > 1 else 1)) * sizeof(double))
        if total == NULL:
            raise MemoryError()
        scratch = total + n
    if rows * n < min(RELEASE_GIL, parallel_from):
        run_blocks(job, rows, 1, total, scratch)
    else:
        with nogil:
            run_blocks(job, rows, parts, total, scratch)
    if dweight != NULL:
        kernels.store_dweight(dweight, total, n, accumulate)
        PyMem_RawFree(total)
    return 0
