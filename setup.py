"""The one thing that pyproject.toml cannot say: kernels in C, built where there is a compiler.

Without one the installation succeeds all the same, and plain torch does the work.
"""

import platform
import sys

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"]
if platform.machine().lower() in ("x86_64", "amd64"):
    # Where the processor has them, 512-bit registers double the speed of the sorting networks.
    FLAGS.append("-mprefer-vector-width=512")

kernels = Extension(
    "varangian.aggregators.kernels._native",
    sources=["src/varangian/aggregators/kernels/native.c"],
    depends=["src/varangian/aggregators/kernels/networks.h"],
    extra_compile_args=FLAGS if sys.platform != "win32" else [],
    optional=True,
)
setup(ext_modules=[kernels])
