"""A simulated NVIDIA driver: a libnvidia-ml.so.1 with two GPUs, built with the C compiler and told what is wrong.

`nvml.c` says what it can be told, through $NVML or the file $NVML_FILE.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")


def library(folder: Path, *flags: str) -> Path:
    """Build the driver into `folder`, and return that. `flags` go to the compiler: -DOLD leaves newer calls out."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the simulated driver with")
    built = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-Wl,-soname,libnvidia-ml.so.1", *flags, "-o", built, SOURCE], check=True
    )
    return folder
