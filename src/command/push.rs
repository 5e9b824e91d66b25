//! `floe push`: an image or snapshot onto a board, or into its store, over ssh.
//!
//! The file is verified here before the board is asked; there it is an ordinary `floe restore -`, with all its refusals and its
//! exit code. With `--store` a snapshot gets its name there only when length and SHA-256 are right. With `--only-changes` the board
//! says first what its targets hold, and frames bring what differs.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::board::fleet::{self, Board, Interruption};
use crate::board::host::Host;
use crate::board::reach::Reach;
use crate::board::receive::Arrived;
use crate::board::ssh::{Session, SessionPipes};
use crate::board::unable::{KNOWN, LENGTH, PROGRESS, Unable, words_without};
use crate::cli::{self, Args, Common, Item};
use crate::config::pairs::split_pair;
use crate::error::{Error, Result};
use crate::json::{self, Value};
use crate::mounts::is_tag;
use crate::put::supervise::SignalWatch;
use crate::report::{self, Bytes, Elapsed, Manner, Progress};
use crate::snapshot::archive::{Bundle, Catalog};
use crate::snapshot::framed::{self, EarlierFile};
use crate::snapshot::sums::sums_of;
use crate::snapshot::{MAX_IMAGES, entry, kept};
use crate::stream::copy::{BUFFER_BYTES, Ended};
use crate::stream::frames::send::{self, Talk};
use crate::stream::frames::{Framed, StreamHeader};
use crate::stream::image::Format;
use crate::stream::image::open::OpenedImage;
use crate::stream::image::probed::{self, Image};
use crate::stream::image::whole::{self, Any};
use crate::stream::pipeline::known::{Hash, RECORD_BYTES};
use crate::units::to_u64;

/// What was typed.
pub(super) struct Options {
    file: OsString,
    hosts: Vec<Host>,
    parallel: usize,
    targets: Vec<OsString>,
    store: bool,
    reach: Reach,
    handed_on: Vec<OsString>,
    common: Common,
}

impl Options {
    /// Whether the board is asked for this, too.
    fn asks(&self, word: &str) -> bool {
        self.handed_on.iter().any(|asked| asked == word)
    }
}

/// Reads the command line.
pub(super) fn parse(mut args: Args) -> Result<Options> {
    // In front of `--`, and behind it.
    let (mut words, mut behind) = (Vec::new(), Vec::new());
    let mut parallel = fleet::PARALLEL;
    let mut store = false;
    let mut reach = Reach::default();
    while let Some(item) = args.next_item()? {
        match item {
            // A FILE and a HOST in front of it: what follows is the TARGETs. Otherwise it only ends the options.
            Item::Value(value) if args.divided && words.len() > 1 => behind.push(value),
            Item::Value(value) => words.push(value),
            Item::Option(name) => match name {
                "--store" => store = true,
                "--parallel" => {
                    parallel = args.parsed(fleet::parallel, "a number from 1 to 256")?;
                }
                "--stall" => reach.set_stall(&args.value()?, Duration::ZERO)?,
                _ if reach.option(&mut args, name)? => {}
                _ => return Err(args.unknown(name)),
            },
        }
    }
    let mut words = words.into_iter();
    let file = words.next().ok_or_else(|| args.missing("the FILE"))?;
    let host = words.next().ok_or_else(|| args.missing("the HOST"))?;
    let mut words = words.peekable();
    check_order(&file, &host, words.peek())?;
    let mut hosts = Vec::new();
    fleet::add_hosts(&mut hosts, &host)?;
    let mut targets: Vec<OsString> = words.collect();
    // With a snapshot for the stores there are no TARGETs.
    if args.divided && !behind.is_empty() || store {
        for host in std::mem::replace(&mut targets, behind) {
            fleet::add_hosts(&mut hosts, &host)?;
        }
    }
    check_targets(&args, &targets)?;
    if file == "-" {
        return Err(wrong(format_args!(
            "FILE must be a file: it is verified before it is sent"
        )));
    }
    match (store, targets.is_empty()) {
        (true, true) if args.handed_on.is_empty() => {}
        (true, _) => {
            return Err(wrong(format_args!(
                "--store takes neither a TARGET nor options of restore"
            )));
        }
        (false, true) if args.handed_value("--disk").is_none() => {
            return Err(args.missing("the TARGET"));
        }
        (false, _) => {}
    }
    Ok(Options {
        hosts,
        parallel,
        file,
        targets,
        store,
        reach,
        handed_on: args.handed_on,
        common: args.common,
    })
}

fn wrong(what: std::fmt::Arguments<'_>) -> Error {
    cli::usage("push", what)
}

/// Each TARGET, and a disk that is named, must be one on a board.
fn check_targets(args: &Args, targets: &[OsString]) -> Result<()> {
    if let Some(target) = targets.get(MAX_IMAGES) {
        return Err(args.surplus(target));
    }
    let disk = args.handed_value("--disk");
    let mut all = targets.iter().map(OsString::as_os_str).chain(disk);
    match all.find(|target| !is_place(target)) {
        None => Ok(()),
        Some(target) => Err(wrong(format_args!(
            "'{}' is no TARGET on a board: name an absolute path, LABEL=, UUID=, PARTLABEL= or PARTUUID=; several boards are FILE HOST… -- TARGET",
            target.display()
        ))),
    }
}

/// A HOST in the place of the FILE, which then is none; or a TARGET in the place of the HOST.
fn check_order(file: &OsString, host: &OsString, next: Option<&OsString>) -> Result<()> {
    let is_file = |word: &OsString| Path::new(word).is_file();
    let is_kept = |word: &OsString| kept::path_of(word).is_ok_and(|path| path != *word);
    let (first, second) = (file.display(), host.display());
    if is_file(host) && !is_file(file) && !is_kept(file) {
        return Err(wrong(format_args!(
            "'{second}' is a file, and '{first}' is none: the FILE comes first, as in: floe push {second} {first} TARGET"
        )));
    }
    if is_place(host) {
        let board = next.filter(|next| !is_place(next));
        let board = board.map_or("HOST".into(), |board| board.display().to_string());
        return Err(wrong(format_args!(
            "'{second}' is no HOST, which stands in front of the TARGET, as in: floe push {first} {board} {second}"
        )));
    }
    Ok(())
}

/// Where something can be on a board, whose folders nobody knows here: a word without a slash would become a file there.
fn is_place(target: &OsStr) -> bool {
    let is = |name: &OsStr| name.as_bytes().starts_with(b"/") || is_tag(name);
    let mut halves = target.as_bytes().splitn(2, |byte| *byte == b'=').skip(1);
    is(target)
        || halves
            .next()
            .is_some_and(|half| is(OsStr::from_bytes(half)))
}

/// The file, found good.
struct Good {
    format: Format,
    /// Of an image.
    ended: Option<Ended>,
    /// Its length, where its beginning says less: a filesystem smaller than what it lies on.
    length_bytes: Option<u64>,
    /// It says that it is a copy of something as it is.
    as_it_is: bool,
    /// Of a snapshot: whose it is, and when it was made.
    made: (String, u64),
}

/// Every check of `floe verify`.
fn check(file: &OsString, any: Any, common: &Common) -> Result<Good> {
    let mut line = Progress::new(common);
    let _watch = SignalWatch::start(file.display(), "it was being checked; nothing was sent")?;
    let nothing = |error: Error| error.leaving("nothing was sent");
    let shown = file.display();
    if std::fs::metadata(file).is_ok_and(|meta| meta.file_type().is_block_device()) {
        return Err(nothing(Error::refused(format_args!(
            "{shown}: is a device: make an image of it first, as in: floe dump {shown} -o FILE"
        ))));
    }
    let opened = OpenedImage::open(file).map_err(nothing)?;
    let format = opened.format;
    if format == Format::Zip {
        let bundle = Bundle::open(&opened.subject, opened.input).map_err(nothing)?;
        let bundle = entry::read_all(bundle, &opened.file, any, common).map_err(nothing)?;
        return Ok(Good {
            format,
            ended: None,
            length_bytes: None,
            as_it_is: false,
            made: (bundle.snapshot.host.clone(), bundle.snapshot.time_s),
        });
    }
    let mut found = Image::read(opened, any).map_err(nothing)?;
    let whole = found.reader.input_length_bytes();
    if whole.is_some_and(|whole| found.file.metadata().is_ok_and(|meta| meta.len() < whole)) {
        return Err(nothing(Error::refused(format_args!(
            "{shown}: is one of several pieces; put them together first, as in: cat {shown} … > FILE"
        ))));
    }
    let ended = probed::read_all(&mut found, common, &mut line).map_err(nothing)?;
    let is_longer = ended.size_bytes > found.content.least_bytes();
    Ok(Good {
        format,
        length_bytes: is_longer.then_some(ended.size_bytes),
        ended: Some(ended),
        as_it_is: found.reader.is_as_it_is(),
        made: (String::new(), 0),
    })
}

/// What floe is told on the board, without its own name.
fn words(options: &Options, good: &Good) -> Result<Vec<OsString>> {
    let mut words: Vec<OsString> = Vec::new();
    let progress = (Manner::of(&options.common) != Manner::Off).then(|| OsString::from(PROGRESS));
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
        words.extend(progress);
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
    words.extend(progress);
    words.extend(
        good.length_bytes
            .map(|bytes| format!("{LENGTH}{bytes}").into()),
    );
    words.extend_from_slice(&options.handed_on);
    words.extend(["--", "-"].map(OsString::from));
    words.extend_from_slice(&options.targets);
    Ok(words)
}

/// Runs the verb.
pub(super) fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let common = options.common.clone();
    super::begin(&common, ("path", &options.file.display()), &[])?;
    let file = kept::path_of(&options.file).map_err(|error| error.leaving("nothing was sent"))?;
    let options = Options { file, ..options };
    let any = match options.asks("--any-content") {
        true => Any::Yes,
        false => Any::No,
    };
    let good = check(&options.file, any, &common)?;
    let words = words(&options, &good)?;
    let dry = options.asks("--dry-run");
    let (hosts, shown) = (options.hosts.clone(), options.file.display().to_string());
    let (one, parallel) = (hosts.len() == 1, options.parallel);
    let differing = match dry {
        true => None,
        false => differing(&options, &good)?,
    };
    let words_left = interrupted(&options);
    let left = |cut: Interruption<'_>| match (cut.begun, cut.ended) {
        ("", 0) => "nothing was sent".into(),
        ("", _) => "nothing was sent but to boards that had ended".into(),
        (hosts, _) => words_left.replace("HOST", hosts),
    };
    let job = move |host: &Host, board: &Board| {
        let (mut differing, mut words) = (differing.as_ref(), words.clone());
        // Each turn asks for less.
        loop {
            let result = push(host, board, &options, &good, &words, differing);
            match result.as_ref().err().and_then(Unable::of) {
                Some(Unable::Mute) if words.contains(&PROGRESS.into()) => {
                    words = words_without(PROGRESS, &words);
                }
                // What it says at its end is all that such a one knows of the length.
                Some(Unable::Lengthless) if words.len() > words_without(LENGTH, &words).len() => {
                    words = words_without(LENGTH, &words);
                }
                // It is too old for that, has no room, or does not hold what it said: everything is sent.
                Some(_) if differing.is_some() => differing = None,
                _ => return result,
            }
        }
    };
    let mut outcomes = fleet::run_leaving(hosts, parallel, &common, &left, Arc::new(job))?;
    report::write(&fleet::report_of(&outcomes, start))?;
    let Some(outcome) = outcomes.pop_if(|_| one) else {
        return fleet::end(&outcomes, common.quiet, "sent");
    };
    let arrived = outcome.result?;
    if dry {
        let would = format!("{shown}: is good, and {} would take it", outcome.host.shown);
        return Err(report::dry(&common, [would]));
    }
    if !common.quiet {
        report::line(format_args!(
            "{shown}: {} sent to {}{}, {}, {} in all",
            Bytes(arrived.stream_bytes),
            outcome.host.shown,
            match arrived.reused_bytes {
                0 => String::new(),
                bytes => format!(" ({} of it were there already)", Bytes(bytes)),
            },
            arrived.path,
            Elapsed(start.elapsed())
        ));
    }
    Ok(())
}

/// What an interruption leaves on the boards that it came to, which are HOST. Who refused says so only when asked again: so what
/// helps asks for nothing that might write over something else.
fn interrupted(options: &Options) -> String {
    if options.asks("--dry-run") {
        return "HOST was being asked; nothing was written".into();
    }
    if options.store {
        return "the store on HOST keeps only what came whole (floe list HOST); the same push again sends it".into();
    }
    let (target, overwrite) = (target(options), overwrite(options));
    format!(
        "the target on HOST may not be usable: floe show {target} there tells; the same push again repairs it{overwrite}"
    )
}

/// The target, as messages name it.
fn target(options: &Options) -> String {
    match options.targets.as_slice() {
        [target] => split_pair(target).filter(|_| !is_tag(target)).map_or_else(
            || target.display().to_string(),
            |(_, target)| target.display().to_string(),
        ),
        _ => "TARGET".into(),
    }
}

/// What the same push needs besides, where it is asked for again.
fn overwrite(options: &Options) -> &'static str {
    match options.asks("--overwrite") {
        true => "",
        false => " (with --overwrite where it says that a target holds something now)",
    }
}

/// What is left on a board whose floe was done, where ssh ended badly.
fn unconfirmed(options: &Options) -> String {
    if options.asks("--dry-run") {
        return "nothing was written; the same command again asks it anew".into();
    }
    if options.store {
        return "the snapshot is kept there as it says, but unconfirmed: floe verify NAME there checks it; the same push again sends it anew".into();
    }
    let (target, overwrite) = (target(options), overwrite(options));
    format!(
        "the target is written as it says, but unconfirmed: floe verify {target} there checks it; the same push again writes it anew{overwrite}"
    )
}

/// What stands around frames that bring only what differs.
struct Differing {
    header: StreamHeader,
    report: String,
}

/// Where that is wanted, and can be: what a table is still to make has no target that could be read.
fn differing(options: &Options, good: &Good) -> Result<Option<Differing>> {
    let is_pair = |target: &OsString| !is_tag(target) && split_pair(target).is_some();
    if !options.asks("--only-changes") || options.asks("--disk") {
        return Ok(None);
    }
    let (header, report) = match (good.format, &good.ended, options.targets.as_slice()) {
        (Format::Raw | Format::Gzip, Some(ended), [target]) if !is_pair(target) => {
            let image = Framed {
                path: "image".into(),
                parts: vec![ended.size_bytes],
            };
            let header = StreamHeader {
                as_it_is: good.as_it_is,
                images: vec![image],
                ..StreamHeader::default()
            };
            (header, "{}".into())
        }
        (Format::Zip, _, targets) if targets.iter().all(is_pair) => {
            framed::of_snapshot(&Catalog::open(options.file.as_ref())?)?
        }
        _ => return Ok(None),
    };
    Ok(Some(Differing { header, report }))
}

/// What goes to a board, and what it says meanwhile.
struct Delivery<'a> {
    session: Session,
    board: &'a Board,
    sent_bytes: u64,
    known: VecDeque<(u64, Hash)>,
    /// Of a record that is not complete.
    part: Vec<u8>,
    /// Behind the chunk that was spoken of last.
    behind: u64,
    /// It ended before it said a word: it refuses, and its exit code says why.
    is_gone: bool,
}

impl Delivery<'_> {
    /// Takes what the board says next; `None`: nothing more comes.
    fn hear(&mut self) -> Option<()> {
        let mut bytes = [0; 64 * RECORD_BYTES];
        let count = self
            .session
            .read(&mut bytes)
            .ok()
            .filter(|count| *count > 0)?;
        self.part.extend_from_slice(bytes.get(..count)?);
        let whole = self.part.len() - self.part.len() % RECORD_BYTES;
        for record in self.part.drain(..whole).as_slice().chunks(RECORD_BYTES) {
            let (number, hash) = record.split_first_chunk::<4>()?;
            let number = u64::from(u32::from_le_bytes(*number));
            if number < self.behind {
                self.session.mishears(count);
                return None;
            }
            self.behind = number + 1;
            self.known.push_back((number, hash.try_into().ok()?));
        }
        Some(())
    }
}

impl Talk for Delivery<'_> {
    fn known(&mut self, chunk: u64) -> Option<Hash> {
        while self.behind <= chunk {
            if self.hear().is_none() {
                self.is_gone = self.behind == 0;
                self.behind = u64::MAX;
            }
        }
        while self
            .known
            .front()
            .is_some_and(|(number, _)| *number < chunk)
        {
            self.known.pop_front();
        }
        let (number, hash) = self.known.front()?;
        (*number == chunk).then_some(*hash)
    }

    fn say(&mut self, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        // A board that refuses takes nothing more: its exit code says why.
        while !rest.is_empty() && !self.is_gone {
            let count = match self.session.write(rest) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                count => count.ok().filter(|count| *count > 0)?,
            };
            rest = rest.get(count..)?;
            // From now on something may have come there.
            self.sent_bytes = self.sent_bytes.saturating_add(to_u64(count));
            self.board.bytes.store(self.sent_bytes, Ordering::Relaxed);
        }
        rest.is_empty().then_some(())
    }
}

fn push(
    host: &Host,
    board: &Board,
    options: &Options,
    good: &Good,
    words: &[OsString],
    differing: Option<&Differing>,
) -> Result<Arrived> {
    let shown = options.file.display();
    let fail = |e: std::io::Error| Error::std(&shown, "read", &e);
    let file = std::fs::File::open(&options.file).map_err(fail)?;
    let pipes = SessionPipes {
        input: true,
        stream: differing.is_some(),
        carries: match good.format {
            Format::Zip => "snapshot",
            _ => "image",
        },
        compress: Some(good.format == Format::Raw && differing.is_none()),
        hush: true,
        ..SessionPipes::default()
    };
    let mut all = words.to_vec();
    if differing.is_some() {
        all.insert(1, KNOWN.into());
    }
    let mut session = options.reach.start(host, &all, pipes, board)?;
    session.call("stdin", &shown.to_string());
    let length = file.metadata().map_or(0, |meta| meta.len());
    board.total.store(length, Ordering::Relaxed);
    let mut line = Delivery {
        session,
        board,
        sent_bytes: 0,
        known: VecDeque::new(),
        part: Vec::new(),
        behind: 0,
        is_gone: false,
    };
    let reused_bytes = send_file(&mut line, file, &shown.to_string(), differing)?;
    let Delivery {
        mut session,
        sent_bytes,
        ..
    } = line;
    board.bytes.store(length, Ordering::Relaxed);
    session.close_stdin();
    session.works_alone();
    session.hear_out();
    let ended = session.end()?;
    ended.check_leaving(host, &unconfirmed(options))?;
    let bad = |what: &str| Error::failed(format_args!("{}: {what}", host.shown));
    let [text] = ended.told.reports.as_slice() else {
        return Err(bad("the report of floe there is missing, or came twice"));
    };
    let report = json::parse(text.as_bytes()).map_err(|fault| bad(&fault.to_string()))?;
    if let (Some(image), None) = (&good.ended, report.get("dry_run"))
        && !is_same(&report, image)
    {
        return Err(bad(
            "what was restored is not what was sent; do not rely on the target",
        ));
    }
    Ok(Arrived {
        stream_bytes: sent_bytes,
        reused_bytes,
        report: text.clone(),
        ..arrived(&report, options.store, sent_bytes)
    })
}

/// Sends the file, or what of it is not there already; gives how much of the image was.
fn send_file(
    line: &mut Delivery<'_>,
    mut file: std::fs::File,
    shown: &str,
    differing: Option<&Differing>,
) -> Result<u64> {
    if let Some(Differing { header, report }) = differing {
        let gone = || Error::failed(format_args!("{shown}: was changed meanwhile"));
        let mut images = EarlierFile::of(file).ok_or_else(gone)?;
        let sent = send::images(header, &mut images, report, line);
        return sent.map_err(|fault| whole::image_error(shown, fault));
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer);
        let count = count.map_err(|error| Error::std(shown, "read", &error))?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() || line.say(bytes).is_none() {
            return Ok(0);
        }
    }
}

/// Whether what the board restored is the image that was read here.
fn is_same(report: &Value, image: &Ended) -> bool {
    let crc32 = format!("{:08x}", image.crc32);
    report.get("crc32").and_then(Value::text) == Some(&crc32)
        && report.get("size_bytes").and_then(Value::number) == Some(image.size_bytes)
}

/// What the board says became of it. `in_store`: it was to be kept there.
fn arrived(report: &Value, in_store: bool, sent_bytes: u64) -> Arrived {
    let size = report.get("size_bytes").and_then(Value::number);
    let (path, without) = match report.get("path").and_then(Value::text) {
        _ if report.get("dry_run").is_some() => ("nowhere".into(), 0),
        Some(path) if in_store => (format!("kept as {}", report::clean(path)), sent_bytes),
        _ => ("restored".into(), sent_bytes),
    };
    Arrived {
        path,
        size_bytes: size.unwrap_or(without),
        ..Arrived::default()
    }
}
