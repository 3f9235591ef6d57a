//! Batches on a stream between two nodes.
//!
//! A *frame* is the length of what follows (4 bytes, little-endian), the tag that proves the cluster's secret (32 bytes; none
//! where no secret is set), and the batch. Both sides take turns: a frame one way, its answer the other.
//!
//! A receiver acts on whole frames only. So a frame of which the sender could not hand over the last byte was certainly not acted on.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::auth::{Secret, TAG_LEN};
use crate::wire::peer::{Batch, decode, encode_onto};

const LENGTH_LEN: usize = 4;
/// What is read at once, at most, and what is kept of a buffer after a large frame.
const BUFFER_LEN: usize = 64 << 10;

/// Why there is no frame.
#[derive(Debug)]
pub enum Broken {
    /// The other side closed the stream between two frames.
    Ended,
    Io(io::Error),
    /// It is larger than the receiver takes.
    TooLarge(usize),
    /// The rest of it did not come.
    Stalled,
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
            Self::Stalled => write!(f, "the rest of a frame did not come"),
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

    /// Takes the frame that has begun. `patience`: how long nothing of it may come.
    ///
    /// # Errors
    /// Why it can't be had; the stream must not be used any more.
    pub async fn take(&mut self, length: usize, patience: Duration) -> Result<Batch, Broken> {
        let whole = LENGTH_LEN + length;
        while self.incoming.len() < whole {
            // Never more than a little ahead of what has really come.
            self.incoming.reserve((whole - self.incoming.len()).min(BUFFER_LEN));
            timeout(patience, self.read_more()).await.map_err(|_| Broken::Stalled)??;
        }
        let batch = self.open(&self.incoming[LENGTH_LEN..whole]);
        self.incoming.advance(whole);
        if self.incoming.is_empty() && self.incoming.capacity() > BUFFER_LEN {
            self.incoming = BytesMut::new();
        }
        batch
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
