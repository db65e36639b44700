//! The one fast upstream of all lanes: it answers what a provider answers, with what a caller must find again echoed, and
//! verifies nothing. A process of its own, on one thread.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::wire::{self, Kind};

/// A reply with places for what is echoed.
struct Template {
    parts: Vec<String>,
}

/// The replies of the vendors' own pages, from the golden files.
struct Replies {
    moyasar: Template,
    bbmsl: Template,
}

impl Template {
    /// The reply of a golden file, cut where these texts stand. Each is replaced by the echo of its number.
    fn golden(project: &Path, file: &str, echoes: &[&str]) -> Result<Template> {
        let path = project.join("tests/providers").join(file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let golden: Value = serde_json::from_str(&text)?;
        let body = golden["provider_reply"]["body"]
            .as_str()
            .context("a golden file without a reply")?;
        let mut parts = [body.to_owned()];
        for (nth, echo) in echoes.iter().enumerate() {
            let mark = format!("\u{1}{nth}");
            parts[0] = parts[0].replace(echo, &format!("\u{0}{mark}\u{0}"));
        }
        let parts = parts[0].split('\u{0}').map(str::to_owned).collect();
        Ok(Template { parts })
    }

    fn write(&self, echoes: &[&[u8]], out: &mut Vec<u8>) {
        let part = |part: &str| {
            part.strip_prefix('\u{1}')
                .and_then(|nth| echoes.get(nth.parse::<usize>().ok()?).copied())
        };
        let bytes = |text: &'_ str| part(text).map_or(text.len(), <[u8]>::len);
        let length: usize = self.parts.iter().map(|text| bytes(text)).sum();
        out.extend_from_slice(
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
            )
            .as_bytes(),
        );
        for text in &self.parts {
            out.extend_from_slice(part(text).unwrap_or(text.as_bytes()));
        }
    }
}

/// Serves until the process is ended; prints its address first.
pub async fn serve() -> Result<()> {
    let project = gateway_testbed::project();
    let replies: &'static Replies = Box::leak(Box::new(Replies {
        moyasar: Template::golden(
            &project,
            "moyasar/golden/page-example-with-its-own-order-id.json",
            &[
                "0191f5a7-44a9-76c2-9fec-39709fdbf723",
                "f351a2a3-97c4-4f12-add3-80c1044091f5",
            ],
        )?,
        bbmsl: Template::golden(&project, "bbmsl/golden/contract-example.json", &["4922"])?,
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // A connection that breaks is seen at the other end, where calls are counted.
            let _ = answer(stream, replies).await;
        });
    }
}

async fn answer(mut stream: TcpStream, replies: &Replies) -> Result<()> {
    let (mut buffer, mut out) = (Vec::new(), Vec::new());
    while let Some(message) = wire::read(&mut stream, &mut buffer, Kind::Request).await? {
        out.clear();
        let body = &buffer[message.body..message.end];
        if let Some(rest) = message.path.strip_prefix("/v1/orders/") {
            let order = rest.split('/').next().unwrap_or_default();
            let key = after(body, "\"transaction_id\":\"", 36);
            replies.moyasar.write(&[order.as_bytes(), key], &mut out);
        } else if message.path == "/hosted-checkout/refund" {
            let order = after(body, "\\\"orderId\\\":", usize::MAX);
            replies.bbmsl.write(&[order], &mut out);
        } else {
            out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother");
        }
        stream.write_all(&out).await?;
        buffer.drain(..message.end);
    }
    Ok(())
}

/// What stands after a text: so many bytes, and no further than a comma or a quote.
fn after<'a>(body: &'a [u8], text: &str, longest: usize) -> &'a [u8] {
    let Some(at) = wire::find(body, text) else {
        return b"";
    };
    let rest = &body[at + text.len()..];
    let ends = |byte: &u8| b",\"\\}".contains(byte);
    let end = rest.iter().position(ends).unwrap_or(rest.len());
    &rest[..end.min(longest)]
}
