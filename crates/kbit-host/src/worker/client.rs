//! The host's side: starts workers, sends requests, tells crashes from hangs.

use super::frame::{NoFrame, receive, send};
use super::{Answer, AuxSpans, Control, ControlReply, Layout, Load, PROTOCOL, Reply, Request, Shape, Span};
use crate::call::{AuxData, CallFailure, Matrix, check_strided};
use crate::callbacks::{Isa, emit, printable};
use crate::check::{CaseOutcome, CaseTask};
use crate::error::{Death, HostError, Place};
use crate::load::PluginText;
use crate::memfd::{Mapping, sealed};
use crate::plan::TensorPlan;
use crate::registry::{HostOptions, Scheme, file_name};
use crate::scheme::{MatrixInfo, TensorBytes};
use crate::spec::ParamValues;
use kbit_abi as abi;
use std::ffi::OsString;
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Channels keep shared memory up to this size between calls.
const KEPT_BYTES: usize = 64 << 20;
/// Bytes of standard error that are kept.
const STDERR_BYTES: usize = 4096;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a call gave nothing, before plugin, scheme and tensor are named.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// The plugin's function failed.
    Call(CallFailure),
    /// The worker process is gone.
    Died {
        /// How it ended.
        death: Death,
        /// Its last words.
        stderr: String,
    },
    /// No answer in time.
    Hung(Duration),
    /// It spoke nonsense.
    Protocol(String),
    /// It did not come up.
    Start(String),
    /// No command is set.
    NoCommand,
}

impl Trouble {
    /// The error for a call at `place`.
    pub(crate) fn at(self, place: Place) -> HostError {
        let boxed = |place: Place| Box::new(place);
        match self {
            Self::Call(CallFailure::Status { status, text: message }) => {
                let place = boxed(place);
                match status {
                    abi::EPARAM => HostError::Param { place, message },
                    abi::EUNSUPPORTED => HostError::Unsupported { place, message },
                    abi::ENUMERIC => HostError::Numeric { place, message },
                    abi::EMISSING => HostError::Missing { place, message },
                    abi::ECANCELLED => HostError::Cancelled { place },
                    abi::EPANIC => HostError::Panicked { place, message },
                    abi::EINTERNAL => HostError::Internal { place, message },
                    other => HostError::Internal {
                        place,
                        message: format!("{message} (status {other} is not one of ABI 1)"),
                    },
                }
            }
            Self::Call(CallFailure::FloatEnvironment(change)) => {
                HostError::FloatEnvironment { place: boxed(place), change }
            }
            Self::Call(CallFailure::Plan(reason)) => HostError::Plan { place: boxed(place), reason },
            Self::Call(CallFailure::Overrun(what)) => HostError::Overrun { place: boxed(place), what },
            Self::Call(CallFailure::Misuse(reason)) => HostError::Misuse { place: boxed(place), reason },
            Self::Died { death, stderr } => HostError::WorkerDied { place: boxed(place), death, stderr },
            Self::Hung(limit) => HostError::WorkerHung { place: boxed(place), limit },
            Self::Protocol(reason) => HostError::WorkerProtocol { place: boxed(place), reason },
            Self::Start(reason) => HostError::WorkerStart { plugin: place.plugin, reason },
            Self::NoCommand => HostError::NoWorker { scheme: place.scheme },
        }
    }
}

/// The last bytes that a worker wrote to standard error.
#[derive(Default)]
struct Tail {
    text: Mutex<Vec<u8>>,
    closed: AtomicBool,
}

impl Tail {
    /// Reads until the worker closes it.
    fn follow(self: Arc<Self>, mut stderr: impl Read + Send + 'static) {
        let read = move || {
            let mut bytes = [0u8; 1024];
            while let Ok(count) = stderr.read(&mut bytes) {
                if count == 0 {
                    break;
                }
                let mut text = locked(&self.text);
                text.extend_from_slice(&bytes[..count]);
                let surplus = text.len().saturating_sub(STDERR_BYTES);
                text.drain(..surplus);
            }
            self.closed.store(true, Ordering::Release);
        };
        // Without the thread there are no last words, which is all they are good for.
        let _ = std::thread::Builder::new().name("kbit-worker-stderr".to_owned()).spawn(read);
    }

    /// The last line that says something, once the worker has ended.
    fn last_words(&self) -> String {
        let deadline = Instant::now() + Duration::from_millis(200);
        while !self.closed.load(Ordering::Acquire) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let text = locked(&self.text);
        let lines: Vec<String> =
            text.split(|byte| *byte == b'\n').map(printable).filter(|line| !line.is_empty()).collect();
        last_words_of(&lines)
    }
}

/// A panic's place and message, or else the last line. Advice and backtraces that follow a panic say less.
fn last_words_of(lines: &[String]) -> String {
    let panic = lines.iter().rposition(|line| line.contains(" panicked at "));
    let words = match panic {
        Some(at) => lines[at..].iter().take(2).map(String::as_str).collect::<Vec<_>>().join(" "),
        None => lines.last().cloned().unwrap_or_default(),
    };
    words.chars().take(300).collect()
}

/// How a worker came to its end, for all calls that were under way.
#[derive(Clone)]
enum Ending {
    Died { death: Death, stderr: String },
    Hung(Duration),
    Protocol(String),
}

impl From<Ending> for Trouble {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Died { death, stderr } => Self::Died { death, stderr },
            Ending::Hung(limit) => Self::Hung(limit),
            Ending::Protocol(reason) => Self::Protocol(reason),
        }
    }
}

/// One worker process.
pub(crate) struct Child {
    process: Mutex<std::process::Child>,
    control: Mutex<UnixStream>,
    channels: Mutex<Vec<Channel>>,
    ending: OnceLock<Ending>,
    stderr: Arc<Tail>,
    timeout: Duration,
    cancelled: Arc<AtomicBool>,
    cancel_sent: AtomicBool,
    plugin: String,
}

struct Channel {
    socket: UnixStream,
    memory: Option<Mapping>,
}

impl Drop for Child {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = process.kill();
        let _ = process.wait();
    }
}

impl Child {
    /// Starts `command`. The worker has loaded nothing yet.
    pub(crate) fn start(
        command: &[OsString],
        plugin: &str,
        timeout: Duration,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Self, Trouble> {
        let Some((program, arguments)) = command.split_first() else { return Err(Trouble::NoCommand) };
        let failed = |error: std::io::Error| Trouble::Start(format!("{}: {error}", program.display()));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env("RAYON_NUM_THREADS", rayon::current_num_threads().to_string())
            .spawn()
            .map_err(failed)?;
        let stderr = Arc::new(Tail::default());
        if let Some(pipe) = process.stderr.take() {
            Arc::clone(&stderr).follow(pipe);
        }
        Ok(Self {
            process: Mutex::new(process),
            control: Mutex::new(ours),
            channels: Mutex::default(),
            ending: OnceLock::new(),
            stderr,
            timeout,
            cancelled: Arc::clone(cancelled),
            cancel_sent: AtomicBool::new(false),
            plugin: plugin.to_owned(),
        })
    }

    fn is_alive(&self) -> bool {
        self.ending.get().is_none()
    }

    /// Ends the worker after `problem` and tells what was the matter. The first call decides for all.
    fn end(&self, problem: NoFrame, limit: Duration) -> Trouble {
        let mut process = locked(&self.process);
        let ending = self.ending.get_or_init(|| match problem {
            NoFrame::TimedOut => {
                let _ = process.kill();
                let _ = process.wait();
                Ending::Hung(limit)
            }
            NoFrame::Broken(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Ending::Protocol(error.to_string())
            }
            NoFrame::Closed => {
                // A crashed process is gone as soon as its core is not written; grant it a moment.
                let deadline = Instant::now() + Duration::from_secs(2);
                let mut death = Death::Unknown;
                while Instant::now() < deadline {
                    if let Ok(Some(status)) = process.try_wait() {
                        death = match (status.signal(), status.code()) {
                            (Some(libc::SIGKILL), _) => Death::Killed,
                            (Some(signal), _) => Death::Signal(signal),
                            (None, Some(code)) => Death::Exit(code),
                            (None, None) => Death::Unknown,
                        };
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                let _ = process.kill();
                let _ = process.wait();
                Ending::Died { death, stderr: self.stderr.last_words() }
            }
        });
        ending.clone().into()
    }

    /// Sends the host's wish to stop, when it changes.
    fn pass_on_cancelled(&self) {
        let cancelled = self.cancelled.load(Ordering::Relaxed);
        if self.cancel_sent.swap(cancelled, Ordering::Relaxed) != cancelled {
            let _ = send(&locked(&self.control), &Control::Cancelled(cancelled), &[]);
        }
    }

    fn control(
        &self,
        message: &Control,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<ControlReply, Trouble> {
        if let Some(ending) = self.ending.get() {
            return Err(ending.clone().into());
        }
        let socket = locked(&self.control);
        let sent = send(&socket, message, descriptor.as_slice());
        let received = sent.and_then(|()| receive::<ControlReply>(&socket, Some(self.timeout), &mut || ()));
        received.map(|(reply, _)| reply).map_err(|problem| self.end(problem, self.timeout))
    }

    fn load(&self, load: Load, image: Option<BorrowedFd<'_>>) -> Result<Result<PluginText, String>, Trouble> {
        match self.control(&Control::Load(load), image)? {
            ControlReply::Loaded(text) => Ok(Ok(text)),
            ControlReply::NotLoaded(reason) => Ok(Err(reason)),
            ControlReply::Checked(_) => Err(Trouble::Protocol("an answer to another question".to_owned())),
        }
    }

    /// Runs one case of the conformance kit.
    pub(crate) fn check(&self, task: &CaseTask, image: BorrowedFd<'_>) -> Result<CaseOutcome, Trouble> {
        match self.control(&Control::Check(Box::new(task.clone())), Some(image))? {
            ControlReply::Checked(outcome) => Ok(*outcome),
            _ => Err(Trouble::Protocol("an answer to another question".to_owned())),
        }
    }

    fn channel(&self) -> Result<Channel, Trouble> {
        if let Some(channel) = locked(&self.channels).pop() {
            return Ok(channel);
        }
        let (ours, theirs) = UnixStream::pair().map_err(|error| Trouble::Start(error.to_string()))?;
        send(&locked(&self.control), &Control::Channel, &[theirs.as_fd()])
            .map_err(|problem| self.end(problem, self.timeout))?;
        Ok(Channel { socket: ours, memory: None })
    }

    /// One request and its answer. `inputs` are copied to their spans before, `outputs` from theirs after it.
    fn call(
        &self,
        layout: &Layout,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
        inputs: &[(Span, &[u8])],
        outputs: &mut [(Span, &mut [u8])],
    ) -> Result<Answer, Trouble> {
        if let Some(ending) = self.ending.get() {
            return Err(ending.clone().into());
        }
        let mut channel = self.channel()?;
        if channel.memory.as_ref().is_none_or(|memory| memory.len() < layout.end) && layout.end > 0 {
            let no_memory = |error: std::io::Error| {
                Trouble::Start(format!("{} bytes of shared memory cannot be had ({error})", layout.end))
            };
            let memory = Mapping::new(layout.end).map_err(no_memory)?;
            send(&channel.socket, &Request::Memory, &[memory.file().as_fd()])
                .map_err(|problem| self.end(problem, self.timeout))?;
            channel.memory = Some(memory);
        }
        let outside = || Trouble::Protocol("a piece outside the shared memory".to_owned());
        if let Some(memory) = &channel.memory {
            for (span, bytes) in inputs {
                if !memory.write(span.offset, bytes) {
                    return Err(outside());
                }
            }
        }
        let sent = send(&channel.socket, request, descriptor.as_slice());
        let received = sent.and_then(|()| {
            receive::<Reply>(&channel.socket, Some(self.timeout), &mut || self.pass_on_cancelled())
        });
        let (reply, _) = received.map_err(|problem| self.end(problem, self.timeout))?;
        for (level, text) in &reply.log {
            emit(&self.plugin, *level, text);
        }
        let answer = reply.result.map_err(Trouble::Call);
        if answer.is_ok()
            && let Some(memory) = &channel.memory
        {
            for (span, bytes) in outputs {
                if !memory.read(span.offset, bytes) {
                    return Err(outside());
                }
            }
        }
        if channel.memory.as_ref().is_some_and(|memory| memory.len() > KEPT_BYTES) {
            // The worker drops its side with the connection.
            return answer;
        }
        locked(&self.channels).push(channel);
        answer
    }
}

/// Loads a plugin in a worker and tells what it says about itself.
pub(crate) fn describe(
    path: &Path,
    bytes: &[u8],
    sha256: &str,
    options: &HostOptions,
) -> Result<PluginText, HostError> {
    let plugin = file_name(path);
    let place = || Place {
        plugin: plugin.clone(),
        scheme: String::new(),
        tensor: String::new(),
        call: "kbit_plugin_entry_v1",
    };
    let command = options.worker.as_deref().unwrap_or_default();
    let describe = || {
        let image = sealed(&plugin, bytes, false)
            .map_err(|error| Trouble::Start(format!("no memory file: {error}")))?;
        let child = Child::start(command, &plugin, options.timeout, &options.cancelled)?;
        let load = Load {
            protocol: PROTOCOL,
            path: path.to_owned(),
            sha256: sha256.to_owned(),
            static_name: None,
            isa: options.isa_limit,
        };
        child.load(load, Some(image.as_fd()))
    };
    describe().map_err(|trouble| trouble.at(place()))?.map_err(|message| HostError::InWorker { message })
}

/// A scheme that is opened in worker processes.
pub(crate) struct RemoteScheme {
    scheme: Arc<Scheme>,
    params: ParamValues,
    /// Workers that encode nothing at the moment.
    idle: Mutex<Vec<Arc<Child>>>,
    /// The worker in which tensors are opened for reading.
    reader: Mutex<Option<Arc<Child>>>,
}

impl RemoteScheme {
    pub(crate) fn open(scheme: &Arc<Scheme>, params: &ParamValues) -> Result<Arc<Self>, Trouble> {
        let remote = Self {
            scheme: Arc::clone(scheme),
            params: params.clone(),
            idle: Mutex::default(),
            reader: Mutex::default(),
        };
        let child = remote.start()?;
        locked(&remote.idle).push(child);
        Ok(Arc::new(remote))
    }

    /// A new worker with the plugin loaded and the scheme opened.
    fn start(&self) -> Result<Arc<Child>, Trouble> {
        let (scheme, shared) = (&self.scheme, &self.scheme.shared);
        let command = shared.worker.as_deref().ok_or(Trouble::NoCommand)?;
        let child = Child::start(command, &scheme.plugin.file_name(), shared.timeout, &shared.cancelled)?;
        let load = Load {
            protocol: PROTOCOL,
            path: scheme.plugin.path().to_owned(),
            sha256: scheme.plugin.sha256().to_owned(),
            static_name: scheme.plugin.static_name.map(str::to_owned),
            isa: shared.isa_limit,
        };
        let image = scheme.plugin.loaded.image.as_ref().map(AsFd::as_fd);
        child.load(load, image)?.map_err(Trouble::Start)?;
        let request = Request::Open { scheme: scheme.index, params: self.params.clone() };
        child.call(&Layout::default(), &request, None, &[], &mut [])?;
        Ok(Arc::new(child))
    }

    /// A worker for one matrix.
    fn lease(&self) -> Result<Arc<Child>, Trouble> {
        loop {
            let idle = locked(&self.idle).pop();
            match idle {
                Some(child) if child.is_alive() => return Ok(child),
                Some(_) => {}
                None => return self.start(),
            }
        }
    }

    fn give_back(&self, child: Arc<Child>) {
        if child.is_alive() {
            locked(&self.idle).push(child);
        }
    }

    fn reader(&self) -> Result<Arc<Child>, Trouble> {
        let mut reader = locked(&self.reader);
        if let Some(child) = reader.as_ref().filter(|child| child.is_alive()) {
            return Ok(Arc::clone(child));
        }
        let child = self.start()?;
        *reader = Some(Arc::clone(&child));
        Ok(child)
    }

    pub(crate) fn plan(&self, matrix: &Matrix<'_>) -> Result<TensorPlan, Trouble> {
        let child = self.lease()?;
        let request = Request::Plan { shape: Shape::of(matrix) };
        let answer = child.call(&Layout::default(), &request, None, &[], &mut []);
        self.give_back(child);
        match answer? {
            Answer::Plan(plan) if plan.is_sound(matrix.rows) => Ok(plan),
            _ => Err(Trouble::Protocol("no plan in answer to plan()".to_owned())),
        }
    }

    pub(crate) fn begin(
        self: &Arc<Self>,
        matrix: &Matrix<'_>,
        whole: Option<&[f32]>,
        aux: &AuxData<'_>,
    ) -> Result<RemoteJob, Trouble> {
        let plan = self.plan(matrix)?;
        let mut layout = Layout::default();
        let mut inputs: Vec<(Span, &[u8])> = Vec::new();
        let mut add = |values: Option<&'_ [f32]>| -> Result<Option<Span>, Trouble> {
            let Some(values) = values else { return Ok(None) };
            let span = layout.add(size_of_val(values)).ok_or_else(too_large)?;
            Ok(Some(span))
        };
        let whole_span = add(whole)?;
        let diag = add(aux.diag)?;
        let hessian = add(aux.hessian.map(|(values, _)| values))?;
        let producer_std = add(aux.producer_std)?;
        let pieces = [
            (whole_span, whole),
            (diag, aux.diag),
            (hessian, aux.hessian.map(|(values, _)| values)),
            (producer_std, aux.producer_std),
        ];
        for (span, values) in pieces {
            if let (Some(span), Some(values)) = (span, values) {
                inputs.push((span, bytemuck::cast_slice(values)));
            }
        }
        let request = Request::Begin {
            shape: Shape::of(matrix),
            plan,
            whole: whole_span,
            aux: AuxSpans {
                diag,
                hessian,
                hessian_stride: aux.hessian.map_or(0, |(_, stride)| stride),
                producer_std,
                n_samples: aux.n_samples,
                seed: aux.seed,
            },
        };
        let child = self.lease()?;
        match child.call(&layout, &request, None, &inputs, &mut []) {
            Ok(Answer::Made(id)) => Ok(RemoteJob { scheme: Arc::clone(self), child, id }),
            Ok(_) => Err(Trouble::Protocol("no job in answer to begin()".to_owned())),
            Err(trouble) => {
                self.give_back(child);
                Err(trouble)
            }
        }
    }

    pub(crate) fn open_tensor(
        self: &Arc<Self>,
        info: &MatrixInfo,
        plan: &TensorPlan,
        bytes: TensorBytes,
    ) -> Result<RemoteTensor, Trouble> {
        let mut layout = Layout::default();
        let mut spans = |list: &[crate::scheme::Bytes]| {
            list.iter()
                .map(|bytes| layout.add(bytes.as_slice().len()))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(too_large)
        };
        let (heads, parts) = (spans(&bytes.heads)?, spans(&bytes.parts)?);
        let memory = Mapping::new(layout.end).map_err(|error| {
            Trouble::Start(format!("{} bytes of shared memory cannot be had ({error})", layout.end))
        })?;
        for (span, bytes) in heads.iter().zip(&bytes.heads).chain(parts.iter().zip(&bytes.parts)) {
            if !memory.write(span.offset, bytes.as_slice()) {
                return Err(too_large());
            }
        }
        let tensor = RemoteTensor {
            scheme: Arc::clone(self),
            info: info.clone(),
            plan: plan.clone(),
            heads,
            parts,
            memory,
            opened: Mutex::default(),
        };
        tensor.opened()?;
        Ok(tensor)
    }
}

fn too_large() -> Trouble {
    Trouble::Protocol("the matrix does not fit memory".to_owned())
}

/// One matrix being encoded in a worker of its own.
pub(crate) struct RemoteJob {
    scheme: Arc<RemoteScheme>,
    child: Arc<Child>,
    id: u64,
}

impl Drop for RemoteJob {
    fn drop(&mut self) {
        if self.child.is_alive() {
            // A failure ends the worker, and the next matrix gets another one.
            let _ = self.child.call(&Layout::default(), &Request::End { job: self.id }, None, &[], &mut []);
            self.scheme.give_back(Arc::clone(&self.child));
        }
    }
}

impl RemoteJob {
    pub(crate) fn observe(&self, rows: &Range<u64>, slab: &[f32], stats: &mut [u8]) -> Result<(), Trouble> {
        let mut layout = Layout::default();
        let slab_span = layout.add(size_of_val(slab)).ok_or_else(too_large)?;
        let stats_span = layout.add(stats.len()).ok_or_else(too_large)?;
        let request = Request::Observe {
            job: self.id,
            first: rows.start,
            count: rows.end - rows.start,
            slab: slab_span,
            stats: stats_span,
        };
        let input = (slab_span, bytemuck::cast_slice(slab));
        self.child.call(&layout, &request, None, &[input], &mut [(stats_span, stats)]).map(drop)
    }

    pub(crate) fn prepare(&mut self, stats: &[u8], heads: &mut [&mut [u8]]) -> Result<(), Trouble> {
        let mut layout = Layout::default();
        let stats_span = layout.add(stats.len()).ok_or_else(too_large)?;
        let spans: Vec<Span> =
            heads.iter().map(|head| layout.add(head.len())).collect::<Option<_>>().ok_or_else(too_large)?;
        let request = Request::Prepare { job: self.id, stats: stats_span, heads: spans.clone() };
        let mut outputs: Vec<(Span, &mut [u8])> =
            spans.into_iter().zip(heads.iter_mut().map(|head| &mut **head)).collect();
        self.child.call(&layout, &request, None, &[(stats_span, stats)], &mut outputs).map(drop)
    }

    pub(crate) fn encode(
        &self,
        rows: &Range<u64>,
        slab: &[f32],
        parts: &mut [&mut [u8]],
    ) -> Result<(), Trouble> {
        let mut layout = Layout::default();
        let slab_span = layout.add(size_of_val(slab)).ok_or_else(too_large)?;
        let spans: Vec<Span> =
            parts.iter().map(|part| layout.add(part.len())).collect::<Option<_>>().ok_or_else(too_large)?;
        let request = Request::Encode {
            job: self.id,
            first: rows.start,
            count: rows.end - rows.start,
            slab: slab_span,
            parts: spans.clone(),
        };
        let mut outputs: Vec<(Span, &mut [u8])> =
            spans.into_iter().zip(parts.iter_mut().map(|part| &mut **part)).collect();
        self.child
            .call(&layout, &request, None, &[(slab_span, bytemuck::cast_slice(slab))], &mut outputs)
            .map(drop)
    }
}

/// One encoded matrix, opened in the scheme's reading worker, and opened anew if that dies.
pub(crate) struct RemoteTensor {
    scheme: Arc<RemoteScheme>,
    info: MatrixInfo,
    plan: TensorPlan,
    heads: Vec<Span>,
    parts: Vec<Span>,
    memory: Mapping,
    opened: Mutex<Option<(Arc<Child>, u64)>>,
}

impl Drop for RemoteTensor {
    fn drop(&mut self) {
        let opened = self.opened.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((child, tensor)) = opened
            && child.is_alive()
        {
            let _ = child.call(&Layout::default(), &Request::CloseTensor { tensor }, None, &[], &mut []);
        }
    }
}

impl RemoteTensor {
    fn opened(&self) -> Result<(Arc<Child>, u64), Trouble> {
        let mut opened = locked(&self.opened);
        if let Some((child, id)) = opened.as_ref().filter(|(child, _)| child.is_alive()) {
            return Ok((Arc::clone(child), *id));
        }
        let child = self.scheme.reader()?;
        let request = Request::OpenTensor {
            shape: Shape::of(&self.info.matrix()),
            plan: self.plan.clone(),
            heads: self.heads.clone(),
            parts: self.parts.clone(),
        };
        match child.call(&Layout::default(), &request, Some(self.memory.file().as_fd()), &[], &mut [])? {
            Answer::Made(id) => {
                *opened = Some((Arc::clone(&child), id));
                Ok((child, id))
            }
            _ => Err(Trouble::Protocol("no tensor in answer to open_tensor()".to_owned())),
        }
    }

    pub(crate) fn decode(
        &self,
        rows: &Range<u64>,
        cols: u64,
        out: &mut [f32],
        stride: usize,
    ) -> Result<(), Trouble> {
        check_strided(rows, cols, out.len(), stride);
        let (child, tensor) = self.opened()?;
        let count = rows.end - rows.start;
        let width = usize::try_from(cols).map_err(|_| too_large())?;
        let row_bytes = width.checked_mul(4).ok_or_else(too_large)?;
        let total = usize::try_from(count).ok().and_then(|rows| rows.checked_mul(row_bytes));
        let mut layout = Layout::default();
        let span = total.and_then(|total| layout.add(total)).ok_or_else(too_large)?;
        let request = Request::Decode { tensor, first: rows.start, count, out: span };
        let mut outputs: Vec<(Span, &mut [u8])> = out
            .chunks_mut(stride)
            .take(usize::try_from(count).unwrap_or(usize::MAX))
            .enumerate()
            .map(|(row, values)| {
                let offset = span.offset + row * row_bytes;
                (Span { offset, len: row_bytes }, bytemuck::cast_slice_mut(&mut values[..width]))
            })
            .collect();
        child.call(&layout, &request, None, &[], &mut outputs).map(drop)
    }
}

/// Where the kit gets a worker from.
pub(crate) fn for_check(options: &HostOptions, plugin: &str, limit: Duration) -> Result<Child, Trouble> {
    let command = options.worker.as_deref().ok_or(Trouble::NoCommand)?;
    Child::start(command, plugin, limit, &options.cancelled)
}

impl Isa {
    /// All limits that the kit compares on this machine.
    pub(crate) fn to_compare() -> &'static [Self] {
        if cfg!(target_arch = "x86_64") {
            &[Self::Portable, Self::Avx2, Self::Best]
        } else {
            &[Self::Portable, Self::Best]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_panic_or_the_last_line() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(last_words_of(&lines("one\nfree(): invalid pointer")), "free(): invalid pointer");
        let panic = "thread 'x' panicked at src/lib.rs:1:2:\nindex out of bounds\nstack backtrace:\n 0: f\nnote: Some details";
        assert_eq!(
            last_words_of(&lines(panic)),
            "thread 'x' panicked at src/lib.rs:1:2: index out of bounds"
        );
        assert_eq!(last_words_of(&[]), "");
    }
}
