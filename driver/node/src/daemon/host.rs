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
        let disks = disks(&read("/proc/diskstats"));
        let network = network(&read("/proc/net/dev"));
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
            disk_read_bytes: disks.0,
            disk_written_bytes: disks.1,
            network_received_bytes: network.0,
            network_sent_bytes: network.1,
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

/// Bytes that whole disks read and wrote: partitions and devices on top of others would count twice.
fn disks(stat: &str) -> (u64, u64) {
    const SECTOR: u64 = 512;
    let whole = |name: &str| {
        let partition = name.ends_with(|c: char| c.is_ascii_digit());
        match name {
            n if n.starts_with("nvme") => !n.contains('p'),
            n if ["sd", "vd", "xvd", "hd"].iter().any(|p| n.starts_with(p)) => !partition,
            _ => false,
        }
    };
    let of_disks = stat.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        whole(words.get(2)?).then_some(())?;
        let number = |i: usize| words.get(i)?.parse::<u64>().ok();
        Some((number(5)? * SECTOR, number(9)? * SECTOR))
    });
    of_disks.fold((0, 0), |sum, d| (sum.0 + d.0, sum.1 + d.1))
}

/// Bytes that came and went by every interface but the loopback.
fn network(stat: &str) -> (u64, u64) {
    let of_interfaces = stat.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        (name.trim() != "lo").then_some(())?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let number = |i: usize| words.get(i)?.parse::<u64>().ok();
        Some((number(0)?, number(8)?))
    });
    of_interfaces.fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1))
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
        let stat = " 254 0 vda 9 0 10 0 9 0 20 0 0 0 0\n 254 1 vda1 9 0 10 0 9 0 20 0 0 0 0\n \
                    259 0 nvme0n1 1 0 1 0 1 0 2 0\n 7 0 loop0 1 0 99 0 1 0 99 0\n";
        assert_eq!(disks(stat), (11 * 512, 22 * 512));
        let dev = "Inter-|   Receive\n face |bytes\n lo: 5 0 0 0 0 0 0 0 5 0\n \
                   eth0: 7 0 0 0 0 0 0 0 3 0 0 0 0 0 0 0\n";
        assert_eq!(network(dev), (7, 3));
    }
}
