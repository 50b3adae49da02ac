//! `kbit bench`.

use crate::cli::Bench;
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_engine::Mode;
use kbit_engine::speed::{self, Series};

/// Measures the speed of a model beside what the machine can do.
pub fn bench(session: &Session, arguments: &Bench) -> Result<u8, Failure> {
    if arguments.prompt == 0 && arguments.generate == 0 {
        return Err(Failure::usage("there is nothing to measure; write --prompt or --generate above 0"));
    }
    let registry = session.registry(&[], None)?;
    let model = super::open_model(&arguments.model, &registry, arguments.computing)?;
    let count = |count: u32| usize::try_from(count).map_err(Failure::usage);
    let repetitions = count(arguments.repetitions)?;
    let series = u64::from(arguments.prompt > 0) + u64::from(arguments.generate > 0);
    let bar = session.progress().items("repetitions", series * u64::from(arguments.repetitions));
    let mut done = 0;
    let mut tick = || {
        done += 1;
        bar.set(done);
    };
    let prompt = match count(arguments.prompt)? {
        0 => None,
        tokens => Some(speed::prompt(&model.model, tokens, repetitions, &mut tick)?),
    };
    let generation = match count(arguments.generate)? {
        0 => None,
        tokens => Some(speed::generation(&model.model, tokens, repetitions, &mut tick)?),
    };
    drop(bar);
    // The buffer that the bandwidth is measured with is not the model's.
    let peak_memory = kbit_formats::peak_rss_bytes();
    let mode = model.model.mode();
    let machine = Machine {
        mode,
        operations: speed::arithmetic_peak(mode, model.model.kernels()),
        bandwidth: speed::read_bandwidth()?,
        step_bytes: model.step_bytes,
    };
    let figures: Vec<Figures> = [("prompt", prompt), ("generation", generation)]
        .into_iter()
        .filter_map(|(name, series)| Some(machine.figures(name, &series?)))
        .collect();
    if session.global.json {
        let series = figures.iter().map(|figures| (figures.name.to_owned(), figures.json())).collect();
        let mut document = serde_json::json!({
            "model": arguments.model,
            "params": model.params,
            "tensor_bytes": model.tensor_bytes,
            "mode": mode.to_string(),
            "cache_type": model.model.cache().to_string(),
            "cache_bytes_per_token": model.model.cache_bytes_per_token(),
            "instruction_set": model.model.kernels().instruction_set().to_string(),
            "threads": rayon::current_num_threads(),
            "repetitions": arguments.repetitions,
            "bytes_per_token": model.step_bytes,
            "peak_gflops": machine.operations / 1e9,
            "read_gb_per_second": machine.bandwidth / 1e9,
            "peak_rss_bytes": peak_memory,
        });
        if let Some(fields) = document.as_object_mut() {
            let series: serde_json::Map<String, serde_json::Value> = series;
            fields.extend(series);
        }
        output::json(&document)?;
        return Ok(DONE);
    }
    let mut table = Table::new(&[
        "",
        ">tokens",
        ">tokens/s",
        ">from",
        ">to",
        ">GFLOP/s",
        ">of peak",
        ">GB/s",
        ">of peak",
    ]);
    for figures in &figures {
        table.row(figures.row());
    }
    let memory =
        peak_memory.map_or_else(String::new, |peak| format!(", peak memory {}", output::bytes(peak)));
    output::text(&format!(
        "{}: {:.1} million weights in {}, {} a token{memory}\n\
         KV cache in {}, {} a token\n\
         {mode} on {} thread(s) with {}: peak {:.1} GFLOP/s, memory read at {:.1} GB/s\n\n{}",
        arguments.model.display(),
        millions(model.params),
        output::bytes(model.tensor_bytes),
        output::bytes(model.step_bytes),
        model.model.cache(),
        output::bytes(model.model.cache_bytes_per_token() as u64),
        rayon::current_num_threads(),
        model.model.kernels().instruction_set(),
        machine.operations / 1e9,
        machine.bandwidth / 1e9,
        table.render()
    ))?;
    Ok(DONE)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn millions(count: u64) -> f64 {
    count as f64 / 1e6
}

/// What the machine can do, and what a token takes.
struct Machine {
    mode: Mode,
    /// Floating-point operations a second.
    operations: f64,
    /// Bytes a second.
    bandwidth: f64,
    /// Bytes of weights that are read for a token.
    step_bytes: u64,
}

impl Machine {
    fn figures(&self, name: &'static str, series: &Series) -> Figures {
        let (median, slowest, fastest) = series.rates();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let bytes = (name == "generation").then_some(median * self.step_bytes as f64);
        let operations = series.operations();
        Figures {
            name,
            mode: self.mode,
            tokens: series.tokens,
            rates: (median, slowest, fastest),
            seconds: series.times.iter().map(std::time::Duration::as_secs_f64).collect(),
            operations: (operations, operations / self.operations),
            bytes: bytes.map(|bytes| (bytes, bytes / self.bandwidth)),
        }
    }
}

/// One measurement: rates, and their share of the machine's.
struct Figures {
    name: &'static str,
    mode: Mode,
    tokens: usize,
    /// Tokens a second: median, smallest, largest.
    rates: (f64, f64, f64),
    seconds: Vec<f64>,
    operations: (f64, f64),
    /// A prompt reads the weights once for many tokens; so it has none.
    bytes: Option<(f64, f64)>,
}

impl Figures {
    fn row(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let (bytes, share) = match self.bytes {
            Some((bytes, share)) => (format!("{:.2}", bytes / 1e9), percent(share)),
            None => (String::new(), String::new()),
        };
        let (median, slowest, fastest) = self.rates;
        vec![
            format!("{} ({})", self.name, self.mode),
            self.tokens.to_string(),
            format!("{median:.1}"),
            format!("{slowest:.1}"),
            format!("{fastest:.1}"),
            format!("{:.1}", self.operations.0 / 1e9),
            percent(self.operations.1),
            bytes,
            share,
        ]
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "tokens": self.tokens,
            "tokens_per_second": self.rates.0,
            "slowest_tokens_per_second": self.rates.1,
            "fastest_tokens_per_second": self.rates.2,
            "seconds": self.seconds,
            "gflops": self.operations.0 / 1e9,
            "share_of_peak_gflops": self.operations.1,
            "gb_per_second": self.bytes.map(|(bytes, _)| bytes / 1e9),
            "share_of_read_bandwidth": self.bytes.map(|(_, share)| share),
        })
    }
}
