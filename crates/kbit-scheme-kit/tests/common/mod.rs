//! What the tests of plugins on a host share.

use kbit_host::{
    AuxData, Encoded, HostOptions, Isa, Isolation, MatrixInfo, Registry, SchemeSpec, StaticPlugin,
};
use kbit_scheme_kit::testing;
use kbit_types::MatrixShape;

/// A matrix as `settings` of the scheme `plugin`, which has that plugin's name, encode it with importance of its columns.
fn encoded(plugin: &StaticPlugin, threads: usize, isa_limit: Isa, settings: &str) -> Encoded {
    let options = HostOptions {
        trusted: Vec::new(),
        lock: None,
        isa_limit,
        statics: vec![*plugin],
        ..HostOptions::default()
    };
    let registry = Registry::load(&options).expect("the plugin loads");
    let spec: SchemeSpec = format!("{}:{settings}", plugin.name).parse().expect("a scheme");
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

/// Bytes depend neither on the number of threads nor on the instruction set.
pub fn bytes_are_those_of_one_thread(plugin: &StaticPlugin, settings: &[&str]) {
    for settings in settings {
        let one = encoded(plugin, 1, Isa::Best, settings);
        for threads in [2, 5] {
            assert!(encoded(plugin, threads, Isa::Best, settings) == one, "{settings}: {threads} threads");
        }
        assert!(encoded(plugin, 2, Isa::Portable, settings) == one, "{settings}: instruction sets");
    }
}
