/* The kernels for x86-64-v4 processors: 16 floats a vector. */
#include "call.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#endif
#include <immintrin.h>
#define LANES 16
#define ISA_NAME(function) function##_x86_64_v4
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set isa_x86_64_v4 = {"x86-64-v4", KERNELS};
#endif
