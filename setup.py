"""The one thing that pyproject.toml cannot say: kernels in C, built where there is a compiler.

Without one the installation succeeds all the same, and plain torch does the work.
"""

import sys

from setuptools import Extension, setup

KERNELS = "src/varangian/aggregators/kernels/c"

kernels = Extension(
    "varangian.aggregators.kernels._native",
    sources=[f"{KERNELS}/{name}.c" for name in ("native", "native_v3", "native_v4")],
    depends=[f"{KERNELS}/{name}.h" for name in ("kernels", "networks", "ingress")],
    extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    if sys.platform != "win32"
    else [],
    optional=True,
)
setup(ext_modules=[kernels])
