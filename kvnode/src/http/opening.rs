//! What the port answers while the store is being opened, and there is no node yet: `/health` yes, everything else not yet, and why.
//!
//! Of a request only the first line is looked at. Other nodes and clients are told so before they have sent anything that could take
//! effect; each connection is closed after its answer, and finds the node the next time.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::reply::canned_json;

/// Connections at a time; the others wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// Until a connection has asked and has taken its answer.
const CONNECTION_TIME: Duration = Duration::from_secs(2);
/// Bytes of a request's head.
const HEAD_MAX: usize = 16 << 10;
/// After accepting failed, mostly for want of file handles.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until it is dropped. `reason` says how far the store is.
pub async fn serve(listener: &TcpListener, reason: impl Fn() -> String) -> Infallible {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed.
        let Ok(permit) = connections.clone().acquire_owned().await else { return std::future::pending().await };
        match listener.accept().await {
            Ok((stream, _)) => {
                let reason = reason();
                tokio::spawn(async move {
                    let _permit = permit;
                    // Who goes away meanwhile needs no answer.
                    let _ = timeout(CONNECTION_TIME, answer(stream, &reason)).await;
                });
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn answer(mut stream: TcpStream, reason: &str) -> io::Result<()> {
    let head = head(&mut stream).await?;
    let text = String::from_utf8_lossy(&head);
    let mut words = text.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let reads = matches!(method, "GET" | "HEAD");
    let mut bytes = match path {
        "/health" if reads => canned_json(StatusCode::OK, &serde_json::json!({ "status": "ok" })),
        _ => canned_json(StatusCode::SERVICE_UNAVAILABLE, &serde_json::json!({ "error": reason })),
    };
    if method == "HEAD" {
        bytes.truncate(end_of_head(&bytes).unwrap_or(bytes.len()));
    }
    stream.write_all(&bytes).await?;
    stream.shutdown().await?;
    // What the client sends is read, so that closing doesn't reset the connection under the answer.
    let mut discarded = [0; 1024];
    while stream.read(&mut discarded).await? > 0 {}
    Ok(())
}

/// A request up to the end of its head, or of what is taken of it.
async fn head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while end_of_head(&head).is_none() && head.len() < HEAD_MAX && stream.read_buf(&mut head).await? > 0 {}
    Ok(head)
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    bytes.windows(END.len()).position(|window| window == END).map(|at| at + END.len())
}
