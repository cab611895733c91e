// Attention over pages of keys and values. Written over simd_*.h; knows no threads.
//
// Inside a page of S tokens values lie as (S, Dh), keys as blocks of (Dh, 16): sixteen scores are then one vector and
// need no horizontal sum. Pages of fewer tokens hold one block of (Dh, S), and sixteen keys are gathered first. A context
// is read in spans of SPAN tokens, each with its own softmax; spans are merged in their order (arXiv 2205.14135), so the
// result is the same whether one chunk reads them all or each has its own.
#pragma once
#include "matmul.h"

#define SPAN 512         // tokens
#define BLOCK 64         // tokens: 16 kB of float16 values of 128 columns stay in the first cache
#define FETCH_TOKENS 32  // how far ahead the keys of a chunk's first block are fetched
#define TILE_ROWS 32     // (query token, head) pairs that share one reading of the keys

static int64_t clamp(int64_t x, int64_t high) { return x < 0 ? 0 : min64(x, high); }

// p: 0 q (T, H, Dh), 1 K pages, 2 V pages, 3 K scales or null, 4 V scales, 5 positions (T), 6 starts (B + 1),
//    7 lengths (B), 8 pages (B, Pmax), 9 y (T, H, Dh), 10 partial results
// n: 0 T, 1 H, 2 Hk, 3 Dh, 4 S, 5 kind of K and V, 6 B, 7 Pmax, 8 window (0: none), 9 spans (0: one chunk reads them all),
//    10 stride of q, 11 KV heads of a chunk, at most                          f: 0 scale of the scores
static int64_t tile_tokens(const Args *a) {
    int64_t shared = a->n[1] / a->n[2];
    return shared >= TILE_ROWS ? 1 : TILE_ROWS / shared;
}

// Chunks: row, tile of its tokens, some KV heads, span. Rows are of different lengths, so tiles are counted along them.
// Where a row has few tokens, several heads are read together: they lie side by side, and memory is read in its order.
static int64_t row_tokens(const Args *a, int64_t row) {
    const int32_t *starts = (const int32_t *)a->p[6];
    return starts[row + 1] - starts[row];
}
static int64_t chunk_heads(const Args *a, int64_t row) {
    const int64_t rows = min64(row_tokens(a, row), tile_tokens(a)) * (a->n[1] / a->n[2]);
    return rows ? min64(a->n[11], TILE_ROWS / rows) : 1;
}
static int64_t row_chunks_of(const Args *a, int64_t row) {
    return ceil_div(row_tokens(a, row), tile_tokens(a)) * ceil_div(a->n[2], chunk_heads(a, row)) *
           (a->n[9] ? a->n[9] : 1);
}
static int64_t attend_chunks(const Args *a, int) {
    int64_t chunks = 0;
    for (int64_t b = 0; b < a->n[6]; b++) chunks += row_chunks_of(a, b);
    return chunks;
}

struct Tile {
    const Args *a;
    int64_t row, token, tokens, head, heads, shared;  // `shared` query heads read each of the KV heads from `head` on
    int64_t rows() const { return tokens * shared; }  // of one KV head
    int64_t at(int64_t h, int64_t i) const { return (token + i / shared) * a->n[1] + (head + h) * shared + i % shared; }
    const float *query(int64_t h, int64_t i) const {
        return floats(a, 0) + (token + i / shared) * a->n[10] + ((head + h) * shared + i % shared) * a->n[3];
    }
    int64_t position(int64_t i) const { return ((const int32_t *)a->p[5])[token + i / shared]; }
    int64_t page(int64_t key) const { return ((const int32_t *)a->p[8])[row * a->n[7] + key / a->n[4]]; }
};

// What a chunk works in. Rows: KV head, token, query head.
struct Room {
    float q[TILE_ROWS * 512], scores[TILE_ROWS * BLOCK], part[TILE_ROWS * 514], total[TILE_ROWS * 514], sums[TILE_ROWS][VL];
    float key_scales[BLOCK], value_scales[TILE_ROWS * BLOCK];  // of int8; those of values by KV head
    uint8_t gathered[ATTEND_BLOCKS][512 * 16 * 4];             // sixteen keys of small pages
};
static_assert(sizeof(Room) <= SCRATCH_BYTES, "");

// Tokens `first` to `first + count` of a context and where their first KV head lies: in runs of 16 tokens, or of a page
// where that is less. A run is numbered by its first token among all heads' tokens of all pages.
struct Block {
    int64_t first, count, run, at[BLOCK];
    int64_t slot(int64_t k) const { return at[k / run] + k % run; }
};

template <int KIND> static constexpr int64_t kind_bytes() { return KIND == KIND_F32 ? 4 : KIND == KIND_I8 ? 1 : 2; }

static void find_block(const Tile &tile, int64_t first, Block *b) {
    const int64_t size = tile.a->n[4];
    b->first = first;
    b->count = min64(BLOCK, tile.position(tile.rows() - 1) + 1 - first);
    b->run = min64(16, size);
    for (int64_t k = 0; k < b->count; k += b->run)
        b->at[k / b->run] = (tile.page(first + k) * tile.a->n[2] + tile.head) * size + (first + k) % size;
}

// Scales of 16 tokens from k on, or of as many as the block has.
static void load_scales(const void *scales, const Block &b, int64_t shift, int64_t k, float *out) {
    const uint16_t *all = (const uint16_t *)scales + shift;
    if (b.run == 16)
        for (int64_t i = 0; i < 16; i += VL) vf_store(out + k + i, vf_load_f16(all + b.slot(k) + i));
    else
        for (int64_t i = k; i < min64(k + 16, b.count); i++) out[i] = f16_to(all[b.slot(i)]);
}

// The runs of one head are too short to be foreseen, so what is needed next is fetched by hand, a line at a time: while
// a block's keys are multiplied its values are, and with its values the keys of the block behind it.

// scores (R, BLOCK) of ATTEND_BLOCKS times sixteen keys. As many keys and values that lie `ahead` are fetched.
template <int KIND, int R>
static inline void score_rows(const char *const *keys, const char *const *ahead, const float *q, int64_t dh,
                              const float *scales, float *scores) {
    constexpr int COLUMNS_A_LINE = 4 / kind_bytes<KIND>();
    vf acc[R][ATTEND_BLOCKS][NV];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < ATTEND_BLOCKS; b++)
            for (int v = 0; v < NV; v++) acc[r][b][v] = vf_set1(0.0f);
    for (int64_t d = 0; d < dh; d += COLUMNS_A_LINE) {
        for (int b = 0; b < ATTEND_BLOCKS; b++) {
            __builtin_prefetch(ahead[b] + d * 16 * kind_bytes<KIND>());
            __builtin_prefetch(ahead[ATTEND_BLOCKS + b] + d * 16 * kind_bytes<KIND>(), 0, 2);
        }
#pragma GCC unroll 4
        for (int64_t i = d; i < d + COLUMNS_A_LINE; i++) {
            vf k[ATTEND_BLOCKS][NV];
            for (int b = 0; b < ATTEND_BLOCKS; b++)
                for (int v = 0; v < NV; v++) k[b][v] = load_kind<KIND>(keys[b], i * 16 + v * VL);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const vf x = vf_set1(q[r * dh + i]);
                for (int b = 0; b < ATTEND_BLOCKS; b++)
                    for (int v = 0; v < NV; v++) acc[r][b][v] = vf_fma(x, k[b][v], acc[r][b][v]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < ATTEND_BLOCKS; b++)
            for (int v = 0; v < NV; v++) {
                const int64_t at = b * 16 + v * VL;
                vf_store(scores + r * BLOCK + at,
                         KIND == KIND_I8 ? vf_mul(acc[r][b][v], vf_load(scales + at)) : acc[r][b][v]);
            }
}

// Sixteen keys of small pages as one block; what lies behind the last key is 0.
static const char *gather_keys(const Args *a, const Block &b, int64_t shift, int64_t first, int64_t bytes, uint8_t *keys) {
    const int64_t dh = a->n[3], size = a->n[4];
    __builtin_memset(keys, 0, (size_t)(dh * 16 * bytes));
    for (int64_t k = first; k < min64(first + 16, b.count); k++)
        for (int64_t d = 0; d < dh; d++)
            __builtin_memcpy(keys + (d * 16 + k - first) * bytes,
                             (const char *)a->p[1] + ((b.at[k / size] + shift) * dh + d * size + k % size) * bytes,
                             (size_t)bytes);
    return (const char *)keys;
}

#define EACH_ROWS(CALL)                                                                                                \
    int64_t r = 0;                                                                                                     \
    for (; r + ATTEND_ROWS <= rows; r += ATTEND_ROWS) CALL(ATTEND_ROWS);                                               \
    for (; ATTEND_ROWS > 4 && r + 4 <= rows; r += 4) CALL(4);                                                          \
    for (; r + 3 <= rows; r += 3) CALL(3);                                                                             \
    for (; r + 2 <= rows; r += 2) CALL(2);                                                                             \
    for (; r < rows; r++) CALL(1)

template <int KIND> static void score(const Tile &tile, const Block &block, Room *room) {
    const Args *a = tile.a;
    const int64_t dh = a->n[3], rows = tile.rows(), bytes = kind_bytes<KIND>();
    for (int64_t k = 0; k < block.count; k += 16 * ATTEND_BLOCKS)
        for (int64_t h = 0; h < tile.heads; h++) {
            const char *keys[ATTEND_BLOCKS], *ahead[2 * ATTEND_BLOCKS];
            const int64_t shift = h * a->n[4];
            for (int b = 0; b < ATTEND_BLOCKS; b++) {
                const int64_t here = k + b * 16 < block.count ? k + b * 16 : k;
                const int64_t next = here + FETCH_TOKENS < block.count ? here + FETCH_TOKENS : here;
                keys[b] = (const char *)a->p[1] + (block.slot(here) + shift) * dh * bytes;
                ahead[b] = (const char *)a->p[1] + (block.slot(next) + shift) * dh * bytes;
                ahead[ATTEND_BLOCKS + b] = (const char *)a->p[2] + (block.slot(here) + shift) * dh * bytes;
                if (block.run < 16) keys[b] = gather_keys(a, block, shift, here, bytes, room->gathered[b]);
                if (KIND == KIND_I8) load_scales(a->p[3], block, shift, here, room->key_scales);
                if (KIND == KIND_I8) load_scales(a->p[4], block, shift, here, room->value_scales + h * BLOCK);
            }
            const float *q = room->q + h * rows * dh;
            float *scores = room->scores + h * rows * BLOCK + k;
#define SCORE(R) score_rows<KIND, R>(keys, ahead, q + r * dh, dh, room->key_scales + k, scores + r * BLOCK)
            EACH_ROWS(SCORE);
#undef SCORE
        }
}

// Scores of the keys that a row sees, [low, high) of a block's `count`, become e^(score - largest), the others 0. They
// join `part`: the largest score of the blocks before, the sum, whose lanes are in `sums` till the span ends, and the
// weighted sum of values (Dh); they are rescaled where the largest rises (arXiv 1805.02867). What is stored is multiplied
// by `scales`, if there are any.
static void softmax_row(float *scores, int64_t count, int64_t low, int64_t high, const float *scales, int64_t dh,
                        float *part, float *sums) {
    const int64_t end = ceil_div(count, 16) * 16;
    for (int64_t k = 0; k < low; k++) scores[k] = -3.0e38f;
    for (int64_t k = high; k < end; k++) scores[k] = -3.0e38f;
    vf top = vf_set1(-3.0e38f);
    for (int64_t k = 0; k < end; k += VL) top = vf_max(vf_load(scores + k), top);
    const float largest = vf_hmax(top);
    if (largest <= -2.9e38f) {
        __builtin_memset(scores, 0, (size_t)end * sizeof *scores);
        return;
    }
    vf sum = vf_load(sums);
    if (largest > part[0]) {
        const vf factor = vf_exp(vf_set1(part[0] - largest));
        part[0] = largest;
        sum = vf_mul(sum, factor);
        for (int64_t d = 0; d < dh; d += VL) vf_store(part + 2 + d, vf_mul(vf_load(part + 2 + d), factor));
    }
    const vf m = vf_set1(part[0]);
    for (int64_t k = 0; k < end; k += VL) {
        const vf e = vf_exp(vf_sub(vf_load(scores + k), m));
        vf_store(scores + k, scales ? vf_mul(e, vf_load(scales + k)) : e);
        sum = vf_add(sum, e);
    }
    vf_store(sums, sum);
}

// y (R, ldy) += p (R, BLOCK) times a block's values, of B * 16 columns. `piece` says what to fetch beside each run.
template <int KIND, int R, int B, typename Piece>
static inline void value_rows(const Block &b, const char *values, int64_t dh, const Piece &piece, const float *p, float *y,
                              int64_t ldy) {
    vf acc[R][B * NV];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < B * NV; v++) acc[r][v] = vf_load(y + r * ldy + v * VL);
    for (int64_t k = 0; k < b.count;) {
        const int64_t stop = min64(b.count, k + b.run);
        const char *value = values + b.at[k / b.run] * dh * kind_bytes<KIND>(), *fetch = piece(k / b.run);
        for (; k < stop; k++, value += dh * kind_bytes<KIND>(), fetch += 16 * B * kind_bytes<KIND>()) {
            __builtin_prefetch(fetch, 0, 2);
            vf x[B * NV];
            for (int v = 0; v < B * NV; v++) x[v] = load_kind<KIND>(value, v * VL);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const vf weight = vf_set1(p[r * BLOCK + k]);
                for (int v = 0; v < B * NV; v++) acc[r][v] = vf_fma(weight, x[v], acc[r][v]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < B * NV; v++) vf_store(y + r * ldy + v * VL, acc[r][v]);
}

// Columns d to d + 16 B of head h. The keys of `next` are fetched in the order in which they lie, heads side by side: as
// many pieces of a run as there are heads and passes over columns.
template <int KIND, int B>
static void value_columns(const Tile &tile, const Block &b, const Block &next, int64_t h, int64_t d, Room *room) {
    const Args *a = tile.a;
    const int64_t dh = a->n[3], rows = tile.rows(), ldy = dh + 2, size = a->n[4], bytes = kind_bytes<KIND>();
    const int64_t passes = ceil_div(dh, 16 * B), runs = ceil_div(b.count, b.run), before = (h * passes + d / (16 * B)) * runs;
    const char *keys = (const char *)a->p[1], *values = (const char *)a->p[2] + (h * size * dh + d) * bytes;
    const auto piece = [&](int64_t run) {
        const int64_t i = before + run, part = i % (tile.heads * passes);
        const int64_t at = next.at[i / (tile.heads * passes) * next.run < next.count ? i / (tile.heads * passes) : 0];
        return keys + ((at + part / passes * size) * dh + part % passes * b.run * 16 * B) * bytes;
    };
    const float *p = room->scores + h * rows * BLOCK;
    float *y = room->part + h * rows * ldy + 2 + d;
#define VALUE(R) value_rows<KIND, R, B>(b, values, dh, piece, p + r * BLOCK, y + r * ldy, ldy)
    EACH_ROWS(VALUE);
#undef VALUE
}

// Values are read a few columns at a time.
template <int KIND> static void values(const Tile &tile, const Block &b, const Block &next, Room *room) {
    const int64_t dh = tile.a->n[3];
    for (int64_t h = 0; h < tile.heads; h++) {
        int64_t d = 0;
        for (; d + 16 * ATTEND_BLOCKS <= dh; d += 16 * ATTEND_BLOCKS)
            value_columns<KIND, ATTEND_BLOCKS>(tile, b, next, h, d, room);
        for (; d < dh; d += 16) value_columns<KIND, 1>(tile, b, next, h, d, room);
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
template <int KIND> static void attend_span(const Tile &tile, int64_t span, Room *room) {
    const int64_t dh = tile.a->n[3], rows = tile.rows(), window = tile.a->n[8], oldest = tile.position(0) - window + 1;
    const int64_t end = min64((span + 1) * SPAN, tile.position(rows - 1) + 1);
    int64_t first = span * SPAN;
    if (window && oldest > first) first += (oldest - first) / BLOCK * BLOCK;
    for (int64_t r = 0; r < tile.heads * rows; r++) {
        start_row(dh, room->part + r * (dh + 2));
        vf_store(room->sums[r], vf_set1(0.0f));
    }
    Block blocks[2];
    if (first < end) find_block(tile, first, &blocks[0]);
    for (int i = 0; first < end; first += BLOCK, i ^= 1) {
        const Block &b = blocks[i];
        find_block(tile, first + BLOCK < end ? first + BLOCK : first, &blocks[i ^ 1]);
        score<KIND>(tile, b, room);
        for (int64_t r = 0; r < tile.heads * rows; r++) {
            const int64_t position = tile.position(r % rows) - first, low = window ? position - window + 1 : 0;
            softmax_row(room->scores + r * BLOCK, b.count, clamp(low, b.count), clamp(position + 1, b.count),
                        KIND == KIND_I8 ? room->value_scales + r / rows * BLOCK : nullptr, dh, room->part + r * (dh + 2),
                        room->sums[r]);
        }
        values<KIND>(tile, b, blocks[i ^ 1], room);
    }
    for (int64_t r = 0; r < tile.heads * rows; r++) room->part[r * (dh + 2) + 1] = vf_hsum(vf_load(room->sums[r]));
}

// One span, whose partial results go to `merge`, or all that there are (`span` < 0), merged here.
template <int KIND> static void attend_tile(const Tile &tile, int64_t span, Room *room) {
    const Args *a = tile.a;
    const int64_t dh = a->n[3], rows = tile.rows(), all = tile.heads * rows, width = dh + 2;
    for (int64_t r = 0; r < all; r++)
        for (int64_t d = 0; d < dh; d++) room->q[r * dh + d] = tile.query(r / rows, r % rows)[d] * a->f[0];
    if (span >= 0) {
        attend_span<KIND>(tile, span, room);
        for (int64_t r = 0; r < all; r++)
            __builtin_memcpy((float *)a->p[10] + (tile.at(r / rows, r % rows) * a->n[9] + span) * width,
                             room->part + r * width, (size_t)width * sizeof(float));
        return;
    }
    for (int64_t r = 0; r < all; r++) start_row(dh, room->total + r * width);
    for (int64_t s = 0; s * SPAN <= tile.position(rows - 1); s++) {
        attend_span<KIND>(tile, s, room);
        for (int64_t r = 0; r < all; r++) merge_row(room->part + r * width, dh, room->total + r * width);
    }
    for (int64_t r = 0; r < all; r++)
        finish_row(room->total + r * width, dh, (float *)a->p[9] + tile.at(r / rows, r % rows) * dh);
}

static void attend(const Args *a, int64_t chunk, char *scratch) {
    const int64_t spans = a->n[9] ? a->n[9] : 1, per = tile_tokens(a);
    int64_t row = 0;
    while (chunk >= row_chunks_of(a, row)) chunk -= row_chunks_of(a, row++);
    const int64_t heads = chunk_heads(a, row), groups = ceil_div(a->n[2], heads), head = chunk / spans % groups * heads;
    const int64_t index = chunk / spans / groups, token = ((const int32_t *)a->p[6])[row] + index * per;
    const Tile tile = {a, row, token, min64(per, row_tokens(a, row) - index * per), head,
                       min64(heads, a->n[2] - head), a->n[1] / a->n[2]};
    const int64_t span = a->n[9] ? chunk % spans : -1;
    Room *room = (Room *)scratch;
    if (a->n[5] == KIND_F32) attend_tile<KIND_F32>(tile, span, room);
    else if (a->n[5] == KIND_BF16) attend_tile<KIND_BF16>(tile, span, room);
    else if (a->n[5] == KIND_F16) attend_tile<KIND_F16>(tile, span, room);
    else attend_tile<KIND_I8>(tile, span, room);
}

// The partial results of `attend` with spans: one chunk a token and KV head.
static int64_t merge_chunks(const Args *a, int) { return a->n[9] ? a->n[0] * a->n[2] : 0; }
static void merge(const Args *a, int64_t chunk, char *scratch) {
    const int64_t dh = a->n[3], spans = a->n[9], heads = a->n[1] / a->n[2];
    float *total = (float *)scratch;
    for (int64_t at = chunk * heads; at < (chunk + 1) * heads; at++) {
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
