"""Builds the CPU kernels as an optional extension: where there is no C compiler, the install succeeds without them."""

import glob
import sysconfig

from setuptools import Extension, setup

free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    ext_modules=[
        Extension(
            "fastvae.kernels.cpu._kernels",
            sources=sorted(glob.glob("kernels/cpu/*.c")),
            depends=sorted(glob.glob("kernels/cpu/*.h")),
            extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"],
            define_macros=[] if free_threaded else [("Py_LIMITED_API", "0x030A0000")],
            libraries=["dl"],
            py_limited_api=not free_threaded,
            optional=True,
        )
    ],
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
