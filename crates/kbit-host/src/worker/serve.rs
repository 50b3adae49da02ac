//! The worker's side: loads one plugin and serves requests until the host goes away.
//!
//! Invariant: a channel's shared memory belongs to the worker from the moment a request arrives until its reply is
//! sent; the host does not touch it meanwhile.
#![expect(unsafe_code, reason = "views of shared memory, and the plugin keeps addresses of a tensor's bytes")]

use super::frame::{NoFrame, receive, send};
use super::{
    ALIGNMENT, Answer, AuxSpans, CANARY, Control, ControlReply, Load, PROTOCOL, Reply, Request, Shape, Span,
};
use crate::call::{AuxData, CallFailure, RawJob, RawTensor, State, Values, const_buffer, with_scratch};
use crate::callbacks::{HostContext, HostTable, LogSink};
use crate::load::{Loaded, StaticPlugin, load_bytes, load_static, sha256};
use crate::memfd::Mapping;
use crate::plan::TensorPlan;
use crate::scheme::local_plan;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// Stack of a thread that runs plugin code.
const STACK_BYTES: usize = 8 << 20;

/// Serves one host over the socket that standard input is. The binary calls this for the hidden subcommand
/// [`crate::WORKER_COMMAND`].
#[must_use]
pub fn worker_main() -> ExitCode {
    worker_main_with(&[])
}

/// As [`worker_main`], in a program that has plugins of its own.
#[must_use]
pub fn worker_main_with(statics: &[StaticPlugin]) -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().ok().filter(|descriptor| {
        rustix::net::sockopt::socket_domain(descriptor)
            .is_ok_and(|family| family == rustix::net::AddressFamily::UNIX)
    });
    let Some(socket) = socket else {
        tracing::error!("this command serves kbit itself and is not for direct use");
        return ExitCode::from(2);
    };
    // A crash is reported by the host; nobody wants a core file of it.
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
    let worker = Arc::new(Server {
        control: Mutex::new(()),
        socket: UnixStream::from(socket),
        statics: statics.to_vec(),
        cancelled: Arc::default(),
        loaded: OnceLock::new(),
        state: OnceLock::new(),
        jobs: Objects::default(),
        tensors: Objects::default(),
    });
    worker.run();
    // Plugin code may still run in other threads; nothing is to be saved, and no exit handler of a plugin may linger.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    ExitCode::SUCCESS
}

/// Things by number.
struct Objects<T> {
    next: AtomicU64,
    map: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), map: RwLock::default() }
    }
}

impl<T> Objects<T> {
    fn insert(&self, value: T) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.map.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(value));
        id
    }

    fn find(&self, id: u64) -> Result<Arc<T>, CallFailure> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.get(&id).cloned().ok_or_else(|| CallFailure::Misuse(format!("no object {id}")))
    }

    fn remove(&self, id: u64) {
        drop(self.map.write().unwrap_or_else(PoisonError::into_inner).remove(&id));
    }
}

struct Job {
    shape: Shape,
    plan: TensorPlan,
    raw: RwLock<RawJob>,
}

struct Tensor {
    // Released before the bytes.
    raw: RawTensor,
    cols: u64,
    scratch_bytes: u64,
    _bytes: Mapping,
}

struct Server {
    control: Mutex<()>,
    socket: UnixStream,
    statics: Vec<StaticPlugin>,
    cancelled: Arc<AtomicBool>,
    loaded: OnceLock<(Arc<Loaded>, &'static HostTable)>,
    state: OnceLock<(Arc<State>, usize)>,
    jobs: Objects<Job>,
    tensors: Objects<Tensor>,
}

impl Server {
    fn reply(&self, reply: &ControlReply) {
        let _one_at_a_time = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = send(&self.socket, reply, &[]);
    }

    /// Until the host closes the connection.
    fn run(self: &Arc<Self>) {
        while let Ok((message, mut descriptors)) = receive::<Control>(&self.socket, None, &mut || ()) {
            let descriptor = descriptors.pop();
            match message {
                Control::Load(load) => {
                    let server = Arc::clone(self);
                    spawn("kbit-load", move || {
                        let reply = match server.load(&load, descriptor) {
                            Ok(text) => ControlReply::Loaded(text),
                            Err(reason) => ControlReply::NotLoaded(reason),
                        };
                        server.reply(&reply);
                    });
                }
                Control::Channel => {
                    let Some(descriptor) = descriptor else { return };
                    let server = Arc::clone(self);
                    spawn("kbit-channel", move || server.serve(&UnixStream::from(descriptor)));
                }
                Control::Cancelled(cancelled) => self.cancelled.store(cancelled, Ordering::Relaxed),
                Control::Check(task) => {
                    let Some(bytes) = descriptor.and_then(|file| Mapping::from_file(file, false).ok()) else {
                        return;
                    };
                    let server = Arc::clone(self);
                    spawn("kbit-check", move || {
                        // SAFETY: the file is sealed against writing, so nobody changes these bytes.
                        let bytes = unsafe { bytes.bytes(0, bytes.len()) }.unwrap_or_default();
                        let outcome = crate::check::run_case(&task, bytes);
                        server.reply(&ControlReply::Checked(Box::new(outcome)));
                    });
                }
            }
        }
    }

    fn load(&self, load: &Load, descriptor: Option<OwnedFd>) -> Result<crate::load::PluginText, String> {
        if load.protocol != PROTOCOL {
            return Err(
                "the worker command is another version of kbit; use the same program for both".to_owned()
            );
        }
        let context = HostContext {
            cancelled: Arc::clone(&self.cancelled),
            log: LogSink::Collect(Mutex::default()),
            threads: None,
        };
        let host = HostTable::leak(context, load.isa);
        let loaded = match &load.static_name {
            Some(name) => {
                let plugin = self.statics.iter().find(|plugin| plugin.name == name);
                let plugin = plugin.ok_or_else(|| format!("the worker has no plugin {name} of its own"))?;
                load_static(plugin, host)
            }
            None => {
                let file = descriptor.ok_or("the plugin's bytes did not arrive")?;
                let mapping = Mapping::from_file(file, false).map_err(|error| error.to_string())?;
                // SAFETY: the file is sealed against writing, so nobody changes these bytes.
                let bytes = unsafe { mapping.bytes(0, mapping.len()) }.unwrap_or_default();
                if sha256(bytes) != load.sha256 {
                    return Err("the plugin's bytes do not have their hash".to_owned());
                }
                load_bytes(&load.path, bytes, &load.sha256, host)
            }
        };
        let loaded = loaded.map_err(|error| error.to_string())?;
        let text = loaded.text.clone();
        let _ = self.loaded.set((loaded, host));
        Ok(text)
    }

    /// Serves one channel until the host closes it.
    fn serve(&self, socket: &UnixStream) {
        let mut memory: Option<Mapping> = None;
        loop {
            let (request, mut descriptors) = match receive::<Request>(socket, None, &mut || ()) {
                Ok(received) => received,
                Err(NoFrame::Closed) => return,
                Err(NoFrame::TimedOut | NoFrame::Broken(_)) => return,
            };
            let descriptor = descriptors.pop();
            if matches!(request, Request::Memory) {
                memory = descriptor.and_then(|file| Mapping::from_file(file, true).ok());
                continue;
            }
            // SAFETY: the module's invariant: until the reply is sent, this thread alone uses the channel's memory.
            let bytes = memory.as_ref().and_then(|memory| unsafe { memory.bytes_mut(0, memory.len()) });
            let result = self.answer(request, bytes.unwrap_or_default(), descriptor);
            let log = match self.loaded.get().map(|(_, host)| &host.context.log) {
                Some(LogSink::Collect(lines)) => {
                    std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner))
                }
                _ => Vec::new(),
            };
            if send(socket, &Reply { result, log }, &[]).is_err() {
                return;
            }
        }
    }

    fn answer(
        &self,
        request: Request,
        memory: &mut [u8],
        descriptor: Option<OwnedFd>,
    ) -> Result<Answer, CallFailure> {
        let missing = |what: &str| CallFailure::Misuse(format!("{what} comes first"));
        let (loaded, host) = self.loaded.get().ok_or_else(|| missing("loading the plugin"))?;
        let mut carver = Carver { rest: memory, position: 0, canaries: Vec::new() };
        if let Request::Open { scheme, params } = request {
            let text = loaded.text.schemes.get(scheme).ok_or_else(|| missing("a known scheme"))?;
            let values = Values::new(&params, &text.params);
            let state = State::with_host(loaded.functions[scheme], host, &values.pointers())?;
            let _ = self.state.set((state, scheme));
            return Ok(Answer::Done);
        }
        let (state, scheme) = self.state.get().ok_or_else(|| missing("opening the scheme"))?;
        match request {
            Request::Memory | Request::Open { .. } => Ok(Answer::Done),
            Request::Plan { shape } => {
                let ggml_type =
                    loaded.text.schemes[*scheme].ggml_type.and_then(kbit_types::GgmlType::from_id);
                let optional = loaded.functions[*scheme].optional();
                local_plan(state, &shape.matrix(), ggml_type, optional).map(Answer::Plan)
            }
            Request::Begin { shape, plan, whole, aux } => {
                let whole = whole.map(|span| carver.floats(span)).transpose()?;
                let aux = carver.aux(&aux)?;
                let raw = state.begin(&shape.matrix(), whole, &aux)?;
                Ok(Answer::Made(self.jobs.insert(Job { shape, plan, raw: RwLock::new(raw) })))
            }
            Request::Observe { job, first, count, slab, stats } => {
                let job = self.jobs.find(job)?;
                let (slab, stats) = (carver.floats(slab)?, carver.output(stats, "statistics")?);
                let raw = job.raw.read().unwrap_or_else(PoisonError::into_inner);
                with_scratch(job.plan.scratch_bytes, |scratch| {
                    raw.observe(&job.shape.matrix(), &(first..first + count), slab, stats, scratch)
                })?;
                carver.check()
            }
            Request::Prepare { job, stats, heads } => {
                let job = self.jobs.find(job)?;
                let stats = carver.input(stats)?;
                let mut slices = Vec::with_capacity(heads.len());
                for (span, part) in heads.into_iter().zip(&job.plan.parts) {
                    slices.push(carver.output(span, &format!("head of part {}", part.name))?);
                }
                job.raw.write().unwrap_or_else(PoisonError::into_inner).prepare(stats, &mut slices)?;
                carver.check()
            }
            Request::Encode { job, first, count, slab, parts } => {
                let job = self.jobs.find(job)?;
                let slab = carver.floats(slab)?;
                let mut slices = Vec::with_capacity(parts.len());
                for (span, part) in parts.into_iter().zip(&job.plan.parts) {
                    slices.push(carver.output(span, &format!("part {}", part.name))?);
                }
                let raw = job.raw.read().unwrap_or_else(PoisonError::into_inner);
                with_scratch(job.plan.scratch_bytes, |scratch| {
                    raw.encode(&job.shape.matrix(), &(first..first + count), slab, &mut slices, scratch)
                })?;
                carver.check()
            }
            Request::End { job } => {
                self.jobs.remove(job);
                Ok(Answer::Done)
            }
            Request::OpenTensor { shape, plan, heads, parts } => {
                let file = descriptor.ok_or_else(|| missing("the tensor's memory"))?;
                let bytes = Mapping::from_file(file, false)
                    .map_err(|error| CallFailure::Misuse(error.to_string()))?;
                let buffers = |spans: &[Span]| {
                    spans
                        .iter()
                        // SAFETY: the host writes the tensor's bytes before it sends them and never again.
                        .map(|span| unsafe { bytes.bytes(span.offset, span.len) }.map(const_buffer))
                        .collect::<Option<Vec<_>>>()
                        .ok_or_else(|| missing("memory that holds the parts"))
                };
                let (heads, parts) = (buffers(&heads)?, buffers(&parts)?);
                // SAFETY: the mapping is kept beside the tensor and dropped after it; its address does not change.
                let raw = unsafe { state.open_tensor(&shape.matrix(), &heads, &parts) }?;
                let tensor =
                    Tensor { raw, cols: shape.cols, scratch_bytes: plan.decode_scratch_bytes, _bytes: bytes };
                Ok(Answer::Made(self.tensors.insert(tensor)))
            }
            Request::Decode { tensor, first, count, out } => {
                let tensor = self.tensors.find(tensor)?;
                let out = bytemuck::try_cast_slice_mut(carver.output(out, "decoded rows")?)
                    .map_err(|_| CallFailure::Misuse("misaligned memory".to_owned()))?;
                if count.checked_mul(tensor.cols) != Some(out.len() as u64) {
                    return Err(CallFailure::Misuse("memory of the wrong size".to_owned()));
                }
                let stride = usize::try_from(tensor.cols).unwrap_or(usize::MAX);
                with_scratch(tensor.scratch_bytes, |scratch| {
                    tensor.raw.decode(&(first..first + count), tensor.cols, out, stride, scratch)
                })?;
                carver.check()
            }
            Request::CloseTensor { tensor } => {
                self.tensors.remove(tensor);
                Ok(Answer::Done)
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    if builder.spawn(run).is_err() {
        // The host sees a worker that ended, and says so.
        std::process::exit(1);
    }
}

/// Cuts disjoint pieces out of the channel's memory, in rising order.
struct Carver<'a> {
    rest: &'a mut [u8],
    position: usize,
    canaries: Vec<(String, &'a mut [u8])>,
}

impl<'a> Carver<'a> {
    fn take(&mut self, end: usize) -> Result<&'a mut [u8], CallFailure> {
        let outside = || CallFailure::Misuse("memory that is not shared".to_owned());
        let len = end.checked_sub(self.position).filter(|len| *len <= self.rest.len()).ok_or_else(outside)?;
        let (taken, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        self.position = end;
        Ok(taken)
    }

    fn bytes(&mut self, span: Span) -> Result<&'a mut [u8], CallFailure> {
        self.take(span.offset)?;
        self.take(span.offset.saturating_add(span.len))
    }

    fn input(&mut self, span: Span) -> Result<&'a [u8], CallFailure> {
        self.bytes(span).map(|bytes| &*bytes)
    }

    fn floats(&mut self, span: Span) -> Result<&'a [f32], CallFailure> {
        bytemuck::try_cast_slice(self.input(span)?)
            .map_err(|_| CallFailure::Misuse("misaligned memory".to_owned()))
    }

    /// A piece that the plugin writes, with a canary behind it.
    fn output(&mut self, span: Span, what: &str) -> Result<&'a mut [u8], CallFailure> {
        let bytes = self.bytes(span)?;
        let canary = self.take(self.position.saturating_add(ALIGNMENT))?;
        canary.fill(CANARY);
        self.canaries.push((what.to_owned(), canary));
        Ok(bytes)
    }

    fn aux(&mut self, spans: &AuxSpans) -> Result<AuxData<'a>, CallFailure> {
        Ok(AuxData {
            diag: spans.diag.map(|span| self.floats(span)).transpose()?,
            hessian: match spans.hessian {
                Some(span) => Some((self.floats(span)?, spans.hessian_stride)),
                None => None,
            },
            producer_std: spans.producer_std.map(|span| self.floats(span)).transpose()?,
            n_samples: spans.n_samples,
            seed: spans.seed,
        })
    }

    fn check(self) -> Result<Answer, CallFailure> {
        match self.canaries.iter().find(|(_, canary)| canary.iter().any(|byte| *byte != CANARY)) {
            Some((what, _)) => Err(CallFailure::Overrun(what.clone())),
            None => Ok(Answer::Done),
        }
    }
}
