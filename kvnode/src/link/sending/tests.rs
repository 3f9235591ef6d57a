use std::time::Instant;

use kvnode_types::ident::Incarnation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::*;

fn batch() -> Batch {
    Batch {
        cluster: None,
        version: Default::default(),
        from: "127.0.0.1:1".parse().unwrap(),
        life: Incarnation(1),
        to_life: None,
        sent_ms: 1,
        echo_ms: 0,
        messages: Vec::new(),
    }
}

/// What becomes of one batch, and after how long.
async fn fate_at(peer: &TcpListener) -> (LinkDone, Duration) {
    let peer = peer.local_addr().unwrap().to_string().parse().unwrap();
    let (told, fate) = oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let waiting = std::sync::Mutex::new(Some(batch()));
    let next = move |_: &Addr| waiting.lock().unwrap().take();
    let done = move |_: &Addr, fate| {
        let told = told.lock().unwrap().take().expect("one batch has one fate");
        let _ = told.send(fate);
    };
    let begun = Instant::now();
    let (secret, names, drill) = (auth::Secret::new(None), Arc::new(Names::default()), Arc::new(Drill::new(false)));
    let _link = Link::start(secret, names, drill, peer, 1 << 20, next, done);
    let fate = timeout(Duration::from_secs(20), fate).await.expect("every batch has a fate").unwrap();
    (fate, begun.elapsed())
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_busy_peer_never_saw_is_known_to_be_that() {
    // The system accepts in its place.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (fate, took) = fate_at(&listener).await;
    assert!(matches!(fate, LinkDone::Undelivered { batch: sent, another_secret: false } if sent == batch()));
    assert!(took >= OPEN_TIMEOUT, "{took:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_peer_may_have_seen_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let switch = format!("HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: {}\r\n\r\n", protocol());
        stream.write_all(switch.as_bytes()).await.unwrap();
        // Until the link gives up.
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    };
    let ((fate, took), ()) = tokio::join!(fate_at(&listener), mute);
    assert!(matches!(fate, LinkDone::Lost { .. }));
    assert!(took >= ANSWER_TIMEOUT, "{took:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_peer_with_another_secret_is_known_by_its_refusal() {
    for (status, another) in [(auth::REFUSED.as_u16(), true), (426, false), (503, false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refuses = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream
        };
        let ((fate, _), _stream) = tokio::join!(fate_at(&listener), refuses);
        let told = matches!(fate, LinkDone::Undelivered { another_secret, .. } if another_secret == another);
        assert!(told, "{status}");
    }
}
