//! Reading a request's body within bounds: bytes of this one, bytes of all, silence, and time as a whole.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::{Instant, timeout_at};

use super::gate::Lease;
use super::reply::Refusal;
use crate::limits::Limits;

/// Reads the body to its end. `min`: bytes that it is known to have before any is read; `max`: the bound on its bytes. What is read
/// is counted in `lease`, which the caller keeps as long as it keeps the bytes.
pub async fn read(
    body: impl Body<Data = Bytes>,
    min: u64,
    max: usize,
    limits: &Limits,
    lease: &mut Lease,
) -> Result<Bytes, Refusal> {
    if min > max as u64 {
        return Err(Refusal::BodyTooLarge { max });
    }
    let mut body = pin!(body);
    let mut whole = Pieces::None;
    let begun = Instant::now();
    let last_moment = begun + limits.body_total_timeout;
    let mut now = begun;
    loop {
        if body.is_end_stream() {
            return Ok(whole.join());
        }
        let patience = last_moment.min(now + limits.body_timeout);
        let frame = match timeout_at(patience, body.frame()).await {
            Err(_) => return Err(Refusal::BodyStalled),
            Ok(None) => return Ok(whole.join()),
            Ok(Some(Err(_))) => return Err(Refusal::BodyBroken),
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers say nothing here.
        let Ok(piece) = frame.into_data() else { continue };
        if whole.len() + piece.len() > max {
            return Err(Refusal::BodyTooLarge { max });
        }
        if !lease.grow(piece.len()) {
            return Err(Refusal::NoRoomForBody);
        }
        whole = whole.and(piece);
        now = Instant::now();
    }
}

/// What has come of a body. Most come in one piece, which is not copied.
enum Pieces {
    None,
    One(Bytes),
    Many(BytesMut),
}

impl Pieces {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(piece) => piece.len(),
            Self::Many(pieces) => pieces.len(),
        }
    }

    fn and(self, piece: Bytes) -> Self {
        match self {
            Self::None => Self::One(piece),
            Self::One(first) => Self::Many(BytesMut::from(first)).and(piece),
            Self::Many(mut pieces) => {
                pieces.extend_from_slice(&piece);
                Self::Many(pieces)
            }
        }
    }

    fn join(self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::One(piece) => piece,
            Self::Many(pieces) => pieces.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures_util::stream::{self, Stream};
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::super::gate::Budget;
    use super::*;

    type Piece = Result<Frame<Bytes>, Infallible>;

    fn piece() -> Piece {
        Ok(Frame::data(Bytes::from_static(b"0123456789")))
    }

    async fn read_all(pieces: impl Stream<Item = Piece>, limits: &Limits, room: usize) -> Result<Bytes, Refusal> {
        read(StreamBody::new(pieces), 0, 30, limits, &mut Budget::new(room).lease()).await
    }

    async fn read_pieces(count: usize, room: usize) -> Result<Bytes, Refusal> {
        read_all(stream::iter((0..count).map(|_| piece())), &Limits::default(), room).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bodies_end_at_their_bounds() {
        assert_eq!(read_pieces(0, 100).await, Ok(Bytes::new()));
        assert_eq!(read_pieces(1, 100).await, Ok(Bytes::from_static(b"0123456789")));
        assert_eq!(read_pieces(3, 100).await.unwrap(), "0123456789".repeat(3));
        assert_eq!(read_pieces(4, 100).await, Err(Refusal::BodyTooLarge { max: 30 }));
        assert_eq!(read_pieces(3, 20).await, Err(Refusal::NoRoomForBody));
        // Its length is told in advance: nothing of it is read.
        let mut lease = Budget::new(0).lease();
        let told = Full::new(Bytes::from(vec![0; 31]));
        assert_eq!(read(told, 31, 30, &Limits::default(), &mut lease).await, Err(Refusal::BodyTooLarge { max: 30 }));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn silence_and_dripping_end() {
        let short = Duration::from_millis(20);
        let limits = Limits { body_timeout: short, ..Limits::default() };
        assert_eq!(read_all(stream::pending(), &limits, 100).await, Err(Refusal::BodyStalled));

        let limits = Limits { body_total_timeout: short, ..Limits::default() };
        let dripping = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok(Frame::data(Bytes::new())), ()))
        });
        assert_eq!(read_all(dripping, &limits, 100).await, Err(Refusal::BodyStalled));
    }
}
