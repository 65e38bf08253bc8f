# The door's threads: how many, when, and which rows each one takes; and where a call looks up for
# Ctrl-C. Rows are independent, so any split gives the same bits; dweight's blocks are fixed by the
# row count alone.

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define FASTRMS_OPENMP _OPENMP
    #else
    #define FASTRMS_OPENMP 0
    #define omp_get_max_threads() 1
    #endif
    /* Static, or each thread allocates it at its first call, and ld.so is one library more. */
    #ifdef __ELF__
    __attribute__((tls_model("initial-exec")))
    #endif
    static _Thread_local int thread_limit = 1024;
    """
    int thread_limit    # of the calls made from this thread
    const int FASTRMS_OPENMP
    int omp_get_max_threads() nogil

cdef extern from "machine.h" nogil:
    ctypedef unsigned long fp_state
    fp_state default_fp_state()
    void restore_fp_state(fp_state state)

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
# Between pieces of these many elements a call runs the handlers of signals that came.
cdef Py_ssize_t PIECE = 1 << 24
# dweight adds rows in groups of 8, so pieces of backward are whole groups.
cdef Py_ssize_t GROUP = 8

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
    cdef int limit = omp_get_max_threads()
    if forked or FASTRMS_OPENMP == 0:
        return 1
    if wanted_threads > 0 and (limit >= openmp_threads or limit >= wanted_threads):
        limit = wanted_threads
    return min(limit, thread_limit)


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


cdef int run(rows_kernel kernel, Job* job, Py_ssize_t rows) except -1:
    """A kernel over all rows, in order; without the GIL where it is worth letting go of it."""
    cdef Py_ssize_t piece, pieces
    cdef int parts = 1
    cdef bint small = rows * job.n < min(RELEASE_GIL, parallel_from)
    cdef fp_state state
    if rows * job.n == 0:
        return 0
    state = default_fp_state()
    kernels.start(job)
    if small:
        kernel(job, 0, rows)
    restore_fp_state(state)
    if small:
        return 0
    if rows * job.n >= parallel_from:
        parts = thread_count()
    pieces = (rows + piece_rows(job.n) - 1) // piece_rows(job.n)
    for piece in range(pieces):
        if piece > 0:
            PyErr_CheckSignals()
        with nogil:
            run_rows(kernel, job, rows * piece // pieces, rows * (piece + 1) // pieces, parts)
    return 0


cdef inline Py_ssize_t piece_rows(Py_ssize_t n) noexcept nogil:
    """How many rows make a piece; a short row takes as long as one of 64."""
    return max(1, PIECE // max(n, 64))


cdef void run_rows(rows_kernel kernel, const Job* job, Py_ssize_t first, Py_ssize_t last,
                   int parts) noexcept nogil:
    """A kernel over rows [first, last), on one thread or split evenly over several."""
    cdef Py_ssize_t rows = last - first
    cdef int part
    parts = <int>min(<Py_ssize_t>parts, rows)
    if parts == 1:      # prange on one thread costs 0.5 us still
        run_part(kernel, job, first, last)
        return
    for part in prange(parts, num_threads=parts, schedule="static"):
        run_part(kernel, job, first + rows * part // parts, first + rows * (part + 1) // parts)


cdef inline void run_part(rows_kernel kernel, const Job* job, Py_ssize_t first,
                          Py_ssize_t last) noexcept nogil:
    cdef fp_state state = default_fp_state()
    kernel(job, first, last)
    restore_fp_state(state)


# ---- backward ---------------------------------------------------------------------------------

cdef struct Blocks:
    Py_ssize_t rows
    Py_ssize_t size         # rows in a block, from the row count alone
    Py_ssize_t count
    Py_ssize_t group        # blocks that run side by side, each with a sum of its own
    int parts
    double* dweight         # (n,) IN-OUT: the blocks' sums in order; NULL without a weight
    double* sums            # (group, n); (1, n) on one thread; dweight itself for a single block


cdef int run_backward(Job* job, Py_ssize_t rows, float* dweight, bint accumulate) except -1:
    """Backward over all rows; dweight (n,) OUT, or IN-OUT to accumulate, NULL without a weight."""
    cdef bint done = False
    cdef fp_state state = default_fp_state()
    kernels.start(job)
    if (rows * job.n < RELEASE_GIL and 0 < rows <= GROUP and not accumulate
            and job.squares == NULL):
        done = kernels.backward_few(job, rows, dweight)
    restore_fp_state(state)
    if not done:
        run_in_blocks(job, rows, dweight, accumulate)
    return 0


cdef int run_in_blocks(const Job* job, Py_ssize_t rows, float* dweight,
                       bint accumulate) except -1:
    """Backward in row blocks, each with a partial sum of dweight; it is stored last of all."""
    cdef Blocks blocks = cut_blocks(rows, job.n)
    cdef Py_ssize_t sums = 0 if blocks.count <= 1 else 1 if blocks.parts == 1 else blocks.group
    cdef double* memory = NULL
    cdef fp_state state
    if dweight != NULL:
        memory = <double*>PyMem_RawCalloc(job.n, (1 + sums) * sizeof(double))
        if memory == NULL:
            raise MemoryError(f"dweight needs {(1 + sums) * 8} bytes * {job.n} of scratch")
        blocks.dweight = memory
        blocks.sums = memory + (job.n if sums else 0)
    try:
        if rows * job.n < min(RELEASE_GIL, parallel_from):
            run_blocks(job, &blocks, 0, blocks.count, 0, blocks.size)
        else:
            run_pieces(job, &blocks)
        if dweight != NULL:
            state = default_fp_state()
            kernels.store_dweight(dweight, memory, job.n, accumulate)
            restore_fp_state(state)
    finally:
        PyMem_RawFree(memory)
    return 0


cdef inline Blocks cut_blocks(Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    cdef Blocks blocks
    blocks.rows = rows
    blocks.size = max(LEAST_BLOCK, (rows + MOST_BLOCKS - 1) // MOST_BLOCKS)
    blocks.count = (rows + blocks.size - 1) // blocks.size
    blocks.parts = 1
    if rows * n >= parallel_from and blocks.count > 1:
        blocks.parts = <int>min(<Py_ssize_t>thread_count(), blocks.count)
    blocks.group = max(1, piece_rows(n) // blocks.size // blocks.parts) * blocks.parts
    blocks.group = min(blocks.group, blocks.count)
    blocks.dweight = blocks.sums = NULL
    return blocks


cdef int run_pieces(const Job* job, const Blocks* blocks) except -1:
    """All blocks, group by group, and in pieces of their rows where a group is too much at once."""
    cdef Py_ssize_t first, row, count = piece_rows(job.n) // max(1, blocks.group)
    count = min(blocks.size, max(GROUP, count // GROUP * GROUP))
    for first in range(0, blocks.count, blocks.group):
        for row in range(0, blocks.size, count):
            if first + row > 0:
                PyErr_CheckSignals()
            with nogil:
                run_blocks(job, blocks, first, min(blocks.count, first + blocks.group), row, count)
    return 0


cdef void run_blocks(const Job* job, const Blocks* blocks, Py_ssize_t first, Py_ssize_t last,
                     Py_ssize_t row, Py_ssize_t count) noexcept nogil:
    """Rows [row, row + count) of the blocks [first, last); a block that ends joins dweight."""
    cdef Py_ssize_t b, n = job.n if blocks.sums != NULL else 0
    cdef bint ends = blocks.sums != blocks.dweight and row + count >= blocks.size
    cdef int parts = blocks.parts
    if parts == 1:
        for b in range(first, last):
            run_block(job, blocks, b, row, count, blocks.sums)
            if ends:
                add_sum(job, blocks, blocks.sums)
        return
    for b in prange(first, last, num_threads=parts, schedule="dynamic"):
        run_block(job, blocks, b, row, count, blocks.sums + (b - first) * n)
    if ends:
        for b in range(last - first):
            add_sum(job, blocks, blocks.sums + b * n)


cdef void run_block(const Job* job, const Blocks* blocks, Py_ssize_t b, Py_ssize_t row,
                    Py_ssize_t count, double* sums) noexcept nogil:
    cdef Py_ssize_t start = b * blocks.size
    cdef Py_ssize_t last = min(blocks.rows, start + min(blocks.size, row + count))
    cdef fp_state state = default_fp_state()
    if row == 0 and sums != blocks.dweight:
        memset(sums, 0, job.n * sizeof(double))
    kernels.backward(job, start + row, last, sums)
    restore_fp_state(state)


cdef inline void add_sum(const Job* job, const Blocks* blocks, const double* sums) noexcept nogil:
    cdef fp_state state = default_fp_state()
    kernels.add_block(blocks.dweight, sums, job.n)
    restore_fp_state(state)
