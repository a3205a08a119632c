use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::*;

const MIB: usize = 1 << 20;

fn pair(pipe_bytes: usize) -> (WsIo<DuplexStream>, WsIo<DuplexStream>) {
    let (a, b) = duplex(pipe_bytes);
    let limits = ws::Limits::new(4 * MIB);
    (
        WsIo::server(a, Bytes::new(), limits),
        WsIo::client(b, Bytes::new(), limits),
    )
}

/// A server of ours with a raw peer.
fn server_and_raw() -> (WsIo<DuplexStream>, DuplexStream) {
    let (a, b) = duplex(MIB);
    (WsIo::server(a, Bytes::new(), ws::Limits::new(MIB)), b)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        timeout(Duration::from_secs(20), future)
            .await
            .expect("in time")
    })
}

fn closed(code: u16, reason: &str) -> Event {
    Event::Close {
        code: Some(code),
        reason: reason.into(),
    }
}

#[test]
fn messages_of_all_sizes_both_ways() {
    block_on(async {
        for pipe_bytes in [7, 64 * 1024, 8 * MIB] {
            let (mut server, mut client) = pair(pipe_bytes);
            let echo = tokio::spawn(async move {
                loop {
                    match server.receive().await {
                        Ok(Event::Text(text)) => server.queue_text_owned(text),
                        Ok(Event::Binary(bytes)) => server.queue_binary_owned(bytes),
                        Ok(Event::Close { .. }) => return server.buffered_bytes(),
                        Ok(_) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            for len in [0, 1, 125, 126, 65_535, 65_536, 300_000] {
                if pipe_bytes == 7 && len > 1000 {
                    continue;
                }
                let text = "é".repeat(len / 2);
                client.queue_text(text.as_bytes());
                client.queue_binary_owned(vec![0xfe; len]);
                assert_eq!(client.receive().await.unwrap(), Event::Text(text));
                assert_eq!(
                    client.receive().await.unwrap(),
                    Event::Binary(vec![0xfe; len])
                );
                assert_eq!(client.buffered_bytes(), 0);
            }
            client.queue_ping();
            assert_eq!(client.receive().await.unwrap(), Event::Pong(vec![]));
            client.close(1000, "done");
            assert_eq!(client.receive().await.unwrap(), closed(1000, ""));
            assert!(matches!(client.receive().await, Err(WsIoError::Over)));
            assert_eq!(echo.await.unwrap(), 0);
        }
    });
}

#[test]
fn all_that_is_ready_goes_out_in_one_write() {
    block_on(async {
        let (mut server, mut client) = pair(MIB);
        for _ in 0..100 {
            client.queue_text(b"x");
        }
        client.flush().await.unwrap();
        for _ in 0..100 {
            assert_eq!(server.receive().await.unwrap(), Event::Text("x".into()));
            server.queue_text(b"y");
        }
        // Nothing was written while something was ready, and what was queued is one buffer.
        assert_eq!(server.buffered_bytes(), 300);
        assert!(server.out.is_one());
    });
}

#[test]
fn receive_is_cancel_safe() {
    block_on(async {
        let (mut server, mut raw) = server_and_raw();
        let frame = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        for byte in frame {
            assert!(timeout(Duration::ZERO, server.receive()).await.is_err());
            raw.write_all(&[*byte]).await.unwrap();
        }
        assert_eq!(server.receive().await.unwrap(), Event::Text("Hello".into()));
    });
}

#[test]
fn leftover_of_the_handshake_comes_first() {
    block_on(async {
        let (a, mut raw) = duplex(MIB);
        let leftover = Bytes::from_static(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f");
        let mut server = WsIo::server(a, leftover, ws::Limits::new(MIB));
        raw.write_all(b"\x4d\x51\x58").await.unwrap();
        assert_eq!(server.receive().await.unwrap(), Event::Text("Hello".into()));
    });
}

#[test]
fn a_violation_is_answered_and_the_stream_ended() {
    block_on(async {
        let (mut server, mut raw) = server_and_raw();
        // An unmasked frame, and a good one behind it that nobody looks at.
        raw.write_all(b"\x81\x05Hello\x81\x80\0\0\0\0")
            .await
            .unwrap();
        let peer = tokio::spawn(async move {
            let mut bytes = Vec::new();
            raw.read_to_end(&mut bytes).await.unwrap();
            bytes
        });
        let error = server.receive().await.unwrap_err();
        assert!(matches!(error, WsIoError::Protocol(ws::Error::Unmasked)));
        assert_eq!(
            peer.await.unwrap(),
            b"\x88\x1b\x03\xeaclient frame without mask"
        );
    });
}

#[test]
fn close_frames_cross() {
    block_on(async {
        let (mut server, mut client) = pair(MIB);
        server.close(1001, "restart");
        client.close(1000, "");
        client.queue_text(b"too late");
        let (from_client, from_server) = tokio::join!(server.receive(), client.receive());
        assert_eq!(from_client.unwrap(), closed(1000, ""));
        assert_eq!(from_server.unwrap(), closed(1001, "restart"));
    });
}

#[test]
fn messages_are_dropped_once_we_close() {
    block_on(async {
        let (mut server, mut client) = pair(MIB);
        client.queue_text(b"never mind");
        client.flush().await.unwrap();
        server.close(4001, "revoked");
        let (end, told) = tokio::join!(server.receive(), async {
            let told = client.receive().await;
            drop(client);
            told
        });
        assert_eq!(end.unwrap(), closed(4001, ""));
        assert_eq!(told.unwrap(), closed(4001, "revoked"));
    });
}

#[test]
fn a_peer_that_does_not_answer_close_is_left() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::pause();
        let (mut server, raw) = server_and_raw();
        let began = Instant::now();
        server.close(1000, "");
        assert!(matches!(
            server.receive().await,
            Err(WsIoError::CloseTimeout)
        ));
        assert_eq!(began.elapsed().as_secs(), limits::CLOSE_TIMEOUT.as_secs());
        drop(raw);
    });
}

#[test]
fn a_peer_that_answers_but_stays_is_left() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::pause();
        let (mut server, mut raw) = server_and_raw();
        let began = Instant::now();
        raw.write_all(b"\x88\x82\0\0\0\0\x03\xe8").await.unwrap();
        assert_eq!(server.receive().await.unwrap(), closed(1000, ""));
        assert_eq!(began.elapsed().as_secs(), limits::CLOSE_TIMEOUT.as_secs());
        drop(raw);
    });
}

#[test]
fn the_end_without_close_is_told() {
    block_on(async {
        let (mut server, raw) = server_and_raw();
        drop(raw);
        assert!(matches!(server.receive().await, Err(WsIoError::Eof)));
        assert!(matches!(server.receive().await, Err(WsIoError::Over)));
        assert!(matches!(server.flush().await, Err(WsIoError::Over)));
    });
}

#[test]
fn pings_of_a_peer_that_does_not_read_take_no_memory() {
    block_on(async {
        let (a, mut raw) = duplex(1000);
        let mut server = WsIo::server(a, Bytes::new(), ws::Limits::new(MIB));
        let mut ping = b"\x89\xfd\0\0\0\0".to_vec();
        ping.extend([b'p'; 125]);
        for _ in 0..2000 {
            raw.write_all(&ping).await.unwrap();
            assert!(matches!(server.receive().await.unwrap(), Event::Ping(_)));
        }
        assert!(server.buffered_bytes() < PONG_BACKLOG_BYTES + 200);
        // When it reads again, the latest ping is answered last.
        raw.write_all(b"\x89\x84\0\0\0\0last").await.unwrap();
        assert!(matches!(server.receive().await.unwrap(), Event::Ping(_)));
        let mut bytes = Vec::new();
        let mut some = [0; 4096];
        while !bytes.ends_with(b"\x8a\x04last") {
            let _ = timeout(Duration::ZERO, server.receive()).await;
            let count = raw.read(&mut some).await.unwrap();
            bytes.extend_from_slice(&some[..count]);
        }
    });
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    block_on(async {
        let (mut server, mut client) = pair(MIB);
        for _ in 0..50 {
            client.queue_text(&[b'x'; 1000]);
        }
        client.flush().await.unwrap();
        for _ in 0..50 {
            server.receive().await.unwrap();
            server.queue_text(b"y");
        }
        assert!(timeout(Duration::ZERO, server.receive()).await.is_err());
        assert_eq!(server.unread.buffer.capacity(), 0);
        assert_eq!(server.buffered_bytes(), 0);
        assert!(server.out.first().is_empty() && !server.out.is_one());
        assert!(size_of_val(&server) < 600, "{}", size_of_val(&server));
    });
}

#[test]
fn the_end_is_noticed_and_nothing_is_lost() {
    block_on(async {
        let (mut server, mut client) = pair(MIB);
        // Cancelled while nothing happens, it has still written what was queued.
        server.queue_text(b"wait");
        assert!(
            timeout(Duration::from_millis(20), server.gone())
                .await
                .is_err()
        );
        assert_eq!(client.receive().await.unwrap(), Event::Text("wait".into()));
        // What arrives meanwhile is no end, and comes out later.
        client.queue_text(b"early");
        client.flush().await.unwrap();
        assert!(
            timeout(Duration::from_millis(20), server.gone())
                .await
                .is_err()
        );
        assert_eq!(server.receive().await.unwrap(), Event::Text("early".into()));
        drop(client);
        assert!(matches!(server.gone().await, WsIoError::Eof));
        assert!(matches!(server.gone().await, WsIoError::Over));
    });
}
