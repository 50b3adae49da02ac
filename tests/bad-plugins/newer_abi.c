/* Says that it needs a later minor version of the ABI than any host has. */
#define BAD_NAME "newer-abi"
#define BAD_ABI_MINOR (KBIT_ABI_MINOR + 1000u)
#include "bad_common.h"
