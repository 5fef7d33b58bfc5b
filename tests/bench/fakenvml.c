/* A stand-in for libnvidia-ml.so.1 whose sensor ticks, so that energy meters are tested without a GPU.
 *
 * Everything it knows lies in one shared mapping, the file named by FAKENVML_STATE, laid out as State below and
 * mirrored by fake_nvml.py: the processes that map the same file see one board. No name without a version that torch
 * or others look up to find GPUs (nvmlInit, nvmlInit_v2) is exported: only who asks the way pynvml does is answered.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEVICES = 2, MAX_FAILURES = 16, MAX_PROCESSES = 8, STEP_CAPACITY = 65536, READING_CAPACITY = 4096 };

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    VERSION_MISMATCH = 18, /* LIB_RM_VERSION_MISMATCH: here, the mapping was laid out by another fake_nvml.py */
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999,
};

enum { COUNTER_NORMAL, COUNTER_NOT_SUPPORTED, COUNTER_FROZEN, COUNTER_RESETS };
enum { POWER_NORMAL, POWER_NOT_SUPPORTED, POWER_USAGE_ONLY };

static const uint64_t MAGIC = 0x314c4d564e454b46; /* "FKENVML1" */

typedef struct {
    int64_t time_ns;
    double watts;
} Sample;

typedef struct {
    uint64_t bytes;
    uint32_t pid;
    uint32_t unused;
} Process;

typedef struct {
    uint32_t count;
    uint32_t unused;
    Process entries[MAX_PROCESSES];
} ProcessList;

typedef struct {
    char function[64];
    uint64_t after_calls;
    uint64_t times; /* 0: for ever */
    uint64_t calls; /* written here */
    int32_t code;
    uint32_t unused;
} Failure;

typedef struct {
    /* Written by the test. */
    char name[64];
    char uuid[64];
    char pci_bus_id[32];
    char vbios[32];
    int64_t period_ns;
    int64_t window_ns;
    int64_t phase_ns;
    int64_t average_ns;
    int64_t reset_at_ns;
    uint64_t seed;
    double jitter_sd;
    double gain;
    double idle_watts;
    uint64_t memory_total_bytes;
    uint64_t memory_used_bytes;
    uint64_t event_reasons;
    uint64_t violation_power_ns;
    uint64_t violation_thermal_ns;
    int32_t counter_mode;
    int32_t power_mode;
    int32_t module_scope_only;
    int32_t hide_processes;
    /* From here to power_limit_max_mw a negative number is answered as NOT_SUPPORTED. */
    int32_t mig_mode;
    int32_t virtualization_mode;
    int32_t persistence_mode;
    int32_t compute_mode;
    int32_t ecc_mode;
    int32_t pstate;
    int32_t temperature;
    int32_t utilization_gpu;
    int32_t graphics_clock_mhz;
    int32_t sm_clock_mhz;
    int32_t memory_clock_mhz;
    int32_t max_graphics_clock_mhz;
    int32_t max_sm_clock_mhz;
    int32_t max_memory_clock_mhz;
    int32_t power_limit_enforced_mw;
    int32_t power_limit_default_mw;
    int32_t power_limit_min_mw;
    int32_t power_limit_max_mw;
    ProcessList compute_processes;
    ProcessList graphics_processes;
    ProcessList mps_processes;
    /* Written here, under the lock; a test may start energy_mj anywhere. */
    double energy_mj;
    double frozen_mj;
    double reading_watts;
    int64_t last_tick_ns;
    int64_t next_tick_ns;
    int64_t reset_done_ns;
    uint64_t ticks;
    uint64_t random;
    uint64_t cursor; /* how many steps begin no later than the last tick */
    int32_t started;
    int32_t frozen;
} Device;

typedef struct {
    uint64_t magic;
    uint64_t size;
    uint64_t lock;
    uint64_t lock_ids;
    int64_t lock_patience_ns;
    int64_t now_ns;
    int64_t call_ns;
    int32_t virtual_clock;
    uint32_t device_count;
    uint32_t failure_count;
    uint32_t unused;
    uint64_t step_count[MAX_DEVICES]; /* ever appended */
    Device devices[MAX_DEVICES];
    Failure failures[MAX_FAILURES];
    Sample readings[MAX_DEVICES][READING_CAPACITY];
    Sample steps[MAX_DEVICES][STEP_CAPACITY];
} State;

/* What the process keeps for itself: which file is mapped, and how often it was initialised. */
static pthread_mutex_t mapping_mutex = PTHREAD_MUTEX_INITIALIZER;
static State *mapping;
static dev_t mapping_device;
static ino_t mapping_inode;
static unsigned references;

/* A handle is an address in here, so it stays good when another file is mapped. */
static const char handles[MAX_DEVICES];

/* ---- clock, lock, failures ---- */

static int64_t monotonic_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* When the query in progress is answered. On the virtual clock it takes call_ns and is answered half way through: a
 * caller that stamps it before or after the call is off by the other half, as with a real driver. */
static int64_t query_time(State *state) {
    if (!state->virtual_clock) return monotonic_ns();
    int64_t cost = state->call_ns;
    if (cost == 0) return __atomic_load_n(&state->now_ns, __ATOMIC_ACQUIRE);
    return __atomic_fetch_add(&state->now_ns, cost, __ATOMIC_ACQ_REL) + cost / 2;
}

/* Spins, and takes the lock from who held it for too long: a process may be killed inside. */
static void lock(State *state) {
    uint64_t id = __atomic_add_fetch(&state->lock_ids, 1, __ATOMIC_RELAXED);
    uint64_t holder = 0;
    int64_t since = 0;
    for (;;) {
        uint64_t seen = 0;
        if (__atomic_compare_exchange_n(&state->lock, &seen, id, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
        int64_t now = monotonic_ns();
        if (seen != holder) {
            holder = seen;
            since = now;
        } else if (now - since > state->lock_patience_ns) {
            if (__atomic_compare_exchange_n(&state->lock, &seen, id, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
        }
        sched_yield();
    }
}

static void unlock(State *state) { __atomic_store_n(&state->lock, 0, __ATOMIC_RELEASE); }

/* "nvmlDeviceGetCount" stands for nvmlDeviceGetCount_v2 as well: tests name what they call in pynvml. */
static bool names(const char *wanted, const char *function) {
    size_t length = strlen(wanted);
    if (strncmp(wanted, function, length) != 0) return false;
    return function[length] == '\0' || strncmp(function + length, "_v", 2) == 0;
}

static int injected(State *state, const char *function) {
    uint32_t count = __atomic_load_n(&state->failure_count, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < count && i < MAX_FAILURES; i++) {
        Failure *failure = &state->failures[i];
        if (!names(failure->function, function)) continue;
        uint64_t before = __atomic_fetch_add(&failure->calls, 1, __ATOMIC_RELAXED);
        if (before < failure->after_calls) continue;
        if (failure->times == 0 || before - failure->after_calls < failure->times) return failure->code;
    }
    return SUCCESS;
}

static int enter(const char *function, State **state, int64_t *now) {
    if (__atomic_load_n(&references, __ATOMIC_ACQUIRE) == 0) return UNINITIALIZED;
    *state = mapping;
    *now = query_time(*state);
    return injected(*state, function);
}

/* Each query begins with one of these two: they leave `state`, `now` and, the second, `device`. */
#define ENTER                                    \
    State *state;                                \
    int64_t now;                                 \
    int entered = enter(__func__, &state, &now); \
    (void)now;                                   \
    if (entered != SUCCESS) return entered

#define ENTER_DEVICE(handle)                 \
    ENTER;                                   \
    int index = index_of(state, handle);     \
    if (index < 0) return INVALID_ARGUMENT;  \
    Device *device = &state->devices[index]; \
    (void)device

typedef const char *Handle;

static int index_of(const State *state, Handle handle) {
    for (uint32_t i = 0; i < state->device_count && i < MAX_DEVICES; i++) {
        if (handle == &handles[i]) return (int)i;
    }
    return -1;
}

/* ---- sensor ---- */

static uint64_t random_bits(uint64_t *random) { /* splitmix64 */
    uint64_t bits = *random += UINT64_C(0x9e3779b97f4a7c15);
    bits = (bits ^ (bits >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ (bits >> 27)) * UINT64_C(0x94d049bb133111eb);
    return bits ^ (bits >> 31);
}

static double random_normal(uint64_t *random) { /* Box-Muller; the first uniform is never 0 */
    double radius = ((double)(random_bits(random) >> 11) + 1.0) / 9007199254740992.0;
    double angle = (double)(random_bits(random) >> 11) / 9007199254740992.0;
    return sqrt(-2.0 * log(radius)) * cos(2.0 * 3.14159265358979323846 * angle);
}

/* Mean power over the window that ends at `tick`. Steps past `tick` are not looked at: the test may not have
 * written them yet. UNKNOWN when a step that counts was overwritten. */
static int window_mean(Device *device, const Sample *steps, uint64_t count, int64_t tick, double *watts) {
    while (device->cursor < count) {
        if (count - device->cursor > STEP_CAPACITY) return UNKNOWN;
        if (steps[device->cursor % STEP_CAPACITY].time_ns > tick) break;
        device->cursor++;
    }
    int64_t window = device->window_ns > 1 ? device->window_ns : 1;
    int64_t begin = tick - window, end = tick;
    double sum = 0.0;
    for (uint64_t i = device->cursor;; i--) {
        Sample step = {INT64_MIN, device->idle_watts};
        if (i > 0) {
            if (count - (i - 1) > STEP_CAPACITY) return UNKNOWN;
            step = steps[(i - 1) % STEP_CAPACITY];
        }
        int64_t from = step.time_ns > begin ? step.time_ns : begin;
        if (from < end) {
            sum += step.watts * (double)(end - from);
            end = from;
        }
        if (step.time_ns <= begin) break;
    }
    *watts = sum / (double)window;
    return SUCCESS;
}

static void reset_counter_if_due(Device *device, int64_t now) {
    if (device->counter_mode != COUNTER_RESETS || now < device->reset_at_ns) return;
    if (device->reset_done_ns == device->reset_at_ns) return;
    device->energy_mj = 0.0;
    device->reset_done_ns = device->reset_at_ns;
}

/* Every tick up to `now`, under the lock. */
static int advance(State *state, int index, int64_t now) {
    Device *device = &state->devices[index];
    if (!device->started) {
        device->started = 1;
        device->random = device->seed;
        device->next_tick_ns = device->phase_ns;
    }
    if (device->next_tick_ns <= now) {
        if (device->period_ns <= 0) return UNKNOWN;
        uint64_t count = __atomic_load_n(&state->step_count[index], __ATOMIC_ACQUIRE);
        do {
            int64_t tick = device->next_tick_ns;
            double watts;
            int status = window_mean(device, state->steps[index], count, tick, &watts);
            if (status != SUCCESS) return status;
            watts *= device->gain;
            reset_counter_if_due(device, tick);
            if (device->ticks > 0) {
                int64_t since = device->last_tick_ns;
                if (device->counter_mode == COUNTER_RESETS && device->reset_done_ns > since) {
                    since = device->reset_done_ns;
                }
                device->energy_mj += watts * (double)(tick - since) * 1e-6;
            }
            device->reading_watts = watts;
            state->readings[index][device->ticks % READING_CAPACITY] = (Sample){tick, watts};
            device->last_tick_ns = tick;
            device->ticks++;
            double interval = (double)device->period_ns;
            if (device->jitter_sd != 0.0) {
                interval *= 1.0 + device->jitter_sd * random_normal(&device->random);
                /* However wild the jitter, time goes on. */
                if (interval < 0.1 * (double)device->period_ns) interval = 0.1 * (double)device->period_ns;
            }
            device->next_tick_ns = tick + (interval < 1.0 ? 1 : llround(interval));
        } while (device->next_tick_ns <= now);
    }
    reset_counter_if_due(device, now);
    return SUCCESS;
}

typedef enum { COUNTER, POWER_AVERAGE, POWER_INSTANT } Quantity;

static int average_watts(const State *state, int index, double *watts) {
    const Device *device = &state->devices[index];
    int64_t begin = device->last_tick_ns - device->average_ns;
    double sum = 0.0;
    uint64_t number = 0;
    for (; number < device->ticks; number++) {
        if (number == READING_CAPACITY) return UNKNOWN;
        Sample reading = state->readings[index][(device->ticks - 1 - number) % READING_CAPACITY];
        if (number > 0 && reading.time_ns <= begin) break;
        sum += reading.watts;
    }
    *watts = sum / (double)number;
    return SUCCESS;
}

static int measured(State *state, int index, Quantity quantity, uint64_t *value) {
    Device *device = &state->devices[index];
    if (quantity == COUNTER) {
        double energy = device->energy_mj;
        if (device->counter_mode == COUNTER_FROZEN) {
            if (!device->frozen) device->frozen_mj = energy;
            energy = device->frozen_mj;
        }
        device->frozen = device->counter_mode == COUNTER_FROZEN;
        /* The sum of many ticks may end just below a whole number: no millijoule is lost to that. */
        *value = (uint64_t)floor(energy + 1e-6);
        return SUCCESS;
    }
    double watts = device->reading_watts;
    if (device->ticks == 0) {
        watts = device->gain * device->idle_watts;
    } else if (quantity == POWER_AVERAGE && device->average_ns > 0) {
        int status = average_watts(state, index, &watts);
        if (status != SUCCESS) return status;
    }
    *value = watts > 0.0 ? (uint64_t)llround(watts * 1e3) : 0;
    return SUCCESS;
}

static int sense(State *state, int index, int64_t now, Quantity quantity, uint64_t *value) {
    lock(state);
    int status = advance(state, index, now);
    if (status == SUCCESS) status = measured(state, index, quantity, value);
    unlock(state);
    return status;
}

/* ---- small answers ---- */

static int answer_text(const char *text, char *buffer, unsigned length) {
    if (buffer == NULL) return INVALID_ARGUMENT;
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return SUCCESS;
}

/* The mapping's texts are only as long as their fields, ended or not. */
static int answer_field(const char *field, size_t size, char *buffer, unsigned length) {
    char text[65] = "";
    memcpy(text, field, size < sizeof text ? size : sizeof text - 1);
    return answer_text(text, buffer, length);
}

static int answer(int32_t number, unsigned *value) {
    if (value == NULL) return INVALID_ARGUMENT;
    if (number < 0) return NOT_SUPPORTED;
    *value = (unsigned)number;
    return SUCCESS;
}

static bool parse_bus_id(const char *text, unsigned *domain, unsigned *bus, unsigned *slot) {
    unsigned function = 0;
    if (sscanf(text, "%x:%x:%x.%x", domain, bus, slot, &function) == 4) return function == 0;
    *domain = 0;
    return sscanf(text, "%x:%x.%x", bus, slot, &function) == 3 && function == 0;
}

/* ---- library ---- */

static int map_state(void) {
    const char *path = getenv("FAKENVML_STATE");
    if (path == NULL || *path == '\0') return DRIVER_NOT_LOADED;
    int file = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) {
        fprintf(stderr, "fake NVML: cannot open FAKENVML_STATE=%s\n", path);
        if (file >= 0) close(file);
        return DRIVER_NOT_LOADED;
    }
    if (mapping != NULL && status.st_dev == mapping_device && status.st_ino == mapping_inode) {
        close(file);
        return SUCCESS;
    }
    State *state = MAP_FAILED;
    if (status.st_size == (off_t)sizeof(State)) {
        state = mmap(NULL, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    close(file);
    if (state == MAP_FAILED || state->magic != MAGIC || state->size != sizeof(State)) {
        fprintf(stderr, "fake NVML: %s is not laid out as this library expects\n", path);
        if (state != MAP_FAILED) munmap(state, sizeof(State));
        return VERSION_MISMATCH;
    }
    /* While initialised, another thread may be inside a query: the old mapping is then left to the process's end. */
    if (mapping != NULL && references == 0) munmap(mapping, sizeof(State));
    mapping = state;
    mapping_device = status.st_dev;
    mapping_inode = status.st_ino;
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&mapping_mutex);
    int status = map_state();
    if (status == SUCCESS) status = injected(mapping, __func__);
    if (status == SUCCESS) __atomic_add_fetch(&references, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&mapping_mutex);
    return status;
}

int nvmlShutdown(void) {
    pthread_mutex_lock(&mapping_mutex);
    int status = references == 0 ? UNINITIALIZED : injected(mapping, __func__);
    if (status == SUCCESS) __atomic_sub_fetch(&references, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&mapping_mutex);
    return status;
}

const char *nvmlErrorString(int code) {
    switch (code) {
        case SUCCESS: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case 4: return "Insufficient Permissions";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case 10: return "Timeout";
        case 13: return "Function Not Found";
        case 15: return "GPU is lost";
        case 16: return "GPU requires reset";
        case VERSION_MISMATCH: return "Driver/library version mismatch";
        case 20: return "Insufficient Memory";
        case 21: return "No data";
        case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
        case UNKNOWN: return "Unknown Error";
        default: return "Error that the fake NVML has no text for";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    ENTER;
    return answer_text("999.fake", version, length);
}

int nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    ENTER;
    return answer_text("13.fake", version, length);
}

/* ---- which device ---- */

int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER;
    return answer((int32_t)state->device_count, count);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned number, Handle *handle) {
    ENTER;
    if (handle == NULL || number >= state->device_count || number >= MAX_DEVICES) return INVALID_ARGUMENT;
    *handle = &handles[number];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Handle *handle) {
    ENTER;
    if (uuid == NULL || handle == NULL) return INVALID_ARGUMENT;
    for (uint32_t i = 0; i < state->device_count && i < MAX_DEVICES; i++) {
        if (strncmp(uuid, state->devices[i].uuid, sizeof state->devices[i].uuid) != 0) continue;
        *handle = &handles[i];
        return SUCCESS;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Handle *handle) {
    ENTER;
    unsigned domain, bus, slot, own_domain, own_bus, own_slot;
    if (bus_id == NULL || handle == NULL || !parse_bus_id(bus_id, &domain, &bus, &slot)) return INVALID_ARGUMENT;
    for (uint32_t i = 0; i < state->device_count && i < MAX_DEVICES; i++) {
        if (!parse_bus_id(state->devices[i].pci_bus_id, &own_domain, &own_bus, &own_slot)) return UNKNOWN;
        if (domain != own_domain || bus != own_bus || slot != own_slot) continue;
        *handle = &handles[i];
        return SUCCESS;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(Handle handle, unsigned *number) {
    ENTER_DEVICE(handle);
    return answer(index, number);
}

/* No test can take the mark away: what is measured here must never pass for a GPU's. */
int nvmlDeviceGetName(Handle handle, char *name, unsigned length) {
    ENTER_DEVICE(handle);
    static const char mark[] = "FAKE ";
    char text[sizeof mark + sizeof device->name] = "";
    size_t marked = strncmp(device->name, mark, strlen(mark)) == 0 ? 0 : strlen(mark);
    memcpy(text, mark, marked);
    memcpy(text + marked, device->name, sizeof device->name);
    return answer_text(text, name, length);
}

int nvmlDeviceGetUUID(Handle handle, char *uuid, unsigned length) {
    ENTER_DEVICE(handle);
    return answer_field(device->uuid, sizeof device->uuid, uuid, length);
}

int nvmlDeviceGetVbiosVersion(Handle handle, char *version, unsigned length) {
    ENTER_DEVICE(handle);
    return answer_field(device->vbios, sizeof device->vbios, version, length);
}

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;

int nvmlDeviceGetPciInfo_v3(Handle handle, PciInfo *info) {
    ENTER_DEVICE(handle);
    if (info == NULL) return INVALID_ARGUMENT;
    memset(info, 0, sizeof *info);
    if (!parse_bus_id(device->pci_bus_id, &info->domain, &info->bus, &info->device)) return UNKNOWN;
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0", info->domain, info->bus, info->device);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0", info->domain & 0xffff,
             info->bus & 0xff, info->device & 0xff);
    return SUCCESS;
}

/* ---- energy and power ---- */

int nvmlDeviceGetTotalEnergyConsumption(Handle handle, unsigned long long *millijoules) {
    ENTER_DEVICE(handle);
    if (millijoules == NULL) return INVALID_ARGUMENT;
    if (device->counter_mode == COUNTER_NOT_SUPPORTED) return NOT_SUPPORTED;
    uint64_t value = 0;
    int status = sense(state, index, now, COUNTER, &value);
    if (status == SUCCESS) *millijoules = value;
    return status;
}

int nvmlDeviceGetPowerUsage(Handle handle, unsigned *milliwatts) {
    ENTER_DEVICE(handle);
    if (milliwatts == NULL) return INVALID_ARGUMENT;
    if (device->power_mode == POWER_NOT_SUPPORTED) return NOT_SUPPORTED;
    uint64_t value = 0;
    int status = sense(state, index, now, POWER_AVERAGE, &value);
    if (status == SUCCESS) *milliwatts = (unsigned)value;
    return status;
}

typedef struct {
    unsigned field;
    unsigned scope;
    long long timestamp_us;
    long long latency_us;
    int value_type;
    int status;
    union {
        double real;
        unsigned number;
        unsigned long long large;
    } value;
} FieldValue;

enum { FIELD_TOTAL_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

static int field_value(State *state, int index, int64_t now, FieldValue *field) {
    const Device *device = &state->devices[index];
    Quantity quantity;
    switch (field->field) {
        case FIELD_TOTAL_ENERGY: quantity = COUNTER; break;
        case FIELD_POWER_AVERAGE: quantity = POWER_AVERAGE; break;
        case FIELD_POWER_INSTANT: quantity = POWER_INSTANT; break;
        default: return NOT_SUPPORTED;
    }
    if (field->scope != (device->module_scope_only ? 1u : 0u)) return NOT_SUPPORTED;
    if (quantity == COUNTER ? device->counter_mode == COUNTER_NOT_SUPPORTED : device->power_mode != POWER_NORMAL) {
        return NOT_SUPPORTED;
    }
    uint64_t value = 0;
    int status = sense(state, index, now, quantity, &value);
    if (status != SUCCESS) return status;
    if (quantity == COUNTER) {
        field->value_type = TYPE_UNSIGNED_LONG_LONG;
        field->value.large = value;
    } else {
        field->value_type = TYPE_UNSIGNED_INT;
        field->value.number = (unsigned)value;
    }
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(Handle handle, int count, FieldValue *values) {
    ENTER_DEVICE(handle);
    if (count < 1 || values == NULL) return INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) {
        values[i].timestamp_us = now / 1000;
        values[i].latency_us = 0;
        values[i].status = field_value(state, index, now, &values[i]);
        /* A broken sensor is the test's own mistake: who looks at no status must notice as well. */
        if (values[i].status == UNKNOWN) return UNKNOWN;
    }
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(Handle handle, unsigned *milliwatts) {
    ENTER_DEVICE(handle);
    return answer(device->power_limit_enforced_mw, milliwatts);
}

int nvmlDeviceGetPowerManagementDefaultLimit(Handle handle, unsigned *milliwatts) {
    ENTER_DEVICE(handle);
    return answer(device->power_limit_default_mw, milliwatts);
}

int nvmlDeviceGetPowerManagementLimitConstraints(Handle handle, unsigned *lowest, unsigned *highest) {
    ENTER_DEVICE(handle);
    int status = answer(device->power_limit_min_mw, lowest);
    return status != SUCCESS ? status : answer(device->power_limit_max_mw, highest);
}

/* ---- state ---- */

int nvmlDeviceGetTemperature(Handle handle, int sensor, unsigned *celsius) {
    ENTER_DEVICE(handle);
    return sensor != 0 ? INVALID_ARGUMENT : answer(device->temperature, celsius);
}

typedef struct {
    unsigned version;
    int sensor;
    int celsius;
} Temperature;

int nvmlDeviceGetTemperatureV(Handle handle, Temperature *temperature) {
    ENTER_DEVICE(handle);
    if (temperature == NULL || temperature->sensor != 0) return INVALID_ARGUMENT;
    if (temperature->version != (sizeof *temperature | 1u << 24)) return ARGUMENT_VERSION_MISMATCH;
    return answer(device->temperature, (unsigned *)&temperature->celsius);
}

int nvmlDeviceGetClockInfo(Handle handle, int type, unsigned *megahertz) {
    ENTER_DEVICE(handle);
    switch (type) {
        case 0: return answer(device->graphics_clock_mhz, megahertz);
        case 1: return answer(device->sm_clock_mhz, megahertz);
        case 2: return answer(device->memory_clock_mhz, megahertz);
        case 3: return NOT_SUPPORTED;
        default: return INVALID_ARGUMENT;
    }
}

int nvmlDeviceGetMaxClockInfo(Handle handle, int type, unsigned *megahertz) {
    ENTER_DEVICE(handle);
    switch (type) {
        case 0: return answer(device->max_graphics_clock_mhz, megahertz);
        case 1: return answer(device->max_sm_clock_mhz, megahertz);
        case 2: return answer(device->max_memory_clock_mhz, megahertz);
        case 3: return NOT_SUPPORTED;
        default: return INVALID_ARGUMENT;
    }
}

int nvmlDeviceGetPerformanceState(Handle handle, unsigned *pstate) {
    ENTER_DEVICE(handle);
    return answer(device->pstate, pstate);
}

int nvmlDeviceGetPersistenceMode(Handle handle, unsigned *mode) {
    ENTER_DEVICE(handle);
    return answer(device->persistence_mode, mode);
}

int nvmlDeviceGetEccMode(Handle handle, unsigned *current, unsigned *pending) {
    ENTER_DEVICE(handle);
    int status = answer(device->ecc_mode, current);
    return status != SUCCESS ? status : answer(device->ecc_mode, pending);
}

int nvmlDeviceGetComputeMode(Handle handle, unsigned *mode) {
    ENTER_DEVICE(handle);
    return answer(device->compute_mode, mode);
}

int nvmlDeviceGetMigMode(Handle handle, unsigned *current, unsigned *pending) {
    ENTER_DEVICE(handle);
    int status = answer(device->mig_mode, current);
    return status != SUCCESS ? status : answer(device->mig_mode, pending);
}

int nvmlDeviceGetVirtualizationMode(Handle handle, unsigned *mode) {
    ENTER_DEVICE(handle);
    return answer(device->virtualization_mode, mode);
}

int nvmlDeviceGetCurrentClocksEventReasons(Handle handle, unsigned long long *reasons) {
    ENTER_DEVICE(handle);
    if (reasons == NULL) return INVALID_ARGUMENT;
    *reasons = device->event_reasons;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Handle handle, unsigned long long *reasons) {
    ENTER_DEVICE(handle);
    if (reasons == NULL) return INVALID_ARGUMENT;
    *reasons = device->event_reasons;
    return SUCCESS;
}

typedef struct {
    unsigned long long reference_us;
    unsigned long long violation_ns;
} Violation;

int nvmlDeviceGetViolationStatus(Handle handle, int policy, Violation *violation) {
    ENTER_DEVICE(handle);
    if (violation == NULL) return INVALID_ARGUMENT;
    if (policy != 0 && policy != 1) return NOT_SUPPORTED;
    violation->reference_us = (unsigned long long)(now / 1000);
    violation->violation_ns = policy == 0 ? device->violation_power_ns : device->violation_thermal_ns;
    return SUCCESS;
}

typedef struct {
    unsigned gpu;
    unsigned memory;
} Utilization;

int nvmlDeviceGetUtilizationRates(Handle handle, Utilization *utilization) {
    ENTER_DEVICE(handle);
    if (utilization == NULL) return INVALID_ARGUMENT;
    utilization->memory = 0;
    return answer(device->utilization_gpu, &utilization->gpu);
}

/* ---- memory and who uses it ---- */

typedef struct {
    unsigned long long total, free, used;
} Memory;

int nvmlDeviceGetMemoryInfo(Handle handle, Memory *memory) {
    ENTER_DEVICE(handle);
    if (memory == NULL) return INVALID_ARGUMENT;
    memory->total = device->memory_total_bytes;
    memory->used = device->memory_used_bytes;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} Memory2;

int nvmlDeviceGetMemoryInfo_v2(Handle handle, Memory2 *memory) {
    ENTER_DEVICE(handle);
    if (memory == NULL) return INVALID_ARGUMENT;
    if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    memory->total = device->memory_total_bytes;
    memory->reserved = 0;
    memory->used = device->memory_used_bytes;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

typedef struct {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance;
    unsigned compute_instance;
} ProcessInfo;

static int processes(const Device *device, const ProcessList *list, unsigned *count, ProcessInfo *infos) {
    if (count == NULL) return INVALID_ARGUMENT;
    unsigned number = device->hide_processes ? 0 : list->count;
    if (number > MAX_PROCESSES) return UNKNOWN;
    unsigned room = *count;
    *count = number;
    if (room < number) return INSUFFICIENT_SIZE;
    if (number > 0 && infos == NULL) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < number; i++) {
        infos[i] = (ProcessInfo){list->entries[i].pid, list->entries[i].bytes, UINT32_MAX, UINT32_MAX};
    }
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Handle handle, unsigned *count, ProcessInfo *infos) {
    ENTER_DEVICE(handle);
    return processes(device, &device->compute_processes, count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Handle handle, unsigned *count, ProcessInfo *infos) {
    ENTER_DEVICE(handle);
    return processes(device, &device->graphics_processes, count, infos);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(Handle handle, unsigned *count, ProcessInfo *infos) {
    ENTER_DEVICE(handle);
    return processes(device, &device->mps_processes, count, infos);
}
