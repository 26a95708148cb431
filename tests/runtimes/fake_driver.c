/* A libcuda.so.1 without a GPU, for the real pycuda and cuda-python: memory is ordinary memory, copies
   are done at once, kernels and graphs do nothing. Functions that are not here are added by
   test_pycuda.py, and fail.

   It counts what is alive, refuses calls without a context, and lets one call fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, NOT_FOUND = 500 };
typedef unsigned long long address;

static __thread void *stack[16];
static __thread int depth;
static int context, alive, calls, fail_at;

int fake_alive(void) { return alive; }
int fake_depth(void) { return depth; }
/* Return the number of calls since the last reset; let call `number` fail from now on, 0: none. */
int fake_reset(int number) {
    int done = calls;
    calls = 0;
    fail_at = number;
    return done;
}

#define NEED_CONTEXT if (!depth) { fprintf(stderr, "%s without a context\n", __func__); return NO_CONTEXT; }
#define MAY_FAIL if (++calls == fail_at) return OUT_OF_MEMORY;

static int make(void **object, size_t size) {
    size_t rounded = (size + 255) / 256 * 256;
    *object = memset(aligned_alloc(256, rounded), 0, rounded);
    alive++;
    return OK;
}
static int destroy(void *object) {
    free(object);
    alive--;
    return OK;
}

int cuInit(unsigned flags) { return OK; }
int cuGetErrorString(int code, const char **text) { *text = "error of the fake driver"; return OK; }
int cuGetErrorName(int code, const char **text) { *text = "FAKE_ERROR"; return OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return OK; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Fake GPU", size); return OK; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { *major = 8; *minor = 6; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *integrated = getenv("FAKE_INTEGRATED");
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : attribute == 18 ? integrated != NULL : 0;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; return OK; }

int cuCtxPushCurrent_v2(void *pushed) { MAY_FAIL stack[depth++] = pushed; return OK; }
int cuCtxPopCurrent_v2(void **popped) {
    NEED_CONTEXT
    depth--;
    if (popped) *popped = stack[depth];
    return OK;
}
int cuCtxGetCurrent(void **current) { *current = depth ? stack[depth - 1] : NULL; return OK; }
int cuCtxGetDevice(int *device) { NEED_CONTEXT *device = 0; return OK; }
int cuCtxSynchronize(void) { NEED_CONTEXT MAY_FAIL return OK; }
int cuMemGetInfo_v2(size_t *free_, size_t *total) { NEED_CONTEXT *free_ = *total = 1 << 30; return OK; }

int cuStreamCreate(void **stream, unsigned flags) { NEED_CONTEXT MAY_FAIL return make(stream, 1); }
int cuStreamDestroy_v2(void *stream) { NEED_CONTEXT return destroy(stream); }
int cuStreamSynchronize(void *stream) { NEED_CONTEXT MAY_FAIL return OK; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { NEED_CONTEXT MAY_FAIL return OK; }
int cuEventCreate(void **event, unsigned flags) { NEED_CONTEXT MAY_FAIL return make(event, 1); }
int cuEventDestroy_v2(void *event) { NEED_CONTEXT return destroy(event); }
int cuEventRecord(void *event, void *stream) { NEED_CONTEXT MAY_FAIL return OK; }

int cuMemAlloc_v2(void **place, size_t size) { NEED_CONTEXT MAY_FAIL return make(place, size); }
int cuMemFree_v2(void *place) { NEED_CONTEXT return destroy(place); }
int cuMemHostAlloc(void **place, size_t size, unsigned flags) { NEED_CONTEXT MAY_FAIL return make(place, size); }
int cuMemFreeHost(void *place) { NEED_CONTEXT return destroy(place); }
int cuMemHostGetDevicePointer_v2(address *device, void *host, unsigned flags) {
    NEED_CONTEXT MAY_FAIL
    *device = (address)host;
    return OK;
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream) {
    NEED_CONTEXT MAY_FAIL
    memcpy(to, from, size);
    return OK;
}
int cuMemcpyDtoHAsync_v2(void *to, void *from, size_t size, void *stream) {
    NEED_CONTEXT MAY_FAIL
    memcpy(to, from, size);
    return OK;
}
int cuPointerGetAttribute(int *result, int attribute, address place) { *result = 0; return OK; }

int cuModuleLoadDataEx(void **module, const char *ptx, unsigned count, void *options, void **values) {
    NEED_CONTEXT MAY_FAIL
    return strstr(ptx, ".entry") ? make(module, 1) : NOT_FOUND;
}
int cuModuleUnload(void *module) { NEED_CONTEXT return destroy(module); }
/* A function is its name, whose memory is never freed. */
int cuModuleGetFunction(void **function, void *module, const char *name) {
    NEED_CONTEXT MAY_FAIL
    *function = strdup(name);
    return OK;
}
int cuFuncSetBlockShape(void *function, int x, int y, int z) { return OK; }
/* Print name, grid, block and size of the parameters. */
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **values, void **extra) {
    NEED_CONTEXT MAY_FAIL
    size_t size = 0;
    for (; extra && *extra; extra += 2)
        if (*extra == (void *)2) size = *(size_t *)extra[1]; /* CU_LAUNCH_PARAM_BUFFER_SIZE */
    printf("%s %u,%u,%u %u,%u,%u %zu\n", (char *)function, gx, gy, gz, bx, by, bz, size);
    return OK;
}

int cuStreamBeginCapture_v2(void *stream, int mode) { NEED_CONTEXT MAY_FAIL return OK; }
int cuStreamEndCapture(void *stream, void **graph) { NEED_CONTEXT MAY_FAIL return make(graph, 1); }
int cuGraphDestroy(void *graph) { NEED_CONTEXT return destroy(graph); }
int cuGraphInstantiateWithFlags(void **made, void *graph, address flags) { NEED_CONTEXT MAY_FAIL return make(made, 1); }
int cuGraphExecDestroy(void *graph) { NEED_CONTEXT return destroy(graph); }
int cuGraphLaunch(void *graph, void *stream) { NEED_CONTEXT MAY_FAIL return OK; }

/* cuda-python asks for functions by name, without the ending of their newest version. */
int cuGetProcAddress_v2(const char *name, void **function, int version, address flags, int *status) {
    static const char *endings[] = {"WithFlags", "_v2", ""};
    Dl_info self;
    dladdr((void *)cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = NULL;
    for (int i = 0; i < 3 && !*function; i++) {
        char full[128];
        snprintf(full, sizeof full, "%s%s", name, endings[i]);
        *function = dlsym(library, full);
    }
    if (status) *status = *function ? 0 : 1;
    return OK;
}
