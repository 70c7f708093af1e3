/* The kernel in plain C, for every machine. */
#include "kernel_attention.h"
#include "kernel_gelu.h"
#include "kernel_tile.h"

const struct kernel_variant kernel_plain = {"plain", forward_tile, backward_tile, merge_shares, gelu, attention, attention_backward};
