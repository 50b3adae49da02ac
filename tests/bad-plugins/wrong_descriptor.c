/* Forgets decode(), which every scheme must have: calling it blindly would jump to address 0. */
#define BAD_NAME "wrong-descriptor"
#define BAD_SCHEME .decode = NULL
#include "bad_common.h"
