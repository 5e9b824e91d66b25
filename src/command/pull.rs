//! `floe pull`: images and snapshots from boards, each through an ssh of its own.
//!
//! What runs there is floe with its ordinary verbs; its report comes on stderr of the same connection. Nothing gets its name here
//! before [`receive`] has checked all of it. Nothing is decided by what a board says, but whether its stream is good.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::board::artifact::{ArtifactOptions, Recipe};
use crate::board::fleet::{self, Board, Interruption};
use crate::board::host::Host;
use crate::board::reach::Reach;
use crate::board::receive::{self, Arrived, Sink, Stream, ToFile, ToStdout};
use crate::board::ssh::{Session, SessionPipes};
use crate::board::unable::{FRAMES, KNOWN, PROGRESS, Unable, words_without};
use crate::cli::{self, Args, Common, Item};
use crate::error::{Error, Exit, Result};
use crate::json;
use crate::report::{self, Bytes, Elapsed, Manner};
use crate::snapshot::Marks;
use crate::snapshot::framed::{self, EarlierFile};
use crate::snapshot::replace::{self, Arriving, Coming};
use crate::stream::frames::known::{EarlierImages, KnownHere};
use crate::stream::frames::receive::HeldStream;
use crate::stream::image::Format;
use crate::stream::partfile::{self, Left};
use crate::take::options::{self, Taking};
use crate::threads;

/// What is done on each board.
#[derive(Clone, Debug)]
enum BoardTask {
    /// `--dump SOURCE`
    Dump(OsString),
    /// `--create NAME=SOURCE…`
    Create(Vec<OsString>),
    /// `--clone PAIR…`: its lines are all that comes back.
    Clone(Vec<OsString>),
    /// `--kept NAME|latest`
    Kept(OsString),
}

impl BoardTask {
    /// What the board sends; `None`: lines only.
    fn stream(&self) -> Option<Stream> {
        match self {
            Self::Dump(_) => Some(Stream::Image),
            Self::Create(_) | Self::Kept(_) => Some(Stream::Snapshot),
            Self::Clone(_) => None,
        }
    }

    /// The verb that runs on the board.
    fn verb(&self) -> &'static str {
        match self {
            Self::Dump(_) => "dump",
            Self::Create(_) => "create",
            Self::Clone(_) => "clone",
            Self::Kept(_) => "kept",
        }
    }

    /// How its file's name ends.
    fn ending(&self) -> &'static str {
        match self {
            Self::Dump(_) => ".img.gz",
            _ => ".zip",
        }
    }
}

/// What was typed.
pub(crate) struct Options {
    hosts: Vec<Host>,
    work: BoardTask,
    output: PathBuf,
    overwrite: bool,
    parallel: usize,
    reach: Reach,
    handed_on: Vec<OsString>,
    artifact: Option<Recipe>,
    since: Option<PathBuf>,
    fresh: bool,
    level: u8,
    common: Common,
}

/// What was typed, before it is known whether it goes together.
#[derive(Default)]
struct Typed {
    hosts: Vec<Host>,
    pairs: Vec<OsString>,
    dump: Option<OsString>,
    create: bool,
    clone: bool,
    kept: Option<OsString>,
    output: Option<PathBuf>,
    overwrite: bool,
    parallel: Option<usize>,
    since: Option<PathBuf>,
    fresh: bool,
    reach: Reach,
    artifact: ArtifactOptions,
}

/// Reads the command line.
pub(crate) fn parse(mut args: Args) -> Result<Options> {
    let mut typed = Typed::default();
    while let Some(item) = args.next_item()? {
        match item {
            Item::Value(value) => typed.value(value)?,
            Item::Option(name) => typed.option(name, &mut args)?,
        }
    }
    let work = typed.work(&args)?;
    if typed.overwrite && typed.clone {
        args.handed_on.push("--overwrite".into());
    }
    typed.check(&work, &args)?;
    typed.set_stall(&args)?;
    if matches!(work, BoardTask::Kept(_)) {
        args.handed_on.clear();
    }
    let artifact = typed.artifact.check(&args, typed.output.as_deref())?;
    if artifact.is_some() && !matches!(work, BoardTask::Dump(_)) {
        return Err(wrong(format_args!("--artifact is for --dump")));
    }
    // That of the board's floe, which says what is wrong with it.
    let level = args.handed_value("--level").and_then(OsStr::to_str);
    let level = level.and_then(options::level).unwrap_or(1);
    Ok(Options {
        since: typed.since,
        fresh: typed.fresh,
        level,
        hosts: typed.hosts,
        work,
        output: typed.output.unwrap_or_else(|| ".".into()),
        overwrite: typed.overwrite,
        parallel: typed.parallel.unwrap_or(fleet::PARALLEL),
        reach: typed.reach,
        handed_on: args.handed_on,
        artifact,
        common: args.common,
    })
}

impl Typed {
    /// A HOST, or a pair: no host has a = in it, and every pair has.
    fn value(&mut self, value: OsString) -> Result<()> {
        if value.as_bytes().contains(&b'=') {
            self.pairs.push(value);
            return Ok(());
        }
        // Nor has it a slash, as `ssh://` apart: this was meant as a pair.
        if value.as_bytes().starts_with(b"/") {
            let what = match self.clone {
                true => "SOURCE=TARGET, as in /=/dev/mmcblk0p3",
                false => "NAME=SOURCE, as in data=/data",
            };
            return Err(wrong(format_args!(
                "'{}' is no HOST, and not {what}",
                value.display()
            )));
        }
        fleet::add_hosts(&mut self.hosts, &value)
    }

    fn option(&mut self, name: &'static str, args: &mut Args) -> Result<()> {
        match name {
            "--dump" => self.dump = Some(args.value()?),
            "--create" => self.create = true,
            "--clone" => self.clone = true,
            "--kept" => self.kept = Some(args.value()?),
            "--output" => self.output = Some(args.path()?),
            "--overwrite" => self.overwrite = true,
            "--since" => self.since = Some(args.path()?),
            "--fresh" => self.fresh = true,
            "--parallel" => {
                let number = args.parsed(fleet::parallel, "a number from 1 to 256")?;
                self.parallel = Some(number);
            }
            _ if self.reach.option(args, name)? => {}
            _ if self.artifact.option(name, args)? => {}
            _ => return Err(args.unknown(name)),
        }
        Ok(())
    }

    /// What runs on the boards; takes the pairs.
    fn work(&mut self, args: &Args) -> Result<BoardTask> {
        let (dump, kept) = (self.dump.take(), self.kept.take());
        Ok(match (dump, kept, self.create, self.clone) {
            (dump, None, false, false) => BoardTask::Dump(dump.unwrap_or_else(|| "/".into())),
            (None, Some(name), false, false) => BoardTask::Kept(name),
            (None, None, true, false) if self.pairs.is_empty() => {
                return Err(args.missing("NAME=SOURCE"));
            }
            (None, None, true, false) => BoardTask::Create(std::mem::take(&mut self.pairs)),
            (None, None, false, true) => BoardTask::Clone(std::mem::take(&mut self.pairs)),
            _ => {
                return Err(wrong(format_args!(
                    "one of --dump, --create, --clone and --kept"
                )));
            }
        })
    }

    /// What does not go together, and what is missing.
    fn check(&self, work: &BoardTask, args: &Args) -> Result<()> {
        let verb = work.verb();
        let mut handed_on = args.handed_names.iter();
        // What waits for a board to send what it keeps is this end alone.
        let is_ours = |name: &str| name == "--stall" && matches!(work, BoardTask::Kept(_));
        let is_odd = |name: &str| !is_ours(name) && crate::options::find(verb, name).is_none();
        if let Some(name) = handed_on.find(|name| is_odd(name)) {
            return Err(wrong(format_args!("{name} is no option of floe {verb}")));
        }
        if let Some(pair) = self.pairs.first() {
            return Err(wrong(format_args!(
                "'{}' without --create or --clone",
                pair.display()
            )));
        }
        if self.hosts.is_empty() {
            return Err(args.missing("the HOST"));
        }
        let several = self.hosts.len() > 1;
        if self.since.is_some() && (self.fresh || several || work.stream().is_none()) {
            return Err(wrong(format_args!(
                "--since is for an image or snapshot of one board, and not with --fresh"
            )));
        }
        Ok(())
    }

    /// `--stall`, which is the board's and ours.
    fn set_stall(&mut self, args: &Args) -> Result<()> {
        let Some(stall) = args.handed_value("--stall") else {
            return Ok(());
        };
        // What copies on the board says nothing while it is frozen there.
        let longest = args.handed_value("--max-freeze").and_then(OsStr::to_str);
        let longest = longest.and_then(cli::time);
        let longest = longest.unwrap_or(Taking::default().limits.max_freeze);
        let silent = match self.clone {
            true => longest,
            false => Duration::ZERO,
        };
        self.reach.set_stall(stall, silent)
    }
}

fn wrong(what: std::fmt::Arguments<'_>) -> Error {
    cli::usage("pull", what)
}

/// Where the streams go.
#[derive(Clone, Debug)]
enum PullDestination {
    Stdout,
    File(PathBuf),
    Folder(PathBuf),
}

/// What comes.
fn coming(options: &Options) -> Coming {
    let has = |mark: &str| options.handed_on.iter().any(|word| word == mark);
    match &options.work {
        _ if options.artifact.is_some() => Coming::Artifact,
        BoardTask::Dump(_) => Coming::Image(Format::Gzip),
        BoardTask::Create(_) | BoardTask::Clone(_) => Coming::Snapshot(Some(Marks {
            factory: has("--factory"),
            rescue: has("--rescue"),
        })),
        BoardTask::Kept(_) => Coming::Snapshot(None),
    }
}

/// The file of a snapshot where not everything may be replaced.
struct ToSnapshot {
    file: ToFile,
    arriving: Arriving,
}

impl Sink for ToSnapshot {
    fn packed(&mut self, bytes: &[u8]) -> Result<()> {
        self.arriving.take(bytes)?;
        self.file.write(bytes)
    }

    fn finish(self: Box<Self>, _: &Arrived) -> Result<()> {
        self.arriving.end()?;
        self.file.close()
    }
}

fn place(options: &Options) -> Result<PullDestination> {
    let path = &options.output;
    let shown = path.display();
    if path.as_os_str().as_bytes().ends_with(b"/") || path.is_dir() {
        return match path.is_dir() {
            true => Ok(PullDestination::Folder(path.clone())),
            false => Err(
                Error::refused(format_args!("{shown}: is not a folder; make it first"))
                    .leaving("nothing was pulled"),
            ),
        };
    }
    if options.hosts.len() > 1 {
        return Err(Error::refused(format_args!(
            "{shown}: is not a folder; several boards need -o DIR"
        ))
        .leaving("nothing was pulled"));
    }
    if path != Path::new("-") {
        partfile::PartFile::check(path).map_err(|error| error.leaving("nothing was pulled"))?;
        if !options.overwrite {
            replace::check(path, coming(options))?;
        }
        return Ok(PullDestination::File(path.clone()));
    }
    report::check_data("-o DIR or -o FILE", "nothing was pulled")?;
    Ok(PullDestination::Stdout)
}

/// The files that will be written, as far as the words tell.
fn outputs(options: &Options) -> Vec<PathBuf> {
    let path = &options.output;
    if !path.is_dir() {
        return vec![path.clone()];
    }
    let ending = ending(&options.work, options.artifact.as_ref());
    let hosts = options.hosts.iter();
    let files = hosts.map(|host| path.join(host.file_stem() + ending));
    files.chain([path.clone()]).collect()
}

fn ending(work: &BoardTask, artifact: Option<&Recipe>) -> &'static str {
    artifact.map_or(work.ending(), |_| ".mender")
}

/// Runs the verb.
pub(crate) fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    let common = options.common.clone();
    let names = options.hosts.iter().map(|host| host.shown.as_str());
    let names: Vec<&str> = names.collect();
    let files = outputs(&options);
    let outputs = files.clone();
    let outputs: Vec<&Path> = outputs.iter().map(PathBuf::as_path).collect();
    super::begin(&common, ("hosts", &names.join(" ")), &outputs)?;
    let (hosts, parallel) = (options.hosts.clone(), options.parallel);
    let (one, streams) = (hosts.len() == 1, options.work.stream().is_some());
    let since = options.since.clone();
    let puller = Puller::new(options)?;
    let job = move |host: &Host, board: &Board| puller.run(host, board);
    let left = |_: Interruption<'_>| {
        match streams {
        true => interrupted(&files),
        false => "targets on boards that had not ended may not be usable: floe show TARGET there tells; the same pull again writes them".into(),
    }
    };
    let mut outcomes = fleet::run_leaving(hosts, parallel, &common, &left, Arc::new(job))?;
    report::write(&fleet::report_of(&outcomes, start))?;
    if one && let Some(outcome) = outcomes.pop() {
        let arrived = outcome.result.map_err(|e| e.with_exit(Exit::Failed))?;
        if !common.quiet && streams {
            report::line(format_args!(
                "{}: {}, {} from {}{}, checked, {} in all",
                arrived.path,
                Bytes(arrived.size_bytes),
                Bytes(arrived.stream_bytes),
                outcome.host.shown,
                match (arrived.reused_bytes, since) {
                    (0, Some(since)) => format!(" (nothing of {} was of use)", since.display()),
                    (0, None) => String::new(),
                    (bytes, _) => format!(" ({} of it were here already)", Bytes(bytes)),
                },
                Elapsed(start.elapsed())
            ));
        }
        return Ok(());
    }
    fleet::end(
        &outcomes,
        common.quiet,
        if streams { "sent" } else { "written" },
    )
}

/// What an interruption leaves of these.
fn interrupted(files: &[PathBuf]) -> String {
    let is_file = |file: &&PathBuf| !file.is_dir() && file.as_path() != Path::new("-");
    let left = files.iter().filter(is_file);
    let left = left.filter_map(|file| Left::beside(file).filter(Left::holds));
    let names: Vec<String> = left.map(|left| left.path().display().to_string()).collect();
    let state = "files that are there are complete, others were removed";
    match names.as_slice() {
        [] => state.to_owned(),
        names => format!(
            "{state}; what came is kept in {}, and the same pull goes on from there",
            names.join(" ")
        ),
    }
}

/// What is done with each board.
struct Puller {
    work: BoardTask,
    place: PullDestination,
    reach: Reach,
    overwrite: bool,
    coming: Coming,
    artifact: Option<Recipe>,
    since: Option<PathBuf>,
    level: u8,
    jobs: usize,
    /// How it is asked first.
    first: How,
    /// A key without which the board's report is not that of the work that was asked for: what makes one machine out of many must not
    /// come because the words got lost on the way.
    expected: Option<&'static str>,
    /// What runs there, for each [`How`].
    commands: [Vec<OsString>; 3],
}

impl Puller {
    fn new(options: Options) -> Result<Self> {
        let (place, coming) = (place(&options)?, coming(&options));
        let mut artifact = options.artifact;
        if let Some(recipe) = &mut artifact {
            recipe.read_scripts()?;
        }
        if let Some(since) = &options.since {
            let meta = std::fs::metadata(since);
            let meta = meta.map_err(|error| Error::std(since.display(), "open", &error))?;
            if !meta.is_file() {
                return Err(
                    Error::refused(format_args!("{}: is not a file", since.display()))
                        .leaving("nothing was pulled"),
                );
            }
        }
        let (work, handed_on) = (options.work, options.handed_on);
        // A board that reads nothing before the freeze has nothing to send before it.
        let mut precopy = handed_on.windows(2);
        let is_off = precopy.any(|words| words == ["--precopy", "off"]);
        let is_early = matches!(work, BoardTask::Dump(_) | BoardTask::Create(_)) && !is_off;
        let mut asked = handed_on.iter();
        let empties = asked.any(|word| word == "--golden" || word == "--empty");
        let asked = BoardLines {
            quiet: options.common.quiet,
            progress: Manner::of(&options.common) != Manner::Off,
        };
        let command = |how| words(&work, &handed_on, asked, how);
        Ok(Self {
            coming,
            commands: [None, Some(FRAMES), Some(KNOWN)].map(command),
            first: match (is_early, options.fresh) {
                (true, false) => How::Known,
                (true, true) => How::Frames,
                (false, _) => How::Plain,
            },
            expected: empties.then_some("emptied_files"),
            place,
            reach: options.reach,
            overwrite: options.overwrite,
            artifact,
            since: options.since,
            level: options.level,
            jobs: threads::jobs(options.common.jobs),
            work,
        })
    }

    fn run(&self, host: &Host, board: &Board) -> Result<Arrived> {
        let Some(stream) = self.work.stream() else {
            let [words, ..] = &self.commands;
            let run = |words: &[OsString]| {
                let session = self
                    .reach
                    .start(host, words, SessionPipes::default(), board)?;
                talk(host, session)
            };
            let arrived = run(words).or_else(|error| match Unable::of(&error) {
                Some(Unable::Mute) => run(&words_without(PROGRESS, words)),
                _ => Err(error),
            })?;
            receive::check_report(host, &arrived.report, self.expected)?;
            return Ok(arrived);
        };
        let mut attempt = Attempt {
            how: self.first,
            shows: true,
        };
        // Each turn asks for less.
        loop {
            let mut asked = false;
            let result = self.pull(host, board, stream, attempt, &mut asked);
            let Err(error) = &result else {
                return result;
            };
            match (attempt.how, Unable::of(error)) {
                (How::Known, Some(Unable::Older | Unable::Changed)) if asked => {
                    attempt.how = How::Frames;
                }
                (How::Known | How::Frames, Some(Unable::Older)) => attempt.how = How::Plain,
                // Nothing has gone there yet, and what is not held needs no room here.
                (How::Known | How::Frames, Some(Unable::NoRoom))
                    if matches!(self.place, PullDestination::Stdout) =>
                {
                    board.note(format!(
                        "note: {error}: it is sent once more without being held here, and the board stays frozen for longer"
                    ));
                    attempt.how = How::Plain;
                }
                (_, Some(Unable::Mute)) if attempt.shows => attempt.shows = false,
                _ => return result,
            }
        }
    }

    /// One attempt. `asked`: whether it is told what is here.
    fn pull(
        &self,
        host: &Host,
        board: &Board,
        stream: Stream,
        attempt: Attempt,
        asked: &mut bool,
    ) -> Result<Arrived> {
        let Attempt { how, shows } = attempt;
        let (sink, path, file) = self.open(host, board)?;
        let mut hold = self.hold(how, file.as_deref())?;
        let mut earlier = None;
        if let (How::Known, Some(hold)) = (how, &mut hold) {
            earlier = self.earlier(file.as_deref());
            *asked = earlier.is_some() || hold.left.as_ref().is_some_and(Left::holds);
            hold.level = self.level;
            hold.jobs = self.jobs;
        }
        let [without, frames, known] = &self.commands;
        let words = match &hold {
            None => without,
            Some(_) if *asked => known,
            Some(_) => frames,
        };
        let quieter;
        let words = match shows {
            true => words,
            false => {
                quieter = words_without(PROGRESS, words);
                &quieter
            }
        };
        let pipes = SessionPipes {
            stream: true,
            carries: match stream {
                Stream::Image => "image",
                Stream::Snapshot => "snapshot",
            },
            compress: Some(false),
            input: *asked,
            hush: hold.is_some() || shows,
            ..SessionPipes::default()
        };
        let mut session = self.reach.start(host, words, pipes, board)?;
        session.call("stdout", &path);
        if let (true, Some(hold)) = (*asked, &mut hold) {
            let earlier = earlier.map(|earlier| Box::new(earlier) as Box<dyn EarlierImages>);
            let stdin = session.take_stdin();
            hold.known = stdin.map(|stdin| KnownHere { earlier, stdin });
        }
        let arrived = receive::receive(host, session, stream, sink, board, hold, self.expected);
        let left = file.as_deref().and_then(Left::beside);
        let arrived = arrived.map_err(|error| match &left {
            Some(left) if how != How::Plain && left.holds() => error.leaving(&format!(
                "what came is kept in {}, and the same command goes on from there",
                left.path().display()
            )),
            _ => error,
        })?;
        // What an interrupted run left is of no use any more, now that the file has its name.
        if let Some(left) = left {
            left.clear();
        }
        Ok(Arrived { path, ..arrived })
    }

    /// The sink for this board, its name, and the file where it is one.
    fn open(&self, host: &Host, board: &Board) -> Result<(Box<dyn Sink>, String, Option<PathBuf>)> {
        let path = match &self.place {
            PullDestination::Stdout => {
                let stop = Arc::clone(&board.stop);
                return Ok((Box::new(ToStdout { stop }), "stdout".into(), None));
            }
            PullDestination::File(path) => path.clone(),
            PullDestination::Folder(folder) => {
                let ending = ending(&self.work, self.artifact.as_ref());
                folder.join(host.file_stem() + ending)
            }
        };
        if !self.overwrite {
            replace::check(&path, self.coming)?;
        }
        let shown = path.display().to_string();
        let sink: Box<dyn Sink> = match &self.artifact {
            Some(recipe) => recipe.sink(&path, &host.file_stem())?,
            None => match (ToFile::create(&path)?, self.coming) {
                // Whatever was asked for: what it is is what the file will be.
                (file, Coming::Snapshot(_)) if !self.overwrite => Box::new(ToSnapshot {
                    file,
                    arriving: Arriving::new(path.clone()),
                }),
                (file, _) => Box::new(file),
            },
        };
        Ok((sink, shown, Some(path)))
    }

    /// Where frames are held.
    fn hold(&self, how: How, file: Option<&Path>) -> Result<Option<HeldStream>> {
        if how == How::Plain {
            return Ok(None);
        }
        if self.expected.is_none() {
            return framed::hold_named(file, how == How::Known).map(Some);
        }
        // What is read early may hold what is to be emptied: no name leads to it.
        if let Some(left) = file.and_then(Left::beside) {
            left.clear();
        }
        framed::hold_unnamed(file).map(Some)
    }

    /// What is here of the board from before.
    fn earlier(&self, file: Option<&Path>) -> Option<EarlierFile> {
        let earlier = match (&self.since, file) {
            (Some(since), _) => std::fs::File::open(since).ok(),
            (None, Some(file)) => partfile::earlier(file),
            (None, None) => None,
        };
        earlier.and_then(EarlierFile::of)
    }
}

/// What works there and only says how it went.
fn talk(host: &Host, mut session: Session) -> Result<Arrived> {
    if session.first_word().is_ok() {
        session.works_alone();
    }
    let ended = session.end()?;
    ended.check_leaving(
        host,
        "its targets are written as it says, but unconfirmed: floe show TARGET there tells, and the same pull again writes them",
    )?;
    // An exit code of 0 alone may be that of something else: a forced command, a wrapper.
    let report = ended.told.reports.last().cloned().unwrap_or_default();
    let parsed = json::parse(report.as_bytes()).map_err(|_| {
        Error::failed(format_args!(
            "{}: the report of floe there is missing; do not rely on its targets",
            host.shown
        ))
    })?;
    let number = |key| parsed.get(key)?.number();
    Ok(Arrived {
        stream_bytes: number("written_bytes").unwrap_or(0),
        size_bytes: number("size_bytes").unwrap_or(0),
        frozen_ms: number("frozen_ms"),
        report,
        ..Arrived::default()
    })
}

/// What the board is to say.
#[derive(Clone, Copy)]
struct BoardLines {
    quiet: bool,
    progress: bool,
}

/// What a board is asked for in one attempt.
#[derive(Clone, Copy)]
struct Attempt {
    how: How,
    /// How far it is, too.
    shows: bool,
}

/// In which form the board is to send it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// The standard format.
    Plain,
    Frames,
    /// Frames of what is not here already.
    Known,
}

/// What floe is told on the board, without its own name.
fn words(
    work: &BoardTask,
    handed_on: &[OsString],
    asked: BoardLines,
    how: Option<&'static str>,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let more: &[&str] = match work {
        BoardTask::Create(_) => &["-o", "-"],
        BoardTask::Kept(_) => &["get"],
        BoardTask::Dump(_) | BoardTask::Clone(_) => &[],
    };
    words.push(work.verb().into());
    words.extend(more.iter().chain(&["--report", "-"]).map(OsString::from));
    if asked.quiet {
        words.push("-q".into());
    }
    words.extend(how.map(OsString::from));
    if asked.progress {
        words.push(PROGRESS.into());
    }
    words.extend_from_slice(handed_on);
    words.push("--".into());
    match work {
        BoardTask::Dump(last) | BoardTask::Kept(last) => words.push(last.clone()),
        BoardTask::Create(pairs) | BoardTask::Clone(pairs) => words.extend_from_slice(pairs),
    }
    words
}
