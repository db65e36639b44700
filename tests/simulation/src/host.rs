//! The host of one worker: Envoy as the filter sees it, without Envoy.
//!
//! What a worker asks for that takes time is an [`Effect`], which the world carries out after the
//! callback.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem;
use std::rc::Rc;

use refund_filter::clock::Now;
use refund_filter::headers::Headers;
use refund_filter::host::{Buffer, Host, Level, Map, Metric, NOT_FOUND, NoRandomness, Refused};
use refund_filter::memory::{Memory, NotWritten};

use crate::chance::Dice;

/// The root context's id.
pub const ROOT: u32 = 1;
/// proxy-wasm's `BadArgument`.
const BAD: Refused = Refused(2);
/// The beginning of the names of what the guard remembers.
const GUARD: &str = "refund.guard.";

/// What a callback wants done.
#[derive(Debug)]
pub enum Effect {
    /// A stream is answered.
    Reply {
        context: u32,
        status: u16,
        details: String,
        retry_after: Option<i64>,
        replayed: bool,
        body: Vec<u8>,
    },
    /// A paused request goes on.
    Resume { context: u32 },
    /// A paused response goes on.
    ResumeResponse { context: u32 },
    /// A call of the filter's own.
    Call {
        context: u32,
        number: u32,
        cluster: String,
        path: String,
        body: Vec<u8>,
        timeout_ms: i64,
    },
    /// The root is to be called in so many milliseconds, and again.
    Tick(i64),
}

/// The clocks of one machine.
#[derive(Default)]
pub struct Clock {
    /// The world's time, in milliseconds.
    pub world: Rc<Cell<i64>>,
    /// What Unix time is at the world's beginning, by this machine.
    pub unix_ms: Cell<i64>,
    /// What the steady clock is then.
    pub steady_ms: i64,
}

/// What the workers of one process share.
#[derive(Default)]
pub struct SharedMemory {
    pub values: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    /// Of so many writes to the guard one is lost; 0: none.
    pub forgets_one_in: u32,
}

/// What Envoy holds of a stream.
#[derive(Default)]
pub struct Side {
    pub request: Vec<u8>,
    pub response: Vec<u8>,
    pub request_body: Vec<u8>,
    pub response_body: Vec<u8>,
    /// Filter state.
    pub state: Vec<(String, String)>,
    pub details: &'static str,
    /// Whether a connection to the provider was handed out.
    pub connected: bool,
    pub http2: bool,
}

/// See the module.
pub struct SimHost {
    clock: Rc<Clock>,
    memory: Rc<SharedMemory>,
    dice: Dice,
    configuration: Vec<u8>,
    sides: RefCell<HashMap<u32, Side>>,
    /// The context that calls speak of.
    effective: Cell<u32>,
    running: Cell<u32>,
    /// The answer to a call of the filter's own, while it is told.
    call_answer: RefCell<Option<(Vec<u8>, Vec<u8>)>>,
    effects: RefCell<Vec<Effect>>,
    made: Cell<u32>,
    metrics: Cell<u32>,
    /// The process is gone.
    pub dead: Cell<bool>,
}

impl SimHost {
    pub fn new(
        clock: Rc<Clock>,
        memory: Rc<SharedMemory>,
        dice: Dice,
        configuration: Vec<u8>,
    ) -> Self {
        SimHost {
            clock,
            memory,
            dice,
            configuration,
            sides: RefCell::default(),
            effective: Cell::new(ROOT),
            running: Cell::new(ROOT),
            call_answer: RefCell::default(),
            effects: RefCell::default(),
            made: Cell::default(),
            metrics: Cell::default(),
            dead: Cell::default(),
        }
    }

    /// Begins a callback of this context.
    pub fn enter(&self, context: u32) {
        self.running.set(context);
        self.effective.set(context);
    }

    /// What the callback wants done.
    pub fn effects(&self) -> Vec<Effect> {
        mem::take(&mut *self.effects.borrow_mut())
    }

    /// Begins to hold a stream.
    pub fn open(&self, context: u32, side: Side) {
        self.sides.borrow_mut().insert(context, side);
    }

    /// Holds a stream no longer.
    pub fn close(&self, context: u32) -> Option<Side> {
        self.sides.borrow_mut().remove(&context)
    }

    /// Looks at a stream, or changes what is held of it.
    pub fn side<T>(&self, context: u32, act: impl FnOnce(&mut Side) -> T) -> Option<T> {
        self.sides.borrow_mut().get_mut(&context).map(act)
    }

    /// What answers the call whose callback comes next.
    pub fn set_call_answer(&self, answer: Option<(Vec<u8>, Vec<u8>)>) {
        self.call_answer.replace(answer);
    }

    fn effect(&self, effect: Effect) {
        self.effects.borrow_mut().push(effect);
    }

    fn effective<T>(&self, act: impl FnOnce(&mut Side) -> T) -> Option<T> {
        self.side(self.effective.get(), act)
    }
}

impl Side {
    /// The value of a filter state, without the prefix that all have.
    pub fn state(&self, name: &str) -> Option<&str> {
        let mut state = self.state.iter();
        let found = state.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Memory for SimHost {
    fn read(&self, name: &str) -> (Vec<u8>, u32) {
        let values = self.memory.values.borrow();
        values.get(name).cloned().unwrap_or_default()
    }

    fn write(&self, name: &str, bytes: &[u8], number: u32) -> Result<(), NotWritten> {
        let mut values = self.memory.values.borrow_mut();
        let (known, now) = match values.get_mut(name) {
            Some(value) => value,
            None => values.entry(name.to_owned()).or_default(),
        };
        if self.dead.get() {
            return Ok(());
        }
        if number != 0 && *now != 0 && *now != number {
            return Err(NotWritten::TooLate);
        }
        let forgets = self.memory.forgets_one_in;
        if forgets > 0 && name.starts_with(GUARD) && self.dice.one_in(forgets) {
            return Ok(());
        }
        known.clear();
        known.extend_from_slice(bytes);
        *now += 1;
        Ok(())
    }
}

impl Host for SimHost {
    fn log(&self, _level: Level, _message: &str) {}

    fn now(&self) -> Now {
        let world = self.clock.world.get();
        Now {
            unix_ms: self.clock.unix_ms.get() + world,
            steady_ms: self.clock.steady_ms + world,
        }
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        self.dice.fill(bytes);
        Ok(())
    }

    fn set_tick_period(&self, milliseconds: u32) {
        self.effect(Effect::Tick(i64::from(milliseconds)));
    }

    fn buffer(&self, buffer: Buffer) -> Option<Vec<u8>> {
        match buffer {
            Buffer::Configuration => Some(self.configuration.clone()),
            Buffer::CallResponse => {
                let answer = self.call_answer.borrow();
                answer.as_ref().map(|(_, body)| body.clone())
            }
            Buffer::Request => self.effective(|side| side.request_body.clone()),
            Buffer::Response => self.effective(|side| side.response_body.clone()),
        }
    }

    fn set_buffer(&self, buffer: Buffer, bytes: &[u8]) -> Result<(), Refused> {
        let set = self.effective(|side| match buffer {
            Buffer::Request => side.request_body = bytes.to_vec(),
            Buffer::Response => side.response_body = bytes.to_vec(),
            Buffer::CallResponse | Buffer::Configuration => {}
        });
        set.ok_or(BAD)
    }

    fn headers(&self, map: Map) -> Option<Vec<u8>> {
        match map {
            Map::Request => self.effective(|side| side.request.clone()),
            Map::Response => self.effective(|side| side.response.clone()),
            Map::RequestTrailers => None,
            Map::CallResponse => {
                let answer = self.call_answer.borrow();
                answer.as_ref().map(|(headers, _)| headers.clone())
            }
        }
    }

    fn set_headers(&self, map: Map, headers: &Headers<'_>) -> Result<(), Refused> {
        let set = self.effective(|side| match map {
            Map::Request => side.request = headers.encode(),
            Map::Response => side.response = headers.encode(),
            Map::RequestTrailers | Map::CallResponse => {}
        });
        set.ok_or(BAD)
    }

    fn remove_request_header(&self, _name: &str) -> Result<(), Refused> {
        Ok(())
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.effective(|side| match path {
            ["request", "protocol"] => {
                let protocol: &[u8] = if side.http2 { b"HTTP/2" } else { b"HTTP/1.1" };
                Some(protocol.to_vec())
            }
            ["response", "code_details"] => Some(side.details.as_bytes().to_vec()),
            // The routes do not retry.
            ["upstream", "request_attempt_count"] => Some(1u64.to_le_bytes().to_vec()),
            ["upstream", "local_address"] if side.connected => Some(b"10.0.0.1:40000".to_vec()),
            ["filter_state", name] => {
                let value = side.state(name.strip_prefix("wasm.")?)?;
                Some(value.as_bytes().to_vec())
            }
            _ => None,
        })
        .flatten()
    }

    fn set_property(&self, name: &str, value: &str) -> Result<(), Refused> {
        let set =
            self.effective(
                |side| match side.state.iter_mut().find(|(known, _)| known == name) {
                    Some((_, known)) => value.clone_into(known),
                    None => side.state.push((name.to_owned(), value.to_owned())),
                },
            );
        set.ok_or(BAD)
    }

    fn reply(
        &self,
        status: u16,
        details: &str,
        headers: &Headers<'_>,
        body: &[u8],
    ) -> Result<(), Refused> {
        let context = self.effective.get();
        self.side(context, |_| ()).ok_or(BAD)?;
        self.effect(Effect::Reply {
            context,
            status,
            details: details.to_owned(),
            retry_after: retry_after(headers),
            replayed: headers.first("idempotency-replayed").is_some(),
            body: body.to_vec(),
        });
        Ok(())
    }

    fn resume_request(&self) -> Result<(), Refused> {
        let context = self.effective.get();
        self.side(context, |_| ()).ok_or(BAD)?;
        self.effect(Effect::Resume { context });
        Ok(())
    }

    fn resume_response(&self) -> Result<(), Refused> {
        let context = self.effective.get();
        self.side(context, |_| ()).ok_or(BAD)?;
        self.effect(Effect::ResumeResponse { context });
        Ok(())
    }

    fn set_effective_context(&self, context: u32) -> Result<(), Refused> {
        if context != ROOT && self.side(context, |_| ()).is_none() {
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
        timeout_ms: u32,
    ) -> Option<u32> {
        if self.dead.get() {
            return None;
        }
        assert_eq!(
            self.running.get(),
            self.effective.get(),
            "the SDK and the host would bind the answer to two contexts"
        );
        let number = self.made.get() + 1;
        self.made.set(number);
        let path = headers.first(":path").unwrap_or_default();
        self.effect(Effect::Call {
            context: self.effective.get(),
            number,
            cluster: cluster.to_owned(),
            path: String::from_utf8_lossy(path).into_owned(),
            body: body.to_vec(),
            timeout_ms: i64::from(timeout_ms),
        });
        Some(number)
    }

    fn call_foreign_function(&self, _name: &str, _arguments: &[u8]) -> Result<Vec<u8>, Refused> {
        Err(NOT_FOUND)
    }

    fn define_metric(&self, _kind: Metric, _name: &str) -> Option<u32> {
        self.metrics.set(self.metrics.get() + 1);
        Some(self.metrics.get())
    }

    fn count(&self, _id: u32) {}

    fn record(&self, _id: u32, _value: u64) {}
}

/// The seconds of a `retry-after`.
pub fn retry_after(headers: &Headers<'_>) -> Option<i64> {
    let value = headers.first("retry-after")?;
    std::str::from_utf8(value).ok()?.parse().ok()
}
