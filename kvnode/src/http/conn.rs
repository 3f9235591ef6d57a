//! A socket that ends what takes too long, whatever hyper is waiting for.
//!
//! hyper's own header time-out starts when a connection becomes idle, so one number would be both the patience with half a
//! header and the life of an idle connection; and it has none for answers that nobody takes. This guard sits between
//! hyper and the socket, sees the bytes, and learns from the request's handler how far the request is ([`Progress`]):
//!
//! | phase | ends with | limit |
//! | --- | --- | --- |
//! | idle | the first byte of a request | `idle_timeout` |
//! | header | the request is handed to the handler | `header_timeout`, from its first byte; from the start on a new connection |
//! | body, working | the answer | none here: reading the body has its own, the node has its own |
//! | answering | everything is written | `write_timeout` without progress |
//!
//! Half a header that came in one packet with the request before it is the one thing the guard can't see; it counts as idle.
//!
//! It also writes the body of the answers that hyper gives by itself (400, 414, 431), which would be empty, and, where the
//! client was cut short, reads on for a moment before closing: a socket closed with bytes unread resets the connection,
//! and the client would lose the answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::reply::canned;
use crate::limits::Limits;

/// How long a closing connection is read on.
const LINGER: Duration = Duration::from_secs(1);

const IDLE: u8 = 0;
const HEADER: u8 = 1;
const BODY: u8 = 2;
const WORKING: u8 = 3;
const ANSWERING: u8 = 4;

/// How far the current request of a connection is. Written by the handler, read by the guard, both in one task.
#[derive(Debug)]
pub struct Progress {
    phase: AtomicU8,
    /// Bytes of the next request have arrived already.
    early: AtomicBool,
    /// The client may still be sending when the connection is closed.
    linger: AtomicBool,
}

impl Progress {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { phase: AtomicU8::new(HEADER), early: AtomicBool::new(false), linger: AtomicBool::new(false) })
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    fn set(&self, phase: u8) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// The header is complete.
    pub fn request_begins(&self) {
        self.early.store(false, Ordering::Relaxed);
        self.set(BODY);
    }

    pub fn body_is_read(&self) {
        self.set(WORKING);
    }

    pub fn answered(&self) {
        if self.phase() == BODY {
            self.linger.store(true, Ordering::Relaxed);
        }
        self.set(ANSWERING);
    }
}

/// What the timer is set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Nothing,
    /// The end of this phase.
    Phase(u8),
    Write,
    Linger,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Guarded {
    stream: TcpStream,
    progress: Arc<Progress>,
    header_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
    /// Wakes this task at the deadline or before it.
    timer: Pin<Box<Sleep>>,
    /// When what is watched is over.
    deadline: Instant,
    watch: Watch,
    /// An answer in place of hyper's own, and how much of it is written.
    instead: Option<(Vec<u8>, usize)>,
}

impl Guarded {
    pub fn new(stream: TcpStream, progress: Arc<Progress>, limits: &Limits) -> Self {
        let deadline = Instant::now() + limits.header_timeout;
        Self {
            stream,
            progress,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            write_timeout: limits.write_timeout,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
            deadline,
            watch: Watch::Phase(HEADER),
            instead: None,
        }
    }

    /// The socket, for what the connection was upgraded to.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn arm(&mut self, cx: &mut Context<'_>, watch: Watch, limit: Duration) {
        self.watch = watch;
        self.deadline = Instant::now() + limit;
        // Setting the timer costs more than anything else here, and every request has two deadlines. One that is set
        // for a moment before is left alone: when that has come, it is set for the deadline that holds then.
        if self.deadline < self.timer.deadline() || self.timer.is_elapsed() {
            self.set_timer(cx);
        }
    }

    fn set_timer(&mut self, cx: &mut Context<'_>) {
        self.timer.as_mut().reset(self.deadline);
        // Polled so that it wakes this task even if hyper doesn't come back to the socket before.
        let _ = self.timer.as_mut().poll(cx);
    }

    /// Fails if what the timer was set for is still going on when it has run out.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let running = match self.watch {
            Watch::Nothing => false,
            Watch::Phase(phase) => self.progress.phase() == phase,
            Watch::Write | Watch::Linger => true,
        };
        if self.timer.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        if running && Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // What comes next has a deadline of its own; until then there is nothing to wake up for.
        self.deadline = if running { self.deadline } else { Instant::now() + self.idle_timeout };
        self.set_timer(cx);
        Ok(())
    }

    fn await_request(&mut self, cx: &mut Context<'_>) {
        let begun = self.progress.early.swap(false, Ordering::Relaxed);
        let (phase, limit) = if begun { (HEADER, self.header_timeout) } else { (IDLE, self.idle_timeout) };
        self.progress.set(phase);
        self.arm(cx, Watch::Phase(phase), limit);
    }

    fn write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        match written {
            Poll::Pending if self.watch != Watch::Write => self.arm(cx, Watch::Write, self.write_timeout),
            Poll::Ready(_) if self.watch == Watch::Write => self.watch = Watch::Nothing,
            _ => {}
        }
        written
    }

    /// Writes the answer in place of hyper's own until it is out.
    fn write_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((answer, done)) = self.instead.take() {
            if done == answer.len() {
                self.instead = Some((answer, done));
                return Poll::Ready(Ok(()));
            }
            let written = self.write(cx, &[IoSlice::new(&answer[done..])]);
            self.instead = Some((answer, done + if let Poll::Ready(Ok(n)) = written { n } else { 0 }));
            if ready!(written)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The answer in place of one that hyper gives by itself, whose head is `head`.
fn in_place_of(head: &[u8]) -> Vec<u8> {
    let code = head.get(9..12).and_then(|code| StatusCode::from_bytes(code).ok());
    match code {
        Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => {
            canned(code.unwrap_or_default(), "The headers are too large")
        }
        Some(StatusCode::URI_TOO_LONG) => canned(StatusCode::URI_TOO_LONG, "The path is too long"),
        _ => canned(StatusCode::BAD_REQUEST, "This is not an HTTP request"),
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            match self.progress.phase() {
                IDLE => {
                    self.progress.set(HEADER);
                    let limit = self.header_timeout;
                    self.arm(cx, Watch::Phase(HEADER), limit);
                }
                WORKING => self.progress.early.store(true, Ordering::Relaxed),
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        // Nobody was handed a request: hyper speaks for itself.
        if matches!(self.progress.phase(), IDLE | HEADER) && self.instead.is_none() {
            let head = slices.first().map_or(&[][..], |slice| slice);
            self.instead = Some((in_place_of(head), 0));
            self.progress.linger.store(true, Ordering::Relaxed);
            self.watch = Watch::Nothing;
        }
        if self.instead.is_some() {
            ready!(self.write_instead(cx))?;
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        self.write(cx, slices)
    }

    /// So hyper hands over a large body as it is, and gives it up once it is written, instead of copying it.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // hyper flushes the socket when it has nothing left to write.
        if self.progress.phase() == ANSWERING {
            self.await_request(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch != Watch::Linger {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if !self.progress.linger.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            self.arm(cx, Watch::Linger, LINGER);
        }
        let mut discarded = [0; 4096];
        while self.check(cx).is_ok() {
            let mut buf = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
