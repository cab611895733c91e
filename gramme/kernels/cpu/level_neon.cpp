// The kernels on NEON with dot products, see simd_neon.h.
#define LEVEL neon
#include "simd_neon.h"

#include "level.h"
