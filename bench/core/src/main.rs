//! One step of one golden call through the core, once, in a function that callgrind can be told of. Prints the step's
//! allocations.
//!
//! The same call goes through once before, unseen, so that nothing that is done once a process is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use refund_filter::clock::Now;
use refund_filter::config::Config;
use refund_filter::exchange::{Answer, Dispatch, Opening, ReplyHead, Sent, Step, open};
use refund_filter::guard::Claim;
use refund_filter::headers::Headers;
use refund_filter::secret::Secret;
use refund_filter::signing::{PrivateKey, Signer, SignerChoice, SignerFailed};
use serde_json::Value;

/// Counts what the core asks for.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system's; the counting touches no memory of theirs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// When the call comes.
const NOW: Now = Now {
    unix_ms: 1_795_000_000_000,
    steady_ms: 1_000_000_000,
};

/// The core is measured, not the signature.
struct NoSigner;

impl Signer for NoSigner {
    fn sign(&mut self, _: SignerChoice, _: &PrivateKey, _: &[u8]) -> Result<Vec<u8>, SignerFailed> {
        Ok(vec![1; 256])
    }
}

/// A golden call, and what came back.
struct Case {
    config: Rc<Config>,
    headers: Headers<'static>,
    body: String,
    reply_head: Vec<u8>,
    reply_body: String,
}

impl Case {
    fn read(path: &str) -> Option<Case> {
        let golden: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let name = golden["configured_as"].as_str()?;
        let mut text = serde_json::json!({"providers": {name: golden["provider"]}}).to_string();
        if let Some((folder, _)) = path.rsplit_once('/') {
            // The one file that a golden configuration names.
            let key =
                std::fs::read_to_string(format!("{folder}/private_key.pem")).unwrap_or_default();
            text = text.replace("@private_key.pem", &key.trim().replace('\n', "\\n"));
        }
        let config = Config::read(text.as_bytes(), &|_| None).ok()?;
        let mut headers = Headers::default();
        for (name, value) in [
            (":method", "POST"),
            (":path", "/v1/refunds"),
            (":scheme", "http"),
            (":authority", "gateway"),
            ("content-type", "application/json"),
            ("x-request-id", "0191f5a7-44a9-46c2-9fec-39709fdbf723"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-for", "127.0.0.1"),
        ] {
            headers.text(name, value.to_owned());
        }
        headers.text(
            "idempotency-key",
            golden["call"]["idempotency_key"].as_str()?.to_owned(),
        );
        let mut reply_head = Headers::default();
        reply_head.text(":status", golden["provider_reply"]["status"].to_string());
        reply_head.text("content-type", "application/json".to_owned());
        Some(Case {
            config: Rc::new(config),
            headers,
            body: golden["call"]["body"].to_string(),
            reply_head: reply_head.encode(),
            reply_body: golden["provider_reply"]["body"].as_str()?.to_owned(),
        })
    }

    /// From the call to the provider's request, as it goes to the host.
    #[inline(always)]
    fn request(&self, call: &[u8]) -> Option<(Sent, Vec<u8>)> {
        let headers = Headers::decode(call)?;
        let earlier = |_: &_| None;
        let Opening::Read(reading) = open(&self.config, &headers, NOW, &earlier, &|_| None) else {
            return None;
        };
        let accepted = reading.accept(self.body.as_bytes(), &earlier).ok()?;
        let mut step = accepted.proceed(Claim::Unguarded, NOW, &mut NoSigner, &|_| None);
        if let Step::Waiting(waiting) = step {
            let token = Secret::new("a-token-as-long-as-they-are".repeat(8));
            step = waiting.with_token(token);
        }
        let Step::Leaving(dispatch) = step else {
            return None;
        };
        let Dispatch { headers, sent, .. } = *dispatch;
        Some((sent, headers.encode()))
    }

    /// From the provider's reply to the answer, as it goes to the host.
    #[inline(always)]
    fn reply(&self, sent: Sent) -> Option<(Answer, Vec<u8>)> {
        let head = ReplyHead::of(&Headers::decode(&self.reply_head)?);
        let answer = sent.reply(&head, self.reply_body.as_bytes(), 1);
        let headers = answer.headers.encode();
        Some((answer, headers))
    }
}

/// What callgrind counts. The name is given to it.
#[unsafe(no_mangle)]
#[inline(never)]
fn measured_request(case: &Case, call: &[u8]) -> Option<(Sent, Vec<u8>)> {
    case.request(call)
}

/// What callgrind counts. The name is given to it.
#[unsafe(no_mangle)]
#[inline(never)]
fn measured_reply(case: &Case, sent: Sent) -> Option<(Answer, Vec<u8>)> {
    case.reply(sent)
}

fn run(step: &str, path: &str) -> Option<()> {
    let case = Case::read(path)?;
    let call = case.headers.encode();
    let (sent, _) = black_box(case.request(&call)?);
    let (answer, _) = black_box(case.reply(sent)?);
    if answer.status > 202 {
        return None;
    }
    let before = if step == "reply" {
        let (sent, _) = case.request(&call)?;
        let before = (
            ALLOCATIONS.load(Ordering::Relaxed),
            BYTES.load(Ordering::Relaxed),
        );
        black_box(measured_reply(&case, sent)?);
        before
    } else {
        let before = (
            ALLOCATIONS.load(Ordering::Relaxed),
            BYTES.load(Ordering::Relaxed),
        );
        black_box(measured_request(&case, &call)?);
        before
    };
    println!(
        "{} {}",
        ALLOCATIONS.load(Ordering::Relaxed) - before.0,
        BYTES.load(Ordering::Relaxed) - before.1
    );
    Some(())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().zip(arguments.next()) {
        Some((step, path)) if run(&step, &path).is_some() => ExitCode::SUCCESS,
        _ => {
            eprintln!("core-bench request|reply GOLDEN-FILE of a refund that went well");
            ExitCode::FAILURE
        }
    }
}
