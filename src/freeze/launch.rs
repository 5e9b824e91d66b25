//! Starting a guardian: executed from a copy of ourselves where that can be, else forked.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::error::{ErrnoText, Error, Result};
use crate::freeze::guard::{
    Charge, Form, FreezeTarget, Group, Leftover, Life, Limits, NAME, Order, Phase, Words, now_us,
    path_of, serve,
};
use crate::report;
use crate::signals::Signals;
use crate::sys::process::{self, ForkSide};
use crate::sys::shared::SharedPage;
use crate::sys::spawn::{Command, Ties};

/// How often floe looks at the board when nothing wakes it.
const LOOK: Duration = Duration::from_millis(100);
/// How long a guardian may take to be ready.
const READY_US: u64 = 10_000_000;

/// A started guardian: its board, and the two pipes that wake.
#[derive(Debug)]
pub(super) struct Link {
    pub board: &'static SharedPage,
    pub pid: Pid,
    pub life: Life,
    pub orders: OwnedFd,
    pub replies: OwnedFd,
}

/// What came through the pipe.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Nothing,
    Word,
    /// The guardian is gone, or every thread of it is past its last call: only then are its descriptors closed. That holds also
    /// where nobody collects it, because somebody traces it and does not wait.
    End,
}

impl Link {
    pub(super) fn order(&self, order: Order) {
        order.put(&self.board.order);
        let _ = rustix::io::write(&self.orders, b"!");
    }

    /// Sleeps until the guardian says something, a signal comes, or it is time to look at the board again.
    pub(super) fn rest(&self, signals: Option<&Signals>) -> Reply {
        let timeout = Timespec::try_from(LOOK).unwrap_or_default();
        let other = signals.map_or(self.replies.as_fd(), |signals| signals.fd());
        let mut fds = [
            PollFd::new(&self.replies, PollFlags::IN),
            PollFd::from_borrowed_fd(other, PollFlags::IN),
        ];
        let _ = poll(&mut fds, Some(&timeout));
        self.read_replies()
    }

    pub(super) fn read_replies(&self) -> Reply {
        match rustix::io::read(&self.replies, &mut [0_u8; 64]) {
            Ok(0) => Reply::End,
            Ok(_) => Reply::Word,
            Err(_) => Reply::Nothing,
        }
    }

    /// Until it is ready.
    fn await_ready(self) -> std::result::Result<Self, Errno> {
        let began = now_us();
        while Phase::of(&self.board.phase) == Phase::Starting {
            if self.rest(None) == Reply::End || now_us().saturating_sub(began) > READY_US {
                let errno = self.board.start_errno.load(Ordering::SeqCst);
                let _ = rustix::process::kill_process(self.pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG);
                return Err(match errno {
                    0 => Errno::CHILD,
                    errno => Errno::from_raw_os_error(errno),
                });
            }
        }
        Ok(self)
    }
}

/// What a guardian is to have.
pub(super) struct Equipment {
    pub targets: Vec<FreezeTarget>,
    pub limits: Limits,
    pub leftovers: Vec<Leftover>,
    pub lock: Option<OwnedFd>,
}

/// Starts a guardian and waits until it is ready; gives the targets back.
pub(super) fn launch(wanted: Equipment) -> Result<(Link, Vec<FreezeTarget>)> {
    // An ignored SIGCHLD would have the kernel collect the guardian, and its number might be somebody else's next.
    process::restore_default(process::SIGCHLD);
    let mut first = None;
    for form in [Form::Memory, Form::Tmpfs] {
        match execute(&wanted, form).and_then(Link::await_ready) {
            Ok(link) => {
                note(form, link.board);
                return Ok((link, wanted.targets));
            }
            Err(errno) => first = first.or(Some(errno)),
        }
    }
    match fork(wanted) {
        Ok((link, targets)) => {
            note(Form::Fork, link.board);
            Ok((link, targets))
        }
        Err(errno) => {
            // That a process with threads cannot be forked is not what is wrong.
            let errno = match errno {
                Errno::DEADLK => first.unwrap_or(errno),
                other => other,
            };
            Err(Error::failed(format_args!(
                "guardian: it did not start: {}",
                ErrnoText(errno.raw_os_error())
            ))
            .leaving("nothing was frozen"))
        }
    }
}

/// For the report.
fn note(form: Form, board: &SharedPage) {
    report::fact("guardian", form.word());
    let group = match Group::of(&board.group) {
        Group::Own => "own",
        Group::Unknown | Group::Shared => "shared",
    };
    report::fact("guardian_group", group);
}

/// Two ends of two pipes: ours, and the guardian's.
struct GuardianPipes {
    orders: OwnedFd,
    replies: OwnedFd,
    their_orders: OwnedFd,
    their_replies: OwnedFd,
}

impl GuardianPipes {
    fn new() -> std::result::Result<Self, Errno> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (their_orders, orders) = rustix::pipe::pipe_with(flags)?;
        let (replies, their_replies) = rustix::pipe::pipe_with(flags)?;
        Ok(Self {
            orders,
            replies,
            their_orders,
            their_replies,
        })
    }
}

/// Executes a copy of ourselves. It works for a process with threads, too.
fn execute(wanted: &Equipment, form: Form) -> std::result::Result<Link, Errno> {
    let copy = form.copy()?;
    let pipes = GuardianPipes::new()?;
    let words = Words {
        targets: &wanted.targets,
        limits: wanted.limits,
        leftovers: &wanted.leftovers,
        lock: wanted.lock.as_ref(),
        orders: &pipes.their_orders,
        replies: &pipes.their_replies,
    };
    let charge = words.write(form)?;
    let board = SharedPage::map_file(&charge)?;
    let mut command = Command::new(path_of(&copy).as_ref(), NAME);
    // What `ps` shows: the numbers of the devices. A path would be found by `pkill -f PATH`, which finds floe as well.
    for target in &wanted.targets {
        let dev = rustix::fs::fstat(&target.fd)?.st_dev;
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        command.word(format!("{major}:{minor}").as_bytes());
    }
    let apart = Ties::Apart(words.descriptors());
    let child = command.spawn([Some(charge.as_fd()), None, None], &apart)?;
    Ok(Link {
        board,
        pid: child.pid(),
        life: Life::of(child.pid()),
        orders: pipes.orders,
        replies: pipes.replies,
    })
}

/// Forks: only for a process with one thread.
fn fork(wanted: Equipment) -> std::result::Result<(Link, Vec<FreezeTarget>), Errno> {
    let board = SharedPage::map()?;
    let pipes = GuardianPipes::new()?;
    let parent = rustix::process::getpid();
    let pid = match process::fork_single_threaded()? {
        ForkSide::Child => serve(Charge {
            targets: wanted.targets,
            limits: wanted.limits,
            leftovers: wanted.leftovers,
            lock: wanted.lock,
            board,
            orders: pipes.their_orders,
            replies: pipes.their_replies,
            parent,
            form: Form::Fork,
        }),
        ForkSide::Parent(pid) => pid,
    };
    drop((pipes.their_orders, pipes.their_replies));
    let link = Link {
        board,
        pid,
        life: Life::of(pid),
        orders: pipes.orders,
        replies: pipes.replies,
    };
    Ok((link.await_ready()?, wanted.targets))
}
