//! Envoy's callbacks, by the proxy-wasm SDK: each is handed to the [`Worker`] or to its [`Stream`].

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

use crate::host::envoy::Envoy;
use crate::worker::{Flow, Stream, Vm, Worker};

mod start {
    #![allow(missing_docs, reason = "the SDK's macro writes a function without any")]
    use super::{Envoy, Rc, Root, VM, Worker};

    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|id| {
            let vm = VM.with(Rc::clone);
            Box::new(Root(Rc::new(Worker::new(Rc::new(Envoy), id, vm))))
        });
    }}
}

thread_local! {
    static VM: Rc<Vm> = Rc::default();
}

/// The plugin in one worker.
struct Root(Rc<Worker>);

impl Context for Root {
    fn on_http_call_response(&mut self, call: u32, headers: usize, _body: usize, _trailers: usize) {
        self.0.call_answered(call, headers > 0);
    }

    fn on_done(&mut self) -> bool {
        self.0.close();
        true
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        self.0.configure(&|name| std::env::var(name).ok())
    }

    fn on_tick(&mut self) {
        self.0.tick();
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(HttpStream(Stream::new(Rc::clone(&self.0), id))))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One request and its response.
struct HttpStream(Rc<Stream>);

impl Context for HttpStream {
    fn on_http_call_response(&mut self, call: u32, headers: usize, _body: usize, _trailers: usize) {
        self.0.call_answered(call, headers > 0);
    }

    fn on_done(&mut self) -> bool {
        self.0.done();
        true
    }
}

impl HttpContext for HttpStream {
    fn on_log(&mut self) {
        self.0.log();
    }

    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        action(self.0.request_headers(end_of_stream))
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        action(self.0.request_body(size, end_of_stream))
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        action(self.0.request_trailers())
    }

    fn on_http_response_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        action(self.0.response_headers(end_of_stream))
    }

    fn on_http_response_body(&mut self, _size: usize, end_of_stream: bool) -> Action {
        action(self.0.response_body(end_of_stream))
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        action(self.0.response_trailers())
    }
}

fn action(flow: Flow) -> Action {
    match flow {
        Flow::Continue => Action::Continue,
        Flow::Pause => Action::Pause,
    }
}
