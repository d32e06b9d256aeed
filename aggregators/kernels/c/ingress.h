/* Numbers as they come off the wire, into a row, in one pass. `ingress.py` says what that means.
 *
 * Everything is done with the bits of the numbers, so nothing depends on the state of the processor.
 */
static inline __attribute__((always_inline)) uint32_t widened_16(const char *wire, int64_t i) {
  uint16_t bits;
  memcpy(&bits, wire + i * 2, sizeof bits);
  return (uint32_t)bits << 16;
}
static inline __attribute__((always_inline)) uint32_t widened_32(const char *wire, int64_t i) {
  uint32_t bits;
  memcpy(&bits, wire + i * 4, sizeof bits);
  return bits;
}
static inline __attribute__((always_inline)) uint32_t rounded_32(uint32_t bits) {
  uint32_t near = bits + 0x7fff + (bits >> 16 & 1); /* to even */
  uint32_t nan = -(uint32_t)((int32_t)(bits & 0x7fffffff) > 0x7f800000); /* a mask: branches are no vectors */
  return (nan & (bits | 0x400000)) | (~nan & near);
}

#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

/* Nonzero if what was stored is not finite. `wire` lies anywhere: apart from the row, or where the numbers are
 * to be, since a number is read before it is written and never again. That is what the pragma says. */
#define LANDED(NAME, FROM, ROUNDED, TO, SHIFT)                                    \
  int VERB(NAME)(const char *wire, int64_t count, TO *row) {                      \
    uint32_t bad = 0;                                                             \
    INDEPENDENT                                                                   \
    for (int64_t i = 0; i < count; i++) {                                         \
      uint32_t bits = FROM(wire, i);                                              \
      bits = ROUNDED(bits & -(uint32_t)((int32_t)(bits & 0x7fffffff) >= 0x00800000)); \
      bad |= (int32_t)(bits & 0x7fffffff) >= 0x7f800000;                          \
      row[i] = (TO)(bits >> SHIFT);                                               \
    }                                                                             \
    return (int)bad;                                                              \
  }
LANDED(landed_float32_float32, widened_32, , uint32_t, 0)
LANDED(landed_bfloat16_float32, widened_16, , uint32_t, 0)
LANDED(landed_float32_bfloat16, widened_32, rounded_32, uint16_t, 16)
LANDED(landed_bfloat16_bfloat16, widened_16, , uint16_t, 16)
