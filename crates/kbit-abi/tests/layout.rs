//! The Rust mirror has the layout and the constants that a C compiler gives the header.
//!
//! One list below names every struct with its fields and every constant. From it come a C program that prints sizes,
//! offsets and values, the same lines as Rust sees them, and patterns that stop compiling when a field is missing.

mod compiler;

use compiler::{Language, compile, compiler, run};
use kbit_abi as abi;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};

/// Size of the field that `field` reaches.
fn field_bytes<T, F>(_: impl Fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! structs {
    ($($rust:ident = $c:literal { $($field:ident),* })*) => {
        /// Struct, C name, and lines `C name.field offset bytes` in Rust.
        fn rust_structs() -> Vec<String> {
            let mut lines = Vec::new();
            $(
                lines.push(format!("{} {} {}", $c, size_of::<abi::$rust>(), align_of::<abi::$rust>()));
                $(
                    let bytes = field_bytes(|it: &abi::$rust| &it.$field);
                    lines.push(format!("{}.{} {} {bytes}", $c, c_name(stringify!($field)), offset_of!(abi::$rust, $field)));
                )*
                // A field of the mirror that the list lacks does not compile.
                let _ = |it: abi::$rust| { let abi::$rust { $($field: _),* } = it; };
            )*
            lines
        }

        /// C statements that print the same lines.
        fn c_structs() -> String {
            let mut text = String::new();
            $(
                let _ = writeln!(text, "  {{ struct aligned {{ char c; {c} it; }}; printf(\"{c} %zu %zu\\n\", sizeof({c}), offsetof(struct aligned, it)); }}", c = $c);
                $(
                    let field = c_name(stringify!($field));
                    let _ = writeln!(text, "  printf(\"{c}.{field} %zu %zu\\n\", offsetof({c}, {field}), sizeof((({c} *)0)->{field}));", c = $c);
                )*
            )*
            text
        }

        const C_STRUCTS: &[&str] = &[$($c),*];
    };
}

/// `r#type` is `type` in C.
fn c_name(field: &str) -> &str {
    field.trim_start_matches("r#")
}

structs! {
    Str = "kbit_str" { ptr, len }
    Buf = "kbit_buf" { ptr, bytes }
    CBuf = "kbit_cbuf" { ptr, bytes }
    Rows = "kbit_rows" { first, count }
    Err = "kbit_err" { text, cap, len }
    Part = "kbit_part" { name, dtype, flags, head_bytes, group_bytes, reserved }
    Value = "kbit_value" { size, key, r#type, i, f, s, numbers, n_numbers }
    Param = "kbit_param" { size, key, doc, unit, r#type, required, fallback, min, max, choices, n_choices }
    Matrix = "kbit_matrix" { size, tensor, rows, cols, slice, n_slices, data, row_stride }
    Aux = "kbit_aux" { size, diag, hessian, hessian_ld, producer_std, n_samples, seed }
    Plan = "kbit_plan" {
        size, parts, n_parts, row_group, flags, aux_required, aux_used, stat_bytes, rows_hint, scratch_bytes,
        decode_scratch_bytes, job_bytes_hint
    }
    Host = "kbit_host" { size, abi_minor, isa_limit, name, version, ctx, log, cancelled, parallel_for, extension }
    Scheme = "kbit_scheme" {
        size, id, title, doc, citation, ggml_type, params, n_params, open, close, plan, begin, observe, prepare, encode,
        end, open_tensor, close_tensor, decode, extension
    }
    ExtRuntime = "kbit_ext_runtime" { size, isa, act_kind, act_key, act_bytes, act_pack, dot, decode_i8 }
    Plugin = "kbit_plugin" { size, abi_minor, id, version, vendor, url, license, schemes, n_schemes, self_test }
}

/// Every constant of the header, and what the mirror makes of it.
const CONSTANTS: &[(&str, i64)] = &[
    ("KBIT_ABI_MINOR", abi::ABI_MINOR as i64),
    ("KBIT_OK", abi::OK as i64),
    ("KBIT_EPARAM", abi::EPARAM as i64),
    ("KBIT_EUNSUPPORTED", abi::EUNSUPPORTED as i64),
    ("KBIT_ENUMERIC", abi::ENUMERIC as i64),
    ("KBIT_EMISSING", abi::EMISSING as i64),
    ("KBIT_ECANCELLED", abi::ECANCELLED as i64),
    ("KBIT_EINTERNAL", abi::EINTERNAL as i64),
    ("KBIT_EPANIC", abi::EPANIC as i64),
    ("KBIT_U8", abi::DTYPE_U8 as i64),
    ("KBIT_I8", abi::DTYPE_I8 as i64),
    ("KBIT_I16", abi::DTYPE_I16 as i64),
    ("KBIT_I32", abi::DTYPE_I32 as i64),
    ("KBIT_F16", abi::DTYPE_F16 as i64),
    ("KBIT_BF16", abi::DTYPE_BF16 as i64),
    ("KBIT_F32", abi::DTYPE_F32 as i64),
    ("KBIT_AUX_DIAG", abi::AUX_DIAG as i64),
    ("KBIT_AUX_HESSIAN", abi::AUX_HESSIAN as i64),
    ("KBIT_AUX_PRODUCER", abi::AUX_PRODUCER as i64),
    ("KBIT_WHOLE_MATRIX", abi::WHOLE_MATRIX as i64),
    ("KBIT_BOOL", abi::PARAM_BOOL as i64),
    ("KBIT_INT", abi::PARAM_INT as i64),
    ("KBIT_FLOAT", abi::PARAM_FLOAT as i64),
    ("KBIT_STRING", abi::PARAM_STRING as i64),
    ("KBIT_CHOICE", abi::PARAM_CHOICE as i64),
    ("KBIT_NUMBERS", abi::PARAM_NUMBERS as i64),
    ("KBIT_ISA_BEST", abi::ISA_BEST as i64),
    ("KBIT_ISA_PORTABLE", abi::ISA_PORTABLE as i64),
    ("KBIT_ISA_AVX2", abi::ISA_AVX2 as i64),
    ("KBIT_ISA_AVX512", abi::ISA_AVX512 as i64),
    ("KBIT_ACT_F32", abi::ACT_F32 as i64),
    ("KBIT_ACT_BF16", abi::ACT_BF16 as i64),
    ("KBIT_ACT_INT8", abi::ACT_INT8 as i64),
];

#[test]
fn sizes_offsets_and_constants_are_those_of_the_c_compiler() {
    let mut program = String::from("#include \"kbit_plugin.h\"\n#include <stdio.h>\nint main(void) {\n");
    program.push_str(&c_structs());
    for (name, _) in CONSTANTS {
        let _ = writeln!(program, "  printf(\"{name} %ld\\n\", (long)({name}));");
    }
    program.push_str("  return 0;\n}\n");
    let Some(binary) = compile("layout", &program, Language::C99, &[]) else { return };

    let mut expected = rust_structs();
    expected.extend(CONSTANTS.iter().map(|(name, value)| format!("{name} {value}")));
    let printed = run(&binary);
    let printed: Vec<&str> = printed.lines().collect();
    assert_eq!(printed, expected, "left: the C compiler, right: crates/kbit-abi/src/lib.rs");
}

/// Comments away, so that words in them do not count.
fn header_without_comments() -> String {
    let mut text = String::new();
    for (index, piece) in abi::HEADER.split("/*").enumerate() {
        text.push_str(if index == 0 { piece } else { piece.split_once("*/").map_or("", |(_, rest)| rest) });
    }
    text
}

#[test]
fn the_lists_of_this_test_hold_everything_that_the_header_declares() {
    let header = header_without_comments();
    let structs: BTreeSet<&str> = header
        .split("typedef struct ")
        .skip(1)
        .filter_map(|rest| rest.split([' ', '\n', '{']).next())
        .collect();
    // Opaque: no layout to compare.
    let opaque = ["kbit_state", "kbit_job", "kbit_tensor"];
    let listed: BTreeSet<&str> = C_STRUCTS.iter().copied().chain(opaque).collect();
    assert_eq!(structs, listed);

    let enums: BTreeSet<&str> = header
        .split("enum {")
        .skip(1)
        .flat_map(|rest| rest.split('}').next().unwrap_or_default().split(','))
        .filter_map(|item| item.split('=').next())
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let listed: BTreeSet<&str> =
        CONSTANTS.iter().map(|(name, _)| *name).filter(|name| *name != "KBIT_ABI_MINOR").collect();
    assert_eq!(enums, listed);
    assert!(header.contains(&format!("#define KBIT_ABI_MINOR {}u", abi::ABI_MINOR)));
    assert!(header.contains(&format!("*{}(const kbit_host *host, kbit_err *err)", abi::ENTRY_SYMBOL)));
    assert!(abi::HEADER.contains(&format!("extension \"{}\"", abi::EXT_RUNTIME)));
}

/// The interface as `abi-1.lock` has it: what fields are declared as, where they lie, what constants are.
fn interface() -> Vec<String> {
    let mut lines = Vec::new();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in header_without_comments().split("typedef struct ").skip(1) {
        let Some((name, rest)) = part.split_once(['{', ';']) else { continue };
        let name = words(name);
        // Opaque types are declared twice over, and have no fields.
        let Some((body, _)) = rest.split_once('}').filter(|_| part.find('{') < part.find(';')) else {
            continue;
        };
        lines.extend(
            body.split(';')
                .map(words)
                .filter(|field| !field.is_empty())
                .map(|field| format!("{name}: {field}")),
        );
    }
    let fields = rust_structs().into_iter().filter(|line| line.contains('.'));
    lines.extend(fields);
    let constants = CONSTANTS.iter().filter(|(name, _)| *name != "KBIT_ABI_MINOR");
    lines.extend(constants.map(|(name, value)| format!("{name} {value}")));
    lines.push(format!("entry {}", abi::ENTRY_SYMBOL));
    lines
}

/// Structs without `size` never change; the others grow at their end (rule R1).
#[test]
fn major_1_is_frozen_and_only_grows() {
    let now = interface();
    let frozen: Vec<&str> =
        include_str!("../abi-1.lock").lines().filter(|line| !line.starts_with('#')).collect();
    let missing: Vec<&&str> = frozen.iter().filter(|line| now.iter().all(|now| now != **line)).collect();
    assert!(missing.is_empty(), "the interface of ABI 1 has lost or changed {missing:#?}");
    // Declarations of one struct, in order: the frozen ones come first.
    let of = |lines: &[&str], name: &str| -> Vec<String> {
        let prefix = format!("{name}: ");
        lines.iter().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
    };
    let current: Vec<&str> = now.iter().map(String::as_str).collect();
    for name in C_STRUCTS {
        let (before, after) = (of(&frozen, name), of(&current, name));
        let grows = before.first().is_some_and(|first| first.starts_with("size_t size"));
        assert!(after.starts_with(&before), "{name}: fields were not added at the end alone");
        let same = before.is_empty() || after.len() == before.len();
        assert!(grows || same, "{name} has no `size`, and so never changes");
    }
    let added: Vec<&str> = current.iter().copied().filter(|line| !frozen.contains(line)).collect();
    let minor = frozen_minor();
    assert!(
        added.is_empty() || abi::ABI_MINOR.cmp(&minor).is_gt(),
        "new in the interface: {added:#?}; raise KBIT_ABI_MINOR above {minor}, and append these lines to abi-1.lock under a line \
         `# minor N` with that number"
    );
}

/// The minor version up to which the lock goes.
fn frozen_minor() -> u32 {
    let lines = include_str!("../abi-1.lock").lines();
    lines.filter_map(|line| line.strip_prefix("# minor ")?.trim().parse().ok()).max().unwrap_or(0)
}

#[test]
fn the_header_compiles_as_c99_and_as_cpp11_without_a_warning() {
    // KBIT_HAS is a macro: it is only compiled where it is used.
    let program = "#include \"kbit_plugin.h\"\n#include \"kbit_plugin.h\"\n\
        int main(void) { kbit_plan plan; plan.size = sizeof plan; return KBIT_HAS(&plan, kbit_plan, job_bytes_hint) ? 0 : 1; }\n";
    let strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion"];
    for language in [Language::C99, Language::Cpp11] {
        if let Some(binary) = compile(language.name(), program, language, &strict) {
            run(&binary);
        }
    }
}

#[test]
fn the_c_plugins_of_this_repository_compile_without_a_warning() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = vec![root.join("plugins/c-rtn/c_rtn.c")];
    for entry in std::fs::read_dir(root.join("tests/bad-plugins")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "c") {
            sources.push(path);
        }
    }
    assert!(sources.len() > 7, "{sources:?}");
    let Some(compiler) = compiler(Language::C99) else { return };
    for source in sources {
        let library = compiler::folder().join(source.file_stem().unwrap());
        let mut command = compiler.command();
        command.args([
            "-O2",
            "-ffp-contract=off",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-Wl,-z,noexecstack",
        ]);
        command.args(["-Wall", "-Wextra", "-Werror", "-pedantic"]).arg("-o").arg(&library).arg(&source);
        compiler::succeed(&mut command);
    }
}

#[test]
fn the_tests_of_c_rtn_pass() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/c-rtn/test_c_rtn.c");
    let Some(compiler) = compiler(Language::C99) else { return };
    let binary = compiler::folder().join("test_c_rtn");
    compiler::succeed(
        compiler.command().args(["-O2", "-ffp-contract=off"]).arg("-o").arg(&binary).arg(&source),
    );
    run(&binary);
}
