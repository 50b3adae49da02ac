/* Included before llama.cpp's C++. GCC's header says that `_tile_loadconfig` reads 8 bytes, where the instruction reads 64: GCC then
 * leaves out what was stored to the others, and llama.cpp crashes on CPUs with AMX. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#endif
