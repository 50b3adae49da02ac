/* Scheme org.kbit.c-rtn/1: round to nearest in plain C99, the example of a plugin that needs nothing but a C compiler.
 *
 * Along each row every `block` weights share one f32 scale S = max|w| / (2^(bits-1) - 1), and a weight is stored as the
 * code round(w / S) + 2^(bits-1), ties to even, in exactly `bits` bits. The last block of a row may be short. Stored:
 *   codes  U8  [rows][ceil(cols * bits / 8)]   code i of a row takes the bits [i*bits, (i+1)*bits), least significant
 *                                              first; unused bits of the last byte are 0
 *   scale  F32 [rows][ceil(cols / block)]      little-endian
 *
 * Bytes depend on the weights alone: only IEEE additions, divisions and multiplications in f32, no libm. Compile without
 * -ffast-math and with -ffp-contract=off; the self-test refuses a build that rounds otherwise.
 * The rules R1 to R9 stand in kbit_plugin.h. */
#include "kbit_plugin.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define S(text) {(text), sizeof(text) - 1}
#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum { BITS_MIN = 2, BITS_MAX = 8, BLOCK_MIN = 16, BLOCK_MAX = 4096 };
enum { CODES, SCALE, N_PARTS };

struct kbit_state {
    unsigned bits;  /* of a code */
    uint64_t block; /* weights that share a scale */
};

/* Nothing is kept for a matrix, but the host wants an object that it can end. */
struct kbit_job {
    const kbit_state *state;
};

struct kbit_tensor {
    unsigned bits;
    uint64_t block, cols;
    const uint8_t *codes, *scales;
};

/* Says why a call fails; `err` may be NULL and its buffer short. */
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

/* ---- sizes ---- */

static uint64_t code_bytes(unsigned bits, uint64_t cols) { return cols / 8 * bits + (cols % 8 * bits + 7) / 8; }
static uint64_t blocks(uint64_t block, uint64_t cols) { return cols / block + (cols % block != 0); }
static uint64_t scale_bytes(uint64_t block, uint64_t cols) { return 4 * blocks(block, cols); }

/* ---- numbers ---- */

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void put_f32(uint8_t *to, float x) {
    uint32_t bits = bits_of(x);
    to[0] = (uint8_t)bits, to[1] = (uint8_t)(bits >> 8), to[2] = (uint8_t)(bits >> 16), to[3] = (uint8_t)(bits >> 24);
}

static float get_f32(const uint8_t *from) {
    uint32_t bits = (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Nearest whole number, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction, so the addition
 * itself rounds, and the low bits of the sum are the number. */
static int32_t nearest(float x) { return (int32_t)(bits_of(x + 12582912.0f) - 0x4b400000u); }

/* Largest magnitude, as bits: magnitudes are ordered as their bits are, and infinities and NaN come last. Eight lanes,
 * so that compilers use vector instructions; a maximum does not depend on the order. */
static uint32_t largest(const float *x, uint64_t n) {
    uint32_t lanes[8] = {0};
    uint64_t i = 0;
    int lane;
    for (; i + 8 <= n; i += 8)
        for (lane = 0; lane < 8; lane++) {
            uint32_t magnitude = bits_of(x[i + (uint64_t)lane]) & 0x7fffffffu;
            lanes[lane] = magnitude > lanes[lane] ? magnitude : lanes[lane];
        }
    for (; i < n; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        lanes[0] = magnitude > lanes[0] ? magnitude : lanes[0];
    }
    for (lane = 1; lane < 8; lane++) lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
    return lanes[0];
}

/* The number stored for `x`; the clamp matters where a subnormal scale is rounded far from its exact value. */
static uint8_t code_of(float x, float scale, int32_t top) {
    float steps = x / scale, limit = (float)top;
    steps = steps > limit ? limit : steps < -limit ? -limit : steps;
    return (uint8_t)(nearest(steps) + top + 1);
}

/* Eight codes are exactly `bits` bytes. */
static void pack8(const uint8_t *codes, unsigned bits, uint8_t *out, unsigned n_bytes) {
    uint64_t word = 0;
    unsigned i;
    for (i = 0; i < 8; i++) word |= (uint64_t)codes[i] << (i * bits);
    for (i = 0; i < n_bytes; i++) out[i] = (uint8_t)(word >> (8 * i));
}

static void unpack8(const uint8_t *in, unsigned n_bytes, unsigned bits, uint8_t *codes) {
    uint64_t word = 0;
    unsigned i;
    for (i = 0; i < n_bytes; i++) word |= (uint64_t)in[i] << (8 * i);
    for (i = 0; i < 8; i++) codes[i] = (uint8_t)(word >> (i * bits) & ((1u << bits) - 1));
}

/* ---- a row ---- */

/* Encodes a row; -1, or the first column whose weight is not finite. Blocks are longer than 8 but need not be a multiple
 * of it, so codes are gathered by eights across blocks. */
static int64_t encode_row(const float *row, uint64_t cols, unsigned bits, uint64_t block, uint8_t *codes, uint8_t *scales) {
    const int32_t top = (1 << (bits - 1)) - 1;
    uint8_t pending[8];
    unsigned n_pending = 0;
    uint64_t first, i;
    for (first = 0; first < cols; first += block) {
        uint64_t end = cols - first > block ? first + block : cols;
        uint32_t magnitude = largest(row + first, end - first);
        float absmax, scale;
        if (magnitude >= 0x7f800000u) {
            for (i = first; i < end; i++)
                if ((bits_of(row[i]) & 0x7fffffffu) >= 0x7f800000u) return (int64_t)i;
        }
        memcpy(&absmax, &magnitude, sizeof absmax);
        scale = absmax / (float)top;
        put_f32(scales, scale);
        scales += 4;
        i = first;
        if (n_pending == 0 && scale > 0)
            for (; i + 8 <= end; i += 8) {
                uint8_t eight[8];
                int lane;
                for (lane = 0; lane < 8; lane++) eight[lane] = code_of(row[i + (uint64_t)lane], scale, top);
                pack8(eight, bits, codes, bits);
                codes += bits;
            }
        for (; i < end; i++) {
            pending[n_pending++] = scale > 0 ? code_of(row[i], scale, top) : (uint8_t)(top + 1);
            if (n_pending == 8) {
                pack8(pending, bits, codes, bits);
                codes += bits;
                n_pending = 0;
            }
        }
    }
    if (n_pending > 0) {
        memset(pending + n_pending, 0, 8 - n_pending);
        pack8(pending, bits, codes, (n_pending * bits + 7) / 8);
    }
    return -1;
}

static void decode_row(const uint8_t *codes, const uint8_t *scales, uint64_t cols, unsigned bits, uint64_t block, float *out) {
    const int32_t zero = 1 << (bits - 1);
    uint64_t first, left = block; /* weights left in the block of `scales` */
    float scale = get_f32(scales);
    for (first = 0; first < cols; first += 8) {
        unsigned n = cols - first < 8 ? (unsigned)(cols - first) : 8, i;
        uint8_t eight[8];
        unpack8(codes, (n * bits + 7) / 8, bits, eight);
        codes += bits;
        for (i = 0; i < n; i++) {
            if (left == 0) {
                scales += 4;
                scale = get_f32(scales);
                left = block;
            }
            out[first + i] = (float)(eight[i] - zero) * scale;
            left--;
        }
    }
}

/* ---- the interface ---- */

static const kbit_value bits_default = {.size = sizeof(kbit_value), .key = S("bits"), .type = KBIT_INT, .i = 4};
static const kbit_value block_default = {.size = sizeof(kbit_value), .key = S("block"), .type = KBIT_INT, .i = 64};
static const kbit_param bits_param = {
    .size = sizeof(kbit_param),
    .key = S("bits"),
    .doc = S("Bits of a code"),
    .unit = S("bits"),
    .type = KBIT_INT,
    .fallback = &bits_default,
    .min = BITS_MIN,
    .max = BITS_MAX,
};
static const kbit_param block_param = {
    .size = sizeof(kbit_param),
    .key = S("block"),
    .doc = S("Weights of a row that share one scale"),
    .unit = S("weights"),
    .type = KBIT_INT,
    .fallback = &block_default,
    .min = BLOCK_MIN,
    .max = BLOCK_MAX,
};
static const kbit_param *const params[] = {&bits_param, &block_param};

static int key_is(kbit_str key, kbit_str wanted) { return key.len == wanted.len && memcmp(key.ptr, wanted.ptr, key.len) == 0; }

static kbit_status open_scheme(const kbit_host *host, const kbit_value *const *values, size_t n, kbit_state **out, kbit_err *err) {
    int64_t set[LENGTH(params)];
    size_t v, p;
    kbit_state *state;
    (void)host;
    for (p = 0; p < LENGTH(params); p++) set[p] = params[p]->fallback->i;
    for (v = 0; v < n; v++) {
        if (!KBIT_HAS(values[v], kbit_value, i)) return fail(err, KBIT_EPARAM, "a value without content; this host is not one of ABI 1");
        for (p = 0; p < LENGTH(params) && !key_is(values[v]->key, params[p]->key); p++) {
        }
        if (p == LENGTH(params))
            return fail(err, KBIT_EPARAM, "unknown parameter %.*s; there are bits and block", (int)(values[v]->key.len < 40 ? values[v]->key.len : 40),
                        values[v]->key.ptr);
        if (values[v]->type != KBIT_INT || values[v]->i < (int64_t)params[p]->min || values[v]->i > (int64_t)params[p]->max)
            return fail(err, KBIT_EPARAM, "%.*s must be a whole number from %d to %d", (int)params[p]->key.len, params[p]->key.ptr,
                        (int)params[p]->min, (int)params[p]->max);
        set[p] = values[v]->i;
    }
    state = malloc(sizeof *state);
    if (!state) return fail(err, KBIT_EINTERNAL, "no memory");
    state->bits = (unsigned)set[0];
    state->block = (uint64_t)set[1];
    *out = state;
    return KBIT_OK;
}

static void close_scheme(kbit_state *state) { free(state); }

static kbit_status plan(const kbit_state *state, const kbit_matrix *shape, kbit_plan *plan, kbit_err *err) {
    static const kbit_part parts[N_PARTS] = {{.name = S("codes"), .dtype = KBIT_U8}, {.name = S("scale"), .dtype = KBIT_F32}};
    if (!KBIT_HAS(plan, kbit_plan, row_group)) return fail(err, KBIT_EUNSUPPORTED, "this host is too old: it has no ABI 1 plans");
    if (shape->cols == 0 || shape->cols > UINT64_MAX / 16)
        return fail(err, KBIT_EUNSUPPORTED, "rows of %llu weights cannot be encoded", (unsigned long long)shape->cols);
    memcpy(plan->parts, parts, sizeof parts);
    plan->parts[CODES].group_bytes = code_bytes(state->bits, shape->cols);
    plan->parts[SCALE].group_bytes = scale_bytes(state->block, shape->cols);
    plan->n_parts = N_PARTS;
    plan->row_group = 1;
    return KBIT_OK;
}

static kbit_status begin(const kbit_state *state, const kbit_matrix *matrix, const kbit_aux *aux, kbit_job **out, kbit_err *err) {
    kbit_job *job = malloc(sizeof *job);
    (void)matrix, (void)aux;
    if (!job) return fail(err, KBIT_EINTERNAL, "no memory");
    job->state = state;
    *out = job;
    return KBIT_OK;
}

static void end(kbit_job *job) { free(job); }

static kbit_status encode(const kbit_job *job, kbit_rows rows, const kbit_matrix *slab, const kbit_buf *parts, kbit_buf scratch, kbit_err *err) {
    const kbit_state *state = job->state;
    const uint64_t codes = code_bytes(state->bits, slab->cols), scales = scale_bytes(state->block, slab->cols);
    uint64_t r;
    (void)scratch;
    for (r = 0; r < rows.count; r++) {
        int64_t bad = encode_row(slab->data + r * slab->row_stride, slab->cols, state->bits, state->block,
                                 (uint8_t *)parts[CODES].ptr + r * codes, (uint8_t *)parts[SCALE].ptr + r * scales);
        if (bad >= 0)
            return fail(err, KBIT_ENUMERIC, "tensor %.*s: row %llu, column %lld is not finite; the checkpoint is damaged: get it anew",
                        (int)(slab->tensor.len < 64 ? slab->tensor.len : 64), slab->tensor.ptr, (unsigned long long)(rows.first + r),
                        (long long)bad);
    }
    return KBIT_OK;
}

static kbit_status open_tensor(const kbit_state *state, const kbit_matrix *shape, const kbit_cbuf *heads, const kbit_cbuf *parts,
                               kbit_tensor **out, kbit_err *err) {
    const uint64_t codes = code_bytes(state->bits, shape->cols), scales = scale_bytes(state->block, shape->cols);
    kbit_tensor *tensor;
    (void)heads;
    if (codes == 0 || scales == 0 || parts[CODES].bytes / codes != shape->rows || parts[CODES].bytes % codes != 0 ||
        parts[SCALE].bytes / scales != shape->rows || parts[SCALE].bytes % scales != 0)
        return fail(err, KBIT_EINTERNAL, "stored bytes do not fit the shape; the file is damaged: convert again");
    tensor = malloc(sizeof *tensor);
    if (!tensor) return fail(err, KBIT_EINTERNAL, "no memory");
    tensor->bits = state->bits;
    tensor->block = state->block;
    tensor->cols = shape->cols;
    tensor->codes = parts[CODES].ptr;
    tensor->scales = parts[SCALE].ptr;
    *out = tensor;
    return KBIT_OK;
}

static void close_tensor(kbit_tensor *tensor) { free(tensor); }

static kbit_status decode(const kbit_tensor *tensor, kbit_rows rows, float *out, uint64_t out_stride, kbit_buf scratch, kbit_err *err) {
    const uint64_t codes = code_bytes(tensor->bits, tensor->cols), scales = scale_bytes(tensor->block, tensor->cols);
    uint64_t r;
    (void)scratch, (void)err;
    for (r = 0; r < rows.count; r++)
        decode_row(tensor->codes + (rows.first + r) * codes, tensor->scales + (rows.first + r) * scales, tensor->cols, tensor->bits,
                   tensor->block, out + r * out_stride);
    return KBIT_OK;
}

/* A build with -ffast-math or excess precision would write other bytes than everybody else's. */
static kbit_status self_test(kbit_err *err) {
    static const float row[16] = {7.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, -7.0f, 3.4999998f, -3.4999998f, 0, 1, 2, 3, 4, 5};
    static const uint8_t wanted[8] = {0x8f, 0xaa, 0x68, 0x16, 0x5b, 0x98, 0xba, 0xdc};
    uint8_t codes[8], scale[4];
    if (encode_row(row, 16, 4, 16, codes, scale) != -1 || memcmp(codes, wanted, sizeof wanted) != 0 || get_f32(scale) != 1.0f)
        return fail(err, KBIT_EINTERNAL, "this build rounds wrongly; compile it with -ffp-contract=off and without -ffast-math");
    return KBIT_OK;
}

static const kbit_scheme scheme = {
    .size = sizeof(kbit_scheme),
    .id = S("org.kbit.c-rtn/1"),
    .title = S("Round to nearest, in C"),
    .doc = S("Codes of 2 to 8 bits with one f32 scale a block of each row, by absmax rounding, ties to even. A whole plugin in "
             "one C file, to learn from."),
    .citation = S("absmax quantization as in Dettmers and Zettlemoyer, The case for 4-bit precision: k-bit inference scaling "
                  "laws, ICML 2023, arXiv:2212.09720"),
    .ggml_type = -1,
    .params = params,
    .n_params = LENGTH(params),
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
    .id = S("org.kbit.c-rtn"),
    .version = S("0.1.0"),
    .vendor = S("kbit"),
    .url = S("https://github.com/kbit-dev/kbit"),
    .license = S("MIT OR Apache-2.0"),
    .schemes = schemes,
    .n_schemes = LENGTH(schemes),
    .self_test = self_test,
};

KBIT_EXPORT const kbit_plugin *kbit_plugin_entry_v1(const kbit_host *host, kbit_err *err) {
    (void)host, (void)err;
    return &plugin;
}
