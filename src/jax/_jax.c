/* fastrms._jax: the handlers behind fastrms.jax, XLA custom calls for the CPU over fastrms.h. XLA
 * calls them from its own threads, without the GIL. They check their arguments, and take float32
 * alone.
 *
 *     rms_norm                x, [weight]                     -> y
 *     add_rms_norm            x, residual, [weight]           -> y, total       total is x
 *     rms_norm_backward       dy, x, [weight]                 -> dx, [dweight]
 *     add_rms_norm_backward   dy, total, dtotal, [weight]     -> dx, [dweight]  dx is dtotal
 *
 * total reuses x's buffer: residual must survive for the backward pass of the norm before, and XLA
 * would have to copy it. So the kernel gets x as its residual; x + residual is residual + x.
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

typedef enum { NORM, ADD, BACKWARD, ADD_BACKWARD, OPERATIONS } operation;

static const struct {
    const char *target;
    int inputs;   /* without the weight */
    int outputs;  /* without dweight */
    int in_place; /* the input that output `outputs - 1` is, or -1 */
    int gradient;
} TABLE[OPERATIONS] = {
    {"fastrms_rms_norm", 1, 1, -1, 0},
    {"fastrms_add_rms_norm", 2, 2, 0, 0},
    {"fastrms_rms_norm_backward", 2, 1, -1, 1},
    {"fastrms_add_rms_norm_backward", 3, 1, 2, 1},
};

typedef struct {
    float *in[3], *out[2];
    const xla_buffer *x, *weight; /* weight is NULL without one */
    float *dweight;
    double eps, weight_offset;
    int64_t parts;   /* of x, each with a weight and a dweight of its own */
    int64_t rows, n; /* of a part */
} call;

/* ---- reading a frame: each function returns an error message, or NULL ------------------------- */

static const char *read_buffers(const xla_buffers *given, int64_t count, const xla_buffer **found) {
    if (given->count != count) return "another number of arrays";
    for (int64_t i = 0; i < count; i++) {
        found[i] = (const xla_buffer *)given->values[i];
        if (given->types[i] != XLA_BUFFER || found[i]->dtype != XLA_F32)
            return "an array that is not float32";
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
    int64_t axis, leading = w ? w->rank - 1 : 0;
    if (leading >= x->rank) return "a weight with more axes than x";
    c->parts = c->rows = 1;
    c->n = x->dims[x->rank - 1];
    for (axis = 0; axis < leading; axis++) {
        if (w->dims[axis] != 1 && w->dims[axis] != x->dims[axis]) break;
        if (dweight && (dweight->rank != w->rank || dweight->dims[axis] != x->dims[axis])) break;
        c->parts *= x->dims[axis];
    }
    if (axis < leading || (w && w->dims[leading] != c->n) ||
        (dweight && (dweight->rank != w->rank || dweight->dims[leading] != c->n)))
        return "a weight or dweight that does not fit x";
    for (; axis < x->rank - 1; axis++) c->rows *= x->dims[axis];
    return NULL;
}

static const char *read_call(const xla_frame *frame, operation which, call *c) {
    const xla_buffer *in[4], *out[3];
    int inputs = TABLE[which].inputs, outputs = TABLE[which].outputs, shared = TABLE[which].in_place;
    int weighted = frame->arguments.count > inputs, gradient = TABLE[which].gradient;
    const char *wrong = read_buffers(&frame->arguments, inputs + weighted, in);
    if (!wrong) wrong = read_buffers(&frame->results, outputs + (gradient && weighted), out);
    if (!wrong) wrong = read_number(&frame->attributes, "eps", &c->eps);
    if (!wrong) wrong = read_number(&frame->attributes, "weight_offset", &c->weight_offset);
    if (!wrong && frame->stage != XLA_EXECUTE) wrong = "another stage than that of execution";
    if (wrong) return wrong;
    c->x = in[0];
    c->weight = weighted ? in[inputs] : NULL;
    c->dweight = gradient && weighted ? (float *)out[outputs]->data : NULL;
    for (int i = 0; i < inputs; i++) {
        if (!same_shape(in[i], c->x)) return "arrays of different shapes";
        c->in[i] = (float *)in[i]->data;
    }
    for (int i = 0; i < outputs; i++) {
        if (!same_shape(out[i], c->x)) return "arrays of different shapes";
        c->out[i] = (float *)out[i]->data;
    }
    if (shared >= 0 && c->in[shared] != c->out[outputs - 1])
        return "an array that is not aliased to its result";
    return cut(c, c->dweight ? out[outputs] : NULL);
}

/* ---- computing -------------------------------------------------------------------------------- */

/* Return the weight of part b: mixed radix over the leading axes, some of which are 1. */
static const float *weight_of(const call *c, int64_t b) {
    int64_t place = 0, stride = 1;
    if (!c->weight) return NULL;
    for (int64_t axis = c->weight->rank - 2; axis >= 0; axis--) {
        int64_t length = c->x->dims[axis];
        if (c->weight->dims[axis] != 1) place += b % length * stride;
        stride *= c->weight->dims[axis];
        b /= length;
    }
    return (const float *)c->weight->data + place * c->n;
}

/* Run one part. It uses as many threads as a Python call would: of two calls at once, one has the pool
 * and the other stays on XLA's thread. */
static int run_part(operation which, const call *c, int64_t b, void *scratch) {
    int64_t n = c->n, rows = c->rows, skip = b * rows * n;
    const float *weight = weight_of(c, b);
    float *in = c->in[0] + skip, *out = c->out[0] + skip;
    float *dweight = c->dweight ? c->dweight + b * n : NULL;
    if (which == NORM)
        return fastrms_api->rms_norm(in, n, weight, out, n, rows, n, c->eps, c->weight_offset, 0, 0);
    if (which == ADD)
        return fastrms_api->add_rms_norm(c->in[1] + skip, n, in, n, weight, out, n, rows, n, c->eps,
                                         c->weight_offset, 0);
    return fastrms_api->rms_norm_backward(in, n, c->in[1] + skip, n, weight, out, n, dweight, scratch,
                                          rows, n, c->eps, c->weight_offset,
                                          which == ADD_BACKWARD ? FASTRMS_DX : 0, 0);
}

static xla_error *refuse(const xla_frame *frame, operation which, int code, const char *wrong) {
    char message[160];
    xla_error_arguments arguments = {sizeof arguments, NULL, message, code};
    snprintf(message, sizeof message, "%s: got %s", TABLE[which].target, wrong);
    return frame->api->create_error(&arguments);
}

static xla_error *run(const xla_frame *frame, operation which) {
    call c = {0};
    void *scratch = NULL;
    int error = FASTRMS_OK;
    const char *wrong = read_call(frame, which, &c);
    if (wrong) return refuse(frame, which, XLA_INVALID_ARGUMENT, wrong);
    if (!c.dweight) { /* parts that share a weight are only more rows */
        int64_t weights = 1;
        for (int64_t axis = 0; c.weight && axis < c.weight->rank - 1; axis++)
            weights *= c.weight->dims[axis];
        if (weights == 1) {
            c.rows *= c.parts;
            c.parts = 1;
        }
    } else { /* at most 800 n bytes; the system backs only those that are written */
        scratch = malloc(fastrms_api->scratch_bytes(c.rows, c.n, 0));
        if (!scratch && c.n > 0)
            return refuse(frame, which, XLA_RESOURCE_EXHAUSTED, "no memory for dweight's sums");
    }
    for (int64_t b = 0; b < c.parts && !error; b++) error = run_part(which, &c, b, scratch);
    free(scratch);
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

PyMODINIT_FUNC PyInit__jax(void) {
    xla_error *(*handlers[OPERATIONS])(xla_frame *) = {handle_norm, handle_add, handle_backward,
                                                       handle_add_backward};
    PyObject *module, *targets;
    if (import_fastrms() < 0) return NULL;
    module = PyModule_Create(&definition);
#ifdef Py_GIL_DISABLED
    if (module) PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    targets = PyDict_New();
    if (!module || !targets || PyModule_AddObjectRef(module, "targets", targets) < 0) goto failed;
    for (int i = 0; i < OPERATIONS; i++) {
        PyObject *target = PyCapsule_New((void *)handlers[i], "xla._CUSTOM_CALL_TARGET", NULL);
        int failed = !target || PyDict_SetItemString(targets, TABLE[i].target, target) < 0;
        Py_XDECREF(target);
        if (failed) goto failed;
    }
    Py_DECREF(targets);
    return module;
failed:
    Py_XDECREF(targets);
    Py_XDECREF(module);
    return NULL;
}
