//! The state of every target, for messages.

use std::sync::Arc;

use crate::error::Error;
use crate::put::job::RunState;
use crate::put::newdisk::LOST_TABLE;
use crate::put::phase::{Phase, again};
use crate::put::target::Overwrite;
use crate::report;
use crate::snapshot::relaid::Laid;
use crate::snapshot::unpack::errand::Errand;

/// The state of every target, and of a disk that is laid anew, for messages.
pub(super) struct States {
    targets: Vec<(String, Arc<RunState>)>,
    disk: Option<(String, Arc<Phase>)>,
}

pub(super) fn states_of(errands: &[Errand], laid: Option<&Laid>) -> States {
    let target = |errand: &Errand| (errand.shown.clone(), Arc::clone(&errand.shared));
    States {
        targets: errands.iter().map(target).collect(),
        disk: laid.map(|laid| (laid.path.display().to_string(), Arc::clone(&laid.phase))),
    }
}

impl States {
    pub(super) fn text(&self) -> String {
        let words = |(shown, shared): &(String, Arc<RunState>)| match shared.phase.get() {
            Phase::UNTOUCHED => format!("{shown}: not touched"),
            Phase::COMPLETE => format!("{shown}: complete"),
            _ => format!("{shown}: {}", shared.phase.state()),
        };
        let mut all: Vec<String> = self.targets.iter().map(words).collect();
        if let Some((shown, phase)) = &self.disk {
            all.push(match phase.get() {
                Phase::UNTOUCHED => format!("{shown}: not touched"),
                Phase::COMPLETE => format!("{shown}: its partition table is complete"),
                Phase::LOST => format!("{shown}: {LOST_TABLE}"),
                Phase::SHOWING => {
                    format!("{shown}: its partition table may look valid, but is not usable: its last write was not confirmed")
                }
                _ => format!("{shown}: has no partition table yet, and is not usable"),
            });
        }
        all.join("; ")
    }

    /// The same after an interruption, and what helps.
    pub(super) fn interrupted(&self, overwrite: Overwrite) -> String {
        let targets = self.targets.iter();
        let targets = targets.filter(|(_, shared)| !shared.phase.goes_again());
        let targets = targets.map(|(shown, shared)| (shown, shared.phase.get()));
        let disk = self.disk.iter().map(|(shown, phase)| (shown, phase.get()));
        let all: Vec<(&String, u8)> = targets.chain(disk).collect();
        if !all.iter().any(|(_, phase)| Phase::is_begun(*phase)) {
            return self.text();
        }
        let holds = |(shown, phase): &(&String, u8)| match *phase {
            Phase::UNTOUCHED => false,
            phase => Phase::shows(phase) || std::path::Path::new(shown).is_file(),
        };
        let again = again(overwrite, || all.iter().any(holds));
        format!("{}; {again}", self.text())
    }

    /// After the first write a refusal is 1; and the state of the other targets is told too.
    pub(super) fn explain(&self, error: Error, quiet: bool) -> Error {
        let begun = |phase: &Phase| phase.get() != Phase::UNTOUCHED;
        let touched = self.targets.iter().any(|(_, shared)| begun(&shared.phase))
            || self.disk.as_ref().is_some_and(|(_, phase)| begun(phase));
        if self.targets.len() + usize::from(self.disk.is_some()) > 1
            && touched
            && !quiet
            && !error.is_signal()
        {
            report::line(self.text());
        }
        if touched { error.begun("") } else { error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_last_write_is_on_its_way_is_said_to_look_valid() {
        let phase = Arc::new(Phase::default());
        let states = States {
            targets: Vec::new(),
            disk: Some(("/dev/sdx".into(), Arc::clone(&phase))),
        };
        phase.set(Phase::WRITING);
        let before = states.interrupted(Overwrite::Refused);
        assert!(before.starts_with("/dev/sdx: has no partition table yet"));
        phase.set(Phase::SHOWING);
        let then = states.interrupted(Overwrite::Refused);
        assert!(then.contains("table may look valid"), "{then}");
        assert!(then.ends_with("with --overwrite repairs it"), "{then}");
    }
}
