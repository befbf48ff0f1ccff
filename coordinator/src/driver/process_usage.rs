//! What the system says this process uses.

use std::fs;

/// Memory, time and files of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessUsage {
    /// In memory now.
    pub(super) resident_bytes: u64,
    /// Of the processor, since the start.
    pub(super) processor_s: u64,
    /// Open now, sockets included.
    pub(super) open_files: u64,
}

/// Clock ticks of a second in `/proc`; the same on every Linux that Rust runs on.
const TICKS_PER_S: u64 = 100;

impl ProcessUsage {
    /// Reads it from `/proc`; `None` where there is none.
    pub(super) fn read() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let resident_kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident_kib: u64 = resident_kib.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name before the last parenthesis may hold anything, spaces too.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let processor_s = (ticks()? + ticks()?) / TICKS_PER_S;
        let open_files = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        Some(Self { resident_bytes: resident_kib * 1024, processor_s, open_files })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_open_files() {
        let usage = ProcessUsage::read().expect("Linux has /proc");
        assert!(usage.resident_bytes > 1 << 20 && usage.open_files >= 3, "{usage:?}");
    }
}
