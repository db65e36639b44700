//! The port to the host: proxy-wasm's imports, called so that no status makes the module panic.
//!
//! The SDK's own wrappers panic on every status that they do not expect and on every header that is not UTF-8; a panic is a
//! trap, and a trap ends all streams of its worker. Here every status is a value. Only the dispatch of callbacks and of
//! outgoing calls is the SDK's, since it alone can bind a call's answer to its context.

use std::ptr;

use crate::clock::Now;
use crate::headers::Headers;

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

/// The host's status for a compare-and-swap that came too late.
pub const CAS_MISMATCH: Refused = Refused(8);

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, message: *const u8, size: usize) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_buffer_bytes(
        buffer: u32,
        start: usize,
        length: usize,
        data: *const u8,
        size: usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_header_map_pairs(map: u32, data: *const u8, size: usize) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_property(path: *const u8, path_size: usize, data: *const u8, size: usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        data: *const u8,
        size: usize,
        cas: u32,
    ) -> u32;
    fn proxy_continue_stream(stream: u32) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_remove_header_map_value(map: u32, name: *const u8, size: usize) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_size: usize,
        arguments: *const u8,
        arguments_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
}

/// WASI's number of the clock that nobody can set.
const MONOTONIC: u32 = 1;

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, nanoseconds: *mut u64) -> u32;
}

fn done(status: u32) -> Result<(), Refused> {
    match status {
        0 => Ok(()),
        status => Err(Refused(status)),
    }
}

/// Takes over what the host has written into memory that it asked the module for.
fn taken(status: u32, data: *mut u8, size: usize) -> Option<Vec<u8>> {
    if status != 0 {
        return None;
    }
    if data.is_null() {
        return Some(Vec::new());
    }
    // SAFETY: the host got this memory from the SDK's `proxy_on_memory_allocate`, which makes it as a boxed slice of exactly
    // `size` bytes and gives it away; nobody else frees it.
    Some(unsafe { Vec::from_raw_parts(data, size, size) })
}

/// Writes a line to Envoy's log. Never a secret.
pub fn log(level: Level, message: &str) {
    // SAFETY: pointer and size are those of a live string, which the host reads before it returns.
    unsafe { proxy_log(level as u32, message.as_ptr(), message.len()) };
}

/// This moment. Envoy gives its steady clock by WASI's `clock_time_get` alone (seen on 1.36.4 and 1.40.0: the time since the
/// machine began, the same in all threads); a host without it has its leases measured by the other clock.
pub fn now() -> Now {
    let (mut unix, mut steady) = (0u64, 0u64);
    // SAFETY: the host writes eight bytes to where a live integer of eight bytes is.
    unsafe { proxy_get_current_time_nanoseconds(&raw mut unix) };
    // SAFETY: as above. The precision is one millisecond, in nanoseconds.
    let status = unsafe { clock_time_get(MONOTONIC, 1_000_000, &raw mut steady) };
    let milliseconds =
        |nanoseconds: u64| i64::try_from(nanoseconds.div_euclid(1_000_000)).unwrap_or(i64::MAX);
    Now {
        unix_ms: milliseconds(unix),
        steady_ms: milliseconds(if status == 0 { steady } else { unix }),
    }
}

/// Has the root context's `on_tick` called every so many milliseconds; 0 ends it.
pub fn set_tick_period(milliseconds: u32) {
    // SAFETY: no pointers.
    unsafe { proxy_set_tick_period_milliseconds(milliseconds) };
}

/// A whole buffer; none where there is none.
pub fn buffer(buffer: Buffer) -> Option<Vec<u8>> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the host writes to two live variables of the right size.
    let status = unsafe {
        proxy_get_buffer_bytes(buffer as u32, 0, usize::MAX, &raw mut data, &raw mut size)
    };
    taken(status, data, size)
}

/// Replaces a whole buffer.
pub fn set_buffer(buffer: Buffer, bytes: &[u8]) -> Result<(), Refused> {
    // SAFETY: pointer and size are those of a live slice.
    done(unsafe {
        proxy_set_buffer_bytes(buffer as u32, 0, usize::MAX, bytes.as_ptr(), bytes.len())
    })
}

/// A header map in proxy-wasm's form, for [`Headers::decode`].
pub fn headers(map: Map) -> Option<Vec<u8>> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the host writes to two live variables of the right size.
    let status = unsafe { proxy_get_header_map_pairs(map as u32, &raw mut data, &raw mut size) };
    taken(status, data, size)
}

/// Replaces a whole header map.
pub fn set_headers(map: Map, headers: &Headers<'_>) -> Result<(), Refused> {
    let bytes = headers.encode();
    // SAFETY: pointer and size are those of a live vector.
    done(unsafe { proxy_set_header_map_pairs(map as u32, bytes.as_ptr(), bytes.len()) })
}

/// A property of the stream, as bytes.
pub fn property(path: &[&str]) -> Option<Vec<u8>> {
    let path = path.join("\0");
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the path is alive, and the host writes to two live variables of the right size.
    let status =
        unsafe { proxy_get_property(path.as_ptr(), path.len(), &raw mut data, &raw mut size) };
    taken(status, data, size)
}

/// A property that is text.
pub fn text_property(path: &[&str]) -> Option<String> {
    String::from_utf8(property(path)?).ok()
}

/// A property that is an integer: eight bytes, little-endian.
pub fn integer_property(path: &[&str]) -> Option<u64> {
    Some(u64::from_le_bytes(property(path)?.try_into().ok()?))
}

/// Sets a property: it becomes the filter state `wasm.NAME`.
pub fn set_property(name: &str, value: &str) -> Result<(), Refused> {
    // SAFETY: pointers and sizes are those of live strings.
    done(unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) })
}

/// What all workers share under a key, and the number to swap it by; empty and 0 where there is nothing yet.
pub fn shared_data(key: &str) -> (Vec<u8>, u32) {
    let (mut data, mut size, mut cas) = (ptr::null_mut(), 0, 0);
    // SAFETY: the key is alive, and the host writes to three live variables of the right size.
    let status = unsafe {
        proxy_get_shared_data(
            key.as_ptr(),
            key.len(),
            &raw mut data,
            &raw mut size,
            &raw mut cas,
        )
    };
    match taken(status, data, size) {
        Some(bytes) => (bytes, cas),
        None => (Vec::new(), 0),
    }
}

/// Shares bytes under a key if nobody has changed them since `cas` was read. (0 always writes.)
pub fn set_shared_data(key: &str, bytes: &[u8], cas: u32) -> Result<(), Refused> {
    // SAFETY: pointers and sizes are those of live slices.
    done(unsafe {
        proxy_set_shared_data(key.as_ptr(), key.len(), bytes.as_ptr(), bytes.len(), cas)
    })
}

/// Lets a paused request go on.
pub fn resume_request() -> Result<(), Refused> {
    // SAFETY: no pointers.
    done(unsafe { proxy_continue_stream(0) })
}

/// Makes the calls after this one speak of another context; an error where that context is gone.
pub fn set_effective_context(context: u32) -> Result<(), Refused> {
    // SAFETY: no pointers.
    done(unsafe { proxy_set_effective_context(context) })
}

/// Answers the stream. `details` show as `%RESPONSE_CODE_DETAILS%`.
pub fn reply(
    status: u16,
    details: &str,
    headers: &Headers<'_>,
    body: &[u8],
) -> Result<(), Refused> {
    let headers = headers.encode();
    // SAFETY: pointers and sizes are those of live slices. -1: this is no gRPC.
    done(unsafe {
        proxy_send_local_response(
            u32::from(status),
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            -1,
        )
    })
}

/// What a metric is.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Metric {
    /// It only grows.
    Counter = 0,
    /// It is set.
    Gauge = 1,
}

/// Defines a metric; a new id each time, also for a name that is defined already.
pub fn metric(kind: Metric, name: &str) -> Option<u32> {
    let mut id = 0;
    // SAFETY: the name is alive, and the host writes to a live integer.
    let status =
        unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id) };
    done(status).ok().map(|()| id)
}

/// Sets a gauge.
pub fn record(id: u32, value: u64) {
    // SAFETY: no pointers.
    unsafe { proxy_record_metric(id, value) };
}

/// Takes a header away from the request.
pub fn remove_request_header(name: &str) -> Result<(), Refused> {
    // SAFETY: pointer and size are those of a live string.
    done(unsafe { proxy_remove_header_map_value(Map::Request as u32, name.as_ptr(), name.len()) })
}

/// The host's status where it has nothing of that name.
pub const NOT_FOUND: Refused = Refused(1);

/// Calls a function that Envoy offers by name.
pub fn call_foreign_function(name: &str, arguments: &[u8]) -> Result<Vec<u8>, Refused> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: name and arguments are alive, and the host writes to two live variables of the right size.
    let status = unsafe {
        proxy_call_foreign_function(
            name.as_ptr(),
            name.len(),
            arguments.as_ptr(),
            arguments.len(),
            &raw mut data,
            &raw mut size,
        )
    };
    taken(status, data, size).ok_or(Refused(status))
}

/// Adds one to a counter.
pub fn count(id: u32) {
    // SAFETY: no pointers.
    unsafe { proxy_increment_metric(id, 1) };
}
