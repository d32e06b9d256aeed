/* The verbs that read d columns, for float32 rows on a CPU. `reference.py` says what they mean.
 *
 *   n rows, each a pointer to its first column    d columns    W columns of one tile
 *
 * Included once for each kind of processor, by a file that has said which: LEVEL names the functions, BYTES
 * is the width of a vector register, R x R of them hold sums of products.
 *
 * One thread does one call; the caller splits the columns and adds partial results in a fixed order, so the
 * bits do not depend on the number of threads. What is bound by memory stays so as long as a tile stays in
 * the first-level cache, its arithmetic in registers, and the next tile is on its way meanwhile.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "networks.h"

#define INLINE static inline __attribute__((always_inline))
#define PASTED_(name, level) name##_v##level
#define PASTED(name, level) PASTED_(name, level)
#define VERB(name) PASTED(varangian_##name, LEVEL)

enum { W = 64, LINE = 16, LANES = BYTES / 4, NARROW = 16, WIDE = 32, MOST = 512 };
enum { AHEAD = 2 * W }; /* Columns: a processor follows too few rows by itself. Past the end it is harmless. */
typedef float tile[W];
typedef float reals __attribute__((vector_size(BYTES)));
typedef int32_t ints __attribute__((vector_size(BYTES)));
typedef float loose __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef struct {
  int32_t low, high, kind; /* kind 0: both results are wanted; 1: the smaller; 2: the larger */
} comparator;

/* Subnormal numbers cost a hundred times a normal one on x86 and mean nothing in a gradient: read and
 * write them as zero. The state is the thread's own and is put back. */
#if defined(__x86_64__)
INLINE uint64_t flushing(void) {
  unsigned before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(before | 0x8040);
  return before;
}
INLINE void restored(uint64_t before) { __builtin_ia32_ldmxcsr((unsigned)before); }
#elif defined(__aarch64__)
INLINE uint64_t flushing(void) {
  uint64_t before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  __asm__ volatile("msr fpcr, %0" : : "r"(before | 1u << 24) : "memory");
  return before;
}
INLINE void restored(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory"); }
#else
INLINE uint64_t flushing(void) { return 0; }
INLINE void restored(uint64_t before) { (void)before; }
#endif

INLINE int any(const float *bad) {
  int found = 0;
  for (int c = 0; c < W; c++) found |= bad[c] != 0;
  return found;
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

/* ---- weighted sums of the rows ------------------------------------------------------------------------ */

/* GROUP points of SPAN registers at a time are all that the registers hold. */
enum { GROUP = 5, SPAN = BYTES == 64 ? 4 : 2 };

INLINE void mix_few(const float *const *rows, int64_t n, const float *coords, int points, int first,
                    tile *restrict t) {
  for (int at = 0; at < W; at += SPAN * LANES) {
    reals s[GROUP][SPAN] = {{{0}}};
    for (int64_t i = 0; i < n; i++) {
      const float *x = rows[i] + at;
      reals r[SPAN];
      if (first)
        for (int c = 0; c < SPAN * LANES; c += LINE) __builtin_prefetch(x + AHEAD + c);
      for (int v = 0; v < SPAN; v++) r[v] = *(const loose *)(x + v * LANES);
      for (int k = 0; k < points; k++)
        for (int v = 0; v < SPAN; v++) s[k][v] += coords[k * n + i] * r[v];
    }
    for (int k = 0; k < points; k++)
      for (int v = 0; v < SPAN; v++) *(loose *)(t[k] + at + v * LANES) = s[k][v];
  }
}

/* t[k] = sum of coords[k, i] rows[i]. */
INLINE void mix(const float *const *rows, int64_t n, const float *coords, int64_t points, tile *t) {
  int64_t k = 0;
  for (; k + GROUP <= points; k += GROUP)
    if (k) mix_few(rows, n, coords + k * n, GROUP, 0, t + k);
    else mix_few(rows, n, coords, GROUP, 1, t);
#define REST(m) case m: mix_few(rows, n, coords + k * n, m, 1, t + k); break;
  switch (points - k) { REST(1) REST(2) REST(3) REST(4) default: break; }
}

/* out[k * stride + c] = sum of weights[k, i] rows[i][c]. Returns nonzero where that is not finite. */
int VERB(combine)(const float *const *rows, const float *weights, int64_t n, int64_t d, int64_t points,
                  int64_t stride, float *out) {
  uint64_t before = flushing();
  tile pad[MOST], t[MOST];
  const float *here[MOST];
  float bad[W] = {0};
  for (int64_t at = 0; at < d; at += W) {
    window(rows, n, at, d, pad, here);
    mix(here, n, weights, points, t);
    for (int64_t k = 0; k < points; k++) {
      for (int c = 0; c < W; c++) bad[c] += t[k][c] - t[k][c];
      memcpy(out + k * stride + at, t[k], (size_t)(d - at < W ? d - at : W) * sizeof(float));
    }
  }
  restored(before);
  return any(bad);
}

/* ---- columns: sort each column, then take what the rule wants of it ----------------------------------- */

#define POINT(i) const float *p##i = rows[i];
#define FETCH(i) __builtin_prefetch(p##i + AHEAD + b);
#define LOAD(i) float t##i = p##i[c];
#define ADD(i) s += t##i;
#define X(a, b) { float x = t##a, y = t##b; t##a = x < y ? x : y; t##b = x < y ? y : x; }
#define STORE(i) t[i][c] = t##i;

/* `bad` turns to NaN, for good, where a row was not finite (or a sum of finite rows overflowed). */
#define SORT(n)                                                                                   \
  INLINE void sort_##n(const float *const *rows, tile *restrict t, float *restrict bad) {         \
    EACH_##n(POINT)                                                                               \
    for (int b = 0; b < W; b += LINE) {                                                           \
      EACH_##n(FETCH)                                                                             \
      for (int c = b; c < b + LINE; c++) {                                                        \
        float s = 0;                                                                              \
        EACH_##n(LOAD) EACH_##n(ADD) NETWORK_##n EACH_##n(STORE)                                  \
        bad[c] += s - s;                                                                          \
      }                                                                                           \
    }                                                                                             \
  }
EACH_SIZE(SORT)

/* The mean of the middle one or two of up to NARROW rows, which need not be sorted for that. */
#define MIN(a, b) t##a = t##a < t##b ? t##a : t##b;
#define MAX(a, b) t##b = t##a < t##b ? t##b : t##a;
#define MIDDLE(n, lo, hi)                                                                         \
  INLINE void middle_##n(const float *const *rows, float *restrict bad, float *restrict out) {    \
    EACH_##n(POINT)                                                                               \
    for (int b = 0; b < W; b += LINE) {                                                           \
      EACH_##n(FETCH)                                                                             \
      for (int c = b; c < b + LINE; c++) {                                                        \
        float s = 0;                                                                              \
        EACH_##n(LOAD) EACH_##n(ADD) MIDDLE_##n                                                   \
        bad[c] += s - s;                                                                          \
        out[c] = lo == hi ? t##lo : (t##lo + t##hi) / 2;                                          \
      }                                                                                           \
    }                                                                                             \
  }
EACH_MIDDLE(MIDDLE)
INLINE void middle(const float *const *rows, int n, float *restrict bad, float *restrict out) {
#define MIDDLE_CASE(n, lo, hi) case n: middle_##n(rows, bad, out); break;
  switch (n) { EACH_MIDDLE(MIDDLE_CASE) default: break; }
}

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
  if (o->n > 1 && o->n <= NARROW && !o->count && o->lo == (o->n - 1) / 2 && o->hi == o->n / 2 + 1) {
    middle(rows, (int)o->n, bad, s);
    return;
  }
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

/* out[c] = the order statistic of column c of the rows, or of `points` mixtures of them when there are
 * coords (points, n). Returns nonzero when a row may not be finite; `out` is then meaningless. */
int VERB(columns)(const float *const *rows, int64_t n, int64_t d, const float *coords, int64_t points,
                  const comparator *net, int64_t merges, int64_t lo, int64_t hi, int64_t count, float *out) {
  uint64_t before = flushing();
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
  return any(bad);
}

/* The sign that most values of each column have, times `scale`. A comparison that holds is -1 in each lane. */
INLINE void vote(const float *const *rows, int64_t n, float scale, float *restrict bad, float *restrict s) {
  const ints plus = (ints)(scale + (reals){0}), minus = (ints)(-scale + (reals){0});
  for (int at = 0; at < W; at += SPAN * LANES) {
    ints votes[SPAN] = {{0}};
    reals sum[SPAN] = {{0}};
    for (int64_t i = 0; i < n; i++) {
      const float *x = rows[i] + at;
      for (int c = 0; c < SPAN * LANES; c += LINE) __builtin_prefetch(x + AHEAD + c);
      for (int v = 0; v < SPAN; v++) {
        reals r = *(const loose *)(x + v * LANES);
        votes[v] += (r < 0) - (r > 0);
        sum[v] += r;
      }
    }
    for (int v = 0; v < SPAN; v++) {
      *(loose *)(s + at + v * LANES) = (reals)(((votes[v] > 0) & plus) | ((votes[v] < 0) & minus));
      *(loose *)(bad + at + v * LANES) += sum[v] - sum[v];
    }
  }
}

/* As above about `coords` and what is returned. */
int VERB(majority)(const float *const *rows, int64_t n, int64_t d, const float *coords, int64_t points,
                   float scale, float *out) {
  uint64_t before = flushing();
  tile pad[MOST], mixed[MOST];
  const float *here[MOST], *of_mixed[MOST];
  float bad[W] = {0}, s[W];
  for (int64_t k = 0; k < points; k++) of_mixed[k] = mixed[k];
  for (int64_t at = 0; at < d; at += W) {
    window(rows, n, at, d, pad, here);
    if (coords) mix(here, n, coords, points, mixed);
    vote(coords ? of_mixed : here, points, scale, bad, s);
    memcpy(out + at, s, (size_t)(d - at < W ? d - at : W) * sizeof(float));
  }
  restored(before);
  return any(bad);
}

/* ---- columns by weight: values are sorted with their weights, which then say how much of each counts ------ */

typedef int32_t tags[W];
typedef struct {
  int64_t n, merges;
  const comparator *net;
  const int32_t *tag; /* of each row: its weight in units, or its place in `wide` */
  const double *wide; /* weights in units; NULL where `tag` has them */
  int64_t low, high, slack;
  int kind; /* 0: the mean of what lies between low and high; 1: the median, halfway; 2: the lower median */
} weighing;

/* As above, but a tag goes with each value. */
#undef X
#define X(a, b) {                                                                                 \
    float x = t##a, y = t##b;                                                                     \
    int32_t p = q##a, r = q##b;                                                                   \
    t##a = y < x ? y : x; t##b = y < x ? x : y; q##a = y < x ? r : p; q##b = y < x ? p : r;        \
  }
#define TAG(i) int32_t q##i = tag[i];
#define STORE_TAG(i) q[i][c] = q##i;
#define SORT_TAGGED(n)                                                                            \
  INLINE void sort_tagged_##n(const float *const *rows, const int32_t *tag, tile *restrict t,     \
                              tags *restrict q, float *restrict bad) {                            \
    EACH_##n(POINT)                                                                               \
    for (int b = 0; b < W; b += LINE) {                                                           \
      EACH_##n(FETCH)                                                                             \
      for (int c = b; c < b + LINE; c++) {                                                        \
        float s = 0;                                                                              \
        EACH_##n(LOAD) EACH_##n(TAG) EACH_##n(ADD) NETWORK_##n EACH_##n(STORE) EACH_##n(STORE_TAG) \
        bad[c] += s - s;                                                                          \
      }                                                                                           \
    }                                                                                             \
  }
EACH_NARROW(SORT_TAGGED)
INLINE void sort_tagged(const float *const *rows, const int32_t *tag, int n, tile *t, tags *q,
                        float *restrict bad) {
#define CASE_TAGGED(n) case n: sort_tagged_##n(rows, tag, t, q, bad); break;
  switch (n) { EACH_NARROW(CASE_TAGGED) default: break; }
}
INLINE void merge_tagged(tile *t, tags *q, const comparator *net, int64_t m) {
  for (const comparator *k = net; k < net + m; k++) {
    float *restrict a = t[k->low], *restrict b = t[k->high];
    int32_t *restrict v = q[k->low], *restrict w = q[k->high];
    for (int c = 0; c < W; c++) {
      float x = a[c], y = b[c];
      int32_t p = v[c], r = w[c];
      a[c] = y < x ? y : x; b[c] = y < x ? x : y; v[c] = y < x ? r : p; w[c] = y < x ? p : r;
    }
  }
}

/* Running sums of units are exact, so nothing is left of a value that is cut but `slack` units, which are
 * dropped: a rounding error must not be multiplied by a number that a Byzantine row chose. */
#define WEIGHED(NAME, SUM, WEIGHT)                                                                \
  INLINE void NAME(tile *t, tags *q, const weighing *o, float *restrict s) {                      \
    const SUM low = (SUM)o->low, high = (SUM)o->high, slack = (SUM)o->slack;                      \
    const double *wide = o->wide;                                                                 \
    (void)wide;                                                                                   \
    SUM total[W] = {0};                                                                           \
    if (o->kind == 0) {                                                                           \
      const float unit = 1 / (float)(high - low), most = __FLT_MAX__;                             \
      float taken[W] = {0}, found[W] = {0};                                                       \
      for (int64_t i = 0; i < o->n; i++)                                                          \
        for (int c = 0; c < W; c++) {                                                             \
          SUM before = total[c], after = before + WEIGHT(q[i][c]);                                \
          SUM kept = (after < high ? after : high) - (before > low ? before : low);               \
          float part = kept > slack ? (float)kept * unit : 0;                                     \
          found[c] += part * t[i][c];                                                             \
          taken[c] += part;                                                                       \
          total[c] = after;                                                                       \
        }                                                                                         \
      for (int c = 0; c < W; c++) {                                                               \
        float mean = found[c] / taken[c];                                                         \
        s[c] = mean > most ? most : mean < -most ? -most : mean;                                  \
      }                                                                                           \
    } else {                                                                                      \
      float lower[W], upper[W];                                                                   \
      for (int64_t i = 0; i < o->n; i++)                                                          \
        for (int c = 0; c < W; c++) {                                                             \
          lower[c] = !i || total[c] < low ? t[i][c] : lower[c];                                   \
          upper[c] = !i || total[c] <= high ? t[i][c] : upper[c];                                 \
          total[c] += WEIGHT(q[i][c]);                                                            \
        }                                                                                         \
      for (int c = 0; c < W; c++) s[c] = o->kind == 2 ? lower[c] : lower[c] / 2 + upper[c] / 2;   \
    }                                                                                             \
  }
#define OWN(tag) (tag)
#define LISTED(tag) wide[tag]
WEIGHED(weighed_few, int32_t, OWN)
WEIGHED(weighed_many, double, LISTED)

/* out[c] = the statistic of column c by weight; as above about `coords` and what is returned. */
int VERB(weighted)(const float *const *rows, int64_t n, int64_t d, const float *coords, int64_t points,
                   const comparator *net, int64_t merges, const int32_t *tag, const double *wide, int64_t low,
                   int64_t high, int64_t slack, int64_t kind, float *out) {
  uint64_t before = flushing();
  tile t[MOST], pad[MOST], mixed[MOST];
  tags q[MOST];
  const float *here[MOST], *of_mixed[MOST];
  float bad[W] = {0}, s[W];
  weighing o = {coords ? points : n, merges, net, tag, wide, low, high, slack, (int)kind};
  for (int64_t k = 0; k < points; k++) of_mixed[k] = mixed[k];
  for (int64_t at = 0; at < d; at += W) {
    window(rows, n, at, d, pad, here);
    if (coords) mix(here, n, coords, points, mixed);
    const float *const *from = coords ? of_mixed : here;
    for (int64_t i = 0; i < o.n; i += NARROW)
      sort_tagged(from + i, tag + i, (int)(o.n - i < NARROW ? o.n - i : NARROW), t + i, q + i, bad);
    merge_tagged(t, q, net, merges);
    if (wide) weighed_many(t, q, &o, s);
    else weighed_few(t, q, &o, s);
    memcpy(out + at, s, (size_t)(d - at < W ? d - at : W) * sizeof(float));
  }
  restored(before);
  return any(bad);
}

/* ---- gram: inner products of (z_1, ..., z_n, r) -------------------------------------------------------- *
 *
 * z_i = x_i - x_p for the parent p of row i, or x_i - r where it has none. Parents are chosen by what the first
 * columns show: where rows share a part that is long beside their distances, one of them is the parent of the
 * others, and the common part is gone before anything is multiplied.
 */

typedef double doubles __attribute__((vector_size(BYTES)));

enum { STRIP = 256, SHORT = 16 }; /* SHORT strips are summed in float32: as many columns as `blocked.WIDTH` */

/* One strip of x - r, or of x where there is no r, as float32 or as exact float64. Past the end: zeros.
 * What float32 takes as it is is not copied. */
#define STRIP_OF(NAME, REAL)                                                                      \
  INLINE void NAME(const float *x, const float *r, int64_t w, REAL *restrict to) {                \
    if (w == STRIP && r) for (int c = 0; c < STRIP; c++) to[c] = (REAL)x[c] - (REAL)r[c];         \
    else if (w == STRIP) for (int c = 0; c < STRIP; c++) to[c] = (REAL)x[c];                      \
    else for (int c = 0; c < STRIP; c++) to[c] = c < w ? (REAL)x[c] - (r ? (REAL)r[c] : 0) : 0;   \
  }
STRIP_OF(strip_32, float)
STRIP_OF(strip_64, double)

/* acc[i][j] += x_i . y_j over one strip, lane by lane; only j >= i where x and y are the same rows. Two such
 * blocks are taken at once: one alone has too few sums for multiply-adds that wait for each other. Meanwhile
 * the strip `soon` is fetched. None of this is inlined, or sums would be kept on the stack. */
#define EACH_STEP(REAL) /* `at` is the first column of a register */                              \
  for (int line = 0; line < STRIP; line += LINE)                                                  \
    for (int at = (__builtin_prefetch(soon + line, 0, 2), line); at < line + LINE; at += BYTES / sizeof(REAL))
#define APART static __attribute__((noinline))
#define EACH_SUM for (int i = 0; i < R; i++) for (int j = same ? i : 0; j < R; j++)
#define PRODUCTS(NAME, ONE, TWO, VEC, REAL, LOAD_FROM)                                            \
  APART void NAME(const REAL *const *x, const REAL *const *y, VEC *acc, const float *soon) {      \
    enum { same = 0 };                                                                            \
    VEC s[R][R];                                                                                  \
    EACH_SUM s[i][j] = acc[i * R + j];                                                            \
    EACH_STEP(REAL) {                                                                             \
      VEC a[R], b[R];                                                                             \
      for (int i = 0; i < R; i++) a[i] = *(const LOAD_FROM *)(x[i] + at);                         \
      for (int i = 0; i < R; i++) b[i] = *(const LOAD_FROM *)(y[i] + at);                         \
      EACH_SUM s[i][j] += a[i] * b[j];                                                            \
    }                                                                                             \
    EACH_SUM acc[i * R + j] = s[i][j];                                                            \
  }                                                                                               \
  APART void ONE(const REAL *const *x, VEC *acc, const float *soon) {                             \
    enum { same = 1 };                                                                            \
    VEC s[R][R];                                                                                  \
    EACH_SUM s[i][j] = acc[i * R + j];                                                            \
    EACH_STEP(REAL) {                                                                             \
      VEC a[R];                                                                                   \
      for (int i = 0; i < R; i++) a[i] = *(const LOAD_FROM *)(x[i] + at);                         \
      EACH_SUM s[i][j] += a[i] * a[j];                                                            \
    }                                                                                             \
    EACH_SUM acc[i * R + j] = s[i][j];                                                            \
  }                                                                                               \
  APART void TWO(const REAL *const *x, VEC *acc, VEC *next, const float *soon) {                  \
    enum { same = 1 };                                                                            \
    VEC s[R][R], t[R][R];                                                                         \
    EACH_SUM s[i][j] = acc[i * R + j], t[i][j] = next[i * R + j];                                 \
    EACH_STEP(REAL) {                                                                             \
      VEC a[R];                                                                                   \
      for (int i = 0; i < R; i++) a[i] = *(const LOAD_FROM *)(x[i] + at);                         \
      EACH_SUM s[i][j] += a[i] * a[j];                                                            \
      for (int i = 0; i < R; i++) a[i] = *(const LOAD_FROM *)(x[R + i] + at);                     \
      EACH_SUM t[i][j] += a[i] * a[j];                                                            \
    }                                                                                             \
    EACH_SUM acc[i * R + j] = s[i][j], next[i * R + j] = t[i][j];                                 \
  }
PRODUCTS(products_32, block_32, blocks_32, reals, float, loose)
PRODUCTS(products_64, block_64, blocks_64, doubles, double, doubles)

/* Adds the accumulators to their totals, lane by lane, and clears them. */
#define FLUSH(NAME, REAL)                                                                         \
  INLINE void NAME(REAL *restrict acc, double *restrict total, size_t lanes) {                    \
    for (size_t p = 0; p < lanes; p++) total[p] += (double)acc[p];                                \
    memset(acc, 0, lanes * sizeof(REAL));                                                         \
  }
FLUSH(flush_32, float)
FLUSH(flush_64, double)

/* Squared distances of less than KEPT of the squares that they are the difference of have too few bits left. */
#define KEPT 0.1

/* |x_i - x_j|^2 from the products b (m, m) of the z, and whether it kept enough bits. No parent has a parent. */
INLINE double apart(const double *b, int64_t m, const int32_t *parent, int64_t i, int64_t j, int *kept) {
  if (parent[i] < 0 && parent[j] < 0) {
    double sum = b[i * m + i] + b[j * m + j], apart = sum - 2 * b[i * m + j];
    *kept = !(apart < KEPT * sum);
    return apart;
  }
  int64_t at[4] = {i, j, parent[i], parent[j]};
  double sign[4] = {1, -1, parent[i] >= 0, -(double)(parent[j] >= 0)}, square = 0, scale = 0;
  if (parent[i] == parent[j]) sign[2] = sign[3] = 0;
  if (parent[i] == j) sign[1] = sign[2] = 0;
  if (parent[j] == i) sign[0] = sign[3] = 0;
  for (int k = 0; k < 4; k++) {
    if (sign[k] == 0) continue;
    scale += b[at[k] * m + at[k]];
    for (int l = 0; l < 4; l++)
      if (sign[l] != 0) square += sign[k] * sign[l] * b[at[k] * m + at[l]];
  }
  *kept = !(square < KEPT * scale); /* also where something is not finite */
  return square;
}

/* Whether a distance is lost. Rows whose products are the same to the last bit are taken to be equal. */
INLINE int any_lost(const double *b, int64_t m, int64_t n, const int32_t *parent) {
  for (int64_t i = 0; i < n; i++) {
    int64_t p = parent[i];
    if (p >= 0 && b[i * m + i] + b[p * m + p] + 2 * b[i * m + p] < KEPT * (b[i * m + i] + b[p * m + p]))
      return 1; /* it is nearer to r */
    for (int64_t j = i + 1; j < n; j++) {
      int kept;
      if (apart(b, m, parent, i, j, &kept) != 0 && !kept) return 1;
    }
  }
  return 0;
}

/* The same after all d columns, where equal rows have to be equal indeed. */
INLINE int any_lost_of(const double *b, int64_t m, int64_t n, const int32_t *parent, const float *const *rows,
                       int64_t d) {
  if (any_lost(b, m, n, parent)) return 1;
  for (int64_t j = 1; j < n; j++)
    for (int64_t i = 0; i < j; i++) {
      int kept;
      if (apart(b, m, parent, i, j, &kept) != 0 || kept) continue;
      if (memcmp(rows[i], rows[j], (size_t)d * sizeof(float))) return 1;
      break; /* the others that are equal to it were compared with the first */
    }
  return 0;
}

/* Row by row: the one with the most lost distances, and of these the one nearest to those rows, becomes the
 * parent of them all. Nobody had a parent before. `centres.refined` does the same. */
INLINE void adopt(const double *b, int64_t m, int64_t n, int32_t *parent) {
  char lost[MOST * MOST / 8] = {0}, done[MOST] = {0};
#define AT(i, j) ((i) * MOST + (j))
#define LOST(i, j) (lost[AT(i, j) / 8] >> (AT(i, j) % 8) & 1)
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) {
      double scale = b[i * m + i] + b[j * m + j], square = scale - 2 * b[i * m + j];
      if (i != j && square < KEPT * scale) lost[AT(i, j) / 8] |= (char)(1 << AT(i, j) % 8);
    }
  for (;;) {
    int64_t best = -1, most = 0;
    double least = 0;
    for (int64_t i = 0; i < n; i++) {
      if (done[i]) continue;
      int64_t count = 0;
      double sum = 0;
      for (int64_t j = 0; j < n; j++)
        if (LOST(i, j) && !done[j]) count++, sum += b[i * m + i] + b[j * m + j] - 2 * b[i * m + j];
      if (count > most || (count == most && count && sum < least)) best = i, most = count, least = sum;
    }
    if (best < 0) return;
    done[best] = 1;
    for (int64_t j = 0; j < n; j++)
      if (LOST(best, j) && !done[j]) parent[j] = (int32_t)best, done[j] = 1;
  }
}

#define SUMMED(NAME, REAL)                                                                        \
  INLINE void NAME(const double *total, int64_t m, double *out) {                                 \
    int64_t blocks = (m + R - 1) / R;                                                             \
    const double *a = total;                                                                      \
    for (int64_t I = 0; I < blocks; I++)                                                          \
      for (int64_t J = I; J < blocks; J++)                                                        \
        for (int64_t p = 0; p < R * R; p++, a += BYTES / sizeof(REAL)) {                          \
          int64_t i = I * R + p / R, j = J * R + p % R;                                           \
          if (i > j || j >= m) continue;                                                          \
          double s = 0;                                                                           \
          for (size_t l = 0; l < BYTES / sizeof(REAL); l++) s += a[l];                            \
          out[i * m + j] = out[j * m + i] = s;                                                    \
        }                                                                                         \
  }
SUMMED(summed_32, float)
SUMMED(summed_64, double)

/* Row blocks I <= J in a fixed order, so that a pair's sum does not depend on which other rows there are, as
 * long as none has a parent. `parent` (n) is -1 where a row has none. If none has, the first SHORT strips may
 * give some one, and the sums begin again. Returns 1 where distances were lost all the same, -1 without memory. */
#define GRAM(NAME, VEC, REAL, STRIP_TO, PRODUCTS_OF, BLOCK_OF, BLOCKS_OF, FLUSHED, SUMMED_UP, LOOKS) \
  int VERB(NAME)(const float *const *rows, const float *reference, int64_t n, int64_t d, int32_t *parent, \
                 double *out) {                                                                   \
    int64_t m = n + (reference != NULL), blocks = (m + R - 1) / R, couples = blocks * (blocks + 1) / 2; \
    int64_t calls = couples - blocks / 2;                                                         \
    size_t lanes = (size_t)couples * R * R * (BYTES / sizeof(REAL));                              \
    size_t strip_bytes = (size_t)(blocks * R) * STRIP * sizeof(REAL), acc_bytes = lanes * sizeof(REAL); \
    char *memory = aligned_alloc(64, (strip_bytes + acc_bytes + lanes * sizeof(double) + 63) / 64 * 64); \
    if (!memory) return -1;                                                                       \
    REAL *strips = (REAL *)memory, *acc = (REAL *)(memory + strip_bytes);                         \
    double *total = (double *)(memory + strip_bytes + acc_bytes);                                 \
    const REAL *here[MOST + R];                                                                   \
    memset(memory, 0, strip_bytes + acc_bytes + lanes * sizeof(double));                          \
    uint64_t before = flushing();                                                                 \
    int given = 0, lost = 0;                                                                      \
    for (int64_t i = 0; i < n; i++) given |= parent[i] >= 0;                                      \
    for (int64_t at = 0, turn = 1; at < d; at += STRIP, turn++) {                                 \
      int64_t w = d - at < STRIP ? d - at : STRIP, couple = 0, call = 0;                          \
      for (int64_t i = 0; i < blocks * R; i++) {                                                  \
        const float *from = i >= n ? NULL : parent[i] >= 0 ? rows[parent[i]] : reference;         \
        here[i] = strips + i * STRIP;                                                             \
        if (i >= n) continue;                                                                     \
        if (sizeof(REAL) == sizeof(float) && !from && w == STRIP)                                 \
          here[i] = (const REAL *)(const void *)(rows[i] + at);                                   \
        else STRIP_TO(rows[i] + at, from ? from + at : NULL, w, strips + i * STRIP);              \
      }                                                                                           \
      if (reference) STRIP_TO(reference + at, NULL, w, strips + n * STRIP);                       \
      for (int64_t i = calls; i < n; i++)                                                         \
        for (int c = 0; c < STRIP; c += LINE) __builtin_prefetch(rows[i] + at + STRIP + c, 0, 2); \
      for (int64_t I = 0; I < blocks; couple += blocks - I, I++)                                  \
        for (int64_t J = I; J < blocks; J++) {                                                    \
          if (I == J && I % 2) continue; /* with the one before */                                \
          const REAL *const *x = here + I * R, *const *y = here + J * R;                          \
          VEC *a = (VEC *)acc + (couple + J - I) * R * R;                                         \
          const float *soon = rows[call < n ? call : n - 1] + at + STRIP;                         \
          call++;                                                                                 \
          if (I != J) PRODUCTS_OF(x, y, a, soon);                                                 \
          else if (I + 1 == blocks) BLOCK_OF(x, a, soon);                                         \
          else BLOCKS_OF(x, a, a + (blocks - I) * R * R, soon);                                   \
        }                                                                                         \
      if (turn % SHORT == 0 || at + STRIP >= d) FLUSHED(acc, total, lanes);                       \
      if (LOOKS && !given && (turn == SHORT || at + STRIP >= d)) {                                \
        SUMMED_UP(total, m, out);                                                                 \
        if (!any_lost(out, m, n, parent)) { given = turn == SHORT; continue; }                    \
        given = 1;                                                                                \
        adopt(out, m, n, parent);                                                                 \
        memset(total, 0, lanes * sizeof(double));                                                 \
        at = -STRIP, turn = 0;                                                                    \
      }                                                                                           \
    }                                                                                             \
    SUMMED_UP(total, m, out);                                                                     \
    if (LOOKS) lost = any_lost_of(out, m, n, parent, rows, d);                                    \
    restored(before);                                                                             \
    free(memory);                                                                                 \
    return lost;                                                                                  \
  }
GRAM(gram, reals, float, strip_32, products_32, block_32, blocks_32, flush_32, summed_32, 1)
GRAM(gram_exact, doubles, double, strip_64, products_64, block_64, blocks_64, flush_64, summed_64, 0)
