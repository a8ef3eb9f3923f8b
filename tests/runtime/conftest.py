import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from numpy.typing import NDArray

from fvit.runtime import kernels


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """kernels.cu, built for the host."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    built = tmp_path_factory.mktemp("kernels") / "kernels.so"
    flags = ["-x", "c++", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "-o", built, kernels.SOURCE], check=True)
    return ctypes.CDLL(str(built))


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    """The address of a contiguous array's first element."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
