/* The kernels of kernels.h for any processor, and which of the compiled versions this one can run.
 *
 * Clang and others get this version only, with the registers that every processor of the kind has.
 */
#define LEVEL 1
#define BYTES 16
#define R 3
#include "kernels.h"
#include "ingress.h"

int varangian_level(void) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("x86-64-v4")) return 4;
  if (__builtin_cpu_supports("x86-64-v3")) return 3;
#endif
  return LEVEL;
}

int varangian_abi(void) { return 5; }
