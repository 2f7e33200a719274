//! The one thread pool: splits a kernel's work over the cores without allocating.
//!
//! The caller takes part, and every thread claims the next task from one counter, so a thread that the operating
//! system holds up delays the others by no more than the task it is in. Idle workers spin for some microseconds, then
//! sleep, and leave the cores to other processes. A nested call, a call while another thread uses the pool, and a call
//! in a forked child (which has no workers) run on the calling thread alone. It has no queue, no futures and no
//! priorities, and promises no order between tasks.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread without work looks for some before it sleeps: longer than the serial stretches between two
/// kernels of a decode step, far shorter than a scheduler's time slice.
const SPIN: Duration = Duration::from_micros(50);

/// The environment variable that sets the number of threads.
pub const THREADS_VARIABLE: &str = "CANDLEWICK_NUM_THREADS";

thread_local! {
    /// Whether this thread is inside a task; what it starts then runs inline.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
    /// Asked before each task that this thread starts.
    static STOP: Cell<Option<Stop>> = const { Cell::new(None) };
}

/// A borrowed question without its lifetime.
#[derive(Clone, Copy)]
struct Stop(*const (dyn Fn() -> bool + Sync));

// SAFETY: what it points to may be called from any thread, and lives as long as the call of `unless` that set it, which
// waits for all tasks.
unsafe impl Sync for Stop {}

impl Stop {
    /// # Safety
    /// The call of [`unless`] that borrowed it has not returned.
    unsafe fn says_so(&self) -> bool {
        // SAFETY: by this function's contract.
        unsafe { (*self.0)() }
    }
}

/// Runs `work`; once `stop` says yes, which it must not take back, the kernels that `work` calls leave out all tasks
/// that have not begun, and there is no result.
///
/// What kernels compute after that is unspecified. The result of `work` is dropped here, and it must leave nothing else
/// behind that counts.
pub fn unless<T>(stop: &(dyn Fn() -> bool + Sync), work: impl FnOnce() -> T) -> Option<T> {
    struct Restore(Option<Stop>);
    impl Drop for Restore {
        fn drop(&mut self) {
            STOP.set(self.0);
        }
    }
    let pointer: *const (dyn Fn() -> bool + Sync + '_) = stop;
    // SAFETY: only the lifetime changes. The pointer is followed in calls of `Pool::parallel` by this thread alone, and
    // taken back before this function returns.
    let pointer: *const (dyn Fn() -> bool + Sync + 'static) = unsafe { std::mem::transmute(pointer) };
    let restore = Restore(STOP.replace(Some(Stop(pointer))));
    let result = work();
    drop(restore);
    (!stop()).then_some(result)
}

/// The number of threads that [`parallel`] uses, the caller's included.
pub fn threads() -> usize {
    global().threads()
}

/// Runs `task(0)`, …, `task(tasks - 1)` on all cores and returns when the last has ended.
///
/// The tasks run in any order and at the same time. A panic in one is raised again here, after the others have ended.
pub fn parallel<F: Fn(usize) + Sync>(tasks: usize, task: F) {
    global().parallel(tasks, task);
}

/// Cuts `out` into chunks of `chunk` elements (the last may be shorter) and runs `task(index, chunk)` on all cores.
pub fn parallel_chunks<T: Send, F: Fn(usize, &mut [T]) + Sync>(out: &mut [T], chunk: usize, task: F) {
    global().parallel_chunks(out, chunk, task);
}

/// The pool that every kernel shares.
pub(crate) fn global() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(default_threads()))
}

/// `CANDLEWICK_NUM_THREADS` where it is a positive number, else one thread per physical core that this process may use.
fn default_threads() -> usize {
    let available = std::thread::available_parallelism().map_or(1, |n| n.get());
    match std::env::var(THREADS_VARIABLE) {
        Ok(value) => match value.trim().parse::<usize>() {
            Ok(n) if n > 0 => return n.min(1024),
            _ => {
                log::warn!("{THREADS_VARIABLE}: got {value:?}, expected a positive number; using the default")
            }
        },
        Err(std::env::VarError::NotPresent) => {}
        Err(error) => log::warn!("{THREADS_VARIABLE}: {error}; using the default"),
    }
    physical_cores().map_or(available, |cores| cores.min(available)).max(1)
}

/// Distinct cores among the CPUs this process may run on; `None` where the system does not say.
fn physical_cores() -> Option<usize> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut siblings = Vec::new();
    for range in allowed.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for cpu in first.parse::<usize>().ok()?..=last.parse::<usize>().ok()? {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            siblings.push(std::fs::read_to_string(path).ok()?);
        }
    }
    siblings.sort_unstable();
    siblings.dedup();
    Some(siblings.len())
}

/// One run of [`Pool::parallel`]: a borrowed closure without its type.
#[derive(Clone, Copy)]
struct Job {
    data: *const (),
    call: unsafe fn(*const (), usize),
    tasks: usize,
}

/// Keeps counters that different threads write on cache lines of their own.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Tasks of the current job that nobody has claimed.
    remaining: Line<AtomicUsize>,
    /// Tasks of the current job that have not ended.
    pending: Line<AtomicUsize>,
    /// Written by the owner of `busy` while `remaining` is 0; read only by holders of a claimed, unfinished task.
    job: UnsafeCell<Job>,
    busy: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Workers asleep on `work`.
    sleepers: AtomicUsize,
    stop: AtomicBool,
    gate: Mutex<()>,
    work: Condvar,
    caller_sleeps: AtomicBool,
    done_gate: Mutex<()>,
    done: Condvar,
}

// SAFETY: `job` is the only field without its own synchronisation. It is written by the thread that won `busy`, before
// `remaining` is raised from 0 with release ordering, and read only after lowering `remaining` with acquire ordering.
// It cannot be written again before every claimed task has ended, because its owner waits for `pending` to reach 0.
unsafe impl Sync for Shared {}
// SAFETY: as for `Sync`; the raw pointer in `job` is only followed while its owner keeps the closure alive.
unsafe impl Send for Shared {}

/// A fixed set of threads that run one job at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    process: u32,
}

impl Pool {
    /// A pool of `threads`, one of them the caller's; fewer where the system refuses to start them.
    pub(crate) fn new(threads: usize) -> Self {
        // SAFETY: it touches nothing; the type asks for an unsafe function.
        unsafe fn nothing(_: *const (), _: usize) {}
        let shared = Arc::new(Shared {
            remaining: Line(AtomicUsize::new(0)),
            pending: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { data: std::ptr::null(), call: nothing, tasks: 0 }),
            busy: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            gate: Mutex::new(()),
            work: Condvar::new(),
            caller_sleeps: AtomicBool::new(false),
            done_gate: Mutex::new(()),
            done: Condvar::new(),
        });
        let mut workers = Vec::new();
        for index in 1..threads {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name(format!("candlewick-{index}"));
            match builder.spawn(move || shared.work()) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    log::warn!("could not start compute thread {index} of {threads}: {error}");
                    break;
                }
            }
        }
        Self { shared, workers, process: std::process::id() }
    }

    /// Threads that take part, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// See [`parallel`].
    pub(crate) fn parallel<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        match STOP.get() {
            Some(stop) => self.run(tasks, |index| {
                // SAFETY: this thread is inside the call of `unless` that borrowed it, and waits here.
                let stopped = unsafe { stop.says_so() };
                if !stopped {
                    task(index);
                }
            }),
            None => self.run(tasks, task),
        }
    }

    fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        if !self.claim(tasks) {
            (0..tasks).for_each(task);
            return;
        }
        /// # Safety
        /// `data` points to a live `F`.
        unsafe fn call<F: Fn(usize)>(data: *const (), index: usize) {
            // SAFETY: by this function's contract.
            unsafe { (*data.cast::<F>())(index) }
        }
        let shared = &*self.shared;
        let job = Job { data: (&raw const task).cast(), call: call::<F>, tasks };
        // SAFETY: this thread holds `busy`, and `remaining` is 0, so nobody reads `job`.
        unsafe { *shared.job.get() = job };
        shared.pending.0.store(tasks, Ordering::Relaxed);
        shared.remaining.0.store(tasks, Ordering::SeqCst);
        shared.wake(tasks - 1, self.workers.len());
        IN_TASK.set(true);
        shared.run_tasks();
        IN_TASK.set(false);
        shared.wait_done();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        shared.busy.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// See [`parallel_chunks`].
    pub(crate) fn parallel_chunks<T: Send, F: Fn(usize, &mut [T]) + Sync>(
        &self,
        out: &mut [T],
        chunk: usize,
        task: F,
    ) {
        let chunk = chunk.max(1);
        let len = out.len();
        let base = Shards::new(out);
        self.parallel(len.div_ceil(chunk), |index| {
            let start = index * chunk;
            // SAFETY: the ranges of different indices do not overlap, lie inside `out`, which stays borrowed for the
            // whole call, and every index runs once.
            let part = unsafe { std::slice::from_raw_parts_mut(base.at(start), chunk.min(len - start)) };
            task(index, part);
        });
    }

    /// Whether this thread may hand a job to the workers now.
    fn claim(&self, tasks: usize) -> bool {
        tasks > 1
            && !self.workers.is_empty()
            && !IN_TASK.get()
            && self.process == std::process::id()
            && self.shared.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.gate.lock());
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks; there is nothing to report.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Claims and runs tasks until none is left unclaimed.
    fn run_tasks(&self) {
        let mut remaining = self.remaining.0.load(Ordering::Relaxed);
        while remaining > 0 {
            let claim = self.remaining.0.compare_exchange_weak(
                remaining,
                remaining - 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            if let Err(now) = claim {
                remaining = now;
                continue;
            }
            // SAFETY: the claimed task has not ended, so the job's owner is still waiting and does not write.
            let job = unsafe { *self.job.get() };
            let index = job.tasks - remaining;
            // SAFETY: as above, the owner keeps the closure alive until `pending` is 0.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { (job.call)(job.data, index) }));
            if let Err(panic) = result {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            if self.pending.0.fetch_sub(1, Ordering::SeqCst) == 1 && self.caller_sleeps.load(Ordering::SeqCst)
            {
                drop(self.done_gate.lock());
                self.done.notify_one();
            }
            remaining = self.remaining.0.load(Ordering::Relaxed);
        }
    }

    /// Wakes as many sleeping workers as there are `tasks` for them.
    fn wake(&self, tasks: usize, workers: usize) {
        if self.sleepers.load(Ordering::SeqCst) == 0 {
            return;
        }
        // A worker checks for work and falls asleep under the gate: passing through it means none is in between.
        drop(self.gate.lock());
        if tasks >= workers {
            self.work.notify_all();
        } else {
            (0..tasks).for_each(|_| self.work.notify_one());
        }
    }

    /// Returns when every task of the current job has ended.
    fn wait_done(&self) {
        let ended = || self.pending.0.load(Ordering::SeqCst) == 0;
        if spin_until(ended) {
            return;
        }
        let mut gate = self.done_gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while !ended() {
            gate = self.done.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    /// The life of a worker.
    fn work(&self) {
        IN_TASK.set(true);
        let wanted = || self.remaining.0.load(Ordering::SeqCst) > 0 || self.stop.load(Ordering::SeqCst);
        loop {
            if !spin_until(wanted) {
                let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while !wanted() {
                    gate = self.work.wait(gate).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.run_tasks();
        }
    }
}

/// Spins until `condition` holds or [`SPIN`] has passed; whether it held.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    let mut deadline = None;
    loop {
        for _ in 0..32 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        if now >= *deadline.get_or_insert(now + SPIN) {
            return false;
        }
    }
}

/// The start of a buffer whose disjoint parts different tasks write.
pub(crate) struct Shards<T>(*mut T);

impl<T> Shards<T> {
    /// Wraps the start of a buffer.
    pub(crate) fn new(buffer: &mut [T]) -> Self {
        Self(buffer.as_mut_ptr())
    }

    /// A buffer of which only the address is at hand; whoever follows it answers for its life and its bounds.
    pub(crate) fn from_ptr(start: *mut T) -> Self {
        Self(start)
    }

    /// The address of element `index`.
    pub(crate) fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

// SAFETY: the pointer is followed only in tasks that write disjoint parts; `T: Send` lets another thread write them.
unsafe impl<T: Send> Sync for Shards<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pool: &Pool, tasks: usize) -> Vec<usize> {
        let seen: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.parallel(tasks, |i| {
            seen[i].fetch_add(1, Ordering::Relaxed);
        });
        seen.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for round in 0..200 {
                let tasks = round % 37;
                assert_eq!(counts(&pool, tasks), vec![1; tasks], "{threads} threads");
            }
        }
    }

    #[test]
    fn workers_wake_after_sleeping() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            std::thread::sleep(SPIN * 4);
            assert_eq!(counts(&pool, 9), vec![1; 9]);
        }
    }

    #[test]
    fn a_sleeping_worker_shares_a_long_job() {
        let pool = Pool::new(2);
        let ids = Mutex::new(std::collections::HashSet::new());
        pool.parallel(8, |_| {
            std::thread::sleep(Duration::from_millis(5));
            ids.lock().unwrap().insert(std::thread::current().id());
        });
        assert_eq!(ids.into_inner().unwrap().len(), 2);
    }

    #[test]
    fn nested_calls_run_inline() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        pool.parallel(4, |_| {
            let outer = std::thread::current().id();
            pool.parallel(5, |_| {
                assert_eq!(std::thread::current().id(), outer);
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 20);
    }

    #[test]
    fn several_callers_at_once() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..300).for_each(|_| assert_eq!(counts(&pool, 7), vec![1; 7])));
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        for _ in 0..20 {
            let ended = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.parallel(16, |i| {
                    assert!(i != 3, "task three");
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }));
            let message = result.expect_err("must panic");
            assert_eq!(message.downcast_ref::<&str>(), Some(&"task three"));
            assert_eq!(ended.into_inner(), 15);
            assert_eq!(counts(&pool, 8), vec![1; 8]);
        }
    }

    #[test]
    fn what_has_not_begun_is_left_out_after_a_stop() {
        for pool in [Pool::new(1), Pool::new(2)] {
            let begun = AtomicUsize::new(0);
            let stop = || begun.load(Ordering::SeqCst) >= 5;
            let result = unless(&stop, || {
                (0..3).for_each(|_| {
                    pool.parallel(100, |_| {
                        begun.fetch_add(1, Ordering::SeqCst);
                    });
                });
            });
            assert_eq!(result, None);
            assert!((5..7).contains(&begun.into_inner()));
            assert_eq!(counts(&pool, 9), vec![1; 9]);
            assert_eq!(unless(&|| false, || counts(&pool, 9)), Some(vec![1; 9]));
        }
        // An inner question leaves the outer one as it was, and so does a panic.
        let outer = AtomicBool::new(false);
        let result = unless(&|| outer.load(Ordering::Relaxed), || {
            assert_eq!(unless(&|| false, || 1), Some(1));
            assert!(catch_unwind(|| unless(&|| false, || panic!("inside"))).is_err());
            outer.store(true, Ordering::Relaxed);
            assert_eq!(counts(global(), 9), vec![0; 9]);
        });
        assert!(result.is_none() && STOP.get().is_none());
    }

    #[test]
    fn chunks_cover_the_slice() {
        let mut out = vec![0usize; 103];
        parallel_chunks(&mut out, 10, |index, part| {
            for (offset, value) in part.iter_mut().enumerate() {
                *value += index * 10 + offset;
            }
        });
        assert_eq!(out, (0..103).collect::<Vec<_>>());
    }

    #[test]
    fn another_process_runs_inline() {
        let mut pool = Pool::new(2);
        pool.process = pool.process.wrapping_add(1);
        let caller = std::thread::current().id();
        pool.parallel(6, |_| assert_eq!(std::thread::current().id(), caller));
    }
}
