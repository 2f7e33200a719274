// runtime.cpp -- runs one compute dispatch of a shim-compiled Metal kernel on the CPU. Every GPU thread of a threadgroup
// is a fiber; threadgroup barriers and simdgroup exchanges are rendezvous points. Fibers run in a seeded order between
// rendezvous, threadgroup memory starts as NaN, and barrier divergence is an error: the usual GPU mistakes show up.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>
typedef uint32_t u3 __attribute__((ext_vector_type(3)));
struct MslIds {
  u3 tpig, tgpig, tpitg, tptg, tpg, tgpg;
  uint32_t tiitg, tiisg, sgitg, sgptg;
};
struct MslKernel {
  const char* name;
  const char* args;
  void (*fn)(void**, void**);
};
struct MslConst {
  int index;
  void* p;
  uint32_t size;
  bool* defined;
};
extern "C" {
extern MslKernel msl_kernels[];
extern MslConst msl_consts[];
extern char __start_msltg[] __attribute__((weak)), __stop_msltg[] __attribute__((weak));
}
enum State { RUN, TG, SIMD, DONE };
struct Fiber {
  void* sp;
  State st;
  int line;
  uint32_t opsize;
  uint64_t gen;
  MslIds ids;
};
struct Simd {
  unsigned char slot[2][32 * 64];
  uint64_t active[2];
  uint64_t gen;
};
static std::vector<Fiber> F;
static std::vector<Simd> S;
static std::vector<char*> stacks;
static Fiber* cur;
static void* main_sp;
static void (*entry)(void**, void**);
static void **g_bufs, **g_tg;
static std::string err;
static uint64_t n_div;
extern "C" void msl_switch(void** save, void* to);  // callee-saved registers only
asm(".text\n.globl msl_switch\nmsl_switch:\n push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n "
    "mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
static void yield() { msl_switch(&cur->sp, main_sp); }
static void fiber_main() {
  entry(g_bufs, g_tg);
  cur->st = DONE;
  yield();
  abort();
}
extern "C" const MslIds* msl_ids() { return &cur->ids; }
extern "C" void msl_error(const char* w) {
  if (err.empty()) err = w;
}
extern "C" void msl_tg_barrier(int line) {
  cur->st = TG;
  cur->line = line;
  yield();
}
extern "C" const unsigned char* msl_exchange(const void* v, uint32_t size, uint64_t* active) {
  Simd& s = S[cur->ids.sgitg];
  int par = cur->gen & 1;
  cur->gen++;
  if (size > 64) {
    msl_error("simd op on a type over 64 bytes");
    size = 64;
  }
  memcpy(s.slot[par] + 64 * cur->ids.tiisg, v, size);
  cur->st = SIMD;
  cur->opsize = size;
  cur->line = par;
  yield();
  *active = s.active[par];
  return s.slot[par];
}
extern "C" void msl_simd_barrier() {
  int x = 0;
  uint64_t a;
  msl_exchange(&x, 4, &a);
}
static const size_t STACK = 256 * 1024;
static uint64_t rng;
static uint32_t rnd() {
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return (uint32_t)(rng >> 11);
}
static bool release_simd(uint32_t sg, uint32_t n, bool force) {
  uint32_t lo = sg * 32, hi = std::min(n, lo + 32);
  uint64_t act = 0, live = 0;
  int par = -1;
  uint32_t sz = 0;
  for (uint32_t i = lo; i < hi; i++)
    if (F[i].st != DONE) {
      live |= 1ull << (i - lo);
      if (F[i].st == SIMD && (par < 0 || (F[i].line == par && F[i].opsize == sz))) {
        par = F[i].line;
        sz = F[i].opsize;
        act |= 1ull << (i - lo);
      }
    }
  if (!act || (act != live && !force)) return false;
  if (act != live) n_div++;
  S[sg].active[par] = act;
  uint64_t g = 0;
  for (uint32_t i = lo; i < hi; i++)
    if (act >> (i - lo) & 1) g = std::max(g, F[i].gen);
  for (uint32_t i = lo; i < hi; i++)
    if (act >> (i - lo) & 1) {
      F[i].st = RUN;
      F[i].gen = g;
    }
  return true;
}
static void run_group(uint32_t n, uint64_t seed) {
  uint32_t nsg = (n + 31) / 32;
  S.assign(nsg, Simd{});
  if (__start_msltg) memset(__start_msltg, 0xFF, __stop_msltg - __start_msltg);
  for (uint32_t i = 0; i < n; i++) {
    Fiber& f = F[i];
    f.st = RUN;
    f.gen = 0;
    void** sp = (void**)(stacks[i] + STACK);
    *--sp = nullptr;
    *--sp = (void*)fiber_main;
    for (int k = 0; k < 6; k++) *--sp = nullptr;
    f.sp = sp;
  }
  std::vector<uint32_t> order(n);
  for (uint32_t i = 0; i < n; i++) order[i] = i;
  rng = seed * 0x9E3779B97F4A7C15ull + 1;
  for (;;) {
    if (seed == 1)
      std::reverse(order.begin(), order.end());
    else if (seed > 1)
      for (uint32_t i = n; i > 1; i--) std::swap(order[i - 1], order[rnd() % i]);
    bool ran = false;
    for (uint32_t k : order)
      if (F[k].st == RUN) {
        cur = &F[k];
        msl_switch(&main_sp, cur->sp);
        ran = true;
      }
    if (!err.empty()) return;
    bool rel = false;
    for (uint32_t s = 0; s < nsg; s++) rel |= release_simd(s, n, false);
    if (rel || ran) {
      bool any = false;
      for (uint32_t i = 0; i < n; i++) any |= F[i].st == RUN;
      if (any) continue;
    }
    uint32_t tg = 0, done = 0, simd = 0;
    int line = -1;
    bool mixed = false;
    for (uint32_t i = 0; i < n; i++) {
      if (F[i].st == DONE)
        done++;
      else if (F[i].st == TG) {
        tg++;
        if (line < 0)
          line = F[i].line;
        else if (line != F[i].line)
          mixed = true;
      } else
        simd++;
    }
    if (done == n) return;
    if (simd) {
      bool r = false;
      for (uint32_t s = 0; s < nsg && !r; s++) r = release_simd(s, n, true);
      if (r) continue;
    }
    static bool lax =
        getenv("MSL_LAX");  // hardware lets finished threads count as arrived; the language does not promise it
    if (done && !lax) {
      err = "threadgroup_barrier at line " + std::to_string(line) + " not reached by all threads (" +
            std::to_string(done) + " finished)";
      return;
    }
    if (mixed) {
      err = "threads of one group wait at different threadgroup_barriers";
      return;
    }
    for (uint32_t i = 0; i < n; i++)
      if (F[i].st == TG) F[i].st = RUN;
  }
}
extern "C" const char* msl_kernel_name(int i) { return msl_kernels[i].name; }
extern "C" const char* msl_kernel_args(int i) {
  return msl_kernels[i].args;
}  // per buffer index: r read, w written, - optional
extern "C" int msl_set_constant(int index, const void* v, uint32_t size) {
  int hit = 0;
  for (MslConst* c = msl_consts; c->p; c++)
    if (c->index == index && c->size == size) {
      memcpy(c->p, v, size);
      *c->defined = true;
      hit++;
    }
  return hit;
}
extern "C" void msl_clear_constants() {
  for (MslConst* c = msl_consts; c->p; c++) *c->defined = false;
}
// grid: threadgroups (exact=0) or threads (exact=1, the last groups may be partial). Returns null or an error text.
extern "C" const char* msl_dispatch(const char* name, void** bufs, const uint32_t* tg_bytes, uint32_t n_tg_mem,
                                    const uint32_t* grid, const uint32_t* group, int exact, uint64_t seed,
                                    uint64_t* divergent) {
  static std::string out;
  err.clear();
  n_div = 0;
  entry = nullptr;
  for (MslKernel* k = msl_kernels; k->name; k++)
    if (!strcmp(k->name, name)) entry = k->fn;
  if (!entry) {
    out = std::string("no kernel ") + name;
    return out.c_str();
  }
  uint32_t ng[3], full = group[0] * group[1] * group[2];
  if (full == 0 || full > 1024) {
    out = "threadgroup size not in 1..1024";
    return out.c_str();
  }
  for (int d = 0; d < 3; d++) ng[d] = exact ? (grid[d] + group[d] - 1) / group[d] : grid[d];
  while (stacks.size() < full) stacks.push_back((char*)aligned_alloc(64, STACK));
  F.resize(full);
  uint64_t total = 0;
  std::vector<std::vector<char>> mem(n_tg_mem);
  std::vector<void*> tgp(n_tg_mem + 1);
  for (uint32_t i = 0; i < n_tg_mem; i++) {
    total += tg_bytes[i];
    mem[i].resize(tg_bytes[i] + 64);
    tgp[i] = (void*)(((uintptr_t)mem[i].data() + 15) & ~15ull);
  }
  if (total > 32768) {
    out = "more than 32 KiB of threadgroup memory";
    return out.c_str();
  }
  g_bufs = bufs;
  g_tg = tgp.data();
  for (uint32_t z = 0; z < ng[2]; z++)
    for (uint32_t y = 0; y < ng[1]; y++)
      for (uint32_t x = 0; x < ng[0]; x++) {
        uint32_t g[3] = {x, y, z}, sz[3];
        for (int d = 0; d < 3; d++) sz[d] = exact ? std::min(group[d], grid[d] - g[d] * group[d]) : group[d];
        uint32_t n = sz[0] * sz[1] * sz[2];
        for (uint32_t i = 0; i < n_tg_mem; i++) memset(tgp[i], 0xFF, tg_bytes[i]);
        for (uint32_t i = 0; i < n; i++) {
          MslIds& d = F[i].ids;
          u3 l = {i % sz[0], i / sz[0] % sz[1], i / (sz[0] * sz[1])};
          d.tpitg = l;
          d.tgpig = (u3){x, y, z};
          d.tptg = (u3){sz[0], sz[1], sz[2]};
          d.tgpg = (u3){ng[0], ng[1], ng[2]};
          d.tpig = (u3){x * group[0] + l.x, y * group[1] + l.y, z * group[2] + l.z};
          d.tpg = exact ? (u3){grid[0], grid[1], grid[2]} : (u3){ng[0] * group[0], ng[1] * group[1], ng[2] * group[2]};
          d.tiitg = i;
          d.tiisg = i % 32;
          d.sgitg = i / 32;
          d.sgptg = (n + 31) / 32;
        }
        run_group(n, seed);
        if (!err.empty()) {
          out = std::string(name) + ": " + err;
          return out.c_str();
        }
      }
  if (divergent) *divergent = n_div;
  return nullptr;
}
extern "C" __attribute__((weak)) __bf16 __truncdfbf2(double x) {
  return (__bf16)(float)x;
}  // some clang runtimes lack it
