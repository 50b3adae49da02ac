/* Tests of c_rtn.c through its own function table, as a host calls it. Prints what failed; exits with 0 if nothing did. */
#include "c_rtn.c"

static int failures;

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                \
            failures++;                                                                   \
        }                                                                                 \
    } while (0)

static char words[256];
static kbit_err err = {words, sizeof words - 1, 0};

static kbit_state *opened(int64_t bits, int64_t block) {
    kbit_value one = bits_default, two = block_default;
    const kbit_value *values[2];
    kbit_state *state = NULL;
    one.i = bits, two.i = block;
    values[0] = &one, values[1] = &two;
    err.len = 0;
    memset(words, 0, sizeof words);
    scheme.open(NULL, values, 2, &state, &err);
    return state;
}

static kbit_matrix matrix(uint64_t rows, uint64_t cols, const float *data, uint64_t stride) {
    static const kbit_str name = S("blk.0.attn_q.weight");
    kbit_matrix m = {.size = sizeof m, .n_slices = 1};
    m.tensor = name, m.rows = rows, m.cols = cols, m.data = data, m.row_stride = stride;
    return m;
}

/* Encodes `rows` rows that lie `stride` floats apart, in calls of `split` rows; the caller frees the buffers. */
static kbit_status encoded(const kbit_state *state, uint64_t rows, uint64_t cols, const float *data, uint64_t stride,
                           uint64_t split, kbit_plan *planned, uint8_t *bytes[N_PARTS]) {
    kbit_matrix whole = matrix(rows, cols, NULL, 0);
    kbit_status status = KBIT_OK;
    kbit_job *job = NULL;
    kbit_buf none = {NULL, 0};
    uint64_t first;
    int part;
    memset(planned, 0, sizeof *planned);
    planned->size = sizeof *planned;
    CHECK(scheme.plan(state, &whole, planned, &err) == KBIT_OK && planned->n_parts == N_PARTS && planned->row_group == 1);
    for (part = 0; part < N_PARTS; part++) {
        size_t size = (size_t)(rows * planned->parts[part].group_bytes);
        bytes[part] = malloc(size);
        memset(bytes[part], 0xaa, size);
    }
    CHECK(scheme.begin(state, &whole, NULL, &job, &err) == KBIT_OK);
    for (first = 0; first < rows && status == KBIT_OK; first += split) {
        uint64_t count = rows - first < split ? rows - first : split;
        kbit_rows range;
        kbit_buf parts[N_PARTS];
        kbit_matrix slab = matrix(count, cols, data + first * stride, stride);
        range.first = first, range.count = count;
        for (part = 0; part < N_PARTS; part++) {
            parts[part].ptr = bytes[part] + first * planned->parts[part].group_bytes;
            parts[part].bytes = count * planned->parts[part].group_bytes;
        }
        status = scheme.encode(job, range, &slab, parts, none, &err);
    }
    scheme.end(job);
    return status;
}

static void free_parts(uint8_t *bytes[N_PARTS]) {
    int part;
    for (part = 0; part < N_PARTS; part++) free(bytes[part]);
}

static float magnitude_of(float x) { return x < 0 ? -x : x; }

/* Every weight comes back within half a step, for every width, odd shapes, gaps between rows, and any split. */
static void round_trips(void) {
    enum { ROWS = 5, STRIDE = 301 };
    static const uint64_t widths[] = {1, 7, 8, 15, 16, 17, 64, 100, 300};
    static float data[ROWS * STRIDE], decoded[ROWS * STRIDE];
    uint32_t noise = 1;
    size_t w, i;
    int64_t bits, block;
    for (i = 0; i < ROWS * STRIDE; i++) {
        noise = noise * 1664525u + 1013904223u;
        data[i] = (float)((int32_t)(noise >> 8) - (1 << 23)) / 8388608.0f;
    }
    for (bits = BITS_MIN; bits <= BITS_MAX; bits++)
        for (block = 16; block <= 100; block = block * 2 + 3)
            for (w = 0; w < LENGTH(widths); w++) {
                uint64_t cols = widths[w], r, c, b;
                uint8_t *bytes[N_PARTS], *other[N_PARTS];
                kbit_plan planned;
                kbit_cbuf parts[N_PARTS];
                kbit_tensor *tensor = NULL;
                kbit_rows all = {0, ROWS}, middle = {2, 1};
                kbit_buf none = {NULL, 0};
                kbit_matrix shape = matrix(ROWS, cols, NULL, 0);
                kbit_state *state = opened(bits, block);
                float one[300];
                int part;
                CHECK(encoded(state, ROWS, cols, data, STRIDE, ROWS, &planned, bytes) == KBIT_OK);
                CHECK(planned.parts[CODES].group_bytes == (cols * (uint64_t)bits + 7) / 8);
                CHECK(planned.parts[SCALE].group_bytes == 4 * ((cols + (uint64_t)block - 1) / (uint64_t)block));
                CHECK(encoded(state, ROWS, cols, data, STRIDE, 2, &planned, other) == KBIT_OK);
                for (part = 0; part < N_PARTS; part++) {
                    size_t size = (size_t)(ROWS * planned.parts[part].group_bytes);
                    CHECK(memcmp(bytes[part], other[part], size) == 0);
                    parts[part].ptr = bytes[part], parts[part].bytes = size;
                }
                CHECK(scheme.open_tensor(state, &shape, NULL, parts, &tensor, &err) == KBIT_OK);
                CHECK(scheme.decode(tensor, all, decoded, STRIDE, none, &err) == KBIT_OK);
                CHECK(scheme.decode(tensor, middle, one, cols, none, &err) == KBIT_OK);
                CHECK(memcmp(one, decoded + 2 * STRIDE, (size_t)cols * sizeof *one) == 0);
                for (r = 0; r < ROWS; r++)
                    for (b = 0; b < cols; b += (uint64_t)block) {
                        uint64_t end_of_block = cols - b < (uint64_t)block ? cols : b + (uint64_t)block;
                        float top = 0;
                        for (c = b; c < end_of_block; c++) {
                            float m = magnitude_of(data[r * STRIDE + c]);
                            top = m > top ? m : top;
                        }
                        for (c = b; c < end_of_block; c++)
                            CHECK(magnitude_of(data[r * STRIDE + c] - decoded[r * STRIDE + c]) <=
                                  top / (float)((1 << (bits - 1)) - 1) * 0.50001f);
                    }
                parts[CODES].bytes--;
                {
                    kbit_tensor *cut = NULL;
                    CHECK(scheme.open_tensor(state, &shape, NULL, parts, &cut, &err) == KBIT_EINTERNAL && !cut);
                }
                scheme.close_tensor(tensor);
                scheme.close(state);
                free_parts(bytes);
                free_parts(other);
            }
}

/* Zeros, subnormals and weights that are not finite. */
static void odd_values(void) {
    static const uint32_t not_finite[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xff800001u};
    kbit_state *state = opened(3, 16);
    kbit_plan planned;
    uint8_t *bytes[N_PARTS];
    float row[20] = {0};
    size_t i;
    CHECK(encoded(state, 1, 20, row, 20, 1, &planned, bytes) == KBIT_OK);
    CHECK(get_f32(bytes[SCALE]) == 0 && bytes[CODES][0] == 0x24); /* code 4 everywhere: 0b00100100 */
    free_parts(bytes);
    row[3] = 1e-45f; /* the scale underflows to 0 */
    row[17] = 6e-45f; /* four units: the scale rounds to one unit, and the code is held at 3 */
    CHECK(encoded(state, 1, 20, row, 20, 1, &planned, bytes) == KBIT_OK);
    CHECK(get_f32(bytes[SCALE]) == 0 && get_f32(bytes[SCALE] + 4) == 1e-45f);
    free_parts(bytes);
    for (i = 0; i < LENGTH(not_finite); i++) {
        row[17] = 0;
        memcpy(&row[18], &not_finite[i], sizeof(float));
        memset(words, 0, sizeof words);
        CHECK(encoded(state, 1, 20, row, 20, 1, &planned, bytes) == KBIT_ENUMERIC);
        CHECK(strstr(words, "blk.0.attn_q.weight: row 0, column 18 is not finite"));
        free_parts(bytes);
    }
    scheme.close(state);
}

static void refusals(void) {
    static const int64_t wrong[][2] = {{1, 64}, {9, 64}, {4, 15}, {4, 4097}, {INT64_MIN, 64}, {4, INT64_MAX}};
    kbit_matrix huge = matrix(1, UINT64_MAX, NULL, 0);
    kbit_plan planned = {.size = sizeof planned};
    kbit_value unknown = bits_default;
    const kbit_value *values[1];
    kbit_state *state = NULL;
    kbit_str key = S("bit");
    kbit_err small = {words, 5, 0};
    size_t i;
    for (i = 0; i < LENGTH(wrong); i++) CHECK(!opened(wrong[i][0], wrong[i][1]) && strstr(words, " must be a whole number from "));
    unknown.key = key, values[0] = &unknown;
    CHECK(scheme.open(NULL, values, 1, &state, &err) == KBIT_EPARAM && !state);
    memset(words, 0, sizeof words);
    CHECK(scheme.open(NULL, values, 1, &state, &small) == KBIT_EPARAM && small.len == 5 && words[5] == 0);
    CHECK(scheme.open(NULL, values, 1, &state, NULL) == KBIT_EPARAM);
    state = opened(8, 4096);
    CHECK(scheme.plan(state, &huge, &planned, &err) == KBIT_EUNSUPPORTED);
    scheme.close(state);
}

int main(void) {
    CHECK(kbit_plugin_entry_v1(NULL, NULL) == &plugin);
    CHECK(plugin.self_test(&err) == KBIT_OK);
    round_trips();
    odd_values();
    refusals();
    if (failures) fprintf(stderr, "%d checks failed\n", failures);
    return failures != 0;
}
