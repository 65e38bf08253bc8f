/* A C program that embeds Python only to import fastrms: caller CALLS FILE. It calls the functions
 * of fastrms.h without the GIL, CALLS times each, with random sizes, strides, alignments and
 * options, on memory that ends where the rows end, so that AddressSanitizer sees any access beyond.
 * Strides, the pool and the contents of scratch must change no bit, and gaps between rows must stay
 * as they are. Then it writes a norm and its gradient of fixed arrays to FILE, for gate `callers`.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <fastrms.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef MISSING
#define MISSING 0 /* bytes that scratch is too small by: a planted fault */
#endif

static uint64_t seed = 20191016;

static long below(long limit) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (long)((seed >> 33) % (uint64_t)limit);
}

static float value(void) {
    const float special[] = {0, -0.0f, 1e-45f, 3e38f, -3e38f, 1e-20f, 1e20f, 1};
    return below(400) ? (float)(below(2001) - 1000) / 512 : special[below(8)];
}

static void fail(const char *what, long rows, long n) {
    fprintf(stderr, "caller: %s, %ld x %ld\n", what, rows, n);
    exit(1);
}

/* Rows in memory of their own: `first` is the first row, and the gaps between rows hold GAP. */
typedef struct {
    float *memory, *first;
    long rows, n, stride, size;
} Matrix;
static const float GAP = 12345;

static Matrix matrix(long rows, long n, long gap, int backwards) {
    Matrix m = {NULL, NULL, rows, n, n + gap, rows ? (rows - 1) * (n + gap) + n : 0};
    m.memory = malloc(m.size * sizeof(float));
    for (long i = 0; i < m.size; i++) m.memory[i] = i % m.stride < n ? value() : GAP;
    m.first = m.memory;
    if (backwards && rows) {
        m.first += (rows - 1) * m.stride;
        m.stride = -m.stride;
    }
    return m;
}

static Matrix random_matrix(long rows, long n) {
    return matrix(rows, n, below(2) ? 0 : below(20), below(4) == 0);
}

/* Return a copy without gaps between the rows. */
static Matrix plain(Matrix m) {
    Matrix copy = matrix(m.rows, m.n, 0, 0);
    for (long row = 0; row < m.rows; row++)
        memcpy(copy.first + row * m.n, m.first + row * m.stride, m.n * sizeof(float));
    return copy;
}

/* Fail unless `m` holds the rows of `wanted` and its gaps still hold GAP. Free both. */
static void check(const char *what, Matrix m, Matrix wanted) {
    const long step = labs(m.stride);
    for (long row = 0; row < m.rows; row++)
        if (memcmp(m.first + row * m.stride, wanted.first + row * m.n, m.n * sizeof(float)))
            fail(what, m.rows, m.n);
    for (long i = 0; i < m.size; i++)
        if (i % step >= m.n && m.memory[i] != GAP) fail("a gap between rows", m.rows, m.n);
    free(m.memory);
    free(wanted.memory);
}

static void call(int error) {
    if (error != FASTRMS_OK) fail("an error code", error, 0);
}

static void forward(Matrix x, Matrix weight, double eps, double offset, int threads) {
    const long rows = x.rows, n = x.n;
    const int accumulate = (int)below(2);
    Matrix out = random_matrix(rows, n), wanted = plain(out), residual = random_matrix(rows, n);
    Matrix stream = plain(residual), straight = plain(x);
    call(fastrms_api->rms_norm(x.first, x.stride, weight.first, out.first, out.stride, rows, n, eps,
                               offset, accumulate, threads));
    call(fastrms_api->rms_norm(straight.first, n, weight.first, wanted.first, n, rows, n, eps,
                               offset, accumulate, 1));
    check("rms_norm", out, wanted);
    out = random_matrix(rows, n);
    wanted = plain(out);
    call(fastrms_api->add_rms_norm(x.first, x.stride, residual.first, residual.stride, weight.first,
                                   out.first, out.stride, rows, n, eps, offset, threads));
    call(fastrms_api->add_rms_norm(straight.first, n, stream.first, n, weight.first, wanted.first,
                                   n, rows, n, eps, offset, 1));
    check("add_rms_norm", out, wanted);
    call(fastrms_api->residual_add(x.first, x.stride, residual.first, residual.stride, rows, n,
                                   offset, threads));
    call(fastrms_api->residual_add(straight.first, n, stream.first, n, rows, n, offset, 1));
    check("residual_add", residual, stream);
    free(straight.memory);
}

static void backward(Matrix x, Matrix weight, double eps, double offset, int threads) {
    const long rows = x.rows, n = x.n, size = n + below(3) * n;
    const int accumulate = (int)below(4), split = (int)below(2);
    Matrix dy = random_matrix(rows, n), dx = random_matrix(rows, n), wanted = plain(dx);
    Matrix total = matrix(weight.rows, n, 0, 0), sum = plain(total);
    Matrix gradient = plain(dy), straight = plain(x);
    double *sums = malloc((2 * rows + 1) * sizeof(double)), *products = sums + rows;
    for (int turn = 0; turn < 2; turn++) {
        Matrix a = turn ? gradient : dy, b = turn ? straight : x;
        Matrix to = turn ? wanted : dx;
        float *dweight = !weight.rows ? NULL : turn ? sum.first : total.first;
        const int here = turn ? 1 : threads;
        const size_t bytes = weight.rows ? fastrms_api->scratch_bytes(rows, n, here) : 0;
        void *scratch = bytes ? malloc(bytes - MISSING) : NULL;
        if (bytes) memset(scratch, turn ? 0 : 0xff, bytes - MISSING);
        if (!split) {
            call(fastrms_api->rms_norm_backward(
                a.first, a.stride, b.first, b.stride, weight.first, to.first, to.stride,
                dweight, scratch, rows, n, eps, offset, accumulate, here));
        } else {
            call(fastrms_api->sum_squares(b.first, b.stride, sums, rows, n, here));
            call(fastrms_api->sum_products(a.first, a.stride, b.first, b.stride, weight.first,
                                           products, rows, n, offset, here));
            call(fastrms_api->rms_scale_backward(
                a.first, a.stride, b.first, b.stride, sums, products, weight.first, to.first,
                to.stride, dweight, scratch, rows, n, size, eps, offset, accumulate, here));
        }
        free(scratch);
    }
    check("dx", dx, wanted);
    check("dweight", total, sum);
    free(sums);
    free(dy.memory);
    free(gradient.memory);
    free(straight.memory);
}

static void random_calls(void) {
    const long edges[] = {1, 4, 8, 16, 31, 64, 128, 300, 1100};
    const double eps[] = {0, 1e-5, 1e-30, 1e30};
    const long n = below(20) ? edges[below(9)] + below(3) : 0;
    const long rows = below(30) ? 1 + below(below(10) ? 12 : 130) : 0;
    Matrix x = random_matrix(rows, n), weight = matrix(below(4) ? 1 : 0, n, 0, 0);
    if (!weight.rows || !n) { /* NULL: no weight */
        free(weight.memory);
        weight.memory = weight.first = NULL;
        weight.rows = weight.size = 0;
    }
    forward(x, weight, eps[below(4)], (double)below(3), (int)below(2));
    backward(x, weight, eps[below(4)], (double)below(3), (int)below(2));
    free(weight.memory);
    free(x.memory);
}

/* Write x, dy, weight, y, dx and dweight to a file: (37, 576), or (576,) for the weights. */
static void fixed_call(const char *path) {
    enum { ROWS = 37, N = 576 };
    static float x[ROWS * N], dy[ROWS * N], y[ROWS * N], dx[ROWS * N], weight[N], dweight[N];
    void *scratch = malloc(fastrms_api->scratch_bytes(ROWS, N, 0));
    FILE *file = fopen(path, "wb");
    for (int i = 0; i < ROWS * N; i++) x[i] = value(), dy[i] = value();
    for (int i = 0; i < N; i++) weight[i] = value();
    call(fastrms_api->rms_norm(x, N, weight, y, N, ROWS, N, 1e-5, 0, 0, 0));
    call(fastrms_api->rms_norm_backward(dy, N, x, N, weight, dx, N, dweight, scratch, ROWS, N, 1e-5,
                                        0, 0, 0));
    free(scratch);
    if (!file) fail("cannot write", 0, 0);
    fwrite(x, sizeof x, 1, file), fwrite(dy, sizeof dy, 1, file);
    fwrite(weight, sizeof weight, 1, file), fwrite(y, sizeof y, 1, file);
    fwrite(dx, sizeof dx, 1, file), fwrite(dweight, sizeof dweight, 1, file);
    fclose(file);
}

int main(int count, char **words) {
    if (count != 3) return 2;
    Py_Initialize();
    if (import_fastrms() < 0 || PyRun_SimpleString("import fastrms._core as core\n"
                                                   "core.set_parallel_from(200)\n"
                                                   "core.set_num_threads(2)\n")) {
        PyErr_Print();
        return 1;
    }
    PyThreadState *state = PyEval_SaveThread();
    for (long k = atol(words[1]); k > 0; k--) random_calls();
    fixed_call(words[2]);
    PyEval_RestoreThread(state);
    printf("%s random calls of each function from C: no bit differs\n", words[1]);
    return Py_FinalizeEx() < 0;
}
