//! The floating-point environment around every call into a plugin.
//!
//! A plugin that changes the rounding mode or switches subnormals off would silently change every later result of
//! the thread. So each call runs in the default environment (round to nearest even, no flushing, no traps), and
//! afterwards the control bits are compared and the caller's put back.
//!
//! Invariants: only control registers of the calling thread are read and written; every value written was either
//! read from the same register before or is the architecture's documented default.
#![expect(unsafe_code, reason = "control registers are reachable by instructions alone")]

/// Control state of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Control {
    /// MXCSR on x86-64, FPCR on AArch64.
    vector: u64,
    /// x87 control word; 0 elsewhere.
    x87: u16,
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::Control;
    use std::arch::asm;

    /// All exceptions masked, round to nearest, no FTZ and DAZ; x87 as Linux starts a process.
    pub(super) const DEFAULT: Control = Control { vector: 0x1f80, x87: 0x037f };
    /// Bits 0..=5 of MXCSR are sticky flags: computing sets them.
    const STICKY: u64 = 0x3f;

    pub(super) fn read() -> Control {
        let mut mxcsr = 0u32;
        let mut x87 = 0u16;
        // SAFETY: stores four and two bytes into variables of that size; nothing else changes.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags));
            asm!("fnstcw [{}]", in(reg) &raw mut x87, options(nostack, preserves_flags));
        }
        Control { vector: u64::from(mxcsr) & !STICKY, x87 }
    }

    pub(super) fn write(control: Control) {
        #[expect(clippy::cast_possible_truncation, reason = "MXCSR has 32 bits")]
        let mxcsr = control.vector as u32;
        let x87 = control.x87;
        // SAFETY: both values are the default or were read from the registers, so no reserved bit is set.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags));
            asm!("fldcw [{}]", in(reg) &raw const x87, options(nostack, preserves_flags));
        }
    }

    pub(super) fn describe(before: Control, after: Control) -> String {
        let mut changes = Vec::new();
        let rounding = |bits: u64| ["nearest", "down", "up", "toward zero"][usize::from(bits as u8 & 3)];
        let (old, new) = (before.vector >> 13 & 3, after.vector >> 13 & 3);
        if old != new {
            changes.push(format!("rounding {} -> {}", rounding(old), rounding(new)));
        }
        for (bit, name) in [(15, "flush-to-zero"), (6, "denormals-are-zero")] {
            if (before.vector ^ after.vector) >> bit & 1 != 0 {
                changes.push(format!("{name} {}", if after.vector >> bit & 1 == 0 { "off" } else { "on" }));
            }
        }
        if (before.vector ^ after.vector) & 0x1f80 != 0 {
            changes.push("exception masks".to_owned());
        }
        if before.x87 != after.x87 {
            changes.push(format!("x87 control word {:#06x} -> {:#06x}", before.x87, after.x87));
        }
        changes.join(", ")
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::Control;
    use std::arch::asm;

    pub(super) const DEFAULT: Control = Control { vector: 0, x87: 0 };

    pub(super) fn read() -> Control {
        let vector: u64;
        // SAFETY: reads a control register that user code may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) vector, options(nomem, nostack, preserves_flags)) };
        Control { vector, x87: 0 }
    }

    pub(super) fn write(control: Control) {
        // SAFETY: the value is the default or was read from the register.
        unsafe { asm!("msr fpcr, {}", in(reg) control.vector, options(nomem, nostack, preserves_flags)) };
    }

    pub(super) fn describe(before: Control, after: Control) -> String {
        format!("FPCR {:#x} -> {:#x}", before.vector, after.vector)
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch {
    use super::Control;

    pub(super) const DEFAULT: Control = Control { vector: 0, x87: 0 };

    pub(super) fn read() -> Control {
        DEFAULT
    }

    pub(super) fn write(_: Control) {}

    pub(super) fn describe(_: Control, _: Control) -> String {
        String::new()
    }
}

/// Runs `call` in the default environment and puts the caller's back. The second value tells what `call` changed.
pub(crate) fn guarded<R>(call: impl FnOnce() -> R) -> (R, Option<String>) {
    /// Puts the caller's environment back even if `call` unwinds.
    struct Restore(Control);
    impl Drop for Restore {
        fn drop(&mut self) {
            if arch::read() != self.0 {
                arch::write(self.0);
            }
        }
    }
    let caller = arch::read();
    let restore = Restore(caller);
    if caller != arch::DEFAULT {
        arch::write(arch::DEFAULT);
    }
    let result = call();
    let after = arch::read();
    drop(restore);
    (result, (after != arch::DEFAULT).then(|| arch::describe(arch::DEFAULT, after)))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn names_and_undoes_a_changed_rounding_mode() {
        let ((), change) = guarded(|| arch::write(Control { vector: 0x1f80 | 3 << 13, ..arch::DEFAULT }));
        assert_eq!(change.as_deref(), Some("rounding nearest -> toward zero"));
        assert_eq!(arch::read(), arch::DEFAULT);
    }

    #[test]
    fn names_flush_to_zero_and_x87() {
        let ((), change) = guarded(|| arch::write(Control { vector: 0x1f80 | 1 << 15, x87: 0x027f }));
        let change = change.unwrap();
        assert!(change.contains("flush-to-zero on") && change.contains("x87"), "{change}");
        assert_eq!(arch::read(), arch::DEFAULT);
    }

    #[test]
    fn a_call_starts_in_the_default_environment_whatever_the_caller_has() {
        let caller = Control { vector: 0x1f80 | 1 << 13, ..arch::DEFAULT };
        arch::write(caller);
        let (inside, change) = guarded(arch::read);
        let after = arch::read();
        arch::write(arch::DEFAULT);
        assert_eq!((inside, after, change), (arch::DEFAULT, caller, None));
    }

    #[test]
    fn computing_inexactly_is_no_change() {
        let (_, change) = guarded(|| std::hint::black_box(1.0f32) / std::hint::black_box(3.0f32));
        assert_eq!(change, None);
    }
}
