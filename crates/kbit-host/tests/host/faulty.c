/* A small scheme that uses everything of the ABI and keeps its rules, but for the one fault that -DFAULT names. So every
 * case of the conformance kit has a plugin that fails it, and FAULT="" passes all of them without a skip. */
#define _GNU_SOURCE
#include "kbit_plugin.h"
#include <fenv.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define S(text) {(text), sizeof(text) - 1}
#define FAULT_IS(name) (!strcmp(FAULT, name))
enum { GROUP = 2 };

struct kbit_state { const kbit_host *host; float levels; int started; };
struct kbit_job { const kbit_state *state; float largest; };
struct kbit_tensor { uint64_t rows, cols; const signed char *codes; const unsigned char *scales; };

static int calls;

static kbit_status say(kbit_err *err, kbit_status status, const char *text) {
    size_t room = FAULT_IS("long-text") ? strlen(text) : err->cap;
    if (FAULT_IS("silent")) return status;
    err->len = strlen(text) < room ? strlen(text) : room;
    memcpy(err->text, text, err->len);
    return status;
}

static kbit_status open_scheme(const kbit_host *host, const kbit_value *const *values, size_t n, kbit_state **out, kbit_err *err) {
    kbit_state *state = calloc(1, sizeof *state);
    state->host = host;
    state->levels = 127;
    for (size_t i = 0; i < n; i++) {
        if (FAULT_IS("old-values") && values[i]->size != sizeof(kbit_value)) abort();
        if (values[i]->key.len == 6 && values[i]->type == KBIT_INT) {
            if (values[i]->i < 3 || values[i]->i > 127) {
                free(state);
                if (FAULT_IS("bounds")) abort();
                return say(err, KBIT_EPARAM, "levels must be in 3..=127");
            }
            if (FAULT_IS("refuses-minimum") && values[i]->i == 3) { err->len = 0; free(state); return KBIT_EPARAM; }
            state->levels = (float)values[i]->i;
        }
    }
    state->started = ++calls;
    if (FAULT_IS("old-extension") && host->extension(host->ctx, (kbit_str)S("x"))) abort();
    *out = state;
    return KBIT_OK;
}
static void close_scheme(kbit_state *state) { free(state); }

static kbit_status plan(const kbit_state *state, const kbit_matrix *shape, kbit_plan *plan, kbit_err *err) {
    if (shape->cols > UINT64_MAX / 8) return say(err, FAULT_IS("plan-panics") ? KBIT_EPANIC : KBIT_EUNSUPPORTED, "too many columns");
    if (shape->cols == 33) return say(err, KBIT_EUNSUPPORTED, "33 columns, of all numbers");
    if (FAULT_IS("none-fit")) return say(err, KBIT_EUNSUPPORTED, "I take nothing");
    plan->n_parts = 2;
    plan->row_group = GROUP;
    plan->stat_bytes = 4;
    plan->aux_required = KBIT_AUX_DIAG;
    plan->aux_used = KBIT_AUX_HESSIAN | KBIT_AUX_PRODUCER;
    plan->scratch_bytes = 64;
    plan->decode_scratch_bytes = 128;
    plan->rows_hint = FAULT_IS("plan-varies") ? (uint64_t)++calls : 32;
    plan->parts[0].name = (kbit_str)S("codes");
    plan->parts[0].dtype = KBIT_I8;
    plan->parts[0].head_bytes = 4;
    plan->parts[0].group_bytes = GROUP * shape->cols;
    plan->parts[1].name = (kbit_str)S("scales");
    plan->parts[1].dtype = FAULT_IS("part-type") ? 9 : KBIT_F32;
    plan->parts[1].group_bytes = GROUP * 4;
    if (FAULT_IS("old-plan") || KBIT_HAS(plan, kbit_plan, job_bytes_hint)) plan->job_bytes_hint = 64;
    (void)state;
    return KBIT_OK;
}

static kbit_status begin(const kbit_state *state, const kbit_matrix *m, const kbit_aux *aux, kbit_job **out, kbit_err *err) {
    if (FAULT_IS("new-aux") && aux->size != sizeof *aux) return say(err, KBIT_EINTERNAL, "what a strange host");
    if (!aux->diag || !aux->hessian || aux->hessian[0] != aux->diag[0] || aux->hessian_ld != m->cols || !aux->producer_std)
        return say(err, KBIT_EMISSING, "calibration data is missing");
    if (m->rows == 1 && FAULT_IS("one-row")) return say(err, KBIT_EINTERNAL, "one row is too few");
    if (FAULT_IS("cancel") && state->host->cancelled(state->host->ctx)) return say(err, KBIT_EINTERNAL, "somebody cancelled");
    kbit_job *job = calloc(1, sizeof *job);
    job->state = state;
    *out = job;
    return KBIT_OK;
}
static void end(kbit_job *job) { free(job); }

static float magnitude(float x) { return x < 0 ? -x : x; }

static kbit_status observe(const kbit_job *job, kbit_rows rows, const kbit_matrix *slab, kbit_buf stats, kbit_buf scratch, kbit_err *err) {
    (void)job, (void)scratch, (void)err;
    for (uint64_t g = 0; g < (rows.count + GROUP - 1) / GROUP; g++) {
        float largest = 0;
        for (uint64_t r = GROUP * g; r < GROUP * g + GROUP && r < rows.count; r++)
            for (uint64_t c = 0; c < slab->cols; c++) {
                float m = magnitude(slab->data[r * slab->row_stride + c]);
                largest = m > largest ? m : largest;
            }
        memcpy((char *)stats.ptr + 4 * g, &largest, 4);
    }
    if (FAULT_IS("past-stats")) ((char *)stats.ptr)[stats.bytes] = 0;
    return KBIT_OK;
}

static kbit_status prepare(kbit_job *job, kbit_cbuf stats, const kbit_buf *heads, kbit_err *err) {
    (void)err;
    for (uint64_t i = 0; i < stats.bytes / 4; i++) {
        float value;
        memcpy(&value, (const char *)stats.ptr + 4 * i, 4);
        job->largest = value > job->largest ? value : job->largest;
    }
    memcpy(heads[0].ptr, &job->largest, 4);
    if (FAULT_IS("past-head")) ((char *)heads[0].ptr)[4] = 1;
    return KBIT_OK;
}

static kbit_status encode(const kbit_job *job, kbit_rows rows, const kbit_matrix *slab, const kbit_buf *parts, kbit_buf scratch, kbit_err *err) {
    const kbit_state *state = job->state;
    signed char *codes = parts[0].ptr;
    float *row_scales = scratch.ptr;
    float extra = FAULT_IS("dirty") ? row_scales[3] : 0;
    if (FAULT_IS("unaligned") && (uintptr_t)scratch.ptr % 64) abort();
    if (!FAULT_IS("unwritten") && !FAULT_IS("short")) memset(codes, 0, parts[0].bytes);
    if (!FAULT_IS("short")) memset(parts[1].ptr, 0, parts[1].bytes);
    if (FAULT_IS("past-part")) codes[parts[0].bytes + 3] = 1;
    if (FAULT_IS("before-part")) codes[-1] = 1;
    if (FAULT_IS("past-scratch")) ((char *)scratch.ptr)[scratch.bytes] = 1;
    if (FAULT_IS("rounding")) fesetround(FE_TOWARDZERO);
    if (FAULT_IS("flush")) __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
    for (uint64_t r = 0; r < rows.count; r++) {
        const float *row = slab->data + r * slab->row_stride;
        float largest = 0, scale;
        for (uint64_t c = 0; c < slab->cols; c++) {
            float m = magnitude(row[c]);
            if (!(m <= 3.4e38f)) {
                if (FAULT_IS("nan") && row[c] != row[c]) abort();
                if (FAULT_IS("infinite") && row[c] == row[c]) for (;;) sleep(1);
                return say(err, KBIT_ENUMERIC, "a weight is not finite");
            }
            if (m > 1e30f && FAULT_IS("extreme-panic")) return say(err, KBIT_EPANIC, "index out of bounds");
            largest = m > largest ? m : largest;
        }
        scale = (largest + extra) / state->levels;
        if (FAULT_IS("split")) scale *= 1 + (float)rows.count / 64;
        if (FAULT_IS("threads") && (pid_t)gettid() != getpid()) scale *= 1 + (float)(gettid() % 1000) / 10000;
        if (FAULT_IS("counts")) scale *= 1 + (float)(++calls % 7) / 100;
        if (FAULT_IS("states")) scale *= 1 + (float)(state->started % 7) / 100;
        if (FAULT_IS("isa") && state->host->isa_limit == KBIT_ISA_PORTABLE) scale *= 1.01f;
        if (FAULT_IS("cancel-bytes") && state->host->cancelled(state->host->ctx)) scale *= 1.01f;
        row_scales[r % 8] = scale;
        memcpy((char *)parts[1].ptr + 4 * r, &row_scales[r % 8], 4);
        for (uint64_t c = 0; c < slab->cols; c++) {
            float steps = scale > 0 || FAULT_IS("zero-scale") ? row[c] / scale : 0;
            int code = (int)(steps < 0 ? steps - 0.5f : steps + 0.5f);
            if (FAULT_IS("unwritten") && code == 0) continue;
            codes[r * slab->cols + c] = (signed char)(code > 127 ? 127 : code < -127 ? -127 : code);
        }
    }
    return KBIT_OK;
}

static kbit_status open_tensor(const kbit_state *state, const kbit_matrix *shape, const kbit_cbuf *heads, const kbit_cbuf *parts, kbit_tensor **out, kbit_err *err) {
    (void)state, (void)heads, (void)err;
    kbit_tensor *tensor = calloc(1, sizeof *tensor);
    tensor->rows = shape->rows;
    tensor->cols = shape->cols;
    tensor->codes = parts[0].ptr;
    tensor->scales = parts[1].ptr;
    *out = tensor;
    return KBIT_OK;
}
static void close_tensor(kbit_tensor *tensor) { free(tensor); }

static float weight(const kbit_tensor *tensor, uint64_t r, uint64_t c) {
    float scale;
    memcpy(&scale, tensor->scales + 4 * r, 4);
    if (FAULT_IS("offset")) return (float)tensor->codes[r * tensor->cols + c] * scale + 0.5f;
    if (FAULT_IS("negated")) return (float)tensor->codes[r * tensor->cols + c] * -scale;
    if (FAULT_IS("subnormal") && scale < 1e-38f && scale > 0) return 1 / scale;
    if (FAULT_IS("outlier") && scale > 100) return (float)tensor->codes[r * tensor->cols + c] * scale * 1e38f * 10;
    return (float)tensor->codes[r * tensor->cols + c] * scale;
}

static kbit_status decode(const kbit_tensor *tensor, kbit_rows rows, float *out, uint64_t stride, kbit_buf scratch, kbit_err *err) {
    if (rows.first % GROUP || (rows.count % GROUP && rows.first + rows.count != tensor->rows)) return say(err, KBIT_EINTERNAL, "half a group");
    float extra = FAULT_IS("decode-dirty") ? *(float *)scratch.ptr : 0;
    if (FAULT_IS("damage") && tensor->codes[0] == -1 && tensor->codes[1] == -1) abort();
    if (FAULT_IS("decode-rounding")) fesetround(FE_UPWARD);
    if (FAULT_IS("stride")) stride = tensor->cols;
    for (uint64_t r = 0; r < rows.count; r++) {
        for (uint64_t c = 0; c < tensor->cols; c++) out[r * stride + c] = weight(tensor, rows.first + r, c) + extra;
        if (FAULT_IS("decode-count")) out[r * stride] += (float)rows.count;
        if (FAULT_IS("between") && r + 1 < rows.count) out[r * stride + tensor->cols] = 1;
    }
    if (FAULT_IS("past-rows")) out[(rows.count - 1) * stride + tensor->cols] = 1;
    return KBIT_OK;
}

static uint64_t act_key(const kbit_tensor *tensor) { return tensor->cols; }
static uint64_t act_bytes(const kbit_tensor *tensor) { return 4 * tensor->cols; }
static kbit_status act_pack(const kbit_tensor *tensor, const float *x, void *act, kbit_buf scratch, kbit_err *err) {
    (void)scratch, (void)err;
    memcpy(act, x, 4 * tensor->cols);
    if (FAULT_IS("past-act")) ((char *)act)[4 * tensor->cols] = 1;
    return KBIT_OK;
}
static kbit_status dot(const kbit_tensor *tensor, kbit_rows rows, const void *act, uint64_t n_act, uint64_t act_stride, float *y, uint64_t y_stride, kbit_buf scratch, kbit_err *err) {
    (void)scratch;
    if (rows.first % GROUP || (rows.count % GROUP && rows.first + rows.count != tensor->rows)) return say(err, KBIT_EINTERNAL, "half a group");
    for (uint64_t a = 0; a < n_act; a++)
        for (uint64_t r = 0; r < rows.count; r++) {
            double sum = 0;
            for (uint64_t c = 0; c < tensor->cols; c++) {
                float x;
                memcpy(&x, (const char *)act + a * act_stride + 4 * c, 4);
                sum += (double)x * weight(tensor, rows.first + r, c);
            }
            if (FAULT_IS("dot-wrong")) sum *= 1.01;
            if (FAULT_IS("dot-count")) sum *= 1 + 1e-6 * (double)n_act;
            y[a * y_stride + r] = (float)sum;
        }
    return KBIT_OK;
}
static kbit_status decode_i8(const kbit_tensor *tensor, kbit_rows rows, int8_t *q, float *scale, float *min, uint32_t block, kbit_buf scratch, kbit_err *err) {
    (void)scratch, (void)err;
    uint64_t blocks = (tensor->cols + block - 1) / block;
    for (uint64_t r = 0; r < rows.count; r++) {
        for (uint64_t b = 0; b < blocks; b++) {
            memcpy(&scale[r * blocks + b], tensor->scales + 4 * (rows.first + r), 4);
            min[r * blocks + b] = FAULT_IS("i8-wrong") ? 0.1f : 0;
        }
        memcpy(q + r * tensor->cols, tensor->codes + (rows.first + r) * tensor->cols, tensor->cols);
    }
    return KBIT_OK;
}
static const kbit_ext_runtime runtime = {
    .size = sizeof(kbit_ext_runtime), .isa = S("portable"), .act_kind = KBIT_ACT_F32, .act_key = act_key,
    .act_bytes = act_bytes, .act_pack = act_pack, .dot = dot, .decode_i8 = decode_i8,
};
static const void *extension(const kbit_state *state, kbit_str id) {
    (void)state;
    return id.len == 14 && !memcmp(id.ptr, "kbit.runtime/1", 14) ? &runtime : NULL;
}

static kbit_value fallback = {.size = sizeof(kbit_value), .key = S("levels"), .type = KBIT_INT, .i = 127};
static kbit_param levels = {
    .size = sizeof(kbit_param), .key = S("levels"), .doc = S("Steps on each side of zero"), .type = KBIT_INT,
    .fallback = &fallback, .min = 3, .max = 127,
};
static const kbit_param *params[] = {&levels, &levels};
static kbit_scheme scheme = {
    .size = sizeof(kbit_scheme), .id = S("org.example.faulty/1"), .title = S("Faulty"), .doc = S("For tests."), .ggml_type = -1,
    .params = params, .n_params = 1,
    .open = open_scheme, .close = close_scheme, .plan = plan, .begin = begin, .observe = observe, .prepare = prepare,
    .encode = encode, .end = end, .open_tensor = open_tensor, .close_tensor = close_tensor, .decode = decode, .extension = extension,
};
static const kbit_scheme *schemes[] = {&scheme, &scheme};

static kbit_status self_test(kbit_err *err) {
    if (FAULT_IS("self-test")) return say(err, KBIT_EINTERNAL, "two and two is five");
    if (FAULT_IS("self-test-rounding")) fesetround(FE_DOWNWARD);
    return KBIT_OK;
}

static kbit_plugin plugin = {
    .size = sizeof(kbit_plugin), .abi_minor = KBIT_ABI_MINOR, .id = S("org.example.faulty"), .version = S("1.0"), .vendor = S("tests"),
    .schemes = schemes, .n_schemes = 1, .self_test = self_test,
};

KBIT_EXPORT const kbit_plugin *kbit_plugin_entry_v1(const kbit_host *host, kbit_err *err) {
    (void)host;
    if (FAULT_IS("refuses")) return say(err, 0, "not on a Tuesday"), NULL;
    if (FAULT_IS("refuses-silently")) return NULL;
    if (FAULT_IS("entry-crash")) *(volatile int *)8 = 1;
    if (FAULT_IS("entry-hang")) for (;;) sleep(1);
    if (FAULT_IS("entry-rounding")) fesetround(FE_DOWNWARD);
    if (FAULT_IS("plugin-size")) plugin.size = 8;
    if (FAULT_IS("newer")) plugin.abi_minor = 7;
    if (FAULT_IS("plugin-id")) plugin.id = (kbit_str)S("Faulty!");
    if (FAULT_IS("no-version")) plugin.version.len = 0;
    if (FAULT_IS("null-text")) plugin.vendor.ptr = NULL;
    if (FAULT_IS("not-utf8")) plugin.vendor = (kbit_str)S("\xff\xfe");
    if (FAULT_IS("control")) plugin.vendor = (kbit_str)S("a\x1b[31m");
    if (FAULT_IS("no-schemes")) plugin.n_schemes = 0;
    if (FAULT_IS("null-schemes")) plugin.schemes = NULL;
    if (FAULT_IS("null-scheme")) schemes[0] = NULL;
    if (FAULT_IS("twice")) plugin.n_schemes = 2;
    if (FAULT_IS("scheme-id")) scheme.id = (kbit_str)S("faulty");
    if (FAULT_IS("no-decode")) scheme.decode = NULL;
    if (FAULT_IS("ggml-type")) scheme.ggml_type = 5;
    if (FAULT_IS("no-title")) scheme.title.len = 0;
    if (FAULT_IS("no-prepare")) scheme.prepare = NULL;
    if (FAULT_IS("param-twice")) scheme.n_params = 2;
    if (FAULT_IS("param-key")) levels.key = (kbit_str)S("Levels");
    if (FAULT_IS("param-doc")) levels.doc.len = 0;
    if (FAULT_IS("param-type")) levels.type = 99;
    if (FAULT_IS("param-range")) levels.min = 200;
    if (FAULT_IS("param-fraction")) levels.min = 2.5;
    if (FAULT_IS("param-default")) fallback.i = 300;
    if (FAULT_IS("param-default-type")) fallback.type = KBIT_FLOAT;
    if (FAULT_IS("param-neither")) levels.fallback = NULL;
    if (FAULT_IS("param-both")) levels.required = 1;
    if (FAULT_IS("choice-empty")) levels.type = KBIT_CHOICE;
    return &plugin;
}
