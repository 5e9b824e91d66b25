//! A floe without a pipeline, for the tests of the guardian: freezes, does as it is told, thaws.
//!
//! `guard_driver WHAT STALL_MS MAX_MS DIR…` with the directories from the top of the stack to the bottom. WHAT is
//! `hold` (check and make progress until a signal comes), `idle` (check, no progress), `trickle` (a byte a second),
//! `deaf` (neither check nor progress, signals ignored), `second` (hold for a second), `stuck` (hold,
//! with a thread that writes to the first directory and so hangs in state D), `once`, `loop` (once again and
//! again), `readonly` (hold, by a read-only remount), `again` (three times, with a pause longer than the stall time in between; then
//! hold), `threads` (hold, started while other threads run); `overheard` freezes nothing, says a line, and takes no signal. `FLOE_LEFTOVER` names a directory that the guardian is to remove. Lines on stdout: `ready PID`, `frozen`, `thawed MS`. Exit codes as floe's.

use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use floe::error::{Error, Result};
use floe::freeze::{FreezeTarget, Frozen, Guardian, Leftover, Limits, Method, Remount};
use floe::signals::Signals;

fn main() -> ExitCode {
    floe::freeze::serve_if_guardian(&std::env::args_os().collect::<Vec<_>>());
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(floe::report::end(error)),
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [what, stall, max, dirs @ ..] = arguments else {
        return Err(Error::usage("guard_driver WHAT STALL_MS MAX_MS DIR…"));
    };
    let limits = Limits {
        stall: milliseconds(stall)?,
        max_freeze: milliseconds(max)?,
    };
    let signals = Signals::block()?;
    if what == "overheard" {
        floe::report::line("a line");
        return Ok(());
    }
    loop {
        once(what, limits, dirs, &signals)?;
        if what != "loop" {
            return Ok(());
        }
    }
}

fn milliseconds(text: &str) -> Result<Duration> {
    let number = floe::cli::number(text).ok_or_else(|| Error::usage("not a number"))?;
    Ok(Duration::from_millis(number))
}

fn once(what: &str, limits: Limits, dirs: &[String], signals: &Signals) -> Result<()> {
    let targets = dirs
        .iter()
        .map(|dir| target(what, dir))
        .collect::<Result<Vec<_>>>()?;
    if what == "threads" {
        std::thread::spawn(|| {
            loop {
                std::hint::black_box(vec![0_u8; 4096]);
            }
        });
    }
    let mut guardian = Guardian::start(targets, limits, leftovers()?)?;
    say(&format!("ready {}", guardian.pid()));
    if what == "again" {
        for _ in 0..3 {
            let frozen = guardian.freeze(signals)?;
            let (window, released) = frozen.release()?;
            guardian = released;
            say(&format!("released {}", window.frozen_ms));
            std::thread::sleep(limits.stall * 2);
        }
    }
    let frozen = guardian.freeze(signals)?;
    say("frozen");
    let file = Path::new(&dirs[0]).join("file");
    let frozen = hold(what, file, frozen, signals)?;
    let window = frozen.thaw()?;
    say(&format!("thawed {}", window.frozen_ms));
    Ok(())
}

fn leftovers() -> Result<Vec<Leftover>> {
    let Some(path) = std::env::var_os("FLOE_LEFTOVER").map(PathBuf::from) else {
        return Ok(Vec::new());
    };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::usage("FLOE_LEFTOVER"));
    };
    let folder = std::fs::File::open(folder).map_err(Error::failed)?;
    Ok(vec![Leftover {
        directory: folder.into(),
        name: CString::new(name.as_encoded_bytes()).map_err(Error::failed)?,
    }])
}

fn target(what: &str, dir: &str) -> Result<FreezeTarget> {
    let file =
        std::fs::File::open(dir).map_err(|error| Error::failed(format!("{dir}: {error}")))?;
    let fd = file.into();
    let method = if what == "readonly" {
        let line = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let line = line
            .lines()
            .rfind(|line| line.split(' ').nth(4) == Some(dir))
            .map(str::to_owned)
            .ok_or_else(|| Error::failed("not a mount point"))?;
        let mount = line.split(' ').nth(5).unwrap_or_default().to_owned();
        let superblock = line.rsplit(' ').next().unwrap_or_default().to_owned();
        Method::ReadOnly(Remount::new(&fd, &mount, &superblock))
    } else {
        Method::Freeze
    };
    Ok(FreezeTarget {
        fd,
        name: dir.to_owned(),
        method,
    })
}

fn hold(what: &str, file: PathBuf, mut frozen: Frozen, signals: &Signals) -> Result<Frozen> {
    let progress = frozen.progress();
    let mut round = 0_u32;
    if what == "stuck" {
        std::thread::spawn(move || std::fs::write(file, b"stuck"));
    }
    if matches!(what, "once" | "loop") {
        return Ok(frozen);
    }
    loop {
        std::thread::sleep(Duration::from_millis(20));
        if what == "deaf" {
            continue;
        }
        round += 1;
        // A floe that comes meanwhile waits for two, in case that it is only a guardian that is there.
        if what == "second" && round == 50 || what == "long" && round == 200 {
            return Ok(frozen);
        }
        if matches!(
            what,
            "hold" | "second" | "long" | "stuck" | "readonly" | "again" | "threads"
        ) || (what == "trickle" && round.is_multiple_of(50))
        {
            progress.add_taken(1);
        }
        frozen.check()?;
        if let Some(number) = signals.take() {
            drop(frozen);
            return Err(Error::signal(number));
        }
    }
}

fn say(line: &str) {
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}
