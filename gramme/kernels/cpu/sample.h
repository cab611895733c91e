// The choice of a token from each row of logits, as `sample` in reference.py says it. Knows no vocabulary and no step.
//
// Tokens are ordered by falling logit, then id, but nothing is sorted: a token's key is the bits of its distance from the
// largest logit, whose order is that of the numbers, and a position in the order is found digit by digit (radix select),
// by the probability or the number of the tokens in each bucket. Loops are such as compilers vectorise.
#pragma once
#include "rows.h"

#define BUCKETS 2048    // of the first digit, bits 30 to 20 of a key; the others have 10 bits
#define SAMPLE_BLOCK 256

// e^x for x <= 0 to about one unit in the last place; 0 below -708 and for what is not a number.
static inline double exp_64(double x) {
    const double in = x < -708.0 ? -708.0 : x, magic = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves an integer
    const double t = in * 1.4426950408889634 + magic, n = t - magic;
    const double r = (in - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800;  // Taylor's terms of |r| <= ln 2 / 2: the next one is 4e-18
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits, shift;  // unsigned: what is shifted out is meant to be
    __builtin_memcpy(&bits, &p, 8);
    __builtin_memcpy(&shift, &t, 8);
    bits += shift << 52;
    __builtin_memcpy(&p, &bits, 8);
    return x >= -708.0 ? p : 0.0;
}

// A row and how its token is drawn. Probabilities are relative to the largest.
struct Draw {
    const float *x;
    int64_t count;
    float heat, largest;  // temperature, and the largest x / temperature
    double least;         // min_p
    uint32_t key(int64_t i) const {
        const float distance = largest - x[i] / heat;
        uint32_t bits;
        __builtin_memcpy(&bits, &distance, 4);
        return bits & 0x7fffffff;
    }
    double probability(uint32_t key) const {
        float distance;
        __builtin_memcpy(&distance, &key, 4);
        return exp_64(-(double)distance);
    }
};

struct Histogram {
    double mass[BUCKETS];
    int64_t number[BUCKETS];
};

// Adds up what lies in each bucket of the digit `key >> shift & (buckets - 1)`, of keys whose higher bits are `prefix`.
static void add_up(const Draw &d, uint32_t prefix, int shift, int buckets, Histogram *h) {
    __builtin_memset(h->mass, 0, (size_t)buckets * sizeof *h->mass);
    __builtin_memset(h->number, 0, (size_t)buckets * sizeof *h->number);
    const uint64_t width = (uint64_t)buckets << shift, low = prefix;
    for (int64_t i = 0; i < d.count; i += SAMPLE_BLOCK) {
        const int64_t n = min64(SAMPLE_BLOCK, d.count - i);
        uint32_t keys[SAMPLE_BLOCK], hits = 0;
        double p[SAMPLE_BLOCK];
        for (int64_t j = 0; j < n; j++) {
            keys[j] = d.key(i + j);
            hits += keys[j] >= low && keys[j] < low + width;
        }
        if (!hits) continue;
        if (hits > 16)
            for (int64_t j = 0; j < n; j++) p[j] = d.probability(keys[j]);
        for (int64_t j = 0; j < n; j++) {
            if (keys[j] < low || keys[j] >= low + width) continue;
            const double one = hits > 16 ? p[j] : d.probability(keys[j]);
            if (!(one >= d.least)) continue;
            const uint32_t bucket = keys[j] >> shift & (uint32_t)(buckets - 1);
            h->mass[bucket] += one;
            h->number[bucket]++;
        }
    }
}

// A position in the order: the `nth` token of those with this key, by id from 1 on; all up to it have `mass`.
struct Position {
    uint32_t key;
    int64_t nth;
    double mass;
};

// What a position must reach: that many tokens, at least that mass, or more than it.
struct Goal {
    int64_t number;
    double at_least, above;
    bool reached(int64_t n, double mass) const { return n >= number || mass >= at_least || mass > above; }
};

// The first position that reaches the goal, else the last of all.
static Position find(const Draw &d, const Histogram &first, const Goal &goal, Histogram *room) {
    uint32_t prefix = 0;
    double mass = 0, before = 0;
    int64_t number = 0, inside = 0;
    for (int shift = 20; shift >= 0; shift -= 10) {
        const int buckets = shift == 20 ? BUCKETS : 1024;
        if (shift < 20) add_up(d, prefix, shift, buckets, room);
        const Histogram &h = shift == 20 ? first : *room;
        int last = -1;
        for (int b = 0; b < buckets; b++) {
            if (!h.number[b]) continue;
            if (last >= 0) {
                mass += h.mass[last];
                number += h.number[last];
            }
            last = b;
            if (goal.reached(number + h.number[b], mass + h.mass[b])) break;
        }
        if (last < 0) return {prefix, 1, mass};
        before = h.mass[last];
        inside = h.number[last];
        prefix |= (uint32_t)last << shift;
    }
    int64_t nth = 0;
    while (nth < inside && (nth == 0 || !goal.reached(number + nth, mass))) {
        mass += before / (double)inside;
        nth++;
    }
    return {prefix, nth, mass};
}

static bool behind(const Position &a, const Position &b) { return a.key > b.key || (a.key == b.key && a.nth > b.nth); }

static int32_t token_at(const Draw &d, const Position &at) {
    int64_t nth = 0;
    int32_t token = 0;
    for (int64_t i = 0; i < d.count && nth < at.nth; i++)
        if (d.key(i) == at.key) {
            token = (int32_t)i;
            nth++;
        }
    return token;
}

static int32_t draw(const Draw &d, float top_p, int64_t top_k, double u, char *scratch) {
    const double never = 1.0e300;
    const int64_t all = INT64_MAX;
    Histogram *first = (Histogram *)scratch, *room = first + 1;
    add_up(d, 0, 20, BUCKETS, first);
    Position end = {0, 0, 0};
    if (top_k > 0) end = find(d, *first, {top_k, never, never}, room);
    else
        for (int b = 0; b < BUCKETS; b++) end.mass += first->mass[b];
    if (top_p < 1) {
        const Position cut = find(d, *first, {all, (double)top_p * end.mass, never}, room);
        if (!end.nth || behind(end, cut)) end = cut;
    }
    const Position at = find(d, *first, {all, never, u * end.mass}, room);
    return token_at(d, end.nth && behind(at, end) ? end : at);
}

// p: 0 x (N, V), 1 tokens (N) int32: -1 where a value is not finite, 2 temperature (N), 3 top_p (N), 4 min_p (N),
//    5 top_k (N) int32, 6 u (N) float64; n: N, V. Temperature 0: the first of the largest.
static int64_t sample_chunks(const Args *a, int) { return a->n[0]; }
static void sample(const Args *a, int64_t row, char *scratch) {
    int64_t v = a->n[1], i = 0;
    const float *x = floats(a, 0) + row * v, heat = floats(a, 2)[row];
    vf largest = vf_set1(-3.402823466e38f);
    vi bits = vi_zero();
    for (; i + VL <= v; i += VL) {
        vf y = vf_load(x + i);
        largest = vf_max(largest, y);
        bits = vi_max(bits, vi_abs_bits(y));
    }
    float best = vf_hmax(largest);
    bool finite = vi_hmax(bits) < 0x7f800000;
    for (; i < v; i++) {
        best = x[i] > best ? x[i] : best;
        finite = finite && __builtin_isfinite(x[i]);
    }
    int32_t *token = (int32_t *)a->p[1] + row;
    if (!finite) *token = -1;
    else if (heat > 0) {
        const Draw d = {x, v, heat, best / heat, (double)floats(a, 4)[row]};
        *token = draw(d, floats(a, 3)[row], ((const int32_t *)a->p[5])[row], ((const double *)a->p[6])[row], scratch);
    } else {
        int64_t at = 0;
        while (x[at] != best) at++;
        *token = (int32_t)at;
    }
}
