//! Reading a request's body within bounds: bytes of this one, bytes of all, silence, and time as a whole.

use std::pin::pin;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::gate::Lease;
use super::reply::Refusal;
use crate::limits::Limits;

/// Reads the body to its end. `declared` is its `Content-Length`, `max` the bound on its bytes. What is read is counted
/// in `lease`, which the caller keeps as long as it keeps the bytes.
pub async fn read<B: Buf, E>(
    body: impl Stream<Item = Result<B, E>>,
    declared: Option<u64>,
    max: usize,
    limits: &Limits,
    lease: &mut Lease,
) -> Result<Bytes, Refusal> {
    if declared.is_some_and(|length| length > max as u64) {
        return Err(Refusal::BodyTooLarge { max });
    }
    let mut body = pin!(body);
    let mut whole = BytesMut::new();
    let last_moment = Instant::now() + limits.body_total_timeout;
    loop {
        let patience = last_moment.min(Instant::now() + limits.body_timeout);
        let piece = match timeout_at(patience, body.next()).await {
            Err(_) => return Err(Refusal::BodyStalled),
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Err(_))) => return Err(Refusal::BodyBroken),
            Ok(Some(Ok(piece))) => piece,
        };
        let length = piece.remaining();
        if whole.len() + length > max {
            return Err(Refusal::BodyTooLarge { max });
        }
        if !lease.grow(length) {
            return Err(Refusal::Busy { what: "request bodies".to_owned() });
        }
        whole.extend_from_slice(&{ piece }.copy_to_bytes(length));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures_util::stream;

    use super::super::gate::Budget;
    use super::*;

    fn pieces(count: usize) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::iter((0..count).map(|_| Ok(Bytes::from_static(b"0123456789"))))
    }

    async fn read_pieces(count: usize, declared: Option<u64>, room: usize) -> Result<Bytes, Refusal> {
        let mut lease = Budget::new(room).lease();
        read(pieces(count), declared, 30, &Limits::default(), &mut lease).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bodies_end_at_their_bounds() {
        assert_eq!(read_pieces(0, None, 100).await, Ok(Bytes::new()));
        assert_eq!(read_pieces(3, None, 100).await.unwrap().len(), 30);
        assert_eq!(read_pieces(4, None, 100).await, Err(Refusal::BodyTooLarge { max: 30 }));
        assert_eq!(read_pieces(0, Some(31), 100).await, Err(Refusal::BodyTooLarge { max: 30 }));
        assert!(matches!(read_pieces(3, None, 20).await, Err(Refusal::Busy { .. })));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn silence_and_dripping_end() {
        let short = Duration::from_millis(20);
        let mut lease = Budget::new(1 << 20).lease();
        let limits = Limits { body_timeout: short, ..Limits::default() };
        let silent = stream::pending::<Result<Bytes, Infallible>>();
        assert_eq!(read(silent, None, 30, &limits, &mut lease).await, Err(Refusal::BodyStalled));

        let limits = Limits { body_total_timeout: short, ..Limits::default() };
        let dripping = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), ()))
        });
        assert_eq!(read(dripping, None, 1 << 20, &limits, &mut lease).await, Err(Refusal::BodyStalled));
    }
}
