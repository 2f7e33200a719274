// fake_metal.cpp -- a pretend Objective-C runtime plus the ~60 Metal methods candle uses, for Linux. Buffers are host
// memory; libraries are Metal source turned into C++ (../executor), compiled once and kept; a dispatch runs at once on the
// CPU. It checks what a GPU would not forgive: missing buffers, read/write hazards without a barrier inside a concurrent
// encoder, buffer ends (guard page), threadgroup limits. Nothing here is fast or complete; it is for tests.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>
typedef const char* SEL;
struct Class {
  Class* isa;
  const char* name;
};
typedef void (*IMP)();
struct Size {
  size_t w, h, d;
};
struct Range {
  size_t loc, len;
};
struct Payload {
  virtual ~Payload() {}
};
struct O {  // an "object": the isa word first, as objc2 expects
  Class* isa;
  std::atomic<long> rc{1};
  Payload* p;
};
static Class meta = {nullptr, "Meta"};
static std::recursive_mutex mu;
static std::map<std::string, Class*>& classes() {
  static std::map<std::string, Class*> m;
  return m;
}
static Class* cls(const char* n) {
  std::lock_guard<std::recursive_mutex> l(mu);
  auto& c = classes()[n];
  if (!c) c = new Class{&meta, strdup(n)};
  return c;
}
static O* make(const char* c, Payload* p) {
  O* o = new O;
  o->isa = cls(c);
  o->p = p;
  return o;
}
[[noreturn]] static void die(const std::string& s) {
  fprintf(stderr, "fake Metal: %s\n", s.c_str());
  abort();
}
static int strict() {
  static int v = getenv("FAKE_METAL_WARN") ? 0 : 1;
  return v;
}
static void fault(const std::string& s) {
  if (strict()) die(s);
  fprintf(stderr, "fake Metal: %s\n", s.c_str());
}
struct Str : Payload {
  std::string s;
};
struct Arr : Payload {
  std::vector<O*> v;
};
static O* str(const std::string& s) {
  Str* p = new Str;
  p->s = s;
  return make("NSString", p);
}
static std::string S(O* o) { return static_cast<Str*>(o->p)->s; }
static O* retain(O* o) {
  if (o && o->isa != &meta) o->rc++;
  return o;
}
static void release(O* o) {
  if (o && o->isa != &meta && --o->rc == 0) {
    delete o->p;
    delete o;
  }
}
static std::atomic<size_t> live_bytes{0};  // of all buffers
struct Buf : Payload {
  char* p = nullptr;
  size_t n = 0, map = 0;
  char* base = nullptr;
  ~Buf() {
    live_bytes -= n;
    if (base) munmap(base, map);
  }
};
static O* new_buf(size_t n) {
  Buf* b = new Buf;
  b->n = n;
  live_bytes += n;
  static size_t slack =
      getenv("FAKE_METAL_SLACK") ? atol(getenv("FAKE_METAL_SLACK")) : 0;  // bytes readable past the end
  size_t pages = (n + 4095) / 4096 * 4096 + slack;
  b->map = pages + 4096;
  b->base = (char*)mmap(nullptr, b->map, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(b->base + pages, 4096, PROT_NONE);
  b->p = b->base + (pages - slack - (n + 15) / 16 * 16);
  if (slack) memset(b->base, 0xFF, pages);
  memset(b->p, 0xFF, n);
  return make("Buffer", b);
}
typedef const char* (*dispatch_t)(const char*, void**, const uint32_t*, uint32_t, const uint32_t*, const uint32_t*, int,
                                  uint64_t, uint64_t*);
struct Lib : Payload {
  std::string base;                   // where kernels are compiled one by one
  std::map<std::string, Lib*> parts;  // those
  void* h = nullptr;
  dispatch_t run;
  std::map<std::string, std::string> args;
  void (*clear)();
  int (*setc)(int, const void*, uint32_t);
};
struct Consts : Payload {
  struct C {
    int i;
    char b[16];
    uint32_t n;
  };
  std::vector<C> v;
};
struct Fn : Payload {
  Lib* lib;
  std::string name, args;
  std::vector<Consts::C> c;
};
struct Bind {
  O* buf = nullptr;
  size_t off = 0;
  std::string bytes;
  bool set = false, fresh = false;  // fresh: bound after the pipeline was set
};
struct Enc : Payload {
  O* cb;
  Fn* fn = nullptr;
  Bind b[31];
  uint32_t tg[31] = {0};
  std::set<O*> wr, rd;
  // What was bound is kept, also when a later dispatch binds something else. Work is done at once, so only until the end.
  std::vector<O*> held;
  void let_go() {
    for (O* o : held) release(o);
    held.clear();
  }
  ~Enc() { let_go(); }
};
struct CB : Payload {
  std::vector<void*> handlers;
  O* queue;
};
static uint64_t seed() {
  static uint64_t s = getenv("FAKE_METAL_SEED") ? atoi(getenv("FAKE_METAL_SEED")) : 0;
  return s;
}
static uint64_t n_disp, n_div;
static bool log_on = getenv("FAKE_METAL_LOG");
static void dispatch(O* self, Size grid, Size group, int exact) {
  Enc* e = static_cast<Enc*>(self->p);
  if (!e->fn) die("dispatch without a pipeline");
  std::lock_guard<std::recursive_mutex> l(mu);
  void* ptr[31];
  std::string& a = e->fn->args;
  std::string tmp[31];
  for (int i = 0; i < 31; i++) {
    Bind& b = e->b[i];
    ptr[i] = nullptr;
    char k = i < (int)a.size() ? a[i] : '-';
    if (b.buf) {
      Buf* x = static_cast<Buf*>(b.buf->p);
      if (b.off > x->n) fault(e->fn->name + ": offset past the end of buffer " + std::to_string(i));
      ptr[i] = x->p + b.off;
    } else if (b.set) {
      tmp[i] = b.bytes + std::string(64, '\0');
      ptr[i] = (void*)(((uintptr_t)tmp[i].data()));
    }
    static char none[65536];
    // An argument that a function constant switched off, and what an earlier kernel left in its place.
    if ((!ptr[i] || !b.fresh) && k == '-') ptr[i] = none;
    if ((k == 'r' || k == 'w') && !ptr[i]) {
      static std::set<std::string> seen;
      std::string m = e->fn->name + ": nothing bound at buffer index " + std::to_string(i);
      if (getenv("FAKE_METAL_STRICT_BIND")) fault(m);
      if (seen.insert(m).second) fprintf(stderr, "fake Metal: note: %s\n", m.c_str());
      ptr[i] = none;
    }
  }
  for (int i = 0; i < 31; i++) {
    O* b = e->b[i].buf;
    char k = i < (int)a.size() ? a[i] : '-';
    if (!b) continue;
    if (k == 'r' && e->wr.count(b))
      fault(e->fn->name + ": reads buffer index " + std::to_string(i) +
            " written by an earlier dispatch without a barrier");
    if (k == 'w' && (e->wr.count(b) || e->rd.count(b)))
      fault(e->fn->name + ": writes buffer index " + std::to_string(i) +
            " used by an earlier dispatch without a barrier");
  }
  for (int i = 0; i < 31; i++) {
    O* b = e->b[i].buf;
    char k = i < (int)a.size() ? a[i] : '-';
    if (b && k == 'w') e->wr.insert(b);
    if (b && k == 'r') e->rd.insert(b);
  }
  Lib* L = e->fn->lib;
  L->clear();
  for (auto& c : e->fn->c) L->setc(c.i, c.b, c.n);
  uint32_t g[3] = {(uint32_t)grid.w, (uint32_t)grid.h, (uint32_t)grid.d},
           t[3] = {(uint32_t)group.w, (uint32_t)group.h, (uint32_t)group.d};
  uint64_t dv = 0;
  if (log_on)
    fprintf(stderr, "fake Metal: %s grid %u,%u,%u group %u,%u,%u\n", e->fn->name.c_str(), g[0], g[1], g[2], t[0], t[1],
            t[2]);
  const char* er = L->run(e->fn->name.c_str(), ptr, e->tg, 31, g, t, exact, seed(), &dv);
  if (er) fault(er);
  n_disp++;
  n_div += dv;
}
static Lib* open_compiled(const std::string& so) {
  Lib* L = new Lib;
  L->h = dlopen(so.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!L->h) die(dlerror());
  L->run = (dispatch_t)dlsym(L->h, "msl_dispatch");
  L->clear = (void (*)())dlsym(L->h, "msl_clear_constants");
  L->setc = (int (*)(int, const void*, uint32_t))dlsym(L->h, "msl_set_constant");
  auto name = (const char* (*)(int))dlsym(L->h, "msl_kernel_name");
  auto args = (const char* (*)(int))dlsym(L->h, "msl_kernel_args");
  for (int i = 0; name(i); i++) L->args[name(i)] = args(i);
  return L;
}
// Compiles `base`.metal, or one kernel of it, unless that was done before; null with an error where it does not compile.
static Lib* compiled(const std::string& base, const std::string& kernel, O** err) {
  std::string so = base + (kernel.empty() ? "" : "." + kernel) + ".so", log = so + ".log";
  if (access(so.c_str(), R_OK)) {
    const char* cc = getenv("FAKE_METAL_COMPILE");
    if (!cc) die("set FAKE_METAL_COMPILE to executor/compile.sh");
    std::string command = std::string(cc) + " " + base + ".metal " + so + " " + kernel + " > " + log + " 2>&1";
    if (system(command.c_str())) {
      if (err) *err = str("does not compile, see " + log);
      return nullptr;
    }
  }
  return open_compiled(so);
}
static O* load_library(const std::string& src, O** err) {
  static std::map<size_t, O*> cache;
  std::lock_guard<std::recursive_mutex> l(mu);
  size_t h = std::hash<std::string>()(src);
  if (cache.count(h)) return retain(cache[h]);
  const char* dir = getenv("FAKE_METAL_CACHE");
  if (!dir) dir = "fake_metal_cache";
  char nm[512];
  snprintf(nm, sizeof nm, "%s/%016zx", dir, h);
  std::string base = nm, part = base + ".part" + std::to_string(getpid());
  (void)!system((std::string("mkdir -p ") + dir).c_str());
  FILE* f = fopen(part.c_str(), "w");
  if (!f) die("cannot write " + part);
  fwrite(src.data(), 1, src.size(), f);
  fclose(f);
  rename(part.c_str(), (base + ".metal").c_str());
  Lib* L;
  if (src.find("simdgroup_multiply_accumulate") != std::string::npos) {
    L = new Lib;  // many large kernels, of which few are used: each is compiled when it is asked for
    L->base = base;
  } else {
    L = compiled(base, "", err);
  }
  if (!L) return nullptr;
  return retain(cache[h] = make("Library", L));
}
static O* get_fn(O* self, O* name, O* consts, O** err) {
  std::lock_guard<std::recursive_mutex> l(mu);
  Lib* L = static_cast<Lib*>(self->p);
  std::string n = S(name);
  if (!L->base.empty()) {
    Lib*& part = L->parts[n];
    if (!part && !(part = compiled(L->base, n, err))) return nullptr;
    L = part;
  }
  auto it = L->args.find(n);
  if (it == L->args.end()) {
    if (err) *err = str("no function " + n);
    return nullptr;
  }
  Fn* f = new Fn;
  f->lib = L;
  f->name = n;
  f->args = it->second;
  if (consts) f->c = static_cast<Consts*>(consts->p)->v;
  return make("Function", f);
}
static uint32_t type_size(size_t t) {
  switch (t) {
    case 53:
    case 45:
    case 49:
      return 1;
    case 37:
    case 41:
    case 16:
      return 2;
    case 81:
    case 85:
      return 8;
    default:
      return 4;
  }
}
extern "C" {
struct Block;
void* _Block_copy(Block*);
}
#define M(name) \
  if (s == name) return (IMP)
#define P(T) static_cast<T*>(o->p)
static IMP lookup(const std::string& s, const std::string& c) {
  M("retain") + [](O* o, SEL) { return retain(o); };
  M("release") + [](O* o, SEL) { release(o); };
  M("autorelease") + [](O* o, SEL) { return o; };
  M("alloc") + [](O* o, SEL) -> O* {
    const char* n = ((Class*)o)->name;
    return make(n, !strcmp(n, "NSArray")                     ? (Payload*)new Arr
                   : !strcmp(n, "MTLFunctionConstantValues") ? (Payload*)new Consts
                                                             : new Str);
  };
  M("new") + [](O* o, SEL) -> O* {
    const char* n = ((Class*)o)->name;
    return make(n, !strcmp(n, "MTLFunctionConstantValues") ? (Payload*)new Consts : new Str);
  };
  M("init") + [](O* o, SEL) { return o; };
  M("initWithBytes:length:encoding:") + [](O* o, SEL, const char* b, size_t n, size_t) {
    P(Str)->s.assign(b, n);
    return o;
  };
  M("lengthOfBytesUsingEncoding:") + [](O* o, SEL, size_t) { return P(Str)->s.size(); };
  M("UTF8String") + [](O* o, SEL) { return P(Str)->s.c_str(); };
  M("localizedDescription") + [](O* o, SEL) { return str(S(o)); };
  M("code") + [](O*, SEL) -> long { return 1; };
  M("domain") + [](O*, SEL) { return str("fake"); };
  M("description") + [](O* o, SEL) { return str(S(o)); };
  M("debugDescription") + [](O* o, SEL) { return str(S(o)); };
  if (s == "length")
    return c == "Buffer" ? (IMP) + [](O* o, SEL) { return P(Buf)->n; }
                         : (IMP) + [](O* o, SEL) { return P(Str)->s.size(); };
  M("count") + [](O* o, SEL) { return P(Arr)->v.size(); };
  M("initWithObjects:count:") + [](O* o, SEL, O** v, size_t n) {
    for (size_t i = 0; i < n; i++) P(Arr)->v.push_back(retain(v[i]));
    return o;
  };
  M("objectAtIndex:") + [](O* o, SEL, size_t i) { return P(Arr)->v[i]; };
  M("getObjects:") + [](O* o, SEL, O** out) {
    for (size_t i = 0; i < P(Arr)->v.size(); i++) out[i] = P(Arr)->v[i];
  };
  M("getObjects:range:") + [](O* o, SEL, O** out, Range r) {
    for (size_t i = 0; i < r.len; i++) out[i] = P(Arr)->v[r.loc + i];
  };
  for (const char* n : {"setMathMode:", "setMathFloatingPointFunctions:", "setFastMathEnabled:", "setLanguageVersion:",
                        "setLabel:", "setInitialCapacity:"})
    M(n) + [](O*, SEL, size_t) {};
  for (const char* n : {"requestResidency", "endResidency", "enqueue", "popDebugGroup", "waitUntilScheduled"})
    M(n) + [](O*, SEL) {};
  // NSRange/blocks/objects as one pointer-sized argument that may be ignored
  for (const char* n : {"addAllocation:", "removeAllocation:", "addResidencySet:", "waitForFence:", "updateFence:",
                        "pushDebugGroup:", "useResource:usage:"})
    M(n) + [](O*, SEL, O*) {};
  // device
  M("name") + [](O*, SEL) { return str("Apple M-fake"); };
  M("architecture") + [](O*, SEL) { return str("applegpu_g13s"); };
  M("registryID") + [](O*, SEL) -> uint64_t { return 1; };
  M("recommendedMaxWorkingSetSize") + [](O*, SEL) -> uint64_t { return 8ull << 30; };
  M("currentAllocatedSize") + [](O*, SEL) -> size_t { return live_bytes; };
  M("maxTotalThreadsPerThreadgroup") + [](O*, SEL) -> size_t { return 1024; };
  M("threadExecutionWidth") + [](O*, SEL) -> size_t { return 32; };
  M("supportsFamily:") + [](O*, SEL, long) -> bool { return true; };
  M("newCommandQueue") + [](O*, SEL) { return make("Queue", new Payload); };
  M("newFence") + [](O*, SEL) { return make("Fence", new Payload); };
  M("newSharedEvent") + [](O*, SEL) { return make("Event", new Payload); };
  M("device") + [](O*, SEL) { return make("Device", new Payload); };
  M("newResidencySetWithDescriptor:error:") + [](O*, SEL, O*, O**) { return make("ResidencySet", new Payload); };
  M("newBufferWithLength:options:") + [](O*, SEL, size_t n, size_t) { return new_buf(n); };
  M("newBufferWithBytes:length:options:") + [](O*, SEL, const void* p, size_t n, size_t) {
    O* b = new_buf(n);
    memcpy(static_cast<Buf*>(b->p)->p, p, n);
    return b;
  };
  M("contents") + [](O* o, SEL) { return (void*)P(Buf)->p; };
  M("didModifyRange:") + [](O*, SEL, Range) {};
  M("newLibraryWithSource:options:error:") + [](O*, SEL, O* src, O*, O** err) { return load_library(S(src), err); };
  M("newFunctionWithName:") + [](O* o, SEL, O* n) { return get_fn(o, n, nullptr, nullptr); };
  M("newFunctionWithName:constantValues:error:") + [](O* o, SEL, O* n, O* k, O** e) { return get_fn(o, n, k, e); };
  M("setConstantValue:type:atIndex:") + [](O* o, SEL, const void* v, size_t t, size_t i) {
    Consts::C k;
    k.i = (int)i;
    k.n = type_size(t);
    memcpy(k.b, v, k.n);
    P(Consts)->v.push_back(k);
  };
  M("newComputePipelineStateWithFunction:error:") +
      [](O*, SEL, O* f, O**) { return make("Pipeline", new Fn(*static_cast<Fn*>(f->p))); };
  // queue, command buffer
  M("commandBuffer") + [](O* o, SEL) {
    CB* c = new CB;
    c->queue = o;
    return make("CommandBuffer", c);
  };
  M("commandBufferWithUnretainedReferences") + [](O* o, SEL) {
    CB* c = new CB;
    c->queue = o;
    return make("CommandBuffer", c);
  };
  if (s == "commit")
    return c == "CommandBuffer" ? (IMP) +
                                      [](O* o, SEL) {
                                        for (void* h : P(CB)->handlers) ((void (*)(void*, O*))((void**)h)[2])(h, o);
                                        P(CB)->handlers.clear();
                                      }
                                : (IMP) + [](O*, SEL) {};
  M("waitUntilCompleted") + [](O*, SEL) {};
  M("status") + [](O*, SEL) -> size_t { return 4; };
  M("error") + [](O*, SEL) -> O* { return nullptr; };
  M("addCompletedHandler:") + [](O* o, SEL, void* b) { P(CB)->handlers.push_back(_Block_copy((Block*)b)); };
  for (const char* n : {"computeCommandEncoder", "computeCommandEncoderWithDispatchType:"})
    M(n) + [](O* o, SEL, size_t) {
      Enc* e = new Enc;
      e->cb = o;
      return make("Encoder", e);
    };
  M("blitCommandEncoder") + [](O*, SEL) { return make("Blit", new Payload); };
  if (s == "endEncoding" && c == "Encoder")
    return (IMP) + [](O* o, SEL) { P(Enc)->let_go(); };
  M("endEncoding") + [](O*, SEL) {};
  // compute encoder
  M("setComputePipelineState:") + [](O* o, SEL, O* p) {
    P(Enc)->fn = static_cast<Fn*>(p->p);
    for (Bind& k : P(Enc)->b) k.fresh = false;
  };
  M("setBuffer:offset:atIndex:") + [](O* o, SEL, O* b, size_t off, size_t i) {
    Bind& k = P(Enc)->b[i];
    k.buf = b;
    k.off = off;
    k.set = false;
    k.fresh = true;
    if (b) P(Enc)->held.push_back(retain(b));
  };
  M("setBytes:length:atIndex:") + [](O* o, SEL, const char* p, size_t n, size_t i) {
    Bind& k = P(Enc)->b[i];
    k.buf = nullptr;
    k.bytes.assign(p, n);
    k.set = true;
    k.fresh = true;
  };
  M("setThreadgroupMemoryLength:atIndex:") + [](O* o, SEL, size_t n, size_t i) { P(Enc)->tg[i] = (uint32_t)n; };
  M("dispatchThreadgroups:threadsPerThreadgroup:") + [](O* o, SEL, Size g, Size t) { dispatch(o, g, t, 0); };
  M("dispatchThreads:threadsPerThreadgroup:") + [](O* o, SEL, Size g, Size t) { dispatch(o, g, t, 1); };
  M("memoryBarrierWithScope:") + [](O* o, SEL, size_t) {
    P(Enc)->wr.clear();
    P(Enc)->rd.clear();
  };
  // blit encoder
  M("copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:") +
      [](O*, SEL, O* a, size_t ao, O* b, size_t bo, size_t n) {
        Buf *x = static_cast<Buf*>(a->p), *y = static_cast<Buf*>(b->p);
        if (ao + n > x->n || bo + n > y->n)
          fault("blit past the end of a buffer");
        else
          memmove(y->p + bo, x->p + ao, n);
      };
  M("fillBuffer:range:value:") +
      [](O*, SEL, O* b, Range r, uint8_t v) { memset(static_cast<Buf*>(b->p)->p + r.loc, v, r.len); };
  die("no method " + s + " on " + c);
}
extern "C" {
IMP objc_msg_lookup(O* o, SEL s) {
  return lookup(s, o->isa == &meta ? std::string("class ") + ((Class*)o)->name : o->isa->name);
}
SEL sel_registerName(const char* n) {
  static std::map<std::string, const char*> m;
  std::lock_guard<std::recursive_mutex> l(mu);
  auto& p = m[n];
  if (!p) p = strdup(n);
  return p;
}
const char* sel_getName(SEL s) { return s; }
bool sel_isEqual(SEL a, SEL b) { return a == b; }
Class* objc_getClass(const char* n) { return cls(n); }
Class* object_getClass(O* o) { return o->isa; }
const char* class_getName(Class* c) { return c->name; }
bool class_isMetaClass(Class* c) { return c == &meta; }
O* objc_retain(O* o) { return retain(o); }
void objc_release(O* o) { release(o); }
O* objc_retainAutoreleasedReturnValue(O* o) { return retain(o); }
O* objc_autorelease(O* o) { return o; }
// Only named by checks that are switched off.
void* class_getInstanceMethod(Class*, SEL) { return nullptr; }
const char* method_getTypeEncoding(void*) { die("method_getTypeEncoding"); }
SEL method_getName(void*) { die("method_getName"); }
void* objc_autoreleasePoolPush() { return nullptr; }
void objc_autoreleasePoolPop(void*) {}
O* MTLCreateSystemDefaultDevice() { return make("Device", new Payload); }
O* MTLCopyAllDevices() {
  Arr* a = new Arr;
  a->v.push_back(make("Device", new Payload));
  return make("NSArray", a);
}
char _NSConcreteStackBlock[256];
char _NSConcreteGlobalBlock[256];
struct Desc {
  size_t reserved, size;
  void (*copy)(void*, void*);
  void (*dispose)(void*);
};
struct Block {
  void* isa;
  int flags, reserved;
  void* invoke;
  Desc* d;
};
void* _Block_copy(Block* b) {
  if (b->reserved == 0x5eed) return b;
  Block* n = (Block*)malloc(b->d->size);
  memcpy(n, b, b->d->size);
  n->reserved = 0x5eed;
  if (b->flags & (1 << 25)) b->d->copy(n, b);
  return n;
}
void _Block_release(void*) {}
void fake_metal_stats(uint64_t* d, uint64_t* v) {
  *d = n_disp;
  *v = n_div;
}
}
#define STATIC_CLASS(n)                                      \
  extern "C" Class fake_cls_##n __asm__("._OBJC_CLASS_" #n); \
  Class fake_cls_##n = {&meta, #n};
STATIC_CLASS(MTLCompileOptions)
STATIC_CLASS(MTLFunctionConstantValues) STATIC_CLASS(MTLResidencySetDescriptor) STATIC_CLASS(NSArray)
    STATIC_CLASS(NSString) STATIC_CLASS(NSURL) STATIC_CLASS(NSError)
