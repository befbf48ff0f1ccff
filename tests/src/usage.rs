//! What a process uses, as the kernel counts it.

use std::{fs, path::PathBuf};

/// Ticks of processor time a second, on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    process: u32,
}

impl Usage {
    /// Looks at a process.
    #[must_use]
    pub const fn of(process: u32) -> Self {
        Self { process }
    }

    /// Looks at this process.
    #[must_use]
    pub fn own() -> Self {
        Self::of(std::process::id())
    }

    /// Memory that is resident, in bytes.
    ///
    /// # Panics
    /// If the process is gone.
    #[must_use]
    pub fn resident_bytes(self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most memory that was resident since [`Self::reset_peak`], in bytes.
    ///
    /// # Panics
    /// If the process is gone.
    #[must_use]
    pub fn peak_bytes(self) -> u64 {
        self.status("VmHWM:")
    }

    /// Forgets the peak.
    ///
    /// # Panics
    /// If the process is somebody else's.
    pub fn reset_peak(self) {
        fs::write(self.file("clear_refs"), "5").expect("the own child");
    }

    /// Processor time of all its threads, in seconds, in steps of 10 ms.
    ///
    /// # Panics
    /// If the process is gone.
    #[must_use]
    pub fn processor_seconds(self) -> f64 {
        let stat = fs::read_to_string(self.file("stat")).expect("a running process");
        // The name before may hold anything, spaces and brackets included.
        let (_, fields) = stat.rsplit_once(')').expect("the name is in brackets");
        let ticks = |index: usize| {
            let field = fields.split_whitespace().nth(index).expect("it has 52 fields");
            field.parse::<u64>().expect("a number") as f64
        };
        (ticks(11) + ticks(12)) / TICKS_PER_SECOND
    }

    /// Open files and sockets.
    ///
    /// # Panics
    /// If the process is gone.
    #[must_use]
    pub fn open_files(self) -> usize {
        fs::read_dir(self.file("fd")).expect("a running process").count()
    }

    fn status(self, key: &str) -> u64 {
        let status = fs::read_to_string(self.file("status")).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a known key");
        let kibibytes = line.split_whitespace().next().expect("a number");
        kibibytes.parse::<u64>().expect("a number") << 10
    }

    fn file(self, name: &str) -> PathBuf {
        ["/proc", &self.process.to_string(), name].iter().collect()
    }
}
