// A libcuda.so.1 whose GPU is host memory: what cuda-core needs of the driver API to run without one.
//
// Streams are lazy: work is queued and runs when the host waits for it (or frees or destroys what it
// hangs on), in the order of the stream.  That is what a very slow GPU looks like, so a host buffer
// that is reused or freed too early gives the wrong result here.  While a stream captures, its work
// goes into a graph instead, and runs at every launch of it.
//
// Device and pinned memory is never at the same address twice; copies to or from what has been
// freed end in CUDA_ERROR_ILLEGAL_ADDRESS.  Fresh device memory is full of 0xCC.
//
// Kernels come from the library named by LDDGAN_FAKE_KERNELS, which has for each
//     void fake_NAME(const unsigned grid[3], const unsigned block[3], void **parameters);
//     const size_t fake_NAME_bytes[];   the parameters' sizes, ended by 0
//
// LDDGAN_FAKE_INIT and LDDGAN_FAKE_CONTEXT are what cuInit and cuDevicePrimaryCtxRetain return,
// LDDGAN_FAKE_VERSION is what cuDriverGetVersion says.
// One host thread is assumed.  A call of what is missing here is named on stderr.

#include <dlfcn.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) CUresult

typedef int CUresult;
typedef unsigned long long u64;
typedef std::function<void()> Work;

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600,
    ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901, CAPTURED_EVENT = 907,
};
enum CaptureMode { GLOBAL, THREAD_LOCAL, RELAXED };
enum CaptureStatus { NONE, ACTIVE, INVALIDATED };

struct Context {};
struct UserObject {
    void *data;
    void (*destroy)(void *);
    long references;
    void add(long count) {
        references += count;
        if (references > 0) return;
        destroy(data);
        delete this;
    }
};
struct Graph {
    std::vector<Work> work = {};
    std::vector<UserObject *> kept = {};
    Graph() = default;
    Graph(const Graph &other) : work(other.work), kept(other.kept) {
        for (UserObject *object : kept) object->add(1);
    }
    ~Graph() {
        for (UserObject *object : kept) object->add(-1);
    }
};
struct Stream {
    Context *context;
    unsigned flags = 0;
    std::deque<Work> queue = {};
    Graph *graph = nullptr;  // that it captures into
    CaptureMode mode = GLOBAL;
    bool invalid = false;  // its capture
};
struct Event {
    bool timed;
    bool captured = false;
    u64 asked = 0, done = 0;  // how often recorded by the host, by the stream
    Stream *stream = nullptr;
    double milliseconds = 0;
};
struct Kernel {
    void (*run)(const unsigned *grid, const unsigned *block, void **parameters);
    const size_t *bytes;
};
struct Block { size_t size; bool on_device; };

// ---- state ----

static Context primary, foreign;
static Context *current = nullptr;
static Stream legacy{&primary}, per_thread{&primary};
static std::vector<Stream *> streams{&legacy, &per_thread};
static std::map<u64, Block> blocks;
static const size_t MEMORY = size_t(1) << 30;
static size_t total = MEMORY, used = 0;  // bytes of the device
static const int MISSING_MOST = 1000;
static const char *missing_names[MISSING_MOST];
static CUresult failure = SUCCESS;  // of queued work; stays, as the driver's do

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

// ---- streams and capture ----

static Stream *stream_of(void *handle) {
    if (handle == nullptr || handle == (void *)1) return &legacy;
    if (handle == (void *)2) return &per_thread;
    for (Stream *stream : streams)
        if (stream == handle) return stream;
    return nullptr;
}

static void drain(Stream *stream) {
    while (!stream->queue.empty()) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        work();
    }
}

static CUresult push(Stream *stream, Work work) {
    if (!stream) return INVALID_HANDLE;
    if (stream->graph && stream->invalid) return CAPTURE_INVALIDATED;
    if (stream->graph) stream->graph->work.push_back(std::move(work));
    else stream->queue.push_back(std::move(work));
    return SUCCESS;
}

static CUresult spoil(Stream *stream, CUresult error) {  // what is not allowed ends a capture
    stream->invalid = true;
    return error;
}

static CUresult wait_for(Stream *stream) {
    if (!stream) return INVALID_HANDLE;
    if (stream->graph) return spoil(stream, CAPTURE_UNSUPPORTED);
    drain(stream);
    return failure;
}

// Calls that may touch every stream fail while one captures, unless it does so in relaxed mode.
static CUresult unsafe() {
    for (Stream *stream : streams)
        if (stream->graph && stream->mode != RELAXED) return spoil(stream, CAPTURE_UNSUPPORTED);
    return SUCCESS;
}

// ---- memory: one range of addresses, none of them used twice ----

static const size_t ARENA = size_t(1) << 40, PAGE = 4096;

static char *arena() {
    static char *start = (char *)mmap(nullptr, ARENA, PROT_NONE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return start;
}

static bool in_arena(u64 address) { return address - (u64)arena() < ARENA; }

static const std::pair<const u64, Block> *block_of(u64 address, size_t bytes) {
    auto next = blocks.upper_bound(address);
    if (next == blocks.begin()) return nullptr;
    auto &block = *--next;
    return address + bytes <= block.first + block.second.size ? &block : nullptr;
}

static CUresult allocate(u64 *address, size_t bytes, bool on_device) {
    static size_t next = 0;
    if (!bytes) return INVALID_VALUE;
    if (on_device && used + bytes > total) return OUT_OF_MEMORY;
    char *place = arena() + next;
    const size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
    if (next + pages > ARENA || mprotect(place, pages, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    memset(place, 0xCC, bytes);
    next += pages;
    used += on_device ? bytes : 0;
    blocks[(u64)place] = {bytes, on_device};
    *address = (u64)place;
    return SUCCESS;
}

static CUresult release(u64 address) {
    auto block = blocks.find(address);
    if (block == blocks.end()) return INVALID_VALUE;
    const size_t bytes = block->second.size;
    used -= block->second.on_device ? bytes : 0;
    blocks.erase(block);
    mmap((void *)address, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
    return SUCCESS;
}

static bool usable(u64 address, size_t bytes) {
    return !in_arena(address) || block_of(address, bytes);
}

static void move(u64 to, u64 from, size_t bytes) {
    if (usable(to, bytes) && usable(from, bytes)) memmove((void *)to, (void *)from, bytes);
    else failure = ILLEGAL_ADDRESS;
}

static CUresult copy(u64 to, u64 from, size_t bytes, Stream *stream) {
    const CUresult error = push(stream, [=] { move(to, from, bytes); });
    const bool pageable = !in_arena(to) || !in_arena(from);  // is done with when the call returns
    return !error && pageable && !stream->graph ? wait_for(stream) : error;
}

// ---- the API: start, errors, device, context ----

API cuInit(unsigned) { return setting("LDDGAN_FAKE_INIT", SUCCESS); }
API cuDriverGetVersion(int *version) {
    *version = setting("LDDGAN_FAKE_VERSION", 13000);
    return SUCCESS;
}
template <int N>
static CUresult missing() {
    fprintf(stderr, "fake libcuda: %s is missing\n", missing_names[N]);
    return NOT_SUPPORTED;
}
template <int... N>
static void *missing_function(int i, std::integer_sequence<int, N...>) {
    static CUresult (*const functions[])() = {missing<N>...};
    return (void *)functions[i];
}
static void *stand_in(const char *name) {
    static int count = 0;
    if (count == MISSING_MOST) return nullptr;
    missing_names[count] = strdup(name);
    return missing_function(count++, std::make_integer_sequence<int, MISSING_MOST>());
}
API cuGetProcAddress_v2(const char *name, void **function, int, u64, int *status) {
    static void *self = [] {
        Dl_info info;
        dladdr((void *)&cuInit, &info);
        return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }();
    *function = dlsym(self, name);
    if (!*function) *function = stand_in(name);
    if (status) *status = 0;
    return SUCCESS;
}
API cuGetProcAddress(const char *name, void **function, int version, u64 flags, int *status) {
    return cuGetProcAddress_v2(name, function, version, flags, status);
}
API cuGetExportTable(const void **table, const void *) {  // NVRTC asks; its first word is its size
    static const u64 empty[1] = {sizeof empty};
    *table = empty;
    return SUCCESS;
}
API cuGetErrorName(CUresult error, const char **name) {
    static const std::map<CUresult, const char *> names = {
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {100, "CUDA_ERROR_NO_DEVICE"}, {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"}, {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"}, {NOT_READY, "CUDA_ERROR_NOT_READY"},
        {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
        {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
        {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
        {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT"},
    };
    auto found = names.find(error);
    *name = found == names.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
    return SUCCESS;
}
API cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
API cuDeviceGetName(char *name, int length, int) {
    snprintf(name, length, "Fake GPU");
    return SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, int) {
    static const std::map<int, int> values = {
        {10, 32},              // warp size
        {16, 132},             // multiprocessors
        {75, 9}, {76, 0},      // compute capability
        {41, 1}, {115, 1},     // unified addressing, memory pools
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},           // threads in a block
        {5, 0x7FFFFFFF}, {6, 65535}, {7, 65535},            // blocks in a grid
    };
    auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(Context **context, int) {
    *context = &primary;
    return setting("LDDGAN_FAKE_CONTEXT", SUCCESS);
}
API cuDevicePrimaryCtxRelease(int) { return SUCCESS; }
API cuCtxGetCurrent(Context **context) { return *context = current, SUCCESS; }
API cuCtxSetCurrent(Context *context) { return current = context, SUCCESS; }
API cuCtxPushCurrent(Context *context) { return current = context, SUCCESS; }
API cuCtxPopCurrent(Context **context) {
    if (context) *context = current;
    current = &primary;
    return SUCCESS;
}
API cuCtxGetDevice(int *device) { return *device = 0, current ? SUCCESS : INVALID_CONTEXT; }
API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    return *least = 0, *greatest = -5, SUCCESS;
}
API cuCtxSynchronize() {
    for (Stream *stream : streams)
        if (const CUresult error = wait_for(stream)) return error;
    return SUCCESS;
}

// ---- the API: streams, events ----

API cuStreamCreateWithPriority(Stream **stream, unsigned flags, int) {
    if (!current) return INVALID_CONTEXT;
    streams.push_back(*stream = new Stream{current, flags});
    return SUCCESS;
}
API cuStreamDestroy(void *handle) {
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    drain(stream);
    for (size_t i = 0; i < streams.size(); ++i)
        if (streams[i] == stream) streams.erase(streams.begin() + i);
    return SUCCESS;
}
API cuStreamSynchronize(void *stream) { return wait_for(stream_of(stream)); }
API cuStreamQuery(void *stream) { return wait_for(stream_of(stream)); }
API cuStreamGetCtx(void *stream, Context **context) {
    return stream_of(stream) ? *context = stream_of(stream)->context, SUCCESS : INVALID_HANDLE;
}
API cuStreamGetFlags(void *stream, unsigned *flags) {
    return stream_of(stream) ? *flags = stream_of(stream)->flags, SUCCESS : INVALID_HANDLE;
}
API cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    return push(stream_of(stream), [=] { function(data); });
}

API cuEventCreate(Event **event, unsigned flags) {
    *event = new Event{!(flags & 2)};
    return SUCCESS;
}
API cuEventDestroy(Event *) { return SUCCESS; }  // queued work may still name it
API cuEventRecord(Event *event, void *handle) {
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    event->captured = stream->graph;
    event->stream = stream;
    if (event->captured) return SUCCESS;
    return push(stream, [event, ticket = ++event->asked] {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        event->milliseconds = std::chrono::duration<double, std::milli>(now).count();
        event->done = ticket;
    });
}
API cuEventSynchronize(Event *event) {
    if (event->captured) return CAPTURED_EVENT;
    if (event->stream && event->done < event->asked) drain(event->stream);
    return failure;
}
API cuEventQuery(Event *event) { return cuEventSynchronize(event); }
API cuEventElapsedTime(float *milliseconds, Event *start, Event *stop) {
    for (Event *event : {start, stop}) {
        if (event->captured) return CAPTURED_EVENT;
        if (!event->timed || !event->asked) return INVALID_HANDLE;
        if (event->done < event->asked) return NOT_READY;
    }
    *milliseconds = stop->milliseconds - start->milliseconds;
    return failure;
}
API cuStreamWaitEvent(void *handle, Event *event, unsigned) {
    if (event->captured) return event->stream == stream_of(handle) ? SUCCESS : NOT_SUPPORTED;
    return push(stream_of(handle), [event, ticket = event->asked] {
        if (event->done < ticket) drain(event->stream);
    });
}

// ---- the API: memory ----

API cuMemGetInfo(size_t *free, size_t *all) { return *free = total - used, *all = total, SUCCESS; }
API cuMemAlloc(u64 *address, size_t bytes) {
    const CUresult error = unsafe();
    return error ? error : allocate(address, bytes, true);
}
API cuMemFree(u64 address) { return release(address); }
API cuMemAllocHost(u64 *address, size_t bytes) {
    const CUresult error = unsafe();
    return error ? error : allocate(address, bytes, false);
}
API cuMemFreeHost(u64 address) { return release(address); }
API cuMemAllocAsync(u64 *address, size_t bytes, void *handle) {
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->graph) return NOT_SUPPORTED;
    const CUresult error = allocate(address, bytes, true);
    if (error != OUT_OF_MEMORY) return error;
    drain(stream);  // a pool takes back what was freed before in this stream
    return allocate(address, bytes, true);
}
API cuMemAllocFromPoolAsync(u64 *address, size_t bytes, void *, void *stream) {
    return cuMemAllocAsync(address, bytes, stream);
}
API cuMemFreeAsync(u64 address, void *handle) {
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->graph) return spoil(stream, INVALID_VALUE);  // it was not allocated in the graph
    return push(stream, [=] { release(address); });
}
API cuDeviceGetMemPool(void **pool, int) { return *pool = &blocks, SUCCESS; }
API cuMemPoolGetAttribute(void *, int, u64 *value) { return *value = 0, SUCCESS; }
API cuMemPoolSetAttribute(void *, int, u64 *) { return SUCCESS; }

API cuMemcpyAsync(u64 to, u64 from, size_t bytes, void *stream) {
    return copy(to, from, bytes, stream_of(stream));
}
API cuPointerGetAttribute(void *value, int attribute, u64 address) {
    auto *block = block_of(address, 1);
    if (!block) return INVALID_VALUE;
    switch (attribute) {
        case 1: *(Context **)value = &primary; return SUCCESS;
        case 2: *(unsigned *)value = block->second.on_device ? 2 : 1; return SUCCESS;
        case 3: case 4: *(u64 *)value = address; return SUCCESS;
        case 8: *(bool *)value = false; return SUCCESS;
        case 9: *(int *)value = 0; return SUCCESS;
        default: return NOT_SUPPORTED;
    }
}
API cuPointerGetAttributes(unsigned count, int *attributes, void **values, u64 address) {
    for (unsigned i = 0; i < count && block_of(address, 1); ++i)
        if (const CUresult error = cuPointerGetAttribute(values[i], attributes[i], address))
            return error;
    return SUCCESS;
}

// ---- the API: kernels ----

API cuLibraryLoadData(void **library, const void *, void *, void *, unsigned, void *, void *,
                      unsigned) {
    const char *path = getenv("LDDGAN_FAKE_KERNELS");
    *library = path ? dlopen(path, RTLD_NOW) : nullptr;
    return *library ? SUCCESS : NOT_FOUND;
}
API cuLibraryUnload(void *) { return SUCCESS; }
API cuLibraryGetKernel(Kernel **kernel, void *library, const char *name) {
    const std::string symbol = std::string("fake_") + name;
    void *run = dlsym(library, symbol.c_str()), *bytes = dlsym(library, (symbol + "_bytes").c_str());
    if (!run || !bytes) return NOT_FOUND;
    *kernel = new Kernel{(decltype(Kernel::run))run, (const size_t *)bytes};
    return SUCCESS;
}
struct LaunchConfig {
    unsigned grid[3], block[3], shared;
    void *stream, *attributes;
    unsigned attribute_count;
};
API cuLaunchKernelEx(const LaunchConfig *config, Kernel *kernel, void **parameters, void **) {
    std::vector<std::vector<char>> values;  // copied now, as the driver does
    for (const size_t *bytes = kernel->bytes; *bytes; ++bytes) {
        const char *value = (const char *)*parameters++;
        values.emplace_back(value, value + *bytes);
    }
    return push(stream_of(config->stream), [config = *config, kernel, values]() mutable {
        std::vector<void *> pointers;
        for (auto &value : values) pointers.push_back(value.data());
        kernel->run(config.grid, config.block, pointers.data());
    });
}

// ---- the API: graphs ----

API cuStreamBeginCapture(void *handle, CaptureMode mode) {
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream == &legacy) return CAPTURE_UNSUPPORTED;
    if (stream->graph) return ILLEGAL_STATE;
    stream->graph = new Graph;
    stream->mode = mode;
    stream->invalid = false;
    return SUCCESS;
}
API cuStreamEndCapture(void *handle, Graph **graph) {
    Stream *stream = stream_of(handle);
    if (!stream || !stream->graph) return stream ? ILLEGAL_STATE : INVALID_HANDLE;
    if (graph) *graph = stream->invalid ? nullptr : stream->graph;
    stream->graph = nullptr;
    return stream->invalid ? CAPTURE_INVALIDATED : SUCCESS;
}
API cuStreamIsCapturing(void *handle, CaptureStatus *status) {
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->graph ? NONE : stream->invalid ? INVALIDATED : ACTIVE;
    return SUCCESS;
}
API cuStreamGetCaptureInfo(void *handle, CaptureStatus *status, u64 *id, Graph **graph) {
    if (const CUresult error = cuStreamIsCapturing(handle, status)) return error;
    if (id) *id = (u64)stream_of(handle)->graph;
    if (graph) *graph = stream_of(handle)->graph;
    return SUCCESS;  // nothing of dependencies, whose parameters differ between CUDA 12 and 13
}
struct InstantiateParameters {
    u64 flags;
    void *stream, *node;
    int result;
};
typedef std::shared_ptr<Graph> GraphExec;
API cuGraphInstantiateWithParams(GraphExec **exec, Graph *graph, InstantiateParameters *parameters) {
    *exec = new GraphExec(new Graph(*graph));
    parameters->result = 0;
    return SUCCESS;
}
API cuGraphDestroy(Graph *graph) { return delete graph, SUCCESS; }
API cuGraphExecDestroy(GraphExec *exec) { return delete exec, SUCCESS; }
API cuGraphUpload(GraphExec *, void *stream) { return push(stream_of(stream), [] {}); }
API cuGraphLaunch(GraphExec *exec, void *handle) {
    Stream *stream = stream_of(handle);
    if (stream && stream->graph) return NOT_SUPPORTED;  // a graph in a graph
    return push(stream, [graph = *exec] {
        for (const Work &step : graph->work) step();
    });
}
API cuUserObjectCreate(UserObject **object, void *data, void (*destroy)(void *), unsigned count,
                       unsigned) {
    return *object = new UserObject{data, destroy, count}, SUCCESS;
}
API cuUserObjectRelease(UserObject *object, unsigned count) {
    return object->add(-(long)count), SUCCESS;
}
API cuGraphRetainUserObject(Graph *graph, UserObject *object, unsigned count, unsigned flags) {
    graph->kept.insert(graph->kept.end(), count, object);
    if (!(flags & 1)) object->add(count);  // otherwise the caller's references move
    return SUCCESS;
}
API cuGraphReleaseUserObject(Graph *graph, UserObject *object, unsigned count) {
    for (auto at = graph->kept.begin(); at != graph->kept.end() && count;)
        if (*at == object) at = graph->kept.erase(at), object->add(-1), --count;
        else ++at;
    return SUCCESS;
}

// ---- for tests ----

API fake_reset() {  // between two tests: errors and captures do not last
    failure = SUCCESS;
    total = MEMORY;
    for (Stream *stream : streams) stream->queue.clear(), stream->graph = nullptr;
    return SUCCESS;
}
API fake_set_memory(size_t bytes) { return total = bytes, SUCCESS; }
API fake_used(size_t *bytes) { return *bytes = used, SUCCESS; }
API fake_is_allocated(u64 address, size_t bytes) { return block_of(address, bytes) ? 1 : 0; }
API fake_foreign_stream(Stream **stream) {  // of another context, such as pycuda.autoinit makes
    streams.push_back(*stream = new Stream{&foreign});
    return SUCCESS;
}
