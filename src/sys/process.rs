//! Processes and signals: what rustix leaves to libc. Fork, signal masks, signalfd, descriptors across exec, dying by a signal.

use core::ffi::{c_int, c_uint};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::{Errno, FdFlags, Result};
use rustix::process::Pid;

// Declarations of libc (POSIX signal(3p), raise(3p), fork(3p), _exit(3p), close(3p), pthread_sigmask(3p), sigaddset(3p);
// siginterrupt(3p); signalfd(2), ualarm(3)); std links it on every target of floe.
unsafe extern "C" {
    fn signal(number: c_int, handler: usize) -> usize;
    fn raise(number: c_int) -> c_int;
    fn fork() -> c_int;
    fn _exit(code: c_int) -> !;
    fn close(fd: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn sigemptyset(set: *mut SignalSet) -> c_int;
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn sigaddset(set: *mut SignalSet, number: c_int) -> c_int;
    fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
    fn siginterrupt(number: c_int, flag: c_int) -> c_int;
    fn ualarm(first_us: c_uint, each_us: c_uint) -> c_uint;
}

/// `sigset_t`: 128 bytes in glibc and musl on every architecture.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct SignalSet([u8; 128]);

/// `SIG_DFL`.
const SIG_DFL: usize = 0;
/// `SIG_IGN`.
const SIG_IGN: usize = 1;
// include/uapi/asm-generic/signal-defs.h; x86, arm and arm64 use it.
const SIG_BLOCK: c_int = 0;
const SIG_UNBLOCK: c_int = 1;
const SIG_SETMASK: c_int = 2;
/// `SFD_CLOEXEC | SFD_NONBLOCK`, which are O_CLOEXEC and O_NONBLOCK (the same on x86, arm and arm64).
const SFD_FLAGS: c_int = 0o2_000_000 | 0o4_000;

/// SIGHUP, the same on every architecture of floe (as are the others).
pub(crate) const SIGHUP: i32 = 1;
/// SIGINT.
pub(crate) const SIGINT: i32 = 2;
/// SIGUSR2.
#[cfg(test)]
pub(crate) const SIGUSR2: i32 = 12;
/// SIGPIPE.
pub(crate) const SIGPIPE: i32 = 13;
/// SIGALRM.
pub(crate) const SIGALRM: i32 = 14;
/// SIGTERM.
pub(crate) const SIGTERM: i32 = 15;
/// SIGCHLD.
pub(crate) const SIGCHLD: i32 = 17;
/// SIGXFSZ, the same on x86, arm and arm64.
const SIGXFSZ: i32 = 25;
/// SIGCONT.
pub(crate) const SIGCONT: i32 = 18;

fn set_of(numbers: &[i32]) -> SignalSet {
    let mut set = SignalSet([0; 128]);
    // SAFETY: the set is 128 bytes, as large as libc's.
    unsafe { sigemptyset(&raw mut set) };
    for number in numbers {
        // SAFETY: as above; an invalid number only gives an error.
        unsafe { sigaddset(&raw mut set, *number) };
    }
    set
}

fn change_mask(how: c_int, set: &SignalSet) {
    // SAFETY: reads the set; a null old mask is allowed. It fails only for a wrong `how`.
    unsafe { pthread_sigmask(how, set, std::ptr::null_mut()) };
}

/// Dies by the signal `number`, blocked or not; where it cannot kill us (as PID 1), gives the exit code 128 + `number`.
pub(crate) fn die_by(number: i32) -> u8 {
    restore_default(number);
    change_mask(SIG_UNBLOCK, &set_of(&[number]));
    // SAFETY: raising a signal touches no memory of ours.
    unsafe { raise(number) };
    u8::try_from(number.saturating_add(128)).unwrap_or(1)
}

/// Has a write past RLIMIT_FSIZE fail with EFBIG, which can be told, instead of killing us by SIGXFSZ (setrlimit(2)).
pub(crate) fn ignore_file_size_signal() {
    ignore(SIGXFSZ);
}

/// Has a signal do nothing.
pub(crate) fn ignore(number: i32) {
    // SAFETY: ignoring a signal touches no memory of ours.
    unsafe { signal(number, SIG_IGN) };
}

/// Gives a signal its default action back.
pub(crate) fn restore_default(number: i32) {
    // SAFETY: restoring the default action touches no memory of ours.
    unsafe { signal(number, SIG_DFL) };
}

/// Whether the signal's action is to be ignored (as under nohup); any other becomes the default. Only for a process with one
/// thread: the action is default for an instant.
pub(crate) fn is_ignored(number: i32) -> bool {
    // SAFETY: setting an action without a handler touches no memory of ours.
    let old = unsafe { signal(number, SIG_DFL) };
    if old == SIG_IGN {
        ignore(number);
    }
    old == SIG_IGN
}

/// What [`say_and_die`] says.
static LAST_WORDS: OnceLock<Vec<u8>> = OnceLock::new();

/// Has these signals say one line before they kill, until [`is_ignored`] gives them their default action back. For the time before
/// somebody waits for them, when there may be no thread that could. Those that are ignored stay so.
pub(crate) fn say_before_death(numbers: &[i32], line: Vec<u8>) {
    if LAST_WORDS.set(line).is_err() {
        return;
    }
    for number in numbers {
        let handler: extern "C" fn(c_int) = say_and_die;
        // SAFETY: the handler does nothing that is not allowed in one (signal-safety(7)).
        let old = unsafe { signal(*number, handler as usize) };
        if old == SIG_IGN {
            ignore(*number);
        }
    }
}

/// A handler: poll(2), write(2), signal(2), raise(3), _exit(2), and atomic reads.
extern "C" fn say_and_die(number: c_int) {
    // Nobody who does not read it may hold up the end.
    super::stderr::write_if_ready(LAST_WORDS.get().map_or(&[][..], Vec::as_slice));
    exit_now(die_by(number))
}

/// After what time an alarm comes, in microseconds, and comes again.
const ALARM_US: c_uint = 20_000;

/// Has SIGALRM do nothing but end what waits in [`before_alarm`]. To be called before the first thread is started.
pub(crate) fn expect_alarm() {
    extern "C" fn nothing(_: c_int) {}
    let handler: extern "C" fn(c_int) = nothing;
    block(&[SIGALRM]);
    // SAFETY: the handler does nothing.
    unsafe { signal(SIGALRM, handler as usize) };
    // SAFETY: changes a flag of the handler.
    unsafe { siginterrupt(SIGALRM, 1) };
}

/// Makes a call that must not wait for long: then it gives `INTR`. The alarm stays wound up, because other threads may be in here;
/// outside nobody hears it.
pub(crate) fn before_alarm<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: touches no memory of ours.
    unsafe { ualarm(ALARM_US, ALARM_US) };
    unblock(&[SIGALRM]);
    let answer = call();
    block(&[SIGALRM]);
    answer
}

/// Blocks these signals in this thread and in all that it starts.
pub(crate) fn block(numbers: &[i32]) {
    change_mask(SIG_BLOCK, &set_of(numbers));
}

/// Lets these signals through again in this thread.
pub(crate) fn unblock(numbers: &[i32]) {
    change_mask(SIG_UNBLOCK, &set_of(numbers));
}

/// Lets every signal through again in this thread.
pub(crate) fn unblock_all() {
    change_mask(SIG_SETMASK, &set_of(&[]));
}

/// Blocks every signal that can be blocked.
pub(crate) fn block_all() {
    let mut set = SignalSet([0; 128]);
    // SAFETY: the set is 128 bytes, as large as libc's.
    unsafe { sigfillset(&raw mut set) };
    change_mask(SIG_SETMASK, &set);
}

/// A descriptor that is readable when one of these (blocked) signals is pending; close-on-exec and non-blocking.
pub(crate) fn signal_fd(numbers: &[i32]) -> Result<OwnedFd> {
    let set = set_of(numbers);
    // SAFETY: reads the set only.
    let fd = unsafe { signalfd(-1, &raw const set, SFD_FLAGS) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes one pending signal from a [`signal_fd`]: its number.
pub(crate) fn take_signal(fd: impl AsFd) -> Option<i32> {
    // struct signalfd_siginfo is 128 bytes and begins with the number as a u32.
    let mut info = [0_u8; 128];
    match rustix::io::read(fd, &mut info) {
        Ok(count) if count >= 4 => {
            i32::try_from(u32::from_ne_bytes([info[0], info[1], info[2], info[3]])).ok()
        }
        _ => None,
    }
}

/// Why the last call of libc failed.
pub(super) fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(code.unwrap_or(5))
}

/// Which side of a [`fork_single_threaded`] we are on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ForkSide {
    /// The parent, with the child's number.
    Parent(Pid),
    Child,
}

/// The threads that were there before any of ours: 1, or more under an emulator, which has some of its own. 0: not counted.
static FIRST_THREADS: AtomicUsize = AtomicUsize::new(0);

fn count_threads() -> Result<usize> {
    let threads = std::fs::read_dir("/proc/self/task");
    let threads = threads.map_err(|e| Errno::from_raw_os_error(e.raw_os_error().unwrap_or(5)))?;
    Ok(threads.count())
}

/// Counts the threads, for [`fork_single_threaded`] to compare. To be called before the first thread is started.
pub(crate) fn remember_threads() {
    let _ = FIRST_THREADS.compare_exchange(
        0,
        count_threads().unwrap_or(1),
        Ordering::SeqCst,
        Ordering::SeqCst,
    );
}

/// Forks; refuses (`EDEADLK`) when this process has started a thread, because the child would inherit locks that
/// nobody holds any more. Needs /proc.
pub(crate) fn fork_single_threaded() -> Result<ForkSide> {
    if count_threads()? > FIRST_THREADS.load(Ordering::SeqCst).max(1) {
        return Err(Errno::DEADLK);
    }
    // SAFETY: with a single thread the child has a whole, consistent copy of the process.
    match unsafe { fork() } {
        0 => Ok(ForkSide::Child),
        pid if pid > 0 => Pid::from_raw(pid).map(ForkSide::Parent).ok_or(Errno::SRCH),
        _ => Err(last_errno()),
    }
}

/// Ends the process without running anything that std or libc registered (a forked child must not run it twice).
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: never returns.
    unsafe { _exit(c_int::from(code)) }
}

/// Takes a descriptor that was inherited under this number, and keeps it from being inherited further.
pub(crate) fn adopt(number: RawFd) -> Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: only looked at and marked, and the number is not that of "no descriptor"; one that is not open gives EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and was left to us by who started this process: nothing here owns it yet.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives the calling thread a table of descriptors of its own, a copy of the one it shared (unshare(2), CLONE_FILES). What other
/// threads open or close from now on it does not see: only for a thread that uses nothing but what is open already.
pub(crate) fn own_descriptors() -> Result<()> {
    // SAFETY: as the caller promises, no number that another thread opens later is used in this one.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }
}

/// Closes every descriptor of this process (of this thread, where it has its own) except these. For a process that will never return to code which owns one of the
/// others. Without /proc the first 4096 are tried.
pub(crate) fn close_others(keep: &[RawFd]) {
    let mut open: Vec<RawFd> = Vec::new();
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            let names = entries.flatten().map(|entry| entry.file_name());
            open.extend(names.filter_map(|name| name.to_str()?.parse::<RawFd>().ok()));
        }
        Err(_) => open.extend(0..4096),
    }
    for fd in open {
        if !keep.contains(&fd) {
            // SAFETY: the caller promises that no owner of this descriptor runs in this process again; the reading
            // of /proc/self/fd was among them, is closed already, and gives EBADF.
            unsafe { close(fd) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_from_its_descriptor() {
        // In a thread of its own, so that the mask of the test runner stays as it is.
        std::thread::spawn(|| {
            block(&[SIGUSR2]);
            let fd = signal_fd(&[SIGUSR2]).unwrap();
            assert_eq!(take_signal(&fd), None);
            // SAFETY: raise sends to this thread, where the signal is blocked.
            unsafe { raise(SIGUSR2) };
            assert_eq!(take_signal(&fd), Some(SIGUSR2));
            assert_eq!(take_signal(&fd), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_not_open_is_not_adopted() {
        assert_eq!(adopt(-1).err(), Some(Errno::BADF));
        assert_eq!(adopt(1 << 20).err(), Some(Errno::BADF));
    }

    #[test]
    fn the_signal_set_is_as_large_as_libcs() {
        // sigfillset writes the whole set: a larger one would write past ours.
        let mut sets = [SignalSet([0; 128]), SignalSet([0x55; 128])];
        // SAFETY: room for twice the expected size.
        unsafe { sigfillset(&raw mut sets[0]) };
        assert!(sets[1].0.iter().all(|byte| *byte == 0x55));
    }

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test runner always has its main thread beside this one.
        assert_eq!(fork_single_threaded(), Err(Errno::DEADLK));
    }
}
