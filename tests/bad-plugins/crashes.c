/* Writes through a wild pointer in encode(): a segmentation fault. */
#define BAD_NAME "crashes"
#define BAD_ENCODE(job, rows, slab, parts) \
    { int *volatile wild = (int *)8; *wild = 1; }
#include "bad_common.h"
