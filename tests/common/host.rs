//! A host that records what a worker asks of it, and calls the worker back as Envoy does.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use refund_filter::clock::Now;
use refund_filter::headers::Headers;
use refund_filter::host::{Buffer, Host, Level, Map, Metric, NOT_FOUND, NoRandomness, Refused};
use refund_filter::memory::{Memory, NotWritten};
use refund_filter::worker::{Flow, Stream, Vm, Worker};
use serde_json::{Value, json};

use crate::shared_data::SharedData;
use crate::{NOW, call_headers, resolve_files};

/// The root context's id.
pub const ROOT: u32 = 1;
/// proxy-wasm's `BadArgument`.
const BAD: Refused = Refused(2);

/// A call of the filter's own.
#[derive(Debug, Clone)]
pub struct OwnCall {
    pub number: u32,
    /// Whose it is.
    pub context: u32,
    pub cluster: String,
    /// As they are encoded.
    pub headers: Vec<u8>,
    pub body: Vec<u8>,
}

/// An answer that the filter gave as Envoy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub details: String,
    pub body: Value,
}

/// What the host holds of a stream.
#[derive(Default)]
pub struct Side {
    pub maps: BTreeMap<u32, Vec<u8>>,
    pub buffers: BTreeMap<u32, Vec<u8>>,
    pub properties: BTreeMap<String, Vec<u8>>,
    pub replies: Vec<Reply>,
    pub resumed: u32,
    pub responses_resumed: u32,
}

#[derive(Default)]
pub struct MockHost {
    pub now: Cell<Option<Now>>,
    pub memory: Rc<SharedData>,
    pub streams: RefCell<BTreeMap<u32, Side>>,
    pub log: RefCell<Vec<String>>,
    pub tick_ms: Cell<u32>,
    pub calls: RefCell<Vec<OwnCall>>,
    /// The names of the metrics in the order of their definitions; a metric's id is its place.
    pub metrics: RefCell<Vec<String>>,
    pub values: RefCell<BTreeMap<String, u64>>,
    /// What the histograms were given.
    pub samples: RefCell<BTreeMap<String, Vec<u64>>>,
    kinds: RefCell<Vec<Metric>>,
    /// The worker is configured: from here on no series may begin, since its first event would not be
    /// seen.
    configured: Cell<bool>,
    /// The host calls that are refused.
    pub refuses: RefCell<BTreeSet<&'static str>>,
    /// The context whose callback runs, and the one that calls speak of.
    running: Cell<u32>,
    effective: Cell<u32>,
    made: Cell<u32>,
    random: RefCell<Option<StdRng>>,
}

impl MockHost {
    /// Its randomness from here on: two gateways have never the same.
    pub fn seed(&self, seed: u64) {
        self.random.replace(Some(StdRng::seed_from_u64(seed)));
    }

    fn refused(&self, name: &str) -> Result<(), Refused> {
        if self.refuses.borrow().contains(name) {
            return Err(BAD);
        }
        Ok(())
    }

    /// What the calls speak of. A stream that is gone is none.
    fn side<T>(&self, act: impl FnOnce(&mut Side) -> T) -> Option<T> {
        self.streams
            .borrow_mut()
            .get_mut(&self.effective.get())
            .map(act)
    }

    fn as_context(&self, id: u32) {
        self.running.set(id);
        self.effective.set(id);
    }
}

impl Memory for MockHost {
    fn read(&self, name: &str) -> (Vec<u8>, u32) {
        self.memory.read(name)
    }

    fn write(&self, name: &str, bytes: &[u8], number: u32) -> Result<(), NotWritten> {
        self.memory.write(name, bytes, number)
    }
}

impl Host for MockHost {
    fn log(&self, level: Level, message: &str) {
        self.log.borrow_mut().push(format!("{level:?} {message}"));
    }

    fn now(&self) -> Now {
        self.now.get().unwrap_or(NOW)
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        self.refused("fill_random").map_err(|_| NoRandomness)?;
        let mut random = self.random.borrow_mut();
        random
            .get_or_insert_with(|| StdRng::seed_from_u64(3))
            .fill(bytes);
        Ok(())
    }

    fn set_tick_period(&self, milliseconds: u32) {
        self.tick_ms.set(milliseconds);
    }

    fn buffer(&self, buffer: Buffer) -> Option<Vec<u8>> {
        self.side(|side| side.buffers.get(&(buffer as u32)).cloned())?
    }

    fn set_buffer(&self, buffer: Buffer, bytes: &[u8]) -> Result<(), Refused> {
        self.refused("set_buffer")?;
        self.side(|side| side.buffers.insert(buffer as u32, bytes.to_vec()));
        Ok(())
    }

    fn headers(&self, map: Map) -> Option<Vec<u8>> {
        self.side(|side| side.maps.get(&(map as u32)).cloned())?
    }

    fn set_headers(&self, map: Map, headers: &Headers<'_>) -> Result<(), Refused> {
        self.refused("set_headers")?;
        self.side(|side| side.maps.insert(map as u32, headers.encode()));
        Ok(())
    }

    fn remove_request_header(&self, _name: &str) -> Result<(), Refused> {
        Ok(())
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.side(|side| side.properties.get(&path.join(".")).cloned())?
    }

    fn set_property(&self, name: &str, value: &str) -> Result<(), Refused> {
        self.refused("set_property")?;
        self.side(|side| {
            let name = format!("filter_state.wasm.{name}");
            side.properties.insert(name, value.as_bytes().to_vec())
        });
        Ok(())
    }

    fn reply(
        &self,
        status: u16,
        details: &str,
        _headers: &Headers<'_>,
        body: &[u8],
    ) -> Result<(), Refused> {
        self.refused("reply")?;
        let reply = Reply {
            status,
            details: details.to_owned(),
            body: serde_json::from_slice(body).unwrap(),
        };
        self.side(|side| side.replies.push(reply)).ok_or(BAD)
    }

    fn resume_request(&self) -> Result<(), Refused> {
        self.side(|side| side.resumed += 1).ok_or(BAD)
    }

    fn resume_response(&self) -> Result<(), Refused> {
        self.side(|side| side.responses_resumed += 1).ok_or(BAD)
    }

    fn set_effective_context(&self, context: u32) -> Result<(), Refused> {
        if !self.streams.borrow().contains_key(&context) {
            return Err(BAD);
        }
        self.effective.set(context);
        Ok(())
    }

    fn dispatch_http_call(
        &self,
        cluster: &str,
        headers: &Headers<'_>,
        body: &[u8],
        _timeout_ms: u32,
    ) -> Option<u32> {
        self.refused("dispatch_http_call").ok()?;
        assert_eq!(
            self.running.get(),
            self.effective.get(),
            "the SDK and the host would bind the answer to two contexts"
        );
        let number = self.made.get() + 1;
        self.made.set(number);
        self.calls.borrow_mut().push(OwnCall {
            number,
            context: self.effective.get(),
            cluster: cluster.to_owned(),
            headers: headers.encode(),
            body: body.to_vec(),
        });
        Some(number)
    }

    fn call_foreign_function(&self, _name: &str, _arguments: &[u8]) -> Result<Vec<u8>, Refused> {
        Err(NOT_FOUND)
    }

    fn define_metric(&self, kind: Metric, name: &str) -> Option<u32> {
        assert!(!self.configured.get(), "{name} begins with its first event");
        self.kinds.borrow_mut().push(kind);
        let mut metrics = self.metrics.borrow_mut();
        metrics.push(name.to_owned());
        u32::try_from(metrics.len() - 1).ok()
    }

    fn count(&self, id: u32) {
        let name = self.metrics.borrow()[id as usize].clone();
        *self.values.borrow_mut().entry(name).or_default() += 1;
    }

    fn record(&self, id: u32, value: u64) {
        let name = self.metrics.borrow()[id as usize].clone();
        match self.kinds.borrow()[id as usize] {
            Metric::Histogram => {
                let mut samples = self.samples.borrow_mut();
                samples.entry(name).or_default().push(value);
            }
            Metric::Gauge => {
                self.values.borrow_mut().insert(name, value);
            }
            Metric::Counter => panic!("a counter is not set"),
        }
    }
}

/// One worker of a gateway, over such a host.
pub struct Process {
    pub host: Rc<MockHost>,
    pub worker: Rc<Worker>,
    vm: Rc<Vm>,
    streams: RefCell<BTreeMap<u32, Rc<Stream>>>,
}

impl Process {
    /// A worker with one provider.
    pub fn new(name: &str, provider: &Value) -> Self {
        Self::plugin(None, &Self::configuration(name, provider))
    }

    /// Another worker of the same process: it shares the memory.
    pub fn beside(other: &Self, name: &str, provider: &Value) -> Self {
        Self::plugin(Some(other), &Self::configuration(name, provider))
    }

    fn configuration(name: &str, provider: &Value) -> Value {
        let mut provider = provider.clone();
        resolve_files(&mut provider);
        json!({"providers": {name: provider}})
    }

    /// A worker with this configuration, in the process of another one.
    pub fn plugin(beside: Option<&Self>, configuration: &Value) -> Self {
        let host = Rc::new(MockHost {
            memory: beside.map_or_else(Rc::default, |other| Rc::clone(&other.host.memory)),
            ..MockHost::default()
        });
        let mut root = Side::default();
        let buffer = Buffer::Configuration as u32;
        let bytes = configuration.to_string().into_bytes();
        root.buffers.insert(buffer, bytes);
        host.streams.borrow_mut().insert(ROOT, root);
        host.as_context(ROOT);
        let vm = Rc::<Vm>::default();
        let worker = Rc::new(Worker::new(
            Rc::clone(&host) as Rc<dyn Host>,
            ROOT,
            Rc::clone(&vm),
        ));
        assert!(worker.configure(&|_| None), "{:?}", host.log.borrow());
        host.configured.set(true);
        Process {
            host,
            worker,
            vm,
            streams: RefCell::default(),
        }
    }

    /// A further configuration comes, the same: Envoy makes a new root in the same VM.
    pub fn configure_anew(&mut self) {
        self.host.as_context(ROOT);
        let (host, vm) = (Rc::clone(&self.host), Rc::clone(&self.vm));
        self.worker = Rc::new(Worker::new(host, ROOT, vm));
        assert!(self.worker.configure(&|_| None));
    }

    pub fn later(&self, milliseconds: i64) {
        self.host.now.set(Some(self.host.now().plus(milliseconds)));
    }

    /// The time goes by, and the root's tick comes if it is on.
    pub fn tick_after(&self, milliseconds: i64) {
        self.later(milliseconds);
        if self.host.tick_ms.get() > 0 {
            self.host.as_context(ROOT);
            self.worker.tick();
        }
    }

    /// The root's end.
    pub fn close(&self) {
        self.host.as_context(ROOT);
        self.worker.close();
    }

    /// A call's headers come; its body is still to come. Returns the stream's id.
    pub fn begin(&self, key: &str) -> u32 {
        self.begin_with(key, Side::default())
    }

    /// The same where the host holds something of the stream already.
    pub fn begin_with(&self, key: &str, side: Side) -> u32 {
        let (id, flow) = self.headers(call_headers(key), side, false);
        assert_eq!(flow, Flow::Pause);
        id
    }

    /// Any call's headers come.
    pub fn headers(&self, headers: Headers<'_>, mut side: Side, ends: bool) -> (u32, Flow) {
        let id = ROOT + 1 + u32::try_from(self.streams.borrow().len()).unwrap();
        side.maps.insert(Map::Request as u32, headers.encode());
        self.host.streams.borrow_mut().insert(id, side);
        let stream = Stream::new(Rc::clone(&self.worker), id);
        self.streams.borrow_mut().insert(id, stream);
        (id, self.stream(id).request_headers(ends))
    }

    /// Its body comes, whole.
    pub fn body(&self, id: u32, body: &Value) -> Flow {
        let bytes = body.to_string().into_bytes();
        let size = bytes.len();
        self.of(id, |side| {
            side.buffers.insert(Buffer::Request as u32, bytes);
        });
        self.stream(id).request_body(size, true)
    }

    /// A part of its body comes, after which so many bytes are there.
    pub fn part_of_body(&self, id: u32, size: usize) -> Flow {
        self.stream(id).request_body(size, false)
    }

    /// A whole call.
    pub fn call(&self, key: &str, body: &Value) -> (u32, Flow) {
        let id = self.begin(key);
        (id, self.body(id, body))
    }

    /// The stream, while a callback of its own runs.
    fn stream(&self, id: u32) -> Rc<Stream> {
        self.host.as_context(id);
        Rc::clone(&self.streams.borrow()[&id])
    }

    /// The answer to the first call of the filter's own that has none yet; none: it is reset.
    pub fn answer_call(&self, answer: Option<(u16, &str)>) -> OwnCall {
        self.answer_with(|_| answer.map(|(status, body)| (status, body.as_bytes().to_vec())))
    }

    /// The same, by what that call was.
    pub fn answer_with(&self, answer: impl FnOnce(&OwnCall) -> Option<(u16, Vec<u8>)>) -> OwnCall {
        let call = self.host.calls.borrow_mut().remove(0);
        let answer = answer(&call);
        self.host.as_context(call.context);
        self.host.side(|side| {
            let (status, body) = answer.clone().unwrap_or_default();
            let mut headers = Headers::default();
            headers.text(":status", status.to_string());
            side.maps.insert(Map::CallResponse as u32, headers.encode());
            side.buffers.insert(Buffer::CallResponse as u32, body);
        });
        if call.context == ROOT {
            self.worker.call_answered(call.number, answer.is_some());
        } else {
            let stream = self.stream(call.context);
            stream.call_answered(call.number, answer.is_some());
        }
        call
    }

    /// The head of the provider's reply comes.
    pub fn reply_begins(&self, id: u32, status: u16) {
        self.response_headers(id, status, "via_upstream");
    }

    /// The headers of a response come, whoever makes it.
    pub fn response_headers(&self, id: u32, status: u16, details: &str) {
        self.of(id, |side| {
            let mut headers = Headers::default();
            headers.text(":status", status.to_string());
            headers.text("content-type", "application/json".to_owned());
            side.maps.insert(Map::Response as u32, headers.encode());
            let name = "response.code_details".to_owned();
            side.properties.insert(name, details.as_bytes().to_vec());
        });
        assert_eq!(self.stream(id).response_headers(false), Flow::Pause);
    }

    /// The rest of it comes.
    pub fn reply_ends(&self, id: u32, body: &str) -> Flow {
        self.of(id, |side| {
            let body = body.as_bytes().to_vec();
            side.buffers.insert(Buffer::Response as u32, body);
        });
        self.stream(id).response_body(true)
    }

    /// The stream is over: the host holds nothing of it any more.
    pub fn leaves(&self, id: u32) {
        self.is_logged(id);
        self.stream(id).done();
        self.host.streams.borrow_mut().remove(&id);
    }

    /// The stream is over, and its line of the access log is about to be written.
    pub fn is_logged(&self, id: u32) {
        self.stream(id).log();
    }

    /// What the access log can show of a stream.
    pub fn state(&self, id: u32, name: &str) -> Option<String> {
        let name = format!("filter_state.wasm.refund_{name}");
        let value = self.of(id, |side| side.properties.get(&name).cloned());
        value.map(|value| String::from_utf8(value).unwrap())
    }

    /// All calls that were counted, by what comes after `provider`.
    pub fn counted_calls(&self) -> Vec<String> {
        let values = self.host.values.borrow();
        let calls = values.iter().filter_map(|(name, count)| {
            let series = name.strip_prefix("refund.calls_total.provider.")?;
            Some(vec![series.to_owned(); usize::try_from(*count).unwrap()])
        });
        calls.flatten().collect()
    }

    /// How long these parts took, in milliseconds.
    pub fn durations(&self, phase: &str) -> Vec<u64> {
        let samples = self.host.samples.borrow();
        let ends = format!(".phase.{phase}");
        let found = samples.iter().filter(|(name, _)| name.ends_with(&ends));
        found.flat_map(|(_, values)| values.clone()).collect()
    }

    /// What the host holds of a call.
    pub fn of<T>(&self, id: u32, act: impl FnOnce(&mut Side) -> T) -> T {
        act(self.host.streams.borrow_mut().get_mut(&id).unwrap())
    }

    /// How often this was written to the log.
    pub fn logged(&self, part: &str) -> usize {
        let log = self.host.log.borrow();
        log.iter().filter(|line| line.contains(part)).count()
    }

    /// What a counter or a gauge shows.
    pub fn shows(&self, name: &str) -> u64 {
        self.host
            .values
            .borrow()
            .get(name)
            .copied()
            .unwrap_or_default()
    }

    /// The answer that a call got from the filter.
    #[track_caller]
    pub fn answered(&self, id: u32) -> Reply {
        let mut replies = self.of(id, |side| side.replies.clone());
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies.remove(0)
    }
}
