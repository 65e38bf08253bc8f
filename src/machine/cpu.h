/* The x86-64 CPU: its instruction sets and its vendor. This asks cpuid and xgetbv directly, because
 * __builtin_cpu_supports needs a symbol that zig's run-time library lacks. On any other CPU, and with
 * a compiler that is neither GCC nor Clang, every answer is no.
 */
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

typedef struct { unsigned eax, ebx, ecx, edx; } cpu_leaf;

/* Return a leaf of cpuid; zeros if this CPU lacks it. */
static inline cpu_leaf cpu_ask(unsigned leaf) {
    cpu_leaf found = {0, 0, 0, 0};
    __get_cpuid_count(leaf, 0, &found.eax, &found.ebx, &found.ecx, &found.edx);
    return found;
}

static inline int all_of(unsigned wanted, unsigned found) { return (found & wanted) == wanted; }

/* Return whether the operating system saves these register states, given as bits of XCR0. */
static inline int os_saves(unsigned wanted) {
    unsigned low, high;
    if (!all_of(bit_OSXSAVE, cpu_ask(1).ecx)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return all_of(wanted, low);
}

/* x86-64-v3 by its definition; AVX2 implies SSE up to 4.2. */
static inline int cpu_has_v3(void) {
    return all_of(bit_FMA | bit_MOVBE | bit_POPCNT | bit_AVX | bit_F16C, cpu_ask(1).ecx)
        && all_of(bit_BMI | bit_AVX2 | bit_BMI2, cpu_ask(7).ebx)
        && all_of(bit_LZCNT, cpu_ask(0x80000001).ecx)
        && os_saves(0x06);  /* xmm, ymm */
}

static inline int cpu_has_v4(void) {
    return cpu_has_v3() && os_saves(0xe6)  /* and masks, upper halves of zmm, zmm16 to 31 */
        && all_of(bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL,
                  cpu_ask(7).ebx);
}

static inline int cpu_is_intel(void) { return cpu_ask(0).ebx == signature_INTEL_ebx; }

/* Zen 4, the only CPU of AMD's family 0x19 (0xf + 0xa) with AVX-512. */
static inline int cpu_halves_v4(void) {
    return cpu_ask(0).ebx == signature_AMD_ebx && (cpu_ask(1).eax & 0x0ff00f00) == 0x00a00f00;
}
#else
static inline int cpu_has_v3(void) { return 0; }
static inline int cpu_has_v4(void) { return 0; }
static inline int cpu_is_intel(void) { return 0; }
static inline int cpu_halves_v4(void) { return 0; }
#endif
