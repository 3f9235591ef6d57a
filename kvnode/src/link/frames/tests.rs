use kvnode_core::messages::Message;
use kvnode_types::ident::Incarnation;
use tokio::net::TcpListener;

use super::*;

const PATIENCE: Patience = Patience { silence: Duration::from_secs(20), whole: Duration::from_secs(20) };

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

fn frames(stream: TcpStream, secret: Option<&str>) -> Frames {
    Frames::new(stream, Bytes::new(), Secret::new(secret))
}

fn batch(bytes: usize) -> Batch {
    Batch {
        cluster: None,
        version: Default::default(),
        from: "10.0.0.1:1".parse().unwrap(),
        life: Incarnation(1),
        to_life: None,
        sent_ms: 1,
        echo_ms: 0,
        messages: vec![Message::Raft { generation: 0, bytes: vec![7; bytes] }],
    }
}

async fn next(frames: &mut Frames, max: usize) -> Result<Batch, Broken> {
    let length = frames.begins(max).await?;
    frames.take(length, PATIENCE, |_| true).await
}

#[tokio::test(flavor = "current_thread")]
async fn batches_of_any_size_come_one_after_the_other() {
    for secret in [None, Some("secret")] {
        let (one, other) = sockets().await;
        let (mut one, mut other) = (frames(one, secret), frames(other, secret));
        let sizes = [0, 1, 100, BUFFER_LEN, 3 << 20, 2];
        let send = async {
            for size in sizes {
                one.send(&batch(size)).await.unwrap();
            }
        };
        let receive = async {
            for size in sizes {
                assert_eq!(next(&mut other, 4 << 20).await.unwrap(), batch(size));
            }
        };
        tokio::join!(send, receive);
        assert!(one.is_idle() && other.is_idle());
        assert!(other.incoming.capacity() <= 2 * BUFFER_LEN, "what a large frame took is given back");
        drop(one);
        assert!(matches!(next(&mut other, 1).await, Err(Broken::Ended)));
        assert!(!other.is_idle());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_read_before_the_upgrade_is_not_lost() {
    let (mut one, other) = sockets().await;
    let body = encode_onto(&batch(9), Vec::new());
    let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(&body);
    let (early, late) = bytes.split_at(7);
    one.write_all(late).await.unwrap();
    let mut other = Frames::new(other, Bytes::copy_from_slice(early), Secret::new(None));
    assert_eq!(next(&mut other, 1 << 20).await.unwrap(), batch(9));
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_no_frame_is_told() {
    let one_batch = |secret: Option<&'static str>| async move {
        let (one, other) = sockets().await;
        frames(one, secret).send(&batch(50)).await.unwrap();
        other
    };
    for (theirs, ours) in [(Some("a"), Some("b")), (None, Some("b"))] {
        let broken = next(&mut frames(one_batch(theirs).await, ours), 1 << 20).await;
        assert!(matches!(broken, Err(Broken::Unproven)), "{broken:?}");
    }
    let broken = next(&mut frames(one_batch(Some("a")).await, None), 1 << 20).await;
    assert!(matches!(broken, Err(Broken::Unreadable(_))), "{broken:?}");
    let broken = next(&mut frames(one_batch(None).await, None), 10).await;
    assert!(matches!(broken, Err(Broken::TooLarge(_))), "{broken:?}");

    // Short of the tag, of the length, of the rest.
    for (bytes, secret) in [(&b"\x01\0\0\0x"[..], Some("a")), (b"\x01\0", None), (b"\xff\0\0\0xyz", None)] {
        let (mut one, other) = sockets().await;
        one.write_all(bytes).await.unwrap();
        drop(one);
        let broken = next(&mut frames(other, secret), 1 << 20).await;
        assert!(matches!(broken, Err(Broken::Unproven | Broken::Stalled)), "{bytes:?}: {broken:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn half_a_frame_is_not_waited_for_for_ever() {
    let (mut one, other) = sockets().await;
    one.write_all(b"\xff\0\0\0xyz").await.unwrap();
    let mut other = frames(other, None);
    let length = other.begins(1 << 20).await.unwrap();
    let short = Patience { silence: Duration::from_millis(20), ..PATIENCE };
    let broken = other.take(length, short, |_| true).await;
    assert!(matches!(broken, Err(Broken::Stalled)), "{broken:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_frame_that_drips_ends_in_time() {
    let (mut one, other) = sockets().await;
    let dripping = tokio::spawn(async move {
        one.write_all(&(1_u32 << 20).to_le_bytes()).await.unwrap();
        while one.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut other = frames(other, None);
    let length = other.begins(2 << 20).await.unwrap();
    let broken = other.take(length, Patience { whole: Duration::from_millis(100), ..PATIENCE }, |_| true).await;
    assert!(matches!(broken, Err(Broken::Stalled)), "{broken:?}");
    drop(other);
    dripping.await.unwrap();
}

/// What a frame takes is what has come of it.
#[tokio::test(flavor = "current_thread")]
async fn a_frame_takes_room_as_it_comes() {
    let (one, other) = sockets().await;
    let (mut one, mut other) = (frames(one, None), frames(other, None));
    let size = 3 << 20;
    let frame = LENGTH_LEN + encode_onto(&batch(size), Vec::new()).len();
    let taken = async {
        let length = other.begins(4 << 20).await.unwrap();
        let mut asked = Vec::new();
        other
            .take(length, PATIENCE, |bytes| {
                asked.push(bytes);
                true
            })
            .await
            .map(|_| asked)
    };
    let sending = async { one.send(&batch(size)).await.unwrap() };
    let (asked, ()) = tokio::join!(taken, sending);
    let asked = asked.unwrap();
    assert!(asked.is_sorted() && asked.last() == Some(&frame), "{asked:?}, and the frame has {frame}");
    assert!(asked[0] > BUFFER_LEN && asked.len() > 1, "it is told step by step: {asked:?}");

    let (one, other) = sockets().await;
    let (mut one, mut other) = (frames(one, None), frames(other, None));
    let refused = async {
        let length = other.begins(4 << 20).await.unwrap();
        let broken = other.take(length, PATIENCE, |bytes| bytes <= 1 << 20).await;
        drop(other);
        broken
    };
    // The receiver may have gone by the time that all would be sent.
    let sent = batch(size);
    let (broken, _) = tokio::join!(refused, one.send(&sent));
    assert!(matches!(broken, Err(Broken::NoRoom)), "{broken:?}");
}
