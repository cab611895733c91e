// Which instruction sets the library holds and this processor runs. Whether one is right is tried in Python.
#include "gramme_cpu.h"

#if defined(__aarch64__) && !defined(__APPLE__)
#include <sys/auxv.h>
#endif

extern "C" {
extern const Level gramme_generic;
#if defined(__x86_64__)
extern const Level gramme_avx2, gramme_avxvnni, gramme_avx512;

static bool avx_vnni() {  // CPUID 7.1: EAX bit 4; not known to __builtin_cpu_supports of older compilers
    unsigned eax, ebx, ecx, edx;
    __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(7), "c"(0));
    if (eax < 1) return false;
    __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(7), "c"(1));
    return eax >> 4 & 1;
}

// The levels from the best to the plainest; null after the last.
const Level *gramme_level(int i) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    if (avx512 && i-- == 0) return &gramme_avx512;
    if (avx2 && avx_vnni() && i-- == 0) return &gramme_avxvnni;
    if (avx2 && i-- == 0) return &gramme_avx2;
    return i == 0 ? &gramme_generic : nullptr;
}
#elif defined(__aarch64__)
extern const Level gramme_neon;

static bool dot_products() {
#if defined(__APPLE__)
    return true;  // from the first of their processors on
#else
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#endif
}

const Level *gramme_level(int i) {
    if (dot_products() && i-- == 0) return &gramme_neon;
    return i == 0 ? &gramme_generic : nullptr;
}
#else
const Level *gramme_level(int i) { return i == 0 ? &gramme_generic : nullptr; }
#endif

const char *gramme_level_name(const Level *level) { return level->name; }
}
