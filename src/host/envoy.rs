//! Envoy's port: proxy-wasm's imports.
//!
//! The SDK's own wrappers panic on every status that they do not expect and on every header that is
//! not UTF-8. Only the dispatch of callbacks and of outgoing calls is the SDK's, since it alone can
//! bind a call's answer to its context.

use std::ptr;
use std::time::Duration;

use getrandom::SysRng;
use proxy_wasm::hostcalls::dispatch_http_call;
use rand_core::TryRng as _;

use super::{Buffer, Host, Level, Map, Metric, NoRandomness, Refused};
use crate::clock::Now;
use crate::headers::Headers;
use crate::memory::{Memory, NotWritten};

/// The host's status for a compare-and-swap that came too late.
const CAS_MISMATCH: Refused = Refused(8);

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
    // SAFETY: the host got this memory from the SDK's `proxy_on_memory_allocate`, which makes it as
    // a boxed slice of exactly `size` bytes and gives it away; nobody else frees it.
    Some(unsafe { Vec::from_raw_parts(data, size, size) })
}

/// The host that Envoy is.
#[derive(Debug, Clone, Copy)]
pub struct Envoy;

impl Memory for Envoy {
    fn read(&self, name: &str) -> (Vec<u8>, u32) {
        let (mut data, mut size, mut number) = (ptr::null_mut(), 0, 0);
        // SAFETY: the name is alive, and the host writes to three live variables of the right size.
        let status = unsafe {
            proxy_get_shared_data(
                name.as_ptr(),
                name.len(),
                &raw mut data,
                &raw mut size,
                &raw mut number,
            )
        };
        match taken(status, data, size) {
            Some(bytes) => (bytes, number),
            None => (Vec::new(), 0),
        }
    }

    fn write(&self, name: &str, bytes: &[u8], number: u32) -> Result<(), NotWritten> {
        // SAFETY: pointers and sizes are those of live slices.
        let status = unsafe {
            proxy_set_shared_data(
                name.as_ptr(),
                name.len(),
                bytes.as_ptr(),
                bytes.len(),
                number,
            )
        };
        match done(status) {
            Ok(()) => Ok(()),
            Err(CAS_MISMATCH) => Err(NotWritten::TooLate),
            Err(_) => Err(NotWritten::Refused),
        }
    }
}

impl Host for Envoy {
    fn log(&self, level: Level, message: &str) {
        // SAFETY: pointer and size are those of a live string, which the host reads before it
        // returns.
        unsafe { proxy_log(level as u32, message.as_ptr(), message.len()) };
    }

    /// Envoy gives its steady clock by WASI's `clock_time_get` alone (seen on 1.36.4 and 1.40.0:
    /// the time since the machine began, the same in all threads); a host without it has its leases
    /// measured by the other clock.
    fn now(&self) -> Now {
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

    fn set_tick_period(&self, milliseconds: u32) {
        // SAFETY: no pointers.
        unsafe { proxy_set_tick_period_milliseconds(milliseconds) };
    }

    fn buffer(&self, buffer: Buffer) -> Option<Vec<u8>> {
        let (mut data, mut size) = (ptr::null_mut(), 0);
        // SAFETY: the host writes to two live variables of the right size.
        let status = unsafe {
            proxy_get_buffer_bytes(buffer as u32, 0, usize::MAX, &raw mut data, &raw mut size)
        };
        taken(status, data, size)
    }

    fn set_buffer(&self, buffer: Buffer, bytes: &[u8]) -> Result<(), Refused> {
        // SAFETY: pointer and size are those of a live slice.
        done(unsafe {
            proxy_set_buffer_bytes(buffer as u32, 0, usize::MAX, bytes.as_ptr(), bytes.len())
        })
    }

    fn headers(&self, map: Map) -> Option<Vec<u8>> {
        let (mut data, mut size) = (ptr::null_mut(), 0);
        // SAFETY: the host writes to two live variables of the right size.
        let status =
            unsafe { proxy_get_header_map_pairs(map as u32, &raw mut data, &raw mut size) };
        taken(status, data, size)
    }

    fn set_headers(&self, map: Map, headers: &Headers<'_>) -> Result<(), Refused> {
        let bytes = headers.encode();
        // SAFETY: pointer and size are those of a live vector.
        done(unsafe { proxy_set_header_map_pairs(map as u32, bytes.as_ptr(), bytes.len()) })
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        let path = path.join("\0");
        let (mut data, mut size) = (ptr::null_mut(), 0);
        // SAFETY: the path is alive, and the host writes to two live variables of the right size.
        let status =
            unsafe { proxy_get_property(path.as_ptr(), path.len(), &raw mut data, &raw mut size) };
        taken(status, data, size)
    }

    fn set_property(&self, name: &str, value: &str) -> Result<(), Refused> {
        // SAFETY: pointers and sizes are those of live strings.
        done(unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) })
    }

    fn resume_request(&self) -> Result<(), Refused> {
        // SAFETY: no pointers.
        done(unsafe { proxy_continue_stream(0) })
    }

    fn resume_response(&self) -> Result<(), Refused> {
        // SAFETY: no pointers.
        done(unsafe { proxy_continue_stream(1) })
    }

    fn set_effective_context(&self, context: u32) -> Result<(), Refused> {
        // SAFETY: no pointers.
        done(unsafe { proxy_set_effective_context(context) })
    }

    fn reply(
        &self,
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

    fn define_metric(&self, kind: Metric, name: &str) -> Option<u32> {
        let mut id = 0;
        // SAFETY: the name is alive, and the host writes to a live integer.
        let status =
            unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id) };
        done(status).ok().map(|()| id)
    }

    fn record(&self, id: u32, value: u64) {
        // SAFETY: no pointers.
        unsafe { proxy_record_metric(id, value) };
    }

    fn remove_request_header(&self, name: &str) -> Result<(), Refused> {
        // SAFETY: pointer and size are those of a live string.
        done(unsafe {
            proxy_remove_header_map_value(Map::Request as u32, name.as_ptr(), name.len())
        })
    }

    fn call_foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Refused> {
        let (mut data, mut size) = (ptr::null_mut(), 0);
        // SAFETY: name and arguments are alive, and the host writes to two live variables of the
        // right size.
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

    fn count(&self, id: u32) {
        // SAFETY: no pointers.
        unsafe { proxy_increment_metric(id, 1) };
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        SysRng.try_fill_bytes(bytes).map_err(|_| NoRandomness)
    }

    /// The SDK's wrapper must be used, since it alone binds the answer to the context that is
    /// running; the statuses at which it would panic are none that Envoy gives here.
    fn dispatch_http_call(
        &self,
        cluster: &str,
        headers: &Headers<'_>,
        body: &[u8],
        timeout_ms: u32,
    ) -> Option<u32> {
        // What the SDK cannot take is a caller's tracing header that is not UTF-8: all else is the
        // gateway's own.
        let pairs = headers
            .iter()
            .filter_map(|(name, value)| {
                Some((
                    std::str::from_utf8(name).ok()?,
                    std::str::from_utf8(value).ok()?,
                ))
            })
            .collect();
        let timeout = Duration::from_millis(u64::from(timeout_ms));
        dispatch_http_call(cluster, pairs, Some(body), Vec::new(), timeout).ok()
    }
}
