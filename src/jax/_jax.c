/* fastrms._jax: the handlers behind fastrms.jax, XLA custom calls for the CPU over fastrms.h. XLA
 * calls them from its own threads, without the GIL. They check their arguments, and take float16,
 * bfloat16, float32 and float64 in any mix.
 *
 *     rms_norm                x, [weight]                     -> y
 *     add_rms_norm            x, residual, [weight]           -> y, total       total is x or residual
 *     rms_norm_backward       dy, x, [weight]                 -> dx, [dweight]
 *     add_rms_norm_backward   dy, total, dtotal, [weight]     -> dx, [dweight]  dx is dtotal
 *
 * total reuses x's buffer, if both have one dtype: residual must survive for the backward pass of the
 * norm before, and XLA would have to copy it. So the kernel gets x as its residual; x + residual is
 * residual + x.
 *
 * All arrays but the weights have x's shape. weight is (..., n): each leading axis, such as one of
 * vmap, is as long as x's, or 1 if all share the weight. dweight has x's leading axes.
 */
#include <Python.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastrms.h"
#include "xla_ffi.h"

typedef enum { NORM, ADD, BACKWARD, ADD_BACKWARD } operation;

static const struct {
    const char *target;
    int inputs;   /* without the weight */
    int outputs;  /* without dweight */
    int gradient;
} TABLE[] = {
    {"fastrms_rms_norm", 1, 1, 0},
    {"fastrms_add_rms_norm", 2, 2, 0},
    {"fastrms_rms_norm_backward", 2, 1, 1},
    {"fastrms_add_rms_norm_backward", 3, 1, 1},
};

typedef struct {
    const xla_buffer *in[4], *out[3];
    const xla_buffer *x, *weight; /* weight is NULL without one */
    fastrms_call first;           /* of the first part */
    int64_t parts;                /* of x, each with a weight and a dweight of its own */
    int single;                   /* all arrays are float32 */
} call;

/* ---- reading a frame: each function returns an error message, or NULL ------------------------- */

/* Return fastrms' number for a dtype, or -1. */
static int kind_of(int dtype) {
    switch (dtype) {
    case XLA_F32: return FASTRMS_FLOAT32;
    case XLA_F64: return FASTRMS_FLOAT64;
    case XLA_F16: return FASTRMS_FLOAT16;
    case XLA_BF16: return FASTRMS_BFLOAT16;
    default: return -1;
    }
}

static int64_t size_of(int kind) {
    return kind == FASTRMS_FLOAT32 ? 4 : kind == FASTRMS_FLOAT64 ? 8 : 2;
}

static const char *read_buffers(const xla_buffers *given, int64_t count, const xla_buffer **found) {
    if (given->count != count) return "another number of arrays";
    for (int64_t i = 0; i < count; i++) {
        found[i] = (const xla_buffer *)given->values[i];
        if (given->types[i] != XLA_BUFFER || kind_of(found[i]->dtype) < 0)
            return "an array that is not float16, bfloat16, float32 or float64";
        if (found[i]->rank < 1) return "an array without axes";
    }
    return NULL;
}

static const char *read_number(const xla_attributes *given, const char *name, double *value) {
    for (int64_t i = 0; i < given->count; i++) {
        const xla_span *key = given->names[i];
        const xla_scalar *scalar = (const xla_scalar *)given->values[i];
        if (key->length != strlen(name) || memcmp(key->text, name, key->length)) continue;
        if (given->types[i] != XLA_SCALAR || scalar->dtype != XLA_F64) break;
        memcpy(value, scalar->value, sizeof *value);
        return NULL;
    }
    return "no float64 eps or weight_offset";
}

static int same_shape(const xla_buffer *a, const xla_buffer *b) {
    return a->rank == b->rank && !memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims);
}

/* Cut x into parts by weight's leading axes. */
static const char *cut(call *c, const xla_buffer *dweight) {
    const xla_buffer *x = c->x, *w = c->weight;
    const char *wrong = "a weight or dweight that does not fit x";
    int64_t axis, weights = 1, leading = w ? w->rank - 1 : 0;
    if (leading >= x->rank) return "a weight with more axes than x";
    if (dweight && dweight->rank != w->rank) return wrong;
    c->parts = c->first.rows = 1;
    c->first.n = x->dims[x->rank - 1];
    if (w && w->dims[leading] != c->first.n) return wrong;
    if (dweight && dweight->dims[leading] != c->first.n) return wrong;
    for (axis = 0; axis < leading; axis++) {
        if (w->dims[axis] != 1 && w->dims[axis] != x->dims[axis]) return wrong;
        if (dweight && dweight->dims[axis] != x->dims[axis]) return wrong;
        c->parts *= x->dims[axis];
        weights *= w->dims[axis];
    }
    for (; axis < x->rank - 1; axis++) c->first.rows *= x->dims[axis];
    if (weights == 1 && !dweight) { /* parts that share a weight are only more rows */
        c->first.rows *= c->parts;
        c->parts = 1;
    }
    return NULL;
}

static fastrms_array array_of(const xla_buffer *buffer) {
    fastrms_array array = {0};
    if (!buffer) return array;
    array.data = buffer->data;
    array.stride = buffer->dims[buffer->rank - 1];
    array.kind = kind_of(buffer->dtype);
    return array;
}

/* Set the first part's arrays. */
static const char *set_arrays(call *c, operation which, const xla_buffer *dweight) {
    const xla_buffer *last = c->out[TABLE[which].outputs - 1];
    int reused = which == ADD_BACKWARD ? 2 : which == ADD && last->data == c->in[1]->data;
    if ((which == ADD || which == ADD_BACKWARD) &&
        (last->data != c->in[reused]->data || last->dtype != c->in[reused]->dtype))
        return "an array that is not aliased to its result";
    c->first.x = array_of(c->in[which == NORM ? 0 : which == ADD ? !reused : 1]);
    if (which == ADD) c->first.residual = array_of(last);
    if (TABLE[which].gradient) c->first.dy = array_of(c->in[0]);
    *(TABLE[which].gradient ? &c->first.dx : &c->first.out) = array_of(c->out[0]);
    c->first.weight = array_of(c->weight);
    c->first.dweight = array_of(dweight);
    c->first.scale = 1;
    c->first.flags = which == ADD_BACKWARD ? FASTRMS_DX : 0;
    return NULL;
}

static const char *read_call(const xla_frame *frame, operation which, call *c) {
    int inputs = TABLE[which].inputs, outputs = TABLE[which].outputs;
    int weighted = frame->arguments.count > inputs, gradient = weighted && TABLE[which].gradient;
    const xla_buffer *dweight;
    const char *wrong = read_buffers(&frame->arguments, inputs + weighted, c->in);
    if (!wrong) wrong = read_buffers(&frame->results, outputs + gradient, c->out);
    if (!wrong) wrong = read_number(&frame->attributes, "eps", &c->first.eps);
    if (!wrong) wrong = read_number(&frame->attributes, "weight_offset", &c->first.weight_offset);
    if (!wrong && frame->stage != XLA_EXECUTE) wrong = "another stage than that of execution";
    if (wrong) return wrong;
    c->single = 1;
    for (int i = 0; i < inputs + weighted; i++) c->single &= c->in[i]->dtype == XLA_F32;
    for (int i = 0; i < outputs + gradient; i++) c->single &= c->out[i]->dtype == XLA_F32;
    c->x = c->in[0];
    c->weight = weighted ? c->in[inputs] : NULL;
    dweight = gradient ? c->out[outputs] : NULL;
    for (int i = 0; i < inputs + outputs; i++)
        if (!same_shape(i < inputs ? c->in[i] : c->out[i - inputs], c->x))
            return "arrays of different shapes";
    wrong = cut(c, dweight);
    return wrong ? wrong : set_arrays(c, which, dweight);
}

/* ---- computing -------------------------------------------------------------------------------- */

/* Return the place of part b's weight: mixed radix over the leading axes, some of which are 1. */
static int64_t weight_of(const call *c, int64_t b) {
    int64_t place = 0, stride = 1;
    for (int64_t axis = c->weight ? c->weight->rank - 2 : -1; axis >= 0; axis--) {
        int64_t length = c->x->dims[axis];
        if (c->weight->dims[axis] != 1) place += b % length * stride;
        stride *= c->weight->dims[axis];
        b /= length;
    }
    return place;
}

static void skip(fastrms_array *array, int64_t elements) {
    if (array->data) array->data = (char *)array->data + elements * size_of(array->kind);
}

/* Run a part in float32: these functions need no scratch forward, and stream large outputs. */
static int run_single(operation which, const fastrms_call *c) {
    ptrdiff_t rows = c->rows, n = c->n;
    if (which == NORM)
        return fastrms_api->rms_norm(c->x.data, n, c->weight.data, c->out.data, n, rows, n, c->eps,
                                     c->weight_offset, 0, 0);
    if (which == ADD)
        return fastrms_api->add_rms_norm(c->x.data, n, c->residual.data, n, c->weight.data,
                                         c->out.data, n, rows, n, c->eps, c->weight_offset, 0);
    return fastrms_api->rms_norm_backward(c->dy.data, n, c->x.data, n, c->weight.data, c->dx.data, n,
                                          c->dweight.data, c->scratch, rows, n, c->eps,
                                          c->weight_offset, c->flags, 0);
}

/* Run one part. It uses as many threads as a Python call would: of two calls at once, one has the pool
 * and the other stays on XLA's thread. */
static int run_part(operation which, const call *c, int64_t b) {
    fastrms_call part = c->first;
    fastrms_array *rows[] = {&part.x, &part.residual, &part.out, &part.dy, &part.dx};
    for (int i = 0; i < 5; i++) skip(rows[i], b * part.rows * part.n);
    skip(&part.weight, weight_of(c, b) * part.n);
    skip(&part.dweight, b * part.n);
    if (c->single) return run_single(which, &part);
    if (which == NORM) return fastrms_api->rms_norm_any(&part);
    if (which == ADD) return fastrms_api->add_rms_norm_any(&part);
    return fastrms_api->rms_norm_backward_any(&part);
}

static xla_error *refuse(const xla_frame *frame, operation which, int code, const char *wrong) {
    char message[160];
    xla_error_arguments arguments = {sizeof arguments, NULL, message, code};
    snprintf(message, sizeof message, "%s: got %s", TABLE[which].target, wrong);
    return frame->api->create_error(&arguments);
}

static xla_error *run(const xla_frame *frame, operation which) {
    call c = {0};
    int error = FASTRMS_OK;
    const char *wrong = read_call(frame, which, &c);
    if (wrong) return refuse(frame, which, XLA_INVALID_ARGUMENT, wrong);
    if (!c.single || c.first.dweight.data) { /* the system backs only what is written */
        c.first.scratch_size = fastrms_api->any_scratch_bytes(c.first.rows, c.first.n, 0);
        c.first.scratch = malloc(c.first.scratch_size);
        if (!c.first.scratch && c.first.scratch_size)
            return refuse(frame, which, XLA_RESOURCE_EXHAUSTED, "no memory for scratch");
    }
    for (int64_t b = 0; b < c.parts && !error; b++) error = run_part(which, &c, b);
    free(c.first.scratch);
    if (error == FASTRMS_BAD_EPS)
        return refuse(frame, which, XLA_INVALID_ARGUMENT, "an eps that is negative or NaN");
    return error ? refuse(frame, which, XLA_INVALID_ARGUMENT, "sizes that are too large") : NULL;
}

/* At registration XLA asks which version a handler was compiled for. */
static xla_error *handle(xla_frame *frame, operation which) {
    if (frame->extensions && frame->extensions->type == XLA_METADATA) {
        xla_metadata *metadata = ((xla_metadata_extension *)frame->extensions)->metadata;
        metadata->version.major = XLA_MAJOR;
        metadata->version.minor = XLA_MINOR;
        metadata->traits = 0;
        return NULL;
    }
    return run(frame, which);
}

static xla_error *handle_norm(xla_frame *frame) { return handle(frame, NORM); }
static xla_error *handle_add(xla_frame *frame) { return handle(frame, ADD); }
static xla_error *handle_backward(xla_frame *frame) { return handle(frame, BACKWARD); }
static xla_error *handle_add_backward(xla_frame *frame) { return handle(frame, ADD_BACKWARD); }

/* ---- the module ------------------------------------------------------------------------------- */

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "fastrms._jax",
    .m_doc = "Targets for jax.ffi.register_ffi_target, by name.", .m_size = -1};

static PyObject *target(xla_error *(*handler)(xla_frame *)) {
    return PyCapsule_New((void *)handler, "xla._CUSTOM_CALL_TARGET", NULL);
}

PyMODINIT_FUNC PyInit__jax(void) {
    PyObject *module, *targets;
    if (import_fastrms() < 0) return NULL;
    module = PyModule_Create(&definition);
    if (!module) return NULL;
#ifdef Py_GIL_DISABLED
    PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    targets = Py_BuildValue("{sNsNsNsN}", TABLE[NORM].target, target(handle_norm),
                            TABLE[ADD].target, target(handle_add),
                            TABLE[BACKWARD].target, target(handle_backward),
                            TABLE[ADD_BACKWARD].target, target(handle_add_backward));
    if (PyModule_AddObjectRef(module, "targets", targets) < 0) Py_CLEAR(module);
    Py_XDECREF(targets);
    return module;
}
