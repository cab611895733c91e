// The kernels on generic, see simd_generic.h.
#define LEVEL generic
#include "simd_generic.h"

#include "level.h"
