//! Threads, queues and patience of which there is one copy in the executable, whatever they carry.
//!
//! std's channels are compiled anew for each type that goes through one, some 10 KB each. What goes through these is far between
//! (buffers of a megabyte, the end of a thread), so an item is boxed and its type is looked at again on the other side. Queues
//! allocate: nothing that runs while something is frozen uses them.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, LockResult, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Fault;

/// A mutex that is never poisoned: where a thread panics, floe ends (`panic = "abort"`).
#[derive(Debug, Default)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Guards `value`.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits until nobody else has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        forgive(self.0.lock())
    }

    /// Gives it to who is the only one that has the lock.
    pub(crate) fn into_inner(self) -> T {
        forgive(self.0.into_inner())
    }

    /// Where nobody else has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// The same for what waits for a condition, and for locks that many may read.
pub(crate) fn forgive<T>(guard: LockResult<T>) -> T {
    guard.unwrap_or_else(PoisonError::into_inner)
}

/// Asks again while the answer is one `to_wait` for, at most so many times more, with a pause before each; gives the last answer.
pub(crate) fn patiently<T>(
    times: u32,
    pause: Duration,
    to_wait: impl Fn(&T) -> bool,
    mut ask: impl FnMut() -> T,
) -> T {
    let mut answer = ask();
    for _ in 0..times {
        if !to_wait(&answer) {
            break;
        }
        std::thread::sleep(pause);
        answer = ask();
    }
    answer
}

/// A thread that was started. Dropping it leaves it to itself.
#[derive(Debug)]
pub(crate) struct Started {
    parked: std::thread::Thread,
    thread: crate::sys::thread::Thread,
}

impl Started {
    /// Wakes it from `std::thread::park`.
    pub(crate) fn unpark(&self) {
        self.parked.unpark();
    }

    /// Waits for its end.
    pub(crate) fn join(self) {
        self.thread.join();
    }
}

/// `--jobs`, or the CPUs we may run on.
pub(crate) fn jobs(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| {
        let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
        usize::try_from(cpus).unwrap_or(1).clamp(1, 64)
    })
}

/// Starts a thread with a stack of this many bytes; it runs when this returns.
#[inline(never)]
pub(crate) fn start(
    name: &'static CStr,
    stack_bytes: usize,
    work: Box<dyn FnOnce() + Send>,
) -> rustix::io::Result<Started> {
    // Only the thread itself can make the handle by which std wakes it.
    let (send, receive) = channel();
    let told = Box::new(move || {
        let _ = send.send(std::thread::current());
        drop(send);
        work();
    });
    let thread = crate::sys::thread::start(name, stack_bytes, told)?;
    let parked = receive.recv().map_err(|_| rustix::io::Errno::SRCH)?;
    Ok(Started { parked, thread })
}

type Boxed = Box<dyn Any + Send>;

struct QueueState {
    items: VecDeque<Boxed>,
    most: usize,
    senders: usize,
    has_receiver: bool,
}

struct Queue {
    state: Lock<QueueState>,
    changed: Condvar,
}

/// The other side is gone.
#[derive(Debug)]
pub(crate) struct Disconnected;

/// Why nothing came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RecvTimeoutError {
    /// Nothing yet.
    Timeout,
    /// All senders are gone, and so nothing will come.
    Disconnected,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    #[inline(never)]
    fn push(&self, item: Boxed) -> Result<(), Disconnected> {
        let mut state = self.lock();
        while state.has_receiver && state.items.len() >= state.most {
            state = forgive(self.changed.wait(state));
        }
        if !state.has_receiver {
            return Err(Disconnected);
        }
        state.items.push_back(item);
        self.changed.notify_all();
        Ok(())
    }

    #[inline(never)]
    fn pop(&self, end: Option<Instant>) -> Result<Boxed, RecvTimeoutError> {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                self.changed.notify_all();
                return Ok(item);
            }
            if state.senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            // An hour stands for ever: whoever waits without an end asks again.
            let left = end.map_or(Duration::from_secs(3600), |end| {
                end.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Err(RecvTimeoutError::Timeout);
            }
            state = forgive(self.changed.wait_timeout(state, left)).0;
        }
    }

    /// What still waits is dropped outside the lock, because it may hold senders and receivers of its own.
    #[inline(never)]
    fn leave(&self, is_receiver: bool) {
        let mut state = self.lock();
        let mut rest = VecDeque::new();
        if is_receiver {
            state.has_receiver = false;
            std::mem::swap(&mut rest, &mut state.items);
        } else {
            state.senders -= 1;
        }
        self.changed.notify_all();
        drop(state);
        drop(rest);
    }
}

/// Puts items into a queue; may be cloned.
pub(crate) struct Sender<T>(Arc<Queue>, PhantomData<fn(T)>);

/// Takes items out of a queue.
pub(crate) struct Receiver<T>(Arc<Queue>, PhantomData<fn() -> T>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0), PhantomData)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.leave(false);
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.leave(true);
    }
}

impl<T: Send + 'static> Sender<T> {
    /// Puts one in, and waits while a bounded queue is full.
    pub(crate) fn send(&self, item: T) -> Result<(), Disconnected> {
        self.0.push(Box::new(item))
    }
}

impl<T: Send + 'static> Receiver<T> {
    fn take(&self, end: Option<Instant>) -> Result<T, RecvTimeoutError> {
        match self.0.pop(end)?.downcast() {
            Ok(item) => Ok(*item),
            // Only `Sender<T>` puts anything in.
            Err(_) => Err(RecvTimeoutError::Disconnected),
        }
    }

    /// Waits for one.
    pub(crate) fn recv(&self) -> Result<T, RecvTimeoutError> {
        self.take(None)
    }

    /// Waits so long for one.
    pub(crate) fn recv_timeout(&self, time: Duration) -> Result<T, RecvTimeoutError> {
        self.take(Some(Instant::now() + time))
    }

    /// Does not wait.
    pub(crate) fn try_recv(&self) -> Result<T, RecvTimeoutError> {
        self.recv_timeout(Duration::ZERO)
    }
}

/// A queue without a bound.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    bounded(usize::MAX)
}

/// A queue of at most so many items.
pub(crate) fn bounded<T>(most: usize) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Queue {
        state: Lock::new(QueueState {
            items: VecDeque::new(),
            most,
            senders: 1,
            has_receiver: true,
        }),
        changed: Condvar::new(),
    });
    (
        Sender(Arc::clone(&queue), PhantomData),
        Receiver(queue, PhantomData),
    )
}

/// The two ends that lead to one thread that works on what it gets and gives it back, in order. It ends when this is dropped.
pub(crate) struct Hand<W> {
    send: Sender<W>,
    receive: Receiver<W>,
}

impl<W: Send + 'static> Hand<W> {
    /// Starts a thread, with a stack of this many bytes, that does `work` to each.
    pub(crate) fn start(
        name: &'static CStr,
        stack_bytes: usize,
        mut work: impl FnMut(&mut W) + Send + 'static,
    ) -> Result<Self, Fault> {
        let (send, taken) = channel::<W>();
        let (given, receive) = channel();
        let run = move || {
            while let Ok(mut item) = taken.recv() {
                work(&mut item);
                if given.send(item).is_err() {
                    return;
                }
            }
        };
        let started = start(name, stack_bytes, Box::new(run));
        started.map_err(|errno| Fault::io("start a thread", errno))?;
        Ok(Self { send, receive })
    }

    pub(crate) fn hand(&self, item: W) -> Result<(), Disconnected> {
        self.send.send(item)
    }

    /// Waits for the next one that is done.
    pub(crate) fn done(&self) -> Result<W, Disconnected> {
        self.receive.recv().map_err(|_| Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_cpu_to_run_on() {
        assert!(jobs(None) >= 1);
        assert_eq!(jobs(Some(3)), 3);
    }

    #[test]
    fn patience_ends_with_an_answer_or_with_its_turns() {
        let ask = |times: u32, good: u32| {
            let mut asked = 0;
            let answer = patiently(
                times,
                Duration::ZERO,
                |n| *n < good,
                || {
                    asked += 1;
                    asked
                },
            );
            (answer, asked)
        };
        assert_eq!(ask(5, 1), (1, 1));
        assert_eq!(ask(5, 4), (4, 4));
        assert_eq!(ask(5, 9), (6, 6));
    }

    #[test]
    fn a_hand_gives_back_what_it_got_in_order() {
        let hand = Hand::start(c"test", 64 * 1024, |n: &mut u32| *n += 1).unwrap();
        for n in 0..100 {
            hand.hand(n).unwrap();
        }
        for n in 0..100 {
            assert_eq!(hand.done().unwrap(), n + 1);
        }
    }

    #[test]
    fn a_bounded_queue_holds_back_its_sender_and_keeps_the_order() {
        let (send, receive) = bounded(2);
        let thread = std::thread::spawn(move || (0..100).all(|item| send.send(item).is_ok()));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!thread.is_finished());
        for item in 0..100 {
            assert_eq!(receive.recv().unwrap(), item);
        }
        assert!(thread.join().unwrap());
        assert_eq!(receive.recv(), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn each_side_learns_that_the_other_is_gone() {
        let (send, receive) = channel::<Vec<u8>>();
        let another = send.clone();
        drop(send);
        assert_eq!(receive.try_recv(), Err(RecvTimeoutError::Timeout));
        another.send(vec![1]).unwrap();
        drop(receive);
        assert!(another.send(vec![2]).is_err());
    }
}
