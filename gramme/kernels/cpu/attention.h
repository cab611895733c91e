// Attention over pages of keys and values. Written over simd_*.h; knows no threads.
//
// Inside a page of S tokens values lie as (S, Dh), keys as blocks of (Dh, 16): sixteen scores are then one vector and
// need no horizontal sum. Pages of fewer tokens hold one block of (Dh, S), and sixteen keys are gathered first. A context is read in spans of SPAN tokens, each with its own softmax;
// spans are merged in their order (arXiv 2205.14135), so the result is the same whether one chunk reads them all or each
// has its own.
#pragma once
#include "matmul.h"

#define SPAN 512
#define VALUE_BLOCK 64  // tokens: 16 kB of float16 values of 128 columns
#define TILE_ROWS 32  // (query token, head) pairs that share one reading of the keys

// p: 0 q (T, H, Dh), 1 K pages, 2 V pages, 3 K scales or null, 4 V scales, 5 positions (T), 6 starts (B + 1),
//    7 lengths (B), 8 pages (B, Pmax), 9 y (T, H, Dh), 10 partial results
// n: 0 T, 1 H, 2 Hk, 3 Dh, 4 S, 5 kind of K and V, 6 B, 7 Pmax, 8 window (0: none), 9 spans (0: one chunk reads them all),
//    10 stride of q                                                           f: 0 scale of the scores
static int64_t tile_tokens(const Args *a) {
    int64_t shared = a->n[1] / a->n[2];
    return shared >= TILE_ROWS ? 1 : TILE_ROWS / shared;
}

// Chunks: row, tile of its tokens, KV head, span. Rows are of different lengths, so tiles are counted along them.
static int64_t row_tiles(const Args *a, int64_t row) {
    const int32_t *starts = (const int32_t *)a->p[6];
    return ceil_div(starts[row + 1] - starts[row], tile_tokens(a));
}
static int64_t attend_chunks(const Args *a, int) {
    int64_t tiles = 0;
    for (int64_t b = 0; b < a->n[6]; b++) tiles += row_tiles(a, b);
    return tiles * a->n[2] * (a->n[9] ? a->n[9] : 1);
}

struct Tile {
    const Args *a;
    int64_t row, token, tokens, head, shared;  // `shared` query heads read KV head `head`
    int64_t rows() const { return tokens * shared; }
    const float *query(int64_t i) const {
        return floats(a, 0) + (token + i / shared) * a->n[10] + (head * shared + i % shared) * a->n[3];
    }
    int64_t position(int64_t i) const { return ((const int32_t *)a->p[5])[token + i / shared]; }
    int64_t at(int64_t i) const { return (token + i / shared) * a->n[1] + head * shared + i % shared; }
    int64_t page(int64_t key) const { return ((const int32_t *)a->p[8])[row * a->n[7] + key / a->n[4]]; }
};

template <int KIND> static int64_t kind_bytes() { return KIND == KIND_F32 ? 4 : KIND == KIND_I8 ? 1 : 2; }

// scores (rows, SPAN): 16 keys from `key` on, for all rows of the tile.
template <int KIND, int R>
static inline void score_rows(const void *keys, const float *q, int64_t dh, float *scores) {
    vf acc[R][NV];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) acc[r][v] = vf_set1(0.0f);
    for (int64_t d = 0; d < dh; d++)
        for (int v = 0; v < NV; v++) {
            vf k = load_kind<KIND>(keys, d * 16 + v * VL);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) acc[r][v] = vf_fma(vf_set1(q[r * dh + d]), k, acc[r][v]);
        }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) vf_store(scores + r * SPAN + v * VL, acc[r][v]);
}

template <int KIND>
static void score_block(const void *keys, const uint16_t *scales, int64_t rows, const float *q, int64_t dh,
                        float *scores) {
    int64_t r = 0;
    for (; r + ATTEND_ROWS <= rows; r += ATTEND_ROWS)
        score_rows<KIND, ATTEND_ROWS>(keys, q + r * dh, dh, scores + r * SPAN);
    for (; r + 2 <= rows; r += 2) score_rows<KIND, 2>(keys, q + r * dh, dh, scores + r * SPAN);
    for (; r < rows; r++) score_rows<KIND, 1>(keys, q + r * dh, dh, scores + r * SPAN);
    for (r = 0; scales && r < rows; r++)
        for (int v = 0; v < NV; v++) {
            float *s = scores + r * SPAN + v * VL;
            vf_store(s, vf_mul(vf_load(s), vf_load_f16(scales + v * VL)));
        }
}

// Sixteen keys of small pages as one block; what lies behind the last key is 0.
static void gather_keys(const Tile &tile, int64_t kind, int64_t first, int64_t count, uint8_t *keys, uint16_t *scales) {
    const Args *a = tile.a;
    const int64_t dh = a->n[3], size = a->n[4], bytes = kind == KIND_F32 ? 4 : kind == KIND_I8 ? 1 : 2;
    __builtin_memset(keys, 0, (size_t)(dh * 16 * bytes));
    for (int64_t i = 0; i < min64(16, count); i++) {
        const int64_t head = (tile.page(first + i) * a->n[2] + tile.head) * size, lane = (first + i) % size;
        if (a->p[3]) scales[i] = ((const uint16_t *)a->p[3])[head + lane];
        for (int64_t d = 0; d < dh; d++)
            __builtin_memcpy(keys + (d * 16 + i) * bytes, (const char *)a->p[1] + (head * dh + d * size + lane) * bytes,
                             (size_t)bytes);
    }
}

template <int KIND>
static void score(const Tile &tile, int64_t first, int64_t count, const float *q, float *scores, uint8_t *gathered) {
    const Args *a = tile.a;
    const int64_t dh = a->n[3], size = a->n[4], rows = tile.rows();
    for (int64_t k = 0; k < count; k += 16) {
        const int64_t at = (tile.page(first + k) * a->n[2] + tile.head) * size + (first + k) % size;
        const void *keys = (const char *)a->p[1] + at * dh * kind_bytes<KIND>();
        const uint16_t *scales = KIND == KIND_I8 ? (const uint16_t *)a->p[3] + at : nullptr;
        if (k + 32 < count) {  // fetched two blocks ahead: runs of one head are too short to be foreseen
            const int64_t next = (tile.page(first + k + 32) * a->n[2] + tile.head) * size + (first + k + 32) % size;
            for (int64_t i = 0; i < 16 * dh * kind_bytes<KIND>(); i += 64) {
                __builtin_prefetch((const char *)a->p[1] + next * dh * kind_bytes<KIND>() + i);
                __builtin_prefetch((const char *)a->p[2] + next * dh * kind_bytes<KIND>() + i, 0, 2);
            }
        }
        uint16_t few[16] = {0};
        if (size < 16) {
            gather_keys(tile, KIND, first + k, count - k, gathered, few);
            keys = gathered;
            scales = scales ? few : nullptr;
        }
        score_block<KIND>(keys, scales, rows, q, dh, scores + k);
    }
}

// Scores of the keys that a row sees become e^(score - largest), the others 0; returns the sum.
static float softmax_row(float *scores, int64_t first, int64_t count, int64_t low, int64_t high, float *largest) {
    const int64_t end = ceil_div(count, 16) * 16;
    for (int64_t k = 0; k < end; k++)
        if (first + k < low || first + k > high || k >= count) scores[k] = -3.0e38f;
    vf top = vf_set1(-3.0e38f);
    for (int64_t k = 0; k < end; k += VL) top = vf_max(vf_load(scores + k), top);
    *largest = vf_hmax(top);
    if (*largest <= -2.9e38f) {
        __builtin_memset(scores, 0, (size_t)end * sizeof *scores);
        return 0;
    }
    vf sum = vf_set1(0.0f), m = vf_set1(*largest);
    for (int64_t k = 0; k < end; k += VL) {
        vf e = vf_exp(vf_sub(vf_load(scores + k), m));
        vf_store(scores + k, e);
        sum = vf_add(sum, e);
    }
    return vf_hsum(sum);
}

template <int KIND, int R>
static inline void value_rows(const Tile &tile, int64_t first, int64_t count, const float *p, int64_t d, float *y) {
    const Args *a = tile.a;
    const int64_t dh = a->n[3], size = a->n[4];
    vf acc[R][NV];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) acc[r][v] = vf_load(y + r * dh + d + v * VL);
    for (int64_t k = 0; k < count;) {
        const int64_t at = (tile.page(first + k) * a->n[2] + tile.head) * size + (first + k) % size;
        const int64_t part = min64(count - k, size - (first + k) % size);
        const uint16_t *scales = (const uint16_t *)a->p[4] + at;
        for (int64_t i = 0; i < part; i++, k++)
            for (int v = 0; v < NV; v++) {
                vf value = load_kind<KIND>(a->p[2], (at + i) * dh + d + v * VL);
                if (KIND == KIND_I8) value = vf_mul(value, vf_set1(f16_to(scales[i])));
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) acc[r][v] = vf_fma(vf_set1(p[r * SPAN + k]), value, acc[r][v]);
            }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) vf_store(y + r * dh + d + v * VL, acc[r][v]);
}

// Values are read sixteen columns at a time, in blocks that stay in the first cache until all columns are read.
template <int KIND>
static void values(const Tile &tile, int64_t first, int64_t count, const float *p, float *y) {
    const int64_t dh = tile.a->n[3], rows = tile.rows();
    __builtin_memset(y, 0, (size_t)(rows * dh) * sizeof *y);
    for (int64_t k = 0; k < count; k += VALUE_BLOCK) {
        const int64_t part = min64(VALUE_BLOCK, count - k);
        for (int64_t d = 0; d < dh; d += 16) {
            int64_t r = 0;
            for (; r + ATTEND_ROWS <= rows; r += ATTEND_ROWS)
                value_rows<KIND, ATTEND_ROWS>(tile, first + k, part, p + r * SPAN + k, d, y + r * dh);
            for (; r + 2 <= rows; r += 2) value_rows<KIND, 2>(tile, first + k, part, p + r * SPAN + k, d, y + r * dh);
            for (; r < rows; r++) value_rows<KIND, 1>(tile, first + k, part, p + r * SPAN + k, d, y + r * dh);
        }
    }
}

// A partial result of one row: largest score, sum, and the weighted sum of values (Dh). total := total merged with part.
static void merge_row(const float *part, int64_t dh, float *total) {
    if (part[1] == 0.0f && part[0] <= -2.9e38f) return;
    const float largest = total[0] > part[0] ? total[0] : part[0];
    const vf old = vf_exp(vf_set1(total[0] - largest)), now = vf_exp(vf_set1(part[0] - largest));
    float factor[2][VL];
    vf_store(factor[0], old);
    vf_store(factor[1], now);
    total[0] = largest;
    total[1] = total[1] * factor[0][0] + part[1] * factor[1][0];
    for (int64_t d = 0; d < dh; d += VL)
        vf_store(total + 2 + d, vf_fma(vf_load(part + 2 + d), now, vf_mul(vf_load(total + 2 + d), old)));
}

static void start_row(int64_t dh, float *total) {
    total[0] = -3.0e38f;
    __builtin_memset(total + 1, 0, (size_t)(dh + 1) * sizeof *total);
}

static void finish_row(const float *total, int64_t dh, float *y) {
    const vf sum = vf_set1(total[1]);
    for (int64_t d = 0; d < dh; d += VL) vf_store(y + d, vf_div(vf_load(total + 2 + d), sum));
}

// What the rows of a tile make of one span: partial results of 2 + Dh floats, one behind the other.
template <int KIND>
static void attend_span(const Tile &tile, int64_t span, const float *q, float *scores, float *y, float *out,
                        uint8_t *gathered) {
    const Args *a = tile.a;
    const int64_t dh = a->n[3], rows = tile.rows(), window = a->n[8], first = span * SPAN;
    const int64_t last = tile.position(rows - 1), count = min64(SPAN, last + 1 - first);
    for (int64_t r = 0; r < rows; r++) start_row(dh, out + r * (dh + 2));
    if (count <= 0 || (window && first + count <= tile.position(0) - window + 1)) return;
    score<KIND>(tile, first, count, q, scores, gathered);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t position = tile.position(r);
        out[r * (dh + 2) + 1] = softmax_row(scores + r * SPAN, first, count, window ? position - window + 1 : 0, position,
                                            out + r * (dh + 2));
    }
    values<KIND>(tile, first, count, scores, y);
    for (int64_t r = 0; r < rows; r++)
        __builtin_memcpy(out + r * (dh + 2) + 2, y + r * dh, (size_t)dh * sizeof *y);
}

template <int KIND> static void attend_tile(const Tile &tile, int64_t span, char *scratch) {
    const Args *a = tile.a;
    const int64_t dh = a->n[3], rows = tile.rows();
    float *q = (float *)scratch, *scores = q + TILE_ROWS * dh, *y = scores + TILE_ROWS * SPAN;
    float *part = y + TILE_ROWS * dh, *total = part + TILE_ROWS * (dh + 2);
    uint8_t *gathered = (uint8_t *)(total + TILE_ROWS * (dh + 2));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < dh; d++) q[r * dh + d] = tile.query(r)[d] * a->f[0];
    if (a->n[9]) {  // merged by `merge`
        attend_span<KIND>(tile, span, q, scores, y, part, gathered);
        for (int64_t r = 0; r < rows; r++)
            __builtin_memcpy((float *)a->p[10] + (tile.at(r) * a->n[9] + span) * (dh + 2), part + r * (dh + 2),
                             (size_t)(dh + 2) * sizeof *part);
        return;
    }
    for (int64_t r = 0; r < rows; r++) start_row(dh, total + r * (dh + 2));
    for (int64_t s = 0; s * SPAN <= tile.position(rows - 1); s++) {
        attend_span<KIND>(tile, s, q, scores, y, part, gathered);
        for (int64_t r = 0; r < rows; r++) merge_row(part + r * (dh + 2), dh, total + r * (dh + 2));
    }
    for (int64_t r = 0; r < rows; r++) finish_row(total + r * (dh + 2), dh, (float *)a->p[9] + tile.at(r) * dh);
}

static void attend(const Args *a, int64_t chunk, char *scratch) {
    const int64_t spans = a->n[9] ? a->n[9] : 1, per = tile_tokens(a);
    const int32_t *starts = (const int32_t *)a->p[6];
    int64_t span = chunk % spans, head = chunk / spans % a->n[2], index = chunk / spans / a->n[2], row = 0;
    while (index >= row_tiles(a, row)) index -= row_tiles(a, row++);
    const int64_t token = starts[row] + index * per;
    const Tile tile = {a, row, token, min64(per, starts[row + 1] - token), head, a->n[1] / a->n[2]};
    if (a->n[5] == KIND_F32) attend_tile<KIND_F32>(tile, span, scratch);
    else if (a->n[5] == KIND_BF16) attend_tile<KIND_BF16>(tile, span, scratch);
    else if (a->n[5] == KIND_F16) attend_tile<KIND_F16>(tile, span, scratch);
    else attend_tile<KIND_I8>(tile, span, scratch);
}

// The partial results of `attend` with spans: one chunk a token.
static int64_t merge_chunks(const Args *a, int) { return a->n[9] ? a->n[0] : 0; }
static void merge(const Args *a, int64_t token, char *scratch) {
    const int64_t dh = a->n[3], spans = a->n[9];
    float *total = (float *)scratch;
    for (int64_t at = token * a->n[1]; at < (token + 1) * a->n[1]; at++) {
        start_row(dh, total);
        for (int64_t s = 0; s < spans; s++) merge_row((const float *)a->p[10] + (at * spans + s) * (dh + 2), dh, total);
        finish_row(total, dh, (float *)a->p[9] + at * dh);
    }
}

static uint16_t bf16_from(float x) {  // to the nearest, halves to even
    union { float value; uint32_t bits; } b = {x};
    if ((b.bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(b.bits >> 16 | 64);
    return (uint16_t)((b.bits + 0x7fff + (b.bits >> 16 & 1)) >> 16);
}

// The scale of int8 keys and values is float16, so codes are made with the scale as it is stored.
static uint16_t scale_of(const float *x, int64_t n) {
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = largest > __builtin_fabsf(x[i]) ? largest : __builtin_fabsf(x[i]);
    for (int64_t i = 0; i < n; i++) largest = x[i] == x[i] ? largest : x[i];
    return f16_from(largest * (1.0f / 127.0f));
}

static void put(void *pages, int64_t kind, int64_t i, float x, float inverse) {
    if (kind == KIND_F32) ((float *)pages)[i] = x;
    else if (kind == KIND_BF16) ((uint16_t *)pages)[i] = bf16_from(x);
    else if (kind == KIND_F16) ((uint16_t *)pages)[i] = f16_from(x);
    else {
        float q = __builtin_rintf(x * inverse);
        ((int8_t *)pages)[i] = (int8_t)(q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q);
    }
}

// p: k (T, Hk, Dh), v, K pages, V pages, K scales or null, V scales, slots (T); n: T, Hk, Dh, S, kind, strides of k and v
static int64_t write_chunks(const Args *a, int) { return ceil_div(a->n[0], 32); }
static void write_kv(const Args *a, int64_t chunk, char *) {
    const int64_t dh = a->n[2], size = a->n[3], kind = a->n[4];
    for (int64_t t = chunk * 32; t < min64(a->n[0], (chunk + 1) * 32); t++)
        for (int64_t h = 0; h < a->n[1]; h++) {
            const int64_t slot = ((const int32_t *)a->p[6])[t], offset = slot % size, width = min64(size, 16);
            const int64_t head = (slot / size * a->n[1] + h) * size, block = head + offset / width * width;
            const float *k = floats(a, 0) + t * a->n[5] + h * dh, *v = floats(a, 1) + t * a->n[6] + h * dh;
            float inverse_k = 0, inverse_v = 0;
            if (kind == KIND_I8) {
                uint16_t sk = scale_of(k, dh), sv = scale_of(v, dh);
                ((uint16_t *)a->p[4])[head + offset] = sk;
                ((uint16_t *)a->p[5])[head + offset] = sv;
                inverse_k = f16_to(sk) > 0 ? 1.0f / f16_to(sk) : 0;
                inverse_v = f16_to(sv) > 0 ? 1.0f / f16_to(sv) : 0;
            }
            for (int64_t d = 0; d < dh; d++) {
                put(a->p[2], kind, block * dh + d * width + offset % width, k[d], inverse_k);
                put(a->p[3], kind, (head + offset) * dh + d, v[d], inverse_v);
            }
        }
}
