/* Encodes well and crashes in decode(): a file can be written and not be read. */
#define BAD_NAME "crashes-reading"
#define BAD_DECODE(tensor, rows) \
    { int *volatile wild = (int *)8; *wild = 1; }
#include "bad_common.h"
