/* A test plugin that misbehaves when it encodes (or, for "crash", decodes) a tensor of a certain name. It asks for the
 * whole matrix, statistics and a head, so that everything crosses to a worker process. */
#define _GNU_SOURCE
#include "kbit_plugin.h"
#include <fenv.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define S(text) {(text), sizeof(text) - 1}

struct kbit_state { const kbit_host *host; };
struct kbit_job { const kbit_host *host; char name[32]; float first, largest; };
struct kbit_tensor { char name[32]; uint64_t cols; const unsigned char *codes; };

static void name_of(char out[32], kbit_str text) {
    size_t n = text.len < 31 ? text.len : 31;
    memcpy(out, text.ptr, n);
    out[n] = 0;
}

static kbit_status say(kbit_err *err, kbit_status status, const char *text) {
    err->len = strlen(text) < err->cap ? strlen(text) : err->cap;
    memcpy(err->text, text, err->len);
    return status;
}

static kbit_status open_scheme(const kbit_host *host, const kbit_value *const *values, size_t n, kbit_state **out, kbit_err *err) {
    (void)values, (void)n, (void)err;
    *out = malloc(sizeof **out);
    (*out)->host = host;
    return KBIT_OK;
}
static void close_scheme(kbit_state *state) { free(state); }

static kbit_status plan(const kbit_state *state, const kbit_matrix *shape, kbit_plan *plan, kbit_err *err) {
    (void)state, (void)err;
    plan->n_parts = 1;
    plan->row_group = 2;
    plan->flags = KBIT_WHOLE_MATRIX;
    plan->stat_bytes = 4;
    plan->scratch_bytes = 64;
    plan->parts[0].name = (kbit_str)S("codes");
    plan->parts[0].dtype = KBIT_I8;
    plan->parts[0].head_bytes = 8;
    plan->parts[0].group_bytes = 2 * shape->cols;
    return KBIT_OK;
}

static kbit_status begin(const kbit_state *state, const kbit_matrix *m, const kbit_aux *aux, kbit_job **out, kbit_err *err) {
    (void)aux, (void)err;
    kbit_job *job = calloc(1, sizeof *job);
    job->host = state->host;
    name_of(job->name, m->tensor);
    job->first = m->data[0];
    *out = job;
    return KBIT_OK;
}
static void end(kbit_job *job) { free(job); }

static kbit_status observe(const kbit_job *job, kbit_rows rows, const kbit_matrix *slab, kbit_buf stats, kbit_buf scratch, kbit_err *err) {
    (void)job, (void)scratch, (void)err;
    for (uint64_t g = 0; g < (rows.count + 1) / 2; g++) {
        float largest = 0;
        for (uint64_t r = 2 * g; r < 2 * g + 2 && r < rows.count; r++)
            for (uint64_t c = 0; c < slab->cols; c++) {
                float w = slab->data[r * slab->row_stride + c];
                w = w < 0 ? -w : w;
                largest = w > largest ? w : largest;
            }
        memcpy((char *)stats.ptr + 4 * g, &largest, 4);
    }
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
    memcpy((char *)heads[0].ptr + 4, &job->first, 4);
    return KBIT_OK;
}

static volatile int zero;

static kbit_status encode(const kbit_job *job, kbit_rows rows, const kbit_matrix *slab, const kbit_buf *parts, kbit_buf scratch, kbit_err *err) {
    const char *name = job->name;
    memset(scratch.ptr, 0, scratch.bytes);
    if (!strcmp(name, "crash")) *(volatile int *)8 = 1;
    if (!strcmp(name, "abort")) fputs("I give up\n", stderr), abort();
    if (!strcmp(name, "divide")) raise(SIGFPE);
    if (!strcmp(name, "exit")) _exit(7);
    if (!strcmp(name, "killed")) kill(getpid(), SIGKILL);
    if (!strcmp(name, "hang")) for (;;) sleep(1);
    if (!strcmp(name, "unsupported")) return say(err, KBIT_EUNSUPPORTED, "not in this mood");
    if (!strcmp(name, "rounding")) fesetround(FE_UPWARD);
    if (!strcmp(name, "overrun")) ((char *)parts[0].ptr)[parts[0].bytes] = 1;
    if (!strcmp(name, "patient"))
        while (!job->host->cancelled(job->host->ctx)) usleep(1000);
    if (!strcmp(name, "patient")) return say(err, KBIT_ECANCELLED, "stopped");
    memset(parts[0].ptr, 0, parts[0].bytes);
    for (uint64_t r = 0; r < rows.count; r++)
        for (uint64_t c = 0; c < slab->cols; c++)
            ((signed char *)parts[0].ptr)[r * slab->cols + c] = (signed char)(slab->data[r * slab->row_stride + c] * 100 + zero);
    return KBIT_OK;
}

static kbit_status open_tensor(const kbit_state *state, const kbit_matrix *shape, const kbit_cbuf *heads, const kbit_cbuf *parts, kbit_tensor **out, kbit_err *err) {
    (void)state, (void)heads, (void)err;
    kbit_tensor *tensor = calloc(1, sizeof *tensor);
    name_of(tensor->name, shape->tensor);
    tensor->cols = shape->cols;
    tensor->codes = parts[0].ptr;
    *out = tensor;
    return KBIT_OK;
}
static void close_tensor(kbit_tensor *tensor) { free(tensor); }

static kbit_status decode(const kbit_tensor *tensor, kbit_rows rows, float *out, uint64_t stride, kbit_buf scratch, kbit_err *err) {
    (void)scratch, (void)err;
    if (!strcmp(tensor->name, "crash")) *(volatile int *)8 = 1;
    for (uint64_t r = 0; r < rows.count; r++)
        for (uint64_t c = 0; c < tensor->cols; c++)
            out[r * stride + c] = (float)(signed char)tensor->codes[(rows.first + r) * tensor->cols + c] / 100;
    return KBIT_OK;
}

static const kbit_scheme scheme = {
    .size = sizeof(kbit_scheme), .id = S("org.example.moody/1"), .title = S("Moody"), .doc = S("For tests."), .ggml_type = -1,
    .open = open_scheme, .close = close_scheme, .plan = plan, .begin = begin, .observe = observe, .prepare = prepare,
    .encode = encode, .end = end, .open_tensor = open_tensor, .close_tensor = close_tensor, .decode = decode,
};
static const kbit_scheme *const schemes[] = {&scheme};
static const kbit_plugin plugin = {
    .size = sizeof(kbit_plugin), .id = S("org.example.moody"), .version = S("1"), .schemes = schemes, .n_schemes = 1,
};
KBIT_EXPORT const kbit_plugin *kbit_plugin_entry_v1(const kbit_host *host, kbit_err *err) {
    (void)host, (void)err;
    return &plugin;
}
