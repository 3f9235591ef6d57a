//! Batches on a stream between two nodes.
//!
//! A *frame* is the length of what follows (4 bytes, little-endian), the tag that proves the cluster's secret (32 bytes; none
//! where no secret is set), and the batch. Both sides take turns: a frame one way, its answer the other.
//!
//! A receiver acts on whole frames only. So a frame of which the sender could not hand over the last byte was certainly not acted on.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kvnode_core::messages::{Batch, decode, encode_onto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::auth::{Secret, TAG_LEN};

const LENGTH_LEN: usize = 4;
/// What is read at once, at most, and what is kept of a buffer after a large frame.
const BUFFER_LEN: usize = 64 << 10;

/// How long a frame may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Without a byte of it.
    pub silence: Duration,
    /// From its beginning to its end, however steadily it drips.
    pub whole: Duration,
}

/// Why there is no frame.
#[derive(Debug)]
pub enum Broken {
    /// The other side closed the stream between two frames.
    Ended,
    Io(io::Error),
    /// It is larger than the receiver takes.
    TooLarge(usize),
    /// The rest of it did not come in time.
    Stalled,
    /// There is no room for what has come of it.
    NoRoom,
    /// It does not prove the cluster's secret.
    Unproven,
    Unreadable(String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended => write!(f, "the stream was closed"),
            Self::Io(error) => write!(f, "{error}"),
            Self::TooLarge(length) => write!(f, "a frame of {length} bytes is too large"),
            Self::Stalled => write!(f, "the rest of a frame did not come in time"),
            Self::NoRoom => write!(f, "there is no room for another frame"),
            Self::Unproven => write!(f, "a frame does not prove this cluster's secret"),
            Self::Unreadable(why) => write!(f, "{why}"),
        }
    }
}

/// One end of a stream.
pub struct Frames {
    stream: TcpStream,
    secret: Secret,
    incoming: BytesMut,
    outgoing: Vec<u8>,
}

impl Frames {
    /// `early`: what was read of the stream already.
    pub fn new(stream: TcpStream, early: Bytes, secret: Secret) -> Self {
        Self { stream, secret, incoming: BytesMut::from(early), outgoing: Vec::new() }
    }

    /// Sends a batch.
    ///
    /// # Errors
    /// If the last byte could not be handed over: the other side does not act on it.
    pub async fn send(&mut self, batch: &Batch) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.outgoing);
        frame.clear();
        let tag_len = self.secret.tag_len();
        frame.resize(LENGTH_LEN + tag_len, 0);
        let mut frame = encode_onto(batch, frame);
        let (head, body) = frame.split_at_mut(LENGTH_LEN + tag_len);
        let length = u32::try_from(tag_len + body.len());
        let length = length.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a frame of over 4 GiB"))?;
        head[..LENGTH_LEN].copy_from_slice(&length.to_le_bytes());
        if let Some(tag) = self.secret.tag(body) {
            head[LENGTH_LEN..].copy_from_slice(&tag);
        }
        self.stream.write_all(&frame).await?;
        if frame.capacity() <= BUFFER_LEN {
            self.outgoing = frame;
        }
        Ok(())
    }

    /// Waits for the next frame to begin, and tells its length. May be given up and called again.
    ///
    /// # Errors
    /// [`Broken::Ended`], [`Broken::Io`], [`Broken::TooLarge`], or [`Broken::Stalled`] in the middle of a length.
    pub async fn begins(&mut self, max: usize) -> Result<usize, Broken> {
        while self.incoming.len() < LENGTH_LEN {
            self.read_more().await?;
        }
        let mut length = [0; LENGTH_LEN];
        length.copy_from_slice(&self.incoming[..LENGTH_LEN]);
        let length = u32::from_le_bytes(length) as usize;
        if length > max { Err(Broken::TooLarge(length)) } else { Ok(length) }
    }

    /// Takes the frame that has begun. `room` is told how much of it has come, where that is more than a stream holds anyway; a frame
    /// that is announced and does not come takes nothing.
    ///
    /// # Errors
    /// Why it can't be had; the stream must not be used any more.
    pub async fn take(
        &mut self,
        length: usize,
        patience: Patience,
        mut room: impl FnMut(usize) -> bool,
    ) -> Result<Batch, Broken> {
        let whole = LENGTH_LEN + length;
        let last_moment = Instant::now() + patience.whole;
        while self.incoming.len() < whole {
            if self.incoming.len() == self.incoming.capacity() {
                self.enlarge(whole);
            }
            let moment = last_moment.min(Instant::now() + patience.silence);
            timeout_at(moment, self.read()).await.map_err(|_| Broken::Stalled)??;
            if self.incoming.len() > BUFFER_LEN && !room(self.incoming.len()) {
                return Err(Broken::NoRoom);
            }
        }
        let batch = self.open(&self.incoming[LENGTH_LEN..whole]);
        self.incoming.advance(whole);
        if self.incoming.is_empty() && self.incoming.capacity() > BUFFER_LEN {
            self.incoming = BytesMut::new();
        }
        batch
    }

    /// Once more has come than fits into the usual buffer, there is room for the whole frame. The system gives memory when it is
    /// written to, so that costs nothing before it comes; and buffers that grow step by step leave holes that are as large as they are.
    fn enlarge(&mut self, whole: usize) {
        let capacity = if self.incoming.len() < BUFFER_LEN { BUFFER_LEN.min(whole) } else { whole };
        let mut larger = BytesMut::with_capacity(capacity);
        larger.extend_from_slice(&self.incoming);
        self.incoming = larger;
    }

    fn open(&self, frame: &[u8]) -> Result<Batch, Broken> {
        let (tag, body) = frame.split_at_checked(self.secret.tag_len()).ok_or(Broken::Unproven)?;
        if !self.secret.accepts(body, Some(tag).filter(|tag| !tag.is_empty())) {
            return Err(Broken::Unproven);
        }
        decode(body).map_err(Broken::Unreadable)
    }

    async fn read_more(&mut self) -> Result<(), Broken> {
        if self.incoming.capacity() - self.incoming.len() < BUFFER_LEN / 8 {
            self.incoming.reserve(BUFFER_LEN / 2);
        }
        self.read().await
    }

    /// Reads what the buffer has room for.
    async fn read(&mut self) -> Result<(), Broken> {
        match self.stream.read_buf(&mut self.incoming).await {
            Ok(0) if self.incoming.is_empty() => Err(Broken::Ended),
            Ok(0) => Err(Broken::Stalled),
            Ok(_) => Ok(()),
            Err(error) => Err(Broken::Io(error)),
        }
    }

    /// Whether the stream can still be used by the side whose turn it is: nothing has come, not even its end.
    pub fn is_idle(&mut self) -> bool {
        let mut byte = [0];
        let nothing = self.stream.try_read(&mut byte);
        self.incoming.is_empty() && nothing.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Secret {
    fn tag_len(&self) -> usize {
        if self.is_set() { TAG_LEN } else { 0 }
    }
}

#[cfg(test)]
mod tests;
