/* One tile of work, forward and backward: brings the rows of a chunk in, runs its blocks, puts the results back.
 *
 * Rows are read whole, all channels of the tile in a run, and those of the next chunk are asked for while this one is
 * computed: without that the memory's latency takes longer than the arithmetic.
 */
#ifndef RESTORMIXER_KERNEL_TILE_H
#define RESTORMIXER_KERNEL_TILE_H

#include "kernel_place.h"

/* ------------------------------------------------------------------ forward */

static void forward_block(const struct inputs *in, const struct place *place, int64_t block, float *h, float *y) {
    const struct scan_call *call = place->call;
    const struct chunk k = make_chunk(in, place, block, &call->y);
    if (call->saved_states)
        memcpy(saved_state(place, place->chunk, block), h, sizeof(float) * (size_t)(k.states * LANES));
    forward_chunk(&k, h, y);
    if (!call->z.address) return;
    for (int t = 0; t < k.count * LANES; t += LANES)
        vec_store(y + t, vec_mul(vec_load(y + t), silu(vec_load(in->z + block * ROWS + t))));
}

static void forward_tile(const struct scan_call *call, struct tile tile, float *scratch) {
    struct place place = enter_tile(call, tile);
    struct inputs in;
    const int64_t table = call->states * LANES;
    take_inputs(&in, &place, &scratch);
    float *h = take(&scratch, place.blocks * table), *y = take(&scratch, place.blocks * ROWS);
    for (place.part = tile.first_part; place.part < tile.end_part; place.part++) {
        read_tables(&in, &place);
        memset(h, 0, sizeof(float) * (size_t)(place.blocks * table));
        for (int64_t chunk = 0; chunk < chunks_of(call); chunk++) {
            enter_chunk(&place, chunk, chunk + 1);
            read_inputs(&in, &place);
            for (int64_t block = 0; block < place.blocks; block++)
                forward_block(&in, &place, block, h + block * table, y + block * ROWS);
            write_channels(&place, &call->y, y, call->summed && place.part > 0);
        }
        write_table(&place, call->last_state, call->states, h);
    }
}

/* ------------------------------------------------------------------ backward */

struct outputs {
    float *h, *decay;           /* [step][state][lane] of one chunk and block; h has one step more */
    float *carried, *a, *b, *c; /* [block][state][lane]: the gradient of h, sums for A and for constant B and C */
    float *d, *bias;            /* [block][lane] */
    float *rows_b, *rows_c;     /* [step][state] */
    float *y, *u, *dt;          /* [block][step][lane]; y is an input */
};

static void take_outputs(struct outputs *out, const struct place *place, float **scratch) {
    const int64_t table = place->blocks * place->call->states * LANES, rows = place->blocks * ROWS;
    out->h = take(scratch, (CHUNK + 1) * place->call->states * LANES);
    out->decay = take(scratch, CHUNK * place->call->states * LANES);
    out->carried = take(scratch, table);
    out->a = take(scratch, table);
    out->b = take(scratch, table);
    out->c = take(scratch, table);
    out->d = take(scratch, place->blocks * LANES);
    out->bias = take(scratch, place->blocks * LANES);
    out->rows_b = take(scratch, CHUNK * place->call->states);
    out->rows_c = take(scratch, CHUNK * place->call->states);
    out->y = take(scratch, rows);
    out->u = take(scratch, rows);
    out->dt = take(scratch, rows);
    memset(out->y, 0, sizeof(float) * (size_t)rows); /* as in take_inputs */
}

static void clear_outputs(const struct outputs *out, const struct place *place) {
    const struct scan_call *call = place->call;
    const int64_t table = place->blocks * call->states * LANES;
    read_table(place, call->grad_last_state, place->tile.batch * call->parts + place->part, call->states, 1.0f,
               out->carried);
    memset(out->a, 0, sizeof(float) * (size_t)(3 * table));                 /* a, b, c */
    memset(out->d, 0, sizeof(float) * (size_t)(2 * place->blocks * LANES)); /* d, bias */
}

/* Turns the gradient of the output into that of y, gate taken off, and z into its own gradient. */
static void through_gate(const struct chunk *k, const float *h, float *grad_y, float *z) {
    for (int t = 0; t < k->count; t++) {
        const vec gate = vec_load(z + t * LANES), s = sigmoid(gate), grad = vec_load(grad_y + t * LANES);
        const vec one = vec_set(1.0f), slope = vec_mul(s, vec_fma(gate, vec_sub(one, s), one));
        vec y = vec_mul(k->skip, vec_load(k->u + t * LANES));
        for (int n = 0; n < k->states; n++)
            y = vec_fma(vec_load(h + ((t + 1) * k->states + n) * LANES),
                        coefficient(k->c, k->constant_c, k->states, t, n), y);
        vec_store(grad_y + t * LANES, vec_mul(grad, vec_mul(gate, s)));
        vec_store(z + t * LANES, vec_mul(grad, vec_mul(y, slope)));
    }
}

/* Through softplus, and the sums over steps for D and the bias. */
static void finish_block(const struct chunk *k, int softplus_used, const float *raw, const float *grad_y,
                         float *grad_dt, float *grad_d, float *grad_bias) {
    vec sum_d = vec_set(0.0f), sum_bias = vec_set(0.0f);
    for (int t = 0; t < k->count * LANES; t += LANES) {
        vec grad = vec_load(grad_dt + t);
        if (softplus_used) grad = vec_mul(grad, sigmoid(vec_load(raw + t)));
        vec_store(grad_dt + t, grad);
        sum_bias = vec_add(sum_bias, grad);
        sum_d = vec_fma(vec_load(grad_y + t), vec_load(k->u + t), sum_d);
    }
    vec_store(grad_d, vec_add(vec_load(grad_d), sum_d));
    vec_store(grad_bias, vec_add(vec_load(grad_bias), sum_bias));
}

static void backward_block(const struct inputs *in, const struct outputs *out, const struct place *place,
                           int64_t block) {
    const struct scan_call *call = place->call;
    const int64_t table = block * call->states * LANES, rows = block * ROWS;
    const struct chunk k = make_chunk(in, place, block, &call->grad_y);
    const struct adjoint j = {
        .h = out->h,
        .decay = out->decay,
        .grad_y = out->y + rows,
        .grad_h = out->carried + table,
        .grad_a = out->a + table,
        .grad_b = call->constant_b ? out->b + table : out->rows_b,
        .grad_c = call->constant_c ? out->c + table : out->rows_c,
        .grad_u = out->u + rows,
        .grad_dt = out->dt + rows,
        .ahead = {aim_channels(place, &call->grad_u, block), aim_channels(place, &call->grad_delta, block),
                  aim_channels(place, &call->grad_z, block), aim_channels(place, &call->grad_z, block)},
    };
    memcpy(out->h, saved_state(place, place->chunk, block), sizeof(float) * (size_t)(call->states * LANES));
    if (place->chunk > 0) {
        const float *state = saved_state(place, place->chunk - 1, block);
        for (int64_t i = 0; i < call->states * LANES; i += LANES) PREFETCH(state + i);
    }
    repeat_chunk(&k, out->h, out->decay);
    if (call->z.address) through_gate(&k, out->h, out->y + rows, in->z + rows);
    reverse_chunk(&k, &j);
    finish_block(&k, (int)call->softplus, in->raw + rows, out->y + rows, out->dt + rows, out->d + block * LANES,
                 out->bias + block * LANES);
}

/* dB and dC are sums over channels: final if the tile has all of them, else one share of `partial`. */
static void write_coefficients(const struct outputs *out, const struct place *place) {
    const struct scan_call *call = place->call;
    const int64_t states = call->states, batch = place->tile.batch, part = place->part;
    if (!call->partial) {
        if (!call->constant_b)
            write_rows(&call->grad_b, batch, part, place->at, place->count, 0, states, state_rows(out->rows_b, states),
                       0);
        if (!call->constant_c)
            write_rows(&call->grad_c, batch, part, place->at, place->count, 0, states, state_rows(out->rows_c, states),
                       0);
        return;
    }
    const int64_t item = (place->tile.range * call->batch + batch) * call->parts + part;
    float *share = mutable_floats(call->partial) + item * call->height * call->width * 2 * states;
    for (int t = 0; t < place->count; t++) {
        float *to = share + place->at[t] * 2 * states;
        memcpy(to, out->rows_b + t * states, sizeof(float) * (size_t)states);
        memcpy(to + states, out->rows_c + t * states, sizeof(float) * (size_t)states);
    }
}

static void backward_tile(const struct scan_call *call, struct tile tile, float *scratch) {
    const size_t row_bytes = sizeof(float) * CHUNK * (size_t)call->states;
    struct place place = enter_tile(call, tile);
    struct inputs in;
    struct outputs out;
    take_inputs(&in, &place, &scratch);
    take_outputs(&out, &place, &scratch);
    for (place.part = tile.first_part; place.part < tile.end_part; place.part++) {
        read_tables(&in, &place);
        clear_outputs(&out, &place);
        for (int64_t chunk = chunks_of(call) - 1; chunk >= 0; chunk--) {
            enter_chunk(&place, chunk, chunk - 1);
            read_inputs(&in, &place);
            read_channels(&place, &call->grad_y, out.y);
            memset(out.rows_b, 0, row_bytes);
            memset(out.rows_c, 0, row_bytes);
            for (int64_t block = 0; block < place.blocks; block++) backward_block(&in, &out, &place, block);
            write_channels(&place, &call->grad_u, out.u, call->summed && place.part > 0);
            write_channels(&place, &call->grad_delta, out.dt, 0);
            write_channels(&place, &call->grad_z, in.z, 0);
            write_coefficients(&out, &place);
        }
        write_table(&place, call->grad_a, call->states, out.a);
        write_table(&place, call->constant_b ? call->grad_b.address : 0, call->states, out.b);
        write_table(&place, call->constant_c ? call->grad_c.address : 0, call->states, out.c);
        write_table(&place, call->grad_d, 1, out.d);
        write_table(&place, call->grad_bias, 1, out.bias);
    }
}

/* Adds up the shares that the ranges left of one chunk of grad_b and grad_c, places in image order. */
static void merge_shares(const struct scan_call *call, int64_t ranges, int64_t index) {
    const int64_t length = call->height * call->width, chunks = chunks_of(call), states = call->states;
    const int64_t batch = index / chunks / call->parts, part = index / chunks % call->parts;
    const int64_t first = index % chunks * CHUNK, share = call->batch * call->parts * length * 2 * states;
    const int count = (int)smaller(CHUNK, length - first);
    float *sum = mutable_floats(call->partial) + ((batch * call->parts + part) * length + first) * 2 * states;
    int64_t at[CHUNK];
    for (int t = 0; t < count; t++) at[t] = first + t;
    for (int64_t range = 1; range < ranges; range++)
        for (int64_t i = 0; i < count * 2 * states; i++) sum[i] += sum[range * share + i];
    if (!call->constant_b) write_rows(&call->grad_b, batch, part, at, count, 0, states, state_rows(sum, 2 * states), 0);
    if (!call->constant_c)
        write_rows(&call->grad_c, batch, part, at, count, 0, states, state_rows(sum + states, 2 * states), 0);
}

#endif
