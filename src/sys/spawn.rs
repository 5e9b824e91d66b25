//! Another program as a child: fork(3p), execvp(3p), waitpid(2).
//!
//! std's `Command` brings its maps of the environment, its own pipes and three ways to start along: 46 KB for what three callers
//! need. Here a child inherits the environment, gets the three descriptors that it is given, and one of three [`Ties`] to us.

use core::ffi::{c_char, c_int};
use std::ffi::{CString, OsStr};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags, Result};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use super::process;

// Declarations of libc; std links it on every target of floe.
unsafe extern "C" {
    fn fork() -> c_int;
    fn execvp(file: *const c_char, words: *const *const c_char) -> c_int;
}

/// What a child has to do with us.
pub(crate) enum Ties {
    /// It blocks the signals that we block, and outlives us.
    Loose,
    /// It dies by SIGTERM when the thread that starts it ends, killed or not (prctl(2), PR_SET_PDEATHSIG), and can be
    /// interrupted: the signals that we block are not blocked in it.
    Close,
    /// It leads a session of its own, blocks every signal from its first instruction on, and keeps these descriptors under their
    /// numbers; they must stay open until it was started.
    Apart(Vec<RawFd>),
}

/// A program with its words.
pub(crate) struct Command {
    program: CString,
    /// The first one is the name under which it runs.
    words: Vec<CString>,
    /// A word was no C string.
    is_spoiled: bool,
}

impl Command {
    /// This program (looked for in `PATH` when it has no slash), run under this name.
    pub(crate) fn new(program: &OsStr, name: &str) -> Self {
        let mut command = Self {
            program: CString::default(),
            words: Vec::new(),
            is_spoiled: false,
        };
        command.word(program.as_bytes());
        command.program = command.words.pop().unwrap_or_default();
        command.word(name.as_bytes());
        command
    }

    /// One more word.
    #[inline(never)]
    pub(crate) fn word(&mut self, word: &[u8]) {
        let word = CString::new(word);
        self.is_spoiled |= word.is_err();
        self.words.push(word.unwrap_or_default());
    }

    /// More words.
    pub(crate) fn words(&mut self, words: &[&str]) {
        for word in words {
            self.word(word.as_bytes());
        }
    }

    /// Starts it with this standard input, output and error; what is `None` is ours. A program that cannot be executed is an
    /// error here already.
    pub(crate) fn spawn(&self, streams: [Option<BorrowedFd<'_>>; 3], ties: &Ties) -> Result<Child> {
        if self.is_spoiled {
            return Err(Errno::INVAL);
        }
        let mut words: Vec<*const c_char> = self.words.iter().map(|word| word.as_ptr()).collect();
        words.push(std::ptr::null());
        let (over, told) = pipe()?;
        // SAFETY: until it executes the program or ends, the child makes system calls only, and takes no memory and no lock:
        // other threads of ours may have held one.
        let pid = match unsafe { fork() } {
            0 => {
                let errno = match prepare(streams, ties) {
                    Ok(()) => {
                        // SAFETY: C strings that live in `self`, and a list of them that ends with a null pointer.
                        unsafe { execvp(self.program.as_ptr(), words.as_ptr()) };
                        process::last_errno()
                    }
                    Err(errno) => errno,
                };
                let _ = rustix::io::write(&told, &errno.raw_os_error().to_ne_bytes());
                process::exit_now(127)
            }
            pid if pid > 0 => Pid::from_raw(pid).ok_or(Errno::SRCH)?,
            _ => return Err(process::last_errno()),
        };
        drop(told);
        let mut child = Child { pid, ended: None };
        let mut errno = [0; 4];
        // The other end is closed by exec.
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&over, &mut errno));
        if read == Ok(errno.len()) {
            let _ = child.wait();
            return Err(Errno::from_raw_os_error(i32::from_ne_bytes(errno)));
        }
        Ok(child)
    }
}

/// In the child, before it executes the program. The streams are not among the first three descriptors: those are always open
/// (`sys::start`).
fn prepare(streams: [Option<BorrowedFd<'_>>; 3], ties: &Ties) -> Result<()> {
    // A program expects to die of a pipe that nobody reads.
    process::restore_default(process::SIGPIPE);
    match ties {
        Ties::Loose => process::unblock(&[process::SIGALRM]),
        Ties::Close => {
            process::unblock_all();
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        }
        Ties::Apart(kept) => {
            process::block_all();
            // Fails only for the leader of a process group, which a new child is not.
            let _ = rustix::process::setsid();
            for fd in kept {
                // SAFETY: the caller promises that the descriptor is open.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            }
        }
    }
    let [input, output, error] = streams;
    input.map_or(Ok(()), rustix::stdio::dup2_stdin)?;
    output.map_or(Ok(()), rustix::stdio::dup2_stdout)?;
    error.map_or(Ok(()), rustix::stdio::dup2_stderr)
}

/// A child that was started. Dropping it leaves it to itself.
pub(crate) struct Child {
    pid: Pid,
    ended: Option<WaitStatus>,
}

impl Child {
    /// Its number.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    #[inline(never)]
    fn look(&mut self, options: WaitOptions) -> Result<Option<WaitStatus>> {
        if self.ended.is_none() {
            let found = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), options))?;
            self.ended = found.map(|(_, status)| status);
        }
        Ok(self.ended)
    }

    /// How it ended, if it has.
    pub(crate) fn try_wait(&mut self) -> Result<Option<WaitStatus>> {
        self.look(WaitOptions::NOHANG)
    }

    /// Waits for its end: its exit code, `None` when a signal ended it.
    pub(crate) fn wait(&mut self) -> Result<Option<i32>> {
        let ended = self.look(WaitOptions::empty())?;
        Ok(ended.and_then(WaitStatus::exit_status))
    }

    /// Sends it a signal while it is known to be ours.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }
}

/// A stream from which nothing comes, or into which everything vanishes.
pub(crate) fn null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// A pipe that no child inherits by itself: the end to read, and the end to write.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd};

    fn run(words: &[&str], ties: &Ties) -> (Option<i32>, String) {
        let (read, write) = pipe().unwrap();
        let mut command = Command::new(OsStr::new(words[0]), "a name");
        command.words(&words[1..]);
        let null = null().unwrap();
        let streams = [Some(null.as_fd()), Some(write.as_fd()), None];
        let mut child = command.spawn(streams, ties).unwrap();
        drop(write);
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        (child.wait().unwrap(), text)
    }

    #[test]
    fn a_child_gets_its_name_its_words_and_its_streams_and_gives_its_exit_code() {
        let said = run(&["sh", "-c", "echo \"$0\"; cat; exit 7"], &Ties::Loose);
        assert_eq!(said, (Some(7), "a name\n".to_owned()));
        let said = run(&["sh", "-c", "kill -9 $$"], &Ties::Close);
        assert_eq!(said, (None, String::new()));
    }

    #[test]
    fn what_cannot_be_executed_is_told_by_the_start() {
        let mut command = Command::new(OsStr::new("/nowhere/floe"), "floe");
        let started = command.spawn([None; 3], &Ties::Loose).err();
        assert_eq!(started, Some(Errno::NOENT));
        command.word(b"half\0a word");
        let started = command.spawn([None; 3], &Ties::Loose).err();
        assert_eq!(started, Some(Errno::INVAL));
    }

    #[test]
    fn a_child_apart_leads_a_session_and_has_only_what_it_keeps() {
        let (kept, lost) = (null().unwrap(), null().unwrap());
        let [kept_at, lost_at] = [&kept, &lost].map(AsRawFd::as_raw_fd);
        let script = format!(
            "cut -d' ' -f6 /proc/$$/stat; echo $$; test -e /proc/$$/fd/{kept_at} && test ! -e /proc/$$/fd/{lost_at}"
        );
        let (code, text) = run(&["sh", "-c", &script], &Ties::Apart(vec![kept_at]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((code, lines.len(), lines[0]), (Some(0), 2, lines[1]));
    }

    #[test]
    fn ties_decide_which_signals_a_child_blocks() {
        // In a thread of its own, so that the mask of the test runner stays as it is.
        let masks = std::thread::spawn(|| {
            process::block(&[process::SIGUSR2]);
            // A shell would unblock them.
            let words = ["sed", "-n", "s/^SigBlk:.//p", "/proc/self/status"];
            [Ties::Loose, Ties::Close, Ties::Apart(Vec::new())].map(|ties| run(&words, &ties).1)
        });
        let bit = |number: i32| 1 << (number - 1);
        let blocked = masks.join().unwrap().map(|mask| {
            let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
            [process::SIGUSR2, process::SIGHUP].map(|number| mask & bit(number) != 0)
        });
        assert_eq!(blocked, [[true, false], [false, false], [true, true]]);
    }
}
