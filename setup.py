"""Builds the CPU kernels as an optional extension: where there is no C compiler, the install succeeds without them."""

import glob
import os
import sysconfig

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class BdistWheel(bdist_wheel):
    """A wheel without the extension is tagged py3-none-any.

    pip keeps and reuses wheels by their tags: one without kernels must not be taken for one that has them.
    """

    def run(self) -> None:
        self.run_command("build")
        if not any(map(os.path.exists, self.get_finalized_command("build_ext").get_outputs())):
            self.distribution.ext_modules = []
            self.root_is_pure, self.py_limited_api = True, False
        super().run()


setup(
    cmdclass={"bdist_wheel": BdistWheel},
    ext_modules=[
        Extension(
            "fastvae.kernels.cpu._kernels",
            sources=sorted(glob.glob("kernels/cpu/*.c")),
            depends=sorted(glob.glob("kernels/cpu/*.h")),
            extra_compile_args=[
                "-std=gnu11",
                "-O3",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-g0",
            ],
            define_macros=[] if free_threaded else [("Py_LIMITED_API", "0x030A0000")],
            libraries=["dl"],
            py_limited_api=not free_threaded,
            optional=True,
        )
    ],
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
