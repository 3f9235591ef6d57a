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
    // Nearly every read of a key: the clock need not be looked at.
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let known = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let mut body = pin!(body);
    let mut whole = Pieces { most: known.unwrap_or(max), is_known: known.is_some(), so_far: SoFar::Nothing };
    let begun = Instant::now();
    let last_moment = begun + limits.body_total_timeout;
    let mut now = begun;
    loop {
        if body.is_end_stream() {
            return Ok(whole.join(lease));
        }
        let patience = last_moment.min(now + limits.body_timeout);
        let frame = match timeout_at(patience, body.frame()).await {
            Err(_) => return Err(Refusal::BodyStalled),
            Ok(None) => return Ok(whole.join(lease)),
            Ok(Some(Err(_))) => return Err(Refusal::BodyBroken),
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers say nothing here.
        let Ok(piece) = frame.into_data() else { continue };
        if whole.len() + piece.len() > max {
            return Err(Refusal::BodyTooLarge { max });
        }
        if !whole.add(piece, lease) {
            return Err(Refusal::NoRoomForBody);
        }
        now = Instant::now();
    }
}

/// What the connection's own buffer takes while it brings a body of several pieces.
const BUFFER_BYTES: usize = 64 << 10;

/// What has come of a body, in memory that the lease covers.
struct Pieces {
    /// Bytes that there can be.
    most: usize,
    /// There will be so many.
    is_known: bool,
    so_far: SoFar,
}

/// Most come in one piece, which is not copied.
enum SoFar {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Pieces {
    fn len(&self) -> usize {
        match &self.so_far {
            SoFar::Nothing => 0,
            SoFar::One(piece) => piece.len(),
            SoFar::Many(pieces) => pieces.len(),
        }
    }

    /// `false`: there is no room.
    fn add(&mut self, piece: Bytes, lease: &mut Lease) -> bool {
        if piece.is_empty() {
            return true;
        }
        self.so_far = match std::mem::replace(&mut self.so_far, SoFar::Nothing) {
            SoFar::Nothing if lease.cover(piece.len()) => SoFar::One(piece),
            SoFar::Nothing => return false,
            SoFar::Many(mut pieces) if pieces.capacity() - pieces.len() >= piece.len() => {
                pieces.extend_from_slice(&piece);
                SoFar::Many(pieces)
            }
            SoFar::One(first) => match self.joined(&first, &piece, lease) {
                Some(pieces) => SoFar::Many(pieces),
                None => return false,
            },
            SoFar::Many(pieces) => match self.joined(&pieces, &piece, lease) {
                Some(pieces) => SoFar::Many(pieces),
                None => return false,
            },
        };
        true
    }

    /// Both in one buffer with room for more, which is counted as a whole: many bodies that come at the same time would otherwise be let
    /// in until none of them can be finished. And it does not grow by itself: that would take up to twice the body, and leave holes.
    fn joined(&self, bytes: &[u8], piece: &[u8], lease: &mut Lease) -> Option<BytesMut> {
        let length = bytes.len() + piece.len();
        let (capacity, beside) = match (length <= BUFFER_BYTES, self.is_known) {
            (true, _) => (BUFFER_BYTES.min(self.most), 0),
            (false, true) => (self.most, BUFFER_BYTES),
            (false, false) => (self.most.min(2 * length), BUFFER_BYTES),
        };
        let capacity = capacity.max(length);
        lease.cover(capacity.saturating_add(beside)).then(|| {
            let mut joined = BytesMut::with_capacity(capacity);
            joined.extend_from_slice(bytes);
            joined.extend_from_slice(piece);
            joined
        })
    }

    /// The whole. What was counted beside it is given back.
    fn join(self, lease: &mut Lease) -> Bytes {
        match self.so_far {
            SoFar::Nothing => Bytes::new(),
            SoFar::One(piece) => piece,
            SoFar::Many(pieces) => {
                lease.shrink(pieces.capacity());
                pieces.freeze()
            }
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
        let room = 30;
        assert_eq!(read_pieces(3, room).await.unwrap(), "0123456789".repeat(3));
        assert_eq!(read_pieces(4, room).await, Err(Refusal::BodyTooLarge { max: 30 }));
        assert_eq!(read_pieces(3, room - 1).await, Err(Refusal::NoRoomForBody));
        // Its length is told in advance: nothing of it is read.
        let mut lease = Budget::new(0).lease();
        let told = Full::new(Bytes::from(vec![0; 31]));
        assert_eq!(read(told, 31, 30, &Limits::default(), &mut lease).await, Err(Refusal::BodyTooLarge { max: 30 }));
    }

    /// What is counted is the memory that a body takes, and while it comes the connection's own buffer.
    #[test]
    fn a_body_takes_no_more_memory_than_is_counted() {
        const PIECE: usize = BUFFER_BYTES / 2;
        let most = 20 * PIECE;
        for is_known in [true, false] {
            let budget = Budget::new(2 * most);
            let (mut lease, mut whole) = (budget.lease(), Pieces { most, is_known, so_far: SoFar::Nothing });
            for count in 1..=20 {
                assert!(whole.add(Bytes::from(vec![b'x'; PIECE]), &mut lease));
                let (length, capacity) = match &whole.so_far {
                    SoFar::Many(pieces) => (pieces.len(), pieces.capacity()),
                    _ => (whole.len(), whole.len()),
                };
                assert!(
                    length == count * PIECE && capacity <= most && (is_known || capacity <= 2 * length),
                    "{capacity}"
                );
                let counted = capacity + if length > BUFFER_BYTES { BUFFER_BYTES } else { 0 };
                let left = 2 * most - counted;
                assert!(budget.lease().grow(left) && !budget.lease().grow(left + 1), "{length}: {capacity}");
            }
            assert_eq!(whole.join(&mut lease).len(), most);
            assert!(budget.lease().grow(most) && !budget.lease().grow(most + 1), "no buffer any more");
        }
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
