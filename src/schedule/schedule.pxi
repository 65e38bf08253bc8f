# Which rows run where, and when. A call is cut into blocks of rows; a thread takes a block at a
# time, and between pieces of several blocks the caller checks for Ctrl-C. With dweight each block
# has a partial sum of it. Then the row count alone fixes the blocks, and their sums are added in
# order, so the number of threads changes no bit.

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.string cimport memset

from kernels.job cimport GROUP, GradientSums, Job, Table, rows_kernel
from machine.fp_state cimport default_fp_state, fp_state, restore_fp_state
from schedule.pool cimport pool_run

# Elements in a piece, or one block for each thread if that is more.
cdef Py_ssize_t PIECE = 1 << 24
cdef Py_ssize_t MOST_BLOCKS = 64    # blocks with dweight: each needs a sum of n doubles
cdef Py_ssize_t LEAST_BLOCK = 32    # rows in one of these, at least
# Without dweight, each thread's rows are this many blocks: a fast thread takes some from a slow
# one.
cdef int BLOCKS_A_THREAD = 4


cdef struct Plan:
    const Table* table
    rows_kernel kernel
    const Job* job
    Py_ssize_t size         # rows in a block
    Py_ssize_t blocks
    Py_ssize_t piece        # blocks between two checks for Ctrl-C
    Py_ssize_t first        # block of the piece that several threads run
    int threads
    Py_ssize_t width        # of a sum: whole cache lines, and room for a vector past n
    # NULL without dweight, of `width` elements a row.
    double* dweight         # (n,) IN-OUT: the sum of all blocks
    double* sums            # (slots, n), one for each block at work; dweight if there is but one
    float* groups           # (slots, n)
    # To stage rows in: so many bytes for each thread.
    char* staging
    Py_ssize_t staging_bytes


cdef inline Plan make_plan(const Table* table, rows_kernel kernel, const Job* job,
                           bint with_dweight, int threads) noexcept nogil:
    """Cut a job into blocks and pieces."""
    cdef Plan plan
    cdef Py_ssize_t rows = job.rows, parts = threads
    cdef Py_ssize_t piece_rows = max(1, PIECE // max(job.n, 64))
    if not is_brief(rows * job.n):
        parts *= BLOCKS_A_THREAD
    if with_dweight:
        plan.size = max(LEAST_BLOCK, (rows + MOST_BLOCKS - 1) // MOST_BLOCKS)
    elif threads == 1:
        plan.size = piece_rows
    else:
        plan.size = max(1, min((rows + parts - 1) // parts, piece_rows // parts))
    plan.table, plan.kernel, plan.job, plan.first = table, kernel, job, 0
    plan.blocks = (rows + plan.size - 1) // plan.size
    plan.threads = <int>max(1, min(<Py_ssize_t>threads, plan.blocks))
    plan.piece = max(1, piece_rows // plan.size // plan.threads) * plan.threads
    plan.width = whole_lines(job.n + 7)     # a vector of doubles may begin at column n - 1
    plan.dweight = plan.sums = NULL
    plan.groups = NULL
    plan.staging, plan.staging_bytes = NULL, staging_bytes(job)
    return plan


cdef inline Py_ssize_t scratch_bytes(const Plan* plan, Py_ssize_t slots) noexcept nogil:
    """Return the bytes of scratch that dweight needs for each element of a row."""
    cdef Py_ssize_t sums = 0 if plan.blocks <= 1 else slots
    return (1 + sums) * sizeof(double) + slots * sizeof(float)


cdef inline void place_sums(Plan* plan, double* scratch, Py_ssize_t slots) noexcept nogil:
    """Put dweight, zeroed, and the sums of the blocks at work into scratch."""
    plan.dweight = plan.sums = scratch
    plan.groups = <float*>(scratch + plan.width)
    if plan.blocks > 1:
        plan.sums = scratch + plan.width
        plan.groups = <float*>(plan.sums + plan.width * slots)
    memset(plan.dweight, 0, plan.width * sizeof(double))


cdef inline void run_block(const Plan* plan, Py_ssize_t block, Py_ssize_t slot,
                           int thread) noexcept nogil:
    """Run one block on one of the call's threads, and sum its dweight into a slot.

    Its block and thread do not change a row of y or dx: kernels compute it from its row alone.
    """
    cdef char* staging = plan.staging + thread * plan.staging_bytes
    cdef Py_ssize_t first = block * plan.size, last = min(plan.job.rows, first + plan.size)
    cdef GradientSums sums
    cdef fp_state state = default_fp_state()
    if plan.dweight != NULL:
        sums.dweight = plan.sums + slot * plan.width
        sums.group = plan.groups + slot * plan.width
        sums.begins = sums.ends = True
        if plan.sums != plan.dweight:
            memset(sums.dweight, 0, plan.width * sizeof(double))
    run_rows(plan.table, plan.kernel, plan.job, first, last,
             &sums if plan.dweight != NULL else NULL, staging)
    restore_fp_state(state)


cdef void run_item(const void* call, long item, int thread) noexcept nogil:
    """Run block number `item` of a piece."""
    cdef const Plan* plan = <const Plan*>call
    run_block(plan, plan.first + item, item, thread)


cdef void run_blocks(Plan* plan, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Run blocks [first, last), on this thread or on several."""
    cdef Py_ssize_t block
    if plan.threads > 1:
        plan.first = first
        pool_run(run_item, plan, last - first, plan.threads, is_brief(plan.job.rows * plan.job.n))
        add_sums(plan, last - first)
        return
    for block in range(first, last):
        run_block(plan, block, 0, 0)
        add_sums(plan, 1)


cdef inline void add_sums(const Plan* plan, Py_ssize_t slots) noexcept nogil:
    """Add the sums of blocks to dweight, in order."""
    cdef Py_ssize_t slot
    cdef fp_state state
    if plan.sums != plan.dweight:
        state = default_fp_state()
        for slot in range(slots):
            plan.table.add_block(plan.dweight, plan.sums + slot * plan.width, plan.job.n)
        restore_fp_state(state)


cdef inline void store_sums(const Plan* plan, void* dweight, bint accumulate) noexcept nogil:
    """Store dweight, or add it to the array."""
    cdef fp_state state
    if plan.dweight != NULL:
        state = default_fp_state()
        plan.table.store_dweight(dweight, plan.dweight, plan.job.n, accumulate)
        restore_fp_state(state)


cdef int run_plan(Plan* plan) except -1:
    """Run all blocks, piece by piece, with the GIL released."""
    cdef Py_ssize_t first
    for first in range(0, plan.blocks, plan.piece):
        if first > 0:
            PyErr_CheckSignals()
        with nogil:
            run_blocks(plan, first, min(plan.blocks, first + plan.piece))
    return 0


cdef inline bint start_job(const Table* table, rows_kernel kernel, Job* job, void* dweight,
                           bint accumulate) noexcept nogil:
    """Start a job, and finish it if it is too small for blocks. Return whether it is finished."""
    cdef Py_ssize_t elements = job.rows * job.n
    cdef bint done = False
    cdef fp_state state = default_fp_state()
    table.start(job)
    if job.dx == NULL and dweight == NULL:
        done = elements < min(RELEASE_GIL, parallel_from) and job.axes == NULL
        if done:
            kernel(job, 0, job.rows, NULL)
    elif (table.backward_few != NULL and 0 < job.rows <= GROUP and not accumulate
            and job.squares == NULL and job.axes == NULL
            and (dweight != NULL or elements < RELEASE_GIL)):
        done = table.backward_few(job, dweight)
    restore_fp_state(state)
    return done


cdef inline int run(const Table* table, rows_kernel kernel, Job* job, void* dweight,
                    bint accumulate) except -1:
    """Run a kernel of a table over all rows, from Python. dweight (n,) OUT, IN-OUT to accumulate,
    or NULL.

    The GIL is released if that is worth its cost, and Ctrl-C is checked for.
    """
    if job.rows * job.n >= RELEASE_GIL:
        with nogil:
            if start_job(table, kernel, job, dweight, accumulate):
                return 0
    elif start_job(table, kernel, job, dweight, accumulate):
        return 0
    return run_in_blocks(table, kernel, job, dweight, accumulate)


cdef int run_in_blocks(const Table* table, rows_kernel kernel, const Job* job, void* dweight,
                       bint accumulate) except -1:
    """Cut a started job into blocks and run them, with scratch of its own."""
    cdef Plan plan = make_plan(table, kernel, job, dweight != NULL,
                               threads_for(job.rows * job.n))
    cdef Py_ssize_t slots = 0, sums = 0, bytes = plan.threads * plan.staging_bytes
    cdef char* scratch = NULL
    if dweight != NULL:
        slots = 1 if plan.threads == 1 else min(plan.piece, plan.blocks)
        sums = plan.width * scratch_bytes(&plan, slots)
    bytes += sums
    if bytes > 0 or dweight != NULL:    # of no columns too: memset takes no NULL
        scratch = <char*>PyMem_RawMalloc(bytes + 64)
        if scratch == NULL:
            raise MemoryError(f"the call needs {bytes + 64} bytes of scratch")
        plan.staging = scratch + sums + (-<size_t>(scratch + sums) & 63)    # on a cache line
    if dweight != NULL:
        place_sums(&plan, <double*>scratch, slots)
    try:
        if job.rows * job.n < min(RELEASE_GIL, parallel_from):
            run_blocks(&plan, 0, plan.blocks)
        else:
            run_plan(&plan)
        store_sums(&plan, dweight, accumulate)
    finally:
        PyMem_RawFree(scratch)
    return 0


cdef void run_c(const Table* table, rows_kernel kernel, Job* job, void* dweight, bint accumulate,
                double* scratch, char* staging, size_t staging_size, int threads) noexcept nogil:
    """Run a kernel over all rows, from C: in the caller's scratch, without a check for Ctrl-C. What
    there is to stage rows in limits the threads."""
    cdef Plan plan
    if start_job(table, kernel, job, dweight, accumulate):
        return
    plan = make_plan(table, kernel, job, dweight != NULL,
                     1 if threads == 1 else threads_for(job.rows * job.n))
    if plan.staging_bytes > 0:
        plan.staging = staging
        plan.threads = <int>min(<size_t>plan.threads, staging_size // plan.staging_bytes)
    if dweight != NULL:
        place_sums(&plan, scratch, 1 if plan.threads == 1 else plan.blocks)
    run_blocks(&plan, 0, plan.blocks)
    store_sums(&plan, dweight, accumulate)
