//! The host as it stands: space, memory, processors.

use proto::v1::NodeMetrics;
use std::path::Path;
use std::sync::Mutex;

/// Reads the host's figures; keeps what is needed to say how busy it was since the last time.
#[derive(Default)]
pub(super) struct Host {
    cpu: Mutex<Cpu>,
}

#[derive(Clone, Copy, Default)]
struct Cpu {
    busy: u64,
    total: u64,
}

impl Host {
    /// The figures now. What the kernel does not tell is zero.
    pub fn metrics(&self, data: &Path) -> NodeMetrics {
        let space = nix::sys::statvfs::statvfs(data).ok();
        let bytes = |blocks: u64| {
            blocks.saturating_mul(
                space
                    .as_ref()
                    .map_or(0, nix::sys::statvfs::Statvfs::fragment_size),
            )
        };
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let memory = read("/proc/meminfo");
        NodeMetrics {
            data_total_bytes: bytes(space.as_ref().map_or(0, nix::sys::statvfs::Statvfs::blocks)),
            data_free_bytes: bytes(
                space
                    .as_ref()
                    .map_or(0, nix::sys::statvfs::Statvfs::blocks_available),
            ),
            memory_total_bytes: kib(&memory, "MemTotal:"),
            memory_available_bytes: kib(&memory, "MemAvailable:"),
            cpus: std::thread::available_parallelism()
                .map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            cpu_permille: self.busy(cpu(&read("/proc/stat"))),
        }
    }

    fn busy(&self, now: Cpu) -> u32 {
        let mut last = self.cpu.lock().unwrap_or_else(|e| e.into_inner());
        let before = std::mem::replace(&mut *last, now);
        let total = now.total.saturating_sub(before.total);
        let busy = now.busy.saturating_sub(before.busy);
        let permille = (busy * 1000).checked_div(total).unwrap_or(0);
        u32::try_from(permille).unwrap_or(1000)
    }
}

/// A line of /proc/meminfo in bytes.
fn kib(memory: &str, key: &str) -> u64 {
    let line = memory.lines().find_map(|l| l.strip_prefix(key));
    let number = line.and_then(|l| l.split_whitespace().next());
    number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The first line of /proc/stat: user nice system idle iowait irq softirq steal.
fn cpu(stat: &str) -> Cpu {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|t| t.parse().ok())
        .collect();
    let total: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Cpu {
        busy: total - idle,
        total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_understood() {
        assert_eq!(
            kib("MemTotal:       16 kB\nMemFree: 3 kB\n", "MemTotal:"),
            16 << 10
        );
        let host = Host::default();
        host.busy(cpu("cpu  10 0 10 70 10 0 0 0 0 0\n"));
        // 50 ticks later, of which 20 were idle
        assert_eq!(host.busy(cpu("cpu  30 0 20 85 15 0 0 0 0 0\n")), 600);
        assert_eq!(kib("", "MemTotal:"), 0);
    }
}
