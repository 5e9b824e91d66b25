//! `floe push`: an image or snapshot onto a board, or into its store, over ssh.
//!
//! The file is verified here before the board is asked; there it is an ordinary `floe restore -`, with all its refusals and its
//! exit code. Over `--store` a snapshot gets its name there only when length and SHA-256 are right.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::board::fleet::{self, Board};
use crate::board::reach::Reach;
use crate::board::receive::Arrived;
use crate::board::ssh::{Host, Pipes};
use crate::cli::{Args, Common, Item};
use crate::error::{Error, Result};
use crate::json::{self, Value};
use crate::put::image::{self, Any, Image, Opened};
use crate::report::{self, Bytes, Progress, ReportFile, Span};
use crate::snapshot::MAX_IMAGES;
use crate::snapshot::archive::Bundle;
use crate::snapshot::kept;
use crate::snapshot::sums::sums_of;
use crate::stream::copy::{BUFFER_BYTES, Ended};
use crate::stream::image::Format;
use crate::units::to_u64;

/// What was typed.
pub struct Options {
    file: OsString,
    host: Host,
    targets: Vec<OsString>,
    store: bool,
    reach: Reach,
    handed_on: Vec<OsString>,
    common: Common,
}

/// Reads the command line.
pub fn parse(mut args: Args) -> Result<Options> {
    let mut words = Vec::new();
    let mut store = false;
    let mut reach = Reach::default();
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) if words.len() < MAX_IMAGES + 2 => words.push(value),
            Item::Value(value) => return Err(args.surplus(&value)),
            Item::Option(name) => match name {
                "--store" => store = true,
                "--stall" => reach.set_stall(&args.value()?, Duration::ZERO)?,
                _ if reach.option(&mut args, name)? => {}
                _ => return Err(args.unknown(name)),
            },
        }
    }
    let mut words = words.into_iter();
    let file = words.next().ok_or_else(|| args.missing("the FILE"))?;
    let host = words.next().ok_or_else(|| args.missing("the HOST"))?;
    let targets: Vec<OsString> = words.collect();
    let wrong = |line: &str| Error::usage(format_args!("push: {line}; see floe push --help"));
    if file == "-" {
        return Err(wrong(
            "FILE must be a file: it is verified before it is sent",
        ));
    }
    let disk = args.handed_names.contains(&"--disk");
    match (store, targets.is_empty()) {
        (true, true) if args.handed_on.is_empty() => {}
        (true, _) => {
            return Err(wrong(
                "--store takes neither a TARGET nor options of restore",
            ));
        }
        (false, true) if !disk => return Err(args.missing("the TARGET")),
        (false, _) => {}
    }
    let host = host
        .to_str()
        .ok_or_else(|| wrong(&format!("'{}' is no HOST", host.display())))?;
    Ok(Options {
        host: Host::parse(host)?,
        file,
        targets,
        store,
        reach,
        handed_on: args.handed_on,
        common: args.common,
    })
}

/// The file, found good.
struct Good {
    format: Format,
    /// Of an image.
    ended: Option<Ended>,
    /// Of a snapshot: whose it is, and when it was made.
    made: (String, u64),
}

/// Every check of `floe verify`.
fn check(file: &OsString, any: Any, common: &Common) -> Result<Good> {
    let mut line = Progress::new(common);
    let nothing = |error: Error| error.leaving("nothing was sent");
    let opened = Opened::open(file).map_err(nothing)?;
    let format = opened.format;
    if format == Format::Zip {
        let mut bundle = Bundle::open(&opened.subject, opened.input).map_err(nothing)?;
        bundle.read_all(&mut line).map_err(nothing)?;
        return Ok(Good {
            format,
            ended: None,
            made: (bundle.snapshot.host.clone(), bundle.snapshot.time_s),
        });
    }
    let mut found = Image::read(opened, any).map_err(nothing)?;
    let whole = found.reader.input_length_bytes();
    if whole.is_some_and(|whole| found.file.metadata().is_ok_and(|meta| meta.len() < whole)) {
        let shown = file.display();
        return Err(nothing(Error::refused(format_args!(
            "{shown}: is one of several pieces; put them together first, as in: cat {shown} … > FILE"
        ))));
    }
    let ended = image::read_all(&mut found, &mut line).map_err(nothing)?;
    Ok(Good {
        format,
        ended: Some(ended),
        made: (String::new(), 0),
    })
}

/// What floe is told on the board, without its own name.
fn words(options: &Options, good: &Good) -> Result<Vec<OsString>> {
    let mut words: Vec<OsString> = Vec::new();
    if options.store {
        if good.format != Format::Zip {
            return Err(Error::refused(format_args!(
                "{}: is no snapshot; only snapshots are kept in a store",
                options.file.display()
            ))
            .leaving("nothing was sent"));
        }
        let (length, sha256) = sums_of(options.file.as_ref())?;
        let (host, time) = &good.made;
        let (length, time) = (length.to_string(), time.to_string());
        words.extend(["kept", "put", "--report", "-"].map(OsString::from));
        // With a =, so that a host's name that begins with a dash is no option.
        words.push(format!("--host={host}").into());
        words.extend(
            ["--time", &time, "--length", &length, "--sha256", &sha256].map(OsString::from),
        );
        return Ok(words);
    }
    words.extend(["restore", "--report", "-"].map(OsString::from));
    if options.common.quiet {
        words.push("-q".into());
    }
    words.extend_from_slice(&options.handed_on);
    words.extend(["--", "-"].map(OsString::from));
    words.extend_from_slice(&options.targets);
    Ok(words)
}

/// Runs the verb.
pub fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let common = options.common.clone();
    let mut report = common.report.as_deref().map(ReportFile::open).transpose()?;
    let file = kept::path_of(&options.file)?;
    let options = Options { file, ..options };
    let any = match options.handed_on.iter().any(|word| word == "--any-content") {
        true => Any::Yes,
        false => Any::No,
    };
    let good = check(&options.file, any, &common)?;
    let words = words(&options, &good)?;
    let (hosts, shown) = (
        vec![options.host.clone()],
        options.file.display().to_string(),
    );
    let host = options.host.shown.clone();
    let dry = options.handed_on.iter().any(|word| word == "--dry-run");
    let job = move |host: &Host, board: &Board| push(host, board, &options, &good, &words);
    let mut outcomes = fleet::run(hosts, 1, &common, Arc::new(job))?;
    if let Some(report) = &mut report {
        report.write(&fleet::report_of(&outcomes, start))?;
    }
    let Some(outcome) = outcomes.pop() else {
        return Ok(());
    };
    let arrived = outcome.result?;
    if dry {
        let would = format!("{shown}: is good, and {host} would take it");
        return Err(report::dry(&common, [would]));
    }
    if !common.quiet {
        report::line(format_args!(
            "{shown}: {} sent to {host}, {}, {} in all",
            Bytes(arrived.stream_bytes),
            arrived.path,
            Span(start.elapsed())
        ));
    }
    Ok(())
}

fn push(
    host: &Host,
    board: &Board,
    options: &Options,
    good: &Good,
    words: &[OsString],
) -> Result<Arrived> {
    let shown = options.file.display();
    let fail = |e: std::io::Error| Error::failed(format_args!("{shown}: {e}"));
    let mut file = std::fs::File::open(&options.file).map_err(fail)?;
    let pipes = Pipes {
        input: true,
        stream: false,
        compress: Some(good.format == Format::Raw),
        ..Pipes::default()
    };
    let mut session = options.reach.start(host, words, pipes, board)?;
    let mut sent_bytes = 0u64;
    let length = file.metadata().map_or(0, |meta| meta.len());
    board.total.store(length, Ordering::Relaxed);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer).map_err(fail)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        // A board that refuses takes nothing more: its exit code says why.
        if bytes.is_empty() || session.write_all(bytes).is_err() {
            break;
        }
        sent_bytes = sent_bytes.saturating_add(to_u64(count));
        board.bytes.store(sent_bytes, Ordering::Relaxed);
    }
    session.close_stdin();
    session.works_alone();
    let ended = session.end()?;
    ended.check(host)?;
    let bad = |what: &str| Error::failed(format_args!("{}: {what}", host.shown));
    let [text] = ended.told.reports.as_slice() else {
        return Err(bad("the report of floe there is missing, or came twice"));
    };
    let report = json::parse(text.as_bytes()).map_err(|fault| bad(&fault.to_string()))?;
    let number = |key| report.get(key).and_then(Value::number);
    if report.get("dry_run").is_some() {
        return Ok(Arrived {
            path: "nowhere".into(),
            stream_bytes: sent_bytes,
            size_bytes: number("size_bytes").unwrap_or(0),
            sha256: String::new(),
            frozen_ms: None,
            report: text.clone(),
        });
    }
    if let Some(image) = &good.ended {
        let crc32 = format!("{:08x}", image.crc32);
        let same = report.get("crc32").and_then(Value::text) == Some(&crc32)
            && number("size_bytes") == Some(image.size_bytes);
        if !same {
            return Err(bad(
                "what was restored is not what was sent; do not rely on the target",
            ));
        }
    }
    let kept = report.get("path").and_then(Value::text);
    Ok(Arrived {
        path: match kept.filter(|_| options.store) {
            Some(path) => format!("kept as {}", report::clean(path)),
            None => "restored".into(),
        },
        stream_bytes: sent_bytes,
        size_bytes: number("size_bytes").unwrap_or(sent_bytes),
        sha256: String::new(),
        frozen_ms: None,
        report: text.clone(),
    })
}
