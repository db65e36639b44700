//! The peer that Envoy calls over gRPC: an external processor with the same core.
//!
//! As Envoy asks: full duplex, where headers and body come without waiting in between, so that a call costs two round trips; or
//! buffered, which is the usual way and costs four.

use anyhow::Result;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Asked;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Told;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpHeaders,
    ImmediateResponse, ProcessingRequest, ProcessingResponse, StreamedBodyResponse,
    TrailersResponse, body_mutation::Mutation,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use refund_filter::exchange::{Answer, Sent};
use refund_filter::headers::Headers;
use send_wrapper::SendWrapper;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::core::{Core, Going};

/// The core is of one thread, and so is this service.
struct Processor(SendWrapper<std::rc::Rc<Core>>);

/// One call and its reply.
#[derive(Default)]
struct Exchange {
    headers: HttpHeaders,
    body: Vec<u8>,
    sent: Option<Sent>,
    /// Whether Envoy waits for an answer to the headers before it sends the body, whole.
    buffered: bool,
}

/// Serves until the process is ended; prints its address first.
pub async fn serve() -> Result<()> {
    let core = std::rc::Rc::new(Core::from_environment()?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    tonic::transport::Server::builder()
        .add_service(ExternalProcessorServer::new(Processor(SendWrapper::new(
            core,
        ))))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

#[tonic::async_trait]
impl ExternalProcessor for Processor {
    type ProcessStream = ReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let mut asked = request.into_inner();
        let core = self.0.clone();
        let (tell, told) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut exchange = SendWrapper::new(Exchange::default());
            // The end of the call, or of Envoy: nobody is left to be told.
            while let Ok(Some(message)) = asked.message().await {
                if let Some(protocol) = message.protocol_config {
                    exchange.buffered = protocol.request_body_mode() == BodySendMode::Buffered;
                }
                let answers = match message.request {
                    Some(asked) => exchange.step(&core, asked),
                    None => Vec::new(),
                };
                for response in answers {
                    let response = ProcessingResponse {
                        response: Some(response),
                        ..ProcessingResponse::default()
                    };
                    if tell.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(told)))
    }
}

impl Exchange {
    fn step(&mut self, core: &Core, asked: Asked) -> Vec<Told> {
        let is_reply = matches!(asked, Asked::ResponseHeaders(_));
        match asked {
            Asked::RequestHeaders(headers) | Asked::ResponseHeaders(headers)
                if !headers.end_of_stream =>
            {
                self.headers = headers;
                self.go_on(is_reply)
            }
            Asked::RequestHeaders(headers) => {
                self.headers = headers;
                self.call_is_whole(core)
            }
            Asked::ResponseHeaders(headers) => {
                self.headers = headers;
                self.reply_is_whole()
            }
            Asked::RequestBody(part) => {
                self.body.extend_from_slice(&part.body);
                if part.end_of_stream {
                    self.call_is_whole(core)
                } else {
                    Vec::new()
                }
            }
            Asked::ResponseBody(part) => {
                self.body.extend_from_slice(&part.body);
                if part.end_of_stream {
                    self.reply_is_whole()
                } else {
                    Vec::new()
                }
            }
            Asked::RequestTrailers(_) => vec![Told::RequestTrailers(TrailersResponse::default())],
            Asked::ResponseTrailers(_) => vec![Told::ResponseTrailers(TrailersResponse::default())],
        }
    }

    /// What Envoy is told before the body has come.
    fn go_on(&self, is_reply: bool) -> Vec<Told> {
        match (self.buffered, is_reply) {
            (false, _) => Vec::new(),
            (true, false) => vec![Told::RequestHeaders(HeadersResponse::default())],
            (true, true) => vec![Told::ResponseHeaders(HeadersResponse::default())],
        }
    }

    fn call_is_whole(&mut self, core: &Core) -> Vec<Told> {
        let (headers, body) = (
            std::mem::take(&mut self.headers),
            std::mem::take(&mut self.body),
        );
        match core.request(&decoded(&headers), &body) {
            Ok(Going {
                headers: going,
                body,
                sent,
            }) => {
                self.sent = Some(sent);
                let head = mutation(&headers, &going, None);
                if self.buffered {
                    return vec![Told::RequestBody(all_at_once(head, body))];
                }
                vec![
                    Told::RequestHeaders(HeadersResponse {
                        response: Some(CommonResponse {
                            header_mutation: Some(head),
                            clear_route_cache: true,
                            ..CommonResponse::default()
                        }),
                    }),
                    Told::RequestBody(whole_body(body)),
                ]
            }
            Err(answer) => vec![immediate(answer)],
        }
    }

    fn reply_is_whole(&mut self) -> Vec<Told> {
        let (headers, body) = (
            std::mem::take(&mut self.headers),
            std::mem::take(&mut self.body),
        );
        let Some(sent) = self.sent.take() else {
            // None of ours: another application's.
            if self.buffered {
                return vec![Told::ResponseBody(BodyResponse::default())];
            }
            return vec![
                Told::ResponseHeaders(HeadersResponse::default()),
                Told::ResponseBody(whole_body(String::from_utf8_lossy(&body).into_owned())),
            ];
        };
        let answer = Core::reply(sent, &decoded(&headers), &body);
        if self.buffered
            && decoded(&headers).first(":status") != Some(answer.status.to_string().as_bytes())
        {
            // With the headers gone, the status can be changed in one way only.
            return vec![immediate(answer)];
        }
        if self.buffered {
            let head = mutation(&headers, &answer.headers, None);
            return vec![Told::ResponseBody(all_at_once(head, answer.body))];
        }
        let head = mutation(&headers, &answer.headers, Some(answer.status));
        vec![
            Told::ResponseHeaders(HeadersResponse {
                response: Some(CommonResponse {
                    header_mutation: Some(head),
                    ..CommonResponse::default()
                }),
            }),
            Told::ResponseBody(whole_body(answer.body)),
        ]
    }
}

fn decoded(headers: &HttpHeaders) -> Headers<'_> {
    let mut decoded = Headers::default();
    for header in headers
        .headers
        .iter()
        .flat_map(|HeaderMap { headers }| headers)
    {
        decoded.push(header.key.as_bytes(), header.raw_value.as_slice());
    }
    decoded
}

/// What makes these headers of those.
fn mutation(old: &HttpHeaders, new: &Headers<'_>, status: Option<u16>) -> HeaderMutation {
    let mut set: Vec<_> = new
        .iter()
        .filter(|(name, _)| *name != b"content-length")
        .map(|(name, value)| set_header(name, value.to_vec()))
        .collect();
    if let Some(status) = status {
        set.push(set_header(b":status", status.to_string().into_bytes()));
    }
    let names = old.headers.iter().flat_map(|map| &map.headers);
    let remove_headers = names
        .map(|header| header.key.as_str())
        .filter(|name| {
            // Pseudo-headers stay, and Envoy itself takes the length away.
            !name.starts_with(':') && *name != "content-length" && new.first(name).is_none()
        })
        .map(str::to_owned)
        .collect();
    HeaderMutation {
        set_headers: set,
        remove_headers,
    }
}

fn set_header(name: &[u8], raw_value: Vec<u8>) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: String::from_utf8_lossy(name).into_owned(),
            raw_value,
            ..HeaderValue::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn whole_body(body: String) -> BodyResponse {
    BodyResponse {
        response: Some(CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(Mutation::StreamedResponse(StreamedBodyResponse {
                    body: body.into_bytes(),
                    end_of_stream: true,
                    ..StreamedBodyResponse::default()
                })),
            }),
            ..CommonResponse::default()
        }),
    }
}

/// In the buffered mode: headers and body in the answer to the body.
fn all_at_once(mut head: HeaderMutation, body: String) -> BodyResponse {
    // Envoy compares the two.
    head.set_headers.push(set_header(
        b"content-length",
        body.len().to_string().into_bytes(),
    ));
    BodyResponse {
        response: Some(CommonResponse {
            header_mutation: Some(head),
            body_mutation: Some(BodyMutation {
                mutation: Some(Mutation::Body(body.into_bytes())),
            }),
            clear_route_cache: true,
            ..CommonResponse::default()
        }),
    }
}

fn immediate(answer: Answer) -> Told {
    Told::ImmediateResponse(ImmediateResponse {
        status: Some(HttpStatus {
            code: i32::from(answer.status),
        }),
        headers: Some(HeaderMutation {
            set_headers: answer
                .headers
                .iter()
                .map(|(name, value)| set_header(name, value.to_vec()))
                .collect(),
            ..HeaderMutation::default()
        }),
        body: answer.body.into_bytes(),
        ..ImmediateResponse::default()
    })
}
