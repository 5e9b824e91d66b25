//! `pull --artifact`: each board's image straight into a Mender artifact; the image is nowhere on the host in between.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use crate::board::receive::{Arrived, Sink};
use crate::cli::{Args, usage};
use crate::error::{Error, Result};
use crate::mender::header::{Script, now, payload_name};
use crate::mender::writer::{ArtifactWriter, Maker, What};
use crate::stream::gzip::HEADER_AS_IT_IS;
use crate::stream::partfile::PartFile;

/// What the command line says about artifacts.
#[derive(Debug, Default)]
pub(crate) struct ArtifactOptions {
    what: What,
    asked: bool,
    /// An option that means nothing without `--artifact`.
    label: Option<&'static str>,
}

impl ArtifactOptions {
    /// Takes the option if it is one of these.
    pub(crate) fn option(&mut self, name: &'static str, args: &mut Args) -> Result<bool> {
        if name == "--artifact" {
            self.asked = true;
            return Ok(true);
        }
        let taken = self.what.option(name, args)?;
        if taken {
            self.label = Some(name);
        }
        Ok(taken)
    }

    /// After the last option: how artifacts are made, if they are wanted.
    pub(crate) fn check(mut self, args: &Args, output: Option<&Path>) -> Result<Option<Recipe>> {
        match self.label {
            Some(name) if !self.asked => {
                let more = match name.starts_with("--compress") {
                    true => {
                        "; an image always comes compressed over ssh, so that its end is proven"
                    }
                    false => "",
                };
                return Err(usage(
                    "pull",
                    format_args!("{name} is for --artifact{more}"),
                ));
            }
            _ if !self.asked => return Ok(None),
            _ => {}
        }
        self.what.labels.check(args)?;
        if output == Some(Path::new("-")) {
            return Err(Error::usage(
                "pull: --artifact needs a file that can be written over: -o FILE or -o DIR",
            ));
        }
        self.what.set_jobs(&args.common);
        Ok(Some(Recipe {
            what: self.what,
            scripts: Arc::default(),
        }))
    }
}

/// How the artifact of every board is made.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    what: What,
    scripts: Arc<[Script]>,
}

impl Recipe {
    /// Reads the state scripts, before any board is asked.
    pub(crate) fn read_scripts(&mut self) -> Result<()> {
        self.scripts = self.what.labels.read_scripts()?.into();
        Ok(())
    }

    /// A sink for the image of the board whose files are called `stem`.
    pub(crate) fn sink(&self, path: &Path, stem: &str) -> Result<Box<dyn Sink>> {
        let (part, fd) = PartFile::begin(path)?;
        let shown = path.display().to_string();
        let maker = Maker {
            what: self.what.clone(),
            scripts: Arc::clone(&self.scripts),
            payload: payload_name(OsStr::new(&format!("{stem}.img"))),
            modified: now(),
            shown,
        };
        let writer = ArtifactWriter::over(Arc::new(maker), fd)?;
        Ok(Box::new(ToArtifact {
            part,
            writer,
            first: Vec::new(),
        }))
    }
}

/// An artifact that gets its name when it is complete.
struct ToArtifact {
    part: PartFile,
    writer: ArtifactWriter,
    /// What the stream begins with.
    first: Vec<u8>,
}

impl Sink for ToArtifact {
    /// Whatever takes the artifact apart would find no image in a copy as it is.
    fn packed(&mut self, bytes: &[u8]) -> Result<()> {
        let missing = HEADER_AS_IT_IS.len() - self.first.len();
        self.first.extend(bytes.iter().take(missing));
        match self.first == HEADER_AS_IT_IS {
            true => Err(Error::corrupt(
                "what comes is a copy as it is, and no image that a board could be told by; pull it without --artifact, and floe artifact FILE --any-content makes one of it",
            )),
            false => Ok(()),
        }
    }

    fn takes_data(&self) -> bool {
        true
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.data(bytes)
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        self.writer.zeros(count)
    }

    fn finish(self: Box<Self>, _: &Arrived) -> Result<()> {
        self.writer.end()?;
        self.part.finish()
    }
}
