//! The client against nodes that listen, refuse, stay silent or break off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Client, Error, Session, encode, key_path};

/// What a stand-in for a node does with each connection.
#[derive(Clone, Copy)]
enum Does {
    /// Answers with this status and body.
    Answer(u16, &'static str),
    /// Reads the request and closes the connection.
    BreakOff,
    /// Reads the request and keeps the connection.
    StaySilent,
    /// Answers with a body that has no end; says in its count how many bytes of it were taken.
    GoOnForEver,
    /// Sends the client to another address.
    Redirect(&'static str),
}

/// Its address, and how many requests it got.
async fn node(does: Does) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            assert!(length > 0, "a request");
            counter.fetch_add(1, Ordering::SeqCst);
            if let Does::Answer(status, body) = does {
                let head =
                    format!("HTTP/1.1 {status} X\r\nX-Causal-Metadata: T2\r\nContent-Length: {}\r\n", body.len());
                let text = format!("{head}Connection: close\r\n\r\n{body}");
                stream.write_all(text.as_bytes()).await.expect("the client reads");
            }
            if let Does::Redirect(to) = does {
                let text =
                    format!("HTTP/1.1 307 X\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(text.as_bytes()).await.expect("the client reads");
            }
            if matches!(does, Does::GoOnForEver) {
                stream.write_all(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n").await.expect("the client reads");
                // Until the client has had enough.
                while stream.write_all(&[b' '; 1 << 16]).await.is_ok() {
                    counter.fetch_add(1 << 16, Ordering::SeqCst);
                }
            }
            if matches!(does, Does::StaySilent) {
                kept.push(stream);
            }
        }
    });
    (address, count)
}

/// An address where nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

fn one() -> Box<serde_json::value::RawValue> {
    serde_json::value::to_raw_value(&1).expect("a number")
}

#[tokio::test]
async fn the_next_node_is_asked_where_nobody_listens() {
    let (good, count) = node(Does::Answer(201, "{}")).await;
    let client = Client::new(vec![nobody().await, good.clone()]);
    let mut session = Session::default();
    let answer = client.put("x", &one(), &mut session).await.expect("an answer");
    assert_eq!((answer.status, answer.node, count.load(Ordering::SeqCst)), (201, good, 1));
    assert_eq!(session.metadata.as_deref(), Some("T2"));
}

#[tokio::test]
async fn a_write_that_may_have_arrived_is_not_sent_again() {
    let (broken, _) = node(Does::BreakOff).await;
    let (busy, _) = node(Does::Answer(503, "{}")).await;
    let (good, count) = node(Does::Answer(200, "{}")).await;
    let put = Client::new(vec![broken, good.clone()]).put("x", &one(), &mut Session::default()).await;
    assert!(matches!(put, Err(Error::Broken(_))), "{put:?}");
    let put = Client::new(vec![busy, good]).put("x", &one(), &mut Session::default()).await.expect("an answer");
    assert_eq!((put.status, count.load(Ordering::SeqCst)), (503, 0));
}

#[tokio::test]
async fn a_write_waits_as_long_as_it_is_told() {
    let (silent, _) = node(Does::StaySilent).await;
    let client = Client::new(vec![silent.clone()]).patient(std::time::Duration::from_millis(50));
    assert_eq!(client.put("x", &one(), &mut Session::default()).await.unwrap_err(), Error::TimedOut(silent));
}

#[tokio::test]
async fn a_read_goes_on_until_a_node_answers_it() {
    let (broken, _) = node(Does::BreakOff).await;
    let (busy, _) = node(Does::Answer(503, r#"{"error":"later"}"#)).await;
    let (good, _) = node(Does::Answer(200, r#"{"value":1.10}"#)).await;
    let client = Client::new(vec![broken.clone(), busy.clone(), good]);
    let answer = client.get("x", &mut Session::default()).await.expect("an answer");
    assert_eq!(answer.value().expect("a value").get(), "1.10", "to the last digit");
    let answer = Client::new(vec![busy, nobody().await]).get("x", &mut Session::default()).await.expect("an answer");
    assert_eq!((answer.status, answer.error()), (503, "later".into()));
    let alone = Client::new(vec![nobody().await]).get("x", &mut Session::default()).await;
    assert!(matches!(alone, Err(Error::Unreachable(_))), "{alone:?}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let (hostile, taken) = node(Does::GoOnForEver).await;
    let (good, _) = node(Does::Answer(200, r#"{"value":1}"#)).await;
    let alone = Client::new(vec![hostile.clone()]).taking(1 << 20).get("x", &mut Session::default()).await;
    let why = format!("{hostile}: it is longer than {} bytes", 1 << 20);
    assert_eq!(alone.expect_err("no answer"), Error::Broken(why));
    // What the system has buffered in between counts, too.
    assert!(taken.load(Ordering::SeqCst) < 16 << 20, "{taken:?} bytes were taken");
    let answer = Client::new(vec![hostile, good]).get("x", &mut Session::default()).await.expect("an answer");
    assert_eq!(answer.status, 200, "a read goes on to the next node");
    let (announced, _) = node(Does::Answer(200, r#"{"value":"0123456789"}"#)).await;
    let answer = Client::new(vec![announced.clone()]).taking(21).get("x", &mut Session::default()).await;
    assert!(matches!(answer, Err(Error::Broken(_))), "{answer:?}");
    assert!(Client::new(vec![announced]).taking(22).get("x", &mut Session::default()).await.is_ok());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, count) = node(Does::Answer(200, "{}")).await;
    let to: &'static str = format!("http://{elsewhere}/kvs/x").leak();
    let (hostile, _) = node(Does::Redirect(to)).await;
    let client = Client::new(vec![hostile]);
    let answer = client.get("x", &mut Session::default()).await.expect("an answer");
    assert_eq!((answer.status, answer.error()), (307, "status 307".into()));
    let answer = client.put("x", &one(), &mut Session::default()).await.expect("an answer");
    assert_eq!((answer.status, count.load(Ordering::SeqCst)), (307, 0));
}

#[tokio::test]
async fn an_error_is_one_line_that_does_nothing_to_a_terminal() {
    let (hostile, _) = node(Does::Answer(400, r#"{"error":"\u001b[2Jall\nis well\u202e"}"#)).await;
    let answer = Client::new(vec![hostile]).look("/ready").await.expect("an answer");
    assert_eq!(answer.error(), r"\u001b[2Jall\nis well\u202e");
}

#[test]
fn keys_in_urls() {
    assert_eq!(key_path("a/b c"), Ok("/kvs/a%2Fb%20c".into()));
    assert_eq!(encode("ä"), "%C3%A4");
    assert_eq!(key_path(".."), Err(Error::NoUrl("..".into())), "an URL parser would go up a folder");
    assert!(key_path("...").is_ok());
}
