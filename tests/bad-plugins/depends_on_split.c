/* Breaks R6: the scale comes from all rows of a call, so the bytes depend on how the host splits the matrix. */
#define BAD_NAME "depends-on-split"
#define BAD_SCALE_ROWS(rows, r) all_rows(rows, r)
#include "kbit_plugin.h"

static inline kbit_rows all_rows(kbit_rows rows, uint64_t r) {
    (void)r;
    rows.first = 0;
    return rows;
}
#include "bad_common.h"
