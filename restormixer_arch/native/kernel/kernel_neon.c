/* The kernel for NEON, which every 64-bit ARM processor has. */
#if defined(__aarch64__) || defined(_M_ARM64)

#define SCAN_NEON
#include "kernel_attention.h"
#include "kernel_gelu.h"
#include "kernel_tile.h"

const struct kernel_variant kernel_neon = {"neon", forward_tile, backward_tile, merge_shares, gelu, attention, attention_backward};

#else
typedef int no_neon_on_this_processor; /* an empty file is not C */
#endif
