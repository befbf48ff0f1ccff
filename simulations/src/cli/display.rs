//! Progress of runs and sweeps on standard error.

use std::{io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output;
use crate::{
    deadline::Deadline,
    experiment::Experiment,
    harness::{Progress, RoundRow, SeriesProgress},
    sweep::{Cell, SweepProgress},
};

/// Plain progress lines are this far apart, at least.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Bars on terminals, a line now and then elsewhere.
pub(super) struct Display {
    mode: Mode,
    last: Option<Deadline>,
    /// What precedes the name of an experiment: which cell it is.
    prefix: String,
    is_waiting: bool,
}

enum Mode {
    Bars { all: MultiProgress, cells: Option<ProgressBar>, rounds: Option<ProgressBar> },
    Lines,
    Silent,
}

/// The progress of one seed.
struct Rounds<'a> {
    display: &'a mut Display,
    title: String,
    done: u64,
}

impl Display {
    pub(super) fn new() -> Self {
        let mode = match std::io::stderr().is_terminal() {
            true => Mode::Bars { all: MultiProgress::new(), cells: None, rounds: None },
            false => Mode::Lines,
        };
        Self { mode, last: None, prefix: String::new(), is_waiting: false }
    }

    pub(super) const fn silent() -> Self {
        Self { mode: Mode::Silent, last: None, prefix: String::new(), is_waiting: false }
    }

    /// Takes the bars away.
    pub(super) fn finish(&mut self) {
        if let Mode::Bars { cells, rounds, .. } = &mut self.mode {
            [cells.take(), rounds.take()]
                .into_iter()
                .flatten()
                .for_each(|bar| bar.finish_and_clear());
        }
    }

    /// A plain line, unless the last one was just now.
    fn note(&mut self, text: &str, is_last: bool) {
        let due = self.last.is_none_or(|last| last.has_passed()) || is_last;
        if matches!(self.mode, Mode::Lines) && due {
            self.last = Some(Deadline::after(LINE_INTERVAL));
            // Progress is no result; a closed standard error must not end the run.
            let _ = output::note(text);
        }
    }
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    ProgressBar::new(length).with_style(style)
}

impl SeriesProgress for Display {
    fn seed(&mut self, experiment: &Experiment, seed: u64) -> Box<dyn Progress + '_> {
        let title = format!("{}{} seed {seed}", self.prefix, experiment.name);
        if let Mode::Bars { all, rounds, .. } = &mut self.mode {
            if let Some(old) = rounds.take() {
                old.finish_and_clear();
            }
            let new =
                bar(experiment.rounds, "{prefix} {wide_bar} round {pos}/{len} {msg} ETA {eta}");
            new.set_prefix(title.clone());
            *rounds = Some(all.add(new));
        }
        Box::new(Rounds { display: self, title, done: 0 })
    }
}

impl SweepProgress for Display {
    fn cell(&mut self, cell: &Cell, done: usize, cells: usize) {
        self.is_waiting = false;
        if let Mode::Bars { all, cells: bar_of_cells, .. } = &mut self.mode {
            let bar = bar_of_cells.get_or_insert_with(|| {
                all.add(bar(cells as u64, "sweep {wide_bar} cell {pos}/{len} {msg} ETA {eta}"))
            });
            bar.set_position(done as u64);
            bar.set_message(cell.label.clone());
            return;
        }
        self.prefix = format!("[{}/{cells}] {}: ", done + 1, cell.label);
    }

    fn waiting(&mut self, cells: usize) {
        if !std::mem::replace(&mut self.is_waiting, true) {
            self.note(&format!("{cells} cells are worked on by other processes; waiting"), true);
        }
    }
}

impl Progress for Rounds<'_> {
    fn round(&mut self, row: &RoundRow, rounds: u64) {
        let epsilon = row.epsilon.map(|epsilon| format!(" ε {epsilon:.2}")).unwrap_or_default();
        let message = row.accuracy.map(|accuracy| format!("accuracy {accuracy:.4}{epsilon}"));
        if let Mode::Bars { rounds: Some(bar), .. } = &self.display.mode {
            if self.done == 0 {
                // What an earlier process did must not count as done in no time.
                bar.reset_eta();
            }
            bar.set_position(row.round);
            if let Some(message) = &message {
                bar.set_message(message.clone());
            }
        }
        self.done += 1;
        if let Some(message) = message {
            let line = format!("{}: round {}/{rounds} {message}", self.title, row.round);
            self.display.note(&line, row.round == rounds);
        }
    }
}
