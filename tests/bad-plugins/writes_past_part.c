/* Writes one byte more than plan() announced for its part `codes`: the classic wrong bound of a loop. */
#define BAD_NAME "writes-past-part"
#define BAD_ENCODE(job, rows, slab, parts) ((unsigned char *)parts[0].ptr)[parts[0].bytes] = 0x5a;
#include "bad_common.h"
