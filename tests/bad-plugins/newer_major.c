/* Written for the next major version of the ABI: the entry of this one is not there. */
#define BAD_NAME "newer-major"
#define BAD_ENTRY kbit_plugin_entry_v2
#include "bad_common.h"
