//! The stream on its way: from the board, or from what it sent in frames, past hash and counters, to the sink and to whoever unpacks it.

use std::io::{ErrorKind, Read as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use sha2::{Digest, Sha256};

use super::Sink;
use crate::board::fleet::Board;
use crate::board::host::Host;
use crate::board::ssh::Session;
use crate::error::{Error, Fault, Result};
use crate::snapshot::framed::Standard;
use crate::stream::input::{Supply, read_fault};
use crate::threads::Lock;
use crate::units::to_u64;

/// Where bytes come from.
pub(super) enum From {
    /// The session's stdout.
    Board(Box<Session>),
    /// What the board sent in frames.
    Held(Standard),
    Nothing,
}

impl From {
    pub(super) fn stalled(&self) -> Option<Error> {
        match self {
            Self::Board(session) => session.stalled(),
            Self::Held(_) | Self::Nothing => None,
        }
    }
}

/// What becomes of them.
pub(super) enum Passing {
    /// They wait until it is known.
    Undecided(Vec<u8>),
    /// They are what the sink takes.
    On,
    /// They are frames.
    Off,
}

/// The stream, on its way to the sink.
pub(super) struct Tee {
    pub(super) from: From,
    passing: Passing,
    pub(super) sink: Box<dyn Sink>,
    pub(super) hash: Sha256,
    pub(super) length_bytes: u64,
    progress: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// What the sink had to say; the reader in between only knows faults.
    pub(super) failed: Option<Error>,
    pub(super) ended: bool,
}

impl Tee {
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Fault> {
        let count = match &mut self.from {
            From::Board(session) => loop {
                match session.read(buffer) {
                    Ok(count) => break count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        return Err(read_fault(&error).at(self.length_bytes, to_u64(buffer.len())));
                    }
                }
            },
            From::Held(_) if self.stop.load(Ordering::Relaxed) => {
                return Err(Fault::short("interrupted"));
            }
            From::Held(held) => held.supply(buffer)?,
            From::Nothing => 0,
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        self.ended = count == 0;
        self.hash.update(bytes);
        self.length_bytes = self.length_bytes.saturating_add(to_u64(count));
        if let From::Board(_) = self.from {
            self.progress.store(self.length_bytes, Ordering::Relaxed);
        }
        match &mut self.passing {
            Passing::Undecided(first) => first.extend_from_slice(bytes),
            Passing::Off => {}
            Passing::On => {
                let taken = self.sink.packed(bytes);
                self.keep(taken)?;
            }
        }
        Ok(count)
    }

    /// From now on all of it goes to the sink, or none of it.
    pub(super) fn decide(&mut self, passing: Passing) -> std::result::Result<(), Fault> {
        let before = std::mem::replace(&mut self.passing, passing);
        let (Passing::Undecided(first), Passing::On) = (before, &self.passing) else {
            return Ok(());
        };
        let taken = self.sink.packed(&first);
        self.keep(taken)
    }

    pub(super) fn keep(&mut self, result: Result<()>) -> std::result::Result<(), Fault> {
        result.map_err(|error| {
            self.failed = Some(error);
            Fault::short("write")
        })
    }
}

/// The reader that the unpacking side owns.
#[derive(Clone)]
pub(super) struct TeeReader(Arc<Lock<Tee>>);

impl TeeReader {
    pub(super) fn new(session: Session, sink: Box<dyn Sink>, board: &Board) -> Self {
        Self(Arc::new(Lock::new(Tee {
            from: From::Board(Box::new(session)),
            passing: Passing::Undecided(Vec::new()),
            sink,
            hash: Sha256::new(),
            length_bytes: 0,
            progress: Arc::clone(&board.bytes),
            stop: Arc::clone(&board.stop),
            failed: None,
            ended: false,
        })))
    }

    /// What is left, once nobody reads any more; what was held for the reader goes.
    pub(super) fn end(self, host: &Host) -> Result<Tee> {
        let in_use = || Error::failed(format_args!("{}: the reader is still in use", host.shown));
        let tee = Arc::try_unwrap(self.0).map_err(|_| in_use())?;
        let mut tee = tee.into_inner();
        if let From::Held(_) = &tee.from
            && let From::Held(held) = std::mem::replace(&mut tee.from, From::Nothing)
        {
            // What it holds is looked for again when this has failed.
            held.end();
        }
        Ok(tee)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Tee> {
        self.0.lock()
    }
}

impl Supply for TeeReader {
    fn supply(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Fault> {
        self.lock().read(buffer)
    }
}
