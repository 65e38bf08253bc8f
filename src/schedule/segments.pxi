# Rows for a kernel, which takes one row stride for each array. Arrays whose leading axes need more
# are walked segment by segment: rows of the innermost axis.

from kernels.job cimport GROUP, Axis, GradientSums, Job, Table, rows_kernel


cdef Py_ssize_t job_at_row(Job* here, const Job* job, Py_ssize_t row) noexcept nogil:
    """Make a job whose row 0 is this row of a job with axes; return how many rows its segment has.

    A segment costs 20 to 30 ns, with the start of the kernel; a row of 128 some 18 (AMD Zen 3).
    """
    cdef const Axis* axis = job.axes
    cdef Py_ssize_t index, left = axis.length - row % axis.length
    here[0] = job[0]
    if job.squares != NULL:
        here.squares += row
    if job.products != NULL:
        here.products += row
    while row > 0:
        index = row % axis.length
        here.x = <const float*>(<const char*>here.x + index * axis.x)
        here.dy = <const float*>(<const char*>here.dy + index * axis.dy)
        here.y = <float*>(<char*>here.y + index * axis.y)
        here.residual = <float*>(<char*>here.residual + index * axis.residual)
        here.dx = <float*>(<char*>here.dx + index * axis.dx)
        row //= axis.length
        axis += 1
    return left


cdef void run_rows(const Table* table, rows_kernel kernel, const Job* job, Py_ssize_t first,
                   Py_ssize_t last, const GradientSums* sums, char* scratch) noexcept nogil:
    """Run a kernel over rows [first, last), segment by segment if the job has axes.

    `first` begins a group, the last row ends one. A group may span segments: `begins` and `ends`
    say whether a kernel's rows start or finish it. scratch: staging_bytes, used if rows are staged.
    """
    cdef Job here
    cdef GradientSums open
    cdef const GradientSums* open_sums = NULL if sums == NULL else &open
    cdef Py_ssize_t count, begun, row = first
    if job.axes == NULL:
        kernel(job, first, last, sums)
        return
    if sums != NULL:
        open = sums[0]
    while row < last:
        count = min(last - row, job_at_row(&here, job, row))
        if job.staged:
            count = min(count, staged_rows(job))
        if sums != NULL:
            begun = (row - first) % GROUP
            if begun > 0:
                count = min(count, GROUP - begun)
            elif count > GROUP:
                count -= count % GROUP
            open.begins = begun == 0
            open.ends = row + count == last or (begun + count) % GROUP == 0
        if job.staged:
            run_staged(table, kernel, &here, count, open_sums, scratch)
        else:
            kernel(&here, 0, count, open_sums)
        row += count
