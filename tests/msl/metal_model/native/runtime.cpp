// A GPU as far as a kernel can tell: one fiber a thread, one threadgroup after another, simdgroups of 32, and a shadow
// of every byte a kernel may touch. Needs nothing but malloc, free, memcpy and memset of the process it is loaded into.
//
// The compiled kernel calls in at every access (ThreadSanitizer's instrumentation, without its runtime), barrier and
// exchange; the last argument of each call, `place`, says where in the source it stands.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
extern "C" {
void* malloc(u64);
void free(void*);
void* memcpy(void*, const void*, u64);
void* memmove(void*, const void*, u64);
void* memset(void*, int, u64);
}

namespace {

enum Kind { RACE = 1, BOUNDS, UNINITIALISED, UNWRITTEN, INPUT_WRITE, MISALIGNED, DIVERGENT, MEMORY_LIMIT, STACK, ENDLESS, INDEX };
enum Memory { INPUT, OUTPUT, THREADGROUP };
constexpr int SIMD = 32, MAX_THREADS = 1024, MAX_SIMDS = MAX_THREADS / SIMD, MAX_ARRAYS = 64;
constexpr u64 STACK_BYTES = 128 << 10, PAGE = 256, GROUP_LIMIT = 32 << 10, GROUP_ARENA = 256 << 10;
constexpr u64 STEP_LIMIT = 4000000000ul;
constexpr u8 CANARY = 0xC5;

struct Access {
  u32 thread;  // 1 + its index in the grid; 0: none
  u32 group_epoch, simd_epoch;
  int place;
};
struct Cell {
  Access writer, readers[2];
  bool initialised, atomic_write, atomic_read[2];
};
struct Region {
  char* start;
  u64 bytes;
  int scalar, memory, id;
  Cell* cells;  // one for `scalar` bytes; none for an input
};

}  // namespace

extern "C" {

struct Buffer {
  void* data;
  long bytes;
  int scalar, memory, offset, initialised;
};
struct Finding {
  int kind, place, other_place, memory, id;
  u32 thread, other;
  long index;
  const char* type;  // of an array whose own size was exceeded
};
struct Attributes {
  u32 position_in_grid[3], position_in_group[3], group[3], group_size[3], groups[3], grid[3];
  u32 lane, simdgroup, simdgroups, index;
};
typedef void (*Entry)(void* const*, const Attributes*);
void msl_switch(void** save, void* load) __asm__("msl_switch");

}  // extern "C"

// Saves the registers a callee must keep on this stack, and goes on where the other stack was left.
#if defined(__x86_64__)
__asm__(
    ".text\n.globl msl_switch\nmsl_switch:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n");
#elif defined(__aarch64__)
__asm__(
    ".text\n.globl msl_switch\n.p2align 2\nmsl_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
#else
#error "fibers are written for x86-64 and arm64"
#endif

namespace {

struct Fiber {
  void* sp;
  enum { READY, WAITING, DONE } state;
  int scope, flags, size, place;  // of what it waits at; size: bytes exchanged, -1 at a barrier
  u32 exchanges;
};

Fiber fibers[MAX_THREADS];
char* stacks;
void* scheduler;
int current, threads, simds, mutant = -1;
u32 group_index, group_epoch[2], simd_epoch[MAX_SIMDS][2];  // of threadgroup memory, of device memory
char slots[2][MAX_SIMDS][SIMD][32];                         // two, for a lane may be one exchange ahead
Region regions[64 + MAX_ARRAYS];
int region_count, buffer_count;
u64 group_bytes, group_used;
u8* owner;  // of each page of the arena: 1 + the region's number
char *arena, *module_start, *module_end;
u64 arena_bytes, steps;
bool aborted;
Finding* findings;
int finding_count, finding_limit;
Entry entry;
void* pointers[64];
Attributes attributes[MAX_THREADS];

u32 thread_number() { return group_index * threads + current + 1; }

void report(int kind, int place, int other_place, const Region* region, long index, u32 other) {
  for (int i = 0; i < finding_count; ++i) {
    Finding& f = findings[i];
    if (f.kind == kind && f.place == place && f.other_place == other_place && (!region || f.id == region->id)) return;
  }
  if (finding_count == finding_limit) return;
  findings[finding_count++] = {kind, place, other_place, region ? region->memory : -1, region ? region->id : -1,
                               thread_number() - 1, other - 1, index, nullptr};
}

void yield() {
  if ((u8)stacks[current * STACK_BYTES] != CANARY) report(STACK, 0, 0, nullptr, 0, 0), aborted = true;
  msl_switch(&fibers[current].sp, scheduler);
}

// What cannot be gone on from: the fiber is left where it is, and with it the launch.
void abandon() {
  aborted = true;
  yield();
  __builtin_trap();
}

void begin_fiber() {
  entry(pointers, &attributes[current]);
  fibers[current].state = Fiber::DONE;
  yield();
  __builtin_trap();
}

bool ordered(const Access& before, int memory) {
  u32 me = thread_number();
  if (!before.thread || before.thread == me) return true;
  u32 other = before.thread - 1;
  if (other / threads != group_index) return false;
  if (before.group_epoch < group_epoch[memory]) return true;
  u32 simd = current / SIMD;
  return other % threads / SIMD == simd && before.simd_epoch < simd_epoch[simd][memory];
}

void touch(Region& region, long index, bool write, bool atomic, int place) {
  Cell& cell = region.cells[index];
  int memory = region.memory == THREADGROUP ? 0 : 1;
  Access mine = {thread_number(), group_epoch[memory], simd_epoch[current / SIMD][memory], place};
  if (!ordered(cell.writer, memory) && !(atomic && cell.atomic_write))
    report(RACE, place, cell.writer.place, &region, index, cell.writer.thread);
  if (write) {
    for (int i = 0; i < 2; ++i)
      if (!ordered(cell.readers[i], memory) && !(atomic && cell.atomic_read[i]))
        report(RACE, place, cell.readers[i].place, &region, index, cell.readers[i].thread);
    cell.writer = mine;
    cell.atomic_write = atomic;
    cell.initialised = true;
    return;
  }
  if (!cell.initialised) report(UNINITIALISED, place, 0, &region, index, 0);
  // The newest reader, and beside it one that it does not stand for.
  int slot = ordered(cell.readers[0], memory) ? 0 : 1;
  cell.readers[slot] = mine;
  cell.atomic_read[slot] = atomic;
}

template <typename T> bool within(char* at, T& array) { return at >= (char*)&array && at < (char*)&array + sizeof array; }

void access(const volatile void* address, u64 bytes, bool write, bool aligned, int place, bool atomic = false) {
  char* at = (char*)address;
  if (++steps > STEP_LIMIT) report(ENDLESS, place, 0, nullptr, 0, 0), abandon();
  u64 offset = at - arena;
  if (offset >= arena_bytes) {
    u64 in_stack = at - stacks;
    if (in_stack < STACK_BYTES * MAX_THREADS && in_stack / STACK_BYTES == (u64)current) return;
    if (!write && (within(at, slots) || within(at, attributes) || within(at, pointers))) return;
    if (!write && at >= module_start && at < module_end) return;  // a table of constants
    report(BOUNDS, place, 0, nullptr, 0, 0);
    abandon();
  }
  int number = owner[offset / PAGE];
  Region* region = number ? &regions[number - 1] : nullptr;
  if (!region || at < region->start || at + bytes > region->start + region->bytes) {
    Region* nearest = nullptr;  // the region that begins last before the address, or first of all
    for (int i = 0; i < region_count; ++i)
      if (!nearest || (regions[i].start <= at + PAGE && (nearest->start < regions[i].start || nearest->start > at + PAGE)))
        nearest = &regions[i];
    report(BOUNDS, place, 0, nearest, nearest ? (at - nearest->start) / nearest->scalar : 0, 0);
    abandon();
  }
  long index = (at - region->start) / region->scalar;
  if (aligned && (u64)at % bytes) {
    report(MISALIGNED, place, 0, region, index, 0);
    abandon();
  }
  if (region->memory == INPUT) {
    if (write) report(INPUT_WRITE, place, 0, region, index, 0), abandon();
    return;
  }
  long last = (at + bytes - 1 - region->start) / region->scalar;
  for (long i = index; i <= last; ++i) touch(*region, i, write, atomic, place);
}

void wait(int scope, int flags, int size, int place) {
  Fiber& fiber = fibers[current];
  fiber.state = Fiber::WAITING;
  fiber.scope = scope;
  fiber.flags = flags;
  fiber.size = size;
  fiber.place = place;
  yield();
}

// Lets threads `first` to `last` pass what they all wait at, or reports the first that is somewhere else.
bool release(int first, int last) {
  Fiber& one = fibers[first];
  for (int i = first; i < last; ++i) {
    Fiber& f = fibers[i];
    if (f.state == Fiber::WAITING && f.scope == one.scope && f.place == one.place && f.flags == one.flags &&
        f.size == one.size)
      continue;
    current = first;
    report(DIVERGENT, one.place, f.state == Fiber::DONE ? -1 : f.place, nullptr, 0, group_index * threads + i + 1);
    return false;
  }
  for (int i = first; i < last; ++i) fibers[i].state = Fiber::READY;
  if (one.size < 0)
    for (int memory = 0; memory < 2; ++memory)
      if (one.flags & (memory ? 1 : 2)) {
        if (one.scope)
          ++simd_epoch[first / SIMD][memory];
        else
          ++group_epoch[memory];
      }
  return true;
}

void run_group(bool reversed) {
  for (int i = 0; i < threads; ++i) {
    char* stack = stacks + i * STACK_BYTES;
    stack[0] = CANARY;
    u64* top = (u64*)(stack + STACK_BYTES - 256);
    memset(top, 0, 256);
#if defined(__x86_64__)
    fibers[i].sp = top;
    top[6] = (u64)&begin_fiber;  // above six registers; a function begins 8 bytes off a multiple of 16
#else
    fibers[i].sp = top;
    top[11] = (u64)&begin_fiber;  // x30
#endif
    fibers[i].state = Fiber::READY;
    fibers[i].exchanges = 0;
  }
  for (;;) {
    for (int i = 0; i < threads; ++i) {
      current = reversed ? threads - 1 - i : i;
      if (fibers[current].state == Fiber::READY) msl_switch(&scheduler, fibers[current].sp);
      if (aborted) return;
    }
    bool moved = false;
    int done = 0, at_simd = 0;
    for (int s = 0; s < simds; ++s) {
      int waiting = 0;
      for (int i = s * SIMD; i < (s + 1) * SIMD; ++i) {
        done += fibers[i].state == Fiber::DONE;
        waiting += fibers[i].state == Fiber::WAITING && fibers[i].scope == 1;
      }
      at_simd += waiting;
      if (waiting == SIMD) {
        if (!release(s * SIMD, (s + 1) * SIMD)) return;
        moved = true;
      }
    }
    if (moved) continue;
    if (done == threads) return;
    if (at_simd) {  // lanes wait for others of their simdgroup that went elsewhere
      for (int i = 0; i < threads; ++i)
        if (fibers[i].state == Fiber::WAITING && fibers[i].scope == 1) {
          int first = i / SIMD * SIMD;
          for (int j = first; j < first + SIMD; ++j)
            if (fibers[j].state == Fiber::DONE || fibers[j].scope != 1) {
              current = i;
              report(DIVERGENT, fibers[i].place, fibers[j].state == Fiber::DONE ? -1 : fibers[j].place, nullptr, 0,
                     group_index * threads + j + 1);
              return;
            }
        }
    }
    int first = 0;
    while (fibers[first].state == Fiber::DONE) ++first;
    if (first == 0) {
      if (!release(0, threads)) return;
    } else {
      current = first;
      report(DIVERGENT, fibers[first].place, -1, nullptr, 0, group_index * threads + 1);
      return;
    }
  }
}

Region* add_region(char* start, u64 bytes, int scalar, int memory, int id, bool initialised) {
  Region& region = regions[region_count++];
  region = {start, bytes, scalar, memory, id, nullptr};
  if (memory != INPUT) {
    u64 count = (bytes + scalar - 1) / scalar;
    region.cells = (Cell*)malloc(count * sizeof(Cell) + 1);
    memset(region.cells, 0, count * sizeof(Cell));
    if (initialised)
      for (u64 i = 0; i < count; ++i) region.cells[i].initialised = true;
  }
  for (u64 page = (start - arena) / PAGE; page <= (start + bytes - arena) / PAGE; ++page) owner[page] = region_count;
  return &region;
}

void end_group() {
  for (; region_count > buffer_count; --region_count) free(regions[region_count - 1].cells);
  memset(owner, 0, GROUP_ARENA / PAGE);
  memset(arena, 0xFF, PAGE + group_used);
  group_bytes = group_used = 0;
}

}  // namespace

extern "C" {

// Runs every group of a launch; returns the number of findings. `bytes_used`: threadgroup memory of one group.
int msl_launch(Entry kernel, long module_bytes, Buffer* buffers, int count, const int* groups, const int* size,
               int reversed, Finding* into, int limit, long* bytes_used) {
  threads = size[0] * size[1] * size[2];
  simds = threads / SIMD;
  findings = into;
  finding_limit = limit;
  finding_count = region_count = 0;
  steps = 0;
  aborted = false;
  entry = kernel;
  module_start = (char*)kernel - module_bytes;
  module_end = (char*)kernel + module_bytes;
  if (!stacks) stacks = (char*)malloc(STACK_BYTES * MAX_THREADS + 16);
  stacks = (char*)(((u64)stacks + 15) & ~15ul);
  arena_bytes = GROUP_ARENA;
  for (int i = 0; i < count; ++i) {
    u64 bytes = buffers[i].bytes, gap = bytes < 4096 ? 4096 : bytes > (1 << 20) ? 1 << 20 : bytes;
    arena_bytes += (bytes + gap + 3 * PAGE) / PAGE * PAGE;
  }
  char* whole = (char*)malloc(arena_bytes + PAGE);
  arena = (char*)(((u64)whole + PAGE - 1) & ~(PAGE - 1));
  owner = (u8*)malloc(arena_bytes / PAGE + 1);
  memset(owner, 0, arena_bytes / PAGE + 1);
  char* at = arena + GROUP_ARENA;
  for (int i = 0; i < count; ++i) {
    Buffer& b = buffers[i];
    char* start = at + PAGE + b.offset;
    memcpy(start, b.data, b.bytes);
    add_region(start, b.bytes, b.scalar, b.memory, i, b.initialised);
    pointers[i] = start;
    u64 bytes = b.bytes, gap = bytes < 4096 ? 4096 : bytes > (1 << 20) ? 1 << 20 : bytes;
    at += (bytes + gap + 3 * PAGE) / PAGE * PAGE;
  }
  buffer_count = region_count;
  *bytes_used = 0;
  u32 total = groups[0] * groups[1] * groups[2];
  for (u32 n = 0; n < total && !finding_count; ++n) {
    group_index = reversed ? total - 1 - n : n;
    end_group();
    for (int memory = 0; memory < 2; ++memory) {
      group_epoch[memory] = 1;
      for (int s = 0; s < MAX_SIMDS; ++s) simd_epoch[s][memory] = 1;
    }
    u32 g[3] = {group_index % groups[0], group_index / groups[0] % groups[1], group_index / groups[0] / groups[1]};
    for (int t = 0; t < threads; ++t) {
      Attributes& a = attributes[t];
      u32 p[3] = {u32(t % size[0]), u32(t / size[0] % size[1]), u32(t / size[0] / size[1])};
      for (int d = 0; d < 3; ++d) {
        a.position_in_group[d] = p[d];
        a.group[d] = g[d];
        a.group_size[d] = size[d];
        a.groups[d] = groups[d];
        a.grid[d] = groups[d] * size[d];
        a.position_in_grid[d] = g[d] * size[d] + p[d];
      }
      a.lane = t % SIMD;
      a.simdgroup = t / SIMD;
      a.simdgroups = simds;
      a.index = t;
    }
    run_group(reversed);
    if ((long)group_bytes > *bytes_used) *bytes_used = group_bytes;
  }
  end_group();
  for (int i = 0; i < count; ++i) {
    Region& region = regions[i];
    if (region.memory != OUTPUT) continue;
    memcpy(buffers[i].data, region.start, region.bytes);
    if (!finding_count)
      for (u64 j = 0; j < region.bytes / region.scalar; ++j)
        if (!region.cells[j].initialised) {
          report(UNWRITTEN, 0, 0, &region, j, 0);
          break;
        }
    free(region.cells);
  }
  free(whole);
  free(owner);
  return finding_count;
}

// Which of a kernel's mutants is alive; -1: none.
void msl_select(int number) { mutant = number; }
int msl_pick(int number, int) { return number == mutant; }

void msl_barrier(int scope, int flags, int place) { wait(scope, flags, -1, place); }

const char* msl_exchange(const void* value, int size, int place) {
  Fiber& fiber = fibers[current];
  auto& mine = slots[fiber.exchanges++ % 2][current / SIMD];
  memcpy(mine[current % SIMD], value, size);
  wait(1, 0, size, place);
  return mine[0];
}

u32 msl_lane(int) { return current % SIMD; }

void* msl_threadgroup(int id, int bytes, int scalar, int place) {
  for (int i = buffer_count; i < region_count; ++i)
    if (regions[i].id == id) return regions[i].start;
  group_bytes += (bytes + 15) / 16 * 16;
  if (group_bytes > GROUP_LIMIT || region_count == buffer_count + MAX_ARRAYS) {
    report(MEMORY_LIMIT, place, 0, nullptr, group_bytes, 0);
    abandon();
  }
  char* start = arena + PAGE + group_used;
  group_used += (bytes + 4 * PAGE) / PAGE * PAGE;
  return add_region(start, bytes, scalar, THREADGROUP, id, false)->start;
}

u32 msl_atomic(const volatile void* address, int operation, int type, u32 value, u32 expected, int place) {
  enum { LOAD, STORE, ADD, SUB, MAX, MIN, AND, OR, XOR, EXCHANGE_IF };
  volatile u32* at = (volatile u32*)address;
  if (operation != STORE) access(address, 4, false, true, place, true);
  if (operation != LOAD) access(address, 4, true, true, place, true);
  u32 old = *at, now = old;
  float x = __builtin_bit_cast(float, old), y = __builtin_bit_cast(float, value);
  bool less = type == 1 ? (int)old < (int)value : old < value;
  switch (operation) {
    case STORE: now = value; break;
    case ADD: now = type == 2 ? __builtin_bit_cast(u32, x + y) : old + value; break;
    case SUB: now = type == 2 ? __builtin_bit_cast(u32, x - y) : old - value; break;
    case MAX: now = less ? value : old; break;
    case MIN: now = less ? old : value; break;
    case AND: now = old & value; break;
    case OR: now = old | value; break;
    case XOR: now = old ^ value; break;
    case EXCHANGE_IF: now = old == expected ? value : old; break;
  }
  if (operation != LOAD) *at = now;
  return old;
}

void msl_access(const void* address, long bytes, int write, int place) { access(address, bytes, write, false, place); }

#define HOOKS(bytes)                                                                                   \
  void __tsan_read##bytes(void* p, int place) { access(p, bytes, false, true, place); }                \
  void __tsan_write##bytes(void* p, int place) { access(p, bytes, true, true, place); }                \
  void __tsan_unaligned_read##bytes(void* p, int place) { access(p, bytes, false, false, place); }     \
  void __tsan_unaligned_write##bytes(void* p, int place) { access(p, bytes, true, false, place); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void* __tsan_memset(void* p, int value, u64 bytes, int place) {
  if (bytes) access(p, bytes, true, false, place);
  return memset(p, value, bytes);
}
void* __tsan_memmove(void* to, const void* from, u64 bytes, int place) {
  if (bytes) access(from, bytes, false, false, place), access(to, bytes, true, false, place);
  return memmove(to, from, bytes);
}
void* __tsan_memcpy(void* to, const void* from, u64 bytes, int place) {
  return __tsan_memmove(to, from, bytes, place);
}
void __tsan_init() {}

// An index beyond an array whose size the compiler knows: a thread's own, or a row of threadgroup memory.
struct TypeName {
  unsigned short kind, info;
  char name[1];
};
struct OutOfBounds {
  const char* file;
  u32 line, column;
  const TypeName *array, *index;
};
void __ubsan_handle_out_of_bounds(const OutOfBounds* what, u64 index, int place) {
  report(INDEX, place, 0, nullptr, (int)index, 0);
  if (finding_count) findings[finding_count - 1].type = what->array->name;
  abandon();
}

// Conversions that a compiler calls where the processor has none; rounded to nearest, ties to even.
static u32 bits(float x) { return __builtin_bit_cast(u32, x); }
__bf16 __truncsfbf2(float x) {
  u32 b = bits(x);
  b = (b & 0x7fffffffu) > 0x7f800000u ? b | 0x400000u : b + 0x7fffu + ((b >> 16) & 1);
  return __builtin_bit_cast(__bf16, (unsigned short)(b >> 16));
}
__bf16 __truncdfbf2(double x) { return __truncsfbf2((float)x); }
float __extendhfsf2(_Float16 x) {
  u32 h = __builtin_bit_cast(unsigned short, x), sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return __builtin_bit_cast(float, sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400u) return __builtin_bit_cast(float, sign | ((rest << 13) + (112u << 23)));
  float small = (float)rest * 5.9604644775390625e-8f;  // 2^-24
  return __builtin_bit_cast(float, sign | bits(small));
}
_Float16 __truncsfhf2(float x) {
  u32 b = bits(x), sign = b >> 16 & 0x8000u, rest = b & 0x7fffffffu, h;
  if (rest > 0x7f800000u) h = 0x7e00u;
  else if (rest >= 0x477ff000u) h = 0x7c00u;  // 65520 and more round to infinity
  else if (rest >= 0x38800000u) h = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1)) >> 13;
  else h = bits(__builtin_bit_cast(float, rest) + 0.5f) - bits(0.5f);  // a half's denormals end where 0.5f's last bit is
  return __builtin_bit_cast(_Float16, (unsigned short)(sign | h));
}
_Float16 __truncdfhf2(double x) { return __truncsfhf2((float)x); }
}
