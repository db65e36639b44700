//! Buffers a call and its reply, and changes nothing: what is left of plain Envoy's speed for any filter in WebAssembly that
//! must see whole bodies. Configured with a private key (base64 of PKCS#8 DER), it also has Envoy sign once a call.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

/// As long as the text that BBMSL wants signed.
const TEXT: &[u8] =
    br#"{"merchantId":3,"orderId":1000004922,"merchantReference":"1655817171","amount":10}"#;

#[derive(Default)]
struct Root {
    /// The arguments of Envoy's function `sign`; empty: nothing is signed.
    arguments: Rc<Vec<u8>>,
}

struct Stream {
    arguments: Rc<Vec<u8>>,
}

/// The message `SignArguments`: `hash_function` (1), `private_key` (2, DER), `text` (3).
fn arguments(der: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    for (number, bytes) in [(1u8, &b"sha256"[..]), (2, der), (3, TEXT)] {
        message.push(number << 3 | 2);
        let mut length = bytes.len();
        while length > 0x7f {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(bytes);
    }
    message
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        if let Some(key) = self.get_plugin_configuration() {
            match STANDARD.decode(key) {
                Ok(der) => self.arguments = Rc::new(arguments(&der)),
                Err(_) => return false,
            }
        }
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream {
            arguments: Rc::clone(&self.arguments),
        }))
    }
}

impl Context for Stream {}

fn wait_for_the_end(end_of_stream: bool) -> Action {
    if end_of_stream {
        Action::Continue
    } else {
        Action::Pause
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        wait_for_the_end(end_of_stream)
    }

    fn on_http_request_body(&mut self, _size: usize, end_of_stream: bool) -> Action {
        if end_of_stream && !self.arguments.is_empty() {
            let result = hostcalls::call_foreign_function("sign", Some(&self.arguments));
            let length = result.ok().flatten().map_or(0, |message| message.len());
            // A signature of 256 bytes is in it.
            assert!(length > 256, "the host did not sign");
        }
        wait_for_the_end(end_of_stream)
    }

    fn on_http_response_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        wait_for_the_end(end_of_stream)
    }

    fn on_http_response_body(&mut self, _size: usize, end_of_stream: bool) -> Action {
        wait_for_the_end(end_of_stream)
    }
}
