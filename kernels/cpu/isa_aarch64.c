/* The kernels for 64-bit ARM processors (NEON): 4 floats a vector. */
#include "call.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#define LANES 4
#define ISA_NAME(function) function##_aarch64
#include "kernels.h"

const instruction_set isa_aarch64 = {"aarch64", KERNELS};
#endif
