// The kernels on AVX2 with the 256-bit VNNI, see simd_avx2.h.
#define LEVEL avxvnni
#define SIMD_AVXVNNI
#include "simd_avx2.h"

#include "level.h"
