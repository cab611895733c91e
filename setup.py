"""Compiles the CPU kernels when the package is built; without a compiler the package is built all the same, slow.

A wheel carries the library, so it is for one platform, but for every Python 3.
"""
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
from gramme.kernels.cpu.build import BuildError, build

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel


class BuildWithKernels(build_py):
    def run(self) -> None:
        try:
            build()
        except BuildError as error:
            print(f"gramme: {error}; the CPU kernels are left out: models run on numpy, slowly", file=sys.stderr)
        super().run()


class PlatformWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(distclass=BinaryDistribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
