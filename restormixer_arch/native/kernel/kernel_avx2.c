/* The kernel for AVX2 with FMA; kernel.c asks the processor before it uses it. */
#if defined(__x86_64__) || defined(_M_X64)

#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma")
#endif

#define SCAN_AVX2
#include "kernel_attention.h"
#include "kernel_gelu.h"
#include "kernel_tile.h"

const struct kernel_variant kernel_avx2 = {"avx2", forward_tile, backward_tile, merge_shares, gelu, attention, attention_backward};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int no_avx2_on_this_processor; /* an empty file is not C */
#endif
