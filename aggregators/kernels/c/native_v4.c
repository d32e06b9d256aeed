/* The kernels of kernels.h for x86 processors with AVX-512. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define LEVEL 4
#define BYTES 64
#define R 4
#include "kernels.h"
#include "ingress.h"
#endif
