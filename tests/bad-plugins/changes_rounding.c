/* Breaks R5: rounds toward zero from encode() on, and does not put the mode back. Without libm's fesetround, so that it
 * links with the flags of every other plugin; fenv.h is for processors that are not named. */
#include <fenv.h>
#define BAD_NAME "changes-rounding"
#define BAD_ENCODE(job, rows, slab, parts) round_toward_zero();

static void round_toward_zero(void) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x6000u);
#elif defined(__aarch64__)
    unsigned long long control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control | 3ull << 22));
#else
    fesetround(FE_TOWARDZERO);
#endif
}
#include "bad_common.h"
