//! Serves our WebSocket codec as an echo server over the Gateway's own upgrade path, so that anyone can run a test
//! suite or a load generator against it.
//!
//! `cargo run --release --example ws_echo -- --port 9001 [--max-message-bytes 16777216]`

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::Bytes;
use clap::Parser;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use portcullis::http::upgrade;
use portcullis::net::WsIo;
use portcullis::ws::{Event, Limits};

/// A peer that sends more than it reads is waited for here; no echo holds more than this and one message.
const BACKLOG_BYTES_MAX: usize = 1 << 20;

#[derive(Parser)]
struct Args {
    /// Port on 127.0.0.1; 0 takes a free one and prints it.
    #[arg(long)]
    port: u16,
    /// Messages over this size are refused with 1009.
    #[arg(long, default_value_t = 16 << 20)]
    max_message_bytes: usize,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args.threads.max(1))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await?;
        println!("listening on {}", listener.local_addr()?);
        let accepting = tokio::spawn(accept(listener, Limits::new(args.max_message_bytes)));
        accepting.await?
    })
}

async fn accept(listener: TcpListener, limits: Limits) -> Result<(), Error> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, limits));
            let connection = upgrade::server().serve_connection(TokioIo::new(stream), service);
            // A client that speaks no HTTP concerns nobody else.
            let _ = connection.with_upgrades().await;
        });
    }
}

async fn answer(
    mut request: Request<Incoming>,
    limits: Limits,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let accept = match upgrade::check(&request) {
        Ok(accept) => accept,
        Err(error) => {
            let mut answer = Response::default();
            *answer.status_mut() =
                StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
            return Ok(upgrade::explained(error, answer));
        }
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let Ok((stream, leftover)) = upgrade::take_back::<TcpStream>(upgraded) else {
            return;
        };
        echo(WsIo::server(stream, leftover, limits)).await;
    });
    Ok(upgrade::accept_response(&accept))
}

async fn echo(mut ws: WsIo<TcpStream>) {
    loop {
        match ws.receive().await {
            Ok(Event::Text(text)) => ws.queue_text_owned(text),
            Ok(Event::Binary(bytes)) => ws.queue_binary_owned(bytes),
            Ok(Event::Ping(_) | Event::Pong(_)) => {}
            Ok(Event::Close { .. }) | Err(_) => return,
        }
        if ws.buffered_bytes() > BACKLOG_BYTES_MAX && ws.flush().await.is_err() {
            return;
        }
    }
}
