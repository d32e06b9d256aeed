/* The kernels of kernels.h for x86 processors with AVX2. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=x86-64-v3,prefer-vector-width=256")
#define LEVEL 3
#define BYTES 32
#define R 3
#include "kernels.h"
#include "ingress.h"
#endif
