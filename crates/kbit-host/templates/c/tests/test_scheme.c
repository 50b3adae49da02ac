/* Encodes and decodes through the plugin's own table, as kbit does. */
#include "kbit_plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            return 1; \
        } \
    } while (0)

enum { ROWS = 3, COLS = 75 };

int main(void) {
    const kbit_plugin *plugin = kbit_plugin_entry_v1(NULL, NULL);
    CHECK(plugin && plugin->n_schemes == 1);
    const kbit_scheme *scheme = plugin->schemes[0];
    char text[128];
    kbit_err err = {text, sizeof text, 0};
    float weights[ROWS * COLS], decoded[ROWS * COLS];
    for (int i = 0; i < ROWS * COLS; i++) weights[i] = (float)((i * 7919) % 201 - 100) / 500;

    kbit_state *state = NULL;
    CHECK(scheme->open(NULL, NULL, 0, &state, &err) == KBIT_OK);
    kbit_matrix matrix = {0};
    matrix.size = sizeof matrix, matrix.rows = ROWS, matrix.cols = COLS, matrix.n_slices = 1;
    matrix.data = weights, matrix.row_stride = COLS;
    kbit_plan plan;
    memset(&plan, 0, sizeof plan);
    plan.size = sizeof plan;
    CHECK(scheme->plan(state, &matrix, &plan, &err) == KBIT_OK);
    CHECK(plan.n_parts >= 1 && plan.n_parts <= 8 && plan.row_group == 1);

    kbit_buf parts[8];
    kbit_cbuf stored[8], heads[8];
    memset(heads, 0, sizeof heads);
    for (uint32_t i = 0; i < plan.n_parts; i++) {
        parts[i].bytes = stored[i].bytes = ROWS * plan.parts[i].group_bytes;
        stored[i].ptr = parts[i].ptr = malloc(parts[i].bytes);
        CHECK(parts[i].ptr);
    }
    kbit_rows rows = {0, ROWS};
    kbit_buf scratch = {NULL, 0};
    kbit_job *job = NULL;
    kbit_tensor *tensor = NULL;
    CHECK(scheme->begin(state, &matrix, NULL, &job, &err) == KBIT_OK);
    CHECK(scheme->encode(job, rows, &matrix, parts, scratch, &err) == KBIT_OK);
    CHECK(scheme->open_tensor(state, &matrix, heads, stored, &tensor, &err) == KBIT_OK);
    CHECK(scheme->decode(tensor, rows, decoded, COLS, scratch, &err) == KBIT_OK);
    for (int i = 0; i < ROWS * COLS; i++) {
        float error = weights[i] - decoded[i];
        CHECK(error < 0.2f / 14 + 1e-6f && error > -0.2f / 14 - 1e-6f); /* half a step of the largest magnitude */
    }

    /* A weight that is not finite is refused, and the text names its place. */
    weights[COLS + 5] = (float)(1e300 * 1e300);
    CHECK(scheme->encode(job, rows, &matrix, parts, scratch, &err) == KBIT_ENUMERIC);
    CHECK(err.len > 0 && err.len < sizeof text);
    scheme->close_tensor(tensor);
    scheme->end(job);
    scheme->close(state);
    for (uint32_t i = 0; i < plan.n_parts; i++) free(parts[i].ptr);
    puts("ok");
    return 0;
}
