/* What the bad plugins share: a small scheme that keeps every rule (8-bit codes, one f32 scale a row). A bad plugin
 * defines BAD_NAME and the one macro that breaks its rule, and includes this file; see README.md for the list.
 *
 *   BAD_NAME                       "crashes": the scheme org.example.crashes/1 of the plugin org.example.crashes
 *   BAD_ENCODE(job, rows, slab, parts)  statements at the start of encode()
 *   BAD_DECODE(tensor, rows)       statements at the start of decode()
 *   BAD_SCALE_ROWS(rows, r)        rows from which the scale of row r is made, as a kbit_rows counted from the slab's first
 *   BAD_ABI_MINOR                  the ABI that the plugin claims
 *   BAD_SCHEME                     changes to the descriptor, as initialisers that come last
 *   BAD_ENTRY                      name of the entry function */
#ifndef BAD_COMMON_H
#define BAD_COMMON_H
#include "kbit_plugin.h"

#include <stdlib.h>
#include <string.h>

#ifndef BAD_ENCODE
#define BAD_ENCODE(job, rows, slab, parts)
#endif
#ifndef BAD_DECODE
#define BAD_DECODE(tensor, rows)
#endif
#ifndef BAD_SCALE_ROWS
#define BAD_SCALE_ROWS(rows, r) one_row(r)
#endif
#ifndef BAD_ABI_MINOR
#define BAD_ABI_MINOR KBIT_ABI_MINOR
#endif
#ifndef BAD_SCHEME
#define BAD_SCHEME .decode = decode
#endif
#ifndef BAD_ENTRY
#define BAD_ENTRY kbit_plugin_entry_v1
#endif

#define S(text) {(text), sizeof(text) - 1}

struct kbit_state {
    int opened;
};

struct kbit_job {
    int begun;
};

struct kbit_tensor {
    uint64_t cols;
    const uint8_t *codes, *scales;
};

static kbit_status fail(kbit_err *err, kbit_status status, const char *text) {
    if (err && err->text) {
        err->len = strlen(text) < err->cap ? strlen(text) : err->cap;
        memcpy(err->text, text, err->len);
    }
    return status;
}

static inline kbit_rows one_row(uint64_t r) {
    kbit_rows rows;
    rows.first = r, rows.count = 1;
    return rows;
}

static kbit_status open_scheme(const kbit_host *host, const kbit_value *const *values, size_t n, kbit_state **out, kbit_err *err) {
    (void)host, (void)values, (void)n;
    *out = calloc(1, sizeof **out);
    return *out ? KBIT_OK : fail(err, KBIT_EINTERNAL, "no memory");
}

static void close_scheme(kbit_state *state) { free(state); }

static kbit_status plan(const kbit_state *state, const kbit_matrix *shape, kbit_plan *plan, kbit_err *err) {
    static const kbit_str codes = S("codes"), scale = S("scale");
    (void)state;
    if (shape->cols > UINT64_MAX / 16) return fail(err, KBIT_EUNSUPPORTED, "too many columns");
    plan->n_parts = 2;
    plan->row_group = 1;
    plan->parts[0].name = codes, plan->parts[0].dtype = KBIT_I8, plan->parts[0].group_bytes = shape->cols;
    plan->parts[1].name = scale, plan->parts[1].dtype = KBIT_F32, plan->parts[1].group_bytes = 4;
    return KBIT_OK;
}

static kbit_status begin(const kbit_state *state, const kbit_matrix *matrix, const kbit_aux *aux, kbit_job **out, kbit_err *err) {
    (void)state, (void)matrix, (void)aux;
    *out = calloc(1, sizeof **out);
    return *out ? KBIT_OK : fail(err, KBIT_EINTERNAL, "no memory");
}

static void end(kbit_job *job) { free(job); }

static kbit_status encode(const kbit_job *job, kbit_rows rows, const kbit_matrix *slab, const kbit_buf *parts, kbit_buf scratch, kbit_err *err) {
    uint64_t r, c, i;
    (void)job, (void)scratch;
    BAD_ENCODE(job, rows, slab, parts)
    for (r = 0; r < rows.count; r++) {
        const float *row = slab->data + r * slab->row_stride;
        const kbit_rows seen = BAD_SCALE_ROWS(rows, r);
        float largest = 0, scale;
        for (i = seen.first; i < seen.first + seen.count; i++)
            for (c = 0; c < slab->cols; c++) {
                float w = slab->data[i * slab->row_stride + c], m = w < 0 ? -w : w;
                if (!(m <= 3.4028235e38f)) return fail(err, KBIT_ENUMERIC, "a weight is not finite");
                largest = m > largest ? m : largest;
            }
        scale = largest / 127;
        memcpy((char *)parts[1].ptr + 4 * r, &scale, 4);
        for (c = 0; c < slab->cols; c++) {
            float steps = scale > 0 ? row[c] / scale : 0;
            int code = (int)(steps < 0 ? steps - 0.5f : steps + 0.5f);
            ((signed char *)parts[0].ptr)[r * slab->cols + c] = (signed char)(code > 127 ? 127 : code < -127 ? -127 : code);
        }
    }
    return KBIT_OK;
}

static kbit_status open_tensor(const kbit_state *state, const kbit_matrix *shape, const kbit_cbuf *heads, const kbit_cbuf *parts,
                               kbit_tensor **out, kbit_err *err) {
    (void)state, (void)heads;
    *out = calloc(1, sizeof **out);
    if (!*out) return fail(err, KBIT_EINTERNAL, "no memory");
    (*out)->cols = shape->cols;
    (*out)->codes = parts[0].ptr;
    (*out)->scales = parts[1].ptr;
    return KBIT_OK;
}

static void close_tensor(kbit_tensor *tensor) { free(tensor); }

static inline kbit_status decode(const kbit_tensor *tensor, kbit_rows rows, float *out, uint64_t out_stride, kbit_buf scratch, kbit_err *err) {
    uint64_t r, c;
    (void)scratch, (void)err;
    BAD_DECODE(tensor, rows)
    for (r = 0; r < rows.count; r++) {
        float scale;
        memcpy(&scale, tensor->scales + 4 * (rows.first + r), 4);
        for (c = 0; c < tensor->cols; c++)
            out[r * out_stride + c] = (float)(signed char)tensor->codes[(rows.first + r) * tensor->cols + c] * scale;
    }
    return KBIT_OK;
}

static const kbit_scheme scheme = {
    .size = sizeof(kbit_scheme),
    .id = S("org.example." BAD_NAME "/1"),
    .title = S("Bad: " BAD_NAME),
    .doc = S("Breaks one rule, for tests; see its source."),
    .ggml_type = -1,
    .open = open_scheme,
    .close = close_scheme,
    .plan = plan,
    .begin = begin,
    .encode = encode,
    .end = end,
    .open_tensor = open_tensor,
    .close_tensor = close_tensor,
    BAD_SCHEME
};
static const kbit_scheme *const schemes[] = {&scheme};

static const kbit_plugin plugin = {
    .size = sizeof(kbit_plugin),
    .abi_minor = BAD_ABI_MINOR,
    .id = S("org.example." BAD_NAME),
    .version = S("1.0.0"),
    .vendor = S("kbit's tests"),
    .license = S("MIT OR Apache-2.0"),
    .schemes = schemes,
    .n_schemes = 1,
};

KBIT_EXPORT const kbit_plugin *BAD_ENTRY(const kbit_host *host, kbit_err *err);
KBIT_EXPORT const kbit_plugin *BAD_ENTRY(const kbit_host *host, kbit_err *err) {
    (void)host, (void)err;
    return &plugin;
}
#endif
