//! Bytes do not depend on the number of threads that search, nor on the instruction set.

use kbit_host::{AuxData, HostOptions, Isa, Isolation, MatrixInfo, Registry, SchemeSpec, StaticPlugin};
use kbit_scheme_kit::testing;
use kbit_types::MatrixShape;

fn encoded(threads: usize, isa_limit: Isa, settings: &str) -> kbit_host::Encoded {
    let options = HostOptions {
        trusted: Vec::new(),
        lock: None,
        isa_limit,
        statics: vec![StaticPlugin { name: "awq", entry: kbit_scheme_awq::kbit_plugin_entry_v1 }],
        ..HostOptions::default()
    };
    let registry = Registry::load(&options).expect("the plugin loads");
    let spec: SchemeSpec = format!("awq:{settings}").parse().expect("a scheme");
    let scheme = registry.scheme(&spec.name).expect("it is there");
    let params = scheme.resolve(&spec.params).expect("its parameters");
    let open = scheme.open(&params, Isolation::InProcess).expect("it opens");
    let shape = MatrixShape::dense(130, 302);
    let info = MatrixInfo { tensor: "blk.0.ffn_up.weight".into(), shape, slice: 0 };
    let values = testing::gaussian(130 * 302);
    let importance: Vec<f32> = (0..302u16).map(|column| f32::from(column % 7) + 0.5).collect();
    let aux = AuxData { diag: Some(&importance), seed: 3, ..AuxData::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| open.encode_matrix(&info, &values, &aux)).expect("it encodes")
}

#[test]
fn bytes_do_not_depend_on_threads_or_instruction_sets() {
    for settings in ["bits=3", "bits=4,symmetric=false,grid=4", "bits=2,clip=false"] {
        let one = encoded(1, Isa::Best, settings);
        for threads in [2, 5] {
            assert!(encoded(threads, Isa::Best, settings) == one, "{settings}: {threads} threads");
        }
        assert!(encoded(2, Isa::Portable, settings) == one, "{settings}: instruction sets");
    }
}
