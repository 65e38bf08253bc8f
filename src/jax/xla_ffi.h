/* The part of XLA's foreign function interface that a handler on the CPU uses: the layouts of
 * xla/ffi/api/c_api.h, version 0.1, of jaxlib 0.5.0, the first with jax.ffi. Newer runtimes accept it
 * and only append fields; an older runtime rejects a newer version.
 *
 * Declared here, so that a build needs no jaxlib, whose header is 725 lines under another licence.
 * tests/test_jax_ffi.py compares it with the installed jaxlib's.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum {
    XLA_MAJOR = 0,
    XLA_MINOR = 1,
    XLA_METADATA = 1, /* type of an extension */
    XLA_BUFFER = 1,   /* type of an argument or result */
    XLA_SCALAR = 3,   /* type of an attribute */
    XLA_F16 = 10,
    XLA_F32 = 11,
    XLA_F64 = 12,
    XLA_BF16 = 16,
    XLA_EXECUTE = 3, /* stage */
    XLA_INVALID_ARGUMENT = 3,
    XLA_RESOURCE_EXHAUSTED = 8
};

typedef struct xla_extension {
    size_t size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct {
    size_t size;
    xla_extension *extensions;
    int major, minor; /* OUT */
} xla_version;

typedef struct {
    size_t size;
    xla_version version;
    uint32_t traits; /* OUT */
} xla_metadata;

typedef struct {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct xla_error xla_error;

typedef struct {
    size_t size;
    xla_extension *extensions;
    const char *message;
    int code;
} xla_error_arguments;

typedef struct {
    size_t size;
    xla_extension *extensions;
    xla_version version;
    const void *internal;
    xla_error *(*create_error)(xla_error_arguments *arguments);
} xla_api;

typedef struct {
    size_t size;
    xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims; /* (rank,) */
} xla_buffer;

typedef struct {
    const char *text;
    size_t length;
} xla_span;

typedef struct {
    int dtype;
    void *value;
} xla_scalar;

typedef struct { /* arguments, or results */
    size_t size;
    xla_extension *extensions;
    int64_t count;
    int *types;    /* (count,) */
    void **values; /* (count,) */
} xla_buffers;

typedef struct {
    size_t size;
    xla_extension *extensions;
    int64_t count;
    int *types;       /* (count,) */
    xla_span **names; /* (count,) */
    void **values;    /* (count,) */
} xla_attributes;

typedef struct {
    size_t size;
    xla_extension *extensions;
    const xla_api *api;
    void *context;
    int stage;
    xla_buffers arguments, results;
    xla_attributes attributes;
} xla_frame;
