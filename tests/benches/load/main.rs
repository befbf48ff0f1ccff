//! A coordinator under load: real processes, and real QUIC connections that one process multiplexes.
//!
//! `cargo bench -p tributary-tests --bench load [-- --connections N --parameters P]`, once the
//! coordinator is built as a release; `cargo xtask bench` does both. Agents enrol, download the base,
//! accept, and upload a lattice vector of the right length that is made, not trained.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

mod agent;
mod round;
mod sums;

use round::Figures;

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Options {
    connections: usize,
    parameters: usize,
}

/// The smaller of the two rounds, which shows what the larger one needs for a connection.
const FEW: usize = 16;

/// What to measure; `None` if another benchmark is meant.
fn options() -> Option<Options> {
    let mut options = Options { connections: 100, parameters: 1_000_000 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let text = arguments.next().unwrap_or_default();
            text.replace('_', "")
                .parse()
                .unwrap_or_else(|_| panic!("{argument} needs a whole number, and not {text:?}"))
        };
        match argument.as_str() {
            "--connections" => options.connections = value(),
            "--parameters" => options.parameters = value(),
            // Cargo's own flag, and names of benchmarks, which all of them are given.
            "--bench" | "load" => {}
            name if !name.starts_with('-') => return None,
            unknown => panic!("{unknown} is not known; there are --connections and --parameters"),
        }
    }
    Some(options)
}

fn main() {
    let Some(Options { connections, parameters }) = options() else { return };
    sums::report(parameters);
    let few = round::measure(FEW, parameters);
    let many = round::measure(connections.max(FEW + 1), parameters);
    println!("\na round of {parameters} parameters");
    println!("{:42} {:>12} {:>12}", "connections", few.connections, many.connections);
    let row = |name: &str, of: &dyn Fn(&Figures) -> f64, digits: usize| {
        println!("{name:42} {:>12.digits$} {:>12.digits$}", of(&few), of(&many));
    };
    let each = |of: fn(&Figures) -> f64| move |it: &Figures| of(it) / it.connections as f64;
    row("update, MB", &|it| it.update_bytes as f64 / 1e6, 2);
    row("base model, MB", &|it| it.base_bytes as f64 / 1e6, 2);
    row("coordinator, idle, MiB", &|it| mib(it.idle), 1);
    row("coordinator, all connected, MiB", &|it| mib(it.connected), 1);
    row("coordinator, largest in the round, MiB", &|it| mib(it.peak), 1);
    row("coordinator, after the round, MiB", &|it| mib(it.after), 1);
    row(
        "connected, KiB a connection",
        &each(|it| it.connected.saturating_sub(it.idle) as f64 / 1024.0),
        1,
    );
    row("connecting, processor ms a connection", &each(|it| it.connecting_processor * 1e3), 2);
    row("round, processor ms an agent, coordinator", &each(|it| it.coordinator_processor * 1e3), 2);
    row("round, processor ms an agent, agents", &each(|it| it.agents_processor * 1e3), 2);
    row(
        "round, processor ms an agent, both",
        &each(|it| (it.coordinator_processor + it.agents_processor) * 1e3),
        2,
    );
    row("round, wall s", &|it| it.round_seconds, 2);
    let more = (many.connections - few.connections) as f64;
    let grown = |of: fn(&Figures) -> u64| (of(&many) as f64 - of(&few) as f64) / more / 1024.0;
    println!(
        "{:42} {:>25.1}",
        "KiB for each further connection, connected",
        grown(|it| it.connected)
    );
    println!("{:42} {:>25.1}", "KiB for each further connection, in a round", grown(|it| it.peak));
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
