//! Stands in for the filter where a test needs a trap: the filter itself has none.
//!
//! A call says by headers what becomes of it. `x-trap-provider`, `x-trap-retry` and
//! `x-trap-retry-until` are the filter state that the filter would have set by then
//! (`wasm.refund_provider` and so on). `x-trap` is the moment:
//!
//! - `request`: traps before any filter state is set, as in reading the call;
//! - `sent`: traps in the request's callback when the filter state is set, as in writing the
//!   provider's request;
//! - `reply`: lets the call go and traps at the provider's reply;
//! - `reply-body`: the same, at the reply's end;
//! - `reply-hold`: lets it go and holds the reply for ever;
//! - `wait`: holds the call for ever, as one that waits for a token.
//!
//! Every other call goes through with that filter state.

#![cfg(target_os = "wasi")]

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root));
}}

struct Root;

impl Context for Root {}

impl RootContext for Root {
    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            moment: String::new(),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Stream {
    moment: String,
}

impl Stream {
    fn trap_at(&self, moment: &str) {
        if self.moment == moment {
            core::arch::wasm32::unreachable();
        }
    }

    fn held_at(&self, moments: &[&str]) -> Action {
        if moments.contains(&self.moment.as_str()) {
            Action::Pause
        } else {
            Action::Continue
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        self.moment = self.get_http_request_header("x-trap").unwrap_or_default();
        self.trap_at("request");
        for (header, state) in [
            ("x-trap-provider", "refund_provider"),
            ("x-trap-retry", "refund_retry"),
            ("x-trap-retry-until", "refund_retry_until"),
        ] {
            if let Some(value) = self.get_http_request_header(header) {
                self.set_property(vec![state], Some(value.as_bytes()));
                // A write to the headers has the route chosen anew, by the filter state.
                self.set_http_request_header(header, None);
            }
        }
        self.trap_at("sent");
        self.held_at(&["wait"])
    }

    fn on_http_request_body(&mut self, _: usize, _: bool) -> Action {
        self.held_at(&["wait"])
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        let details = self.get_property(vec!["response", "code_details"]);
        if details.as_deref() != Some(b"via_upstream") {
            return Action::Continue;
        }
        self.set_property(vec!["refund_reply"], Some(b"started"));
        self.trap_at("reply");
        self.held_at(&["reply-body", "reply-hold"])
    }

    fn on_http_response_body(&mut self, _: usize, end_of_stream: bool) -> Action {
        if end_of_stream {
            self.trap_at("reply-body");
        }
        self.held_at(&["reply-body", "reply-hold"])
    }
}
