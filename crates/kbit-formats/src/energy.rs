//! Energy of the processors, where Linux tells it: the running average power limit counters of Intel's and AMD's processors, which
//! stand below `/sys/class/powercap` ("Power Capping Framework" in the kernel's documentation). Most systems let only the
//! administrator read them, and virtual machines have none.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const POWERCAP: &str = "/sys/class/powercap";

/// Energy since a moment, of all processor packages and all that runs on them.
pub struct EnergyMeter {
    packages: Vec<Package>,
}

struct Package {
    folder: PathBuf,
    /// Microjoules after which the counter begins anew.
    range: u64,
    seen: Mutex<Seen>,
}

/// Of a counter, in microjoules.
struct Seen {
    last: u64,
    total: u64,
}

impl EnergyMeter {
    /// Begins to measure.
    #[must_use]
    pub fn start() -> Self {
        Self::at(Path::new(POWERCAP))
    }

    fn at(root: &Path) -> Self {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let mut packages: Vec<Package> = entries.filter_map(|entry| Package::at(entry.path())).collect();
        packages.sort_by(|a, b| a.folder.cmp(&b.folder));
        Self { packages }
    }

    /// Joules since the beginning; `None` where the system does not tell. A counter begins anew after some minutes at full power: ask at
    /// least once a minute, so that no such time is missed.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "joules for people")]
    pub fn joules(&self) -> Option<f64> {
        if self.packages.is_empty() {
            return None;
        }
        let spent: Option<Vec<u64>> = self.packages.iter().map(Package::spent).collect();
        Some(spent?.iter().sum::<u64>() as f64 / 1e6)
    }
}

impl Package {
    /// A processor package; `None` of what else stands there: parts of packages, the whole platform, what may not be read.
    fn at(folder: PathBuf) -> Option<Self> {
        let name = std::fs::read_to_string(folder.join("name")).ok()?;
        if !name.starts_with("package-") {
            return None;
        }
        let last = number(&folder, "energy_uj")?;
        let range = number(&folder, "max_energy_range_uj")?;
        Some(Self { folder, range, seen: Mutex::new(Seen { last, total: 0 }) })
    }

    fn spent(&self) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = number(&self.folder, "energy_uj")?;
        let since = now.checked_sub(seen.last);
        let since = since.unwrap_or_else(|| self.range.saturating_sub(seen.last).saturating_add(now));
        *seen = Seen { last: now, total: seen.total.saturating_add(since) };
        Some(seen.total)
    }
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::EnergyMeter;
    use std::fs;

    #[test]
    fn packages_are_added_up_and_counters_may_begin_anew() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(EnergyMeter::at(&root.path().join("none")).joules(), None);
        assert_eq!(EnergyMeter::at(root.path()).joules(), None);
        let set = |zone: &str, file: &str, text: &str| {
            fs::create_dir_all(root.path().join(zone)).unwrap();
            fs::write(root.path().join(zone).join(file), text).unwrap();
        };
        for (zone, name, energy) in [
            ("intel-rapl:0", "package-0\n", "1000000\n"),
            ("intel-rapl:0:0", "core\n", "5\n"),
            ("intel-rapl:1", "package-1\n", "9000000\n"),
            ("intel-rapl:2", "psys\n", "7\n"),
        ] {
            set(zone, "name", name);
            set(zone, "energy_uj", energy);
            set(zone, "max_energy_range_uj", "10000000\n");
        }
        let meter = EnergyMeter::at(root.path());
        assert_eq!(meter.joules(), Some(0.0));
        set("intel-rapl:0", "energy_uj", "3500000\n");
        set("intel-rapl:0:0", "energy_uj", "900\n");
        set("intel-rapl:1", "energy_uj", "500000\n");
        assert_eq!(meter.joules(), Some(4.0));
        set("intel-rapl:1", "energy_uj", "400000\n");
        assert_eq!(meter.joules(), Some(13.9), "a second time round");
        set("intel-rapl:1", "energy_uj", "?\n");
        assert_eq!(meter.joules(), None);
    }
}
