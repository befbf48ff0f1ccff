//! Shows on standard error how the demo gets on: bars on terminals, plain lines elsewhere.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::snapshot::{Snapshot, duration, percent};
use crate::deadline::Deadline;

const TICK: Duration = Duration::from_millis(120);
/// Short rounds change faster than a log is pleasant to read.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// Resolution of the bar within the whole job.
const BAR_STEPS: u64 = 1000;

/// The progress display of one demo.
#[derive(Debug)]
pub enum Progress {
    /// Bars that are redrawn in place.
    Terminal(Bars),
    /// One line for each change.
    Plain(Lines),
}

impl Progress {
    /// Bars if standard error is a terminal, otherwise lines.
    #[must_use]
    pub fn on_stderr(clock: Deadline) -> Self {
        if std::io::stderr().is_terminal() {
            Self::Terminal(Bars::new(clock))
        } else {
            Self::Plain(Lines { clock, last: None })
        }
    }

    /// Says what is being done now.
    pub fn note(&mut self, text: &str) {
        match self {
            Self::Terminal(bars) => bars.note(text),
            Self::Plain(lines) => lines.print(text),
        }
    }

    /// Shows how the job stands; `job_clock` started with it.
    pub fn show(&mut self, snapshot: &Snapshot, job_clock: Deadline) {
        match self {
            Self::Terminal(bars) => bars.show(snapshot, job_clock.elapsed()),
            Self::Plain(lines) => lines.show(snapshot, job_clock.elapsed()),
        }
    }

    /// Takes the bars away, so that what follows stands alone.
    pub fn finish(&mut self) {
        if let Self::Terminal(bars) = self {
            bars.finish();
        }
    }
}

/// A bar for the rounds and a line for each tenant.
#[derive(Debug)]
pub struct Bars {
    clock: Deadline,
    all: MultiProgress,
    rounds: ProgressBar,
    tenants: Vec<ProgressBar>,
}

impl Bars {
    fn new(clock: Deadline) -> Self {
        let all = MultiProgress::new();
        let rounds = all.add(ProgressBar::new(BAR_STEPS));
        rounds.set_style(style("{spinner:.cyan} {wide_msg}"));
        rounds.enable_steady_tick(TICK);
        Self { clock, all, rounds, tenants: Vec::new() }
    }

    fn note(&self, text: &str) {
        // Standard error may be closed; the demo goes on without its display.
        let _ = self.all.println(stamped(self.clock, text));
    }

    fn show(&mut self, snapshot: &Snapshot, elapsed: Duration) {
        if self.tenants.is_empty() {
            self.rounds.set_style(style("{spinner:.cyan} [{bar:24.cyan/blue}] {wide_msg}"));
            for tenant in &snapshot.tenants {
                let line = self.all.add(ProgressBar::new_spinner());
                line.set_style(style("  {prefix:<9.bold} {wide_msg}"));
                line.set_prefix(tenant.tenant.clone());
                self.tenants.push(line);
            }
        }
        self.rounds.set_position((snapshot.fraction() * BAR_STEPS as f64) as u64);
        self.rounds.set_message(summary(snapshot, elapsed));
        for (line, tenant) in self.tenants.iter().zip(&snapshot.tenants) {
            line.set_message(tenant.line());
        }
    }

    fn finish(&self) {
        self.tenants.iter().for_each(ProgressBar::finish_and_clear);
        self.rounds.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a valid template").progress_chars("=> ")
}

/// Plain lines, printed only when round, phase or accuracy change, and not too often.
#[derive(Debug)]
pub struct Lines {
    clock: Deadline,
    last: Option<(Change, Duration)>,
}

/// What makes a new line worth printing.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    rounds_committed: u64,
    round: Option<u64>,
    phase: String,
    base_accuracy: Option<f64>,
}

impl Lines {
    fn show(&mut self, snapshot: &Snapshot, elapsed: Duration) {
        let change = Change {
            rounds_committed: snapshot.rounds_committed,
            round: snapshot.round,
            phase: snapshot.phase.clone(),
            base_accuracy: snapshot.base_accuracy,
        };
        let worth_a_line = self.last.as_ref().is_none_or(|(last, at)| {
            *last != change && (snapshot.is_committed() || elapsed >= *at + LINE_INTERVAL)
        });
        if worth_a_line {
            self.print(&summary(snapshot, elapsed));
            self.last = Some((change, elapsed));
        }
    }

    fn print(&self, text: &str) {
        // Standard error may be closed; the demo goes on without its display.
        let _ = writeln!(std::io::stderr(), "{}", stamped(self.clock, text));
    }
}

fn stamped(clock: Deadline, text: &str) -> String {
    format!("[{:5.1} s] {text}", clock.elapsed().as_secs_f64())
}

/// The whole job in one line.
fn summary(snapshot: &Snapshot, elapsed: Duration) -> String {
    let rounds = snapshot.rounds;
    let mut line = if snapshot.is_committed() {
        format!("all {rounds} rounds committed, agents adapting")
    } else {
        let round = snapshot.round.unwrap_or(snapshot.rounds_committed + 1);
        format!("round {round}/{rounds} {}", snapshot.phase)
    };
    if let Some(accuracy) = snapshot.base_accuracy {
        line += &format!(" · base {}", percent(accuracy));
    }
    line += &format!(" · ε {:.2}", snapshot.epsilon());
    if let Some(left) = snapshot.time_left(elapsed).filter(|left| !left.is_zero()) {
        line += &format!(" · ETA {}", duration(left));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{super::snapshot::tests::snapshot, *};

    #[test]
    fn the_summary_names_round_phase_accuracy_epsilon_and_time_left() {
        let line = summary(&snapshot(5, &[("connected", "idle", 0)]), Duration::from_secs(120));
        assert_eq!(line, "round 6/10 reporting · base 81.2 % · ε 0.00 · ETA 2 min 00 s");
    }

    #[test]
    fn plain_lines_appear_only_for_changes() {
        let mut lines = Lines { clock: Deadline::after(Duration::ZERO), last: None };
        lines.show(&snapshot(1, &[("accepted", "training", 1)]), Duration::from_secs(1));
        let first = lines.last.clone();
        lines.show(&snapshot(1, &[("accepted", "training", 2)]), Duration::from_secs(9));
        assert_eq!(lines.last, first, "a step is not worth a line");
        lines.show(&snapshot(2, &[("accepted", "training", 2)]), Duration::from_secs(2));
        assert_eq!(lines.last, first, "too soon after the first line");
        lines.show(&snapshot(3, &[("accepted", "training", 2)]), Duration::from_secs(5));
        assert_ne!(lines.last, first);
        let third = lines.last.clone();
        lines.show(&snapshot(10, &[("reported", "idle", 0)]), Duration::from_secs(5));
        assert_ne!(lines.last, third, "the end is always worth a line");
    }
}
