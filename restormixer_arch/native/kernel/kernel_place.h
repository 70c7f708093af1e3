/* Where a tile is, and the tables (A, D, bias, constant B and C) and rows of it. */
#ifndef RESTORMIXER_KERNEL_PLACE_H
#define RESTORMIXER_KERNEL_PLACE_H

#include "kernel_scan.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static const float *floats(int64_t address) { return (const float *)(uintptr_t)address; }
static float *mutable_floats(int64_t address) { return (float *)(uintptr_t)address; }

/* One part and one chunk of a tile. */
struct place {
    const struct scan_call *call;
    struct tile tile;
    int64_t blocks, first_channel, channels; /* of the tile */
    int64_t part, chunk;
    int count;                         /* steps of this chunk */
    int64_t at[CHUNK], next_at[CHUNK]; /* in the image: the steps of this chunk and of the one to come */
};

static struct place enter_tile(const struct scan_call *call, struct tile tile) {
    struct place place = {.call = call, .tile = tile};
    place.blocks = tile.end_block - tile.first_block;
    place.first_channel = tile.first_block * LANES;
    place.channels = smaller(tile.end_block * LANES, call->channels) - place.first_channel;
    return place;
}

static int64_t chunks_of(const struct scan_call *call) { return (call->height * call->width + CHUNK - 1) / CHUNK; }

/* The steps of a chunk; places beyond them are 0, and so are all where there is no such chunk. */
static int find_chunk(const struct place *place, int64_t chunk, int64_t *at) {
    const int64_t length = place->call->height * place->call->width;
    memset(at, 0, sizeof(int64_t) * CHUNK);
    if (chunk < 0 || chunk * CHUNK >= length) return 0;
    const int count = (int)smaller(CHUNK, length - chunk * CHUNK);
    chunk_places(place->call, place->part, chunk * CHUNK, count, at);
    return count;
}

static void enter_chunk(struct place *place, int64_t chunk, int64_t next) {
    place->chunk = chunk;
    place->count = find_chunk(place, chunk, place->at);
    find_chunk(place, next, place->next_at);
}

/* Rows of all channels of the tile are [block][step][lane]; those of B and C are [step][state]. */
static struct rows channel_rows(float *data) {
    const struct rows rows = {data, ROWS, LANES};
    return rows;
}

static struct rows state_rows(float *data, int64_t width) {
    const struct rows rows = {data, LANES, width};
    return rows;
}

static void read_channels(const struct place *place, const struct stream *s, float *data) {
    if (s->address)
        read_rows(s, place->tile.batch, place->part, place->at, place->count, place->first_channel, place->channels,
                  channel_rows(data));
}

static void write_channels(const struct place *place, const struct stream *s, float *data, int add) {
    if (s->address)
        write_rows(s, place->tile.batch, place->part, place->at, place->count, place->first_channel, place->channels,
                   channel_rows(data), add);
}

static struct ahead aim_channels(const struct place *place, const struct stream *s, int64_t block) {
    return aim(s, place->tile.batch, place->part, place->first_channel + block * LANES);
}

/* B and C of the next chunk: a share of the rows for each block, since all blocks read them. */
static void look_ahead_states(const struct place *place, const struct stream *s, int64_t block) {
    const struct ahead ahead = aim(s, place->tile.batch, place->part, 0);
    const int64_t bytes = place->call->states * (s->is_bf16 ? 2 : 4);
    for (int64_t t = block * CHUNK / place->blocks; t < (block + 1) * CHUNK / place->blocks && ahead.step; t++)
        for (int64_t byte = 0; byte < bytes; byte += CACHE_LINE)
            PREFETCH(ahead.at + place->next_at[t] * ahead.step + byte);
}

/* (items, D, N), of which one item, -> [block][state][lane], times `scale`. An absent array gives 0. */
static void read_table(const struct place *place, int64_t address, int64_t item, int64_t states, float scale,
                       float *table) {
    const float *from = floats(address) + (item * place->call->channels + place->first_channel) * states;
    memset(table, 0, sizeof(float) * (size_t)(place->blocks * states * LANES));
    if (!address) return;
    for (int64_t i = 0; i < place->channels; i++)
        for (int64_t n = 0; n < states; n++)
            table[(i / LANES * states + n) * LANES + i % LANES] = scale * from[i * states + n];
}

/* The inverse, into the share of this batch item: (batch, P, D, N). */
static void write_table(const struct place *place, int64_t address, int64_t states, const float *table) {
    const int64_t item = place->tile.batch * place->call->parts + place->part;
    float *to = mutable_floats(address) + (item * place->call->channels + place->first_channel) * states;
    if (!address) return;
    for (int64_t i = 0; i < place->channels; i++)
        for (int64_t n = 0; n < states; n++) to[i * states + n] = table[(i / LANES * states + n) * LANES + i % LANES];
}

/* The state before this chunk, as the forward pass saved it: [state][lane] of one block of the tile. */
static float *saved_state(const struct place *place, int64_t chunk, int64_t block) {
    const struct scan_call *call = place->call;
    const int64_t blocks = (call->channels + LANES - 1) / LANES;
    const int64_t item = (place->tile.batch * call->parts + place->part) * chunks_of(call) + chunk;
    return mutable_floats(call->saved_states) +
           (item * blocks + place->tile.first_block + block) * call->states * LANES;
}

/* What both passes read. */
struct inputs {
    float *a, *b, *c;        /* [block][state][lane]: A log2(e); B and C if constant */
    float *d, *bias;         /* [block][lane] */
    float *rows_b, *rows_c;  /* [step][state], unless constant */
    float *u, *raw, *dt, *z; /* [block][step][lane]; raw is delta + bias */
};

static float *take(float **scratch, int64_t count) {
    float *taken = *scratch;
    *scratch += count;
    return taken;
}

static void take_inputs(struct inputs *in, const struct place *place, float **scratch) {
    const int64_t table = place->blocks * place->call->states * LANES, rows = place->blocks * ROWS;
    in->a = take(scratch, table);
    in->b = take(scratch, table);
    in->c = take(scratch, table);
    in->d = take(scratch, place->blocks * LANES);
    in->bias = take(scratch, place->blocks * LANES);
    in->rows_b = take(scratch, CHUNK * place->call->states);
    in->rows_c = take(scratch, CHUNK * place->call->states);
    in->u = take(scratch, rows);
    in->raw = take(scratch, rows);
    in->dt = take(scratch, rows);
    in->z = take(scratch, rows);
    /* Lanes beyond the last channel are never read, and 0 in them adds nothing to any sum. */
    memset(in->u, 0, sizeof(float) * (size_t)(4 * rows));
}

static void read_tables(const struct inputs *in, const struct place *place) {
    const struct scan_call *call = place->call;
    read_table(place, call->a, place->part, call->states, LOG2_E, in->a);
    if (call->constant_b) read_table(place, call->b.address, place->part, call->states, 1.0f, in->b);
    if (call->constant_c) read_table(place, call->c.address, place->part, call->states, 1.0f, in->c);
    read_table(place, call->d, place->part, 1, 1.0f, in->d);
    read_table(place, call->bias, place->part, 1, 1.0f, in->bias);
}

static void read_inputs(const struct inputs *in, const struct place *place) {
    const struct scan_call *call = place->call;
    const int64_t batch = place->tile.batch, states = call->states;
    if (!call->constant_b)
        read_rows(&call->b, batch, place->part, place->at, place->count, 0, states, state_rows(in->rows_b, states));
    if (!call->constant_c)
        read_rows(&call->c, batch, place->part, place->at, place->count, 0, states, state_rows(in->rows_c, states));
    read_channels(place, &call->u, in->u);
    read_channels(place, &call->delta, in->raw);
    read_channels(place, &call->z, in->z);
}

/* dt of one block, and what kernel_scan.h needs to know of it; `last` is a stream to look ahead in beside the inputs.
 */
static struct chunk make_chunk(const struct inputs *in, const struct place *place, int64_t block,
                               const struct stream *last) {
    const struct scan_call *call = place->call;
    const int64_t table = block * call->states * LANES;
    const vec shift = vec_load(in->bias + block * LANES);
    float *raw = in->raw + block * ROWS, *dt = in->dt + block * ROWS;
    for (int t = 0; t < place->count * LANES; t += LANES) {
        const vec x = vec_add(vec_load(raw + t), shift);
        vec_store(raw + t, x);
        vec_store(dt + t, call->softplus ? softplus(x) : x);
    }
    const struct chunk k = {
        .count = place->count,
        .states = (int)call->states,
        .constant_b = (int)call->constant_b,
        .constant_c = (int)call->constant_c,
        .dt = dt,
        .u = in->u + block * ROWS,
        .b = call->constant_b ? in->b + table : in->rows_b,
        .c = call->constant_c ? in->c + table : in->rows_c,
        .a = in->a + table,
        .skip = vec_load(in->d + block * LANES),
        .next = place->next_at,
        .ahead = {aim_channels(place, &call->u, block), aim_channels(place, &call->delta, block),
                  aim_channels(place, &call->z, block), aim_channels(place, last, block)},
    };
    if (!call->constant_b) look_ahead_states(place, &call->b, block);
    if (!call->constant_c) look_ahead_states(place, &call->c, block);
    return k;
}

#endif
