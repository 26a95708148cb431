// The functions of NVIDIA's driver that y7edge calls through pycuda and cuda-python, without a GPU.
//
// GPU memory is host memory, and work is done at once. Kernels are those of the package, compiled
// for the CPU (FAKE_KERNELS). What breaks a rule of the driver is in `fake_report`: calls without a
// context, memory that is freed twice, work on the default stream. FAKE_INTEGRATED: the GPU shares
// the memory of the CPU. Types have the size of those in cuda.h.

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

typedef void* Pointer;
typedef unsigned long long Address;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

static std::mutex lock;
static thread_local std::vector<Pointer> contexts;
static std::map<Pointer, std::string> alive;
static std::map<Address, size_t> sizes;  // of memory on the GPU; some of it was freed
static std::string problems;
static bool capturing = false;
static int calls = 0, failing = 0;

struct Function {
    std::string name;
    Pointer on_cpu;
};

static int broken(const std::string& rule, int code) {
    problems += rule + "; ";
    return code;
}

static int made(Pointer place, const char* what) {
    alive[place] = what;
    return OK;
}

static int freed(Pointer place, const char* what) {
    return alive.erase(place) ? OK : broken(std::string(what) + " freed twice", INVALID);
}

static Pointer memory(size_t size) {
    Pointer place = aligned_alloc(256, (size + 255) / 256 * 256);
    sizes[(Address)place] = size;
    return place;
}

// Return whether a range is in memory that was allocated and not freed.
static bool inside(Address begin, size_t size) {
    auto block = sizes.upper_bound(begin);
    if (block == sizes.begin()) return false;
    --block;
    return alive.count((Pointer)block->first) && begin + size <= block->first + block->second;
}

#define IN_CONTEXT                                                      \
    std::lock_guard<std::mutex> guard(lock);                            \
    if (contexts.empty()) return broken(std::string(__func__) + " without a context", INVALID_CONTEXT);

// One call fails, see `fake_fail`; those that free something do not.
#define MAY_FAIL                                                        \
    if (++calls == failing) return OUT_OF_MEMORY;
#define CALL IN_CONTEXT MAY_FAIL

extern "C" {

// Return the number of calls so far; let call `number` fail from now on, counted from 1; 0: none.
int fake_fail(int number) {
    int before = calls;
    calls = 0;
    failing = number;
    return before;
}

// What is alive, how many contexts are current in this thread, and which rules were broken.
const char* fake_report() {
    static std::string text;
    std::lock_guard<std::mutex> guard(lock);
    std::map<std::string, int> counts;
    for (auto& one : alive) counts[one.second]++;
    text = std::to_string(contexts.size()) + " contexts";
    for (auto& one : counts) text += ", " + std::to_string(one.second) + " " + one.first;
    text += problems.empty() ? "" : ". Problems: " + problems;
    return text.c_str();
}

int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int* version) { return *version = 12020, OK; }
int cuDeviceGetCount(int* count) { return *count = 1, OK; }
int cuDeviceGet(int* device, int index) { return *device = index, OK; }
int cuDeviceGetName(char* name, int size, int) { return strncpy(name, "Fake GPU", size), OK; }
int cuDeviceComputeCapability(int* major, int* minor, int) { return *major = 8, *minor = 6, OK; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 18 ? getenv("FAKE_INTEGRATED") != nullptr : 1;  // INTEGRATED
    return OK;
}
int cuDevicePrimaryCtxRetain(Pointer* context, int) { return *context = (Pointer)0x1000, OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return broken("the primary context was released", OK); }
int cuCtxPushCurrent_v2(Pointer context) {
    MAY_FAIL
    return contexts.push_back(context), OK;
}
int cuCtxPopCurrent_v2(Pointer* context) {
    if (contexts.empty()) return broken("a pop without a push", INVALID_CONTEXT);
    *context = contexts.back();
    contexts.pop_back();
    return OK;
}
int cuCtxSynchronize() { CALL return OK; }

int cuStreamCreate(Pointer* stream, unsigned flags) {
    CALL
    if (flags != 1) broken("a stream that waits for the default stream", OK);
    return made(*stream = malloc(1), "streams");
}
int cuStreamDestroy_v2(Pointer stream) { IN_CONTEXT return freed(stream, "a stream"); }
int cuStreamSynchronize(Pointer stream) { CALL return stream ? OK : INVALID; }
int cuStreamWaitEvent(Pointer stream, Pointer, unsigned) { CALL return stream ? OK : INVALID; }
int cuEventCreate(Pointer* event, unsigned) { CALL return made(*event = malloc(1), "events"); }
int cuEventRecord(Pointer, Pointer stream) { CALL return stream ? INVALID : OK; }
int cuEventDestroy_v2(Pointer event) { IN_CONTEXT return freed(event, "an event"); }

int cuMemAlloc_v2(Address* place, size_t size) {
    CALL
    *place = (Address)memory(size);
    return made((Pointer)*place, "blocks");
}
int cuMemFree_v2(Address place) { IN_CONTEXT return freed((Pointer)place, "a block"); }
int cuMemHostAlloc(Pointer* place, size_t size, unsigned) {
    CALL
    return made(*place = memory(size), "pinned blocks");
}
int cuMemFreeHost(Pointer place) { IN_CONTEXT return freed(place, "a pinned block"); }
int cuMemHostGetDevicePointer_v2(Address* place, Pointer host, unsigned) {
    CALL
    return *place = (Address)host, OK;
}
int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t size, Pointer stream) {
    CALL
    if (!inside(to, size)) return broken("a copy to other memory", INVALID);
    return stream ? (memcpy((Pointer)to, from, size), OK) : broken("default stream", INVALID);
}
int cuMemcpyDtoHAsync_v2(Pointer to, Address from, size_t size, Pointer stream) {
    CALL
    if (!inside(from, size)) return broken("a copy from other memory", INVALID);
    return stream ? (memcpy(to, (Pointer)from, size), OK) : broken("default stream", INVALID);
}
int cuPointerGetAttribute(int* value, int attribute, Address) {
    return attribute == 9 ? (*value = 0, OK) : INVALID;  // DEVICE_ORDINAL
}

int cuModuleLoadDataEx(Pointer* module, const char* ptx, unsigned, Pointer, Pointer* values) {
    CALL
    values[1] = values[3] = nullptr;  // sizes of the logs
    return strncmp(ptx, "//", 2) ? INVALID : made(*module = malloc(1), "modules");
}
int cuModuleUnload(Pointer module) { IN_CONTEXT return freed(module, "a module"); }
int cuModuleGetFunction(Function** function, Pointer, const char* name) {
    CALL
    static Pointer kernels = dlopen(getenv("FAKE_KERNELS"), RTLD_NOW);
    *function = new Function{name, dlsym(kernels, (std::string("cpu_") + name).c_str())};
    return (*function)->on_cpu ? OK : NOT_FOUND;
}
int cuFuncSetBlockShape(Function*, int, int, int) { CALL return OK; }
int cuLaunchKernel(Function* function, int across, int down, int deep, int x, int y, int z,
                   unsigned, Pointer stream, Pointer*, Pointer* extra) {
    CALL
    if (!stream) return broken("a launch on the default stream", INVALID);
    typedef int (*Kernel)(const int*, const int*, const char*, size_t, int);
    int grid[] = {across, down, deep}, block[] = {x, y, z};
    Kernel kernel = (Kernel)function->on_cpu;
    int wrong = kernel(grid, block, (const char*)extra[1], *(size_t*)extra[3], 0);
    return wrong ? broken(function->name + " has other arguments", INVALID) : OK;
}
int cuGetErrorString(int, const char** text) { return *text = "refused", OK; }
int cuGetErrorName(int, const char** text) { return *text = "REFUSED", OK; }

// Graphs, through cuda-python, which asks for the addresses of functions by their names.
int cuStreamBeginCapture_v2(Pointer stream, int mode) {
    CALL
    return stream && mode == 1 && !capturing ? (capturing = true, OK) : INVALID;
}
int cuStreamEndCapture(Pointer, Pointer* graph) {
    IN_CONTEXT
    capturing = false;
    return made(*graph = malloc(1), "graphs");
}
int cuGraphInstantiateWithFlags(Pointer* executable, Pointer graph, Address flags) {
    CALL
    if (!alive.count(graph) || flags) return INVALID;
    return made(*executable = malloc(1), "executable graphs");
}
int cuGraphLaunch(Pointer executable, Pointer stream) {
    CALL
    return alive.count(executable) && stream ? OK : INVALID;
}
int cuGraphDestroy(Pointer graph) { IN_CONTEXT return freed(graph, "a graph"); }
int cuGraphExecDestroy(Pointer executable) { IN_CONTEXT return freed(executable, "a graph"); }
int cuGetProcAddress_v2(const char* name, Pointer* function, int, Address, int* found) {
    static Pointer self = dlopen("libcuda.so.1", RTLD_NOW);
    for (const char* version : {"", "_v2"})
        if ((*function = dlsym(self, (std::string(name) + version).c_str()))) break;
    if (found) *found = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
}
