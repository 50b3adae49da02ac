//! A Rust plugin that is part of the program, as with the feature `static-plugins`; it panics on request.

use crate::{folder, matrix, trusting, weights};
use kbit_host::{AuxData, HostError, HostOptions, Isolation, ParamValues, Registry, StaticPlugin};
use kbit_plugin::{
    Aux, Error, Host, Params, Part, PartType, Plan, Scheme, SchemeInfo, Shape, Slab, SlabMut, export_plugin,
};
use std::ops::Range;

/// Keeps weights as they are, and panics for tensors whose name says so.
struct Keep;

impl Scheme for Keep {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.example.keep/1",
        title: "Keep",
        doc: "Keeps weights as they are.",
        citation: "",
        ggml_type: -1,
        params: &[],
    };
    type Job = bool;
    type Tensor = ();

    fn open(host: &Host<'_>, _: &Params) -> Result<Self, Error> {
        host.log(3, "opened");
        Ok(Self)
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        Ok(Plan { parts: vec![Part::new("values", PartType::F32, shape.cols * 4)], ..Plan::default() })
    }

    fn begin(&self, shape: &Shape<'_>, _: Option<Slab<'_>>, _: &Aux<'_>) -> Result<bool, Error> {
        Ok(shape.tensor.contains("panic"))
    }

    fn encode(
        &self,
        panics: &bool,
        rows: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        assert!(!panics, "row {} was one too many", rows.start);
        for (i, row) in parts[0].chunks_exact_mut(slab.cols() * 4).enumerate() {
            for (bytes, weight) in row.chunks_exact_mut(4).zip(slab.row(i)) {
                bytes.copy_from_slice(&weight.to_le_bytes());
            }
        }
        Ok(())
    }

    fn open_tensor(&self, _: &Shape<'_>, _: &[&[u8]]) -> Result<(), Error> {
        Ok(())
    }

    fn decode(
        &self,
        (): &(),
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        _: &mut [u8],
    ) -> Result<(), Error> {
        let bytes = usize::try_from(shape.cols).unwrap() * 4;
        for (i, row) in rows.enumerate() {
            let start = usize::try_from(row).unwrap() * bytes;
            for (weight, stored) in
                out.row_mut(i).iter_mut().zip(parts[0][start..start + bytes].as_chunks::<4>().0)
            {
                *weight = f32::from_le_bytes(*stored);
            }
        }
        Ok(())
    }
}

export_plugin! {
    id: "org.example.keep", vendor: "tests", url: "", license: "MIT", schemes: [Keep],
}

/// As the program's own plugin.
pub const STATIC: StaticPlugin = StaticPlugin { name: "keep", entry: kbit_plugin_entry_v1 };

fn options() -> HostOptions {
    HostOptions { statics: vec![STATIC], ..trusting(&folder().join("none")) }
}

#[test]
fn a_plugin_of_the_program_works_here_and_in_a_worker() {
    let registry = Registry::load(&options()).unwrap();
    let scheme = registry.scheme("keep").unwrap();
    assert_eq!(scheme.plugin().path().to_str(), Some("static:keep"));
    assert_eq!(scheme.plugin().sha256().len(), 64);
    let values = weights(640);
    let encoded = [Isolation::InProcess, Isolation::Process].map(|isolation| {
        let open = scheme.open(&ParamValues::new(), isolation).unwrap();
        open.encode_matrix(&matrix("w", 10, 64), &values, &AuxData::default()).unwrap()
    });
    assert_eq!(encoded[0], encoded[1]);
    let stored: Vec<u8> = values.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    assert_eq!(encoded[0].parts, [stored]);
}

#[test]
fn a_panic_is_an_error_with_its_message_and_the_scheme_goes_on() {
    let registry = Registry::load(&options()).unwrap();
    let scheme = registry.scheme("keep").unwrap();
    for isolation in [Isolation::InProcess, Isolation::Process] {
        let open = scheme.open(&ParamValues::new(), isolation).unwrap();
        let error =
            open.encode_matrix(&matrix("panic", 10, 64), &weights(640), &AuxData::default()).unwrap_err();
        assert!(matches!(error, HostError::Panicked { .. }), "{error}");
        assert!(error.to_string().contains("row 0 was one too many"), "{error}");
        open.encode_matrix(&matrix("calm", 10, 64), &weights(640), &AuxData::default()).unwrap();
    }
}
