//! Looks at a shared library without running any of it: is it for this machine, does it export the entry symbol,
//! does it ask for nothing that a plugin must not have.

use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Architecture, BinaryFormat, Endianness, Object, ObjectKind, ObjectSymbol};
use serde::Serialize;

/// Name of the entry symbol; the ABI's major version is part of it.
pub const ENTRY_SYMBOL: &str = "kbit_plugin_entry_v1";
const ENTRY_PREFIX: &str = "kbit_plugin_entry_v";
/// A plugin file larger than this is refused before it is read.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// What the file tells about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Architecture, as `x86_64`.
    pub architecture: String,
    /// Libraries that the dynamic linker will load with it.
    pub needs: Vec<String>,
}

/// The architecture that this program runs on.
fn native() -> (Architecture, Endianness, bool) {
    let architecture = if cfg!(target_arch = "x86_64") {
        Architecture::X86_64
    } else if cfg!(target_arch = "aarch64") {
        Architecture::Aarch64
    } else if cfg!(target_arch = "x86") {
        Architecture::I386
    } else if cfg!(target_arch = "riscv64") {
        Architecture::Riscv64
    } else if cfg!(target_arch = "powerpc64") {
        Architecture::PowerPc64
    } else if cfg!(target_arch = "s390x") {
        Architecture::S390x
    } else if cfg!(target_arch = "loongarch64") {
        Architecture::LoongArch64
    } else if cfg!(target_arch = "arm") {
        Architecture::Arm
    } else {
        Architecture::Unknown
    };
    let endianness = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
    (architecture, endianness, cfg!(target_pointer_width = "64"))
}

/// Checks the bytes of a plugin file.
///
/// # Errors
/// The reason in words, ending with the cure.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, String> {
    if bytes.is_empty() {
        return Err("the file is empty; build it again".to_owned());
    }
    let native_format = if cfg!(target_os = "macos") {
        BinaryFormat::MachO
    } else if cfg!(windows) {
        BinaryFormat::Pe
    } else {
        BinaryFormat::Elf
    };
    let file = object::File::parse(bytes).map_err(|error| {
        if bytes.starts_with(b"\x7fELF") {
            format!("a damaged or cut-off ELF file ({error}); build or fetch it again")
        } else {
            "neither an ELF file nor another library format; give the shared library (.so) that the build made"
                .to_owned()
        }
    })?;
    if file.format() != native_format {
        return Err(format!(
            "a {:?} file, and this system loads {native_format:?}; build it for this system",
            file.format()
        ));
    }
    let (architecture, endianness, is_64) = native();
    if file.architecture() != architecture || file.endianness() != endianness || file.is_64() != is_64 {
        let machine = match file.architecture() {
            Architecture::Unknown => elf_machine(bytes),
            known => format!("{known:?}"),
        };
        return Err(format!(
            "built for {machine} ({} bits, {:?} endian), and this kbit runs on {architecture:?} ({} bits, {endianness:?} \
             endian); build it for this machine",
            if file.is_64() { 64 } else { 32 },
            file.endianness(),
            if is_64 { 64 } else { 32 }
        ));
    }
    if file.kind() != ObjectKind::Dynamic {
        return Err(format!(
            "{}; link it as a shared library (cc -shared -fPIC, or crate-type = [\"cdylib\"])",
            match file.kind() {
                ObjectKind::Executable => "an executable",
                ObjectKind::Relocatable => "an object file that is not linked yet",
                ObjectKind::Core => "a core dump",
                _ => "not a shared library",
            }
        ));
    }
    let needs = match &file {
        object::File::Elf64(elf) => segments(elf.elf_header(), bytes)?,
        object::File::Elf32(elf) => segments(elf.elf_header(), bytes)?,
        _ => Vec::new(),
    };
    entry(&file)?;
    Ok(Inspection { architecture: format!("{architecture:?}").to_lowercase(), needs })
}

fn elf_machine(bytes: &[u8]) -> String {
    match bytes.get(18..20) {
        Some(&[low, high]) => format!("ELF machine {}", u16::from_le_bytes([low, high])),
        _ => "an unknown machine".to_owned(),
    }
}

/// The entry symbol, or why there is none.
fn entry(file: &object::File<'_>) -> Result<(), String> {
    let mut other = None;
    for symbol in file.dynamic_symbols() {
        let Ok(name) = symbol.name() else { continue };
        if !symbol.is_definition() || !name.starts_with(ENTRY_PREFIX) {
            continue;
        }
        if name == ENTRY_SYMBOL {
            return Ok(());
        }
        other = Some(name.to_owned());
    }
    Err(match other {
        Some(name) => format!(
            "it exports {name}, which is another major version of the plugin ABI; this kbit loads {ENTRY_SYMBOL}: use a \
             matching kbit or plugin"
        ),
        None => format!(
            "it does not export {ENTRY_SYMBOL}; a Rust plugin needs export_plugin!, a C plugin needs KBIT_EXPORT on that \
             function"
        ),
    })
}

/// Checks the program headers and lists the needed libraries.
fn segments<H: FileHeader<Endian = Endianness>>(header: &H, bytes: &[u8]) -> Result<Vec<String>, String> {
    let damaged = |error: object::Error| format!("a damaged ELF file ({error}); build or fetch it again");
    let endian = header.endian().map_err(damaged)?;
    let headers = header.program_headers(endian, bytes).map_err(damaged)?;
    let mut stack = None;
    for segment in headers {
        let flags = segment.p_flags(endian);
        match segment.p_type(endian) {
            elf::PT_GNU_STACK => stack = Some(flags),
            elf::PT_LOAD => {
                if segment.data(endian, bytes).is_err() {
                    return Err(
                        "a cut-off ELF file: a segment reaches past its end; build or fetch it again"
                            .to_owned(),
                    );
                }
                if flags & elf::PF_W != 0 && flags & elf::PF_X != 0 {
                    return Err(
                        "it asks for memory that is writable and executable at once; link it without \
                                -Wl,-N and without such sections"
                            .to_owned(),
                    );
                }
            }
            _ => {}
        }
    }
    // On these architectures a library without the header asks for an executable stack by silence.
    let silence_is_yes = cfg!(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm"));
    if stack.map_or(silence_is_yes, |flags| flags & elf::PF_X != 0) {
        return Err(
            "it asks for an executable stack; link it with -Wl,-z,noexecstack (assembly files need a \
                    .note.GNU-stack section)"
                .to_owned(),
        );
    }
    needed(header, endian, bytes).map_err(damaged)
}

fn needed<H: FileHeader<Endian = Endianness>>(
    header: &H,
    endian: Endianness,
    bytes: &[u8],
) -> Result<Vec<String>, object::Error> {
    use object::read::elf::Dyn;
    let sections = header.sections(endian, bytes)?;
    let mut names = Vec::new();
    if let Some((entries, strings)) = sections.dynamic(endian, bytes)? {
        let strings = sections.strings(endian, bytes, strings)?;
        for entry in entries {
            if entry.tag(endian) == elf::DT_NEEDED
                && let Ok(name) = entry.string(endian, strings)
            {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test's own executable: a real ELF file of this machine.
    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn refuses_what_is_no_library() {
        assert!(inspect(b"").unwrap_err().contains("empty"));
        assert!(inspect(b"#!/bin/sh\n").unwrap_err().contains("neither an ELF file"));
        assert!(inspect(b"\x7fELF\x02\x01\x01").unwrap_err().contains("cut-off"));
        assert!(inspect(&own()).unwrap_err().contains("does not export") || inspect(&own()).is_err());
    }

    #[test]
    fn refuses_every_truncation_of_a_real_file() {
        let whole = own();
        for part in [4, 16, 63, 64, 100, 1000, whole.len() / 2] {
            assert!(inspect(&whole[..part]).is_err(), "{part} bytes");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn names_the_architecture_of_a_foreign_file() {
        let mut bytes = own();
        bytes[18..20].copy_from_slice(&elf::EM_AARCH64.to_le_bytes());
        let reason = inspect(&bytes).unwrap_err();
        assert!(reason.contains("Aarch64") && reason.contains("X86_64"), "{reason}");
        bytes[18..20].copy_from_slice(&9999u16.to_le_bytes());
        assert!(inspect(&bytes).unwrap_err().contains("ELF machine 9999"));
    }
}
