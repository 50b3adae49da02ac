/* @NAME@: a quantization scheme for kbit.
 *
 * As it stands: each block of weights keeps one f32 scale and 4-bit codes -7..7 (absmax rounding). Make it yours in
 * encode_row() and decode_row(); plan() says how many bytes a row takes. The rules R1 to R9 stand in kbit_plugin.h.
 */
#include "kbit_plugin.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define S(text) {(text), sizeof(text) - 1}

struct kbit_state {
    uint64_t block; /* weights that share a scale */
};

struct kbit_tensor {
    uint64_t block, cols;
    const uint8_t *codes; /* [rows][code_bytes] */
    const uint8_t *scales; /* [rows][blocks] f32 */
};

/* Says why a call fails. `err` may be NULL, and its buffer may be short. */
static kbit_status fail(kbit_err *err, kbit_status status, const char *format, ...) {
    char text[256];
    va_list arguments;
    int length;
    va_start(arguments, format);
    length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (err && err->text && length > 0) {
        size_t bytes = (size_t)length < sizeof text ? (size_t)length : sizeof text - 1;
        err->len = bytes < err->cap ? bytes : err->cap;
        memcpy(err->text, text, err->len);
    }
    return status;
}

static uint64_t code_bytes(uint64_t cols) { return (cols + 1) / 2; }
static uint64_t blocks(uint64_t cols, uint64_t block) { return (cols + block - 1) / block; }
static float magnitude(float x) { return x < 0 ? -x : x; }

/* ---- the scheme itself: edit from here ---- */

/* One row of `cols` weights into its codes (two to a byte) and scales. -1, or the column of a weight that is not finite. */
static int64_t encode_row(const float *row, uint64_t cols, uint64_t block, uint8_t *codes, uint8_t *scales) {
    memset(codes, 0, code_bytes(cols));
    for (uint64_t first = 0; first < cols; first += block) {
        uint64_t last = first + block < cols ? first + block : cols;
        float largest = 0, scale;
        for (uint64_t c = first; c < last; c++) {
            float m = magnitude(row[c]);
            if (!(m <= 3.4028235e38f)) return (int64_t)c; /* also true of NaN */
            if (m > largest) largest = m;
        }
        scale = largest / 7;
        memcpy(scales, &scale, 4);
        scales += 4;
        for (uint64_t c = first; c < last; c++) {
            float steps = scale > 0 ? row[c] / scale : 0;
            int code = (int)(steps < 0 ? steps - 0.5f : steps + 0.5f);
            if (code > 7) code = 7;
            if (code < -7) code = -7;
            codes[c / 2] |= (uint8_t)((code + 8) << (c % 2 * 4));
        }
    }
    return -1;
}

static void decode_row(const uint8_t *codes, const uint8_t *scales, uint64_t cols, uint64_t block, float *out) {
    for (uint64_t c = 0; c < cols; c++) {
        float scale;
        memcpy(&scale, scales + c / block * 4, 4);
        out[c] = (float)((codes[c / 2] >> (c % 2 * 4) & 15) - 8) * scale;
    }
}

static kbit_status plan(const kbit_state *state, const kbit_matrix *shape, kbit_plan *plan, kbit_err *err) {
    if (!KBIT_HAS(plan, kbit_plan, job_bytes_hint)) return fail(err, KBIT_EUNSUPPORTED, "this host is too old");
    if (shape->cols > UINT64_MAX / 16) return fail(err, KBIT_EUNSUPPORTED, "%llu columns are too many", (unsigned long long)shape->cols);
    static const kbit_str names[2] = {S("codes"), S("scales")};
    plan->n_parts = 2;
    plan->row_group = 1;
    plan->parts[0].name = names[0];
    plan->parts[0].dtype = KBIT_U8;
    plan->parts[0].group_bytes = code_bytes(shape->cols);
    plan->parts[1].name = names[1];
    plan->parts[1].dtype = KBIT_F32;
    plan->parts[1].group_bytes = blocks(shape->cols, state->block) * 4;
    return KBIT_OK;
}

static const kbit_value block_default = {.size = sizeof(kbit_value), .key = S("block"), .type = KBIT_INT, .i = 32};
static const kbit_param block_param = {
    .size = sizeof(kbit_param),
    .key = S("block"),
    .doc = S("Weights of a row that share one scale"),
    .unit = S("weights"),
    .type = KBIT_INT,
    .fallback = &block_default,
    .min = 8,
    .max = 4096,
};
static const kbit_param *const params[] = {&block_param};

/* ---- to here; the rest carries it across the interface ---- */

static kbit_status open_scheme(const kbit_host *host, const kbit_value *const *values, size_t n, kbit_state **out, kbit_err *err) {
    (void)host;
    kbit_state *state = malloc(sizeof *state);
    if (!state) return fail(err, KBIT_EINTERNAL, "no memory");
    state->block = (uint64_t)block_default.i;
    for (size_t v = 0; v < n; v++) {
        if (values[v]->key.len == 5 && memcmp(values[v]->key.ptr, "block", 5) == 0) {
            if (values[v]->type != KBIT_INT || values[v]->i < 8 || values[v]->i > 4096) {
                free(state);
                return fail(err, KBIT_EPARAM, "block must be a whole number in 8..=4096");
            }
            state->block = (uint64_t)values[v]->i;
        }
    }
    *out = state;
    return KBIT_OK;
}

static void close_scheme(kbit_state *state) { free(state); }

/* Nothing is kept for a matrix, so the job is the state. */
static kbit_status begin(const kbit_state *state, const kbit_matrix *matrix, const kbit_aux *aux, kbit_job **out, kbit_err *err) {
    (void)matrix, (void)aux, (void)err;
    *out = (kbit_job *)state;
    return KBIT_OK;
}

static void end(kbit_job *job) { (void)job; }

static kbit_status encode(const kbit_job *job, kbit_rows rows, const kbit_matrix *slab, const kbit_buf *parts, kbit_buf scratch, kbit_err *err) {
    const kbit_state *state = (const kbit_state *)job;
    uint64_t codes = code_bytes(slab->cols), scales = blocks(slab->cols, state->block) * 4;
    (void)scratch;
    for (uint64_t r = 0; r < rows.count; r++) {
        int64_t bad = encode_row(slab->data + r * slab->row_stride, slab->cols, state->block,
                                 (uint8_t *)parts[0].ptr + r * codes, (uint8_t *)parts[1].ptr + r * scales);
        if (bad >= 0)
            return fail(err, KBIT_ENUMERIC, "%.*s: row %llu, column %lld is not finite", (int)slab->tensor.len, slab->tensor.ptr,
                        (unsigned long long)(rows.first + r), (long long)bad);
    }
    return KBIT_OK;
}

static kbit_status open_tensor(const kbit_state *state, const kbit_matrix *shape, const kbit_cbuf *heads, const kbit_cbuf *parts, kbit_tensor **out, kbit_err *err) {
    (void)heads;
    if (parts[0].bytes != shape->rows * code_bytes(shape->cols) || parts[1].bytes != shape->rows * blocks(shape->cols, state->block) * 4)
        return fail(err, KBIT_EINTERNAL, "stored bytes do not fit the shape");
    kbit_tensor *tensor = malloc(sizeof *tensor);
    if (!tensor) return fail(err, KBIT_EINTERNAL, "no memory");
    tensor->block = state->block;
    tensor->cols = shape->cols;
    tensor->codes = parts[0].ptr;
    tensor->scales = parts[1].ptr;
    *out = tensor;
    return KBIT_OK;
}

static void close_tensor(kbit_tensor *tensor) { free(tensor); }

static kbit_status decode(const kbit_tensor *tensor, kbit_rows rows, float *out, uint64_t out_stride, kbit_buf scratch, kbit_err *err) {
    uint64_t codes = code_bytes(tensor->cols), scales = blocks(tensor->cols, tensor->block) * 4;
    (void)scratch, (void)err;
    for (uint64_t r = 0; r < rows.count; r++)
        decode_row(tensor->codes + (rows.first + r) * codes, tensor->scales + (rows.first + r) * scales, tensor->cols,
                   tensor->block, out + r * out_stride);
    return KBIT_OK;
}

static const kbit_scheme scheme = {
    .size = sizeof(kbit_scheme),
    .id = S("org.example.@NAME@/1"), /* your domain; a new number whenever stored bytes change their meaning */
    .title = S("@NAME@"),
    .doc = S("4-bit codes with one f32 scale a block, by absmax rounding."),
    .citation = S(""),
    .ggml_type = -1,
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .open = open_scheme,
    .close = close_scheme,
    .plan = plan,
    .begin = begin,
    .encode = encode,
    .end = end,
    .open_tensor = open_tensor,
    .close_tensor = close_tensor,
    .decode = decode,
};
static const kbit_scheme *const schemes[] = {&scheme};

static const kbit_plugin plugin = {
    .size = sizeof(kbit_plugin),
    .abi_minor = KBIT_ABI_MINOR,
    .id = S("org.example.@NAME@"),
    .version = S("0.1.0"),
    .vendor = S("you"),
    .url = S("https://example.org/@NAME@"),
    .license = S("MIT OR Apache-2.0"),
    .schemes = schemes,
    .n_schemes = sizeof schemes / sizeof *schemes,
};

KBIT_EXPORT const kbit_plugin *kbit_plugin_entry_v1(const kbit_host *host, kbit_err *err) {
    (void)host, (void)err;
    return &plugin;
}
