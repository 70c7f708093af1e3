/* Between the caller's arrays (any strides, float32 or bfloat16, any direction) and dense float32 rows of one chunk. */
#ifndef RESTORMIXER_KERNEL_ROWS_H
#define RESTORMIXER_KERNEL_ROWS_H

#include "kernel.h"
#include "kernel_simd.h"

/* The place in the image of steps first .. first + count - 1 of a direction. */
static void chunk_places(const struct scan_call *call, int64_t part, int64_t first, int count, int64_t *place) {
    const int64_t height = call->height, width = call->width, length = height * width;
    const int64_t order = call->order[call->summed ? part : 0];
    const int backwards = order == ORDER_ROW_REVERSE || order == ORDER_COLUMN_REVERSE;
    const int64_t start = backwards ? length - 1 - first : first;
    if (order == ORDER_ROW || order == ORDER_ROW_REVERSE) {
        for (int t = 0; t < count; t++) place[t] = backwards ? start - t : start + t;
        return;
    }
    int64_t row = start % height, column = start / height;
    for (int t = 0; t < count; t++) {
        place[t] = row * width + column;
        row += backwards ? -1 : 1;
        if (row == height) row = 0, column++;
        if (row < 0) row = height - 1, column--;
    }
}

INLINE float float_of_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint16_t bf16_of_float(float x) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Four rows of four floats become four columns; rows of src lie src_stride apart, those of dst dst_stride. */
INLINE void transpose_4x4(const float *src, int64_t src_stride, float *dst, int64_t dst_stride) {
#if defined(SCAN_AVX512) || defined(SCAN_AVX2)
    __m128 a = _mm_loadu_ps(src), b = _mm_loadu_ps(src + src_stride);
    __m128 c = _mm_loadu_ps(src + 2 * src_stride), d = _mm_loadu_ps(src + 3 * src_stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(dst, a);
    _mm_storeu_ps(dst + dst_stride, b);
    _mm_storeu_ps(dst + 2 * dst_stride, c);
    _mm_storeu_ps(dst + 3 * dst_stride, d);
#else
    for (int row = 0; row < 4; row++)
        for (int column = 0; column < 4; column++) dst[column * dst_stride + row] = src[row * src_stride + column];
#endif
}

/* Where the steps lie side by side in memory, (B, D, L), whole 4 x 4 squares are turned. Returns the steps done. */
INLINE int steps_side_by_side(const struct stream *s, const int64_t *place, int count, int64_t lanes) {
    const int whole = count / 4 * 4;
    if (s->is_bf16 || s->step != 1 || lanes % 4) return 0;
    for (int t = 1; t < whole; t++)
        if (place[t] != place[0] + t) return 0;
    return whole;
}

INLINE const char *stream_at(const struct stream *s, int64_t batch, int64_t part, int64_t lane) {
    const int64_t element = batch * s->batch + part * s->part + lane * s->lane;
    return (const char *)(uintptr_t)s->address + element * (s->is_bf16 ? 2 : 4);
}

/* Dense rows of one chunk: lane i of step t is at data[i / 16 * block + t * width + i % 16]. */
struct rows {
    float *data;
    int64_t block, width;
};

/* rows <- lanes first .. first + lanes - 1 of s at the given places. */
static void read_rows(const struct stream *s, int64_t batch, int64_t part, const int64_t *place, int count,
                      int64_t first, int64_t lanes, struct rows rows) {
    const char *base = stream_at(s, batch, part, first);
    const int turned = steps_side_by_side(s, place, count, lanes);
    const int64_t dense = s->lane == 1 ? lanes / LANES * LANES : 0; /* lanes that are copied by sixteen */
    for (int64_t i = 0; i < lanes && turned; i += 4)
        for (int t = 0; t < turned; t += 4)
            transpose_4x4((const float *)base + place[t] + i * s->lane, s->lane,
                          rows.data + i / LANES * rows.block + t * rows.width + i % LANES, rows.width);
    for (int t = turned; t < count; t++) {
        const float *f32 = (const float *)base + place[t] * s->step;
        const uint16_t *bf16 = (const uint16_t *)base + place[t] * s->step;
        float *to = rows.data + t * rows.width;
        for (int64_t i = 0; i < dense; i += LANES, to += rows.block) {
            if (s->is_bf16)
                for (int j = 0; j < LANES; j++) to[j] = float_of_bf16(bf16[i + j]);
            else
                vec_store(to, vec_load(f32 + i));
        }
        for (int64_t i = dense; i < lanes; i++) {
            float *lane = rows.data + i / LANES * rows.block + t * rows.width + i % LANES;
            *lane = s->is_bf16 ? float_of_bf16(bf16[i * s->lane]) : f32[i * s->lane];
        }
    }
}

/* The inverse of read_rows; `add` sums into what is there. */
static void write_rows(const struct stream *s, int64_t batch, int64_t part, const int64_t *place, int count,
                       int64_t first, int64_t lanes, struct rows rows, int add) {
    char *base = (char *)(uintptr_t)stream_at(s, batch, part, first);
    const int turned = add ? 0 : steps_side_by_side(s, place, count, lanes);
    const int64_t dense = s->lane == 1 ? lanes / LANES * LANES : 0;
    for (int64_t i = 0; i < lanes && turned; i += 4)
        for (int t = 0; t < turned; t += 4)
            transpose_4x4(rows.data + i / LANES * rows.block + t * rows.width + i % LANES, rows.width,
                          (float *)base + place[t] + i * s->lane, s->lane);
    for (int t = turned; t < count; t++) {
        float *f32 = (float *)base + place[t] * s->step;
        uint16_t *bf16 = (uint16_t *)base + place[t] * s->step;
        const float *from = rows.data + t * rows.width;
        for (int64_t i = 0; i < dense; i += LANES, from += rows.block) {
            if (s->is_bf16)
                for (int j = 0; j < LANES; j++)
                    bf16[i + j] = bf16_of_float((add ? float_of_bf16(bf16[i + j]) : 0) + from[j]);
            else
                vec_store(f32 + i, add ? vec_add(vec_load(f32 + i), vec_load(from)) : vec_load(from));
        }
        for (int64_t i = dense; i < lanes; i++) {
            const float value = rows.data[i / LANES * rows.block + t * rows.width + i % LANES];
            const int64_t at = i * s->lane;
            if (s->is_bf16)
                bf16[at] = bf16_of_float((add ? float_of_bf16(bf16[at]) : 0) + value);
            else
                f32[at] = add ? f32[at] + value : value;
        }
    }
}

/* What a block asks the memory for while it computes, so that it is in the cache when the next chunk begins: at each
 * step one line of every stream, at + next[step] * step. Evenly spread, since a burst fills the queue of misses. */
#define AHEAD 4
struct ahead {
    const char *at;
    int64_t step;
};

INLINE void look_ahead(const struct ahead *ahead, int64_t next) {
    for (int i = 0; i < AHEAD; i++) PREFETCH(ahead[i].at + next * ahead[i].step);
}

/* For streams whose rows lie elsewhere at each step; {any address, 0} for others, which the processor foresees itself.
 */
static struct ahead aim(const struct stream *s, int64_t batch, int64_t part, int64_t lane) {
    struct ahead ahead = {(const char *)s, 0};
    if (s->address && s->lane == 1) {
        ahead.at = stream_at(s, batch, part, lane);
        ahead.step = s->step * (s->is_bf16 ? 2 : 4);
    }
    return ahead;
}

#endif
