/* The call that Python hands to the kernel, and what each instruction set offers.
 *
 * Every field is 64 bits wide, so that Python fills it with struct.pack; library.py keeps the same order.
 * Addresses are those of float32 arrays, dense in the order of axes given; 0 where the argument is absent.
 */
#ifndef RESTORMIXER_KERNEL_H
#define RESTORMIXER_KERNEL_H

#include <stdint.h>

#define KERNEL_ABI 2   /* library.py refuses a library with another number */
#define LANES 16       /* channels of a block */
#define CHUNK 64       /* steps between two saved states */
#define MAX_STATES 256 /* N, as in mamba-ssm */
#define MAX_DIRECTIONS 4

enum kernel_status { KERNEL_OK = 0, KERNEL_NO_MEMORY = 1, KERNEL_BAD_CALL = 2 };
enum scan_order { ORDER_ROW = 0, ORDER_COLUMN = 1, ORDER_ROW_REVERSE = 2, ORDER_COLUMN_REVERSE = 3 };

/* An array over (batch, part, step, lane): strides count elements, a lane is a channel or, in B and C, a state. */
struct stream {
    int64_t address, batch, part, step, lane, is_bf16;
};

/* Letters: P parts, D channels of a part, N states, L = height * width steps, M chunks of CHUNK steps, K blocks of
 * sixteen channels. A part is either a direction (summed: all read the same u, y is their sum) or a group of channels.
 */
struct scan_call {
    int64_t batch, parts, height, width, channels, states;
    int64_t softplus, summed, constant_b, constant_c; /* flags; a constant B or C is (P, D, N) */
    int64_t threads, parallel;                        /* parallel: the address of GOMP_parallel, or 0 */
    int64_t order[MAX_DIRECTIONS];                    /* enum scan_order of each direction; groups use the first */
    int64_t a, d, bias;                               /* (P, D, N), (P, D), (P, D); d and bias may be absent */
    int64_t saved_states;                             /* (batch, P, M, K, N, 16), the state before each chunk */
    int64_t last_state;                               /* (batch, P, D, N), may be absent */
    struct stream u, delta, z, b, c, y;               /* z may be absent */
    /* the backward pass alone */
    struct stream grad_y, grad_u, grad_delta, grad_z, grad_b, grad_c;
    int64_t grad_a, grad_d,
        grad_bias;           /* (batch, P, D, N), (batch, P, D), (batch, P, D): summed over batch by the caller */
    int64_t grad_last_state; /* (batch, P, D, N), an input, may be absent */
    int64_t partial;         /* filled by the kernel: (ranges, batch, P, L, 2, N) sums of grad_b and grad_c */
};

/* A tile is one batch item, one range of channel blocks and, unless directions are summed, one part. */
struct tile {
    int64_t batch, first_part, end_part, range, first_block, end_block;
};

/* GELU of (row, channel) values, each first times scale[channel] plus shift[channel] where there is a scale. The two are
 * repeated to a multiple of sixteen values, `period`, so that no vector has channels of two repeats.
 */
struct gelu_call {
    const float *x, *scale, *shift; /* (count), (period), (period); the latter NULL for plain GELU, period is then 16 */
    float *y;                       /* (count): the output, or the gradient of x */
    int64_t count, period;
    const float *grad_y; /* (count); NULL in the forward pass */
    float *partial;      /* (tiles, 2, period): the gradients of scale and shift, summed by the caller */
};
#define GELU_TILE 16384 /* values of a tile, rounded down to whole periods */

/* Softmax(scale q k^T) v in each window and head. qkv is (window, token, [q k v], head, dim), y (window, token, head,
 * dim), both dense. */
struct attention_call {
    const float *qkv;
    float *y, *norms; /* norms: (window, head, [largest exponent, 1 / sum], token), absent in the forward pass alone */
    int64_t windows, tokens, heads, dim;
    const float *grad_y; /* the backward pass alone: like y */
    float *grad_qkv;     /* like qkv */
};

struct kernel_variant {
    const char *name;
    void (*forward)(const struct scan_call *call, struct tile tile, float *scratch);
    void (*backward)(const struct scan_call *call, struct tile tile, float *scratch);
    /* the sums of grad_b and grad_c over the ranges, for chunk `index` of all batch items and parts */
    void (*merge)(const struct scan_call *call, int64_t ranges, int64_t index);
    /* values `first` to `end` of a call; grad_sums: (2, period), where the sums for scale and shift are added */
    void (*gelu)(const struct gelu_call *call, int64_t first, int64_t end, float *grad_sums);
    void (*attention)(const struct attention_call *call, int64_t window, float *scratch);
    void (*attention_backward)(const struct attention_call *call, int64_t window, float *scratch);
};

const struct kernel_variant *find_variant(const char *isa);

extern const struct kernel_variant kernel_plain, kernel_avx2, kernel_avx512, kernel_neon;

#endif
