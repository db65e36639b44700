//! The port to the host: what the worker asks of it. `envoy` is proxy-wasm's; tests bring their
//! own.
//!
//! Every status is a value. A panic is a trap, and a trap ends all streams of its worker.

use std::fmt;

use rand_core::{TryCryptoRng, TryRng};

use crate::clock::Now;
use crate::headers::Headers;
use crate::memory::Memory;

#[cfg(target_os = "wasi")]
pub mod envoy;

/// What a worker asks of its host. What speaks of a stream speaks of the one whose callback runs,
/// or of the effective context. The memory is the one that all workers share.
pub trait Host: Memory {
    /// Writes a line to the host's log. Never a secret.
    fn log(&self, level: Level, message: &str);

    /// This moment.
    fn now(&self) -> Now;

    /// Fills these bytes with randomness fit for keys.
    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;

    /// Has the root's tick called every so many milliseconds; 0 ends it.
    fn set_tick_period(&self, milliseconds: u32);

    /// A whole buffer; none where there is none.
    fn buffer(&self, buffer: Buffer) -> Option<Vec<u8>>;

    /// Replaces a whole buffer.
    fn set_buffer(&self, buffer: Buffer, bytes: &[u8]) -> Result<(), Refused>;

    /// A header map in proxy-wasm's form, for [`Headers::decode`].
    fn headers(&self, map: Map) -> Option<Vec<u8>>;

    /// Replaces a whole header map.
    fn set_headers(&self, map: Map, headers: &Headers<'_>) -> Result<(), Refused>;

    /// Takes a header away from the request.
    fn remove_request_header(&self, name: &str) -> Result<(), Refused>;

    /// A property of the stream, as bytes.
    fn property(&self, path: &[&str]) -> Option<Vec<u8>>;

    /// Sets a property: it becomes the filter state `wasm.NAME`.
    fn set_property(&self, name: &str, value: &str) -> Result<(), Refused>;

    /// Answers the stream. `details` show as `%RESPONSE_CODE_DETAILS%`.
    fn reply(
        &self,
        status: u16,
        details: &str,
        headers: &Headers<'_>,
        body: &[u8],
    ) -> Result<(), Refused>;

    /// Lets a paused request go on.
    fn resume_request(&self) -> Result<(), Refused>;

    /// Lets a paused response go on.
    fn resume_response(&self) -> Result<(), Refused>;

    /// Makes the calls after this one speak of another context; an error where that context is
    /// gone.
    fn set_effective_context(&self, context: u32) -> Result<(), Refused>;

    /// Makes a call of the filter's own, and gives its number. Its answer comes to the context
    /// whose callback runs.
    fn dispatch_http_call(
        &self,
        cluster: &str,
        headers: &Headers<'_>,
        body: &[u8],
        timeout_ms: u32,
    ) -> Option<u32>;

    /// Calls a function that the host offers by name.
    fn call_foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Refused>;

    /// Defines a metric; a new id each time, also for a name that is defined already.
    fn define_metric(&self, kind: Metric, name: &str) -> Option<u32>;

    /// Adds one to a counter.
    fn count(&self, id: u32);

    /// Sets a gauge, or gives a histogram one more value.
    fn record(&self, id: u32, value: u64);
}

impl dyn Host + '_ {
    /// A property that is text.
    pub fn text_property(&self, path: &[&str]) -> Option<String> {
        String::from_utf8(self.property(path)?).ok()
    }

    /// A property that is an integer: eight bytes, little-endian.
    pub fn integer_property(&self, path: &[&str]) -> Option<u64> {
        Some(u64::from_le_bytes(self.property(path)?.try_into().ok()?))
    }
}

/// A header map of a stream or of an answered call.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Map {
    /// The request's headers.
    Request = 0,
    /// The request's trailers.
    RequestTrailers = 1,
    /// The response's headers.
    Response = 2,
    /// The headers of the answer to a call of the filter's own.
    CallResponse = 6,
}

/// A body or another text that the host holds.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Buffer {
    /// The request's body.
    Request = 0,
    /// The response's body.
    Response = 1,
    /// The body of the answer to a call of the filter's own.
    CallResponse = 4,
    /// The plugin's configuration.
    Configuration = 7,
}

/// How loud a log line is.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Level {
    /// For who follows what happens.
    Info = 2,
    /// Needs attention.
    Warn = 3,
    /// For who must look now.
    Error = 4,
}

/// The host said no; the number is its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub u32);

/// The host's status where it has nothing of that name.
pub const NOT_FOUND: Refused = Refused(1);

/// What a metric is.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Metric {
    /// It only grows.
    Counter = 0,
    /// It is set.
    Gauge = 1,
    /// Its values are counted by size.
    Histogram = 2,
}

/// The host has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRandomness;

impl fmt::Display for NoRandomness {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the host has no randomness to give")
    }
}

impl std::error::Error for NoRandomness {}

/// The host's randomness, for who takes a generator.
#[derive(Clone, Copy)]
pub struct Randomness<'h>(pub &'h dyn Host);

impl TryRng for Randomness<'_> {
    type Error = NoRandomness;

    fn try_next_u32(&mut self) -> Result<u32, NoRandomness> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, NoRandomness> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        self.0.fill_random(bytes)
    }
}

impl TryCryptoRng for Randomness<'_> {}
