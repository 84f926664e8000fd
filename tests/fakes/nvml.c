/* A simulated NVIDIA driver: two GPUs that say what a test has written.
 *
 * $NVML, or the file $NVML_FILE, holds words: "absurd", "lost", "gone", "mig", "none", "hot", "full", ...; more at once
 * too. "everywhere" with "lost" is both GPUs and not the second one alone. NAME=NUMBER sets a reading (energy, power,
 * ecc, pending, unmended, retired, recovery, hot_memory, lanes, pid, holds, other_holds), or has a call fail with that code where NAME
 * is the call's. xid=NUMBER is reported once, of the GPU xid_on=INDEX. The file is read anew at every call.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *script(void) {
  static __thread char text[2000];
  const char *all = getenv("NVML"), *path = getenv("NVML_FILE");
  FILE *file;
  if (all) return all;
  if (!path || !(file = fopen(path, "r"))) return "";
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  fclose(file);
  return text;
}
static int is(const char *word) { return strstr(script(), word) != NULL; }
static long long number(const char *name, long long otherwise) {
  char key[100];
  const char *found = script();
  int length = snprintf(key, sizeof key, "%s=", name);
  while ((found = strstr(found, key)) && found != script() && found[-1] > ' ') found += length;
  return found ? atoll(found + length) : otherwise;
}
#define CALL do { int code = number(__func__, 0); if (code) return code; } while (0)
static int hit(void *device) { return (long)device == 2 || is("everywhere"); }
static long of(void *device) { return (long)device - 1; }
enum { UNSUPPORTED = 3, NO_ROOM = 7, TIMEOUT = 10, LOST = 15, VERSION = 25 };

int nvmlInitWithFlags(unsigned flags) { CALL; return is("broken") ? 18 : is("unloaded") ? 9 : is("refused") ? 999 : 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) {
  CALL; *n = is("none") ? 0 : is("countless") ? 4000000000U : is("fewer") ? 1 : 2; return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) {
  CALL; *d = (void *)(long)(i + 1); return i == 1 && is("gone") ? LOST : 0;
}
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) {
  CALL; snprintf(s, n, is("nameless") ? "" : "GPU-%ld", of(d) + is("fewer")); return 0;
}
int nvmlDeviceGetName(void *d, char *s, unsigned n) {
  CALL; snprintf(s, n, is("absurd") ? "\xff\xfe" : "Test Card"); return 0;
}

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;
static u64 total(void) { return is("endless") ? ~0ULL : is("empty") ? 0 : 80000000000ULL; }
static u64 unused(void) {
  return is("absurd") ? 90000000000ULL : is("minus") ? -1LL : is("full") ? 50000000ULL : 60000000000ULL;
}
int nvmlDeviceGetMemoryInfo(void *d, Memory *m) {
  CALL;
  if (hit(d) && is("lost")) return LOST;
  m->total = total(); m->used = is("absurd") ? ~0ULL : 20000000000ULL; m->free = unused();
  return 0;
}
typedef struct { unsigned gpu, memory; } Rates;
int nvmlDeviceGetUtilizationRates(void *d, Rates *r) {
  CALL; r->gpu = is("absurd") ? 300 : is("minus") ? -1 : 25; r->memory = 0; return hit(d) && is("lost") ? LOST : 0;
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) {
  CALL; *mw = is("absurd") || is("minus") ? -1 : number("power", 123000); return is("denied") ? 4 : 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *later) {
  CALL; *now = *later = is("mig"); return is("mig") ? 0 : UNSUPPORTED;
}

#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(void *d, Memory2 *m) {
  CALL;
  if (m->version != (sizeof *m | 2 << 24)) return VERSION;
  if (hit(d) && is("lost")) return LOST;
  m->total = total(); m->reserved = 500000000ULL; m->free = unused(); m->used = is("absurd") ? ~0ULL : 19500000000ULL;
  return 0;
}
int nvmlDeviceGetTemperatureV(void *d, int *t) { CALL; t[2] = is("absurd") ? 255 : is("minus") ? -40 : 51; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *d, u64 *r) {
  CALL; *r = is("absurd") ? ~0ULL : is("hot") ? 0x1 | 0x8 | 0x20 | 0x40 : is("cool") ? 0x1 | 0x100 : 0x4 | 0x80;
  return 0;
}
typedef struct { unsigned pid; u64 used; unsigned a, b; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, Process *p) {
  CALL;
  if (!p) { *n = 2; return NO_ROOM; }
  *n = is("absurd") ? 1000 : 2;
  p[0].pid = number("pid", 41); p[0].used = number("holds", 20000000000LL); p[1].pid = 42;
  p[1].used = number("other_holds", ~0ULL);
  return 0;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *n, Process *p) {
  CALL;
  if (!is("desktop")) { *n = 0; return 0; }
  if (!p) { *n = 1; return NO_ROOM; }
  *n = 1; p[0].pid = 43; p[0].used = 1000000000ULL;
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
  CALL; *major = is("absurd") ? -1 : 9; *minor = 0; return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *d, u64 *mj) { CALL; *mj = number("energy", 7000000); return 0; }
int nvmlDeviceGetTotalEccErrors(void *d, unsigned kind, unsigned counter, u64 *n) {
  CALL; *n = is("absurd") ? ~0ULL : kind == 1 && counter == 0 ? number("ecc", 0) : 99; return 0;
}
int nvmlDeviceGetRemappedRows(void *d, unsigned *a, unsigned *b, unsigned *pending, unsigned *failure) {
  CALL; *a = *b = is("absurd") ? ~0U : 0; *pending = is("absurd") ? ~0U : number("pending", 0);
  *failure = is("absurd") ? ~0U : number("unmended", 0);
  return 0;
}
int nvmlDeviceGetRetiredPagesPendingStatus(void *d, unsigned *on) {
  CALL; *on = is("absurd") ? ~0U : number("retired", 0); return 0;
}
int nvmlDeviceGetCurrPcieLinkWidth(void *d, unsigned *n) { CALL; *n = is("absurd") ? ~0U : number("lanes", 16); return 0; }
int nvmlDeviceGetMaxPcieLinkWidth(void *d, unsigned *n) { CALL; *n = is("absurd") ? ~0U : 16; return 0; }
typedef struct { unsigned id, scope; long long at, took; unsigned type, code; union { unsigned ui; u64 ull; } value; } Field;
int nvmlDeviceGetFieldValues(void *d, int n, Field *f) {
  CALL;
  for (int i = 0; i < n; i++) {
    f[i].code = 0; f[i].type = 1; f[i].value.ull = 0;
    if (f[i].id == 82) f[i].value.ui = is("absurd") ? 60000 : number("hot_memory", 63);
    else if (f[i].id == 230) f[i].value.ui = is("absurd") ? 77 : number("recovery", 0);
    else if (f[i].id == 83 && is("energy_field")) { f[i].type = 3; f[i].value.ull = number("energy", 7000000); }
    else f[i].code = UNSUPPORTED;
  }
  return 0;
}

int nvmlEventSetCreate(void **set) { CALL; *set = (void *)1L; return 0; }
int nvmlEventSetFree(void *set) { return 0; }
int nvmlDeviceRegisterEvents(void *d, u64 types, void *set) { CALL; return types & 8 ? 0 : UNSUPPORTED; }
typedef struct { void *device; u64 type, data; unsigned a, b; } Event;
int nvmlEventSetWait_v2(void *set, Event *e, unsigned timeout_ms) {
  static long long told;
  CALL;
  for (unsigned waited = 0; waited <= timeout_ms; waited += 5) {
    long long xid = number("xid", 0);
    if (xid && xid != told) {
      told = xid;
      e->device = (void *)(long)(number("xid_on", 0) + 1); e->type = 8; e->data = xid; e->a = e->b = ~0U;
      return 0;
    }
    usleep(5000);
  }
  return TIMEOUT;
}
#else
int nvmlDeviceGetTemperature(void *d, unsigned sensor, unsigned *t) { CALL; *t = 50; return 0; }
#endif
