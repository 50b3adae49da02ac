/* Never returns from encode(). */
#define _POSIX_C_SOURCE 200112L
#include <unistd.h>
#define BAD_NAME "hangs"
#define BAD_ENCODE(job, rows, slab, parts) \
    for (;;) sleep(1);
#include "bad_common.h"
