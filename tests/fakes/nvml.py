"""A simulated NVIDIA driver: a libnvidia-ml.so.1 with two GPUs, built with the C compiler and told what is wrong."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

STUB = r"""
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
/* $NVML, or the file $NVML_FILE, says what is wrong: "absurd", "lost", "gone", "mig", "none", "hot", "full", …; more
   at once too; "everywhere" with "lost" is both GPUs and not the second one alone. */
static int is(const char *word) {
  static char text[200]; const char *all = getenv("NVML"), *path = getenv("NVML_FILE"); FILE *file;
  if (!all && path && (file = fopen(path, "r"))) {
    text[fread(text, 1, sizeof text - 1, file)] = 0; fclose(file); all = text;
  }
  return all && strstr(all, word) != NULL;
}
static int hit(void *device) { return (long)device == 2 || is("everywhere"); }
static long of(void *device) { return (long)device - 1; }
int nvmlInitWithFlags(unsigned flags) { return is("broken") ? 18 : is("unloaded") ? 9 : is("refused") ? 999 : 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) {
  *n = is("none") ? 0 : is("countless") ? 4000000000U : is("fewer") ? 1 : 2; return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) {
  *d = (void *)(long)(i + 1); return i == 1 && is("gone") ? 15 : 0;
}
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) {
  snprintf(s, n, is("nameless") ? "" : "GPU-%ld", of(d) + is("fewer")); return 0;
}
int nvmlDeviceGetName(void *d, char *s, unsigned n) {
  snprintf(s, n, is("absurd") ? "\xff\xfe" : "Test Card"); return 0;
}
typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(void *d, Memory *m) {
  if (hit(d) && is("lost")) return 15;
  m->total = is("endless") ? ~0ULL : is("empty") ? 0 : 80000000000ULL; m->used = 20000000000ULL;
  m->free = is("absurd") ? 90000000000ULL : is("minus") ? -1LL : is("full") ? 50000000ULL : 60000000000ULL;
  return 0;
}
typedef struct { unsigned gpu, memory; } Rates;
int nvmlDeviceGetUtilizationRates(void *d, Rates *r) {
  r->gpu = is("absurd") ? 300 : is("minus") ? -1 : 25; r->memory = 0; return hit(d) && is("lost") ? 15 : 0;
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) {
  *mw = is("absurd") || is("minus") ? -1 : 123000; return is("denied") ? 4 : 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *later) {
  *now = *later = is("mig"); return is("mig") ? 0 : 3;
}
#ifndef OLD
int nvmlDeviceGetTemperatureV(void *d, int *t) { t[2] = is("absurd") ? 255 : is("minus") ? -40 : 51; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *r) {
  *r = is("absurd") ? ~0ULL : is("hot") ? 0x1 | 0x8 | 0x20 | 0x40 : is("cool") ? 0x1 | 0x100 : 0x4 | 0x80; return 0;
}
typedef struct { unsigned pid; unsigned long long used; unsigned a, b; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, Process *p) {
  if (!p) { *n = 2; return 7; }
  *n = is("absurd") ? 1000 : 2; p[0].pid = 41; p[0].used = 20000000000ULL; p[1].pid = 42; p[1].used = ~0ULL;
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
  *major = is("absurd") ? -1 : 9; *minor = 0; return 0;
}
#else
int nvmlDeviceGetTemperature(void *d, unsigned sensor, unsigned *t) { *t = 50; return 0; }
#endif
"""


def library(folder: Path, *flags: str) -> Path:
    """Build the driver into `folder`, and return that. `flags` go to the compiler: -DOLD leaves newer calls out."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the simulated driver with")
    (folder / "nvml.c").write_text(STUB)
    built = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-Wl,-soname,libnvidia-ml.so.1", *flags, "-o", built, folder / "nvml.c"],
        check=True,
    )
    return folder
