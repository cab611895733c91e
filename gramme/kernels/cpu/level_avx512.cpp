// The kernels on avx512, see simd_avx512.h.
#define LEVEL avx512
#include "simd_avx512.h"

#include "level.h"
