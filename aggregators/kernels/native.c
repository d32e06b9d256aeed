/* The verbs that read d columns, for float32 rows on a CPU. `reference.py` says what they mean.
 *
 *   n rows, each a pointer to its first column    d columns    W columns of one tile
 *
 * One thread does one call; the caller splits the columns and adds partial results in a fixed order, so the
 * bits do not depend on the number of threads. Everything is bound by memory as long as a tile stays in the
 * first-level cache and its arithmetic in registers.
 *
 * Every function that computes is cloned for the instruction sets below by CLONES, and everything it calls
 * must be INLINE: a plain static helper would be compiled once, for the oldest processor.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "networks.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

enum { W = 64, NARROW = 16, WIDE = 32, MOST = 512 };
typedef float tile[W];
typedef struct {
  int32_t low, high, kind; /* kind 0: both results are wanted; 1: the smaller; 2: the larger */
} comparator;

/* Subnormal numbers cost a hundred times a normal one on x86 and mean nothing in a gradient: read and
 * write them as zero. The state is the thread's own and is put back. */
#if defined(__x86_64__)
INLINE unsigned flushing(void) {
  unsigned before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(before | 0x8040);
  return before;
}
INLINE void restored(unsigned before) { __builtin_ia32_ldmxcsr(before); }
#else
INLINE unsigned flushing(void) { return 0; }
INLINE void restored(unsigned before) { (void)before; }
#endif

/* ---- columns: sort each column, then take what the rule wants of it --------------------------------- */

#define POINT(i) const float *p##i = rows[i];
#define LOAD(i) float t##i = p##i[c];
#define ADD(i) s += t##i;
#define X(a, b) { float x = t##a, y = t##b; t##a = x < y ? x : y; t##b = x < y ? y : x; }
#define STORE(i) t[i][c] = t##i;

/* `bad` turns to NaN, for good, where a row was not finite (or a sum of finite rows overflowed). */
#define SORT(n)                                                                                   \
  INLINE void sort_##n(const float *const *rows, tile *restrict t, float *restrict bad) {         \
    EACH_##n(POINT)                                                                               \
    for (int c = 0; c < W; c++) {                                                                 \
      float s = 0;                                                                                \
      EACH_##n(LOAD) EACH_##n(ADD) NETWORK_##n EACH_##n(STORE)                                    \
      bad[c] += s - s;                                                                            \
    }                                                                                             \
  }
EACH_SIZE(SORT)

INLINE void sort_block(const float *const *rows, int n, tile *restrict t, float *restrict bad) {
#define CASE(n) case n: sort_##n(rows, t, bad); break;
  switch (n) { EACH_SIZE(CASE) default: break; }
}

INLINE void merge(tile *t, const comparator *net, int64_t m) {
  for (const comparator *k = net; k < net + m; k++) {
    float *restrict a = t[k->low], *restrict b = t[k->high];
    if (k->kind == 0)
      for (int c = 0; c < W; c++) { float x = a[c], y = b[c]; a[c] = x < y ? x : y; b[c] = x < y ? y : x; }
    else if (k->kind == 1)
      for (int c = 0; c < W; c++) a[c] = a[c] < b[c] ? a[c] : b[c];
    else
      for (int c = 0; c < W; c++) b[c] = a[c] < b[c] ? b[c] : a[c];
  }
}

INLINE void sum_ranks(tile *t, int lo, int hi, float *restrict s) {
  for (int c = 0; c < W; c++) s[c] = t[lo][c];
  for (int i = lo + 1; i < hi; i++)
    for (int c = 0; c < W; c++) s[c] += t[i][c];
}

/* The `count` values nearest to a centre are neighbours in rank: the least `count`, of which each makes way
 * for the one `count` ranks above it while that is nearer. Nothing is subtracted from a sum, so that a huge
 * value that is left out leaves no rounding behind. */
INLINE void nearest(tile *t, int n, int count, const float *restrict centre, float *restrict s) {
  for (int i = count; i < n; i++) {
    float *restrict kept = t[i % count], *restrict in = t[i];
    for (int c = 0; c < W; c++) kept[c] = in[c] - centre[c] < centre[c] - kept[c] ? in[c] : kept[c];
  }
  sum_ranks(t, 0, count, s);
}

typedef struct {
  int64_t n, lo, hi, count, merges;
  const comparator *net;
} order;

INLINE void reduce(const float *const *rows, const order *o, tile *t, float *restrict bad, float *restrict s) {
  int64_t at = 0;
  for (; at + WIDE <= o->n; at += WIDE) sort_block(rows + at, WIDE, t + at, bad);
  for (; at < o->n; at += NARROW)
    sort_block(rows + at, (int)(o->n - at < NARROW ? o->n - at : NARROW), t + at, bad);
  merge(t, o->net, o->merges);
  sum_ranks(t, (int)o->lo, (int)o->hi, s);
  for (int c = 0; c < W; c++) s[c] /= (float)(o->hi - o->lo);
  if (o->count) {
    float centre[W];
    memcpy(centre, s, sizeof centre);
    for (int c = 0; c < W; c++) {
      float range = t[o->n - 1][c] - t[0][c]; /* or a distance would overflow */
      bad[c] += range - range;
    }
    nearest(t, (int)o->n, (int)o->count, centre, s);
    for (int c = 0; c < W; c++) s[c] /= (float)o->count;
  }
}

/* Pointers to W columns of each row: into the rows themselves, or into a padded copy at the very end. */
INLINE void window(const float *const *rows, int64_t n, int64_t at, int64_t d, tile *pad, const float **here) {
  int whole = at + W <= d;
  for (int64_t i = 0; i < n; i++) {
    if (!whole) {
      memset(pad[i], 0, sizeof(tile));
      memcpy(pad[i], rows[i] + at, (size_t)(d - at) * sizeof(float));
    }
    here[i] = whole ? rows[i] + at : pad[i];
  }
}

/* t[k] = sum of coords[k, i] rows[i]: what nearest-neighbour mixing does to one tile, GROUP points at a time. */
enum { GROUP = 4, SUB = 16 };
INLINE void mix(const float *const *rows, int64_t n, const float *coords, int64_t points, tile *restrict t) {
  for (int64_t k = 0; k < points; k += GROUP)
    for (int at = 0; at < W; at += SUB) {
      float s[GROUP][SUB] = {{0}};
      for (int64_t i = 0; i < n; i++) {
        const float *restrict r = rows[i] + at;
        for (int g = 0; g < GROUP; g++) {
          float a = k + g < points ? coords[(k + g) * n + i] : 0;
          for (int c = 0; c < SUB; c++) s[g][c] += a * r[c];
        }
      }
      for (int g = 0; g < GROUP; g++)
        if (k + g < points) memcpy(&t[k + g][at], s[g], sizeof s[g]);
    }
}

/* out[c] = the order statistic of column c of the rows, or of `points` mixtures of them when there are
 * coords (points, n). Returns nonzero when a row may not be finite; `out` is then meaningless. */
CLONES int varangian_columns(const float *const *rows, int64_t n, int64_t d, const float *coords,
                             int64_t points, const comparator *net, int64_t merges, int64_t lo,
                             int64_t hi, int64_t count, float *out) {
  unsigned before = flushing();
  tile t[MOST], pad[MOST], mixed[MOST];
  const float *here[MOST], *of_mixed[MOST];
  float bad[W] = {0}, s[W];
  order o = {coords ? points : n, lo, hi, count, merges, net};
  for (int64_t k = 0; k < points; k++) of_mixed[k] = mixed[k];
  for (int64_t at = 0; at < d; at += W) {
    window(rows, n, at, d, pad, here);
    if (coords) mix(here, n, coords, points, mixed);
    reduce(coords ? of_mixed : here, &o, t, bad, s);
    memcpy(out + at, s, (size_t)(d - at < W ? d - at : W) * sizeof(float));
  }
  restored(before);
  int found = 0;
  for (int c = 0; c < W; c++) found |= bad[c] != 0;
  return found;
}

INLINE void vote(const float *restrict r, float *restrict votes, float *restrict sum) {
  for (int c = 0; c < W; c++) {
    float x = r[c], up = x > 0 ? 1.0f : 0.0f, down = x < 0 ? 1.0f : 0.0f;
    votes[c] += up - down;
    sum[c] += x;
  }
}

/* out[c] = scale times the sign that most rows have in column c, 0 for a tie. As above about `coords` and what
 * is returned. */
CLONES int varangian_majority(const float *const *rows, int64_t n, int64_t d, const float *coords,
                              int64_t points, float scale, float *out) {
  unsigned before = flushing();
  tile pad[MOST], mixed[MOST];
  const float *here[MOST], *of_mixed[MOST];
  float bad[W] = {0};
  for (int64_t k = 0; k < points; k++) of_mixed[k] = mixed[k];
  for (int64_t at = 0; at < d; at += W) {
    float votes[W] = {0}, sum[W] = {0};
    window(rows, n, at, d, pad, here);
    if (coords) mix(here, n, coords, points, mixed);
    for (int64_t i = 0; i < points; i++) vote(coords ? of_mixed[i] : here[i], votes, sum);
    for (int c = 0; c < W; c++) {
      bad[c] += sum[c] - sum[c];
      votes[c] = votes[c] > 0 ? scale : votes[c] < 0 ? -scale : 0.0f;
    }
    memcpy(out + at, votes, (size_t)(d - at < W ? d - at : W) * sizeof(float));
  }
  restored(before);
  int found = 0;
  for (int c = 0; c < W; c++) found |= bad[c] != 0;
  return found;
}

/* ---- gram: inner products of (x_1 - r, ..., x_n - r, r) ---------------------------------------------- */

#if defined(__GNUC__)
typedef float lanes_32 __attribute__((vector_size(64)));
typedef double lanes_64 __attribute__((vector_size(64)));
#endif

enum { R = 4, STRIP = 256, SHORT = 8 }; /* R x R pairs in registers; SHORT strips are summed in float32 */

#define BLOCK_PRODUCTS(NAME, VEC, LANES)                                                          \
  /* acc[i][j] += x_i . y_j over one strip, lane by lane. */                                      \
  INLINE void NAME(const VEC *x, const VEC *y, VEC *acc) {                                        \
    VEC s[R][R];                                                                                  \
    for (int i = 0; i < R; i++)                                                                   \
      for (int j = 0; j < R; j++) s[i][j] = acc[i * R + j];                                       \
    for (int k = 0; k < STRIP / LANES; k++) {                                                     \
      VEC a[R], b[R];                                                                             \
      for (int i = 0; i < R; i++) a[i] = x[i * (STRIP / LANES) + k];                              \
      for (int i = 0; i < R; i++) b[i] = y[i * (STRIP / LANES) + k];                              \
      for (int i = 0; i < R; i++)                                                                 \
        for (int j = 0; j < R; j++) s[i][j] += a[i] * b[j];                                       \
    }                                                                                             \
    for (int i = 0; i < R; i++)                                                                   \
      for (int j = 0; j < R; j++) acc[i * R + j] = s[i][j];                                       \
  }
BLOCK_PRODUCTS(products_32, lanes_32, 16)
BLOCK_PRODUCTS(products_64, lanes_64, 8)

/* Adds the lanes of every accumulator to its total and clears it. */
#define FLUSH(NAME, VEC, LANES)                                                                   \
  INLINE void NAME(VEC *acc, double *total, size_t pairs) {                                       \
    for (size_t p = 0; p < pairs; p++) {                                                          \
      double s = 0;                                                                               \
      for (int l = 0; l < LANES; l++) s += (double)acc[p][l];                                     \
      total[p] += s;                                                                              \
    }                                                                                             \
    memset(acc, 0, pairs * sizeof(VEC));                                                          \
  }
FLUSH(flush_32, lanes_32, 16)
FLUSH(flush_64, lanes_64, 8)

/* One strip of x - r, or of x where there is no r, as float32 or as exact float64. Past the end: zeros. */
INLINE void strip_32(const float *x, const float *r, int64_t w, float *restrict to) {
  if (w == STRIP && r) for (int c = 0; c < STRIP; c++) to[c] = x[c] - r[c];
  else if (w == STRIP) for (int c = 0; c < STRIP; c++) to[c] = x[c];
  else for (int c = 0; c < STRIP; c++) to[c] = c < w ? x[c] - (r ? r[c] : 0) : 0;
}
INLINE void strip_64(const float *x, const float *r, int64_t w, double *restrict to) {
  if (w == STRIP && r) for (int c = 0; c < STRIP; c++) to[c] = (double)x[c] - (double)r[c];
  else if (w == STRIP) for (int c = 0; c < STRIP; c++) to[c] = (double)x[c];
  else for (int c = 0; c < STRIP; c++) to[c] = c < w ? (double)x[c] - (r ? (double)r[c] : 0) : 0;
}

/* Row blocks I <= J in a fixed order, so that a pair's sum does not depend on which other rows there are. */
#define GRAM(NAME, VEC, REAL, LANES, STRIP_OF, PRODUCTS, FLUSHED)                                 \
  CLONES int NAME(const float *const *rows, const float *reference, int64_t n, int64_t d, double *out) { \
    int64_t m = n + (reference != NULL), blocks = (m + R - 1) / R;                                \
    size_t pairs = (size_t)(blocks * (blocks + 1) / 2) * R * R;                                   \
    size_t strip_bytes = (size_t)(blocks * R) * STRIP * sizeof(REAL), acc_bytes = pairs * sizeof(VEC); \
    char *memory = aligned_alloc(64, strip_bytes + acc_bytes + (pairs * sizeof(double) + 63) / 64 * 64); \
    if (!memory) return -1;                                                                       \
    REAL *strips = (REAL *)memory;                                                                \
    VEC *acc = (VEC *)(memory + strip_bytes);                                                     \
    double *total = (double *)(memory + strip_bytes + acc_bytes);                                 \
    memset(memory, 0, strip_bytes + acc_bytes + pairs * sizeof(double));                          \
    unsigned before = flushing();                                                                 \
    for (int64_t at = 0, turn = 1; at < d; at += STRIP, turn++) {                                 \
      int64_t w = d - at < STRIP ? d - at : STRIP;                                                \
      for (int64_t i = 0; i < n; i++)                                                             \
        STRIP_OF(rows[i] + at, reference ? reference + at : NULL, w, strips + i * STRIP);         \
      if (reference) STRIP_OF(reference + at, NULL, w, strips + n * STRIP);                       \
      VEC *a = acc;                                                                               \
      for (int64_t I = 0; I < blocks; I++)                                                        \
        for (int64_t J = I; J < blocks; J++, a += R * R)                                          \
          PRODUCTS((VEC *)(strips + I * R * STRIP), (VEC *)(strips + J * R * STRIP), a);          \
      if (turn % SHORT == 0 || at + STRIP >= d) FLUSHED(acc, total, pairs);                       \
    }                                                                                             \
    restored(before);                                                                             \
    double *a = total;                                                                            \
    for (int64_t I = 0; I < blocks; I++)                                                          \
      for (int64_t J = I; J < blocks; J++, a += R * R)                                            \
        for (int64_t p = 0; p < R * R; p++) {                                                     \
          int64_t i = I * R + p / R, j = J * R + p % R;                                           \
          if (i < m && j < m) out[i * m + j] = out[j * m + i] = a[p];                             \
        }                                                                                         \
    free(memory);                                                                                 \
    return 0;                                                                                     \
  }
GRAM(varangian_gram, lanes_32, float, 16, strip_32, products_32, flush_32)
GRAM(varangian_gram_exact, lanes_64, double, 8, strip_64, products_64, flush_64)

/* ---- combine: weighted sums of the rows --------------------------------------------------------------- */

enum { C = 256 };
/* out[k * stride + c] = sum of weights[k, i] rows[i][c]. */
CLONES int varangian_combine(const float *const *rows, const float *weights, int64_t n, int64_t d,
                             int64_t points, int64_t stride, float *out) {
  unsigned before = flushing();
  for (int64_t at = 0; at < d; at += C) {
    int64_t w = d - at < C ? d - at : C;
    for (int64_t k = 0; k < points; k++) {
      float s[C] = {0};
      for (int64_t i = 0; i < n; i++) {
        const float *r = rows[i] + at;
        float a = weights[k * n + i];
        if (w == C) for (int c = 0; c < C; c++) s[c] += a * r[c];
        else for (int c = 0; c < w; c++) s[c] += a * r[c];
      }
      memcpy(out + k * stride + at, s, (size_t)w * sizeof(float));
    }
  }
  restored(before);
  return 0;
}

int64_t varangian_abi(void) { return 1; }
