//! Draws a statement: bars and colours on a terminal, plain lines elsewhere.

use crate::{
    calendar::{date, moment},
    statement::{DatasetStatement, FORECAST_ROUNDS_MAX, JobStatement, Statement},
};
use anstyle::{AnsiColor, Style};

/// Columns without a terminal, and the most that lines use on a wide one.
const COLUMNS: usize = 100;
/// Releases that are listed; `--json` has all.
const ENTRIES_SHOWN: usize = 8;

/// Where the text will appear.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    columns: usize,
    /// Whether bars are drawn.
    bars: bool,
    /// Whether colours are.
    colours: bool,
}

impl Screen {
    /// A terminal of the size it says, or plain text.
    pub(super) fn of(terminal: bool) -> Self {
        if !terminal {
            return Self { columns: COLUMNS, bars: false, colours: false };
        }
        let columns = crossterm::terminal::size().map_or(80, |(columns, _)| columns.into());
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { columns: columns.clamp(40, COLUMNS), bars: true, colours }
    }

    fn paint(self, style: Style, text: &str) -> String {
        if self.colours { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// The whole statement, lines separated by line feeds.
pub(super) fn statement(statement: &Statement, screen: Screen) -> String {
    let mut text = String::new();
    let title = format!("Privacy of tenant {}", statement.tenant);
    line(&mut text, &screen.paint(Style::new().bold(), &title));
    line(
        &mut text,
        &format!("{}; neighbours differ by adding or removing one unit", moment(statement.now_ms)),
    );
    for spent in &statement.datasets {
        line(&mut text, "");
        dataset(&mut text, spent, screen);
    }
    if statement.datasets.is_empty() {
        line(&mut text, "\nNo dataset takes part: policy.toml has no section `datasets.NAME`.");
    }
    entries(&mut text, statement, screen);
    refusals(&mut text, statement, screen);
    line(&mut text, "");
    let head = statement.head.sequence;
    line(
        &mut text,
        &match statement.receipt {
            Some(receipt) => format!(
                "Countersigned by the coordinator: entry {} of {head}, {}",
                receipt.sequence,
                moment(receipt.signed_ms.0)
            ),
            None => "Countersigned by the coordinator: nothing yet".to_owned(),
        },
    );
    text
}

fn dataset(text: &mut String, spent: &DatasetStatement, screen: Screen) {
    let name = screen.paint(Style::new().bold(), spent.dataset.as_str());
    line(
        text,
        &format!(
            "{name}: epsilon {} spent, {} left of {} at delta {:e}",
            figure(spent.epsilon_spent),
            figure(spent.epsilon_left),
            spent.epsilon_max,
            spent.delta
        ),
    );
    let share = (spent.epsilon_spent / spent.epsilon_max).clamp(0.0, 1.0);
    if screen.bars {
        line(text, &bar(share, screen));
    }
    let window = match (spent.window_days, spent.window_start_ms) {
        (Some(days), Some(start)) => {
            let leaves = spent.next_leaves_ms.map_or_else(
                || "nothing counts now".to_owned(),
                |leaves| format!("the oldest leaves on {}", date(leaves)),
            );
            format!("counts releases since {} ({days} days); {leaves}", date(start))
        }
        (None, Some(start)) => {
            format!("counts every release, for ever; the first on {}", date(start))
        }
        (_, None) => "counts every release, for ever; none yet".to_owned(),
    };
    line(text, &format!("  {window}"));
    if !spent.jobs.is_empty() {
        jobs(text, &spent.jobs, screen);
    }
}

/// A bar over the width of the screen, with eighths of a column.
fn bar(share: f64, screen: Screen) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let label = format!(" {:>3.0} %", 100.0 * share);
    // Two of indentation, two of border, the label, and the last column, where terminals wrap.
    let width = screen.columns - 5 - label.len();
    // Rounded up: what is spent never looks like nothing.
    let eighths = (share * width as f64 * 8.0).ceil() as usize;
    let (full, rest) = (eighths / 8, eighths % 8);
    let mut filled = "█".repeat(full);
    filled.push_str(EIGHTHS[rest]);
    let empty = " ".repeat(width - full - usize::from(rest > 0));
    let colour = match share {
        share if share < 0.5 => AnsiColor::Green,
        share if share < 0.9 => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    };
    let filled = screen.paint(colour.on_default(), &filled);
    format!("  ▕{filled}{empty}▏{label}")
}

fn jobs(text: &mut String, jobs: &[JobStatement], screen: Screen) {
    let header = ["job", "unit", "rounds", "epsilon alone", "further rounds that fit"];
    let rows: Vec<[String; 5]> = jobs
        .iter()
        .map(|job| {
            let left = match job.rounds_left {
                FORECAST_ROUNDS_MAX => format!("{FORECAST_ROUNDS_MAX} or more"),
                left => left.to_string(),
            };
            let (rounds, alone) = (job.rounds.to_string(), figure(job.epsilon_alone));
            [job.job.clone(), job.unit.clone(), rounds, alone, left]
        })
        .collect();
    columns(text, header, &rows, screen.columns);
}

fn entries(text: &mut String, statement: &Statement, screen: Screen) {
    let all = &statement.entries;
    let hidden = all.len().saturating_sub(ENTRIES_SHOWN);
    if all.is_empty() {
        return;
    }
    line(text, "");
    line(
        text,
        &match hidden {
            0 => "Releases:".to_owned(),
            hidden => format!("Releases (the newest; `--json` has the {hidden} before):"),
        },
    );
    let header = ["entry", "when", "dataset", "job", "round", "release"];
    let rows: Vec<[String; 6]> = all[hidden..]
        .iter()
        .map(|entry| {
            [
                entry.sequence.to_string(),
                moment(entry.recorded_ms),
                entry.dataset.clone(),
                entry.job.clone(),
                entry.round.to_string(),
                data_encoding::HEXLOWER.encode(&entry.release[..6]),
            ]
        })
        .collect();
    columns(text, header, &rows, screen.columns);
}

fn refusals(text: &mut String, statement: &Statement, screen: Screen) {
    if statement.refusals.is_empty() {
        return;
    }
    line(text, "");
    line(text, "Declined:");
    for refusal in statement.refusals.iter().rev() {
        let times = match refusal.times {
            1 => String::new(),
            times => format!(", {times} times in a row"),
        };
        let head = format!(
            "  {}  {} round {}{times}",
            moment(refusal.declined_ms.0),
            refusal.job,
            refusal.round
        );
        line(text, &screen.paint(Style::new().bold(), &head));
        wrapped(text, "    ", &format!("{} ({})", refusal.reason, refusal.code), screen.columns);
        wrapped(text, "    ", &format!("would work: {}", refusal.remedy), screen.columns);
    }
}

/// Rows under a header, each column as wide as its widest cell; long cells are cut.
fn columns<const N: usize>(
    text: &mut String,
    header: [&str; N],
    rows: &[[String; N]],
    most: usize,
) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let mut widths: [usize; N] = std::array::from_fn(width);
    // The widest column gives way until the line fits.
    while widths.iter().sum::<usize>() + 2 * N + 2 > most {
        let widest = widths.iter_mut().max().expect("there are columns");
        if *widest <= 8 {
            break;
        }
        *widest -= 1;
    }
    let mut row = |cells: [&str; N]| {
        let mut whole = String::from("  ");
        for (cell, &width) in cells.iter().zip(&widths) {
            let length = cell.chars().count();
            if length > width {
                whole.extend(cell.chars().take(width - 1));
                whole.push('…');
            } else {
                whole.push_str(cell);
                whole.push_str(&" ".repeat(width - length));
            }
            whole.push_str("  ");
        }
        line(text, whole.trim_end());
    };
    row(header);
    for cells in rows {
        row(std::array::from_fn(|column| cells[column].as_str()));
    }
}

/// Words of `content` in lines of at most `most` columns.
fn wrapped(text: &mut String, indent: &str, content: &str, most: usize) {
    let mut current = String::new();
    for word in content.split_whitespace() {
        let length = indent.len() + current.chars().count() + 1 + word.chars().count();
        if !current.is_empty() && length >= most {
            line(text, &format!("{indent}{current}"));
            current.clear();
        }
        if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(word);
    }
    line(text, &format!("{indent}{current}"));
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// Four significant figures are more than anybody reads.
fn figure(epsilon: f64) -> String {
    if epsilon == 0.0 { "0".to_owned() } else { format!("{epsilon:.4}") }
}

#[cfg(test)]
mod tests {
    use tributary_privacy::{
        ledger::{Budget, DebitRequest, Ledger, MemoryChainStore, ReleaseKind},
        mechanism::PrivacyEvent,
    };
    use tributary_protocol::{
        error_code::{ErrorCode, Refusal},
        id::{JobId, RoundNumber},
        time::Timestamp,
    };

    use super::*;
    use crate::{
        policy::Policy,
        refusals::{Declined, RefusalFile},
        site::Site,
    };

    const DAY: u64 = 86_400_000;

    fn example() -> Statement {
        let text = "[datasets.adult]\nepsilon_max = 4.0\ndelta = 1e-5\nwindow_days = 365\n\
            units = [\"record\"]\nfamilies = [\"mlp\"]\nnoise_multiplier_min = 0.5\n\
            [datasets.fashion-mnist]\nepsilon_max = 2.0\ndelta = 1e-6\nunits = [\"record\"]\n\
            families = [\"mlp\"]\nnoise_multiplier_min = 0.5\n";
        let policy = Policy::parse(text, &Site::new("/site")).unwrap();
        let mut ledger = Ledger::open(MemoryChainStore::new(), "ash").unwrap();
        for round in 1..=12 {
            let request = DebitRequest {
                dataset: "adult".to_owned(),
                job: if round % 4 == 0 { "a-job-with-quite-a-long-name" } else { "census" }
                    .to_owned(),
                round,
                kind: ReleaseKind::Update,
                unit: "record".to_owned(),
                events: vec![PrivacyEvent::Gaussian { noise_multiplier: 8.0, count: 1 }],
                run: None,
                release: [round as u8; 32],
            };
            let budget = Budget { epsilon_max: 4.0, delta: 1e-5, window_days: Some(365) };
            ledger.debit(request, &budget, (20_000 + round) * DAY).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let file = RefusalFile::new(directory.path().join("refusals.json"));
        let refusal = Refusal::new(
            ErrorCode::PolicyForbids,
            "the job's `privacy.noise_multiplier` is 0.1, but the policy's \
             `noise_multiplier_min` is 0.5",
        );
        let remedy = "a job with `privacy.noise_multiplier` of at least 0.5".to_owned();
        let declined = Declined { refusal, remedy };
        let now = Timestamp(20_040 * DAY);
        file.add(&JobId::new("loose").unwrap(), RoundNumber(3), &declined, now).unwrap();
        Statement::new(&ledger, &policy, None, file.read().unwrap(), now).unwrap()
    }

    #[test]
    fn no_line_is_wider_than_the_screen() {
        for columns in [40, 80, 100] {
            let screen = Screen { columns, bars: true, colours: false };
            let text = statement(&example(), screen);
            let bars: Vec<&str> = text.lines().filter(|line| line.contains('▕')).collect();
            assert_eq!(bars.len(), 2, "a bar a dataset");
            for bar in bars {
                assert_eq!(bar.chars().count(), columns - 1, "{bar}");
            }
            if columns >= 80 {
                for line in text.lines() {
                    assert!(line.chars().count() <= columns, "{line}");
                }
            }
        }
    }

    #[test]
    fn without_a_terminal_there_are_words_and_no_bars() {
        let text = statement(&example(), Screen::of(false));
        assert!(!text.contains('▕') && !text.contains('\u{1b}'), "{text}");
        for wanted in [
            "adult: epsilon",
            "left of 4 at delta 1e-5",
            "counts releases since 2023-11-14 (365 days); the oldest leaves on 2025-10-05",
            "fashion-mnist: epsilon 0 spent, 2.0000 left of 2 at delta 1e-6",
            "would work: a job with",
            "the newest; `--json` has the 4 before",
            "Countersigned by the coordinator: nothing yet",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }

    #[test]
    fn the_bar_is_never_empty_once_something_is_spent() {
        let screen = Screen { columns: 80, bars: true, colours: false };
        assert!(!bar(0.0, screen).contains('▏') || !bar(0.0, screen).contains('█'));
        assert_ne!(bar(1e-9, screen), bar(0.0, screen));
        assert_eq!(bar(1.0, screen).matches('█').count(), 80 - 5 - 6);
    }
}
