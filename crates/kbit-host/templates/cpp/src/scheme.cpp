// @NAME@: a quantization scheme for kbit.
//
// As it stands: each block of weights keeps one f32 scale and 4-bit codes -7..7 (absmax rounding). Make it yours in
// Scheme::encode_row() and Scheme::decode_row(); Scheme::plan() says how many bytes a row takes. The rules R1 to R9 stand
// in kbit_plugin.h; no exception may leave a function (R3), which guard() sees to.
#include "kbit_plugin.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

namespace {

// Why a call fails.
struct Failure : std::exception {
    kbit_status status;
    std::string text;
    Failure(kbit_status status, std::string text) : status(status), text(std::move(text)) {}
    const char *what() const noexcept override { return text.c_str(); }
};

void say(kbit_err *err, const char *text) {
    if (!err || !err->text) return;
    err->len = std::min(std::strlen(text), err->cap);
    std::memcpy(err->text, text, err->len);
}

// Runs `call`; an exception becomes a status and a text.
template <class Call> kbit_status guard(kbit_err *err, Call call) noexcept {
    try {
        call();
        return KBIT_OK;
    } catch (const Failure &failure) {
        say(err, failure.what());
        return failure.status;
    } catch (const std::exception &other) {
        say(err, other.what());
        return KBIT_EPANIC;
    } catch (...) {
        say(err, "an exception of unknown type");
        return KBIT_EPANIC;
    }
}

template <size_t N> kbit_str str(const char (&text)[N]) { return kbit_str{text, N - 1}; }

// ---- the scheme itself: edit from here ----

const int64_t BLOCK = 32, BLOCK_MIN = 8, BLOCK_MAX = 4096;

struct Scheme {
    uint64_t block; // weights that share a scale

    static uint64_t code_bytes(uint64_t cols) { return (cols + 1) / 2; }
    uint64_t scale_bytes(uint64_t cols) const { return (cols + block - 1) / block * sizeof(float); }

    void plan(const kbit_matrix &shape, kbit_plan &plan) const {
        if (shape.cols > UINT64_MAX / 16) throw Failure(KBIT_EUNSUPPORTED, std::to_string(shape.cols) + " columns are too many");
        plan.n_parts = 2;
        plan.row_group = 1;
        plan.parts[0].name = str("codes");
        plan.parts[0].dtype = KBIT_U8;
        plan.parts[0].group_bytes = code_bytes(shape.cols);
        plan.parts[1].name = str("scales");
        plan.parts[1].dtype = KBIT_F32;
        plan.parts[1].group_bytes = scale_bytes(shape.cols);
    }

    // One row of `cols` weights into its codes (two to a byte) and scales.
    void encode_row(const float *row, uint64_t cols, uint8_t *codes, uint8_t *scales) const {
        std::fill_n(codes, code_bytes(cols), uint8_t(0));
        for (uint64_t first = 0; first < cols; first += block, scales += sizeof(float)) {
            const uint64_t last = std::min(first + block, cols);
            float largest = 0;
            for (uint64_t c = first; c < last; c++) {
                if (!std::isfinite(row[c])) throw Failure(KBIT_ENUMERIC, "column " + std::to_string(c) + " is not finite");
                largest = std::max(largest, std::fabs(row[c]));
            }
            const float scale = largest / 7;
            std::memcpy(scales, &scale, sizeof scale);
            for (uint64_t c = first; c < last; c++) {
                const float steps = scale > 0 ? row[c] / scale : 0;
                const int code = std::max(-7, std::min(7, int(steps < 0 ? steps - 0.5f : steps + 0.5f)));
                codes[c / 2] |= uint8_t((code + 8) << (c % 2 * 4));
            }
        }
    }

    void decode_row(const uint8_t *codes, const uint8_t *scales, uint64_t cols, float *out) const {
        for (uint64_t c = 0; c < cols; c++) {
            float scale;
            std::memcpy(&scale, scales + c / block * sizeof scale, sizeof scale);
            out[c] = float((codes[c / 2] >> (c % 2 * 4) & 15) - 8) * scale;
        }
    }
};

// ---- to here; the rest carries it across the interface ----

struct Tensor {
    const Scheme *scheme;
    uint64_t cols;
    const uint8_t *codes, *scales;
};

const Scheme *scheme_of(const kbit_state *state) { return reinterpret_cast<const Scheme *>(state); }

kbit_status open_scheme(const kbit_host *, const kbit_value *const *values, size_t n, kbit_state **out, kbit_err *err) {
    return guard(err, [&] {
        std::unique_ptr<Scheme> scheme(new Scheme{uint64_t(BLOCK)});
        for (size_t v = 0; v < n; v++) {
            const kbit_value &value = *values[v];
            if (std::string(value.key.ptr, value.key.len) != "block") continue;
            if (value.type != KBIT_INT || value.i < BLOCK_MIN || value.i > BLOCK_MAX)
                throw Failure(KBIT_EPARAM, "block must be a whole number in 8..=4096");
            scheme->block = uint64_t(value.i);
        }
        *out = reinterpret_cast<kbit_state *>(scheme.release());
    });
}

void close_scheme(kbit_state *state) { delete scheme_of(state); }

kbit_status plan(const kbit_state *state, const kbit_matrix *shape, kbit_plan *plan, kbit_err *err) {
    return guard(err, [&] {
        if (!KBIT_HAS(plan, kbit_plan, job_bytes_hint)) throw Failure(KBIT_EUNSUPPORTED, "this host is too old");
        scheme_of(state)->plan(*shape, *plan);
    });
}

// Nothing is kept for a matrix, so the job is the state.
kbit_status begin(const kbit_state *state, const kbit_matrix *, const kbit_aux *, kbit_job **out, kbit_err *) {
    *out = reinterpret_cast<kbit_job *>(const_cast<kbit_state *>(state));
    return KBIT_OK;
}

void end(kbit_job *) {}

kbit_status encode(const kbit_job *job, kbit_rows rows, const kbit_matrix *slab, const kbit_buf *parts, kbit_buf, kbit_err *err) {
    return guard(err, [&] {
        const Scheme &scheme = *reinterpret_cast<const Scheme *>(job);
        const uint64_t codes = Scheme::code_bytes(slab->cols), scales = scheme.scale_bytes(slab->cols);
        for (uint64_t r = 0; r < rows.count; r++) {
            try {
                scheme.encode_row(slab->data + r * slab->row_stride, slab->cols, static_cast<uint8_t *>(parts[0].ptr) + r * codes,
                                  static_cast<uint8_t *>(parts[1].ptr) + r * scales);
            } catch (const Failure &failure) {
                throw Failure(failure.status, "row " + std::to_string(rows.first + r) + ", " + failure.text);
            }
        }
    });
}

kbit_status open_tensor(const kbit_state *state, const kbit_matrix *shape, const kbit_cbuf *, const kbit_cbuf *parts, kbit_tensor **out, kbit_err *err) {
    return guard(err, [&] {
        const Scheme *scheme = scheme_of(state);
        if (parts[0].bytes != shape->rows * Scheme::code_bytes(shape->cols) || parts[1].bytes != shape->rows * scheme->scale_bytes(shape->cols))
            throw Failure(KBIT_EINTERNAL, "stored bytes do not fit the shape");
        *out = reinterpret_cast<kbit_tensor *>(
            new Tensor{scheme, shape->cols, static_cast<const uint8_t *>(parts[0].ptr), static_cast<const uint8_t *>(parts[1].ptr)});
    });
}

void close_tensor(kbit_tensor *tensor) { delete reinterpret_cast<Tensor *>(tensor); }

kbit_status decode(const kbit_tensor *raw, kbit_rows rows, float *out, uint64_t out_stride, kbit_buf, kbit_err *err) {
    return guard(err, [&] {
        const Tensor &tensor = *reinterpret_cast<const Tensor *>(raw);
        const uint64_t codes = Scheme::code_bytes(tensor.cols), scales = tensor.scheme->scale_bytes(tensor.cols);
        for (uint64_t r = 0; r < rows.count; r++)
            tensor.scheme->decode_row(tensor.codes + (rows.first + r) * codes, tensor.scales + (rows.first + r) * scales, tensor.cols,
                                      out + r * out_stride);
    });
}

kbit_value make_block_default() {
    kbit_value value = {};
    value.size = sizeof value;
    value.key = str("block");
    value.type = KBIT_INT;
    value.i = BLOCK;
    return value;
}

kbit_param make_block_param() {
    static const kbit_value fallback = make_block_default();
    kbit_param param = {};
    param.size = sizeof param;
    param.key = str("block");
    param.doc = str("Weights of a row that share one scale");
    param.unit = str("weights");
    param.type = KBIT_INT;
    param.fallback = &fallback;
    param.min = BLOCK_MIN;
    param.max = BLOCK_MAX;
    return param;
}

kbit_scheme make_scheme() {
    static const kbit_param block = make_block_param();
    static const kbit_param *const params[] = {&block};
    kbit_scheme scheme = {};
    scheme.size = sizeof scheme;
    scheme.id = str("org.example.@NAME@/1"); // your domain; a new number whenever stored bytes change their meaning
    scheme.title = str("@NAME@");
    scheme.doc = str("4-bit codes with one f32 scale a block, by absmax rounding.");
    scheme.ggml_type = -1;
    scheme.params = params;
    scheme.n_params = 1;
    scheme.open = open_scheme;
    scheme.close = close_scheme;
    scheme.plan = plan;
    scheme.begin = begin;
    scheme.encode = encode;
    scheme.end = end;
    scheme.open_tensor = open_tensor;
    scheme.close_tensor = close_tensor;
    scheme.decode = decode;
    return scheme;
}

kbit_plugin make_plugin() {
    static const kbit_scheme scheme = make_scheme();
    static const kbit_scheme *const schemes[] = {&scheme};
    kbit_plugin plugin = {};
    plugin.size = sizeof plugin;
    plugin.abi_minor = KBIT_ABI_MINOR;
    plugin.id = str("org.example.@NAME@");
    plugin.version = str("0.1.0");
    plugin.vendor = str("you");
    plugin.url = str("https://example.org/@NAME@");
    plugin.license = str("MIT OR Apache-2.0");
    plugin.schemes = schemes;
    plugin.n_schemes = 1;
    return plugin;
}

} // namespace

extern "C" KBIT_EXPORT const kbit_plugin *kbit_plugin_entry_v1(const kbit_host *, kbit_err *) {
    static const kbit_plugin plugin = make_plugin();
    return &plugin;
}
