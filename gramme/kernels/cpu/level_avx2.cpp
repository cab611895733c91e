// The kernels on avx2, see simd_avx2.h.
#define LEVEL avx2
#include "simd_avx2.h"

#include "level.h"
