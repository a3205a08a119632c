//! What kind of machine this is, and how busy.

use std::path::Path;

use crate::rpc::types::node::HostStats;

/// The platform in the protocol's words (`client.platform`, `client.deviceFamily`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: &'static str,
    pub family: &'static str,
    /// The kernel's release, such as `6.8.0`.
    pub kernel: String,
    /// The machine architecture, such as `x86_64`.
    pub arch: String,
}

/// The facts of this machine's platform.
pub fn platform() -> Platform {
    let names = rustix::system::uname();
    let (os, family) = if cfg!(target_os = "macos") {
        ("macos", "Mac")
    } else {
        ("linux", "Linux")
    };
    Platform {
        os,
        family,
        kernel: names.release().to_string_lossy().into_owned(),
        arch: names.machine().to_string_lossy().into_owned(),
    }
}

/// The kernel's node name; `localhost` if it has none.
pub fn host_name() -> String {
    let names = rustix::system::uname();
    let name = names.nodename().to_string_lossy().into_owned();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

/// How busy this machine is now; `disk` is any path on the file system to be measured. What the system does not tell is
/// left out.
pub fn host_stats(disk: &Path) -> HostStats {
    let (load_average, memory) = load_and_memory();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let disk = rustix::fs::statvfs(disk).ok();
    HostStats {
        cpu_count: Some(cpus as u64),
        load_average: load_average.map(Vec::from),
        memory_total_bytes: memory.map(|(total, _)| total),
        memory_free_bytes: memory.map(|(_, free)| free),
        disk_total_bytes: disk
            .as_ref()
            .map(|fs| fs.f_frsize.saturating_mul(fs.f_blocks)),
        disk_available_bytes: disk.map(|fs| fs.f_frsize.saturating_mul(fs.f_bavail)),
        updated_at_ms: None,
    }
}

type LoadAndMemory = (Option<[f64; 3]>, Option<(u64, u64)>);

#[cfg(target_os = "linux")]
fn load_and_memory() -> LoadAndMemory {
    let info = rustix::system::sysinfo();
    // The kernel counts load in units of 1/65536 (sysinfo(2)); two decimals are what `uptime` shows.
    let load = info.loads.map(|load| {
        let load = u32::try_from(load).unwrap_or(u32::MAX);
        (f64::from(load) / 65_536.0 * 100.0).round() / 100.0
    });
    let unit = u64::from(info.mem_unit.max(1));
    let total = info.totalram.saturating_mul(unit);
    let free = memory_available().unwrap_or_else(|| info.freeram.saturating_mul(unit));
    (Some(load), Some((total, free)))
}

#[cfg(not(target_os = "linux"))]
fn load_and_memory() -> LoadAndMemory {
    (None, None)
}

/// `MemAvailable`, which counts the page cache that can be given back, unlike sysinfo's `freeram`.
#[cfg(target_os = "linux")]
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// This process's resident memory in bytes, as the kernel counts it.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platform_and_host_are_named() {
        let platform = platform();
        assert!(!platform.kernel.is_empty() && !platform.arch.is_empty());
        assert!(!host_name().is_empty());
        #[cfg(target_os = "linux")]
        assert_eq!((platform.os, platform.family), ("linux", "Linux"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn host_stats_have_the_recorded_keys() {
        let stats = host_stats(Path::new("/"));
        let json = serde_json::to_value(&stats).unwrap();
        for key in [
            "cpuCount",
            "loadAverage",
            "memoryTotalBytes",
            "memoryFreeBytes",
            "diskTotalBytes",
            "diskAvailableBytes",
        ] {
            assert!(json.get(key).is_some(), "{key} in {json}");
        }
        assert!(stats.memory_free_bytes <= stats.memory_total_bytes);
        assert!(stats.disk_available_bytes <= stats.disk_total_bytes);
    }
}
