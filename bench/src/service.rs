//! The peer that a team might write: a service of its own behind Envoy, that makes the provider's call itself. On hyper alone,
//! which is what is under axum: it has one route.

use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use refund_filter::exchange::Answer;
use refund_filter::headers::Headers;
use tokio::net::TcpListener;

use crate::core::Core;

struct Service {
    core: Core,
    client: Client<HttpConnector, Full<Bytes>>,
    upstream: SocketAddr,
}

/// Serves until the process is ended; prints its address first.
pub async fn serve(upstream: SocketAddr) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let service = Rc::new(Service {
        core: Core::from_environment()?,
        client: Client::builder(TokioExecutor::new()).build(connector),
        upstream,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = Rc::clone(&service);
        tokio::task::spawn_local(async move {
            let respond = service_fn(|request| refund(Rc::clone(&service), request));
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), respond);
            // A connection that breaks is seen at the other end, where calls are counted.
            let _ = serving.await;
        });
    }
}

async fn refund(service: Rc<Service>, call: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let (parts, body) = call.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut headers = decoded(&parts.headers);
    headers.text(":method", parts.method.to_string());
    headers.text(":path", parts.uri.path().to_owned());
    let going = match service.core.request(&headers, &body) {
        Ok(going) => going,
        Err(answer) => return response(answer),
    };
    let mut path = String::new();
    let mut request = Request::builder();
    for (name, value) in going.headers.iter() {
        request = match name {
            b":method" => request.method(value),
            b":path" => {
                path = String::from_utf8(value.to_vec())?;
                request
            }
            b":authority" => request.header("host", value),
            _ if name.starts_with(b":") => request,
            _ => request.header(name, value),
        };
    }
    let request = request
        .uri(format!("http://{}{path}", service.upstream))
        .body(Full::from(going.body))?;
    let (parts, body) = service.client.request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut headers = decoded(&parts.headers);
    headers.text(":status", parts.status.as_str().to_owned());
    response(Core::reply(going.sent, &headers, &body))
}

fn decoded(map: &http::HeaderMap) -> Headers<'_> {
    let mut headers = Headers::default();
    for (name, value) in map {
        headers.push(name.as_str().as_bytes(), value.as_bytes());
    }
    headers
}

fn response(answer: Answer) -> Result<Response<Full<Bytes>>> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers.iter() {
        response = response.header(name, value);
    }
    response
        .body(Full::from(answer.body))
        .map_err(|fault| anyhow!(fault))
}
